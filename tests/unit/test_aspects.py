"""Strategy `aspects`: tags from files, LoRA adapters on top of one another, and their sum at any weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from persona_lab_builtin.strategies.lora import LoRAConfig
from safetensors.torch import load_file

from persona_lab.datasets.aspects import parse_weights, rows_by_aspect
from persona_lab.datasets.reading import read_dataset
from persona_lab.datasets.store import load_dataset, save_dataset
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, BadModel, BadSetting, Cancelled, UnknownName
from persona_lab.home import Home
from persona_lab.inference.blending import in_use, saved_weights, with_blend, write_blend
from persona_lab.inference.chat_worker import ChatWorker
from persona_lab.inference.loading import VariantHost, load_variant
from persona_lab.models import registry
from persona_lab.plugins import Plugins
from persona_lab.training.run import run
from persona_lab.types import (
    BaseModelInfo,
    ChatRequest,
    Conversation,
    Dataset,
    Job,
    Machine,
    Message,
    Sampling,
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
QUICK: dict[str, Any] = {"epochs": 3, "learning_rate": 5e-3, "samples": 0, "rank": 4, "alpha": 8}
TAGS = (("voice",), ("knowledge",), ("mood", "voice"), ())


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


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.load()


@pytest.fixture
def tagged(conversations_factory: Callable[..., Any]) -> Dataset:
    rows = [
        c.model_copy(update={"split": "validation" if i < 8 else "train", "tags": TAGS[i % 4]})
        for i, c in enumerate(conversations_factory(40))
    ]
    return Dataset(id="tamsin-v1", persona="tamsin", version=1, name="made up", conversations=tuple(rows))


@pytest.fixture
def train(home: Home, plugins: Plugins, tiny_model_of: Any, persona_factory: Any, tagged: Dataset) -> Any:
    """Runs the strategy on a tiny model, as the worker does; gives (result, variant)."""

    def go(watcher: Watcher | None = None, run_id: str = "asp", model: str = "llama", **config: Any) -> Any:
        save_dataset(home.root / "d.jsonl", tagged)
        job = Job(
            id=run_id,
            kind="train",
            name="test",
            home=str(home.root),
            created=now(),
            persona=persona_factory(),
            dataset=str(home.root / "d.jsonl"),
            base=str(tiny_model_of(model)),
            strategy="aspects",
            config=QUICK | config,
            seed=4,
        )
        result = run(job, watcher or Watcher(), plugins)
        variant = Variant(
            id=run_id,
            name="nan-1",
            persona="tamsin",
            base=job.base,
            strategy="aspects",
            kind="adapter",
            path=result["artifact"]["path"],
            fingerprint=result["fingerprint"],
            created=now(),
        )
        return result, variant

    return go


def update_of(folder: Path) -> dict[str, torch.Tensor]:
    """scaling * B @ A of every module of a plain LoRA folder, in fp64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {k: v.double() for k, v in load_file(folder / "adapter_model.safetensors").items()}
    scale = config["lora_alpha"] / config["r"]
    return {
        name.replace(".lora_A.weight", ""): scale * tensors[name.replace("lora_A", "lora_B")] @ a
        for name, a in tensors.items()
        if "lora_A" in name
    }


def summed(folder: Path, weights: dict[str, float]) -> dict[str, torch.Tensor]:
    parts = {name: update_of(folder / "aspects" / name) for name in weights}
    return {m: sum(w * parts[n][m] for n, w in weights.items()) for m in next(iter(parts.values()))}  # type: ignore[misc]


# --- rows and tags --------------------------------------------------------------------------------


def test_readers_take_tags(tmp_path: Path, plugins: Plugins, persona_factory: Any) -> None:
    readers = plugins.all("reader")
    turns = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes, on the whole."}]
    files = {
        "a.jsonl": [{"messages": turns, "tags": ["Mood", "voice", "mood", 7]}, {"messages": turns[:1] + turns[1:]}],
        "b.jsonl": [
            {"conversations": [{"from": "human", "value": "Hm"}, {"from": "gpt", "value": "A"}], "aspect": "mood"}
        ],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.csv").write_text('user,assistant,tags\nWhy?,"Because I say so.","mood, knowledge"\n')
    found = {
        path.name: [c.tags for c in read_dataset(path, readers, persona_factory()).result.conversations]
        for path in sorted(tmp_path.iterdir())
    }
    assert found == {
        "a.jsonl": [("mood", "voice"), ()],
        "b.jsonl": [("mood",)],
        "c.csv": [("mood", "knowledge")],
    }


def test_tags_are_kept_and_old_files_still_load(tmp_path: Path, tagged: Dataset) -> None:
    save_dataset(tmp_path / "d.jsonl", tagged)
    assert load_dataset(tmp_path / "d.jsonl") == tagged
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tags", None)
    (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert {c.tags for c in load_dataset(tmp_path / "old.jsonl").conversations} == {()}


@pytest.mark.parametrize(
    ("untagged", "expected"),
    [
        ("voice", {"voice": 24, "knowledge": 8, "mood": 8}),
        ("all", {"voice": 24, "knowledge": 16, "mood": 16}),
        ("none", {"voice": 16, "knowledge": 8, "mood": 8}),
    ],
)
def test_rows_go_where_their_tags_say(tagged: Dataset, persona_factory: Any, untagged: Any, expected: Any) -> None:
    found = rows_by_aspect(tagged, persona_factory(), untagged)
    assert not found.by_rule
    assert {name: len(part.of("train")) for name, part in found.parts.items()} == expected
    assert next(iter(found.parts)) == "voice"


def test_tags_in_any_script_are_aspects(tagged: Dataset, persona_factory: Any) -> None:
    script = {"mood": "Настроение", "knowledge": "знание 2"}
    rows = [c.model_copy(update={"tags": tuple(script.get(t, t) for t in c.tags)}) for c in tagged.conversations]
    found = rows_by_aspect(tagged.model_copy(update={"conversations": tuple(rows)}), persona_factory())
    assert set(found.parts) == {"voice", "настроение", "знание_2"}
    assert parse_weights("настроение=0.5") == {"настроение": 0.5}


def test_an_estimate_follows_the_stages(tagged: Dataset, plugins: Plugins) -> None:
    """Each aspect validates and writes samples by itself."""
    part = plugins.get("strategy", "aspects")
    starter = BaseModelInfo(id="starter", key="starter", name="s", path="", ready=True, parameters=134_515_008)
    lora = plugins.get("strategy", "lora").estimate(LoRAConfig(rank=8), starter, tagged, CPU)
    three = part.estimate(part.Config(), starter, tagged, CPU)
    assert three.trainable_parameters == 3 * lora.trainable_parameters
    assert three.parts["validate"] > 2 * lora.parts["validate"]
    assert three.parts["train"] > lora.parts["train"]  # 40 rows in three aspects, where 32 rows are read once
    every = part.estimate(part.Config(untagged="all"), starter, tagged, CPU)
    assert every.parts["train"] > three.parts["train"]


def test_without_tags_rules_are_used_and_said_to_be(persona_factory: Any) -> None:
    replies = {
        "plain": "Perhaps, in its own way.",
        "knowledge": "A cartographer folds along the creases; that is all.",
        "mood": "Oh, how lovely of you!",
    }
    rows = tuple(
        Conversation(
            id=f"{kind}{i}",
            messages=(Message(role="user", content=f"Well, {i}?"), Message(role="assistant", content=text)),
            split="train",
        )
        for kind, text in replies.items()
        for i in range(5)
    )
    dataset = Dataset(id="d", persona="tamsin", version=1, name="d", conversations=rows)
    found = rows_by_aspect(dataset, persona_factory())
    assert found.by_rule
    assert {name: len(part.of("train")) for name, part in found.parts.items()} == {
        "voice": 15,
        "knowledge": 5,
        "mood": 5,
    }
    assert {c.id[:-1] for c in found.parts["knowledge"].conversations} == {"knowledge"}
    plain = dataset.model_copy(update={"conversations": rows[:5]})
    with pytest.raises(BadInput, match="two facets") as caught:
        rows_by_aspect(plain, persona_factory())
    assert '"tags": ["mood"]' in caught.value.fix


def test_a_small_aspect_is_left_out_and_named(tagged: Dataset, persona_factory: Any) -> None:
    rows = list(tagged.conversations)
    rows[-1] = rows[-1].model_copy(update={"tags": ("grudges",)})
    found = rows_by_aspect(tagged.model_copy(update={"conversations": tuple(rows)}), persona_factory())
    assert "grudges" not in found.parts
    assert "grudges (1)" in found.notes[0]


def test_weights_are_read() -> None:
    assert parse_weights(" voice=1, mood=0.5,") == {"voice": 1.0, "mood": 0.5}
    for text in ("voice", "voice=loud", "voice=nan", "voice=9", "=1"):
        with pytest.raises(BadSetting, match="not an aspect"):
            parse_weights(text)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_the_saved_adapter_is_the_sum_of_the_aspects(train: Any, model: str) -> None:
    result, variant = train(model=model, weights="mood=0.5")
    folder = Path(variant.path)
    assert saved_weights(folder) == {"voice": 1.0, "knowledge": 1.0, "mood": 0.5}
    for module, delta in summed(folder, saved_weights(folder)).items():
        assert torch.allclose(update_of(folder)[module], delta, atol=1e-6, rtol=1e-5), module
    assert all(any(bool(d.any()) for d in update_of(folder / "aspects" / n).values()) for n in saved_weights(folder))
    assert result["loss"]["validation_after"] < result["loss"]["validation_before"]
    details = result["artifact"]["details"]["aspects"]
    assert {name: about["rows"] for name, about in details.items()} == {"voice": 24, "knowledge": 8, "mood": 8}
    # each begins where the one before it ended: on the rows of all it is no worse
    assert details["knowledge"]["fit"]["validation_after"] <= details["knowledge"]["fit"]["validation_before"]
    sizes = [sum(t.numel() for t in load_file(p).values()) for p in folder.glob("aspects/*/*.safetensors")]
    assert result["trainable_parameters"] == sum(sizes)


def test_the_sum_is_what_was_validated(train: Any, home: Home, reporter: Any) -> None:
    """All aspects in full, loaded as one adapter, give the loss of all of them side by side, as they were trained."""
    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.training.context import Context

    result, variant = train()
    info = registry.describe(variant.base, home)
    context = Context(
        reporter=reporter,
        plugins=None,
        persona=None,  # type: ignore[arg-type]
        dataset=load_dataset(home.root / "d.jsonl"),
        base=info,
        machine=CPU,
        seed=0,
        run_dir=home.root,
        system="",
        renderer=ChatRenderer(Path(info.path)),
    )
    context.persona = type("P", (), {"id": "tamsin"})()  # type: ignore[assignment]
    bare = context.validation_loss(load_variant(variant, info, CPU))
    stacked = context.validation_loss(_stacked(variant, info))
    assert bare == pytest.approx(stacked, abs=1e-5)
    assert result["loss"]["validation_after"] < result["loss"]["validation_before"]


def _stacked(variant: Variant, info: Any) -> Any:
    """The aspects as peft itself would use them: separate adapters, all active."""
    from peft import PeftModel

    from persona_lab.inference.loading import load_model

    names = list(saved_weights(Path(variant.path)))
    model = PeftModel.from_pretrained(
        load_model(info, CPU), str(Path(variant.path) / "aspects" / names[0]), adapter_name=names[0]
    )
    for name in names[1:]:
        model.load_adapter(str(Path(variant.path) / "aspects" / name), adapter_name=name)
    model.base_model.set_adapter(names)
    return model.eval().requires_grad_(False)


def test_resume_skips_finished_aspects(train: Any) -> None:
    whole, _ = train(run_id="whole")
    with pytest.raises(Cancelled):
        train(Watcher(stop_at=4, stage="knowledge"), run_id="killed")
    watcher = Watcher()
    resumed, _ = train(watcher, run_id="killed")
    assert {stage for _, stage in watcher.steps} == {"knowledge", "mood"}
    assert watcher.steps[0][0] > 1
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert resumed["loss"] == whole["loss"]


def test_a_weight_for_an_aspect_that_is_not_there_is_refused(train: Any) -> None:
    with pytest.raises(BadSetting, match="'temper'"):
        train(weights="temper=1")


# --- blending and merging -------------------------------------------------------------------------


def test_a_blend_is_the_weighted_sum(train: Any, home: Home) -> None:
    _, variant = train()
    blended = in_use(with_blend(variant, {"voice": 0.25, "mood": -1.5}), home)
    weights = {"voice": 0.25, "knowledge": 1.0, "mood": -1.5}
    assert blended.blend == weights
    expected = summed(Path(variant.path), weights)
    for module, delta in update_of(Path(blended.path)).items():
        assert torch.allclose(delta, expected[module], atol=1e-5)
    assert in_use(with_blend(variant, weights), home).path == blended.path
    assert in_use(variant, home) == variant
    assert len({variant, variant.model_copy(), with_blend(variant, {"mood": 0.5})}) == 2
    with pytest.raises(UnknownName, match="temper"):
        with_blend(variant, {"temper": 1})
    with pytest.raises(BadInput, match="no aspects"):
        with_blend(variant.model_copy(update={"path": str(home.root)}), {"voice": 1})


def test_it_is_what_peft_concatenates(train: Any, home: Home) -> None:
    """Against peft's own `add_weighted_adapter(combination_type="cat")`: the same outputs, in fp32."""
    _, variant = train()
    weights = {"voice": 0.5, "knowledge": 1.0, "mood": 2.0}
    info = registry.describe(variant.base, home)
    model = _stacked(variant, info)
    model.add_weighted_adapter(list(weights), list(weights.values()), "theirs", combination_type="cat")
    model.set_adapter("theirs")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs = model(ids).logits
        ours = load_variant(in_use(with_blend(variant, weights), home), info, CPU)(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_old_blends_are_let_go(train: Any, home: Home) -> None:
    _, variant = train()
    for step in range(11):
        in_use(with_blend(variant, {"mood": step / 10}), home)
    assert len(list((home.root / "cache" / "blends").iterdir())) <= 8


def test_a_blend_that_was_just_asked_for_outlives_the_next_one(train: Any, home: Home) -> None:
    _, variant = train()
    asked = [with_blend(variant, {"mood": step / 10}) for step in range(9)]
    for age, one in enumerate(asked[:8]):
        folder = Path(in_use(one, home).path)
        os.utime(folder, (1_700_000_000 + age, 1_700_000_000 + age))
    first, new = in_use(asked[0], home), in_use(asked[8], home)  # two panes of one message
    assert (Path(first.path) / "adapter_config.json").is_file()
    assert (Path(new.path) / "adapter_config.json").is_file()
    assert len(list((home.root / "cache" / "blends").iterdir())) == 8


def test_a_lost_aspect_is_named(train: Any, home: Home) -> None:
    _, variant = train()
    (Path(variant.path) / "aspects" / "mood" / "adapter_model.safetensors").unlink()
    with pytest.raises(BadModel, match="'mood' is gone"):
        in_use(with_blend(variant, {"mood": 0.1}), home)


def test_cutting_the_rank_says_what_it_costs(train: Any, tmp_path: Path) -> None:
    _, variant = train()
    weights = saved_weights(Path(variant.path))
    exact = summed(Path(variant.path), weights)
    errors = {}
    for rank in (2, 6, 12, 99):
        errors[rank] = write_blend(Path(variant.path), weights, tmp_path / str(rank), rank)
        got = update_of(tmp_path / str(rank))
        lost = sum(float((got[m] - exact[m]).square().sum()) for m in exact)
        size = sum(float(exact[m].square().sum()) for m in exact)
        assert errors[rank] == pytest.approx((lost / size) ** 0.5, abs=1e-5)
    assert errors[2] > errors[6] > errors[12] == errors[99] == 0


def test_chat_blends_in_one_batch_and_stamps_the_blend(train: Any, home: Home) -> None:
    _, variant = train()
    other = with_blend(variant, {"voice": 0.0, "knowledge": 0.0, "mood": 0.0})
    bad = variant.model_copy(update={"blend": {"temper": 1.0}})
    base = variant.model_copy(update={"kind": "base", "path": "", "strategy": "base", "id": "b"})
    requests = [
        ChatRequest(
            pane=pane,
            variant=chosen,
            messages=(Message(role="user", content="Who feeds them?"),),
            sampling=Sampling(max_new_tokens=12, temperature=0),
        )
        for pane, chosen in (("saved", variant), ("none", other), ("base", base), ("bad", bad))
    ]
    chunks: list[Any] = []
    worker = ChatWorker(home)
    worker.machine = CPU
    worker.answer(requests, chunks.append, lambda: False)
    text = {pane: "".join(c.text for c in chunks if c.pane == pane) for pane in ("saved", "none", "base")}
    stamps = {c.pane: c.stamp.adapter for c in chunks if c.stamp}
    assert text["none"] == text["base"]  # nothing of any aspect is left
    assert text["saved"] != text["base"]
    assert stamps["none"].endswith("voice 0, knowledge 0, mood 0")
    assert stamps["none"].startswith("aspects nan-1 ")
    assert stamps["saved"].split()[2] == variant.fingerprint
    assert stamps["none"].split()[2] != variant.fingerprint
    assert [c.error for c in chunks if c.error] == [
        "There is no aspect called 'temper'. Known: knowledge, mood, voice."
    ]


def test_blends_have_weights_keys_of_their_own(train: Any, home: Home) -> None:
    _, variant = train()
    host = VariantHost(registry.describe(variant.base, home), CPU, home)
    chosen = [variant, *(in_use(with_blend(variant, {"mood": w}), home) for w in (0.5, 0.25))]
    assert len({host.weights_key(v) for v in chosen}) == 3
    assert host.mixable(chosen)


def test_a_merge_is_an_ordinary_variant(train: Any, home: Home) -> None:
    _, variant = train()
    folder = home.variant("asp")
    folder.mkdir(parents=True)
    Path(variant.path).rename(folder / "weights")
    variant = variant.model_copy(update={"path": str(folder / "weights")})
    (folder / "variant.json").write_text(variant.model_dump_json())
    with Engine(home) as engine:
        made = engine.merge_aspects("asp", {"mood": 0.5}, name="softer")
        small = engine.merge_aspects("asp", {"mood": 0.5}, rank=2)
        assert [v.id for v in engine.variants() if v.id.startswith("asp-blend")] == ["asp-blend-2", "asp-blend-1"]
        assert engine.variant("softer") == made
        assert engine.blended([made, variant], {"mood": 0.1})[1].blend["mood"] == 0.1
        with pytest.raises(BadInput, match="no aspects"):
            engine.blended([made], {"mood": 0.1})
        with pytest.raises(UnknownName):
            engine.merge_aspects("asp", {"temper": 1})
    assert made.merged == {
        "from": "asp",
        "blend": {"voice": 1.0, "knowledge": 1.0, "mood": 0.5},
        "rank": None,
        "error": 0,
    }
    assert 0 < small.merged["error"] < 1
    assert small.bytes < made.bytes
    expected = summed(folder / "weights", made.merged["blend"])
    for module, delta in update_of(Path(made.path)).items():
        assert torch.allclose(delta, expected[module], atol=1e-5)
    assert saved_weights(Path(made.path)) == {}
