"""The studio of one home: what page and command line ask for. Runs batches one at a time on a thread of its own.

A batch that was being written when the page ended is `paused`: its rows are there, and it can be gone on with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persona_lab.errors import BadInput, PersonaLabError, UnknownName
from persona_lab.home import Home
from persona_lab.studio.records import PLAIN, Batch, BatchView, Prompt, Rating, Row, Style
from persona_lab.studio.running import Chat, write_rows
from persona_lab.studio.shelf import Shelf
from persona_lab.studio.store import BatchStore
from persona_lab.studio.taking import write_file
from persona_lab.types import Variant, slug

PAUSE_SECONDS = 5.0
"""How long `close` waits for the row being written."""


@dataclass
class _Work:
    """A batch that is being written in this process."""

    began: float = 0.0
    rows: int = 0
    stop: bool = False


class Studio:
    """Prompts, styles and batches.

    Args:
        chat: streams the replies to several requests.
        put_aside: (folder, id) -> None: moves a deleted batch to where it can be brought back from.
    """

    def __init__(self, home: Home, chat: Chat, put_aside: Callable[[Path, str], None]) -> None:
        self.shelf = Shelf(home)
        self.store = BatchStore(home)
        self._chat = chat
        self._put_aside = put_aside
        self._lock = threading.RLock()
        self._work: dict[str, _Work] = {}
        self._waiting: list[str] = []
        self._problems: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._closing = False

    # --- batches ---------------------------------------------------------------------------------

    def create(
        self,
        prompts: Sequence[Prompt],
        variants: Sequence[Variant],
        seeds: Sequence[int],
        style: Style = PLAIN,
        name: str = "",
        characters: Mapping[str, str] | None = None,
    ) -> Batch:
        """A new batch; nothing is written yet.

        Args:
            characters: names of the variants' personas by id.

        Raises:
            BadInput: something is missing, or there are too many rows.
        """
        for found, fix in (
            (prompts, "Choose a prompt or write one."),
            (variants, "Choose a variant."),
            (seeds, "Ask for at least one seed."),
        ):
            if not found:
                raise BadInput("There is nothing to generate.", fix)
        first = prompts[0].name
        title = name.strip()[:80] or (f"{first[:50]} and {len(prompts) - 1} more" if prompts[1:] else first)
        try:
            batch = Batch(
                id="new",
                name=title,
                prompts=tuple(prompts),
                variants=tuple(variants),
                seeds=tuple(dict.fromkeys(seeds)),
                style=style,
                characters=dict(characters or {}),
            )
        except ValidationError as error:
            wrong = error.errors()[0]
            told = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg'].lower()}"
            raise BadInput(f"This batch cannot be made: {told}.", "Ask for something else.") from error
        return self.store.add(batch)

    def batches(self) -> list[BatchView]:
        """Newest first; one whose file is damaged is left out."""
        found = []
        for batch_id in self.store.ids():
            try:
                found.append(self.view(batch_id))
            except BadInput:
                continue
        return found

    def view(self, batch_id: str) -> BatchView:
        """How far a batch is.

        Raises:
            UnknownName, BadInput
        """
        batch, rows = self.store.batch(batch_id), self.store.rows(batch_id)
        failed = sum(bool(row.error) for row in rows.values())
        done = len(rows) - failed
        with self._lock:
            work, waiting = self._work.get(batch_id), batch_id in self._waiting
        status: Any = "running" if work else "waiting" if waiting else "done" if done == batch.size else "paused"
        return BatchView(
            id=batch.id,
            name=batch.name,
            created=batch.created,
            style=batch.style.name,
            prompts=len(batch.prompts),
            variants=tuple(variant.name for variant in batch.variants),
            seeds=len(batch.seeds),
            total=batch.size,
            done=done,
            failed=failed,
            rated=len(self.store.ratings(batch_id)),
            status=status,
            seconds_left=_left(work, batch.size - done) if work else None,
            problem=self._problems.get(batch_id, ""),
            folder=str(self.store.folder(batch_id)),
        )

    def pulse(self, batch_id: str) -> str:
        """Changes whenever something of the batch does; cheap, for a clock to ask. Empty if there is no such batch."""
        try:
            folder = self.store.folder(batch_id)
        except UnknownName:
            return ""
        files = [folder / "rows.jsonl", folder / "ratings.jsonl"]
        sizes = [path.stat().st_size if path.exists() else 0 for path in files]
        with self._lock:
            state = (batch_id in self._work, batch_id in self._waiting, self._problems.get(batch_id))
        return f"{batch_id}/{sizes}/{state}"

    def rows(self, batch_id: str) -> list[Row]:
        """Rows written so far, in the order of prompts, seeds and variants.

        Raises:
            UnknownName, BadInput
        """
        known = self.store.rows(batch_id)
        batch = self.store.batch(batch_id)
        order = [
            f"p{p}-v{v}-s{seed}"
            for p in range(1, len(batch.prompts) + 1)
            for seed in batch.seeds
            for v in range(1, len(batch.variants) + 1)
        ]
        return [known[row_id] for row_id in order if row_id in known]

    def ratings(self, batch_id: str) -> dict[str, Rating]:
        """The rating of each rated row."""
        return self.store.ratings(batch_id)

    def rate(self, batch_id: str, row_id: str, **values: Any) -> Rating:
        """Change a row's `stars`, `verdict` or `note`; what is not named stays. On the disk when this returns.

        Raises:
            UnknownName. BadInput: no such row, or no such rating.
        """
        if row_id not in self.store.rows(batch_id):
            raise BadInput(f"Batch {batch_id!r} has no row {row_id!r}.")
        before = self.store.ratings(batch_id).get(row_id) or Rating(row=row_id)
        try:
            kept = before.model_dump(include={"stars", "verdict", "note"})
            rating = Rating.model_validate({"row": row_id, **kept, **values})
        except ValidationError as error:
            first = error.errors()[0]
            raise BadInput(f"This is no rating: {first['loc'][0]}: {first['msg'].lower()}.") from error
        self.store.add_rating(batch_id, rating)
        return rating

    def export(self, batch_id: str, format: str, out: Path) -> Path:
        """Write the rows with their ratings as `csv`, `jsonl` or `md`; gives the file.

        Raises:
            UnknownName, DiskFull
        """
        return write_file(self.store.batch(batch_id), self.rows(batch_id), self.ratings(batch_id), format, out)

    def delete(self, batch_id: str) -> None:
        """Put a batch aside; undo brings the last deleted thing back.

        Raises:
            UnknownName. BadInput: it is being written.
        """
        folder = self.store.folder(batch_id)
        if self._active(batch_id):
            raise BadInput(f"Batch {batch_id!r} is being written.", "Stop it first.")
        with self.store.writing(batch_id):
            pass  # refused where another process writes it
        self._put_aside(folder, batch_id)

    # --- writing ---------------------------------------------------------------------------------

    def run(self, batch_id: str, on_row: Callable[[Row], None] = lambda row: None) -> BatchView:
        """Write what is missing, here and now.

        Raises:
            UnknownName. BadInput: another process writes it. WorkFailed: nobody could answer. DiskFull
        """
        with self._lock:
            if self._active(batch_id):
                raise BadInput(f"Batch {batch_id!r} is being written already.", "Wait for it.")
            self._problems.pop(batch_id, None)
            work = self._work[batch_id] = _Work()
        self._write(batch_id, work, on_row)
        return self.view(batch_id)

    def _write(self, batch_id: str, work: _Work, on_row: Callable[[Row], None] = lambda row: None) -> None:
        try:
            batch = self.store.batch(batch_id)
            with self.store.writing(batch_id):
                work.began = time.monotonic()
                for row in write_rows(batch, self.store.rows(batch_id), self._chat, lambda: work.stop):
                    self.store.add_row(batch_id, row)
                    work.rows += 1
                    on_row(row)
        finally:
            with self._lock:
                del self._work[batch_id]

    def start(self, batch_id: str) -> None:
        """Write what is missing in the background, after the batches that were asked for before.

        Raises:
            UnknownName
        """
        self.store.folder(batch_id)
        with self._lock:
            if self._closing or self._active(batch_id):
                return
            self._problems.pop(batch_id, None)
            self._waiting.append(batch_id)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._loop, name="studio", daemon=True)
                self._thread.start()

    def stop(self, batch_id: str) -> None:
        """Stop writing; the rows that are done stay. Returns at once."""
        with self._lock:
            if batch_id in self._waiting:
                self._waiting.remove(batch_id)
            if batch_id in self._work:
                self._work[batch_id].stop = True

    def close(self) -> None:
        """Stop writing everything and wait a little for it."""
        with self._lock:
            self._closing = True
            for batch_id in [*self._waiting, *self._work]:
                self.stop(batch_id)
            thread = self._thread
        if thread is not None:
            thread.join(PAUSE_SECONDS)

    def _active(self, batch_id: str) -> bool:
        with self._lock:
            return batch_id in self._work or batch_id in self._waiting

    def _loop(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                batch_id = self._waiting.pop(0)
                work = self._work[batch_id] = _Work()
            try:
                self._write(batch_id, work)
            except (PersonaLabError, OSError, ValueError) as error:
                self._problems[batch_id] = str(error)


def _left(work: _Work, rows: int) -> float | None:
    """Seconds that the missing rows will take at the pace so far; None before the first."""
    if not work.rows:
        return None
    return (time.monotonic() - work.began) / work.rows * rows


def own_prompts(lines: Iterable[str]) -> list[Prompt]:
    """Prompts that are on no shelf, one a line.

    Raises:
        BadInput: one is too long.
    """
    found = []
    for number, line in enumerate((line.strip() for line in lines if line.strip()), 1):
        name = line if len(line) <= 60 else f"{line[:59].rstrip()}…"
        try:
            found.append(Prompt(id=f"own-{number}-{slug(line, 'prompt')[:32].strip('_-')}", name=name, text=line))
        except ValidationError as error:
            raise BadInput(f"Prompt {number} cannot be used: {error.errors()[0]['msg'].lower()}.") from error
    return found
