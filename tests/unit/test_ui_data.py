"""What the Data tab draws: every number counted once, every text escaped."""

from __future__ import annotations

from persona_lab.datasets.quality.report import Finding, FindingRow, QualityReport
from persona_lab.datasets.reading import Candidate, Look
from persona_lab.types import PreviewToken
from persona_lab.ui.bars import MOST_BARS, binned, chart
from persona_lab.ui.conversations import masked
from persona_lab.ui.data_import import seen
from persona_lab.ui.data_quality import findings, plots


def test_bars_count_everything_once() -> None:
    for values in ([], [1], [0, 0, 3], list(range(200)), [2] * 50 + [900]):
        counts = binned(values)
        assert sum(counts.values()) == len(values)
        assert len(counts) <= MOST_BARS + 1
    drawn = chart({str(n): n for n in range(1, 30)}, "<b>", "rows")
    assert drawn.count("<rect") == MOST_BARS + 1
    assert "more" in drawn
    assert "<b>" not in drawn


def test_findings_carry_their_kind_and_escape_their_examples() -> None:
    row = FindingRow(row=3, id="x", split="train", text="<script>")
    found = Finding(kind="placeholders", title="P", why="w", fix="f", count=7, examples=(row,))
    bare = Finding(kind="imbalance", title="I", why="w", fix="", count=1, examples=())
    report = QualityReport(
        dataset="a-v1", conversations=9, findings=(found, bare), clean=("Q",), reply_words=(1, 2), turns={2: 9}, made={}
    )
    drawn = findings(report) + plots(report)
    assert 'data-id="placeholders"' in drawn
    assert 'data-count="7"' in drawn
    assert 'data-id="imbalance"' not in drawn  # it has no fix
    assert "<script>" not in drawn
    assert "Nothing found" in findings(report.model_copy(update={"findings": ()}))


def test_a_look_says_what_it_is_what_else_and_what_to_say() -> None:
    others = (Candidate("irc", "IRC log", 0.9, "nicks"), Candidate("prose", "Prose", 0.4, "<sentences>"))
    look = Look("irc", "IRC log, because nicks", True, others, {"assistant": ("kim", "nan")})
    drawn = seen(look)
    assert "IRC log, because nicks" in drawn
    assert "which of them is the character" in drawn
    assert "&lt;sentences&gt;" in drawn
    unknown = seen(Look("", "no reader knows it", False, (), {}))
    assert "No reader knows this file" in unknown


def test_truncation_is_said() -> None:
    tokens = [PreviewToken(text="a", trained=True)] * 3
    assert "data-cut" not in masked(tokens, 3, 16)
    assert 'data-cut="5"' in masked(tokens, 8, 16)
