"""Measures a few real training steps on this machine: the fit loop itself, on made-up tokens, in a process of its own.

One process a kind of step (adapter, all weights), so that each one's peak of memory is its own and running out of it
hurts nobody. What the numbers mean is worked out in `models.calibration`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from persona_lab.errors import WorkFailed
from persona_lab.home import Home
from persona_lab.models import registry
from persona_lab.models.calibration import KindTimes, StageTimes, rates_from, remember_rates
from persona_lab.models.machine import worker_machine
from persona_lab.processes import worker_environment
from persona_lab.types import BaseModelInfo, FitSettings, Job, Machine, Message, Rates, Rendered, Sampling

PREFIX, SHORT, LONG = 64, 32, 192
"""Tokens of the shared prefix, and behind it of the short and the long conversations."""
BATCH, STEPS, RANK = 4, 4, 16
SAMPLE_TOKENS = 24
FIRST_TOKEN, LAST_TOKEN = 100, 5000
RATE = 1e-6
MOST_SECONDS = 600.0
KINDS = ("adapter", "full")


def run(job: Job, reporter: Any) -> dict[str, Any]:
    """The calibration of one base on this machine, kept in the home; a run's result.

    Raises:
        WorkFailed: not even an adapter could be trained.
    """
    home = Home(Path(job.home))
    base = registry.ensure(job.base, home, reporter)
    rates = calibrate(base, home, reporter)
    return {"rates": rates.model_dump(mode="json"), "base": job.base}


def calibrate(base: BaseModelInfo, home: Home, reporter: Any) -> Rates:
    """Measure both kinds of step and keep what was found.

    Raises:
        WorkFailed: the first kind failed. Cancelled
    """
    machine = worker_machine(home.root)
    reporter.phase("Measuring a few steps on this machine", len(KINDS))
    found: dict[str, KindTimes] = {}
    for number, kind in enumerate(KINDS, start=1):
        try:
            found[kind] = _in_process(kind, base, machine, reporter)
        except WorkFailed as error:
            if kind == KINDS[0]:
                raise
            # a large model that cannot be trained in full here still has its adapter's numbers
            reporter.log(f"Steps that train all weights could not be measured: {error.message}", "warning")
        reporter.step(number, len(KINDS))
    rates = rates_from(base, machine, found["adapter"], found.get("full"))
    remember_rates(home, machine, rates, base)
    return rates


def _in_process(kind: str, base: BaseModelInfo, machine: Machine, reporter: Any) -> KindTimes:
    """One kind, measured in its own process.

    Raises:
        WorkFailed: it ended without a result. Cancelled
    """
    asked = json.dumps({"base": base.model_dump(mode="json"), "machine": machine.model_dump(mode="json")})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "persona_lab.training.calibrate", kind, str(out)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            text=True,
            env=worker_environment(),
        )
        try:
            assert process.stdin is not None
            process.stdin.write(asked)
            process.stdin.close()
            _wait(process, reporter)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0 or not out.exists():
            message = f"Measuring steps of kind {kind!r} ended with code {process.returncode}."
            raise WorkFailed(message, "Plans go on without it, with a wider error bar; the log says more.")
        return KindTimes.model_validate_json(out.read_bytes())


def _wait(process: subprocess.Popen[str], reporter: Any) -> None:
    ending = time.monotonic() + MOST_SECONDS
    check = getattr(reporter, "check_cancelled", None)
    while process.poll() is None and time.monotonic() < ending:
        if check is not None:
            check()
        time.sleep(0.1)


# --- in the process -------------------------------------------------------------------------------


def measure(kind: str, base: BaseModelInfo, machine: Machine) -> KindTimes:
    """Load the base and take real steps of one kind: a few on a short batch, then a few on a long one."""
    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.inference.loading import load_model
    from persona_lab.training import context  # noqa: F401  (what a run has imported before its clock starts)
    from persona_lab.training.lora import attach_lora
    from persona_lab.training.memory import peak_memory

    started = time.perf_counter()
    renderer = ChatRenderer(Path(base.path))
    model = load_model(base, machine)
    if kind == "adapter":
        model = attach_lora(model, rank=RANK, alpha=2 * RANK)
    else:
        model.requires_grad_(True)
    loaded, loaded_bytes = time.perf_counter() - started, peak_memory(machine.device)
    short = _stage(model, machine, renderer, SHORT, STEPS, validated=False)
    long = _stage(model, machine, renderer, LONG, STEPS, validated=True)
    return KindTimes(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        load_seconds=loaded,
        loaded_bytes=loaded_bytes,
        short=short,
        long=long,
    )


def _stage(model: Any, machine: Machine, renderer: Any, width: int, steps: int, validated: bool) -> StageTimes:
    """One fit of `steps` steps, and if `validated` two more behind a validation, a sample and a checkpoint."""
    import torch

    from persona_lab.inference.decoding import forget_packed, generate
    from persona_lab.training.fit import Fit, Material
    from persona_lab.training.memory import peak_memory

    torch.manual_seed(0)
    watch = _Watch(peak=lambda: peak_memory(machine.device))
    with tempfile.TemporaryDirectory() as folder:

        def sampled(step: int, model: Any) -> None:
            begun = time.perf_counter()
            prompt = [Message(role="user", content="Tell me about the place you come from.")]
            sampling = Sampling(max_new_tokens=SAMPLE_TOKENS, temperature=1.0)
            written = [reply.tokens for reply in generate(model, renderer, [prompt, prompt], sampling)]
            forget_packed(model)
            watch.token_seconds = (time.perf_counter() - begun) / max(*written, 1)
            watch.mark("sampled")

        def saved(step: int, path: Path) -> None:
            watch.written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            watch.mark("saved")

        settings = FitSettings(
            learning_rate=RATE,
            epochs=1.5 if validated else 1.0,
            batch_size=BATCH,
            evaluations_per_epoch=1,
            patience=1000,
        )
        material = Material(
            train=_examples(BATCH * steps, width, renderer.vocabulary_size),
            validation=_examples(2 * BATCH, width, renderer.vocabulary_size) if validated else [],
            pad_id=renderer.pad_id,
            device=machine.device,
            bf16=machine.bf16,
            seed=0,
            folder=Path(folder),
            report=lambda step, total, **values: watch.mark("step"),
            say=lambda message, level="info": print(message, file=sys.stderr),
            validated=lambda step, loss, best: watch.mark("validated"),
            sampled=sampled,
            saved=saved,
        )
        model.train()
        watch.mark("begun")
        Fit(model, settings, f"width-{width}", material).run()
    return watch.times(width)


class _Watch:
    """When things happened, and the memory's peak at each step."""

    def __init__(self, peak: Any) -> None:
        self.peak = peak
        self.marks: list[tuple[str, float, int]] = []
        self.token_seconds = 0.0
        self.written = 0

    def mark(self, name: str) -> None:
        """Something has just ended."""
        self.marks.append((name, time.perf_counter(), self.peak()))

    def times(self, width: int) -> StageTimes:
        """What follows from the marks; the first step warms up and does not count."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        steps = [after[1] - before[1] for before, after in pairs if before[0] == after[0] == "step"]
        between = {(before[0], after[0]): after[1] - before[1] for before, after in pairs if before[0] != after[0]}
        return StageTimes(
            width=width,
            prefix=PREFIX,
            rows=BATCH,
            supervised=BATCH * (width // 2),
            step_seconds=steps,
            step_bytes=max(peak for name, _, peak in self.marks if name == "step"),
            peak_bytes=self.marks[-1][2],
            validation_seconds=between.get(("step", "validated"), 0.0),
            validation_rows=2 * BATCH,
            token_seconds=self.token_seconds,
            checkpoint_seconds=between.get(("sampled", "saved"), 0.0),
            checkpoint_bytes=self.written,
        )


def _examples(count: int, width: int, vocabulary: int) -> list[Rendered]:
    """Conversations of one length: a shared prefix, then other tokens, the second half of them trained on."""
    draw = random.Random(width)
    highest = max(min(LAST_TOKEN, vocabulary - 1), 1)
    lowest = min(FIRST_TOKEN, highest - 1)
    prefix = [draw.randint(lowest, highest) for _ in range(PREFIX)]
    mask = (False,) * (PREFIX + width - width // 2) + (True,) * (width // 2)
    return [
        Rendered(ids=tuple(prefix + [draw.randint(lowest, highest) for _ in range(width)]), mask=mask, prefix=PREFIX)
        for _ in range(count)
    ]


def main(kind: str, out: Path) -> int:
    """Measure one kind for the process that asks on standard input."""
    asked = json.load(sys.stdin)
    base, machine = BaseModelInfo.model_validate(asked["base"]), Machine.model_validate(asked["machine"])
    out.write_text(measure(kind, base, machine).model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
