"""Looks through a home, one kind of thing after the other, and says what is wrong with it. Changes nothing itself."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from persona_lab.catalog import SUMS, read_variant
from persona_lab.chats import files as records
from persona_lab.chats.records import Feedback, SavedChat, Vote
from persona_lab.checkup.findings import (
    Finding,
    Kind,
    Quarantine,
    Trouble,
    Troubles,
    damaged_lines,
    keep_whole_lines,
    reason,
)
from persona_lab.datasets.held_out import LEDGER, Entry
from persona_lab.datasets.store import load_dataset
from persona_lab.errors import BadInput, BadModel
from persona_lab.events import AnyEvent
from persona_lab.formats import NewerFormat, upgraded, written
from persona_lab.home import Home, write_atomic
from persona_lab.jobs import ACTIVE, read_job
from persona_lab.jobs import view as view_run
from persona_lab.library import Library, Row, Table
from persona_lab.models.cache import MARKER as MODEL_MARKER
from persona_lab.models.weights import fingerprint, read_header, safetensors_files, sha256
from persona_lab.outcomes import variant_of
from persona_lab.personas.cards import card_to_json, read_card
from persona_lab.personas.store import CARD, load_persona
from persona_lab.personas.versions import versions
from persona_lab.preferences import FILE as SETTINGS
from persona_lab.preferences import Preferences
from persona_lab.studio.records import Batch, Rating
from persona_lab.studio.records import Row as StudioRow
from persona_lab.studio.shelf import Kept
from persona_lab.types import Artifact, DatasetSummary

LEFTOVER_SECONDS = 600.0
"""A temporary file that was not touched for so long is nobody's."""
QUICK_BYTES = 8 * 2**20
"""Datasets up to this size are read whole each time; larger ones with `deep`."""
UPDATE = "Update Persona Lab; it was left alone."
TRAIN_AGAIN = "Put it back from a backup made with --weights, or train it again"
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


class Looking:
    """One look through a home.

    Args:
        library: opened; for reading only, unless its rows are to be repaired.
        deep: also compare the checksums of weights and checkpoints, and read large datasets.
    """

    def __init__(self, home: Home, library: Library, quarantine: Quarantine, deep: bool) -> None:
        self.home, self.library, self.quarantine, self.deep = home, library, quarantine, deep
        self.active = set(self._active())

    def all(self) -> Troubles:
        """Everything that is not as it should be."""
        for look in (
            self.rows, self.personas, self.datasets, self.runs, self.variants, self.models, self.talk, self.studio,
            self.small_files, self.cache, self.leftovers,
        ):  # fmt: skip
            yield from look()

    # --- helpers -------------------------------------------------------------------------------------

    def _path(self, path: Path) -> str:
        return path.relative_to(self.home.root).as_posix()

    def _aside(self, kind: Kind, path: Path, what: str, then: str = "") -> Trouble:
        """A thing that is put aside, after which `then` holds."""
        remedy = f"It is put aside. {then}".strip()
        finding = Finding(kind=kind, path=self._path(path), what=what, remedy=remedy)
        return Trouble(finding, lambda: self.quarantine.put(path, what))

    def _unreadable(self, kind: Kind, path: Path, error: Exception, then: str = "", what: str = "It") -> Trouble:
        """A thing that cannot be read: put aside, but for one that a newer Persona Lab wrote, which is whole."""
        said = f"{what} cannot be read: {reason(error)}"
        if _newer(error):
            return self._named(kind, path, said, UPDATE)
        return self._aside(kind, path, said, then)

    def _lines(self, kind: Kind, path: Path, usable: Callable[[bytes], object]) -> Troubles:
        if not path.is_file():
            return
        count = damaged_lines(path, usable)
        if count:
            what = f"{count} of its lines cannot be read."
            finding = Finding(kind=kind, path=self._path(path), what=what, remedy="Its whole lines are kept.")
            yield Trouble(finding, lambda: keep_whole_lines(path, usable, self.quarantine, what))

    def _named(self, kind: Kind, path: Path, what: str, remedy: str) -> Trouble:
        return Trouble(Finding(kind=kind, path=self._path(path), what=what, remedy=remedy, mendable=False))

    def _active(self) -> list[str]:
        found = []
        for path in self.home.root.glob("runs/*/job.json"):
            try:
                if view_run(path.parent).status in ACTIVE:
                    found.append(path.parent.name)
            except (OSError, ValueError):
                continue
        return found

    # --- the library's rows --------------------------------------------------------------------------

    def rows(self) -> Troubles:
        """Rows whose files are gone."""
        for table, place in _PLACES.items():
            for row in self.library.all(table):
                path = place(self.home, row)
                if not path.is_file():
                    yield self._row(table, row, f"The library names it, and {self._path(path)} is gone.")

    def _row(self, table: Table, row: Row, what: str) -> Trouble:
        def act() -> str:
            told = self.quarantine.keep_row(table, row, what)
            self.library.remove(table, row["id"])
            return told

        where, remedy = f"{table} row {row['id']}", "The row is put aside."
        return Trouble(Finding(kind=_ROW_KINDS[table], path=where, what=what, remedy=remedy), act)

    # --- personas and data ---------------------------------------------------------------------------

    def personas(self) -> Troubles:
        """Cards, probes and ledgers that cannot be read."""
        for folder in sorted((self.home.root / "personas").glob("*/")):
            yield from self._lines("persona", folder / "probes.jsonl", json.loads)
            yield from self._lines("persona", folder / LEDGER, lambda line: Entry(**_entry(line)))
            try:
                load_persona(folder)
            except BadInput as error:
                yield from self._card(folder, error)

    def _card(self, folder: Path, error: BadInput) -> Troubles:
        card = folder / CARD
        try:
            read_card(card)
        except BadInput:
            earlier = versions(folder)
            if not card.exists() and not earlier:
                yield self._named("persona", folder, "It has no card.", "Import the card again under the same id.")
                return
            what = f"Its card cannot be read: {reason(error)}"
            then = "The last earlier version of the card takes its place." if earlier else "Import the card again."

            def act() -> str:
                told = self.quarantine.put(card, what) if card.exists() else "it was gone"
                if earlier:
                    write_atomic(card, card_to_json(earlier[0].card))
                    return f"{told}; the version before {earlier[0].saved[:16]} is back"
                return told

            remedy = f"It is put aside. {then}"
            yield Trouble(Finding(kind="persona", path=self._path(card), what=what, remedy=remedy), act)
            return
        probes = folder / "probes.jsonl"
        if not probes.exists() or not damaged_lines(probes, json.loads):  # else its whole lines are kept
            yield self._named("persona", folder, reason(error), "Mend that file, or put it back from a backup.")

    def datasets(self) -> Troubles:
        """Datasets and their summaries that cannot be read."""
        for path in sorted(self.home.root.glob("personas/*/datasets/*.jsonl")):
            if self.deep or path.stat().st_size <= QUICK_BYTES:
                try:
                    load_dataset(path)
                except BadInput as error:
                    what = reason(error)
                    yield self._named("dataset", path, what, UPDATE) if _newer(error) else self._data(path, what)
        for path in sorted(self.home.root.glob("personas/*/datasets/*.summary.json")):
            yield from self._summary(path)

    def _data(self, path: Path, what: str) -> Trouble:
        """A dataset goes aside with its summary: a version is never half of what it was."""
        then = "Use an earlier version (`datasets use`), import the data again, or restore a backup."
        summary = path.with_suffix(".summary.json")

        def act() -> str:
            if summary.exists():
                self.quarantine.put(summary, "Its data cannot be read.")
            return self.quarantine.put(path, what)

        return Trouble(
            Finding(kind="dataset", path=self._path(path), what=what, remedy=f"It is put aside. {then}"), act
        )

    def _summary(self, path: Path) -> Troubles:
        data = path.with_name(path.name.removesuffix(".summary.json") + ".jsonl")
        if not data.exists():
            yield self._aside("dataset", path, "Its data is not there.")
            return
        try:
            upgraded("dataset summary", path.read_bytes(), DatasetSummary)
        except (OSError, ValueError) as error:
            what = f"It cannot be read: {reason(error)}"
            row = self.library.get("datasets", data.stem)
            if row is None or _newer(error):
                yield self._unreadable("dataset", path, error, "Import the data again; the data itself stays.")
                return

            def act() -> str:
                told = self.quarantine.put(path, what)
                write_atomic(path, written("dataset summary", DatasetSummary.model_validate(row), indent=1))
                return f"{told}; written again from the library"

            remedy = "It is written again from the library."
            yield Trouble(Finding(kind="dataset", path=self._path(path), what=what, remedy=remedy), act)

    # --- runs and what they make ---------------------------------------------------------------------

    def runs(self) -> Troubles:
        """Runs without a job, damaged logs and records, damaged checkpoints."""
        for folder in sorted((self.home.root / "runs").glob("*/")):
            if folder.name in self.active:
                continue
            if not (folder / "job.json").exists():
                yield self._aside("run", folder, "It was never begun: there is no job in it.", "Start it again.")
                continue
            try:
                read_job(folder)
            except (OSError, ValueError) as error:
                yield self._unreadable("run", folder, error, "A variant that came of it stays.", "Its job")
                continue
            yield from self._lines("run", folder / "events.jsonl", _EVENT.validate_json)
            if (folder / "exit.json").exists():
                yield from self._json("run", folder / "exit.json", "It is not needed.")
                if _ended_well(folder / "exit.json") and view_run(folder).status != "done":
                    what = "Its log is cut off: the run ended well, and the log does not say so."
                    remedy = "What it made stays. Resume the run to have it done again, or leave it as it is."
                    yield self._named("run", folder / "events.jsonl", what, remedy)
            for checkpoint in sorted((folder / "checkpoints").glob("*/*/")):
                if checkpoint.name.startswith("."):
                    continue
                wrong = checkpoint_damage(checkpoint, self.deep)
                if wrong:
                    yield self._aside("checkpoint", checkpoint, wrong, "The run goes on from an earlier one.")

    def variants(self) -> Troubles:
        """Variants whose description or weights are damaged or gone."""
        for folder in sorted((self.home.root / "variants").glob("*/")):
            path = folder / "variant.json"
            try:
                variant = read_variant(folder)
            except (OSError, ValueError) as error:
                yield self._description(folder, path, error)
                continue
            if not variant.path:
                continue
            again = f"{TRAIN_AGAIN} (strategy {variant.strategy}, seed {variant.seed}, data {variant.dataset})."
            wrong = weights_damage(folder, variant.kind != "prompt", variant.fingerprint, self.deep)
            if wrong:
                yield self._named("variant", folder / "weights", wrong, again)

    def _description(self, folder: Path, path: Path, error: Exception) -> Trouble:
        what = f"Its description is gone or cannot be read: {reason(error)}"
        if _newer(error):
            return self._named("variant", path, what, UPDATE)
        try:
            run = view_run(self.home.run(folder.name))
            made = variant_of(run, Artifact.model_validate(run.result["artifact"]), folder)
        except Exception:  # noqa: BLE001 - whatever is wrong with the run, nothing can be made of it
            remedy = "Put it back from a backup: its weights stay."
            if path.exists():
                return self._aside("variant", path, what, remedy)
            return self._named("variant", folder, what, remedy)

        def act() -> str:
            told = self.quarantine.put(path, what) if path.exists() else "it was gone"
            write_atomic(path, written("variant", made, indent=1))
            return f"{told}; written again from the records of its run"

        return Trouble(
            Finding(kind="variant", path=self._path(path), what=what, remedy="It is written again from its run."), act
        )

    def models(self) -> Troubles:
        """Models that are half-made or cut off."""
        for folder in sorted((self.home.root / "models").glob("*/")):
            if folder.name.startswith("."):
                continue
            again = "It is fetched again when it is needed."
            if not (folder / MODEL_MARKER).is_file():
                yield self._aside("model", folder, "It was never finished.", again)
                continue
            try:
                for file in safetensors_files(folder):
                    read_header(file)
            except (BadModel, OSError) as error:
                yield self._aside("model", folder, reason(error), f"{again} A foundation has to be trained again.")

    # --- talk, studio, the rest ----------------------------------------------------------------------

    def talk(self) -> Troubles:
        """Votes, conversations and feedback that cannot be read."""
        kinds: tuple[tuple[str, Kind, type[BaseModel]], ...] = (
            ("votes", "vote", Vote), ("chats", "conversation", SavedChat), ("feedback", "feedback", Feedback),
        )  # fmt: skip
        for name, kind, model in kinds:
            for path in sorted((self.home.root / name).glob("*.json")):
                try:
                    upgraded(records.KINDS[model.__name__], path.read_bytes(), model)
                except (OSError, ValueError) as error:
                    yield self._unreadable(kind, path, error, "Put it back from a backup.")

    def studio(self) -> Troubles:
        """Batches and the prompt library."""
        root = self.home.root / "studio"
        if (root / "shelf.json").exists():
            then = "The studio begins with the prompts that come with Persona Lab."
            yield from self._model("studio", root / "shelf.json", "shelf", Kept, then)
        for folder in sorted((root / "batches").glob("*/")):
            if not (folder / "batch.json").exists():
                yield self._aside("studio", folder, "It was never begun: there is no batch.json in it.")
                continue
            yield from self._model("studio", folder / "batch.json", "batch", Batch, "Its replies stay in the folder.")
            yield from self._lines("studio", folder / "rows.jsonl", StudioRow.model_validate_json)
            yield from self._lines("studio", folder / "ratings.jsonl", Rating.model_validate_json)

    def _model(self, kind: Kind, path: Path, name: str, model: type[BaseModel], then: str) -> Troubles:
        try:
            upgraded(name, path.read_bytes(), model)
        except (OSError, ValueError) as error:
            yield self._unreadable(kind, path, error, then)

    def _json(self, kind: Kind, path: Path, then: str) -> Troubles:
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            yield self._unreadable(kind, path, error, then)

    def small_files(self) -> Troubles:
        """Settings, the order of the queue, measured speeds."""
        root = self.home.root
        if (root / SETTINGS).exists():
            yield from self._model("settings", root / SETTINGS, "settings", Preferences, "The defaults hold again.")
        others = {"queue.json": "Runs wait in the order they were made.", "calibration.json": "It is measured anew."}
        for name, then in others.items():
            if (root / name).exists():
                yield from self._json("settings", root / name, then)

    def cache(self) -> Troubles:
        """The kept scores."""
        path = self.home.score_cache
        if not path.exists():
            return
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
                told = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError:
            return  # in use
        except sqlite3.DatabaseError as error:
            told = reason(error)
        if told != "ok":
            yield self._aside("cache", path, f"It is damaged: {told}", "Scores are computed again.")

    def leftovers(self) -> Troubles:
        """What was being written when a process was killed."""
        newest, busy = time.time() - LEFTOVER_SECONDS, {("runs", run_id) for run_id in self.active}
        skipped = {"quarantine", "replaced", "trash"}
        if self.active:  # a worker may be fetching one large file, beside which the folder's time stands still
            skipped.add("models")
        for where, folders, names in os.walk(self.home.root):
            inside = Path(where).relative_to(self.home.root).parts
            if inside and (inside[0] in skipped or inside[:2] in busy):
                folders[:] = []
                continue
            for name in [*folders, *names]:
                path = Path(where) / name
                temporary = name.startswith(".") and (name.endswith(".tmp") or name.startswith((".gone-", ".restore-")))
                if (temporary or name == ".reserve") and path.lstat().st_mtime < newest:
                    yield self._aside("leftover", path, "It was being written when a process ended.")
            folders[:] = [name for name in folders if not name.startswith(".")]


_PLACES: dict[Table, Callable[[Home, Row], Path]] = {
    "personas": lambda home, row: home.persona(row["id"]) / CARD,
    "datasets": lambda home, row: home.persona(row["persona"]) / "datasets" / f"{row['id']}.jsonl",
    "variants": lambda home, row: home.variant(row["id"]) / "variant.json",
    "votes": lambda home, row: home.root / "votes" / f"{row['id']}.json",
}
_ROW_KINDS: dict[Table, Kind] = {"personas": "persona", "datasets": "dataset", "variants": "variant", "votes": "vote"}


def _newer(error: BaseException) -> bool:
    return isinstance(error, NewerFormat) or isinstance(error.__cause__, NewerFormat)


def _ended_well(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["returncode"] == 0)
    except (ValueError, KeyError, TypeError):
        return False


def _entry(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("kind", "row", "dataset")):
        raise ValueError("no entry of a ledger")
    return {name: row[name] for name in ("kind", "row", "dataset")}


def checkpoint_damage(folder: Path, deep: bool) -> str:
    """What is wrong with a checkpoint, whoever it is for; empty: nothing.

    Args:
        deep: compare the checksums too, not only whether everything is there.
    """
    try:
        marker = json.loads((folder / "valid.json").read_bytes())
        for name, expected in marker["files"].items():
            if not (folder / name).is_file():
                return f"{name} is not there."
            if deep and sha256(folder / name) != expected:
                return f"{name} is not what was written."
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"It does not say that it is whole: {reason(error)}"
    return ""


def weights_damage(folder: Path, tensors: bool, known: str, deep: bool) -> str:
    """What is wrong with a variant's weights; empty: nothing.

    Args:
        tensors: it has safetensors (a prompt's pool of examples has none).
        known: the variant's fingerprint, for those without checksums.
    """
    weights = folder / "weights"
    try:
        sums = json.loads((folder / SUMS).read_bytes()) if (folder / SUMS).is_file() else {}
    except ValueError:
        sums = {}
    if not weights.is_dir():
        return "Its weights are gone."
    missing = [name for name in sums if not (weights / name).is_file()]
    if missing or (tensors and not safetensors_files(weights)):
        return f"Of its weights, {missing[0] if missing else 'the safetensors'} is gone."
    try:
        for file in safetensors_files(weights):
            read_header(file)
    except (BadModel, OSError) as error:
        return reason(error)
    if deep:
        changed = [name for name, expected in sums.items() if sha256(weights / name) != expected]
        if changed:
            return f"{changed[0]} is not what was written at the end of the training."
        if not sums and tensors and known and fingerprint(weights) != known:
            return "Its weights are not those that the training wrote."
    return ""
