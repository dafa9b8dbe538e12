"""Forms from schemas: labels, bounds, typing and errors, without a page."""

from __future__ import annotations

from typing import Literal

import gradio as gr
import pytest
from pydantic import Field

from persona_lab.errors import BadSetting
from persona_lab.settings import validate_settings
from persona_lab.types import FitSettings, Frozen
from persona_lab.ui.forms import as_text, component, fields_of, marks_style, settings_from


class Everything(Frozen):
    """One field of each kind."""

    rank: int = Field(16, ge=1, le=256, description="How big.")
    rate: float = Field(5e-4, gt=0, le=1, description="How fast.")
    careful: bool = Field(False, description="Whether.")
    mode: Literal["a", "b"] = Field("a", description="Which.")
    modules: tuple[str, ...] = Field(("q", "v"), description="Where.")
    limit: int | None = Field(None, ge=0, description="How far.")
    title: str = Field("x", description="What.")


FIELDS = fields_of(Everything)
BY_NAME = {field.name: field for field in FIELDS}
UNTOUCHED = {
    field.name: field.default if field.kind in ("bool", "choice") else as_text(field.default) for field in FIELDS
}


def test_fields_carry_kind_help_and_bounds() -> None:
    kinds = {name: field.kind for name, field in BY_NAME.items()}
    assert kinds == {
        "rank": "int",
        "rate": "float",
        "careful": "bool",
        "mode": "choice",
        "modules": "json",
        "limit": "int",
        "title": "text",
    }
    assert BY_NAME["rank"].info == "How big. (1 to 256)"
    assert BY_NAME["rate"].info == "How fast. (above 0 to 1)"
    assert BY_NAME["mode"].choices == ("a", "b")
    assert BY_NAME["limit"].optional


def test_first_look_fields_come_first() -> None:
    assert [field.name for field in fields_of(FitSettings)[:3]] == ["epochs", "learning_rate", "batch_size"]


def test_an_untouched_form_changes_nothing() -> None:
    assert settings_from(FIELDS, UNTOUCHED) == {}
    fit = fields_of(FitSettings)
    shown = {f.name: f.default if f.kind in ("bool", "choice") else as_text(f.default) for f in fit}
    assert settings_from(fit, shown) == {}


def test_typed_values_reach_the_config_unrounded() -> None:
    typed = UNTOUCHED | {"rank": "8", "rate": "3e-5", "careful": True, "mode": "b", "modules": "q, k,", "limit": "7"}
    settings = settings_from(FIELDS, typed)
    config = validate_settings(Everything, settings, "test")
    assert config == Everything(rank=8, rate=3e-5, careful=True, mode="b", modules=("q", "k"), limit=7)


def test_a_decimal_comma_is_a_decimal_point() -> None:
    assert settings_from(FIELDS, UNTOUCHED | {"rate": "0,01"}) == {"rate": 0.01}


def test_every_unreadable_field_is_named_at_once() -> None:
    with pytest.raises(BadSetting) as caught:
        settings_from(FIELDS, UNTOUCHED | {"rank": "many", "rate": "1e", "limit": "2.5"})
    assert dict(caught.value.problems) == {
        "rank": "'many' is not a number",
        "rate": "'1e' is not a number",
        "limit": "'2.5' is not a whole number",
    }


def test_infinity_and_nan_are_not_numbers() -> None:
    for text in ("nan", "inf", "-Infinity"):
        with pytest.raises(BadSetting):
            settings_from(FIELDS, UNTOUCHED | {"rank": text})


def test_errors_stand_beside_their_field_escaped() -> None:
    style = marks_style({"set-lora-rank": 'not <b>that</b> "x" }'})
    assert style.startswith("<style>#set-lora-rank input")
    assert style.endswith("</style>")
    # what was typed can end neither the text nor the sheet
    assert not any(sign in style[len("<style>") : -len("</style>")] for sign in ("<", ">", '"x"', "</"))
    assert r"\3c b\3e that" in style
    assert marks_style({}) == ""


def test_components_have_labels_and_full_precision() -> None:
    made = {field.name: component(field) for field in FIELDS}
    assert isinstance(made["careful"], gr.Checkbox)
    assert isinstance(made["mode"], gr.Dropdown)
    assert made["rate"].value == "0.0005"
    assert all(widget.label for widget in made.values())
