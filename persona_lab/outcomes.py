"""What finished runs leave behind: a variant of a training, a report of an evaluation. Reads no files."""

from __future__ import annotations

from pathlib import Path

from persona_lab.types import Artifact, ReportView, RunView, Variant, now


def variant_of(run: RunView, artifact: Artifact, folder: Path) -> Variant:
    """The variant a finished training run made; its weights, or its pool of examples, lie in `folder`."""
    return Variant(
        id=run.id,
        name=run.name,
        persona=run.persona,
        base=artifact.base or run.base,
        anchor=run.result.get("anchor", ""),
        strategy=run.strategy,
        run=run.id,
        kind=artifact.kind,
        # the folder of a steered prompt holds the traits' vectors, not a pool of examples
        path=str(folder / "weights") if artifact.path and not (artifact.traits and artifact.kind == "prompt") else "",
        traits=artifact.traits,
        steering=str(folder / "weights" / "steering") if artifact.traits else "",
        system=run.result.get("system", ""),
        examples=artifact.examples,
        quantization=artifact.quantization,
        fingerprint=run.result.get("fingerprint", ""),
        dataset=run.dataset,
        seed=run.seed,
        created=run.finished or now(),
        bytes=int(run.result.get("artifact_bytes", 0)),
        example_tokens=int(artifact.details.get("example_tokens", 0)),
        parent=str(artifact.details.get("parent", "")),
    )


def report_of(run: RunView) -> ReportView:
    """The report a finished evaluation left."""
    files = run.result.get("report") or {}
    return ReportView(
        id=run.id,
        name=run.name,
        persona=run.persona,
        created=run.finished or run.created,
        variants=tuple(entry["variant"] for entry in run.result.get("variants", ())),
        html=files.get("html", ""),
        markdown=files.get("markdown", ""),
        data=files.get("json", str(Path(run.directory) / "metrics.json")),
    )
