"""The studio, storage and the preferences of a home."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import BadInput
from persona_lab.jobs import ACTIVE
from persona_lab.parts.base import Part
from persona_lab.preferences import Preferences, read_preferences, write_preferences
from persona_lab.types import now

if TYPE_CHECKING:
    from persona_lab.backup import BackedUp, Restored
    from persona_lab.export.choices import ExportChoice
    from persona_lab.storage import Use
    from persona_lab.studio.studio import Studio


class Keeping(Part):
    """The studio, storage and the preferences of a home."""

    @functools.cached_property
    def studio(self) -> Studio:
        """The prompt library, styles and batches of replies."""
        from persona_lab.studio.studio import Studio

        return Studio(self.home, self.chat, lambda folder, name: self.catalog.trash.put_aside(folder, name, []))

    @property
    def preferences(self) -> Preferences:
        """The settings of this home.

        Raises:
            BadInput: their file is damaged.
        """
        return read_preferences(self.home.root)

    def default_base(self) -> str:
        """The base model that a training begins with unless told otherwise."""
        return self.preferences.default_base

    def set_preferences(self, **values: Any) -> Preferences:
        """Change some settings; workers that run go on with the old ones.

        Raises:
            BadSetting: nothing was changed. BadInput, DiskFull
        """
        with self._guard:
            return write_preferences(self.home.root, values)

    def storage(self) -> list[Use]:
        """What the home keeps on the disk, by kind."""
        from persona_lab.storage import usage

        return usage(self.home)

    def clean(self, kind: str) -> int:
        """Delete the cache, the logs or the trash; gives the bytes that were freed.

        Raises:
            UnknownName. BadInput: it holds work, or a run is in progress.
        """
        from persona_lab.storage import clean

        active = next((run.id for run in self.runs() if run.status in ACTIVE), None)
        if active:
            raise BadInput(f"Run {active!r} is in progress and may be using it.", "Wait for it, or stop it.")
        return clean(self.home, kind)

    def back_up(self, out: str | Path, weights: bool = False) -> BackedUp:
        """Write everything that cannot be made again into one file; runs in progress need not stop.

        Args:
            weights: also those of variants and foundations.

        Raises:
            BadInput: the file is there already. DiskFull
        """
        from persona_lab import backup

        return backup.back_up(self.home, Path(out), weights)

    def back_up_here(self, weights: bool = False) -> BackedUp:
        """As `back_up`, into the home's own `backups` folder, under a name with the time.

        Raises:
            DiskFull
        """
        return self.back_up(self.home.root / "backups" / f"persona-lab-{now()[:19].replace(':', '-')}.zip", weights)

    def restore(self, file: str | Path) -> Restored:
        """Put a backup back: what it replaces is kept under `replaced`, and what it does not hold stays.

        Raises:
            BadInput: it cannot be used, or a run is in progress. DiskFull
        """
        from persona_lab import backup

        active = next((run.id for run in self.runs() if run.status in ACTIVE), None)
        if active:
            raise BadInput(f"Run {active!r} is in progress.", "Wait for it, or stop it.")
        with self._guard:
            done = backup.restore(self.home, self.library, Path(file))
            self.catalog.recover()
            self._votes = None  # the next to ask finds the votes that came
        return done

    def deleted_last(self) -> str:
        """The id of what `undo_delete` would bring back; empty if there is nothing."""
        return self.catalog.trash.last()

    def export_choices(self, variant_id: str) -> list[ExportChoice]:
        """The formats a variant can be taken away in, those that are possible first.

        Raises:
            UnknownName, PluginFailed
        """
        from persona_lab.export.choices import export_choices

        variant = self.variant(variant_id)
        return export_choices(self.plugins, variant, self.base_model(variant.base))
