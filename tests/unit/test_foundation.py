"""Strategy `foundation`: corpora without held-out lines, a base that is kept and shared, and what scores it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from persona_lab.cli.doctor import _examine
from persona_lab.datasets.corpus import Unit, corpus_files, read_corpus, units_of_text
from persona_lab.datasets.corpus_filter import HeldText, without_held
from persona_lab.datasets.held_out import hold_out, reply_key
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.datasets.store import save_dataset
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, BadModel, BadSetting, Cancelled, UnknownName
from persona_lab.evaluation.context import Models, VariantContext, base_of
from persona_lab.home import Home
from persona_lab.models import kept, registry
from persona_lab.outcomes import variant_of
from persona_lab.personas.store import save_persona
from persona_lab.plugins import Plugins
from persona_lab.testing.made_up import FOUR_WORDS
from persona_lab.training.foundation import corpus_passages, held_text
from persona_lab.training.run import run
from persona_lab.types import (
    Artifact,
    BaseModelInfo,
    Conversation,
    Dataset,
    Job,
    Machine,
    Message,
    Probe,
    RunView,
    Variant,
    now,
)

CPU = Machine(
    device="cpu",
    device_name="a CPU",
    cores=2,
    memory_bytes=16 << 30,
    memory_free_bytes=12 << 30,
    disk_free_bytes=99 << 30,
    bf16=False,
)
QUICK: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 5e-3,
    "corpus_learning_rate": 2e-3,
    "passage_tokens": 64,
    "corpus_held_out": 0.1,
    "samples": 0,
}


class Watcher:
    """A reporter that keeps everything; raises Cancelled at a step of a stage if told to."""

    def __init__(self, stop_at: int = 0, stage: str = "") -> None:
        self.stop_at, self.stage = stop_at, stage
        self.steps: list[tuple[int, str]] = []
        self.said: list[str] = []

    def phase(self, title: str, total: int | None = None) -> None:
        self.said.append(title)

    def step(self, step: int, total: int, **values: Any) -> None:
        stage = str(values.get("stage", ""))
        self.steps.append((step, stage))
        if self.stop_at and step >= self.stop_at and stage == self.stage:
            raise Cancelled("Stopped on request.")

    def log(self, message: str, level: str = "info") -> None:
        self.said.append(message)

    def stages(self) -> set[str]:
        return {stage for _, stage in self.steps if stage}


def world(count: int = 60) -> str:
    """Paragraphs about one made-up coast."""
    parts = []
    for i in range(count):
        things, place, snack, day = FOUR_WORDS[i % len(FOUR_WORDS)]
        parts.append(
            f"On the {i}th {day} of the tide the people of the {place} hang up their {things}. They sing until the "
            f"{snack} is gone, and whoever sings last, number {i}, keeps the key of the {place} for a year."
        )
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.load()


@pytest.fixture
def dataset_of(conversations_factory: Callable[..., Any]) -> Callable[..., Dataset]:
    """28 conversations: 6 validation, 4 test, the rest train; and some lines of others."""

    def make(persona: str = "tamsin", start: int = 0) -> Dataset:
        rows = []
        for i, c in enumerate(conversations_factory(28 + start)[start:]):
            split = "validation" if i < 6 else "test" if i < 10 else "train"
            rows.append(c.model_copy(update={"split": split}))
        others = tuple(
            f"The harbour master counts {i} gulls and {i + 3} terns before his breakfast." for i in range(40)
        )
        return Dataset(
            id=f"{persona}-v1", persona=persona, version=1, name="made up", conversations=tuple(rows), others=others
        )

    return make


@pytest.fixture
def train(
    home: Home, plugins: Plugins, tiny_model: Path, persona_factory: Callable[..., Any], dataset_of: Any
) -> Callable[..., dict[str, Any]]:
    """Runs the strategy on the tiny model, as the worker does, with the persona's data in the home."""

    def go(
        watcher: Watcher | None = None, run_id: str = "one", persona: str = "tamsin", base: str = "", **config: Any
    ) -> dict[str, Any]:
        made, dataset = persona_factory(persona), dataset_of(persona)
        save_persona(home.persona(persona), made, None)
        path = home.persona(persona) / "datasets" / f"{persona}-v1.jsonl"
        save_dataset(path, dataset)
        hold_out(home.persona(persona), dataset)
        job = Job(
            id=run_id,
            kind="train",
            name="test",
            home=str(home.root),
            created=now(),
            persona=made,
            dataset=str(path),
            dataset_id=dataset.id,
            base=base or str(tiny_model),
            strategy=config.pop("strategy", "foundation"),
            config=config or QUICK,
            seed=4,
        )
        return run(job, watcher or Watcher(), plugins)

    return go


def variant_from(result: dict[str, Any], run_id: str, dataset: str = "tamsin-v1") -> Variant:
    """As the catalogue makes it of a finished run; the weights stay where the run left them."""
    artifact = Artifact.model_validate(result["artifact"])
    view = RunView(
        id=run_id,
        kind="train",
        name=run_id,
        status="done",
        persona="tamsin",
        strategy=result["strategy"],
        base=result["base"],
        dataset=dataset,
        result=result,
    )
    return variant_of(view, artifact, Path("nowhere")).model_copy(update={"path": artifact.path})


# --- reading --------------------------------------------------------------------------------------


def test_text_becomes_units() -> None:
    wrapped = "\n".join(["This line of prose is about as long as a printed line is, and goes"] * 3)
    script = "LADY. I never go to parties.\nLORD. Nobody asked you, I believe.\nLADY. That is why."
    verse = "The sea,\nthe sea,\nand no tea"
    units = [unit.text for unit in units_of_text(f"{wrapped}\n\n{script}\n\n{verse}")]
    assert units == [wrapped.replace("\n", " "), *script.split("\n"), verse]
    long = " ".join(f"Sentence number {i} says very little." for i in range(100))
    pieces = list(units_of_text(long))
    assert [piece.goes_on for piece in pieces] == [False, *[True] * (len(pieces) - 1)]
    assert " ".join(piece.text for piece in pieces) == long
    assert max(len(piece.text.split()) for piece in pieces) <= 200


def test_files_of_a_folder_are_read_and_what_is_unreadable_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One tale.\n\nAnother tale.")
    (tmp_path / "b.md").write_bytes("Café in Latin-1".encode("latin-1"))
    (tmp_path / "c.txt").write_bytes(b"\x00\x01\x02\x03binary")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG....")
    rows = [
        {"speaker": "Ann", "text": "Good day."},
        {"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}]},
        {"user": "Why?", "assistant": "Because."},
        {"number": 3},
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = read_corpus(tmp_path)
    assert [u.text for u in corpus.units] == [
        "One tale.",
        "Another tale.",
        "Ann: Good day.",
        "Hm?",
        "Yes.",
        "Why?",
        "Because.",
    ]
    assert [u.begins for u in corpus.units] == [True, False, True, True, False, True, False]
    told = " ".join(corpus.notes)
    assert "b.md was left out" in told
    assert "byte 3" in told
    assert "c.txt was left out" in told
    assert "d.jsonl: 1 rows" in told


def test_a_corpus_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no corpus at"):
        corpus_files(tmp_path / "nothing")
    (tmp_path / "weights.bin").write_bytes(b"abc")
    with pytest.raises(BadInput, match="no kind of file"):
        corpus_files(tmp_path / "weights.bin")
    with pytest.raises(BadInput, match="0 corpus files"):
        corpus_files(tmp_path)
    (tmp_path / "a.txt").write_text("word " * 1000)
    monkeypatch.setattr("persona_lab.datasets.corpus.MOST_BYTES", 1000)
    with pytest.raises(BadInput, match="at most"):
        corpus_files(tmp_path)


# --- what is held out -----------------------------------------------------------------------------

HELD = "I usually say what I really think. A great mistake nowadays: it makes one so liable to be misunderstood."


@pytest.mark.parametrize(
    "text",
    [
        HELD,
        f"LORD GORING. [Bowing.] {HELD}",
        f"Lord Goring: {HELD.upper().replace(',', ' -')}",
        f"He bowed, and then he said: “{HELD}” Nobody laughed.",
        HELD.replace("liable", "apt"),
        "A great mistake nowadays: it makes one so liable to be misunderstood.",
    ],
)
def test_held_out_lines_are_found_whole_changed_inside_and_in_part(text: str) -> None:
    assert HeldText([HELD]).held(text)


@pytest.mark.parametrize("text", ["It makes one think.", "I usually say nothing at all to people whom I like.", ""])
def test_other_lines_stay(text: str) -> None:
    assert not HeldText([HELD, "Yes.", "Of course, sir."]).held(text)


def test_a_fingerprint_alone_finds_a_line() -> None:
    held = HeldText([], {reply_key(HELD)})
    assert held.held(f"LORD GORING. {HELD}")
    assert held.held(f"He bowed at last. {HELD} Nobody laughed.")
    assert not held.held("He bowed at last. Nobody laughed.")


def test_a_line_across_a_cut_drops_both_sides_and_leaves_a_hole() -> None:
    first, second = HELD.split(". ", 1)
    units = [Unit("Before.", begins=True), Unit(f"{first}."), Unit(second, goes_on=True), Unit("After.")]
    found = without_held(units, HeldText([HELD]))
    assert [u.text for u in found.units] == ["Before.", "After."]
    assert found.dropped == 2
    assert found.units[1].begins


class Bare:
    """As much of a `TrainContext` as reading a corpus takes."""

    def __init__(self, home: Home, dataset: Dataset, model: Path) -> None:
        self.home, self.dataset, self.seed = home, dataset, 0
        self.renderer = ChatRenderer(model)

    def log(self, message: str, level: str = "info") -> None: ...


def test_no_held_out_line_of_any_persona_reaches_a_passage(
    home: Home, tiny_model: Path, dataset_of: Any, persona_factory: Any, tmp_path: Path
) -> None:
    mine, theirs = dataset_of("tamsin"), dataset_of("barnaby", 28)
    for dataset in (mine, theirs):
        save_persona(home.persona(dataset.persona), persona_factory(dataset.persona), None)
        save_dataset(home.persona(dataset.persona) / "datasets" / f"{dataset.id}.jsonl", dataset)
        hold_out(home.persona(dataset.persona), dataset)
    spoken = [m.content for d in (mine, theirs) for c in d.conversations for m in c.messages]
    (tmp_path / "play.txt").write_text(world() + "\n\n" + "\n\n".join(spoken))
    context = Bare(home, mine, tiny_model)
    passages = corpus_passages(context, str(tmp_path / "play.txt"), 64, 0.1)
    read = " ".join(context.renderer.decode(p.ids) for p in (*passages.train, *passages.validation))
    for dataset in (mine, theirs):
        for split, expected in (("test", 0), ("validation", 0), ("train", 1)):
            replies = [m.content for c in dataset.of(split) for m in c.messages if m.role == "assistant"]
            seen = sum(reply in read for reply in replies)
            assert seen == 0 if not expected else seen > 0, (dataset.persona, split)
    assert passages.counts["dropped"] >= 20
    assert passages.counts["validation"] == len(passages.validation) > 0
    assert all(not p.mask[0] and all(p.mask[1:]) and 16 <= len(p.ids) <= 64 for p in passages.train)


def test_lines_that_specificity_is_measured_against_are_not_read(home: Home, tiny_model: Path, dataset_of: Any) -> None:
    from persona_lab.evaluation.probes import reply_probes

    context = Bare(home, dataset_of(), tiny_model)
    held = held_text(context)
    others = [probe.other for probe in reply_probes(context.dataset)]
    assert others
    assert all(held.held(text) for text in others)
    passages = corpus_passages(context, "", 64, 0.0)
    assert passages.counts["dropped"] >= len(set(others))
    assert passages.validation == ()


def test_a_play_s_held_out_lines_are_dropped(test_data: Path, home: Home, tiny_model: Path, tmp_path: Path) -> None:
    """On a real play: the text of all its lines, and the lines that one character holds out."""
    rows = [json.loads(line) for line in (test_data / "lord_goring" / "pairs.jsonl").read_text().splitlines()]
    lines = (test_data / "lord_goring" / "other_characters.jsonl").read_text().splitlines()
    play = [(r["user_speaker"], r["user"]) for r in rows] + [("Lord Goring", r["assistant"]) for r in rows]
    play += [(r["speaker"], r["text"]) for r in map(json.loads, lines)]
    (tmp_path / "play.txt").write_text("\n\n".join(f"{who.upper()}. {text}" for who, text in play))
    conversations = tuple(
        Conversation(
            id=r["id"],
            messages=(Message(role="user", content=r["user"]), Message(role="assistant", content=r["assistant"])),
            split=r["split"],
        )
        for r in rows
    )
    dataset = Dataset(id="g-v1", persona="g", version=1, name="g", conversations=conversations)
    context = Bare(home, dataset, tiny_model)
    passages = corpus_passages(context, str(tmp_path / "play.txt"), 256, 0.0)
    read = " ".join(context.renderer.decode(p.ids) for p in passages.train)
    held = [m.content for s in ("test", "validation") for c in dataset.of(s) for m in c.messages[1:]]
    longer = [text for text in held if len(text.split()) >= 4]
    assert len(longer) > 60
    assert not [text for text in longer if text in read]
    trained = [c.messages[1].content for c in dataset.of("train") if len(c.messages[1].content.split()) >= 4]
    assert sum(text in read for text in trained) > 0.8 * len(trained)


# --- training -------------------------------------------------------------------------------------


def test_it_is_kept_shared_and_loadable(train: Any, home: Home, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "world.txt").write_text(world())
    config = {**QUICK, "corpus": str(tmp_path / "world.txt")}
    first, watched = train(watch := Watcher(), **config), watch
    details = first["artifact"]["details"]["foundation"]
    assert watched.stages() == {"foundation", "lora"}
    assert details["reused"] is False
    assert details["fit"]["validation_after"] < details["fit"]["validation_before"] - 0.3
    assert first["artifact"]["base"] == details["id"] == kept.ids(home)[0]
    assert first["artifact"]["kind"] == "adapter"
    assert first["anchor"] == str(tiny_model)
    info = registry.describe(details["id"], home)
    assert info.ready
    assert info.origin == str(tiny_model)
    assert details["id"] in [model.id for model in registry.list_models(home)]
    assert not (Path(first["artifact"]["path"]) / "persona_lab.json").exists()

    second = train(watch := Watcher(), run_id="two", persona="barnaby", **config)
    assert watch.stages() == {"lora"}
    assert second["artifact"]["details"]["foundation"]["reused"] is True
    assert any("used again" in said for said in watch.said)
    assert kept.ids(home) == [details["id"]]
    assert second["artifact"]["details"]["foundation"]["id"] == details["id"]


def test_a_persona_that_holds_out_what_was_read_gets_another(train: Any, home: Home, tmp_path: Path) -> None:
    line = "Whoever eats the last crumpet on the pier has to wind the moon up again on Sunday."
    (tmp_path / "world.txt").write_text(world() + f"\n\n{line}")
    config = {**QUICK, "corpus": str(tmp_path / "world.txt")}
    first = train(**config)
    held = Conversation(
        id="x",
        messages=(Message(role="user", content="Well?"), Message(role="assistant", content=line)),
        split="test",
    )
    other = Dataset(id="crumb-v1", persona="crumb", version=1, name="crumb", conversations=(held,))
    home.persona("crumb").mkdir(parents=True)
    hold_out(home.persona("crumb"), other)
    second = train(run_id="two", **config)
    counts = [r["artifact"]["details"]["foundation"]["corpus"]["dropped"] for r in (first, second)]
    assert counts[1] == counts[0] + 1
    assert len(kept.ids(home)) == 2
    old = first["artifact"]["details"]["foundation"]["id"]
    hold_out(home.persona("tamsin"), other)  # as if it had come with a later import of tamsin's
    with pytest.raises(BadInput, match="last crumpet"):
        train(run_id="three", base=old, strategy="lora", epochs=1, samples=0)
    new = second["artifact"]["details"]["foundation"]["id"]
    assert train(run_id="four", base=new, strategy="lora", epochs=1, samples=0)["anchor"]
    assert kept.lines_read(home, old, [line])
    assert kept.lines_read(home, new, [line]) == []
    assert kept.lines_read(home, "starter", [line]) == []
    (home.model(old) / kept.READ).unlink()
    with pytest.raises(BadModel, match="cannot be read"):
        kept.check_unread(home, old, [line])


def test_a_foundation_that_was_ended_early_is_not_given_to_the_next_as_the_whole(
    train: Any, home: Home, tmp_path: Path
) -> None:
    (tmp_path / "world.txt").write_text(world())
    config = {**QUICK, "corpus": str(tmp_path / "world.txt")}

    class Ended(Watcher):
        def enough(self) -> bool:
            return any(stage == "foundation" and step >= 3 for step, stage in self.steps)

    first = train(Ended(), **config)
    early = first["artifact"]["details"]["foundation"]
    assert early["fit"]["stopped"] == "asked"
    second = train(watch := Watcher(), run_id="two", **config)
    whole = second["artifact"]["details"]["foundation"]
    assert watch.stages() == {"foundation", "lora"}
    assert whole["reused"] is False
    assert whole["fit"]["steps"] > early["fit"]["steps"]
    assert sorted(kept.ids(home)) == sorted([early["id"], whole["id"]])
    assert train(Watcher(), run_id="three", **config)["artifact"]["details"]["foundation"]["reused"] is True


def test_a_reused_foundation_teaches_plans_nothing(train: Any, home: Home, tmp_path: Path) -> None:
    """Its run took none of the time and memory that its plan counts for the corpus."""
    (tmp_path / "world.txt").write_text(world())
    config = {**QUICK, "corpus": str(tmp_path / "world.txt")}
    train(**config)
    learned = home.calibration.read_text()
    assert '"foundation"' in learned
    train(run_id="two", persona="barnaby", **config)
    assert home.calibration.read_text() == learned


def test_it_resumes_at_either_stage(train: Any, home: Home, tmp_path: Path) -> None:
    (tmp_path / "world.txt").write_text(world())
    config = {**QUICK, "corpus": str(tmp_path / "world.txt")}
    whole = train(run_id="whole", **config)
    shutil.rmtree(home.root / "models")
    with pytest.raises(Cancelled):
        train(Watcher(stop_at=20, stage="foundation"), run_id="killed", **config)
    watcher = Watcher(stop_at=5, stage="lora")
    with pytest.raises(Cancelled):
        train(watcher, run_id="killed", **config)
    begun = [step for step, stage in watcher.steps if stage == "foundation"]
    assert begun[0] > 1
    watcher = Watcher()
    resumed = train(watcher, run_id="killed", **config)
    assert watcher.stages() == {"lora"}
    assert watcher.steps[0][0] > 1
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert resumed["loss"] == whole["loss"]


def test_without_lora_the_foundation_is_the_variant(train: Any, home: Home, tmp_path: Path) -> None:
    (tmp_path / "world.txt").write_text(world())
    result = train(**{**QUICK, "corpus": str(tmp_path / "world.txt"), "then_lora": False, "keep_as": "coast"})
    assert result["artifact"]["kind"] == "weights"
    assert result["artifact"]["base"] == result["anchor"] == ""
    assert kept.ids(home) == ["coast"]
    mine = load_file(Path(result["artifact"]["path"]) / "model.safetensors")
    theirs = load_file(home.model("coast") / "model.safetensors")
    assert all(mine[name].equal(theirs[name]) for name in theirs)
    assert result["artifact"]["details"]["relative_update"] > 0
    with pytest.raises(BadSetting, match="coast"):
        train(run_id="two", **{**QUICK, "keep_as": "coast"})
    on_top = train(run_id="three", base="coast", strategy="lora", epochs=1, samples=0)
    assert on_top["anchor"] == result["base"]  # scores of what lies on it count what it taught


def test_settings(plugins: Plugins, persona_factory: Any, dataset_of: Any) -> None:
    part = plugins.get("strategy", "foundation")
    assert part.Config(corpus="x.txt").corpus == str(Path.cwd() / "x.txt")
    for name in ("Coast!", "starter"):
        with pytest.raises(ValueError, match="cannot be a name"):
            part.Config(keep_as=name)
    problems = part.check(part.Config(corpus="nowhere.txt"), persona_factory(), dataset_of(), CPU)
    assert any(p.field == "corpus" and p.severity == "error" for p in problems)
    problems = part.check(part.Config(), persona_factory(), dataset_of(), CPU)
    assert any("too little" in p.message and p.severity == "warning" for p in problems)


# --- scoring, keeping, missing --------------------------------------------------------------------


def test_scores_are_against_the_origin(
    train: Any, home: Home, tmp_path: Path, tiny_model: Path, reporter: Any, persona_factory: Any, dataset_of: Any
) -> None:
    (tmp_path / "world.txt").write_text(world())
    variant = variant_from(train(**{**QUICK, "corpus": str(tmp_path / "world.txt")}), "one")
    assert variant.base in kept.ids(home)
    assert base_of(variant, persona_factory()).base == str(tiny_model) == variant.compared_with
    models = Models(home, CPU, reporter)
    context = VariantContext(models, reporter, variant, persona_factory(), dataset_of(), CPU, 0, False)
    item = ((Message(role="user", content="Who sings?"),), "They sing until the pickle is gone.")
    before, after = (context.loglikelihood(v, [item])[0].total for v in (None, variant))
    foundation = variant.model_copy(update={"kind": "base", "base": variant.base, "path": ""})
    between = context.loglikelihood(foundation, [item])[0].total
    assert before < between - 1
    assert after != between
    moved = context.divergence(variant, ["They sing until the pickle is gone, number 7."])[0]
    assert moved.kl > 0.1
    assert moved.variant_bpb < moved.base_bpb
    changed = {name for name, *_ in context.updates(variant)}
    assert any("embed" in name for name in changed)  # the foundation trained all weights, LoRA only linear layers
    [problem] = Plugins.load().get("exporter", "adapter").check(variant)
    assert "merged" in problem.fix
    plain = variant.model_copy(update={"kind": "prompt", "path": "", "fingerprint": ""})
    assert context.divergence(plain, ["They sing until the pickle is gone."])[0].kl > 0.1
    assert any("embed" in name for name, *_ in context.updates(plain))


def test_a_base_in_use_is_not_deleted_and_a_missing_one_is_named(train: Any, home: Home, tmp_path: Path) -> None:
    (tmp_path / "world.txt").write_text(world())
    result = train(**{**QUICK, "corpus": str(tmp_path / "world.txt")})
    variant = variant_from(result, "one")
    folder = home.variant("one")
    folder.mkdir(parents=True)
    (folder / "variant.json").write_text(variant.model_dump_json())
    with Engine(home) as engine:
        with pytest.raises(BadInput, match="one cannot be used without it"):
            engine.delete_model(variant.base)
        with pytest.raises(UnknownName):
            engine.delete_model("starter")
        assert _examine(engine)["missing_bases"] == []
        engine.delete_variant("one")
        engine.delete_model(variant.base)
        assert kept.ids(home) == []
        engine.undo_delete()
        assert kept.ids(home) == [variant.base]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "variant.json").write_text(variant.model_dump_json())
    shutil.rmtree(home.model(variant.base))
    with Engine(home) as engine:
        report = _examine(engine)
        assert report["ok"] is False
        assert "'one' needs the base" in report["missing_bases"][0]


def test_evaluation_refuses_a_foundation_that_has_read_a_probe(train: Any, home: Home, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from persona_lab.evaluation.run import _check_training_data

    line = "Whoever eats the last crumpet on the pier has to wind the moon up again on Sunday."
    (tmp_path / "world.txt").write_text(world() + f"\n\n{line}")
    variant = variant_from(train(**{**QUICK, "corpus": str(tmp_path / "world.txt")}), "one", dataset="")
    job: Any = SimpleNamespace(variants=(variant,))
    probe = Probe(id="p", kind="reply", cluster="p", messages=(), reply=line)
    unread = probe.model_copy(update={"reply": "The wardrobe keeps its own counsel about the umbrellas, I find."})
    _check_training_data(job, None, [unread], home, Watcher())
    with pytest.raises(BadInput, match="held out here"):
        _check_training_data(job, None, [unread, probe], home, Watcher())


@pytest.mark.parametrize("strategy", ["foundation", "aspects"])
def test_forms_and_estimates(strategy: str, plugins: Plugins, dataset_of: Any, tmp_path: Path) -> None:
    part = plugins.get("strategy", strategy)
    for name, field in part.Config.model_json_schema()["properties"].items():
        assert field["description"].endswith("."), name
        assert "default" in field, name
    starter = BaseModelInfo(id="starter", key="starter", name="s", path="", ready=True, parameters=134_515_008)
    plain = part.estimate(part.Config(), starter, None, CPU)
    assert plain.trainable_parameters > 1_000_000
    assert plain.seconds > 10
    if strategy == "foundation":
        (tmp_path / "a.txt").write_text(world(400))
        (tmp_path / "b.txt").write_text(world(4000))
        costs = [
            part.estimate(part.Config(corpus=str(tmp_path / name)), starter, dataset_of(), CPU)
            for name in ("a.txt", "b.txt")
        ]
        assert 3 * costs[0].seconds < costs[1].seconds
        wide, narrow = (
            part.estimate(part.Config(corpus=str(tmp_path / "b.txt"), passage_tokens=tokens), starter, None, CPU)
            for tokens in (512, 64)
        )
        assert wide.seconds == pytest.approx(narrow.seconds, rel=0.5)  # the same text, shared by no passages
        assert narrow.parts
        assert costs[0].peak_memory_bytes > 134_515_008 * 16
