"""What a user has set for a home, in one small file, `settings.json`; absent: the defaults. Every process reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from persona_lab.errors import BadInput, BadSetting
from persona_lab.formats import told, upgraded, written
from persona_lab.home import write_atomic

FILE = "settings.json"
MOST_THREADS = 256

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class Preferences(BaseModel):
    """Settings of a home. Unknown keys are ignored, so that an older Persona Lab can read a newer one's file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    default_base: Text = Field(
        "starter", description="The base model that a training begins with unless told otherwise."
    )
    blocked_plugins: tuple[Text, ...] = Field((), description="Plugins that are not loaded, by name.")
    threads: int | None = Field(
        None, ge=1, le=MOST_THREADS, description="Processor cores a training or chat may use; empty: all of them."
    )


def read_preferences(root: Path) -> Preferences:
    """The settings of the home in `root`.

    Raises:
        BadInput: the file is damaged.
    """
    path = root / FILE
    if not path.exists():
        return Preferences()
    try:
        return upgraded("settings", path.read_bytes(), Preferences)
    except ValueError as error:
        raise BadInput(
            f"The settings file {path} cannot be read: {told(error)}.",
            "Mend it, or delete it to have the defaults again.",
        ) from error


def write_preferences(root: Path, values: dict[str, object]) -> Preferences:
    """Change some settings; the others stay.

    Raises:
        BadSetting: a value is out of bounds; nothing was changed. BadInput, DiskFull
    """
    try:
        changed = Preferences.model_validate(read_preferences(root).model_dump() | values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}, not {e['input']!r}" for e in error.errors()
        )
        raise BadSetting(f"Some settings cannot be used: {problems}.", "Nothing was changed.") from error
    write_atomic(root / FILE, written("settings", changed, indent=1))
    return changed
