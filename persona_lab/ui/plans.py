"""Plans as the Train tab needs them: asked once for the same question, and never stopped by one plugin's fault."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from persona_lab.continuing import TRAINED
from persona_lab.engine import Engine
from persona_lab.errors import PluginFailed, UserError
from persona_lab.types import PlanRow

FRESH_SECONDS = 60.0
"""Free memory and disk change, and so does what was measured here."""
KEPT = 200


class Plans:
    """Rows of `Engine.plan`, kept for a minute; safe to ask from several threads."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, list[PlanRow]]] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, persona: str, base: str) -> list[PlanRow]:
        """All strategies' rows if they were worked out lately, else none; costs nothing."""
        return self._find(self._key(persona, "", base, {})) or []

    def rows(self, persona: str, base: str) -> list[PlanRow]:
        """All strategies, ranked; a plugin that cannot be asked takes only itself out."""
        return self._ask(persona, "", base, {}, lambda: self._all(persona, base))

    def row(self, persona: str, strategy: str, base: str, settings: Mapping[str, Any]) -> PlanRow:
        """One strategy with these settings.

        Raises:
            PersonaLabError: what the engine says of them.
        """
        return self._ask(
            persona, strategy, base, settings, lambda: self.engine.plan(persona, strategy, base, settings)
        )[0]

    def parent(self, persona: str) -> str:
        """The newest variant that can be gone on from; empty where there is none."""
        return next((v.id for v in self.engine.variants(persona) if v.kind in TRAINED), "")

    def placeholders(self) -> list[PlanRow]:
        """The strategies in their own order, before anything was worked out."""
        parts = sorted(self.engine.plugins.all("strategy"), key=lambda part: getattr(part, "rank", 100))
        return [_empty(part, number, True, part.summary) for number, part in enumerate(parts, start=2)]

    def _all(self, persona: str, base: str) -> list[PlanRow]:
        parts = self.engine.plugins.all("strategy")
        try:
            rows = self.engine.plan(persona, base=base)
        except PluginFailed:
            rows = sorted((self._one(persona, part, base) for part in parts), key=lambda row: not row.fits)
        parent = self.parent(persona)
        going_on = {part.id for part in parts if getattr(part, "goes_on", False)} if parent else set()
        return [
            self._with_parent(row, persona, base, parent) if row.strategy in going_on else row for row in rows
        ]  # fmt: skip

    def _with_parent(self, row: PlanRow, persona: str, base: str, parent: str) -> PlanRow:
        try:
            found = self.engine.plan(persona, row.strategy, base, {"variant": parent})[0]
        except UserError as error:  # the newest is on another base, or pulled along traits: another may be chosen
            return row.model_copy(update={"fits": False, "reason": error.message, "blocked_by": "settings"})
        return found.model_copy(update={"rank": row.rank, "recommended": False})

    def _one(self, persona: str, part: Any, base: str) -> PlanRow:
        try:
            return self.engine.plan(persona, part.id, base)[0]
        except PluginFailed as error:
            return _empty(part, 100, False, error.message)

    def _ask(
        self, persona: str, strategy: str, base: str, settings: Mapping[str, Any], work: Callable[[], list[PlanRow]]
    ) -> list[PlanRow]:
        key = self._key(persona, strategy, base, settings)
        found = self._find(key)
        if found is None:
            found = work()
            with self._lock:
                self._kept[key] = (self._clock(), found)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found

    def _find(self, key: str) -> list[PlanRow] | None:
        with self._lock:
            moment, found = self._kept.get(key, (-FRESH_SECONDS, None))
        return found if found is not None and self._clock() - moment < FRESH_SECONDS else None

    def _key(self, persona: str, strategy: str, base: str, settings: Mapping[str, Any]) -> str:
        """Everything an answer depends on that the user can change; the rest changes slowly, hence the minute."""
        data = [dataset.id for dataset in self.engine.datasets(persona)[:1]]
        card = repr(self.engine.persona(persona).card)
        asked = dict(sorted(settings.items()))
        return json.dumps([persona, hash(card), data, self.parent(persona), strategy, base, asked], default=str)


def _empty(part: Any, rank: int, fits: bool, reason: str) -> PlanRow:
    return PlanRow(
        strategy=part.id, title=part.title, fits=fits, rank=rank, reason=reason,
        trainable_parameters=0, peak_memory_bytes=0, seconds=0, disk_bytes=0, uncertainty=1,
    )  # fmt: skip
