"""Runs an export in the worker: checks, builds in a temporary folder, loads and compares what was built, adds
checksums, and renames it into place."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from persona_lab.api import Reporter
from persona_lab.datasets.store import load_dataset
from persona_lab.errors import BadInput, DiskFull
from persona_lab.export.check import round_trip
from persona_lab.export.toolkit import CHECKSUMS, append_check, license_of, with_stated_license, write_checksums
from persona_lab.home import Home, disk_errors, write_atomic
from persona_lab.models.machine import worker_machine
from persona_lab.models.registry import ensure
from persona_lab.settings import validate_settings
from persona_lab.types import BaseModelInfo, Conversation, ExportOrder, Job, Metric, Problem

MADE = "exported.json"
"""In the run's folder: what the export is, written before it is put into its place."""


class Context:
    """What an exporter gets: the run's reporter, its settings, and what the model card quotes."""

    def __init__(self, reporter: Reporter, settings: Any, order: ExportOrder) -> None:
        self._reporter = reporter
        self.settings = settings
        self.dataset: dict[str, Any] = order.dataset
        self.metrics: tuple[Metric, ...] = order.metrics
        self.report = order.report
        self.usage = ""

    def use(self, commands: str) -> None:
        """How the result is used."""
        self.usage = commands.strip()

    def phase(self, title: str, total: int | None = None) -> None:
        """Begin a part of the work."""
        self._reporter.phase(title, total)

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        """Report progress."""
        self._reporter.step(step, total, **values)

    def log(self, message: str, level: str = "info") -> None:
        """Say something to people."""
        self._reporter.log(message, level)


def run(job: Job, reporter: Reporter, plugins: Any) -> dict[str, Any]:
    """Export `job.variants[0]` as `job.format` into the new or empty folder `job.out`.

    Returns:
        {"variant", "format", "out", "files" (relative names), "bytes", "estimated_bytes", "warnings", "usage",
        "check"}: `usage` is how to use it, as commands (may be empty), `check` what `round_trip` gives, or None.

    Raises:
        BadInput: nothing to export, the format cannot hold this variant, the licence is unknown, or the folder is not
            empty.
        BadModel: what was exported does not load. Cancelled, DiskFull, OutOfMemory
    """
    if job.persona is None or len(job.variants) != 1:
        raise BadInput("There is nothing to export.", "Name one variant.")
    variant, home = job.variants[0], Home.resolve(job.home)
    if (made := _made_before(home, job)) is not None:
        return made
    exporter, order = plugins.get("exporter", job.format), job.export or ExportOrder()
    settings = validate_settings(exporter.Config, job.config, f"exporter {job.format!r}")
    warnings = _warned(exporter.check(variant), reporter)
    out = free_folder(Path(job.out) if job.out else home.exports / job.id)
    base = with_stated_license(ensure(variant.base, home, reporter), order.license)
    license_of(base)
    warnings += _warned(exporter.check_base(variant, base, settings), reporter)
    estimated = exporter.estimate_bytes(variant, base, settings)
    checked: dict[str, Any] | None = None
    context = Context(reporter, settings, order)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _require_room(out.parent, estimated)
        for left in out.parent.glob(f".{out.name}.{job.id}.*"):  # of an attempt of this run that was killed
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.{job.id}."))
        try:
            exporter.export(variant, job.persona, base, folder, context)
            if order.check:
                checked = _checked(folder, job, base, reporter)
            reporter.phase("Writing checksums", None)
            sums = write_checksums(folder)
            _open_up(folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            result = {
                "variant": variant.id,
                "format": job.format,
                "out": str(out),
                "files": [path.relative_to(folder).as_posix() for path in files],
                "bytes": sum(path.stat().st_size for path in files),
                "estimated_bytes": estimated,
                "warnings": warnings,
                "usage": context.usage,
                "check": checked,
            }
            kept = {"sums": sums.read_text("utf-8"), "asked": _asked(job), "result": result}
            write_atomic(home.run(job.id) / MADE, json.dumps(kept))
            free_folder(out)
            folder.replace(out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return result


def _made_before(home: Home, job: Job) -> dict[str, Any] | None:
    """The result of an attempt of this run that was cut off after its export was in place; None: there was none."""
    try:
        kept = json.loads((home.run(job.id) / MADE).read_bytes())
        result: dict[str, Any] = kept["result"]
        there = (Path(result["out"]) / CHECKSUMS).read_text("utf-8")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if there == kept["sums"] and kept.get("asked") == _asked(job) else None


def _asked(job: Job) -> Any:
    """What the run was to make, as JSON gives it back."""
    asked: Any = json.loads(job.model_dump_json(include={"variants", "format", "out", "config", "export"}))
    return asked


def _warned(problems: list[Problem], reporter: Reporter) -> list[str]:
    """The warnings among the problems, told.

    Raises:
        BadInput: there are errors among them.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise BadInput(" ".join(p.message for p in errors), " ".join(p.fix for p in errors).strip())
    for problem in problems:
        reporter.log(f"{problem.message} {problem.fix}".strip(), "warning")
    return [problem.message for problem in problems]


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"The export needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {folder}.",
            "Free some space, or choose a smaller type or another folder.",
        )


def _checked(folder: Path, job: Job, base: BaseModelInfo, reporter: Reporter) -> dict[str, Any] | None:
    """The result of the round trip, also written into the folder; None where there is nothing to load."""
    assert job.persona is not None
    machine = worker_machine(Path(job.home))
    result = round_trip(folder, job.variants[0], job.persona, base, _held_out(job), machine, reporter)
    if result is not None:
        reporter.log(result["verdict"], "info" if result["good"] else "warning")
        append_check(folder, result)
    return result


def _held_out(job: Job) -> list[Conversation]:
    if not job.dataset or not Path(job.dataset).is_file():
        return []
    return list(load_dataset(Path(job.dataset)).of("test"))


def _open_up(folder: Path) -> None:
    """Temporary files are for their owner only; an export is to be passed on."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def free_folder(out: Path) -> Path:
    """`out`, absolute, which does not exist now (an empty folder of that name is removed).

    Raises:
        BadInput: it is a file, or there is something in it: nothing is ever overwritten.
    """
    out = out.expanduser().resolve()
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists():
        what = "is not empty" if out.is_dir() else "is a file"
        raise BadInput(f"The output folder {out} {what}.", "Name a new or an empty folder: nothing is overwritten.")
    return out
