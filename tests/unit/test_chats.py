"""Saved conversations, votes, ratings and feedback: nothing is lost, counted twice, or learnt that is held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persona_lab.chats.feedback import corrections
from persona_lab.chats.ratings import SCALE, Ballot, ballots, rate
from persona_lab.chats.records import Candidate, Feedback, SavedChat, SavedPane, SavedTurn, Vote
from persona_lab.chats.store import Chats, exported
from persona_lab.chats.votes import Votes, pairs
from persona_lab.datasets.held_out import check_training
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, UnknownName
from persona_lab.home import Home
from persona_lab.types import Message, Stamp

STAMP = Stamp(
    variant="v", adapter="lora v abc", base="b", seed=3, tokens=40, seconds=2.0, first_token_seconds=0.2
)  # fmt: skip


def asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def chat(**fields: Any) -> SavedChat:
    turns = (SavedTurn(role="user", text="Who goes?"), SavedTurn(id="r1", role="assistant", text="I.", stamp=STAMP))
    pane = SavedPane(variant="v", name="V one", turns=turns)
    return SavedChat(**{"id": "c1", "persona": "tam", "owner": "me", "created": "x", "panes": (pane, pane)} | fields)


# --- conversations ------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_not_written_over(home: Home) -> None:
    chats = Chats(home)
    path = home.root / "chats" / "c1.json"
    path.parent.mkdir()
    path.write_text('{"of": "a newer version"}')
    saved = chats.save(chat())
    assert saved.id != "c1"
    assert path.read_text() == '{"of": "a newer version"}'
    assert chats.get(saved.id, "me").panes == chat().panes


def test_a_conversation_is_the_owners_and_two_windows_lose_nothing(home: Home) -> None:
    chats = Chats(home)
    first = chats.save(chat())
    assert Chats(home).get("c1", "me").panes == first.panes
    assert first.title == "Who goes?"
    ours = chats.save(first)
    theirs = chats.save(first.model_copy(update={"title": "of the other window"}))  # saved over an older revision
    assert theirs.id != ours.id
    assert theirs.branch_of == "c1"
    taken = chats.save(chat(owner="you", revision=ours.revision))  # somebody else's id
    assert taken.id != "c1"
    assert {c.id for c in chats.all("me")} == {"c1", theirs.id}
    for nosy in ("you", ""):
        with pytest.raises(UnknownName):
            chats.get("c1", nosy)
        with pytest.raises(UnknownName):
            chats.delete("c1", nosy)
    with pytest.raises(BadInput):
        chats.get("../library", "me")
    (home.root / "chats" / "broken.json").write_text("{")
    chats.delete("c1", "me")
    assert [c.id for c in chats.all("me")] == [theirs.id]


def test_export_names_who_said_what_and_a_blind_one_names_nobody() -> None:
    rows = [json.loads(line) for line in exported(chat(), "jsonl").splitlines()]
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]
    assert rows[0]["stamps"][0]["adapter"] == "lora v abc"
    text = exported(chat(), "md")
    assert "## V one" in text
    assert "lora v abc · seed 3 · 20 tokens/s" in text
    with pytest.raises(BadInput, match="blind"):
        exported(chat(hidden=True), "md")
    with pytest.raises(UnknownName):
        exported(chat(), "pdf")


# --- votes --------------------------------------------------------------------------------------------


def vote(voter: str, replies: str, winner: int | None, outcome: str = "win", question: str = "Well?") -> Vote:
    candidates = tuple(
        Candidate(reply=f"{reply}{number}", variant=name, messages=asked(question), text=f"{name} says {reply}")
        for number, (name, reply) in enumerate(zip("abcdef", replies, strict=False))
    )
    return Vote(
        id="", persona="tam", voter=voter, candidates=candidates, outcome=outcome, winner=winner, created=replies
    )


@pytest.fixture
def engine(home: Home, tmp_path: Path) -> Iterator[Engine]:
    card = tmp_path / "tam.json"
    card.write_text(json.dumps({"name": "Tam", "description": "A mender of clocks."}))
    with Engine.open(home.root) as opened:
        opened.import_persona(card, "tam")
        yield opened


def test_a_vote_counts_once_for_one_reply_and_survives_without_its_row(engine: Engine) -> None:
    kept = engine.votes.cast(vote("me", "xy", 1))
    for again in (vote("me", "xy", 0), vote("me", "xz", None, "tie")):  # the same replies; one of them again
        with pytest.raises(BadInput, match="counts once"):
            engine.votes.cast(again)
    engine.votes.cast(vote("you", "xy", 0))
    with pytest.raises(BadInput):
        engine.votes.cast(vote("me", "q", 0))
    with pytest.raises(BadInput):
        engine.votes.cast(vote("me", "pq", None, "win"))
    assert len(engine.votes.all("tam")) == 2
    engine.library.remove("votes", kept.id)
    Votes(engine.home, engine.library)
    assert engine.library.get("votes", kept.id) is not None
    with pytest.raises(BadInput, match="counts once"):
        engine.votes.cast(vote("me", "xy", 0))


def test_pairs_are_of_one_prompt_and_of_winners_only() -> None:
    clear, tie = vote("me", "xyz", 1), vote("me", "pq", None, "tie")
    [first, second] = pairs([clear, tie])
    assert first["prompt"] == [{"role": "user", "content": "Well?"}]
    assert first["chosen"][0]["content"] == second["chosen"][0]["content"] == "b says y"
    assert {first["rejected_variant"], second["rejected_variant"]} == {"a", "c"}
    later = clear.candidates[0].model_copy(update={"messages": asked("Another history?")})
    apart = clear.model_copy(update={"candidates": (later, *clear.candidates[1:])})
    assert [p["rejected_variant"] for p in pairs([apart])] == ["c"]
    assert [p["same_context"] for p in pairs([apart], other_contexts=True)] == [False, True]


# --- ratings ------------------------------------------------------------------------------------------


def drawn(strengths: dict[str, float], count: int, seed: int) -> list[Ballot]:
    rng, cast = random.Random(seed), []
    for _ in range(count):
        met = tuple(rng.sample(sorted(strengths), rng.choice((2, 3))))
        weights = [2.718281828 ** strengths[name] for name in met]
        cast.append(Ballot(met, None if rng.random() < 0.1 else rng.choices(met, weights)[0]))
    return cast


def test_ratings_find_the_strengths_and_their_intervals_cover_them() -> None:
    truth = {"a": 0.8, "b": 0.2, "c": -0.2, "d": -0.8}
    big = rate(drawn(truth, 4000, 1))
    assert [rating.variant for rating in big] == ["a", "b", "c", "d"]
    assert all(abs(r.rating - 1000 - SCALE * 0.9 * truth[r.variant]) < 35 for r in big)  # ties pull a little together
    no_ties = {"a": 0.5, "b": -0.5}
    covered = 0
    for seed in range(200):
        rng = random.Random(seed)
        cast = [Ballot(("a", "b"), "a" if rng.random() < 0.731 else "b") for _ in range(40)]
        covered += sum(r.low <= 1000 + SCALE * no_ties[r.variant] <= r.high for r in rate(cast))
    assert 0.9 <= covered / 400 <= 0.99


def test_few_votes_give_wide_finite_intervals_and_say_so() -> None:
    assert rate([]) == []
    [winner, loser] = rate([Ballot(("a", "b"), "a")] * 3)
    assert winner.rating > 1000 > loser.rating
    assert winner.low < 1000 < winner.high  # three wins prove nothing yet
    assert "never lost" in winner.note
    assert "Few votes" in loser.note
    assert (winner.wins, winner.losses, winner.votes) == (3, 0, 3)
    strangers = rate([Ballot(("a", "b"), None), Ballot(("c", "d"), "c")])
    assert all("have met" in rating.note for rating in strangers)
    double = vote("me", "xyz", 2)
    same = double.model_copy(
        update={
            "candidates": tuple(
                c.model_copy(update={"variant": v}) for c, v in zip(double.candidates, "aab", strict=True)
            )
        }
    )
    assert ballots([same]) == [Ballot(("a", "b"), "b")]


# --- feedback -----------------------------------------------------------------------------------------


def feedback(question: str, text: str, correction: str = "", thumb: str = "up", **fields: Any) -> Feedback:
    known = {"id": "", "persona": "tam", "author": "me", "reply": f"{question}{text}", "created": "x"}
    return Feedback(
        **known | {"messages": asked(question), "text": text, "thumb": thumb, "correction": correction} | fields
    )


@pytest.fixture
def taught(engine: Engine, tmp_path: Path) -> Engine:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What of the {thing}, old man number {n}?"},
                {
                    "role": "assistant",
                    "content": f"The {thing} ticks {n} times before the {thing} sleeps at noon, sir.",
                },
            ]
        }
        for n, thing in enumerate(
            ["kettle", "harbour", "violin", "orchard", "ladder", "pigeon", "engine", "lantern", "marble", "thimble"]
        )
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    engine.import_dataset(data, "tam")
    return engine


def test_feedback_becomes_a_new_version_in_train_only_and_never_what_is_held_out(taught: Engine) -> None:
    before = taught.dataset("tam-v1")
    question, reply = (m.content for m in before.of("test")[0].messages)
    watched = before.of("validation")[0].messages[1].content
    give = taught.feedback.give
    liked = give(feedback("Do you sing?", "Only to the big bell, and badly at that."))
    better = give(feedback("Do you dance?", "No.", correction="With a pendulum, yes, every hour.", thumb="down"))
    exact = give(feedback(question.upper(), reply.lower().replace(",", "")))
    near = give(feedback("Something else entirely?", watched.replace("sir", "madam")))
    give(feedback("Do you cook?", "A very bad reply.", thumb="down"))
    give(feedback("Do you swim?", "Gone soon."))
    taught.feedback.take_back("me", "Do you swim?Gone soon.")
    assert {item.id for item in taught.feedback.to_review("tam")} == {liked.id, better.id, exact.id, near.id}

    made = taught.learn_from_feedback("tam")
    assert set(made.added) == {liked.id, better.id}
    assert made.refused.keys() == {exact.id, near.id}
    assert "held-out" in made.refused[exact.id]
    assert made.dataset is not None
    after = taught.dataset(made.dataset.id)
    assert after.version == 2
    for split in ("validation", "test"):
        assert after.of(split) == before.of(split)  # type: ignore[arg-type]
    new = after.of("train")[len(before.of("train")) :]
    assert [c.messages[-1].content for c in new] == ["With a pendulum, yes, every hour.", liked.text]
    check_training(after, taught.catalog.held_out("tam"))
    assert made.dataset.counts["train"] == len(after.of("train"))
    assert [taught.datasets("tam")[0].id, len(taught.dataset("tam-v1").conversations)] == ["tam-v2", 10]

    # what is in the data is not offered again, unless it is corrected anew
    assert {item.id for item in taught.feedback.to_review("tam")} == {exact.id, near.id}
    give(feedback("Do you sing?", liked.text))
    assert liked.id not in {item.id for item in taught.feedback.to_review("tam")}
    give(feedback("Do you sing?", liked.text, correction="Only on Sundays, to the big bell."))
    assert liked.id in {item.id for item in taught.feedback.to_review("tam")}
    assert taught.feedback.discard([exact.id, near.id]) == 2
    [pair] = [p for p in corrections(taught.feedback.all("tam")) if p["feedback"] == better.id]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (better.correction, "No.")


def test_an_answer_to_a_test_question_is_not_learnt(taught: Engine) -> None:
    from persona_lab.types import Fact

    fact = Fact(id="f", question="Where were you born, Tam?", answer="In a tower", wrong=("At sea", "In Rome"))
    taught.edit_probes("tam", lambda file: file.added([fact]))
    item = taught.feedback.give(feedback("where were you born tam", "In the old tower by the river."))
    made = taught.learn_from_feedback("tam", [item.id])
    assert made.dataset is None
    assert "tested with" in made.refused[item.id]
    with pytest.raises(BadInput, match="no feedback"):
        taught.learn_from_feedback("tam", ["another"])


def test_without_data_there_is_nothing_to_add_to(engine: Engine) -> None:
    engine.feedback.give(feedback("Do you sing?", "Only to the big bell."))
    with pytest.raises(BadInput, match="no dataset"):
        engine.learn_from_feedback("tam")
    with pytest.raises(BadInput, match="says nothing"):
        engine.feedback.give(feedback("a", "b", thumb=""))


# --- the command line ---------------------------------------------------------------------------------


def test_votes_and_feedback_on_the_command_line(taught: Engine, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from persona_lab.cli import app

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--home", str(taught.home.root)])
        assert result.exit_code == 0, result.output
        return result.stdout

    taught.votes.cast(vote("me", "xy", 1))
    item = taught.feedback.give(feedback("Do you dance?", "No.", correction="With a pendulum, yes.", thumb=""))
    assert json.loads(run("votes", "list", "--json"))[0]["winner"] == "b"
    assert [row["variant"] for row in json.loads(run("votes", "ratings", "--json"))] == ["b", "a"]
    assert "b" in run("votes", "ratings")
    lines = run("votes", "export", "--corrections").splitlines()
    assert [json.loads(line)["chosen"][0]["content"] for line in lines] == ["b says y", item.correction]
    out = tmp_path / "pairs.jsonl"
    assert json.loads(run("votes", "export", "--out", str(out), "--json"))["pairs"] == 1
    assert json.loads(out.read_text())["rejected_variant"] == "a"
    assert json.loads(run("feedback", "list", "--json"))[0]["wanted"] == item.correction
    taught.close()
    added = json.loads(run("feedback", "add-to-dataset", "--persona", "tam", "--json"))
    assert (added["dataset"], added["added"], added["refused"]) == ("tam-v2", [item.id], {})
