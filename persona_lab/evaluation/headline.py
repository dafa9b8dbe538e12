"""Says an evaluation in plain words: what each variant gained over its base, what it cost, and what stays undecided.

Everything is read off the comparisons: a sentence names a measure only if the corrected test told the two apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from persona_lab.evaluation.compare import ALPHA, named, title_of, too_few
from persona_lab.evaluation.wording import signed
from persona_lab.types import Comparison, Metric, Variant

Key = tuple[str, str]
"""Evaluator and metric."""
_NOT_OF_A_VOICE = frozenset({"forgetting", "geometry", "parroting", "drift"})
"""Evaluators on which a wrong character need not lose; nor need it on anything of which less is better."""
SEEDS = (
    "These are comparisons of trained weights. Another training seed gives other weights: strategies are ranked over "
    "three seeds or more (persona-lab bench-strategies)."
)


@dataclass(frozen=True)
class _Side:
    """One comparison seen from one of its two variants: its value minus the other's, above 0 where `better`."""

    title: str
    difference: float
    unit: str
    told_apart: bool
    better: bool
    voice: bool

    def words(self) -> str:
        """`specificity (+0.041 nats/byte)`."""
        return f"{self.title} ({signed(self.difference, self.unit)})"


def headline(
    variants: Sequence[Variant], metrics: Mapping[str, Sequence[Metric]], comparisons: Sequence[Comparison]
) -> list[dict[str, object]]:
    """Blocks of `title` and `lines`, of plain sentences; blocks that would say nothing are left out."""
    kinds = {(m.evaluator, m.metric): m for found in metrics.values() for m in found}
    tried = [v for v in variants if v.kind != "base" and not v.control]
    bases = [v for v in variants if v.kind == "base"]
    sides = {
        (a.id, b.id): [_side(c, a.id, kinds) for c in comparisons if {c.a, c.b} == {a.id, b.id}]
        for a, b in itertools.permutations(variants, 2)
    }
    against_base = [(v, base, sides[v.id, base.id]) for v in tried for base in bases]
    among = [(a, b, sides[a.id, b.id]) for a, b in itertools.combinations(tried, 2)]
    controls = [(v, c, sides[v.id, c.id]) for v in tried for c in variants if c.control]
    blocks = [
        ("Gained over the base", [_won(v, rows) for v, _, rows in against_base if rows]),
        ("What it cost", [_lost(v, rows) for v, _, rows in against_base if rows]),
        ("Between the variants", [_between(a, b, rows) for a, b, rows in among if rows]),
        ("Against a wrong character", [_control(v, c, rows) for v, c, rows in controls]),
        ("Cannot be told apart", [_open(a, b, rows) for a, b, rows in [*against_base, *among]]),
        ("Not measured", _withheld(variants, metrics)),
        ("Keep in mind", _caution(tried, bases, kinds, metrics, comparisons)),
    ]
    kept = [(title, [line for line in lines if line]) for title, lines in blocks]
    return [{"title": title, "lines": lines} for title, lines in kept if lines]


def _side(comparison: Comparison, of: str, kinds: Mapping[Key, Metric]) -> _Side:
    metric = kinds[comparison.evaluator, comparison.metric]
    difference = comparison.difference if comparison.a == of else -comparison.difference
    return _Side(
        title_of(metric).split(", ")[0],
        difference,
        metric.unit,
        comparison.p_holm < ALPHA,
        (difference > 0) == (metric.better == "higher"),
        metric.better == "higher" and metric.evaluator not in _NOT_OF_A_VOICE,
    )


def _titles(rows: Sequence[_Side]) -> str:
    return ", ".join(row.title for row in rows)


def _measured(rows: Sequence[_Side]) -> str:
    return "; ".join(row.words() for row in rows)


def _won(variant: Variant, rows: Sequence[_Side]) -> str:
    better = [row for row in rows if row.told_apart and row.better]
    if not better:
        return f"{named(variant)}: no gain that is beyond chance."
    return f"{named(variant)} is better than its base on: {_measured(better)}."


def _lost(variant: Variant, rows: Sequence[_Side]) -> str:
    worse = [row for row in rows if row.told_apart and not row.better]
    if not worse:
        return f"{named(variant)}: no loss that is beyond chance."
    return f"{named(variant)} is worse than its base on: {_measured(worse)}."


def _between(a: Variant, b: Variant, rows: Sequence[_Side]) -> str:
    better = [row for row in rows if row.told_apart and row.better]
    worse = [row for row in rows if row.told_apart and not row.better]
    parts = [f"{named(a)} is better than {named(b)} on: {_titles(better)}."] if better else []
    parts += [f"{named(b)} is better than {named(a)} on: {_titles(worse)}."] if worse else []
    return " ".join(parts)


def _control(variant: Variant, control: Variant, rows: Sequence[_Side]) -> str:
    about_voice = [row for row in rows if row.voice]
    if not about_voice:
        return ""
    won = [row for row in about_voice if row.told_apart and row.better]
    rest = [row for row in about_voice if row not in won]
    said = [f"{named(variant)} beats {named(control)} on: {_titles(won)}."] if won else []
    if rest:
        doubt = "a good score there is no proof of this character."
        who = "It does not" if won else f"{named(variant)} does not beat {named(control)}"
        said.append(f"{who} on: {_titles(rest)}; {doubt}")
    return " ".join(said)


def _open(a: Variant, b: Variant, rows: Sequence[_Side]) -> str:
    open_rows = [row for row in rows if not row.told_apart]
    return f"{named(a)} and {named(b)}, on: {_titles(open_rows)}." if open_rows else ""


def _withheld(variants: Sequence[Variant], metrics: Mapping[str, Sequence[Metric]]) -> list[str]:
    """Measures that variants are meant to be compared on, but that nobody has a value of."""
    by_key: dict[Key, list[Metric]] = {}
    for variant in variants:
        for metric in metrics.get(variant.id, ()):
            if metric.better != "none" and metric.compared:
                by_key.setdefault((metric.evaluator, metric.metric), []).append(metric)
    missing = [found[0] for found in by_key.values() if all(m.value is None for m in found)]
    if not missing:
        return []
    titles = "; ".join(title_of(metric) for metric in missing)
    return [f"Withheld for every variant: {titles}. The table says why."]


def _caution(
    tried: Sequence[Variant],
    bases: Sequence[Variant],
    kinds: Mapping[Key, Metric],
    metrics: Mapping[str, Sequence[Metric]],
    comparisons: Sequence[Comparison],
) -> list[str]:
    lines = []
    if not comparisons:
        lines.append("Nothing could be compared: that takes two variants with the same items.")
    elif not bases:
        lines.append("The base was not measured here, so nothing is said about what training gained.")
    tested: dict[Key, list[int]] = {}
    for comparison in comparisons:
        if clusters := _tested(comparison, metrics):
            tested.setdefault((comparison.evaluator, comparison.metric), []).append(clusters)
    count = sum(map(len, tested.values()))
    few = [kinds[key] for key, clusters in tested.items() if too_few(max(clusters), count)]
    if few:
        titles = "; ".join(title_of(metric) for metric in few)
        lines.append(
            f"Too few items for any difference to survive the correction for {count} comparisons, so that finding none "
            f"means nothing: {titles}."
        )
    if any(v.kind in ("adapter", "weights") for v in tried):
        lines.append(SEEDS)
    return lines


def _tested(comparison: Comparison, metrics: Mapping[str, Sequence[Metric]]) -> int:
    """How many independent items the two share; 0 where they are the same on each of them, since the correction does
    not count such a comparison."""
    key = (comparison.evaluator, comparison.metric)
    a, b = (
        [item for m in metrics.get(of, ()) if (m.evaluator, m.metric) == key for item in m.items]
        for of in (comparison.a, comparison.b)
    )
    values = {item.id: item.value for item in b}
    shared = [item for item in a if item.id in values]
    differ = any(item.value != values[item.id] for item in shared)
    return len({item.cluster for item in shared}) if differ else 0
