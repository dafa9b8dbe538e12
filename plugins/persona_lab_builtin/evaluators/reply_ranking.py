"""Reply ranking: does it prefer the character's true held-out reply to 19 others (quick: 7) of similar length?

Teacher-forced. Twice: *voice*, against lines of other speakers (who says it?), and *relevance*, against the character's
own replies to other prompts (does it answer this?). Candidates are ranked by s(y|x), nats a byte under the variant, and
by the base-anchored g = s_variant - s_base, which takes out how likely a line is anyway.

    wins = share of the others that the true reply beats, a tie counting half (the AUC of the probe)
    reciprocal rank = mean of 1/r over the ranks that the true reply shares with its ties; MRR is its mean
    Hits@1 = (1 / number of ties at the top) if the true reply is among them, else 0

Higher is better. Chance with K candidates: wins 1/2, Hits@1 = 1/K, MRR = (1 + 1/2 + ... + 1/K) / K; with 20: 0.05 and
0.180. By g the base ties with itself everywhere, and so is exactly at chance. Variants are compared on wins by g only,
which uses the whole rank; MRR and Hits@1 look at its top, and need several times as many probes to see the same thing.
Source: ConvAI2 (Dinan et al. 2019, arXiv 1902.00098).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from persona_lab.api import EvalContext, Evaluator, ItemScore, Message, Metric, Probe, Variant

Kind = Literal["voice", "relevance"]
DISTRACTORS, QUICK_DISTRACTORS = 19, 7
FEWEST = 5
PROBES, QUICK_PROBES = 80, 16
TIE = 1e-9
_AGAINST: dict[Kind, str] = {"voice": "other people's lines", "relevance": "its own replies to other prompts"}
_MEASURES = ("wins_g", "wins", "mrr_g", "mrr", "hits_at_1_g", "hits_at_1")
_UNITS = {"wins": "share", "mrr": "MRR", "hits_at_1": "share"}
_WORDS = {"wins": "wins", "mrr": "MRR", "hits_at_1": "Hits@1"}
_MEANINGS = {
    "wins": "Share of the others that the true reply beats",
    "mrr": "Mean reciprocal rank of the true reply",
    "hits_at_1": "How often the true reply comes first",
}


class ReplyRanking(Evaluator):
    """The rank of the true reply among 20, by likelihood and by gain over the base."""

    id = "reply_ranking"
    title = "Reply ranking"
    summary = "Whether it prefers what the character really said to what others said, or to what was said elsewhere."
    rank = 15

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics {voice, relevance}_{wins, mrr, hits_at_1}, each by s and, with _g, by g; wins_g is compared."""
        from persona_lab.api import spread

        replies = [p for p in probes if p.kind == "reply"]
        asked = spread(replies, [p.cluster for p in replies], QUICK_PROBES if ctx.quick else PROBES, ctx.seed)
        ctx.phase(f"Reply ranking of {variant.name}", None)
        found = {kind: _candidates(kind, asked, replies, ctx) for kind in _AGAINST}
        enough = {kind: rows for kind, rows in found.items() if rows and min(len(r.wrong) for r in rows) >= FEWEST}
        scores = _scores([row for rows in enough.values() for row in rows], variant, ctx)
        metrics: list[Metric] = []
        for kind, rows in found.items():
            metrics += _metrics(kind, rows, scores) if kind in enough else _withheld(kind, rows)
        return metrics


def _candidates(kind: Any, asked: Sequence[Probe], replies: Sequence[Probe], ctx: EvalContext) -> list[Any]:
    from persona_lab.api import Line, distractors, other_lines, own_lines

    if ctx.dataset is None:
        return []
    if kind == "relevance":
        pool = own_lines(replies)
    else:
        pool = [Line(text) for text in other_lines(ctx.dataset, at_least=4 * DISTRACTORS)]
    return distractors(asked, pool, QUICK_DISTRACTORS if ctx.quick else DISTRACTORS, ctx.seed)


def _scores(rows: Sequence[Any], variant: Variant, ctx: EvalContext) -> Mapping[tuple[str, str], tuple[float, float]]:
    """(s, g) of each (probe id, reply), all asked for at once; nats a byte."""
    pairs = list(dict.fromkeys((r.probe.id, text) for r in rows for text in (r.probe.reply, *r.wrong)))
    messages: dict[str, Sequence[Message]] = {r.probe.id: r.probe.messages for r in rows}
    items = [(messages[probe], text) for probe, text in pairs]
    tuned = [result.per_byte for result in ctx.loglikelihood(variant, items)]
    # the base gains nothing over itself, whatever its likelihoods round to
    base = tuned if variant.kind == "base" else [result.per_byte for result in ctx.loglikelihood(None, items)]
    return {pair: (s, s - b) for pair, s, b in zip(pairs, tuned, base, strict=True)}


def rank_of(true: float, wrong: Sequence[float]) -> dict[str, float]:
    """`wins`, `mrr` (reciprocal rank) and `hits_at_1` of the true reply; ties share their ranks evenly."""
    above = sum(score > true + TIE for score in wrong)
    ties = sum(abs(score - true) <= TIE for score in wrong)
    shared = [1 / rank for rank in range(above + 1, above + ties + 2)]
    return {
        "wins": (len(wrong) - above - ties / 2) / len(wrong),
        "mrr": sum(shared) / len(shared),
        "hits_at_1": 1 / (ties + 1) if above == 0 else 0.0,
    }


def chance(candidates: int) -> dict[str, float]:
    """The same of ranking blindly among so many candidates."""
    reciprocal = sum(1 / rank for rank in range(1, candidates + 1)) / candidates
    return {"wins": 0.5, "mrr": reciprocal, "hits_at_1": 1 / candidates}


def _metrics(kind: Kind, rows: Sequence[Any], scores: Mapping[tuple[str, str], tuple[float, float]]) -> list[Metric]:
    from persona_lab.api import mean_metric

    items: dict[str, list[ItemScore]] = {measure: [] for measure in _MEASURES}
    for row in rows:
        true = scores[row.probe.id, row.probe.reply]
        wrong = [scores[row.probe.id, text] for text in row.wrong]
        for by, suffix in ((0, ""), (1, "_g")):
            found = rank_of(true[by], [score[by] for score in wrong])
            best = max(zip((score[by] for score in wrong), row.wrong, strict=True))[1]
            note = f"beats {found['wins']:.0%} of {len(wrong)}; the best of them: {best[:120]!r}"
            for name, value in found.items():
                item = ItemScore(id=row.probe.id, cluster=row.probe.cluster, value=value, note=note)
                items[f"{name}{suffix}"].append(item)
    levels = [chance(len(row.wrong) + 1) for row in rows]
    metrics = []
    for measure in _MEASURES:
        name = measure.removesuffix("_g")
        metric = mean_metric(
            ReplyRanking.id,
            f"{kind}_{measure}",
            items[measure],
            _UNITS[name],
            "higher",
            reference=sum(level[name] for level in levels) / len(levels),
            note=_meaning(kind, measure, rows),
        )
        metrics.append(_titled(metric, kind, measure))
    return metrics


def _meaning(kind: Kind, measure: str, rows: Sequence[Any]) -> str:
    by = "by gain over the base" if measure.endswith("_g") else "by likelihood a byte"
    most = max(len(row.wrong) for row in rows)
    outside, total = sum(row.outside for row in rows), sum(len(row.wrong) for row in rows)
    apart = f" {outside} of {total} are more than 30% longer or shorter." if outside else ""
    what = _MEANINGS[measure.removesuffix("_g")]
    return f"{what} among {most + 1}, {by}; the others are {_AGAINST[kind]} of similar length.{apart}"


def _withheld(kind: Any, rows: Sequence[Any]) -> list[Metric]:
    from persona_lab.api import missing_metric

    if rows:
        fewest = min(len(row.wrong) for row in rows)
        reason = f"only {fewest} of {_AGAINST[kind]} can stand beside a true one (at least {FEWEST} are needed)"
    else:
        reason = "there are no held-out replies"
    return [
        _titled(
            missing_metric(
                ReplyRanking.id,
                f"{kind}_{measure}",
                _UNITS[measure.removesuffix("_g")],
                "higher",
                f"Withheld: {reason}.",
            ),
            kind,
            measure,
        )
        for measure in _MEASURES
    ]


def _titled(metric: Metric, kind: Kind, measure: str) -> Metric:
    by = "gain" if measure.endswith("_g") else "likelihood"
    title = f"{kind.capitalize()} ranking, {_WORDS[measure.removesuffix('_g')]} by {by}"
    return metric.model_copy(update={"title": title, "compared": measure == "wins_g"})
