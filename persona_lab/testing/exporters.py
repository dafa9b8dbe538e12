"""What every exporter is held to, on a tiny model: explained settings, a refusal with a reason, whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_lab.testing.strategies import Watcher, Workshop, check_lightness, check_settings
from persona_lab.types import ExportOrder, Job, now


def check_exporter(shop: Workshop, exporter: str, out: Path, **settings: Any) -> dict[str, Any]:
    """Export a small LoRA variant to `out`; gives the run's result, with the round trip's as `check`.

    Checks that settings explain themselves, loading is light, files are written and no path of this machine is in them,
    and that what can be loaded again is like the variant.
    """
    from persona_lab.export.run import run

    check_settings(shop, exporter, "exporter")
    check_lightness(exporter, kind="exporter")
    shop.train("lora", run_id="to-export", epochs=2, learning_rate=5e-3, samples=0)
    job = Job(
        id="export-1",
        kind="export",
        name="test",
        home=str(shop.home.root),
        created=now(),
        persona=shop.persona,
        dataset=str(shop.dataset()),
        variants=(shop.variant("to-export"),),
        config=settings,
        format=exporter,
        out=str(out),
        export=ExportOrder(license="mit"),
    )
    result = run(job, Watcher(), shop.plugins)
    assert result["files"], "it wrote nothing"
    for path in out.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".jinja", ""):
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            assert str(shop.home.root) not in text, f"{path.name} names a path of this machine"
    weights = [path for path in out.rglob("*") if path.suffix in (".safetensors", ".gguf")]
    assert result["check"] or not weights, "there are weights in it, but nothing that could be loaded and compared"
    if result["check"]:
        off = result["check"]["mean_loglikelihood"]["relative_difference"]
        assert off < 0.25, f"what was written is not the variant: {result['check']['verdict']}"
    return result
