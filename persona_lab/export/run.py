"""Runs an export in the worker: checks, builds in a temporary folder, adds checksums, and renames it into place."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from persona_lab.api import Reporter
from persona_lab.errors import BadInput
from persona_lab.export.toolkit import license_of, write_checksums
from persona_lab.home import Home, disk_errors
from persona_lab.models.registry import ensure
from persona_lab.types import Job


def run(job: Job, reporter: Reporter, plugins: Any) -> dict[str, Any]:
    """Export `job.variants[0]` as `job.format` into the new or empty folder `job.out`.

    Returns:
        {"variant", "format", "out", "files" (relative names), "bytes", "warnings"}.

    Raises:
        BadInput: nothing to export, the format cannot hold this variant, the licence is unknown, or the folder is not
            empty.
        Cancelled, DiskFull, OutOfMemory, BadModel
    """
    if job.persona is None or len(job.variants) != 1:
        raise BadInput("There is nothing to export.", "Name one variant.")
    variant, home = job.variants[0], Home.resolve(job.home)
    exporter = plugins.get("exporter", job.format)
    problems = exporter.check(variant)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise BadInput(" ".join(p.message for p in errors), " ".join(p.fix for p in errors).strip())
    for problem in problems:
        reporter.log(f"{problem.message} {problem.fix}".strip(), "warning")
    out = free_folder(Path(job.out) if job.out else home.exports / job.id)
    base = ensure(variant.base, home, reporter)
    license_of(base)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            exporter.export(variant, job.persona, base, folder, reporter)
            reporter.phase("Writing checksums", None)
            write_checksums(folder)
            _open_up(folder)
            free_folder(out)
            folder.replace(out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        "variant": variant.id,
        "format": job.format,
        "out": str(out),
        "files": [path.relative_to(out).as_posix() for path in files],
        "bytes": sum(path.stat().st_size for path in files),
        "warnings": [problem.message for problem in problems],
    }


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
