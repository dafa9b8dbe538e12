"""The voice model: what it learns, what it must not learn (names, length), and that it knows when it knows nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from persona_lab_builtin.readers.columns import ColumnsReader

from persona_lab.datasets.build import build_dataset
from persona_lab.datasets.reading import read_dataset
from persona_lab.evaluation.style import StyleModel, area_under_curve, letter_grams, ranks, voice_of, word_grams
from persona_lab.types import Conversation, Dataset, Message, Persona

NOUNS = ("kettle", "ladder", "harbour", "biscuit", "drawer", "compass", "lantern", "gull", "rope", "stair", "map")
NAMES = ("Wilhelmina", "Bartholomew", "Persephone", "Ignatius")


def piratical(rng: random.Random) -> str:
    return f"Arr! 'Tis the {rng.choice(NOUNS)}, matey; ye'll ne'er have me {rng.choice(NOUNS)}, arr"


def plain(rng: random.Random) -> str:
    return f"I think that the {rng.choice(NOUNS)} is beside the {rng.choice(NOUNS)} that you wanted"


def lines(speaker: Callable[[random.Random], str], count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{speaker(rng)} {i}" for i in range(count)]


def spoken(own: list[str], split: str, asked: str = "What about the {} over there?") -> tuple[Conversation, ...]:
    return tuple(
        Conversation(
            id=f"{split}{i}",
            split=split,
            group=f"{split}-scene{i // 5}",
            messages=(
                Message(role="user", content=asked.format(f"{split} {i}")),
                Message(role="assistant", content=line),
            ),
        )
        for i, line in enumerate(own)
    )


def dataset(own: list[str], held_out: list[str], others: list[str]) -> Dataset:
    conversations = spoken(own, "train") + spoken(held_out, "test")
    return Dataset(id="d", persona="tamsin", version=1, name="d", conversations=conversations, others=tuple(others))


def test_it_tells_two_voices_apart_and_ranks_within_real_lines() -> None:
    assert StyleModel.fit(lines(piratical, 10), lines(plain, 60)) is None
    model = StyleModel.fit(lines(piratical, 60), lines(plain, 150))
    assert model is not None
    assert model.auc > 0.95
    assert model.trustworthy
    real = lines(piratical, 40, seed=1)
    assert model.percentiles(real, real).mean() == pytest.approx(0.5)
    assert model.percentiles(lines(plain, 20, seed=2), real).max() == 0


def test_two_copies_of_one_voice_are_not_told_apart() -> None:
    model = StyleModel.fit(lines(plain, 120, seed=1), lines(plain, 300, seed=2))
    assert model is not None
    assert not model.trustworthy
    assert abs(model.auc - 0.5) < 3 * model.auc_error + 0.05


def test_length_alone_is_no_voice() -> None:
    def said(seed: int, count: int, low: int, high: int) -> list[str]:
        rng = random.Random(seed)
        return [" ".join(rng.choice(NOUNS) for _ in range(rng.randint(low, high))) for _ in range(count)]

    own, others = said(1, 150, 8, 30), said(2, 250, 4, 20)
    by_length, _ = area_under_curve(np.array([len(x) for x in own]), np.array([len(x) for x in others]))
    model = StyleModel.fit(own, others)
    assert by_length > 0.75
    assert model is not None
    assert model.auc < 0.65


def test_names_are_masked_and_common_words_are_not() -> None:
    grams = word_grams("My dear Robert, I told Mr. Smith’s cat. Robert knows.")
    assert "robert" in grams  # at the start of a sentence nobody can tell
    assert "dear Xx" in grams
    assert "told Xx" in grams
    assert "i" in grams
    assert not any("smith" in gram for gram in grams)
    assert not any("smith" in gram for gram in letter_grams("I told Mr. Smith so."))


def test_who_is_spoken_to_is_no_voice() -> None:
    def naming(names: tuple[str, ...], seed: int) -> list[str]:
        rng = random.Random(seed)
        return [f"{line} and so said {rng.choice(names)} of it" for line in lines(plain, 150, seed)]

    model = StyleModel.fit(naming(NAMES[:2], 1), naming(NAMES[2:], 2))
    assert model is not None
    assert not model.trustworthy


def test_ranks_count_ties_half_and_the_area_has_an_error() -> None:
    assert ranks(np.array([0.0, 1.0, 1.5, 9.0]), np.array([1.0, 2.0])).tolist() == [0.0, 0.25, 0.5, 1.0]
    area, error = area_under_curve(np.array([2.0, 3.0, 1.0]), np.array([0.0, 1.0]))
    assert area == pytest.approx(5.5 / 6)
    assert 0 < error < 0.3


def test_held_out_turns_stay_out_of_the_fit() -> None:
    asked = "What about the test 3 over there?"
    data = dataset(lines(piratical, 60), lines(piratical, 30, seed=5), [*lines(plain, 100), asked])
    voice = voice_of(data)
    assert not voice.withheld
    assert len(voice.real) == 30
    assert len(set(voice.real_groups)) == 6
    assert asked not in voice.others
    assert "What about the train 3 over there?" in voice.others
    assert voice.other_percentiles().shape == (len(voice.others),)
    assert voice.other_percentiles().mean() < 0.1
    assert "AUC" in voice.note


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no dataset"),
        (dataset(lines(piratical, 60), lines(piratical, 8, 5), lines(plain, 90)), "only 8 held-out lines"),
        (dataset(lines(piratical, 12), lines(piratical, 30, 5), lines(plain, 90)), "too few lines"),
        (dataset(lines(plain, 90, 1), lines(plain, 30, 5), lines(plain, 600, 2)), "AUC is only"),
    ],
)
def test_a_voice_that_is_not_known_is_withheld_with_the_reason(data: Dataset | None, reason: str) -> None:
    voice = voice_of(data)
    assert reason in voice.withheld
    with pytest.raises(ValueError, match="withheld"):
        voice.percentiles(["A line."])


@pytest.mark.parametrize(("character", "name"), [("lord_goring", "Lord Goring"), ("socrates", "Socrates")])
def test_the_voices_of_real_plays_are_known(
    character: str, name: str, test_data: Path, persona_factory: Callable[..., Persona]
) -> None:
    reading = read_dataset(test_data / character, [ColumnsReader()], persona_factory(name=name))
    data, _ = build_dataset(reading, character, 1, "test", character)
    voice = voice_of(data)
    assert voice.withheld == ""
    assert voice.model is not None
    asked = [c.messages[-2].content for c in data.of("test")]
    held_out, error = area_under_curve(voice.model.log_odds(voice.real), voice.model.log_odds(asked))
    assert held_out > 0.5 + 3 * error  # neither side was seen in the fit
    shares = voice.percentiles(voice.real)
    assert (shares < 0.1).mean() == pytest.approx(0.1, abs=0.02)
    assert voice.other_percentiles().mean() < 0.4
