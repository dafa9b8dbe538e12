"""What every strategy is held to, on a tiny model: explained settings, light estimates, whole results, artifacts that
speak, resumption to the same weights, and the same loss for the same seed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from persona_lab.datasets.store import save_dataset
from persona_lab.errors import Cancelled
from persona_lab.events import Validation
from persona_lab.home import Home
from persona_lab.plugins import Plugins
from persona_lab.settings import validate_settings
from persona_lab.testing.made_up import made_up_conversation, made_up_persona, make_tiny_model
from persona_lab.types import (
    Artifact,
    BaseModelInfo,
    Conversation,
    Dataset,
    Job,
    Kind,
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
    bf16=True,
)
STARTER = BaseModelInfo(
    id="starter",
    key="starter",
    name="SmolLM2-135M-Instruct",
    path="",
    ready=True,
    parameters=134_515_008,
    config={
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
)
HEAVY = ("torch", "transformers", "peft", "bitsandbytes")
CONVERSATIONS, NEW = 28, 12


class Watcher:
    """A reporter that keeps everything.

    Args:
        stop_at: raise Cancelled at this step (of this `stage`, if one is named), as the user's stop does.
    """

    def __init__(self, stop_at: int = 0, stage: str = "") -> None:
        self.stop_at, self.stage = stop_at, stage
        self.phases: list[str] = []
        self.steps: list[tuple[int, str]] = []
        self.said: list[str] = []
        self.events: list[Any] = []

    def phase(self, title: str, total: int | None = None) -> None:
        """Begin a part of the work."""
        self.phases.append(title)

    def step(self, step: int, total: int, **values: Any) -> None:
        """Report progress.

        Raises:
            Cancelled: it was asked to stop here.
        """
        stage = str(values.get("stage", ""))
        self.steps.append((step, stage))
        if self.stop_at and step == self.stop_at and stage and self.stage in ("", stage):
            raise Cancelled("Stopped on request.")

    def log(self, message: str, level: str = "info") -> None:
        """Say something."""
        self.said.append(message)

    def emit(self, event: Any) -> None:
        """Keep an event."""
        self.events.append(event)


class Workshop:
    """A data home with a tiny random base model, a persona and conversations, where strategies run as in a worker.

    Args:
        folder: an empty folder, such as pytest's `tmp_path`.
        plugins: None: every installed plugin; a folder of plugin files can be loaded with `Plugins.load(folder)`.
        base: folder of a base model; None: a tiny one is made.
    """

    def __init__(self, folder: Path, plugins: Plugins | None = None, base: Path | None = None) -> None:
        self.home = Home.resolve(folder / "home")
        self.plugins = plugins or Plugins.load()
        self.base = base or make_tiny_model(folder / "tiny")
        self.persona = made_up_persona()
        self._finished: dict[str, dict[str, Any]] = {}

    def dataset(self, validation: int = 6, new: bool = False) -> Path:
        """A dataset's file: 28 conversations, the first `validation` of them for that; with `new`, 12 more to learn."""
        rows: list[Conversation] = [
            made_up_conversation(i, "validation" if i < validation else "train")
            for i in range(CONVERSATIONS + (NEW if new else 0))
        ]
        # every second one is of another facet, for strategies that look at tags
        rows = [row.model_copy(update={"tags": ("mood",)}) if i % 2 else row for i, row in enumerate(rows)]
        path = self.home.root / f"d{validation}{'new' if new else ''}.jsonl"
        dataset = Dataset(id="d", persona=self.persona.id, version=2 if new else 1, name="made up", conversations=rows)
        save_dataset(path, dataset)
        return path

    def train(
        self,
        strategy: str,
        watcher: Watcher | None = None,
        run_id: str = "",
        validation: int = 6,
        seed: int = 4,
        **settings: Any,
    ) -> dict[str, Any]:
        """Run a strategy; gives the run's result. A strategy that goes on gets a small `lora`, or what `variant` names,
        and 12 conversations more than that has seen."""
        from persona_lab.training.run import run

        goes_on = self.plugins.get("strategy", strategy).goes_on
        parents = (self.variant(settings.get("variant") or self._parent()),) if goes_on else ()
        job = Job(
            id=run_id or f"run-{strategy}",
            kind="train",
            name="test",
            home=str(self.home.root),
            created=now(),
            persona=self.persona,
            dataset=str(self.dataset(validation, new=goes_on)),
            parent_datasets=(str(self.dataset(validation)),) if goes_on else (),
            variants=parents,
            base=str(self.base),
            strategy=strategy,
            config=settings | ({"variant": parents[0].id} if parents else {}),
            seed=seed,
        )
        result = run(job, watcher or Watcher(), self.plugins)
        self._finished[job.id] = result
        return result

    def _parent(self) -> str:
        if "parent" not in self._finished:
            self.train("lora", run_id="parent", epochs=1, samples=0)
        return "parent"

    def whole(self, strategy: str, settings: Mapping[str, Any], case: str = "") -> dict[str, Any]:
        """The result of an uninterrupted run, which is done once for each `case`."""
        run_id = f"whole-{case or strategy}"
        return self._finished.get(run_id) or self.train(strategy, run_id=run_id, **settings)

    def variant(self, run_id: str) -> Variant:
        """What a finished run made."""
        result = self._finished[run_id]
        artifact = Artifact.model_validate(result["artifact"])
        return Variant(
            id=run_id,
            name=run_id,
            persona=self.persona.id,
            base=artifact.base or str(self.base),
            strategy=result["strategy"],
            run=run_id,
            kind=artifact.kind,
            path="" if artifact.traits else artifact.path,
            traits=artifact.traits,
            steering=str(Path(artifact.path) / "steering") if artifact.traits else "",
            system=result["system"],
            examples=artifact.examples,
            quantization=artifact.quantization,
            fingerprint=result["fingerprint"],
        )


# --- the checks -------------------------------------------------------------------------------------------


def check_settings(shop: Workshop, name: str, kind: Kind = "strategy") -> None:
    """Every setting has a default and a plain sentence; numbers and texts have bounds."""
    part = shop.plugins.get(kind, name)
    assert part.title, "it needs a title"
    assert part.summary.endswith("."), "its summary must be a sentence"
    for name, field in part.Config.model_json_schema().get("properties", {}).items():
        assert field.get("description", "").endswith("."), f"{name} needs a sentence that describes it"
        assert "default" in field, f"{name} needs a default"
        if field.get("type") in ("integer", "number"):
            assert {"minimum", "exclusiveMinimum"} & field.keys(), f"{name} needs bounds"
        if field.get("type") == "string":
            assert {"enum", "maxLength", "pattern"} & field.keys(), (
                f"{name} needs choices, a pattern or a longest length"
            )


def check_estimate(shop: Workshop, strategy: str, settings: Mapping[str, Any]) -> None:
    """The estimate for a small model is within reason, and nothing is trained by those that train nothing."""
    part = shop.plugins.get("strategy", strategy)
    estimate = part.estimate(validate_settings(part.Config, settings, strategy), STARTER, None, CPU)
    assert 1e7 < estimate.peak_memory_bytes < 1e11
    assert 0 < estimate.seconds < 1e5
    assert 0 <= estimate.trainable_parameters <= STARTER.parameters
    assert 0 <= estimate.disk_bytes < 1e11
    assert estimate.uncertainty >= 1


def check_lightness(name: str, plugins_folder: Path | None = None, kind: Kind = "strategy") -> None:
    """Loading, checking and estimating imports no torch, in a fresh process."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from persona_lab.plugins import Plugins\n"
        "from persona_lab.testing import CPU, STARTER\n"
        f"folder = {str(plugins_folder) if plugins_folder else None!r}\n"
        f"part = Plugins.load(folder and Path(folder)).get({kind!r}, {name!r})\n"
        f"if {kind == 'strategy'}:\n"
        "    part.check(part.Config(), None, None, CPU)\n"
        "    part.estimate(part.Config(), STARTER, None, CPU)\n"
        f"print(*set({HEAVY!r}) & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"it imports {done.stdout.split()}"


def check_result(shop: Workshop, strategy: str, settings: Mapping[str, Any], case: str = "") -> None:
    """A run leaves a whole account and an artifact without pickles; if it trains, it learns."""
    result = shop.whole(strategy, settings, case)
    json.dumps(result, allow_nan=False)
    artifact = Artifact.model_validate(result["artifact"])
    assert result["changed"].endswith(".")
    assert set(result["seconds"]) == {"total", "load", "train", "save"}
    assert 0 <= result["trainable_parameters"] <= result["total_parameters"]
    assert len(result["fingerprint"]) == 12
    assert result["system"]
    assert result["peak_memory_bytes"] > 1e7
    if artifact.path:
        files = {path.suffix for path in Path(artifact.path).rglob("*")}
        assert not files & {".bin", ".pt", ".pth", ".pkl"}, "weights are safetensors"
        assert result["artifact_bytes"] > 1000
        assert str(shop.home.root) not in _texts(Path(artifact.path)), "it names a path of this machine"
    if not trains(artifact):
        return
    assert result["examples"] > 0
    assert result["supervised_tokens"] > 100
    assert result["trainable_parameters"] > 0
    loss = result["loss"]
    assert loss["validation_after"] < loss["validation_before"], "it has learned nothing"
    assert not (shop.home.run(f"whole-{case or strategy}") / "checkpoints").exists(), "checkpoints of a finished run"


def check_loads_and_speaks(shop: Workshop, strategy: str, settings: Mapping[str, Any], case: str = "") -> None:
    """The artifact loads as a variant and answers; what it says is its weights' doing, not the base's."""
    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.inference.decoding import generate
    from persona_lab.inference.loading import VariantHost
    from persona_lab.inference.prompting import messages_for
    from persona_lab.inference.scoring import loglikelihood
    from persona_lab.models.machine import worker_machine
    from persona_lab.models.registry import describe

    shop.whole(strategy, settings, case)
    variant = shop.variant(f"whole-{case or strategy}")
    host = VariantHost(describe(variant.base, shop.home), worker_machine(shop.home.root), shop.home)
    renderer = ChatRenderer(shop.base)
    asked = [Message(role="user", content="How many ropes are there in the harbour, number 3?")]
    reply = "There are 2 ropes, counting the one that sulks on a Tuesday."
    scores = []
    for who in (variant, variant.model_copy(update={"kind": "base", "path": "", "examples": (), "traits": {}})):
        prompt = messages_for(who, asked)
        with host.model_for(who) as model:
            said = generate(model, renderer, [prompt], Sampling(max_new_tokens=4))[0]
            scores.append(loglikelihood(model, renderer, [(prompt, reply)])[0].total)
        assert said.tokens
    assert all(math.isfinite(score) for score in scores)
    assert scores[0] != scores[1], "it scores exactly as the base does"


def check_repeats(shop: Workshop, strategy: str, settings: Mapping[str, Any], case: str = "") -> None:
    """The same seed gives the same loss, to six digits."""
    first = shop.whole(strategy, settings, case)
    again = shop.train(strategy, run_id=f"again-{case or strategy}", **settings)
    for name, value in first["loss"].items():
        assert value is None or math.isclose(value, again["loss"][name], rel_tol=1e-6), f"{name}: {value}"


def check_resumes(shop: Workshop, strategy: str, settings: Mapping[str, Any], case: str = "") -> None:
    """A run that is stopped after its first checkpoint goes on to the same weights as one that was not."""
    whole = shop.whole(strategy, settings, case)
    if not trains(Artifact.model_validate(whole["artifact"])):
        return
    run_id, stopped = f"stopped-{case or strategy}", Watcher(stop_at=5)
    try:
        shop.train(strategy, stopped, run_id=run_id, **settings)
    except Cancelled:
        pass
    else:
        raise AssertionError("it takes fewer than 5 steps, or does not let Cancelled through")
    watcher = Watcher()
    resumed = shop.train(strategy, watcher, run_id=run_id, **settings)
    stage = next(stage for step, stage in watcher.steps if stage)
    assert watcher.steps[0][0] > 1 or stage != stopped.steps[-1][1], "it began again instead of going on"
    assert resumed["fingerprint"] == whole["fingerprint"], "other weights than the uninterrupted run's"
    assert resumed["loss"] == whole["loss"]
    assert any(isinstance(event, Validation) for event in watcher.events)


def trains(artifact: Artifact) -> bool:
    """Whether it holds weights."""
    return artifact.kind != "prompt"


CHECKS: tuple[Callable[..., None], ...] = (check_result, check_loads_and_speaks, check_repeats, check_resumes)
"""Those that run the strategy: called with (workshop, strategy, settings, case)."""


def check_strategy(shop: Workshop, strategy: str, settings: Mapping[str, Any] | None = None) -> None:
    """All checks. Choose settings that take at least 6 steps on 22 conversations and learn something within them."""
    check_settings(shop, strategy)
    check_estimate(shop, strategy, settings or {})
    for check in CHECKS:
        check(shop, strategy, settings or {})


def _texts(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".md", ".txt", ".jinja")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)
