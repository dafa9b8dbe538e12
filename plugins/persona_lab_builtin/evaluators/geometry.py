"""Geometry: how did training change the weights? A diagnostic; nothing here is good or bad by itself.

For every weight matrix W that became W + dW:

- relative_update: ||dW|| / ||W|| (Frobenius norms).
- effective_rank: the number of singular values that hold 90% of dW's energy (their sum of squares).
- intruder_dimensions: of the first 10 left singular vectors u_j of W + dW, those with max_i |u_j . u_base,i| < 0.5 over
  all left singular vectors of W: directions that the base did not have. Summed over matrices, as in Shuttleworth et
  al., https://arxiv.org/abs/2410.21228, who find them after LoRA and hardly any after full fine-tuning, and more
  forgetting where there are many.

Full weights are kept in bf16, and rounding them moves every direction a little: merged and rounded so, an adapter whose
updates have ranks of 2 to 11 was measured at 5 to 135. The note of effective_rank therefore says how much of the
energy rounding explains, and what the rank is without that.

Embeddings and head count in the first two; their left singular vectors (one entry a token of the vocabulary) are not
compared. Matrices whose smaller side is longer than 2,048 are measured by relative_update only. An adapter trained on
a 4-bit base is measured against the unquantised weights. `layer_step` 3 looks at every third layer; a sum over every
third layer is not one over all, so compare variants that were measured alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

from pydantic import Field

from persona_lab.api import EvalContext, Evaluator, Frozen, ItemScore, Metric, Probe, Variant

QUICK_STEP = 3
WORTH_SAYING = 0.01
"""Share of dW's energy that rounding explains, below which it is not mentioned."""
OUTSIDE = "embedding"
"""The cluster of what belongs to no layer."""
_UNITS = {"relative_update": "share", "effective_rank": "directions", "intruder_dimensions": "directions"}
_TITLES = {
    "relative_update": "Relative update",
    "effective_rank": "Effective rank of the update",
    "intruder_dimensions": "Intruder dimensions",
}


class GeometryConfig(Frozen):
    """What is looked at."""

    layer_step: int = Field(
        1, ge=1, le=16, description="1 looks at every layer, 3 at every third: faster, and usually enough for a look."
    )


@dataclass(frozen=True)
class _Row:
    name: str
    kind: str
    layer: int | None
    found: Any
    """The toolkit's UpdateGeometry."""

    def item(self, value: float) -> ItemScore:
        cluster = OUTSIDE if self.layer is None else str(self.layer)
        return ItemScore(id=self.name, cluster=cluster, value=value, note=self.kind)


class Geometry(Evaluator):
    """Relative update, effective rank and intruder dimensions of every changed weight matrix."""

    id = "geometry"
    title = "Geometry of the update"
    summary = "How far training moved the weights, over how many directions, and whether it added new ones."
    rank = 70
    Config = GeometryConfig

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics relative_update, effective_rank and intruder_dimensions; an item a matrix, a cluster a layer."""
        step = max(ctx.settings.layer_step, QUICK_STEP) if ctx.quick else ctx.settings.layer_step
        if variant.kind in ("base", "prompt"):
            return [_withheld(name, "Nothing was changed: its weights are the base's.") for name in _UNITS]
        ctx.phase(f"Geometry of {variant.name}", None)
        rows = _measure(variant, ctx, step)
        if not rows:
            return [_withheld(name, "No weight matrix was changed.") for name in _UNITS]
        return [_relative(rows, step, variant), _rank(rows, step, variant), _intruders(rows, step, variant)]


def _measure(variant: Variant, ctx: EvalContext, step: int) -> list[_Row]:
    from persona_lab.api import measure_update

    rows = []
    for name, kind, layer, base, delta in ctx.updates(variant):
        if layer is not None and layer % step:
            continue
        rows.append(_Row(name, kind, layer, measure_update(base, delta)))
        ctx.step(len(rows), len(rows) + 1, stage="measuring weights")  # how many there are is known at the end
    return rows


def _relative(rows: Sequence[_Row], step: int, variant: Variant) -> Metric:
    items = [row.item(row.found.relative) for row in rows if isfinite(row.found.relative)]
    if not items:
        return _withheld("relative_update", "The base's matrices that changed hold only zeros.")
    note = f"||dW|| / ||W||, mean over {_looked_at(rows, step)}; the most: {_most(items)}.{_quantised(variant)}"
    return _mean("relative_update", items, note)


def _rank(rows: Sequence[_Row], step: int, variant: Variant) -> Metric:
    items = [row.item(row.found.rank) for row in rows if row.found.rank is not None]
    if not items:
        return _withheld("effective_rank", "Every matrix is too large to be decomposed here.")
    middle = median(item.value for item in items)
    note = (
        f"Singular values that hold 90% of dW's energy, mean over {_looked_at(rows, step)}; median {middle:g}."
        f"{_rounding(rows)}{_left_out(len(rows) - len(items))}{_quantised(variant)}"
    )
    return _mean("effective_rank", items, note)


def _rounding(rows: Sequence[_Row]) -> str:
    """How much of the change rounding to bf16 explains, and what the rank is without it."""
    rounded = [row.found for row in rows if row.found.rounding > 0]
    share = sum(found.rounding for found in rounded) / max(len(rounded), 1)
    if share < WORTH_SAYING:
        return ""
    known = [found.signal_rank for found in rounded if found.signal_rank is not None]
    without = f"about {sum(known) / len(known):.0f} without it" if known else "unknown without it"
    if 0 < len(known) < len(rounded):
        without += f" in the {len(known)} matrices where that can be told"
    return (
        f" The weights are kept in bf16: rounding makes up about {share:.0%} of dW's energy, in all directions, so the "
        f"rank is {without}; do not compare it with an adapter's."
    )


def _intruders(rows: Sequence[_Row], step: int, variant: Variant) -> Metric:
    looked = [row for row in rows if row.found.intruders is not None]
    if not looked:
        return _withheld("intruder_dimensions", "Every matrix that changed is too large to be decomposed here.")
    items = [row.item(row.found.intruders) for row in looked]
    directions = sum(row.found.directions for row in looked)
    note = (
        f"Of the {directions} leading directions of {_looked_at(looked, step)}, those that no direction of the base "
        f"resembles (cosine below 0.5). A sum, without an interval.{_left_out(len(rows) - len(looked))}"
        f"{_quantised(variant)}"
    )
    return Metric(
        evaluator=Geometry.id,
        metric="intruder_dimensions",
        value=sum(item.value for item in items),
        low=None,
        high=None,
        n=directions,
        unit=_UNITS["intruder_dimensions"],
        better="none",
        reference=0.0,
        note=note,
        items=tuple(items),
        title=_TITLES["intruder_dimensions"],
        compared=False,
    )


def _mean(name: str, items: Sequence[ItemScore], note: str) -> Metric:
    from persona_lab.api import mean_metric

    metric = mean_metric(Geometry.id, name, items, _UNITS[name], "none", note=note)
    return metric.model_copy(update={"title": _TITLES[name], "compared": False})


def _withheld(name: str, why: str) -> Metric:
    from persona_lab.api import missing_metric

    metric = missing_metric(Geometry.id, name, _UNITS[name], "none", why)
    return metric.model_copy(update={"title": _TITLES[name], "compared": False})


def _looked_at(rows: Sequence[_Row], step: int) -> str:
    layers = len({row.layer for row in rows if row.layer is not None})
    every = f", every {step}. layer" if step > 1 else ""
    return f"{len(rows)} matrices of {layers} layers{every}"


def _most(items: Sequence[ItemScore]) -> str:
    top = max(items, key=lambda item: item.value)
    return f"{top.id} ({top.value:.3g})"


def _left_out(count: int) -> str:
    return f" {count} too large for this left out." if count else ""


def _quantised(variant: Variant) -> str:
    return " Measured against the unquantised weights." if variant.quantization else ""
