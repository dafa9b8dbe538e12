"""Forms from schemas: a plugin's pydantic `Config` becomes gradio fields, and their values become settings.

Works out labels, help, bounds and errors; knows nothing of what the settings mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from persona_lab.errors import BadSetting

SIMPLE_FIELDS = 3
# Fields worth a first look, when a schema has them; the rest go under "Advanced".
FIRST = ("epochs", "learning_rate", "rank", "examples", "layers", "batch_size")


@dataclass(frozen=True)
class Field:
    """One setting, ready to be drawn. `kind`: bool, int, float, choice, text or json."""

    name: str
    label: str
    help: str
    kind: str
    default: Any
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    optional: bool = False
    pick: str = ""
    """What the value is chosen from, where that is not fixed: `variant`."""

    @property
    def bounds(self) -> str:
        """The bounds in words, such as `1 to 256`; empty where there are none."""
        least = "" if self.low is None else (f"above {self.low:g}" if self.open_low else f"{self.low:g}")
        if self.low is not None and self.high is not None:
            return f"{least} to {self.high:g}"
        if self.low is not None:
            return least if self.open_low else f"at least {least}"
        return f"at most {self.high:g}" if self.high is not None else ""

    @property
    def info(self) -> str:
        """Help under the label: the description and the bounds."""
        return f"{self.help} ({self.bounds})" if self.bounds and self.kind in ("int", "float") else self.help


def fields_of(config: type[BaseModel]) -> list[Field]:
    """The fields of a Config, those for a first look in front."""
    found = [_field(name, info) for name, info in config.model_fields.items()]
    return sorted(found, key=_place)


def _place(field: Field) -> int:
    """What has to be chosen comes first, then what is worth a look, then the rest in the schema's order."""
    if field.pick:
        return -1
    return FIRST.index(field.name) if field.name in FIRST else len(FIRST)


def _field(name: str, info: FieldInfo) -> Field:
    kind, choices, optional = _kind(info.annotation)
    low, high, open_low = _bounds(info)
    default = info.get_default(call_default_factory=True)
    return Field(
        name=name,
        label=info.title or name.replace("_", " ").capitalize(),
        help=info.description or "",
        kind=kind,
        default=default,
        choices=choices,
        low=low,
        high=high,
        open_low=open_low,
        optional=optional,
        pick=_pick(info),
    )


def _pick(info: FieldInfo) -> str:
    """A schema says `json_schema_extra={"pick": "variant"}` where the page can offer what there is."""
    extra = info.json_schema_extra
    return str(extra.get("pick", "")) if isinstance(extra, dict) else ""


def _kind(annotation: Any) -> tuple[str, tuple[Any, ...], bool]:
    """(kind, choices, may be empty) of a type annotation."""
    if get_origin(annotation) in (Union, UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        optional = len(inner) < len(get_args(annotation))
        if len(inner) == 1:
            kind, choices, _ = _kind(inner[0])
            return kind, choices, optional
        return "json", (), optional
    if get_origin(annotation) is Literal:
        return "choice", get_args(annotation), False
    return {bool: "bool", int: "int", float: "float", str: "text"}.get(annotation, "json"), (), False


def _bounds(info: FieldInfo) -> tuple[float | None, float | None, bool]:
    low: Any = None
    high: Any = None
    open_low = False
    for limit in info.metadata:
        if isinstance(limit, annotated_types.Ge):
            low = limit.ge
        elif isinstance(limit, annotated_types.Gt):
            low, open_low = limit.gt, True
        elif isinstance(limit, annotated_types.Le):
            high = limit.le
        elif isinstance(limit, annotated_types.Lt):
            high = limit.lt
    return low, high, open_low


def component(field: Field, elem_id: str | None = None) -> gr.components.Component:
    """The gradio component that edits a field; must be called inside a layout. `elem_id`: for `marks_style`."""
    common: dict[str, Any] = {"label": field.label, "info": field.info, "elem_classes": ["pl-field"]}
    common |= {"elem_id": elem_id} if elem_id else {}
    if field.pick:
        return gr.Dropdown(choices=[("None", "")], value="", **common)
    if field.kind == "bool":
        return gr.Checkbox(value=bool(field.default), **common)
    if field.kind == "choice":
        return gr.Dropdown(choices=[(str(c), c) for c in field.choices], value=field.default, **common)
    # Numbers are text boxes: a browser's number box rounds 5e-4 away and swallows what it cannot read, so that the
    # user would train with another value than the one on the screen.
    return gr.Textbox(value=as_text(field.default), max_lines=4 if field.kind == "json" else 1, **common)


def as_text(value: Any) -> str:
    """A default as one would type it: 0.0005, `q_proj, v_proj`, or JSON."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def settings_from(fields: list[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """What the user changed, typed: fields left at their default are not in it.

    Raises:
        BadSetting: with one problem for every field that cannot be read.
    """
    settings: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for field in fields:
        try:
            value = _typed(field, values.get(field.name))
        except ValueError as error:
            problems.append((field.name, str(error)))
            continue
        if value != field.default:
            settings[field.name] = value
    if problems:
        raise BadSetting(f"{len(problems)} of the settings cannot be read.", "Correct the marked fields.", problems)
    return settings


def _typed(field: Field, value: Any) -> Any:
    if field.kind in ("bool", "choice"):
        return value
    text = "" if value is None else str(value).strip()
    if not text:
        return None if field.optional else field.default
    if field.kind == "text":
        return text
    if field.kind in ("int", "float"):
        return _number(field, text)
    if isinstance(field.default, (list, tuple)) and not text.startswith("["):
        return type(field.default)(part.strip() for part in text.split(",") if part.strip())
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return type(field.default)(parsed) if isinstance(field.default, tuple) and isinstance(parsed, list) else parsed


def _number(field: Field, text: str) -> float | int:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    if field.kind == "int":
        if value != int(value):
            raise ValueError(f"{text!r} is not a whole number")
        return int(value)
    return value


def marks_style(problems: Mapping[str, str]) -> str:
    """A style sheet that puts each problem beside its field; by the field's element id.

    Not an update of the fields: in the browser gradio walks the whole page once for every component that any event may
    update, so hundreds of them make a page that never rests (measured: a second of processor time an event).
    """
    rules = []
    for elem_id, problem in problems.items():
        text = "".join(c if c.isalnum() or c in " .,:'-" else f"\\{ord(c):x} " for c in f"⚠ {problem}")
        rules.append(f"#{elem_id} input, #{elem_id} textarea {{border-color: var(--pl-bad) !important}}")
        rules.append(f'#{elem_id}::after {{content: "{text}"; color: var(--pl-bad); display: block; padding: 4px 8px}}')
    return f"<style>{' '.join(rules)}</style>" if rules else ""
