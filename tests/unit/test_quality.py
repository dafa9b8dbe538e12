"""Each kind of trouble is found where it is and nowhere else; fixes make new versions that can be left again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from persona_lab.datasets.held_out import HeldOut
from persona_lab.datasets.quality.repairs import redacted, repaired
from persona_lab.datasets.quality.report import CHECKS, fixed, quality_report
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, Cancelled, UnknownName
from persona_lab.home import Home
from persona_lab.types import Conversation, Dataset, Message, Persona

PERSONA = Persona(id="nan", name="Nan", card={"data": {"name": "Nan", "creator": "Kim"}})
CLEAN = [
    ("Is it raining?", "It is always raining somewhere, love, and mostly here."),
    ("What is for tea?", "Toast, and you may have the crust if you are good."),
    ("Who fixed the gate?", "Your grandfather did, with string, in the year of the flood."),
    ("Are you cross?", "I was cross in 1974 and I have not the time for it since."),
]


def row(question: str, reply: str, number: int = 0, split: str = "train") -> Conversation:
    turns = (Message(role="user", content=question), Message(role="assistant", content=reply))
    return Conversation(id=f"r{number}", messages=turns, split=split)  # type: ignore[arg-type]


def data(*rows: Conversation) -> Dataset:
    clean = [row(question, reply, i) for i, (question, reply) in enumerate(CLEAN)]
    return Dataset(id="nan-v1", persona="nan", version=1, name="nan v1", conversations=(*clean, *rows))


WRONG = {
    "exact_duplicates": row("is it raining", "It is always raining somewhere love and mostly here!"),
    "near_duplicates": row("Rain again?", "It is always raining somewhere, love, and mostly here, dear."),
    "empty_replies": row("Well?", "…"),
    "one_word_replies": row("Tea?", "Aye."),
    "wrong_role": row("Tea?", "Yes please, two sugars.\nUser: And milk?\nNan: Always."),
    "assistant_phrases": row("Do you dream?", "As an AI language model, I do not dream of teapots."),
    "over_long": row("Go on.", "And then it rained on the whole of Harthwaite. " * 200),
    "personal_data": row("Where are you?", "Write to nan.t@example.org or ring 01632 960 983, love."),
    "placeholders": row("Who are you?", "I am {{char}}, and you are {{user}}, and that is that."),
    "encoding_damage": row("Is that so?", "I donâ€™t know, and I don t care for caf&eacute;s &amp; such."),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_each_kind_is_found_alone_and_mended(kind: str) -> None:
    dataset = data(WRONG[kind])
    report = quality_report(dataset, PERSONA)
    assert [finding.kind for finding in report.findings] == [kind]
    (finding,) = report.findings
    assert (finding.count, finding.examples[0].row) == (1, 4)
    assert finding.fix
    assert finding.why
    assert len(report.clean) == len(CHECKS) - 1
    rows, notes = fixed(dataset, PERSONA, [kind], HeldOut())
    assert len(notes) == 1
    left = quality_report(dataset.model_copy(update={"conversations": rows}), PERSONA)
    assert not left.findings
    assert rows[:4] == dataset.conversations[:4]


def test_what_mending_writes() -> None:
    def mended(kind: str) -> str:
        rows, _ = fixed(data(WRONG[kind]), PERSONA, [kind], HeldOut())
        return rows[4].messages[-1].content

    assert mended("placeholders") == "I am Nan, and you are my friend, and that is that."
    assert mended("wrong_role") == "Yes please, two sugars."
    assert mended("personal_data") == "Write to [email] or ring [phone], love."
    assert mended("encoding_damage").startswith("I don’t know, and I don't care for cafés & such")
    long, _ = fixed(data(WRONG["over_long"]), PERSONA, ["over_long"], HeldOut())
    assert long[4].messages[-1].content.endswith("Harthwaite.")


def test_personal_data_and_what_only_looks_like_it() -> None:
    told = "Ring +44 20 7946 0958, (555) 867-5309 or 555-0199; card 4111 1111 1111 1111; 221B Baker Street; 10.0.0.17."
    assert redacted(told) == "Ring [phone], [phone] or [phone]; card [account]; [address]; [address]."
    fine = "In 1939-1945, on 2023-01-02, 10,000,000 of 123456789 came by 7.45; ratio 3.14159265; pi/2; id 12345678."
    assert redacted(fine) == fine
    assert repaired("It s late and you re tired") == "It's late and you're tired"
    assert repaired("naïve café in T s hirts") == "naïve café in T s hirts"


def test_other_languages_are_told_by_the_words_of_the_rest(test_data: Path) -> None:
    import json

    lines = (test_data / "lord_goring" / "pairs.jsonl").read_text("utf-8").splitlines()[:200]
    rows = [row(r["user"], r["assistant"], i) for i, r in enumerate(map(json.loads, lines))]
    german = row("Regnet es?", "Es regnet immer irgendwo, mein Schatz, und meistens hier bei uns im Garten.", 900)
    russian = row("Дождь?", "Где-нибудь всегда идёт дождь, милая.", 901)
    dataset = Dataset(id="g-v1", persona="g", version=1, name="g", conversations=(*rows, german, russian))
    report = quality_report(dataset, Persona(id="g", name="Lord Goring", card={"data": {"name": "Lord Goring"}}))
    (found,) = [finding for finding in report.findings if finding.kind == "other_languages"]
    assert [example.row for example in found.examples] == [200, 201]


def test_real_data_is_found_out(test_data: Path, home: Home) -> None:
    with Engine(home) as engine:
        persona = engine.save_persona(PERSONA)
        made = engine.import_dataset(test_data / "formats" / "identity_alpaca_placeholders.json", persona.id)
        report = engine.check_dataset(made.id)
        counts = {finding.kind: finding.count for finding in report.findings}
        assert counts["placeholders"] > 80
        assert counts["assistant_phrases"] >= 15
        assert all(len(finding.examples) <= 5 for finding in report.findings)
        fixed_one = engine.fix_dataset(made.id, ["placeholders", "assistant_phrases"])
        assert (fixed_one.version, fixed_one.parent) == (2, made.id)
        after = {finding.kind for finding in engine.check_dataset(fixed_one.id).findings}
        assert not {"placeholders", "assistant_phrases"} & after


def test_versions_stay_and_the_held_out_stays_held_out(home: Home, tmp_path: Path) -> None:
    import json

    rows = [
        {"user": f"{q} ({i})", "assistant": f"{r} Number {i * 7919}."}
        for i in range(15)
        for q, r in CLEAN[i % 4 : i % 4 + 1]
    ]
    rows += [{"user": "Who?", "assistant": "I am {{char}} of Harthwaite, as ever was."}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with Engine(home) as engine:
        engine.save_persona(PERSONA)
        first = engine.import_dataset(path, "nan")
        before = engine.dataset(first.id)
        second = engine.fix_dataset(first.id, ["placeholders"])
        assert [d.id for d in engine.datasets("nan")] == [second.id, first.id]
        after = engine.dataset(second.id)
        held = {c.messages[0].content for c in before.of("test")}
        assert held
        assert {c.messages[0].content for c in after.of("test")} == held
        assert engine.dataset(first.id) == before
        assert engine.use_dataset("nan", 1).id == first.id
        assert [d.id for d in engine.datasets("nan")] == [first.id, second.id]
        with pytest.raises(BadInput, match="no dataset version 9"):
            engine.use_dataset("nan", 9)
        with pytest.raises(BadInput, match="nothing of this to mend"):
            engine.fix_dataset(second.id, ["placeholders"])
        with pytest.raises(UnknownName, match="placeholder"):
            engine.fix_dataset(second.id, ["placeholder"])
        third = engine.import_dataset(path, "nan")  # a new version is the one in use again
        assert engine.datasets("nan")[0].id == third.id
    with Engine(home) as engine:  # and all of it is remembered
        assert engine.use_dataset(second.id).parent == first.id


@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_import_can_be_stopped(at: int, home: Home, tmp_path: Path) -> None:
    import json

    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"user": f"q {i}", "assistant": f"a {i}"}) for i in range(3000)))
    seen: list[tuple[str, float]] = []

    def watcher(doing: str, share: float) -> None:
        seen.append((doing, share))
        if len(seen) == at:
            raise Cancelled("Stopped.", "")

    with Engine(home) as engine:
        engine.save_persona(PERSONA)
        with pytest.raises(Cancelled):
            engine.import_dataset(path, "nan", watcher=watcher)
        assert not engine.datasets("nan")
        assert {doing for doing, _ in seen} == {"reading"} or at == 4
        assert engine.import_dataset(path, "nan").counts["train"] > 2000


def test_the_card_gives_rows_and_separate_probes(home: Home) -> None:
    words = [
        f"{a}{b}" for a in ("eel", "moss", "fell", "beck", "thorn", "rook") for b in ("ing", "er", "ley", "wick", "by")
    ]
    facts = [" ".join(random.Random(i).sample(words, 12)) for i in range(30)]
    entries = [{"keys": [f"Place {i}"], "content": facts[i], "enabled": True} for i in range(30)]
    card = {
        "data": {
            "name": "Nan",
            "mes_example": "<START>\n{{user}}: Are you {{char}}?\n{{char}}: So they tell me, {{user}}.\n"
            "<START>\n{{char}}: alone",
            "character_book": {"entries": [*entries, {"keys": ["/x/"], "content": "a rule for machines only"}]},
        }
    }
    with Engine(home) as engine:
        engine.save_persona(Persona(id="nan", name="Nan", card=card))
        made = engine.dataset_from_card("nan")
        dataset = engine.dataset(made.id)
        by_made = {c.made for c in dataset.conversations}
        assert by_made == {"example dialogue of the card", "lorebook entry, asked by a template"}
        example = next(c for c in dataset.conversations if c.made.startswith("example"))
        assert [m.content for m in example.messages] == ["Are you Nan?", "So they tell me, my friend."]
        probes = {c.source for c in dataset.of("test")}
        assert 1 <= len(probes) < 15
        assert all(source.startswith("card:lore-") for source in probes)
        assert engine.dataset(engine.dataset_from_card("nan").id).of("test")  # again: the same probes
        engine.save_persona(Persona(id="bare", name="Bare", card={"data": {"name": "Bare"}}))
        with pytest.raises(BadInput, match="neither example dialogues nor a lorebook"):
            engine.dataset_from_card("bare")
