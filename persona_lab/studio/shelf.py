"""Prompts and styles: one small file in the home, `studio/shelf.json`; the starter set until it is edited."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from persona_lab.errors import BadInput, UnknownName
from persona_lab.formats import told, upgraded, written
from persona_lab.home import Home, write_atomic
from persona_lab.studio.records import PLAIN, Prompt, Style
from persona_lab.types import Frozen, slug

Item = TypeVar("Item", bound=Prompt | Style)
MOST_KEPT = 2000
MOST_BYTES = 20 * 2**20
STARTER = Path(__file__).with_name("starter.json")


class Kept(Frozen):
    """The file's content."""

    prompts: tuple[Prompt, ...] = ()
    styles: tuple[Style, ...] = ()


@lru_cache(maxsize=1)
def starter() -> Kept:
    """The prompts and styles that come with Persona Lab."""
    return Kept.model_validate_json(STARTER.read_bytes())


class Shelf:
    """Prompts and styles of one home; safe to use from several threads."""

    def __init__(self, home: Home) -> None:
        self.path = home.root / "studio" / "shelf.json"
        self._lock = threading.RLock()

    def kept(self) -> Kept:
        """Everything on the shelf.

        Raises:
            BadInput: the file is damaged.
        """
        with self._lock:
            if not self.path.exists():
                return starter()
            if self.path.stat().st_size > MOST_BYTES:
                raise BadInput(f"The prompt library {self.path} is larger than 20 MB.", "Move it away to start anew.")
            try:
                return upgraded("shelf", self.path.read_bytes(), Kept)
            except ValueError as error:
                raise BadInput(
                    f"The prompt library {self.path} cannot be read: {told(error)}.",
                    "Mend it, or move it away to start with the prompts that come with Persona Lab.",
                ) from error

    def prompts(self, tags: Iterable[str] = ()) -> list[Prompt]:
        """Prompts that have one of the tags; all of them where no tag is asked for."""
        wanted = {tag.strip().lower() for tag in tags}
        return [p for p in self.kept().prompts if not wanted or wanted.intersection(p.tags)]

    def tags(self) -> list[str]:
        """Every tag in use, in alphabetical order."""
        return sorted({tag for prompt in self.kept().prompts for tag in prompt.tags})

    def styles(self) -> list[Style]:
        """`As it is` first, then the bundles."""
        return [PLAIN, *self.kept().styles]

    def prompt(self, name: str) -> Prompt:
        """A prompt by its id or name.

        Raises:
            UnknownName
        """
        return _find("prompt", name, self.kept().prompts)

    def style(self, name: str) -> Style:
        """A style by its id or name.

        Raises:
            UnknownName
        """
        return _find("style", name, self.styles())

    def save_prompt(self, name: str, text: str, tags: Sequence[str] = (), prompt_id: str = "") -> Prompt:
        """Add a prompt, or replace the one with this id.

        Raises:
            BadInput: something is missing or too long, or another has this name.
        """
        with self._lock:
            kept = self.kept()
            chosen = prompt_id or _free(slug(name, "prompt"), [p.id for p in kept.prompts])
            made = _checked({"id": chosen, "name": name, "text": text, "tags": _clean(tags)})
            self._write(kept.model_copy(update={"prompts": _placed(made, kept.prompts, "prompt")}))
            return made

    def save_style(self, style: Style) -> Style:
        """Add a style, or replace the one with its id; an empty-looking id such as `new` gets one of its name.

        Raises:
            BadInput: another has this name, or it is the plain one.
        """
        with self._lock:
            kept = self.kept()
            if style.id == PLAIN.id or style.name.lower() == PLAIN.name.lower():
                raise BadInput(f"The style {PLAIN.name!r} stays as it is.", "Save it under another name.")
            chosen = style
            if style.id == "new":
                free = _free(slug(style.name, "style"), [PLAIN.id, "new", *(s.id for s in kept.styles)])
                chosen = style.model_copy(update={"id": free})
            self._write(kept.model_copy(update={"styles": _placed(chosen, kept.styles, "style")}))
            return chosen

    def remove(self, kind: Literal["prompts", "styles"], item_id: str) -> None:
        """Take a prompt or a style off the shelf; batches made with it keep it.

        Raises:
            UnknownName
        """
        with self._lock:
            kept = self.kept()
            items: Sequence[Prompt | Style] = kept.prompts if kind == "prompts" else kept.styles
            _find(kind[:-1], item_id, items)
            self._write(kept.model_copy(update={kind: tuple(item for item in items if item.id != item_id)}))

    def restore(self) -> int:
        """Bring back what came with Persona Lab and is gone; gives how many. Edited ones stay as they are."""
        with self._lock:
            kept, first = self.kept(), starter()
            prompts, styles = _missing(kept.prompts, first.prompts), _missing(kept.styles, first.styles)
            if prompts or styles:
                self._write(Kept(prompts=(*kept.prompts, *prompts), styles=(*kept.styles, *styles)))
            return len(prompts) + len(styles)

    def _write(self, kept: Kept) -> None:
        for kind, items in (("prompts", kept.prompts), ("styles", kept.styles)):
            if len(items) > MOST_KEPT:
                raise BadInput(f"There is room for {MOST_KEPT} {kind}.", "Delete some first.")
        write_atomic(self.path, written("shelf", kept, indent=1))


def _missing(kept: Sequence[Item], first: Sequence[Item]) -> list[Item]:
    taken = {item.id for item in kept} | {item.name.lower() for item in kept}
    return [item for item in first if item.id not in taken and item.name.lower() not in taken]


def _find(kind: str, name: str, items: Sequence[Item]) -> Item:
    for item in items:
        if name in (item.id, item.name):
            return item
    raise UnknownName(kind, name, [item.id for item in items])


def _placed(item: Item, items: Sequence[Item], kind: str) -> tuple[Item, ...]:
    others = [other for other in items if other.id != item.id]
    if any(other.name.lower() == item.name.lower() for other in others):
        raise BadInput(f"There is another {kind} called {item.name!r}.", "Choose another name.")
    if len(others) == len(items):
        return (*items, item)
    placed = list(items)
    placed[[other.id for other in items].index(item.id)] = item
    return tuple(placed)


def _free(wanted: str, taken: Sequence[str]) -> str:
    number, candidate = 1, wanted
    while candidate in taken:
        number += 1
        candidate = f"{wanted}-{number}"
    return candidate


def _clean(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tag.strip().lower() for tag in tags if tag.strip()))


def _checked(values: dict[str, object]) -> Prompt:
    try:
        return Prompt.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise BadInput(f"This prompt cannot be kept: {told}.", "Give it a name and a text.") from error
