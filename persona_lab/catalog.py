"""What the home holds: personas, datasets, variants and reports, as rows in the library and files beside them.

Files are the truth and rows the index: `recover` adds rows for what has files but no row, so a library restored from
its backup loses nothing, and a run that finished while no page was there still becomes a variant.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.advisor import Outcome, outcomes_of
from persona_lab.dataset_versions import IN_USE, in_use_first, take_prompts
from persona_lab.errors import BadInput, PersonaLabError, UnknownName
from persona_lab.formats import told, upgraded, written
from persona_lab.home import Home, disk_errors, write_atomic
from persona_lab.jobs import read_job
from persona_lab.jobs import view as view_run
from persona_lab.library import Library, Row
from persona_lab.models.weights import checksums
from persona_lab.outcomes import report_of, variant_of
from persona_lab.trash import Trash
from persona_lab.types import (
    Artifact,
    BaseModelInfo,
    Conversation,
    Dataset,
    DatasetSummary,
    Persona,
    PersonaSummary,
    ReportView,
    RunView,
    Variant,
    now,
)

if TYPE_CHECKING:
    from persona_lab.datasets.held_out import HeldOut
    from persona_lab.personas.probe_file import ProbeFile

log = logging.getLogger(__name__)

INSPECT_ROWS = 5
SUMS = "checksums.json"
"""Beside a variant's weights: the sha256 of each of their files, as they were when training ended."""
MOST_REPORTS, FRESH_SECONDS = 20, 30.0
"""Evaluations the advisor looks at: the newest."""


class Catalog:
    """Personas, datasets, variants and reports of one home; the engine's right hand."""

    def __init__(self, home: Home, library: Library) -> None:
        self.home = home
        self.library = library
        self.trash = Trash(home, library)
        self._outcomes: dict[str, tuple[float, tuple[Outcome, ...]]] = {}

    # --- personas --------------------------------------------------------------------------------

    def personas(self) -> list[PersonaSummary]:
        """The library's own personas, then the shipped examples; where an example stands does not change by its first
        use: a list that somebody chooses from at that moment must not move under the choice."""
        from persona_lab.personas.store import example_folders

        owned = [row["id"] for row in self.library.all("personas")]
        shipped = list(example_folders())
        mine = [(persona_id, True) for persona_id in owned if persona_id not in shipped]
        everyone = mine + [(persona_id, persona_id in owned) for persona_id in shipped]
        rows = []
        for persona_id, known in everyone:
            try:
                persona = self.persona(persona_id) if known else self._example(persona_id)
                rows.append(self._summary(persona, installed=known))
            except BadInput as error:  # it must not hide the others; the doctor names it
                log.warning("The persona %s is left out: %s", persona_id, error)
        return rows

    def _summary(self, persona: Persona, installed: bool) -> PersonaSummary:
        datasets = self.datasets(persona.id)
        tagline = (persona.field("creator_notes") or persona.field("description")).strip().split("\n")[0]
        counts = datasets[0].counts if datasets else {}
        return PersonaSummary(
            id=persona.id,
            name=persona.name,
            example=persona.example,
            installed=installed,
            tagline=tagline[:200],
            avatar=persona.avatar,
            conversations=sum(counts.get(split, 0) for split in ("train", "validation", "test")),
            variants=len(self.variants(persona.id)),
        )

    def has_persona(self, persona_id: str) -> bool:
        """Whether the library holds it."""
        return self.library.get("personas", persona_id) is not None

    def persona(self, persona_id: str) -> Persona:
        """A persona of the library, or a shipped example.

        Raises:
            UnknownName
        """
        from persona_lab.personas.store import example_folders, load_persona

        row = self.library.get("personas", persona_id)
        if row is not None:
            loaded = load_persona(self.home.persona(persona_id))
            return loaded.model_copy(update={"id": persona_id, "example": bool(row.get("example"))})
        examples = example_folders()
        if persona_id in examples:
            return self._example(persona_id)
        raise UnknownName(
            "persona", persona_id, sorted({r["id"] for r in self.library.all("personas")} | set(examples))
        )

    def _example(self, persona_id: str) -> Persona:
        from persona_lab.personas.store import example_folders, load_persona

        loaded = load_persona(example_folders()[persona_id])
        return loaded.model_copy(update={"id": persona_id, "example": True})

    def install_example(self, persona_id: str, read: Callable[[Path, Persona], Any]) -> None:
        """Copy a shipped example and its dataset into the home; does nothing if there is no such example."""
        from persona_lab.personas.store import example_folders

        folder = example_folders().get(persona_id)
        if folder is None:
            return
        persona = self._example(persona_id)
        avatar = folder / "avatar.png"
        self._write_persona(persona, avatar.read_bytes() if avatar.exists() else None)
        if (folder / "dataset.jsonl").exists():
            self.add_dataset(read(folder / "dataset.jsonl", persona), persona_id, "dataset.jsonl (shipped)")

    def example_dataset(self, persona_id: str, read: Callable[[Path, Persona], Any]) -> Dataset | None:
        """The dataset a shipped example would bring, without putting it into the home."""
        from persona_lab.datasets.build import build_dataset
        from persona_lab.personas.store import example_folders

        path = example_folders()[persona_id] / "dataset.jsonl"
        if not path.exists():
            return None
        reading = read(path, self._example(persona_id))
        return build_dataset(reading, persona_id, 1, f"{persona_id} v1", path.name)[0]

    def free_persona_id(self, wanted: str) -> str:
        """`wanted`, with a number where a persona or a shipped example has it."""
        from persona_lab.personas.store import example_folders

        taken = {row["id"] for row in self.library.all("personas")} | set(example_folders())
        number, candidate = 1, wanted
        while candidate in taken:
            number += 1
            candidate = f"{wanted}-{number}"
        return candidate

    def save_persona(self, persona: Persona, avatar_png: bytes | None) -> Persona:
        """Create or replace; an edited example is the user's own from then on."""
        return self._write_persona(persona.model_copy(update={"example": False}), avatar_png)

    def _write_persona(self, persona: Persona, avatar_png: bytes | None) -> Persona:
        from persona_lab.personas.store import save_persona

        save_persona(self.home.persona(persona.id), persona, avatar_png)
        row = self.library.get("personas", persona.id) or {"id": persona.id, "created": now()}
        self.library.put("personas", row | {"name": persona.name, "example": persona.example, "changed": now()})
        return self.persona(persona.id)

    def refreshed(self, persona_id: str) -> Persona:
        """The persona as its files have it, after these were changed; its row follows."""
        from persona_lab.personas.store import load_persona

        found = load_persona(self.home.persona(persona_id))
        row = self.library.get("personas", persona_id) or {"id": persona_id, "created": now()}
        self.library.put("personas", row | {"name": found.name, "example": False, "changed": now()})
        return self.persona(persona_id)

    # --- probes of one's own ---------------------------------------------------------------------

    def probes(self, persona_id: str) -> ProbeFile:
        """The persona's own probes; a shipped example's before it is installed.

        Raises:
            UnknownName
        """
        from persona_lab.personas.probe_file import probes_of
        from persona_lab.personas.store import example_folders

        if self.has_persona(persona_id):
            return probes_of(self.home.persona(persona_id))
        return probes_of(example_folders()[self.persona(persona_id).id])

    def save_probes(self, persona_id: str, file: ProbeFile) -> ProbeFile:
        """Replace the persona's own probes; their lines are held out from now on.

        Raises:
            BadSetting: with every problem. BadInput: a line is trained on. DiskFull
        """
        from persona_lab.datasets.held_out import check_untrained
        from persona_lab.personas.probe_file import write_probes

        known = set(self.probes(persona_id).replies)
        newest = self._newest(persona_id)
        if newest is not None:
            check_untrained([p.conversation for p in file.replies if p not in known], newest)
        write_probes(self.home.persona(persona_id), file)
        return self._probes_changed(persona_id)

    def undo_probes(self, persona_id: str) -> ProbeFile:
        """Put the probes before the last change back.

        Raises:
            BadInput: there is no earlier version.
        """
        from persona_lab.personas.probe_file import undo_probes

        undo_probes(self.home.persona(persona_id))
        return self._probes_changed(persona_id)

    def _probes_changed(self, persona_id: str) -> ProbeFile:
        self.held_out(persona_id)
        row = self.library.get("personas", persona_id) or {"id": persona_id}
        self.library.put("personas", row | {"example": False, "changed": now()})
        return self.probes(persona_id)

    # --- putting aside and bringing back ---------------------------------------------------------

    def delete_persona(self, persona_id: str) -> None:
        """Put a persona and its datasets aside.

        Raises:
            UnknownName
        """
        if not self.has_persona(persona_id):
            raise UnknownName("persona", persona_id, [row["id"] for row in self.library.all("personas")])
        datasets = [row for row in self.library.all("datasets") if row["persona"] == persona_id]
        rows: list[tuple[str, Row | None]] = [("datasets", row) for row in datasets]
        rows.append(("personas", self.library.get("personas", persona_id)))
        self.trash.put_aside(self.home.persona(persona_id), persona_id, rows)

    def delete_variant(self, variant_id: str) -> None:
        """Put a variant aside.

        Raises:
            UnknownName
        """
        found = self.find_variant(variant_id)
        if found is None:
            raise UnknownName("variant", variant_id, [variant.id for variant in self.variants()])
        row = self.library.get("variants", found.id)
        self.trash.put_aside(self.home.variant(found.id), found.id, [("variants", row)])

    # --- datasets --------------------------------------------------------------------------------

    def datasets(self, persona_id: str | None = None) -> list[DatasetSummary]:
        """Newest first; of one persona, before them the version in use, if another was chosen."""
        rows = [row for row in self.library.all("datasets") if persona_id in (None, row["persona"])]
        summaries = [DatasetSummary.model_validate(row) for row in rows]
        newest = newest_first(summaries)
        return in_use_first(newest, self.library.get("personas", persona_id)) if persona_id else newest

    def dataset_path(self, dataset_id: str) -> Path:
        """The dataset's file.

        Raises:
            UnknownName
        """
        row = self.library.get("datasets", dataset_id)
        if row is None:
            raise UnknownName("dataset", dataset_id, [r["id"] for r in self.library.all("datasets")])
        return self.home.persona(row["persona"]) / "datasets" / f"{dataset_id}.jsonl"

    def dataset(self, dataset_id: str) -> Dataset:
        """With its conversations.

        Raises:
            UnknownName
        """
        from persona_lab.datasets.store import load_dataset

        return load_dataset(self.dataset_path(dataset_id))

    def add_dataset(self, reading: Any, persona_id: str, source: str) -> DatasetSummary:
        """What a reader found, as a new version."""
        from persona_lab.datasets.build import build_dataset

        version = self.next_version(persona_id)
        ledger, earlier = self.held_out(persona_id), self._newest(persona_id)
        name = f"{persona_id} v{version}"
        dataset, summary = build_dataset(reading, persona_id, version, name, source, ledger, earlier)
        return self.keep_dataset(dataset, summary)

    def next_version(self, persona_id: str) -> int:
        """The number of the persona's next dataset."""
        versions = [row["version"] for row in self.library.all("datasets") if row["persona"] == persona_id]
        return max(versions, default=0) + 1

    def keep_dataset(self, dataset: Dataset, summary: DatasetSummary) -> DatasetSummary:
        """Write a new version, hold its test split out, and make it the one in use."""
        from persona_lab.datasets.held_out import hold_out
        from persona_lab.datasets.store import save_dataset

        persona_id = dataset.persona
        hold_out(self.home.persona(persona_id), dataset)  # before the dataset: no moment when it could be trained on
        path = self.home.persona(persona_id) / "datasets" / f"{dataset.id}.jsonl"
        save_dataset(path, dataset)
        write_atomic(path.with_suffix(".summary.json"), written("dataset summary", summary, indent=1))
        self.library.put("datasets", summary.model_dump(mode="json"))
        persona = self.library.get("personas", persona_id)
        if persona and persona.get(IN_USE):
            self.library.put("personas", persona | {IN_USE: ""})
        return summary

    def extend_dataset(
        self, persona_id: str, rows: Sequence[Conversation], source: str
    ) -> tuple[DatasetSummary | None, dict[str, str]]:
        """The newest dataset with more train rows, as a new version, and why rows were refused, by id.

        None: all were refused, and nothing was made. No row that repeats what is held out is added.

        Raises:
            BadInput: there is no dataset to extend.
        """
        from persona_lab.datasets.additions import extended, sort_out
        from persona_lab.datasets.held_out import check_training
        from persona_lab.personas.probe_file import probes_of
        from persona_lab.personas.store import adversarial_prompts

        known, newest = self.datasets(persona_id), self._newest(persona_id)
        if newest is None:
            raise BadInput(
                f"Persona {persona_id!r} has no dataset that could be added to.", "Import one in the Data tab first."
            )
        probes = probes_of(self.home.persona(persona_id))
        held = [c for summary in known[1:] for c in self.dataset(summary.id).of("test")]
        held += [probe.conversation for probe in probes.replies]
        asked = [text for fact in probes.facts for text in (fact.question, *fact.paraphrases)]
        asked += [attack.prompt for attack in (*probes.adversarial, *adversarial_prompts())]
        ledger = self.held_out(persona_id)
        chosen = sort_out(rows, newest, held, ledger, asked)
        if not chosen.good:
            return None, chosen.refused
        version = self.next_version(persona_id)
        why = f"Version {newest.version} and {len(chosen.good)} replies reviewed in the chat, all to learn from."
        dataset, summary = extended(newest, known[0], chosen.good, version, source, why)
        check_training(dataset, ledger)
        return self.keep_dataset(dataset, summary), chosen.refused

    def held_out(self, persona_id: str) -> HeldOut:
        """What the persona holds out: test splits, and lines that are probes of the user's own.

        Of data older than the ledger, the newest version's test split is written in.
        """
        from persona_lab.datasets.held_out import LEDGER, hold_out, hold_out_conversations, read_ledger
        from persona_lab.personas.probe_file import probes_of
        from persona_lab.personas.store import PROBES

        folder = self.home.persona(persona_id)
        if self.library.readonly:
            return read_ledger(folder)
        newest = None if (folder / LEDGER).exists() else self._newest(persona_id)
        if newest is not None:
            hold_out(folder, newest)
        return hold_out_conversations(folder, [p.conversation for p in probes_of(folder).replies], PROBES)

    def check_held_out(self, dataset: Dataset, persona_id: str) -> None:
        """Refuse a dataset that would train on what the persona holds out.

        Raises:
            BadInput: naming the rows.
        """
        from persona_lab.datasets.held_out import check_training

        check_training(dataset, self.held_out(persona_id), self.dataset_path(dataset.id))

    def learned_by(self, variant: Variant, dataset: Dataset) -> tuple[Conversation, ...]:
        """The rows a variant and its forebears were trained on that may still be trained on beside `dataset`.

        Raises:
            UnknownName: a dataset is gone.
        """
        from persona_lab.datasets.replay import learned_rows
        from persona_lab.datasets.store import load_dataset

        earlier = [load_dataset(path) for path in self.datasets_behind(variant)]
        return learned_rows(earlier, self.held_out(variant.persona), dataset)

    def datasets_behind(self, variant: Variant) -> list[Path]:
        """The files of the datasets that a variant and those it went on from were trained on, its own first.

        Of forebears that were deleted the descendant's own run tells.

        Raises:
            UnknownName: a dataset is gone.
        """
        found: dict[Path, None] = {}
        generation: Variant | None = variant
        seen: set[str] = set()
        while generation is not None and generation.id not in seen:
            seen.add(generation.id)
            found[self.dataset_path(generation.dataset)] = None
            before = self.find_variant(generation.parent) if generation.parent else None
            if generation.parent and before is None:
                found |= dict.fromkeys(self._told_by_run(generation))
            generation = before
        return list(found)

    def _told_by_run(self, variant: Variant) -> list[Path]:
        """The datasets of its forebears that are still there, as its run's job names them."""
        try:
            job = read_job(self.home.run(variant.run))
        except UnknownName:
            return []
        return [path for path in map(Path, job.parent_datasets) if path.exists()]

    def _newest(self, persona_id: str) -> Dataset | None:
        """The newest version, or None: there is none, or its file cannot be read (another import mends that)."""
        found = self.datasets(persona_id)
        try:
            return self.dataset(found[0].id) if found else None
        except BadInput:
            return None

    def inspect_dataset(self, dataset_id: str) -> dict[str, Any]:
        """The summary, the first rows, and quartiles of reply lengths in words."""
        dataset = self.dataset(dataset_id)
        summary = self.library.get("datasets", dataset_id) or {}
        words = sorted(
            len(message.content.split())
            for conversation in dataset.conversations
            for message in conversation.messages
            if message.role == "assistant"
        )
        quartiles = [words[round(share * (len(words) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)] if words else []
        rows = [conversation.model_dump(mode="json") for conversation in dataset.conversations[:INSPECT_ROWS]]
        tags = Counter(tag for conversation in dataset.conversations for tag in conversation.tags)
        return {**summary, "reply_words": quartiles, "tags": dict(tags.most_common()), "first_rows": rows}

    # --- variants --------------------------------------------------------------------------------

    def variants(self, persona_id: str | None = None) -> list[Variant]:
        """Newest first."""
        rows = [row for row in self.library.all("variants") if persona_id in (None, row["persona"])]
        return sorted(self._readable(rows), key=lambda v: v.created, reverse=True)

    def _readable(self, rows: Sequence[Row]) -> Iterator[Variant]:
        """One that cannot be read must not hide the others; the doctor names it."""
        for row in rows:
            try:
                yield self._variant(row["id"])
            except (OSError, ValueError) as error:
                log.warning("The variant %s is left out: %s", row["id"], told(error))

    def _variant(self, variant_id: str) -> Variant:
        return read_variant(self.home.variant(variant_id))

    def find_variant(self, name: str) -> Variant | None:
        """By id, else by name if only one has it."""
        if self.library.get("variants", name) is not None:
            return self._variant(name)
        named = [row["id"] for row in self.library.all("variants") if row["name"] == name]
        return self._variant(named[0]) if len(named) == 1 else None

    def variant_of_run(self, run_id: str) -> Variant | None:
        """The variant a run made, once it is in the library; None where its file cannot be read (see `variants`)."""
        row = self.library.get("variants", run_id)
        return next(self._readable([row]), None) if row else None

    def base_variant(self, persona: Persona, base: BaseModelInfo) -> Variant:
        """The base under the card; id `base-<persona>`."""
        from persona_lab.personas.prompt import system_prompt

        datasets = self.datasets(persona.id)
        return Variant(
            id=f"base-{persona.id}"[:64],
            name=f"{base.name} (base)",
            persona=persona.id,
            base=base.id,
            strategy="base",
            kind="base",
            system=system_prompt(persona),
            dataset=datasets[0].id if datasets else "",
        )

    def finish(self, run: RunView) -> Variant | None:
        """Make a finished training run's artifact a variant, and prompts that were written a version of their dataset.

        May be called again: it then does nothing.

        Raises:
            DiskFull: the artifact stays in the run's folder. UnknownName: the dataset is gone.
        """
        if run.status == "done" and run.kind == "prompts":
            take_prompts(self, run)
        if run.status != "done" or run.kind != "train" or self.library.get("variants", run.id):
            return None
        folder = self.home.variant(run.id)
        artifact = Artifact.model_validate(run.result["artifact"])
        made = self._artifact(run) if artifact.path else None
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if made is not None and made.exists():
                made.rename(folder / "weights")
        variant = variant_of(run, artifact, folder)
        sums = run.result.get("checksums") or checksums(folder / "weights")
        write_atomic(folder / SUMS, json.dumps(sums, indent=1))
        write_atomic(folder / "variant.json", written("variant", variant, indent=1))
        self._index_variant(variant)
        row = self.library.get("runs", run.id) or {
            "id": run.id,
            "kind": run.kind,
            "name": run.name,
            "created": run.created,
        }
        self.library.put("runs", row | {"variant": variant.id})
        return variant

    def merge_aspects(self, source: Variant, weights: Mapping[str, float], rank: int | None, name: str) -> Variant:
        """A new, ordinary adapter variant: the blend of another's aspects. Its bytes and lineage are its own.

        Raises:
            BadInput: `source` has no aspects. UnknownName: no such aspect. BadModel, DiskFull
        """
        from persona_lab.inference.blending import told, with_blend, write_blend
        from persona_lab.models.weights import fingerprint

        blend = with_blend(source, weights).blend
        stem, number = source.id[:52], 1
        while self.home.variant(f"{stem}-blend-{number}").exists():
            number += 1
        folder = self.home.variant(f"{stem}-blend-{number}")
        with disk_errors(folder):
            error = write_blend(Path(source.path), blend, folder / "weights", rank)
        merged = source.model_copy(
            update={
                "id": folder.name,
                "name": name or f"{source.name}: {told(blend)}",
                "path": str(folder / "weights"),
                "fingerprint": fingerprint(folder / "weights"),
                "created": now(),
                "bytes": sum(path.stat().st_size for path in (folder / "weights").iterdir()),
                "merged": {"from": source.id, "blend": blend, "rank": rank, "error": error},
            }
        )
        write_atomic(folder / SUMS, json.dumps(checksums(folder / "weights"), indent=1))
        write_atomic(folder / "variant.json", written("variant", merged, indent=1))
        self._index_variant(merged)
        return merged

    def save_steered(self, pulled: Variant, weights: Sequence[str], name: str) -> Variant:
        """A new variant that keeps its trait sliders: copies of its weights and of the vectors are its own.

        Args:
            pulled: the variant with `traits` set.
            weights: names of the weights whose vectors may be used, best first.

        Raises:
            BadModel: its weights or a vector are gone. DiskFull
        """
        from persona_lab.inference.trait_files import STEERING, copy_kept, told
        from persona_lab.models.weights import copy_folder, folder_bytes

        stem, number = pulled.id[:48], 1
        while self.home.variant(f"{stem}-steered-{number}").exists():
            number += 1
        folder = self.home.variant(f"{stem}-steered-{number}")
        with disk_errors(folder):
            try:
                if pulled.path:
                    copy_folder(Path(pulled.path), folder / "weights")
                copy_kept(pulled, self.home, weights, folder / STEERING)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        made = pulled.model_copy(
            update={
                "id": folder.name,
                "name": name or f"{pulled.name}, {told(pulled.traits)}",
                "kind": "prompt" if pulled.kind == "base" else pulled.kind,
                "strategy": "steer" if pulled.kind == "base" else pulled.strategy,
                "path": str(folder / "weights") if pulled.path else "",
                "steering": str(folder / STEERING),
                "parent": pulled.id if pulled.kind != "base" else "",
                "created": now(),
                "bytes": folder_bytes(folder),
            }
        )
        if pulled.path:
            write_atomic(folder / SUMS, json.dumps(checksums(folder / "weights"), indent=1))
        write_atomic(folder / "variant.json", written("variant", made, indent=1))
        self._index_variant(made)
        return made

    def _index_variant(self, variant: Variant) -> None:
        row = variant.model_dump(mode="json", include={"id", "name", "persona", "strategy", "base", "run", "created"})
        self.library.put("variants", row)

    # --- reports ---------------------------------------------------------------------------------

    def reports(self, persona_id: str | None = None) -> list[ReportView]:
        """Finished evaluations, newest first."""
        found = []
        for path in self.home.root.glob("runs/*/job.json"):
            try:
                run = view_run(path.parent)
            except (OSError, ValueError):
                continue
            if run.kind == "evaluate" and run.status == "done" and persona_id in (None, run.persona):
                found.append(report_of(run))
        return sorted(found, key=lambda report: report.created, reverse=True)

    def own_outcomes(self, persona_id: str) -> tuple[Outcome, ...]:
        """How specific this persona's own variants were found to be, for the advisor; looked up anew twice a minute."""
        moment, found = self._outcomes.get(persona_id, (-math.inf, ()))
        if time.monotonic() - moment < FRESH_SECONDS:
            return found
        strategies = {v.id: v.strategy for v in self.variants(persona_id) if v.persona == persona_id}
        reports = self.reports(persona_id)[:MOST_REPORTS] if strategies else []
        found = outcomes_of([_metrics(self.home.run(report.id) / "metrics.json") for report in reports], strategies)
        self._outcomes[persona_id] = (time.monotonic(), found)
        return found

    # --- recovery --------------------------------------------------------------------------------

    def recover(self) -> None:
        """Index what has files but no row: after a crash, a kill, or a library put back from its backup."""
        for path in self.home.root.glob("personas/*/card.json"):
            folder = path.parent
            if self.library.get("personas", folder.name) is None:
                self._recover_persona(folder)
            for summary in folder.glob("datasets/*.summary.json"):
                self._recover_dataset(summary)
        for path in self.home.root.glob("variants/*/variant.json"):
            if self.library.get("variants", path.parent.name) is None:
                try:
                    self._index_variant(read_variant(path.parent))
                except (OSError, ValueError):
                    continue  # damaged, or of a version we cannot read; its files stay, and the doctor names them
        for path in self.home.root.glob("runs/*/job.json"):
            try:
                run = view_run(path.parent)
            except (OSError, ValueError):
                continue
            if run.status != "done":
                continue
            if run.kind == "prompts" and self.library.get("datasets", run.dataset):
                # taken once: another dataset may have come by that name since
                if not (self.library.get("runs", run.id) or {}).get("version"):
                    self._take_prompts_again(run)
            elif run.kind == "train" and not self._was_deleted(run):
                self.finish(run)

    def _take_prompts_again(self, run: RunView) -> None:
        try:
            self.finish(run)
        except (PersonaLabError, ValueError, KeyError) as error:  # one damaged file must not keep the home from opening
            log.warning("What run %s wrote cannot be used: %s", run.id, told(error))

    def _was_deleted(self, run: RunView) -> bool:
        """A variant that was deleted must not come back: its run is done and was finished, or its weights are gone."""
        made = run.result["artifact"]["path"]
        gone = made and not self._artifact(run).exists() and not (self.home.variant(run.id) / "weights").exists()
        return bool((self.library.get("runs", run.id) or {}).get("variant") or gone)

    def _artifact(self, run: RunView) -> Path:
        """Where a run's artifact lies, also in a home that was moved since."""
        noted = Path(run.result["artifact"]["path"])
        here = self.home.run(run.id) / noted.name
        return here if here.exists() else noted

    def _recover_persona(self, folder: Path) -> None:
        from persona_lab.personas.store import load_persona

        try:
            persona = load_persona(folder)
        except BadInput as error:
            log.warning("The persona in %s is left out: %s", folder, error)
            return
        row = {"id": folder.name, "name": persona.name, "example": False, "created": now(), "changed": now()}
        self.library.put("personas", row)

    def _recover_dataset(self, path: Path) -> None:
        row_id = path.name.removesuffix(".summary.json")
        if self.library.get("datasets", row_id) is None and (path.parent / f"{row_id}.jsonl").is_file():
            try:
                summary = upgraded("dataset summary", path.read_bytes(), DatasetSummary)
            except (OSError, ValueError) as error:
                log.warning("The dataset of %s is left out: %s", path, told(error))
                return
            self.library.put("datasets", summary.model_dump(mode="json"))


def newest_first(summaries: Sequence[DatasetSummary]) -> list[DatasetSummary]:
    """By time, but never an earlier version of a persona's data before a later one: clocks are set back."""
    latest: dict[str, str] = {}
    keys = {}
    for summary in sorted(summaries, key=lambda summary: summary.version):
        latest[summary.persona] = max(summary.created, latest.get(summary.persona, ""))
        keys[summary.id] = (latest[summary.persona], summary.version)
    return sorted(summaries, key=lambda summary: keys[summary.id], reverse=True)


def read_variant(folder: Path) -> Variant:
    """The variant in a folder; its weights lie beside it, wherever the home lay when it was made.

    Raises:
        OSError, ValueError: it is missing, damaged or of a newer version.
    """
    variant = upgraded("variant", (folder / "variant.json").read_bytes(), Variant)
    found = {"path": str(folder / "weights")} if variant.path else {}
    if variant.steering:  # beside the weights where it was saved from another variant, among what a strategy made else
        beside = folder / "steering"
        found["steering"] = str(beside if beside.is_dir() else folder / "weights" / "steering")
    return variant.model_copy(update=found) if found else variant


def _metrics(path: Path) -> dict[str, Any]:
    """What an evaluation kept; empty where its file is gone or damaged."""
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
