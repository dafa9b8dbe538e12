"""Forgetting: what did the character cost? How far predictions moved on text that has nothing to do with it.

KL(base || variant) at each predicted token is sum_v p_base(v) (log p_base(v) - log p_variant(v)) over the whole
vocabulary, in nats a token; 0 where nothing moved, lower is better. It is measured on generic English prose (24
passages written for this purpose, or a file of yours) and on the answers to 24 plain instructions, teacher-forced.
The change in bits per byte says whether the text itself became less likely; a model can move without that.

Weights are compared, so no system prompt and no examples are used: a variant that is only a prompt costs nothing here.
The base is the unquantised one. For an adapter trained on a 4-bit base, what quantising moved is therefore counted too,
because that is how the variant runs.

Sources: LoRA Learns Less and Forgets Less (https://arxiv.org/abs/2405.09673); RL's Razor
(https://arxiv.org/abs/2509.04259) for KL as the measure that foretells forgetting.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from persona_lab.api import (
    BadInput,
    Divergence,
    EvalContext,
    Evaluator,
    Frozen,
    ItemScore,
    Message,
    Metric,
    Probe,
    Variant,
)

TEXTS = Path(__file__).parent / "texts"
MAX_BYTES = 5 * 2**20
QUICK_ITEMS = 8
LONGEST = 180
"""Words in a passage; a longer paragraph is cut into pieces."""
PIECE = 150
SHORTEST = 40
"""A shorter paragraph joins the one before it."""
MIN_WORDS = 20
"""A file with fewer says nothing."""


def passages_of(path: Path) -> list[str]:
    """A text file as passages of about 40 to 180 words: its paragraphs, joined where short and cut where long.

    Raises:
        BadInput: it is missing, empty, larger than 5 MB, not UTF-8, or holds hardly any words.
    """
    from persona_lab.api import read_text

    text = read_text(path, MAX_BYTES)
    if len(text.split()) < MIN_WORDS:
        raise BadInput(
            f"{path} holds {len(text.split())} words; at least {MIN_WORDS} are needed.", "Use a file with more text."
        )
    passages: list[str] = []
    for paragraph in text.split("\n\n"):
        words = paragraph.split()
        if not words:
            continue
        if passages and len(words) < SHORTEST and len(passages[-1].split()) + len(words) <= LONGEST:
            passages[-1] += f" {' '.join(words)}"
        elif len(words) <= LONGEST:
            passages.append(" ".join(words))
        else:
            passages += [" ".join(words[i : i + PIECE]) for i in range(0, len(words), PIECE)]
    return passages


class ForgettingConfig(Frozen):
    """What is read."""

    text_file: str = Field(
        "",
        description="A text file of your own to measure on, such as what the model must stay good at; empty: ours.",
    )
    max_items: int = Field(
        24, ge=4, le=200, description="Passages of text, and instructions, that are read; more is steadier and slower."
    )

    @field_validator("text_file")
    @classmethod
    def _readable(cls, value: str) -> str:
        """The absolute path of a file that can be used: what is wrong with it is said before anything is loaded."""
        if not value.strip():
            return ""
        path = Path(value.strip()).expanduser().resolve()
        try:
            passages_of(path)
        except BadInput as error:
            raise ValueError(str(error)) from error
        return str(path)


class Forgetting(Evaluator):
    """KL(base || variant) and change in bits per byte on generic text and on plain instructions."""

    id = "forgetting"
    title = "Forgetting"
    summary = "How far its predictions moved on text and instructions that have nothing to do with the character."
    rank = 60
    Config = ForgettingConfig

    def score(self, variant: Variant, probes: Sequence[Probe], ctx: EvalContext) -> Iterable[Metric]:
        """Metrics kl_text, kl_instructions (nats a token), bpb_change_* and bpb_base_text (bits a byte)."""
        limit = min(ctx.settings.max_items, QUICK_ITEMS) if ctx.quick else ctx.settings.max_items
        own = ctx.settings.text_file
        texts = _some(
            [(f"text-{i:02}", t) for i, t in enumerate(passages_of(Path(own)) if own else _prose(), 1)], limit
        )
        tasks = _some([(f"instruction-{i:02}", t) for i, t in enumerate(_instructions(), 1)], limit)
        ctx.phase(f"Forgetting of {variant.name}", None)
        items = [(Message(role="user", content=question),) for _, (question, _) in tasks]
        replies = [(messages, answer) for messages, (_, (_, answer)) in zip(items, tasks, strict=True)]
        moved = ctx.divergence(variant, [text for _, text in texts] + replies)
        of_text = _Moved("text", texts, moved[: len(texts)], f"passages of {Path(own).name}" if own else "plain prose")
        questions = [(name, question) for name, (question, _) in tasks]
        of_tasks = _Moved("instructions", questions, moved[len(texts) :], "answers to plain instructions")
        return [
            *(_kl(variant, part) for part in (of_text, of_tasks)),
            *(_change(variant, part) for part in (of_text, of_tasks)),
            _base(of_text),
        ]


class _Moved:
    """One kind of passages and how far each moved; passages without a counted token are left out."""

    def __init__(self, name: str, passages: Sequence[tuple[str, str]], moved: Sequence[Divergence], what: str) -> None:
        self.name, self.what = name, what
        self.rows = [(i, text, d) for (i, text), d in zip(passages, moved, strict=True) if d.tokens]

    def items(self, value: Literal["kl", "change", "base"]) -> list[ItemScore]:
        """A score a passage; each passage is its own cluster."""
        found = []
        for name, text, d in self.rows:
            number = {"kl": d.kl_per_token, "change": d.variant_bpb - d.base_bpb, "base": d.base_bpb}[value]
            note = f"{d.base_bpb:.3f} -> {d.variant_bpb:.3f} bits/byte, {d.tokens} tokens"
            found.append(ItemScore(id=name, cluster=name, value=number, text=text[:160], note=note))
        return found


def _kl(variant: Variant, part: _Moved) -> Metric:
    from persona_lab.api import mean_metric

    note = f"KL(base || variant) a token on {part.what}, without any system prompt. 0: nothing moved.{_why(variant)}"
    items = part.items("kl")
    metric = mean_metric(Forgetting.id, f"kl_{part.name}", items, "nats/token", "lower", reference=0.0, note=note)
    return metric.model_copy(update={"title": f"Moved on {_short(part)}"})


def _change(variant: Variant, part: _Moved) -> Metric:
    from persona_lab.api import mean_metric

    note = f"Bits per byte of {part.what} under the variant minus under the base. Above 0: less likely than before."
    items = part.items("change")
    metric = mean_metric(
        Forgetting.id,
        f"bpb_change_{part.name}",
        items,
        "bits/byte",
        "lower",
        reference=0.0,
        note=f"{note}{_why(variant)}",
    )
    return metric.model_copy(update={"title": f"Bits per byte change on {_short(part)}", "compared": False})


def _base(part: _Moved) -> Metric:
    from persona_lab.api import mean_metric

    note = f"Bits per byte of {part.what} under the base: how well it knew such text to begin with."
    metric = mean_metric(Forgetting.id, "bpb_base_text", part.items("base"), "bits/byte", "none", note=note)
    return metric.model_copy(update={"title": "Bits per byte of text, base"})


def _short(part: _Moved) -> str:
    return "generic text" if part.name == "text" else "plain instructions"


def _why(variant: Variant) -> str:
    if variant.kind in ("base", "prompt") and not variant.traits:
        return " Zero by definition: its weights are the base's."
    if variant.kind == "adapter" and variant.quantization:
        return " Compared with the unquantised base, so what the 4-bit weights cost is part of it."
    return ""


def _some(rows: Sequence[tuple[str, Any]], limit: int) -> list[tuple[str, Any]]:
    """At most `limit` of them, evenly spaced: the same ones for every variant."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


@lru_cache(maxsize=1)
def _prose() -> tuple[str, ...]:
    return tuple(passages_of(TEXTS / "passages.txt"))


@lru_cache(maxsize=1)
def _instructions() -> tuple[tuple[str, str], ...]:
    rows = json.loads((TEXTS / "instructions.json").read_text(encoding="utf-8"))
    return tuple((row["instruction"], row["answer"]) for row in rows)
