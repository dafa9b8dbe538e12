"""Forgetting against a context whose divergences are known, and files of text that can and cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from persona_lab_builtin.evaluators import forgetting
from persona_lab_builtin.evaluators.forgetting import Forgetting, ForgettingConfig, passages_of

from persona_lab.errors import BadInput, BadSetting
from persona_lab.evaluation.compare import compare_all
from persona_lab.home import Home
from persona_lab.plugins import Plugins
from persona_lab.settings import validate_settings
from persona_lab.types import Divergence, Metric, Variant


def variant(kind: Any = "adapter", name: str = "v1", **more: Any) -> Variant:
    return Variant(id=name, name=name, persona="tamsin", base="starter", strategy="lora", kind=kind, **more)


class KnownContext:
    """KL of `moved(passage)` nats a token; the base has 1 bit a byte, the variant `bits` more."""

    def __init__(self, moved: Callable[[Any], float], bits: float = 0.0, quick: bool = False, **settings: Any) -> None:
        self.settings, self.quick, self.seed = ForgettingConfig(**settings), quick, 0
        self._moved, self._bits = moved, bits
        self.asked: list[Any] = []

    def phase(self, title: str, total: int | None = None) -> None: ...

    def divergence(self, variant: Variant, passages: Sequence[Any]) -> list[Divergence]:
        self.asked += passages
        nats = math.log(2)
        return [
            Divergence(
                kl=10 * self._moved(p),
                tokens=10,
                bytes=40,
                base_total=-40 * nats,
                variant_total=-40 * nats * (1 + self._bits),
            )
            for p in passages
        ]


def by_name(metrics: Any) -> dict[str, Metric]:
    return {m.metric: m for m in metrics}


def test_its_metrics_follow_their_formulas() -> None:
    context = KnownContext(lambda p: 0.2 if isinstance(p, str) else 0.6, bits=0.25)
    found = by_name(Forgetting().score(variant(), [], context))
    assert list(found) == [
        "kl_text",
        "kl_instructions",
        "bpb_change_text",
        "bpb_change_instructions",
        "bpb_base_text",
    ]
    assert found["kl_text"].value == pytest.approx(0.2)
    assert found["kl_instructions"].value == pytest.approx(0.6)
    assert found["bpb_change_text"].value == pytest.approx(0.25)
    assert found["bpb_change_instructions"].value == pytest.approx(0.25)
    assert found["bpb_base_text"].value == pytest.approx(1.0)
    assert {m.metric for m in found.values() if m.compared and m.better != "none"} == {"kl_text", "kl_instructions"}
    for name in ("kl_text", "kl_instructions", "bpb_change_text", "bpb_change_instructions"):
        assert (found[name].better, found[name].reference, found[name].n) == ("lower", 0.0, 24)
        assert len({item.cluster for item in found[name].items}) == 24


def test_passages_are_items_that_pair_variants() -> None:
    steady = list(Forgetting().score(variant(name="a"), [], KnownContext(lambda p: 0.1 + len(str(p)) % 7 / 100)))
    worse = list(Forgetting().score(variant(name="b"), [], KnownContext(lambda p: 0.2 + len(str(p)) % 7 / 100)))
    kl = by_name(steady)["kl_text"]
    assert kl.low is not None
    assert kl.high is not None
    assert kl.low < kl.value < kl.high  # type: ignore[operator]
    found = {c.metric: c for c in compare_all([variant(name="a"), variant(name="b")], {"a": steady, "b": worse}, 0)}
    assert {"kl_text", "kl_instructions"} <= set(found)
    assert abs(found["kl_text"].difference) == pytest.approx(0.1)
    assert found["kl_text"].verdict.startswith("a is better than b")


def test_a_prompt_costs_nothing_and_says_why() -> None:
    for kind in ("prompt", "base"):
        found = by_name(Forgetting().score(variant(kind), [], KnownContext(lambda p: 0.0)))
        assert found["kl_text"].value == found["kl_instructions"].value == found["bpb_change_text"].value == 0.0
        assert "by definition" in found["kl_text"].note
    note = by_name(Forgetting().score(variant(quantization="nf4"), [], KnownContext(lambda p: 0.1)))["kl_text"].note
    assert "unquantised base" in note


def test_quick_and_max_items_bound_what_is_read() -> None:
    for options, count in (({"quick": True}, 8), ({"max_items": 5}, 5), ({"quick": True, "max_items": 4}, 4)):
        context = KnownContext(lambda p: 0.1, **options)
        found = by_name(Forgetting().score(variant(), [], context))
        assert (found["kl_text"].n, found["kl_instructions"].n, len(context.asked)) == (count, count, 2 * count)
        assert len({str(p) for p in context.asked}) == 2 * count


def test_items_without_a_counted_token_are_left_out() -> None:
    class Empty(KnownContext):
        def divergence(self, variant: Variant, passages: Sequence[Any]) -> list[Divergence]:
            return [Divergence(kl=0, tokens=0, bytes=0, base_total=0, variant_total=0) for _ in passages]

    found = by_name(Forgetting().score(variant(), [], Empty(lambda p: 0.0)))
    assert found["kl_text"].value is None
    assert "Nothing to measure" in found["kl_text"].note


def test_the_texts_that_come_with_it_are_varied_and_of_the_promised_length() -> None:
    prose, tasks = forgetting._prose(), forgetting._instructions()
    assert len(prose) >= 24
    assert all(120 <= len(text.split()) <= 180 for text in prose)
    assert len({" ".join(text.split()[:3]) for text in prose}) == len(prose)
    assert len(tasks) >= 24
    assert len({question for question, _ in tasks}) == len(tasks)
    assert all(answer.strip() for _, answer in tasks)


def test_a_file_of_ones_own_is_cut_into_passages(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    paragraphs = [" ".join(f"w{p}x{i}" for i in range(length)) for p, length in enumerate((400, 60, 10, 100))]
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    passages = passages_of(file)
    assert [len(p.split()) for p in passages] == [150, 150, 100, 70, 100]
    assert " ".join(passages).split() == " ".join(paragraphs).split()
    context = KnownContext(lambda p: 0.1, text_file=str(file))
    found = by_name(Forgetting().score(variant(), [], context))
    assert [p for p in context.asked if isinstance(p, str)] == passages
    assert (found["kl_text"].n, found["kl_instructions"].n) == (5, 24)
    assert "own.txt" in found["kl_text"].note


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no file"),
        (b"", "empty"),
        (b"  \n\n \n", "empty"),
        (b"four words are few", "at least 20"),
        ("Caf\u00e9 au lait. ".encode("latin-1") * 20, "not UTF-8"),
        (b"\x00\x01\x02\x03" * 100, "binary"),
        (b"%PDF-1.7 " + b"word " * 100, "PDF"),
        (b"word " * 1_200_000, "at most 5 MiB"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_anything_runs(
    content: bytes | None, why: str, tmp_path: Path, home: Home
) -> None:
    from persona_lab.evaluating import evaluator_settings

    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=why) as direct:
        passages_of(file)
    assert "mine.txt" in str(direct.value)
    with pytest.raises(BadSetting, match=why) as raised:
        evaluator_settings(Plugins.load(home.plugins), ["forgetting"], {"forgetting.text_file": str(file)})
    assert "mine.txt" in str(raised.value)
    assert raised.value.problems[0][0] == "text_file"


def test_settings_keep_their_bounds_and_a_files_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("3", "201", "many"):
        with pytest.raises(BadSetting, match="max_items"):
            validate_settings(ForgettingConfig, {"max_items": value}, "evaluator 'forgetting'")
    (tmp_path / "own.txt").write_text("word " * 50)
    monkeypatch.chdir(tmp_path)  # the worker runs somewhere else
    assert ForgettingConfig(text_file="own.txt").text_file == str((tmp_path / "own.txt").resolve())
    assert ForgettingConfig(text_file=" ").text_file == ""
