"""The queue of runs, and runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from persona_lab.comparing import compared
from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.headlines import VariantFacts, facts_of
from persona_lab.jobs import ask_to_keep, cheaper_change, read_job
from persona_lab.parts.base import Part
from persona_lab.types import Change

Found = TypeVar("Found")


class Queueing(Part):
    """The queue of runs, and runs side by side."""

    def queue(self) -> list[str]:
        """Ids of the runs that wait, next first."""
        return self.supervisor.queued()

    def move_in_queue(self, run_id: str, by: int) -> list[str]:
        """Put a waiting run `by` places later (below 0: sooner); gives the new order, which outlives the page.

        Raises:
            BadInput: it does not wait.
        """
        return self.supervisor.move(run_id, by)

    def stop_and_keep(self, run_id: str) -> None:
        """End a training after the step in progress; it finishes as done, with the best weights so far.

        Raises:
            UnknownName. BadInput: it is not a training in progress.
        """
        ask_to_keep(self.run(run_id), self.home.run(run_id))

    def smaller(self, run_id: str) -> Change | None:
        """The cheapest change with which a training that memory was not enough for may fit; None: of any other run.

        Raises:
            UnknownName
        """
        run = self.run(run_id)
        return cheaper_change(self.home.run(run_id)) if run.cause == "out_of_memory" and run.kind == "train" else None

    def retry_smaller(self, run_id: str) -> str:
        """Queue a training that memory was not enough for again, as a new run with that change; gives its id.

        Raises:
            UnknownName. BadInput: memory was not its trouble, or no change is known that would help.
        """
        change, job = self.smaller(run_id), read_job(self.home.run(run_id))
        if change is None or job.persona is None:
            raise BadInput(f"Nothing is known that would make run {run_id!r} need less memory.", "Start a new one.")
        settings = {**(job.config if change.strategy == job.strategy else {}), **change.set}
        return self.train(
            job.persona.id, change.strategy, job.base, settings, seed=job.seed, name=job.name, dataset_id=job.dataset_id
        )

    def compare_runs(self, a: str, b: str) -> dict[str, Any]:
        """Two runs side by side: see `comparing.compared`.

        Raises:
            UnknownName
        """
        return compared(self.run(a), self.run(b), self.events(a)[0], self.events(b)[0])

    def variant_facts(self, persona_id: str | None = None, most: int = 12) -> list[VariantFacts]:
        """The newest variants with the few numbers that are known of each."""
        reports: dict[str, list[Path]] = {}
        found = []
        for variant in self.variants(persona_id)[:most]:
            if variant.persona not in reports:
                kept = self.reports(variant.persona)
                reports[variant.persona] = [self.home.run(report.id) / "metrics.json" for report in kept]
            # what was deleted of run, persona and base is not told; what is left of them is
            run = _or_none(self.run, variant.run) if variant.run else None
            base = _or_none(self.base_variant, variant.persona, variant.compared_with)
            found.append(facts_of(variant, run, reports[variant.persona], base))
        return found

    def busy(self) -> str | None:
        """The id of the run in progress, or None."""
        return self.supervisor.busy()

    def run_count(self) -> int:
        """How many runs there are, without reading them."""
        return sum(1 for _ in self.home.root.glob("runs/*/job.json"))


def _or_none(find: Callable[..., Found], *asked: str) -> Found | None:
    try:
        return find(*asked)
    except PersonaLabError:
        return None
