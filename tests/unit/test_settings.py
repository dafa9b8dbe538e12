"""Settings typed on the command line become a validated Config, with every problem named at once."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field, field_validator

from persona_lab.errors import BadSetting
from persona_lab.settings import parse_assignments, validate_settings
from persona_lab.types import FitSettings, Frozen


class Config(Frozen):
    """A small Config."""

    rank: int = Field(16, ge=1, le=256, description="Rank.")
    targets: list[str] = Field(["all"], description="Targets.")
    note: str | None = Field(None, description="Note.")


def test_strings_become_the_fields_types() -> None:
    config = validate_settings(Config, parse_assignments(["rank=8", 'targets=["q", "v"]', "note=a=b"]), "x")
    assert config == Config(rank=8, targets=["q", "v"], note="a=b")


def test_every_problem_is_named_at_once_with_the_nearest_key() -> None:
    with pytest.raises(BadSetting) as caught:
        validate_settings(FitSettings, {"epoch": "1", "batch_size": "0", "learning_rate": "fast"}, "strategy 'lora'")
    text = str(caught.value)
    assert "did you mean 'epochs'" in text
    assert "batch_size" in text
    assert "'fast'" in text
    assert {field for field, _ in caught.value.problems} == {"epoch", "batch_size", "learning_rate"}


def test_a_pair_without_a_value_says_how_to_write_it() -> None:
    with pytest.raises(BadSetting, match="--set key=value"):
        parse_assignments(["epochs"])


def test_every_builtin_setting_is_described_and_bounded(home) -> None:
    from persona_lab.plugins import Plugins

    plugins = Plugins.load(home.plugins)
    for part in plugins.all("strategy"):
        for name, field in part.Config.model_json_schema()["properties"].items():
            assert field.get("description"), f"{part.id}.{name} has no description"
            assert "default" in field, f"{part.id}.{name} has no default"
            if field.get("type") in ("integer", "number"):
                bounds = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} & set(field)
                assert bounds, f"{part.id}.{name} has no bounds"


def test_a_plugins_own_check_speaks_in_its_own_words() -> None:
    class Own(BaseModel):
        file: str = ""

        @field_validator("file")
        @classmethod
        def _there(cls, value: str) -> str:
            raise ValueError(f"There is no file {value}. Check the path.")

    with pytest.raises(BadSetting) as error:
        validate_settings(Own, {"file": "/nowhere.txt"}, "evaluator 'mine'")
    assert "file: There is no file /nowhere.txt. Check the path." in error.value.message
    assert "value error" not in error.value.message.lower()
