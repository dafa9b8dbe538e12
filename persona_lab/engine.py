"""The facade: everything the page and the command line may ask for. Light: no torch, no gradio.

It owns the library and the supervisor, joins the rooms together, and turns finished runs into variants and reports.
What it does not do: know formats, train, score or draw.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab import catalog, evaluating
from persona_lab.advisor import Advisor
from persona_lab.continuing import parent_of
from persona_lab.dataset_versions import prompted_by
from persona_lab.errors import BadInput, PersonaLabError, UnknownName, WorkFailed
from persona_lab.events import AnyEvent, read_events
from persona_lab.exporting import dataset_file, export_order
from persona_lab.home import Home, usable_folder
from persona_lab.jobs import ACTIVE, Supervisor
from persona_lab.jobs import view as view_run
from persona_lab.library import Library
from persona_lab.parts.guests import Guests
from persona_lab.parts.keeping import Keeping
from persona_lab.parts.pulling import Pulling
from persona_lab.parts.queueing import Queueing
from persona_lab.parts.sharing import Sharing
from persona_lab.parts.talking import Talking
from persona_lab.parts.versions import Versions
from persona_lab.planning import plan_strategies
from persona_lab.plugins import Plugins
from persona_lab.settings import validate_settings
from persona_lab.training.remedies import refuse_misfit
from persona_lab.types import (
    BaseModelInfo,
    ChatChunk,
    ChatRequest,
    Dataset,
    DatasetSummary,
    Job,
    Machine,
    Persona,
    PersonaSummary,
    PlanRow,
    PluginInfo,
    PreviewToken,
    Probe,
    ReportView,
    RunView,
    Variant,
    now,
    slug,
)

if TYPE_CHECKING:
    from persona_lab.chats.votes import Votes
    from persona_lab.datasets.progress import Watcher
    from persona_lab.personas.probe_file import ProbeFile
    from persona_lab.personas.propose import ProposedFact

WAIT_SECONDS = 0.2


class Engine(Talking, Queueing, Keeping, Pulling, Sharing, Guests, Versions):
    """One data home, opened. Use it as a context manager.

    Args:
        home: the data home.
        readonly: answer questions only; needs no lock, so it works beside a running page.
        tabs: also load plugins' tabs (the page).

    Raises:
        HomeLocked: another process has this home open for writing.
    """

    def __init__(self, home: Home, readonly: bool = False, tabs: bool = False) -> None:
        self.home = home
        self.readonly = readonly
        self._tabs = tabs
        self._plugins: Plugins | None = None
        self._chat: Any = None
        self._votes: Votes | None = None
        self._guard = threading.RLock()
        self._unfinished: dict[str, PersonaLabError] = {}
        self.library = Library(home, readonly=readonly)
        self.supervisor = Supervisor(home, self._on_event, self._on_end, self._before_start)
        self.catalog = catalog.Catalog(home, self.library)
        if not readonly:
            try:
                self.catalog.recover()
                self.supervisor.adopt()
            except BaseException:
                self.library.close()
                raise

    @classmethod
    def open(cls, home: str | Path | None = None, readonly: bool = False, tabs: bool = False) -> Engine:
        """Open the home that `Home.resolve` chooses."""
        return cls(Home.resolve(home), readonly=readonly, tabs=tabs)

    def close(self) -> None:
        """Stop the chat worker and give the home back. A run in progress goes on in its own process."""
        if "studio" in self.__dict__:
            self.studio.close()
        self.supervisor.close()
        if self._chat is not None:
            self._chat.close()
        self.library.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def plugins(self) -> Plugins:
        """All plugins, loaded at first use."""
        with self._guard:
            if self._plugins is None:
                self._plugins = Plugins.load(self.home.plugins, tabs=self._tabs)
            return self._plugins

    def plugin_infos(self) -> list[PluginInfo]:
        """A row for each plugin part, then one for each problem."""
        return self.plugins.infos()

    def machine(self) -> Machine:
        """What there is to work with."""
        from persona_lab.models.machine import probe_machine

        return probe_machine(self.home.root)

    # --- personas --------------------------------------------------------------------------------

    def personas(self) -> list[PersonaSummary]:
        """The library's personas, then the shipped examples that are not in it yet."""
        return self.catalog.personas()

    def persona(self, persona_id: str) -> Persona:
        """A persona; a shipped example is put into the library, with its dataset, at first use.

        Raises:
            UnknownName
        """
        if not self.catalog.has_persona(persona_id) and not self.readonly:
            self.catalog.install_example(persona_id, self._read)
        return self.catalog.persona(persona_id)

    def import_persona(self, path: str | Path, persona_id: str | None = None) -> Persona:
        """A character card of any kind, or a bundle, as a new persona; never overwrites one.

        Raises:
            BadInput
        """
        return self.import_character(path, persona_id).persona

    def save_persona(self, persona: Persona, avatar_png: bytes | None = None) -> Persona:
        """Create or replace a persona; runs and variants keep the card they were made with."""
        return self.catalog.save_persona(persona, avatar_png)

    def delete_persona(self, persona_id: str) -> None:
        """Put a persona and its datasets aside; `undo_delete` brings the last one back.

        Raises:
            UnknownName. BadInput: a run of it is in progress.
        """
        if any(run.status in ACTIVE and run.persona == persona_id for run in self.runs()):
            raise BadInput(f"A run of persona {persona_id!r} is in progress.", "Stop it first.")
        self.catalog.delete_persona(persona_id)

    def undo_delete(self) -> str:
        """Bring back what was deleted last; gives its id.

        Raises:
            BadInput: there is nothing to bring back.
        """
        return self.catalog.trash.bring_back()

    def export_persona(
        self, persona_id: str, format: str, out: str | Path, variant_ids: Sequence[str] = (), licence: str = ""
    ) -> Path:
        """Write the persona as `png`, `json`, `charx` or `bundle` (with data and probes); gives the file.

        Args:
            variant_ids: whose weights the exported card names.
            licence: of a bundle, in the user's words.

        Raises:
            UnknownName. BadInput: the file is there already, or the persona cannot be written so.
        """
        from persona_lab import passing_on

        persona = self.persona(persona_id)
        data = self._shared_data(persona_id) if format == "bundle" else None
        variants = [self.variant(variant_id) for variant_id in variant_ids]
        return passing_on.export_persona(self.catalog, persona, format, Path(out), variants, data, licence)

    # --- probes of one's own ---------------------------------------------------------------------

    def probes(self, persona_id: str) -> ProbeFile:
        """The persona's own facts, adversarial prompts and reply probes, with the lines of the file that are none.

        Raises:
            UnknownName
        """
        return self.catalog.probes(persona_id)

    def edit_probes(self, persona_id: str, change: Callable[[ProbeFile], ProbeFile]) -> ProbeFile:
        """Change the persona's own probes; `undo_probes` takes it back. Their lines are held out from now on.

        Raises:
            UnknownName. BadSetting: with every problem. BadInput: a line is trained on.
        """
        with self._guard:
            self.persona(persona_id)
            return self.catalog.save_probes(persona_id, change(self.probes(persona_id)))

    def undo_probes(self, persona_id: str) -> ProbeFile:
        """Take the last change of the probes back; doing it twice brings the change back.

        Raises:
            UnknownName. BadInput: there is no earlier version.
        """
        with self._guard:
            self.persona(persona_id)
            return self.catalog.undo_probes(persona_id)

    def held_out_lines(self, persona_id: str) -> list[Probe]:
        """The reply probes that the newest data holds out.

        Raises:
            UnknownName. BadInput: the data trains on some of them.
        """
        from persona_lab.evaluation.probes import build_probes

        persona, dataset = self.persona(persona_id), self._newest_dataset(persona_id)
        return [probe for probe in build_probes(persona, dataset) if probe.kind == "reply"]

    def propose_facts(self, persona_id: str, limit: int = 40) -> list[ProposedFact]:
        """Facts that the card states and the persona is not asked about yet; nothing is saved.

        Raises:
            UnknownName
        """
        from persona_lab.personas.probe_file import not_asked_yet
        from persona_lab.personas.propose import propose_facts

        return not_asked_yet(self.probes(persona_id), propose_facts(self.persona(persona_id), limit))

    # --- datasets --------------------------------------------------------------------------------

    def datasets(self, persona_id: str | None = None) -> list[DatasetSummary]:
        """Newest first."""
        return self.catalog.datasets(persona_id)

    def dataset(self, dataset_id: str) -> Dataset:
        """A dataset with its conversations.

        Raises:
            UnknownName
        """
        return self.catalog.dataset(dataset_id)

    def import_dataset(
        self,
        path: str | Path,
        persona_id: str,
        format: str = "auto",
        mapping: Mapping[str, str] | None = None,
        watcher: Watcher | None = None,
    ) -> DatasetSummary:
        """A file or folder as a new version of the persona's dataset; never overwrites one.

        Args:
            watcher: called with what is done and the share of it that is; it may raise Cancelled.

        Raises:
            BadInput, UnknownName. Cancelled: by `watcher`; nothing was changed.
        """
        from persona_lab.datasets.progress import watched

        persona = self.persona(persona_id)
        with watched(watcher):
            reading = self._read(Path(path), persona, format, mapping or {})
            return self.catalog.add_dataset(reading, persona.id, Path(path).name)

    def _read(
        self, path: Path, persona: Persona, format: str = "auto", mapping: Mapping[str, str] | None = None
    ) -> Any:
        from persona_lab.datasets.reading import read_dataset

        return read_dataset(path, self.plugins.all("reader"), persona, format, mapping or {})

    def inspect_dataset(self, dataset_id: str) -> dict[str, Any]:
        """The summary, with the first conversations and distributions of lengths, as JSON-ready data."""
        return self.catalog.inspect_dataset(dataset_id)

    def preview(self, dataset_id: str, row: int, base: str = "starter") -> list[PreviewToken]:
        """Row number `row` (from 0) as the model sees it, and which tokens are trained on.

        Raises:
            UnknownName. BadInput: no such row, or the base model is not there yet.
        """
        from persona_lab.datasets.rendering import renderer_of
        from persona_lab.personas.prompt import system_prompt
        from persona_lab.types import Message

        dataset = self.dataset(dataset_id)
        if not 0 <= row < len(dataset.conversations):
            raise BadInput(f"There is no row {row}: {dataset_id} has rows 0 to {len(dataset.conversations) - 1}.")
        info = self.base_model(base)
        if not info.ready:
            fix = f"Fetch it first: persona-lab models fetch {base}."
            raise BadInput(f"The base model {base!r} is not on this machine yet, so its tokens cannot be shown.", fix)
        system = Message(role="system", content=system_prompt(self.persona(dataset.persona)))
        messages = dataset.conversations[row].messages
        with_system = messages if messages[0].role == "system" else (system, *messages)
        return renderer_of(Path(info.path)).preview(with_system)

    # --- models and plans ------------------------------------------------------------------------

    def models(self) -> list[BaseModelInfo]:
        """The starter and every base model in the home."""
        from persona_lab.models.registry import list_models

        return list_models(self.home)

    def base_model(self, base: str) -> BaseModelInfo:
        """What is known of a base model without fetching it.

        Raises:
            UnknownName, BadModel
        """
        from persona_lab.models.registry import describe

        return describe(base, self.home)

    def fetch_model(self, base: str) -> str:
        """Start a run that fetches and converts a base model; gives the run's id."""
        base = self.base_model(base).id
        return self._submit("fetch", f"fetch-{slug(base, 'model')}", name=f"Fetch {base}", base=base)

    def delete_model(self, model_id: str) -> None:
        """Put a kept foundation aside; `undo_delete` brings the last one back.

        Raises:
            UnknownName: there is no such foundation. BadInput: variants lie on it.
        """
        from persona_lab.models import kept

        if model_id not in kept.ids(self.home):
            raise UnknownName("kept foundation", model_id, kept.ids(self.home))
        needing = [variant.id for variant in self.variants() if variant.base == model_id]
        needing += [run.id for run in self.runs() if run.status in ACTIVE and run.base == model_id]
        if needing:
            raise BadInput(
                f"{model_id!r} cannot be deleted: {', '.join(needing[:10])} cannot be used without it.",
                "Delete these first.",
            )
        self.catalog.trash.put_aside(self.home.model(model_id), model_id, [])

    def plan(
        self,
        persona_id: str,
        strategy: str | None = None,
        base: str = "starter",
        settings: Mapping[str, Any] | None = None,
        minutes: float | None = None,
        dataset_id: str | None = None,
    ) -> list[PlanRow]:
        """What each strategy would cost on this machine, ranked; the first is the recommendation.

        Args:
            minutes: the most a training may take; what takes longer is not recommended.
            dataset_id: None: the persona's newest.
        """
        persona = self.persona(persona_id)
        dataset = self.dataset(dataset_id) if dataset_id else self._newest_dataset(persona_id)
        chosen = [self.plugins.get("strategy", strategy)] if strategy else self.plugins.all("strategy")
        parent = self._named_parent(chosen, settings or {}, persona, base)
        info = self.base_model(parent.base if parent else base)
        if parent is not None and dataset is not None:
            learned = self.catalog.learned_by(parent, dataset)
            chosen = [p.going_on(parent, learned) if getattr(p, "goes_on", False) else p for p in chosen]
        machine = self._informed(info, dataset, persona)
        advisor = Advisor(minutes, self.catalog.own_outcomes(persona_id))
        return plan_strategies(
            self.plugins, chosen, persona, dataset, info, machine, settings or {}, bool(strategy), advisor
        )

    def _named_parent(
        self, parts: Sequence[Any], settings: Mapping[str, Any], persona: Persona, base: str
    ) -> Variant | None:
        """The variant that a plan is asked to go on from; None: none was named."""
        part = next((part for part in parts if getattr(part, "goes_on", False)), None)
        if part is None or not settings.get("variant"):
            return None
        known = {key: value for key, value in settings.items() if key in part.Config.model_fields}
        config = validate_settings(part.Config, known, f"strategy {part.id!r}")
        return parent_of(part, config, persona, base, self.variants())

    def _informed(self, base: BaseModelInfo, dataset: Dataset | None, persona: Persona) -> Machine:
        """The machine with what was measured on it, and this data's exact lengths."""
        from persona_lab.models.counting import informed

        return informed(self.machine(), self.home, base, dataset, persona)

    def calibrate(self, base: str = "starter") -> str:
        """Start a run that measures a few real steps on this machine, for exact plans; gives the run's id."""
        base = self.base_model(base).id
        return self._submit("calibrate", f"calibrate-{slug(base, 'model')}", name=f"Measure steps of {base}", base=base)

    def _newest_dataset(self, persona_id: str) -> Dataset | None:
        summaries = self.datasets(persona_id)
        if summaries:
            return self.dataset(summaries[0].id)
        if not self.catalog.has_persona(persona_id):  # read-only: a shipped example that is not installed yet
            return self.catalog.example_dataset(persona_id, self._read)
        return None

    # --- runs ------------------------------------------------------------------------------------

    def train(
        self,
        persona_id: str,
        strategy: str,
        base: str = "starter",
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        name: str = "",
        dataset_id: str | None = None,
        force: bool = False,
    ) -> str:
        """Queue the training of a variant; gives the run's id.

        Args:
            force: start even what is predicted not to fit into memory.

        Raises:
            UnknownName, BadSetting, BadInput, WillNotFit: before anything is started.
        """
        part = self.plugins.get("strategy", strategy)
        config = validate_settings(part.Config, settings or {}, f"strategy {strategy!r}")
        persona = self.persona(persona_id)
        parent = parent_of(part, config, persona, base, self.variants())
        info = self.base_model(parent.base if parent else base)
        base = info.id  # a folder in full, whatever folder the next command is given in
        if not 0 <= seed < 2**63:
            raise BadInput(f"{seed} is no seed.", "Choose a whole number from 0 to 9223372036854775807.")
        dataset = self.dataset(dataset_id) if dataset_id else self._newest_dataset(persona_id)
        if dataset is None:
            fix = f"Import one: persona-lab datasets import FILE --persona {persona_id}."
            raise BadInput(f"Persona {persona_id!r} has no dataset to learn from.", fix)
        self.catalog.check_held_out(dataset, persona_id)
        problems = self.plugins.guarded("strategy", strategy, part.check, config, persona, dataset, self.machine())
        if parent is not None:
            learned = self.catalog.learned_by(parent, dataset)
            problems += self.plugins.guarded("strategy", strategy, part.check_parent, config, parent, learned, dataset)
        for problem in problems:
            if problem.severity == "error":
                raise BadInput(problem.message, problem.fix)
        if not force:
            machine = self._informed(info, dataset, persona)
            planned = part.going_on(parent, learned) if parent is not None else part
            refuse_misfit(self.plugins, planned, config, persona, info, dataset, machine)
        return self._submit(
            "train",
            f"{persona_id[:40]}-{slug(strategy)}",
            name=name or f"{persona.name}, {part.title}",
            persona=persona,
            dataset=str(self.catalog.dataset_path(dataset.id)),
            dataset_id=dataset.id,
            base=base,
            strategy=strategy,
            config=config.model_dump(mode="json"),
            variants=(parent,) if parent else (),
            parent_datasets=tuple(map(str, self.catalog.datasets_behind(parent))) if parent else (),
            seed=seed,
            force=force,
        )

    def evaluate(
        self,
        variant_ids: Sequence[str],
        evaluators: Sequence[str] | None = None,
        quick: bool = False,
        report: bool = False,
        out: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        persona_id: str | None = None,
        seed: int = 0,
    ) -> str:
        """Queue the evaluation of variants on one persona's probes; gives the run's id.

        Args:
            report: also write HTML, Markdown and JSON, with the base beside the variants.
            settings: of evaluators, as `evaluator.setting`.
            persona_id: whose probes; variants of other personas are then scored as wrong characters.

        Raises:
            UnknownName, BadSetting. BadInput: none, or of several personas without `persona_id`. A variant that saw
            the probes fails in the worker.
        """
        named = list(dict.fromkeys(self.variant(variant_id) for variant_id in variant_ids))
        target = self.persona(persona_id) if persona_id else None
        variants = evaluating.cast(named, target, {summary.id: summary.name for summary in self.personas()})
        chosen = tuple(evaluators) if evaluators else tuple(part.id for part in self.plugins.all("evaluator"))
        for evaluator in chosen:
            self.plugins.get("evaluator", evaluator)
        persona = target or self.persona(variants[0].persona)
        dataset = self._newest_dataset(persona.id)
        if report and not any(variant.kind == "base" for variant in variants):
            variants.insert(0, self.base_variant(persona.id, variants[0].compared_with))
        return self._submit(
            "evaluate",
            f"{persona.id[:40]}-eval",
            name=f"{'Compare' if report else 'Evaluate'} {', '.join(variant.name for variant in variants)}"[:120],
            persona=persona,
            dataset=str(self.catalog.dataset_path(dataset.id)) if dataset else "",
            dataset_id=dataset.id if dataset else "",
            base=variants[0].base,
            variants=tuple(variants),
            evaluators=chosen,
            evaluator_settings=evaluating.evaluator_settings(self.plugins, chosen, settings or {}),
            seed=seed,
            quick=quick,
            report=report,
            out=str(usable_folder(out)) if out else "",
        )

    def export(
        self,
        variant_id: str,
        format: str,
        out: str | Path,
        settings: Mapping[str, Any] | None = None,
        license: str = "",
        check: bool = True,
    ) -> str:
        """Queue an export; gives the run's id.

        Args:
            license: states the licence of a base whose own is not known.
            check: load what was exported again and compare it with the variant.

        Raises:
            UnknownName, BadSetting. BadInput: the format cannot express this variant.
        """
        exporter = self.plugins.get("exporter", format)
        config = validate_settings(exporter.Config, settings or {}, f"exporter {format!r}")
        variant = self.variant(variant_id)
        if variant.traits and not getattr(exporter, "keeps_traits", False):
            raise BadInput(
                f"{variant.name!r} is pulled along traits, which {exporter.title} cannot express: it would be lost.",
                f"Export {variant.parent!r}, from which it was made." if variant.parent else "Choose another format.",
            )
        problems = self.plugins.guarded("exporter", format, exporter.check, variant)
        base = self.base_model(variant.base)
        problems += self.plugins.guarded("exporter", format, exporter.check_base, variant, base, config)
        for problem in problems:
            if problem.severity == "error":
                raise BadInput(problem.message, problem.fix)
        return self._submit(
            "export",
            f"{variant.persona[:40]}-export",
            name=f"Export {variant.name} as {exporter.title}",
            persona=self.persona(variant.persona),
            dataset=dataset_file(self.catalog, variant),
            base=variant.base,
            variants=(variant,),
            config=config.model_dump(mode="json"),
            format=format,
            out=str(Path(out).resolve()),
            export=export_order(self.catalog, variant, license, check),
        )

    def _submit(self, kind: Any, stem: str, **fields: Any) -> str:
        with self._guard:
            number = 1
            while self.home.run(f"{stem}-{number}").exists():
                number += 1
            job = Job(id=f"{stem}-{number}", kind=kind, home=str(self.home.root), created=now(), **fields)
            self.library.put("runs", {"id": job.id, "kind": kind, "name": job.name, "created": job.created})
            return self.supervisor.submit(job)

    def runs(self) -> list[RunView]:
        """Every run, newest first; one whose job.json is damaged is left out."""
        found = []
        for path in self.home.root.glob("runs/*/job.json"):
            try:
                found.append(self.run(path.parent.name))
            except ValueError:  # pydantic: a job of a version we cannot read
                continue
        return sorted(found, key=lambda run: run.created, reverse=True)

    def run(self, run_id: str) -> RunView:
        """The state of a run.

        Raises:
            UnknownName
        """
        run = self.supervisor.view(run_id) if not self.readonly else view_run(self.home.run(run_id))
        if run.kind == "prompts" and run.status == "done":
            made = prompted_by(self.catalog, run_id)
            return run.model_copy(update={"result": run.result | {"version": made.id}}) if made else run
        known = self.catalog.variant_of_run(run_id) if run.kind == "train" else None
        return run.model_copy(update={"variant": known.id}) if known else run

    def events(self, run_id: str, offset: int = 0) -> tuple[list[AnyEvent], int]:
        """A run's events from a byte offset on, and the offset for next time."""
        return read_events(self.home.run(run_id) / "events.jsonl", offset)

    def stop(self, run_id: str) -> None:
        """Ask a run to stop; returns at once.

        Raises:
            UnknownName. BadInput: it is not in progress.
        """
        run = self.run(run_id)
        if run.status not in ACTIVE:
            raise BadInput(f"Run {run_id!r} is not in progress: it is {run.status}.")
        self.supervisor.stop(run_id)

    def resume(self, run_id: str) -> str:
        """Queue an interrupted, cancelled or failed run again; gives its id."""
        self.supervisor.view(run_id)
        self.supervisor.resume(run_id)
        return run_id

    def wait(self, run_id: str, on_event: Callable[[AnyEvent], None] | None = None, offset: int = 0) -> RunView:
        """Block until a run is over, passing on its events.

        Raises:
            WorkFailed: the run is done, but its variant could not be put into the library yet.
        """
        while True:
            run = self.run(run_id)
            events, offset = self.events(run_id, offset)
            for event in events if on_event else ():
                on_event(event)  # type: ignore[misc]
            if run_id in self._unfinished:
                raise self._unfinished[run_id]
            # the supervisor registers the variant a moment after the terminal record is written
            settled = run.status != "done" or self._settled(run)
            if run.status not in ACTIVE and settled:
                return run
            time.sleep(WAIT_SECONDS)

    def _settled(self, run: RunView) -> bool:
        """Whether what came of a finished run is in the library."""
        if run.kind == "prompts" and self.library.get("datasets", run.dataset):
            return "version" in run.result
        if run.kind != "train" or run.variant:
            return True
        # one whose file was damaged since will not come any more
        return self.library.get("variants", run.id) is not None and self.catalog.variant_of_run(run.id) is None

    def _on_event(self, run: RunView, event: AnyEvent) -> None:
        self.plugins.notify(run, event)

    def _on_end(self, run_id: str) -> None:
        try:
            self.catalog.finish(self.supervisor.view(run_id))
        except (PersonaLabError, OSError) as error:
            # the artifact stays in the run's folder; `recover` tries again at the next start
            told = f"Run {run_id} is done, but its variant could not be put into the library: {error}."
            self._unfinished[run_id] = WorkFailed(told, "Mend that and start again: it will be found.")
            print(f"persona-lab: {told}", file=sys.stderr)

    def _before_start(self) -> None:
        """Training and chat share an accelerator: the chat worker gives its memory back before a run starts."""
        if self._chat is not None and self.machine().device != "cpu":
            self._chat.release()

    # --- variants and reports --------------------------------------------------------------------

    def variants(self, persona_id: str | None = None) -> list[Variant]:
        """Trained variants, newest first."""
        return self.catalog.variants(persona_id)

    def base_variant(self, persona_id: str, base: str = "starter") -> Variant:
        """The base model under the persona's card, nothing trained; its id is `base-<persona>`."""
        return self.catalog.base_variant(self.persona(persona_id), self.base_model(base))

    def variant(self, variant_id: str) -> Variant:
        """A variant by id or by name; `base-<persona>` is the base under that persona's card.

        Raises:
            UnknownName
        """
        found = self.catalog.find_variant(variant_id)
        if found is not None:
            return found
        if variant_id.startswith("base-"):
            with suppress(UnknownName):
                return self.base_variant(variant_id.removeprefix("base-"))
        bases = [f"base-{summary.id}" for summary in self.personas()]
        raise UnknownName("variant", variant_id, [v.id for v in self.variants()] + bases)

    def blended(self, variants: Sequence[Variant], weights: Mapping[str, float]) -> list[Variant]:
        """The variants, those of the strategy `aspects` with other weights, for the chat; nothing is saved.

        Raises:
            UnknownName: one has no such aspect. BadInput: none has aspects.
        """
        from persona_lab.inference.blending import saved_weights, with_blend

        blendable = {v.id for v in variants if v.path and saved_weights(Path(v.path))}
        if not blendable and variants:
            with_blend(variants[0], weights)  # says why not
        return [with_blend(v, weights) if v.id in blendable else v for v in variants]

    def merge_aspects(
        self, variant_id: str, weights: Mapping[str, float], rank: int | None = None, name: str = ""
    ) -> Variant:
        """A blend of a variant's aspects as a new variant with one ordinary adapter.

        Args:
            rank: cut to it by SVD; `Variant.merged["error"]` says what was lost. None: the exact sum.

        Raises:
            UnknownName: no such variant or aspect. BadInput: it has no aspects. BadModel, DiskFull
        """
        source = self.variant(variant_id)
        if source.traits:
            raise BadInput(
                f"{source.name!r} is pulled along traits, which a merged adapter cannot express.",
                f"Merge {source.parent!r}, from which it was made, and pull the outcome.",
            )
        return self.catalog.merge_aspects(source, weights, rank, name)

    def delete_variant(self, variant_id: str) -> None:
        """Put a variant aside; `undo_delete` brings the last one back.

        Raises:
            UnknownName
        """
        self.catalog.delete_variant(variant_id)

    def reports(self, persona_id: str | None = None) -> list[ReportView]:
        """Evaluations kept on disk, newest first."""
        return self.catalog.reports(persona_id)

    # --- chat ------------------------------------------------------------------------------------

    def chat(self, requests: Iterable[ChatRequest], owner: str = "") -> Iterator[ChatChunk]:
        """Stream the replies of several panes; each ends with a stamp of the weights that made it, or an error.

        Args:
            owner: whose replies these are, for `stop_chat`.
        """
        from persona_lab.inference.client import ChatClient

        busy = self.supervisor.busy()
        requests = list(requests)
        if busy and self.machine().device != "cpu":
            for request in requests:
                text = f"The accelerator is busy with run {busy}. Wait for it, or stop it."
                yield ChatChunk(pane=request.pane, error=text, done=True)
            return
        with self._guard:
            if self._chat is None:
                self._chat = ChatClient(self.home)
        yield from self._chat.stream(self._with_lore(requests), owner)

    def stop_chat(self, owner: str | None = None) -> None:
        """Stop the replies being written, all of them or one owner's; what was said stays."""
        if self._chat is not None:
            self._chat.cancel(owner)
