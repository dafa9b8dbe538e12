"""What every evaluator is held to, on a tiny model: explained settings, honest intervals, the same numbers again."""

from __future__ import annotations

import json
import math
from typing import Any

from persona_lab.datasets.store import save_dataset
from persona_lab.testing.made_up import made_up_conversation
from persona_lab.testing.strategies import Watcher, Workshop, check_lightness, check_settings
from persona_lab.types import Dataset, Job, Metric, Variant, now


def check_evaluator(shop: Workshop, evaluator: str, **settings: Any) -> list[Metric]:
    """Score the untrained base and a variant with another prompt, twice; gives the variant's metrics.

    Checks that settings explain themselves, loading is light, each value lies in its interval and has a count and a
    unit, items are named once and finite, and the same seed gives the same numbers.
    """
    check_settings(shop, evaluator, "evaluator")
    check_lightness(evaluator, kind="evaluator")
    first, again = (_scored(shop, evaluator, settings, run) for run in ("eval-1", "eval-2"))
    assert len(first) == 2, "a variant was not scored"
    for variant, metrics in first.items():
        assert metrics, f"it measures nothing of {variant}"
        assert len({metric.metric for metric in metrics}) == len(metrics), "two metrics have one name"
        for metric in metrics:
            _check_metric(evaluator, metric)
        assert [m.value for m in metrics] == [m.value for m in again[variant]], "the same seed, other numbers"
    return first["other"]


def _check_metric(evaluator: str, metric: Metric) -> None:
    name = metric.metric
    assert metric.evaluator == evaluator, f"{name} says that it is of {metric.evaluator!r}"
    assert metric.unit, f"{name} has no unit"
    if metric.value is None:
        assert metric.note, f"{name} has no value and does not say why"
        return
    assert math.isfinite(metric.value), f"{name} is {metric.value}"
    assert metric.n > 0, f"{name} does not say on how many items it stands"
    if metric.low is not None and metric.high is not None:
        assert metric.low <= metric.value <= metric.high, f"{name} lies outside its interval"
    assert len({item.id for item in metric.items}) == len(metric.items), f"{name} names an item twice"
    assert all(math.isfinite(item.value) for item in metric.items), f"{name} has items that are no numbers"


def _scored(shop: Workshop, evaluator: str, settings: dict[str, Any], run_id: str) -> dict[str, list[Metric]]:
    from persona_lab.evaluation.run import run

    rows = tuple(made_up_conversation(i, "test" if i < 12 else "train") for i in range(24))
    path = shop.home.root / "held-out.jsonl"
    dataset = Dataset(id="held", persona=shop.persona.id, version=1, name="held out", conversations=rows)
    save_dataset(path, dataset)
    base = Variant(
        id="base", name="base", persona=shop.persona.id, base=str(shop.base), strategy="base", kind="base", system="Hi."
    )
    shop.home.run(run_id).mkdir(parents=True, exist_ok=True)
    job = Job(
        id=run_id,
        kind="evaluate",
        name="test",
        home=str(shop.home.root),
        created=now(),
        persona=shop.persona,
        dataset=str(path),
        base=str(shop.base),
        variants=(base, base.model_copy(update={"id": "other", "name": "other", "system": "You are Tamsin."})),
        evaluators=(evaluator,),
        evaluator_settings={evaluator: settings},
        seed=5,
    )
    result = run(job, Watcher(), shop.plugins)
    json.dumps(result, allow_nan=False)
    kept = json.loads((shop.home.run(run_id) / "metrics.json").read_text(encoding="utf-8"))
    assert not any(entry.get("failed") for entry in kept["variants"]), kept["variants"]
    return {entry["variant"]: [Metric.model_validate(m) for m in entry["metrics"]] for entry in kept["variants"]}
