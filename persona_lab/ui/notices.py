"""Says what went wrong, where the user looks. Turns errors into paragraphs; renders nothing else."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from persona_lab.errors import BadSetting, PersonaLabError
from persona_lab.ui.html import esc

log = logging.getLogger(__name__)

CAUSES = {
    "out_of_memory": "Out of memory",
    "bad_data": "A problem with the data",
    "bad_model": "A problem with the model",
    "bad_setting": "A setting is not right",
    "bad_input": "That cannot be used",
    "will_not_fit": "There is not enough memory for this",
    "model_unavailable": "The model could not be fetched",
    "disk_full": "The disk is full",
    "cancelled": "Stopped",
    "interrupted": "Interrupted",
    "plugin": "A plugin failed",
    "locked": "Already open elsewhere",
    "bug": "Something unexpected went wrong",
}


def title_of(cause: str) -> str:
    """A cause (`PersonaLabError.cause`, `Failed.cause`) in words for people."""
    return CAUSES.get(cause, cause.replace("_", " ").capitalize() or "Something went wrong")


def explain(error: Exception) -> str:
    """One paragraph: what happened and what to do. Plain text."""
    if isinstance(error, BadSetting):
        told = [f"{field}: {message}" if field else message for field, message in error.problems]
        missing = [problem for problem in told if problem not in error.message]
        return " ".join(filter(None, (error.message, f"{'; '.join(missing)}." if missing else "", error.fix)))
    if isinstance(error, PersonaLabError):
        return str(error)
    return f"{type(error).__name__}: {error}. This is a bug; the terminal shows where it happened."


def problem_box(title: str, message: str, fix: str = "", tone: str = "bad") -> str:
    """A box with a bold title, what happened, and what to do. Arguments are plain text; returns HTML."""
    advice = f'<p class="pl-fix">{esc(fix)}</p>' if fix else ""
    return (
        f'<div class="pl-box pl-{tone}" role="alert"><strong>{esc(title)}</strong><p>{esc(message)}</p>{advice}</div>'
    )


def error_box(error: Exception) -> str:
    """`explain` as a box that stays on the page."""
    cause = error.cause if isinstance(error, PersonaLabError) else "bug"
    return problem_box(title_of(cause), explain(error))


def warn(error: Exception) -> None:
    """Show the error as a notification; unexpected ones also go to the terminal with their traceback."""
    if not isinstance(error, PersonaLabError):
        log.error("A handler of the page failed", exc_info=error)
    gr.Warning(esc(explain(error)), duration=12, title=title_of(getattr(error, "cause", "bug")))


def guarded(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a handler: an error becomes a notification and leaves its `outputs` as they are.

    The page's border: whatever a handler raises must reach the user, never vanish (so the broad catch).
    """

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return handler(*args, **kwargs)
            except Exception as error:  # noqa: BLE001
                warn(error)
                return gr.skip() if outputs <= 1 else tuple(gr.skip() for _ in range(outputs))

        return wrapper

    return decorate
