"""Every error Persona Lab raises on purpose: what happened, the value, and what to do next.

PersonaLabError                 exit 1   anything of ours
├── UserError                   exit 2   the caller can mend it by asking differently
│   ├── BadInput                         a file, row, card or dataset that cannot be used
│   ├── WillNotFit                       a run that is predicted to need more memory than there is
│   ├── BadSetting                       an unknown or out-of-bounds setting (lists every problem)
│   └── UnknownName                      no such persona, variant, strategy, ... (with the nearest match)
├── HomeLocked                  exit 1   another Persona Lab process owns this data home
├── WorkFailed                  exit 1   a run failed; `cause` names why
│   ├── BadModel                         a base model that cannot be loaded
│   ├── ModelUnavailable                 a base model that cannot be fetched (offline, not installed)
│   ├── OutOfMemory                      with the cheapest change that would fit
│   ├── DiskFull
│   ├── Diverged                         training went astray; `fix` names a better learning rate
│   ├── WorkerDied                       the worker process is gone without a word
│   └── PluginFailed                     a plugin raised; carries its name and traceback
└── Cancelled                   exit 130 the user asked for it
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class PersonaLabError(Exception):
    """Base of all deliberate errors.

    Args:
        message: what happened and the offending value, as one sentence.
        fix: what to do next, as one sentence; shown after the message.
    """

    exit_code: ClassVar[int] = 1
    cause: ClassVar[str] = "bug"

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class UserError(PersonaLabError):
    """The caller can mend it by asking differently."""

    exit_code = 2
    cause = "bad_input"


class BadInput(UserError):
    """A file, row, card or dataset that cannot be used."""

    cause = "bad_data"


class WillNotFit(UserError):
    """A run is predicted, beyond its error bar, to need more memory than there is; `fix` names what would fit."""

    cause = "will_not_fit"


class BadSetting(UserError):
    """One or more settings are unknown or out of bounds.

    Args:
        problems: one `(field, message)` pair for every offending setting.
    """

    cause = "bad_setting"

    def __init__(self, message: str, fix: str = "", problems: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message, fix)
        self.problems = tuple(problems)


class UnknownName(UserError):
    """No such persona, variant, strategy, ...: lists the choices and the nearest match."""

    cause = "bad_input"

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        known = sorted(choices)
        near = difflib.get_close_matches(name, known, n=1)
        if not known:
            fix = f"There is no {kind} yet."
        elif near:
            fix = f"Did you mean {near[0]!r}? Known: {', '.join(known[:20])}."
        else:
            fix = f"Known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}."
        super().__init__(f"There is no {kind} called {name!r}.", fix)


class HomeLocked(PersonaLabError):
    """Another Persona Lab process owns this data home."""

    cause = "locked"


class WorkFailed(PersonaLabError):
    """A run failed; `cause` names why."""


class BadModel(WorkFailed):
    """A base model that cannot be loaded (wrong format, damaged, unsafe)."""

    cause = "bad_model"


class ModelUnavailable(WorkFailed):
    """A base model that cannot be fetched: offline, or not installed."""

    cause = "model_unavailable"


class OutOfMemory(WorkFailed):
    """Memory ran out; `fix` names the cheapest change that would fit."""

    cause = "out_of_memory"


class DiskFull(WorkFailed):
    """The disk is full, or too full to start."""

    cause = "disk_full"


class Diverged(WorkFailed):
    """Training went astray: a loss or gradient that is no number, or a loss that runs away."""

    cause = "diverged"


class WorkerDied(WorkFailed):
    """The worker process is gone without a terminal record."""

    cause = "interrupted"


class PluginFailed(WorkFailed):
    """A plugin raised.

    Args:
        plugin: the plugin's name, as the Plugins tab shows it.
        details: the traceback, for authors.
    """

    cause = "plugin"

    def __init__(self, message: str, fix: str = "", plugin: str = "", details: str = "") -> None:
        super().__init__(message, fix)
        self.plugin = plugin
        self.details = details


class Cancelled(PersonaLabError):
    """The user asked for it."""

    exit_code = 130
    cause = "cancelled"
