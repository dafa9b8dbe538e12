"""Finds, loads, isolates and reports plugins.

Built-ins first, through the same door as everybody: the entry-point group `persona_lab`, then `<home>/plugins/*.py`.
Every load and every call is inside a try: a plugin that fails to import, has a misspelt hook, raises or clashes is
reported with its name, distribution and traceback, and everything else goes on. This is the plugin border, so
catching broadly is meant here.

`PERSONA_LAB_DISABLE_PLUGINS=name,...` and the home's settings block; `PERSONA_LAB_STRICT_PLUGINS=1` raises, for
authors.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from persona_lab import hookspecs
from persona_lab.errors import PersonaLabError, PluginFailed, UnknownName
from persona_lab.preferences import read_preferences
from persona_lab.types import Kind, PluginInfo

GROUP = "persona_lab"
HOOKS: dict[Kind, str] = {
    "strategy": "persona_lab_strategies",
    "evaluator": "persona_lab_evaluators",
    "reader": "persona_lab_dataset_readers",
    "exporter": "persona_lab_exporters",
    "tab": "persona_lab_tabs",
}
REQUIRED = {
    "strategy": ("estimate", "train"),
    "evaluator": ("score",),
    "reader": ("detect", "read"),
    "exporter": ("export",),
    "tab": ("build",),
}
OBSERVERS = ("persona_lab_run_event", "persona_lab_guest_text")
MOST_REFUSAL = 500
HEAVY = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Origin:
    """Where a plugin came from."""

    name: str
    source: str
    distribution: str = ""
    version: str = ""


@dataclass
class Plugins:
    """All plugins of a process; make one with `Plugins.load`."""

    manager: pluggy.PluginManager
    origins: dict[str, Origin] = field(default_factory=dict)
    parts: dict[tuple[Kind, str], Any] = field(default_factory=dict)
    owners: dict[tuple[Kind, str], Origin] = field(default_factory=dict)
    problems: list[PluginInfo] = field(default_factory=list)
    slow: dict[str, str] = field(default_factory=dict)
    broken_filters: set[str] = field(default_factory=set)
    blocked: frozenset[str] = frozenset()

    @classmethod
    def load(cls, folder: Path | None = None, tabs: bool = False) -> Plugins:
        """Load built-ins, installed packages and the files of `folder` (the home's `plugins`, beside whose settings it
        lies); `tabs` also asks for tabs (the page only).

        Raises:
            BadInput: the home's settings cannot be read.
        """
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        plugins = cls(manager)
        plugins.blocked = frozenset(read_preferences(folder.parent).blocked_plugins if folder is not None else ())
        for origin, load in _candidates(folder):
            plugins._register(origin, load)
        for kind in HOOKS:
            if kind != "tab" or tabs:
                plugins._collect(kind)
        return plugins

    # --- asking ----------------------------------------------------------------------------------

    def all(self, kind: Kind) -> list[Any]:
        """The plugin objects of a kind, by `rank`, then by id."""
        found = [part for (k, _), part in self.parts.items() if k == kind]
        return sorted(found, key=lambda part: (getattr(part, "rank", 100), part.id))

    def get(self, kind: Kind, part_id: str) -> Any:
        """The plugin object with this id.

        Raises:
            UnknownName: there is none; lists the choices.
        """
        if (kind, part_id) not in self.parts:
            raise UnknownName(kind, part_id, [i for k, i in self.parts if k == kind])
        return self.parts[kind, part_id]

    def infos(self) -> list[PluginInfo]:
        """A row for each plugin part, then one for each problem."""
        rows = []
        for (kind, part_id), part in self.parts.items():
            origin = self.owners[kind, part_id]
            rows.append(
                PluginInfo(
                    id=part_id,
                    kind=kind,
                    title=part.title,
                    source=origin.source,
                    distribution=origin.distribution,
                    version=origin.version,
                    status="ok",
                    problem=self.slow.get(origin.name, ""),
                )
            )
        return rows + self.problems

    def guarded(self, kind: Kind, part_id: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call into a plugin: our own errors pass through, any other becomes `PluginFailed` with its name."""
        try:
            return call(*args, **kwargs)
        except (PersonaLabError, KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:
            if _is_resource_error(error):
                raise
            origin = self.owners.get((kind, part_id))
            who = f"{kind} {part_id!r} ({origin.distribution or origin.source})" if origin else f"{kind} {part_id!r}"
            raise PluginFailed(
                f"The {who} failed: {type(error).__name__}: {error}",
                "This is a fault in that plugin; its traceback is in the run's log.",
                plugin=part_id,
                details=traceback.format_exc(),
            ) from error

    def notify(self, run: Any, event: Any) -> None:
        """Tell observers of a run's event; one that raises is reported once and not asked again."""
        for implementation in list(self.manager.hook.persona_lab_run_event.get_hookimpls()):
            try:
                arguments = {"run": run, "event": event}
                implementation.function(*[arguments[name] for name in implementation.argnames])
            except Exception as error:
                self._fail(self.origins[implementation.plugin_name], None, f"persona_lab_run_event raised {error!r}")
                self.manager.unregister(name=implementation.plugin_name)

    @property
    def filtering(self) -> bool:
        """Whether there is a content filter."""
        return bool(self.manager.hook.persona_lab_guest_text.get_hookimpls())

    def refusal(self, text: str, role: str, persona: str) -> str:
        """What the first content filter that objects to a text says of it; empty: none does.

        A filter that raises objects to everything, and is reported once: what it was put there to stop must not pass.
        """
        for implementation in list(self.manager.hook.persona_lab_guest_text.get_hookimpls()):
            try:
                arguments = {"text": text, "role": role, "persona": persona}
                said = implementation.function(*[arguments[name] for name in implementation.argnames])
            except Exception as error:
                name = implementation.plugin_name
                if name not in self.broken_filters:
                    self.broken_filters.add(name)
                    problem = f"persona_lab_guest_text raised {error!r}; guests get no answers until it is mended."
                    self._fail(self.origins[name], None, problem, details=traceback.format_exc(), error=error)
                return "This could not be checked, so it was not passed on."
            if said is not None:
                return str(said)[:MOST_REFUSAL] or "This was not passed on."
        return ""

    # --- loading ---------------------------------------------------------------------------------

    def _register(self, origin: Origin, load: Callable[[], Any]) -> None:
        if origin.name in _disabled():
            self._fail(origin, None, "Disabled by PERSONA_LAB_DISABLE_PLUGINS.", status="disabled")
            return
        if origin.name in self.blocked and origin.source != "built-in":
            self._fail(origin, None, "Blocked in the settings of this home.", status="disabled")
            return
        if origin.name in self.origins:
            other = self.origins[origin.name]
            owner, newcomer = other.distribution or other.source, origin.distribution or origin.source
            self._fail(
                origin, None, f"The name {origin.name!r} is taken by {owner}; {newcomer} was not loaded. Rename one."
            )
            return
        heavy_before = {name for name in HEAVY if name in sys.modules}
        try:
            module = load()
            self.manager.register(module, name=origin.name)
            self._refuse_misspelt(origin.name)
        except (Exception, SystemExit) as error:  # a plugin file may even call sys.exit()
            if self.manager.has_plugin(origin.name):
                self.manager.unregister(name=origin.name)
            self._fail(origin, None, f"{type(error).__name__}: {error}", details=traceback.format_exc(), error=error)
            return
        self.origins[origin.name] = origin
        heavy = [name for name in HEAVY if name in sys.modules and name not in heavy_before]
        if heavy:
            self.slow[origin.name] = f"Imports {', '.join(heavy)} at its top, which slows every start by seconds."

    def _refuse_misspelt(self, name: str) -> None:
        module = self.manager.get_plugin(name)
        known = {*HOOKS.values(), *OBSERVERS}
        for implementation in self.manager.get_hookcallers(module) or []:
            if implementation.name not in known:
                raise UnknownName("hook", implementation.name, known)

    def _collect(self, kind: Kind) -> None:
        # in order of registration: pluggy calls the last registered first, but built-ins own their ids
        for implementation in list(getattr(self.manager.hook, HOOKS[kind]).get_hookimpls()):
            origin = self.origins[implementation.plugin_name]
            try:
                classes = list(implementation.function())
            except Exception as error:
                self._fail(origin, kind, f"{HOOKS[kind]} raised {error!r}", details=traceback.format_exc(), error=error)
                continue
            for part_class in classes:
                self._add(kind, part_class, origin)

    def _add(self, kind: Kind, part_class: Any, origin: Origin) -> None:
        part_id = str(getattr(part_class, "id", "") or getattr(part_class, "__name__", part_class))
        try:
            part = _checked(kind, part_class)
        except Exception as error:
            self._fail(origin, kind, str(error), part_id=part_id, details=traceback.format_exc(), error=error)
            return
        if (kind, part.id) in self.parts:
            first = self.owners[kind, part.id]
            owner, newcomer = (o.distribution or o.source for o in (first, origin))
            problem = (
                f"The {kind} id {part.id!r} is taken by {owner}; the one from {newcomer} was not loaded. Rename it."
            )
            self._fail(origin, kind, problem, part_id=part.id)
            return
        self.parts[kind, part.id] = part
        self.owners[kind, part.id] = origin

    def _fail(
        self,
        origin: Origin,
        kind: Kind | None,
        problem: str,
        *,
        part_id: str = "",
        details: str = "",
        status: Any = "failed",
        error: BaseException | None = None,
    ) -> None:
        if status == "failed" and os.environ.get("PERSONA_LAB_STRICT_PLUGINS") == "1":
            raise PluginFailed(
                f"Plugin {origin.name!r}: {problem}", "Strict mode is on.", origin.name, details
            ) from error
        self.problems.append(
            PluginInfo(
                id=part_id or origin.name,
                kind=kind,
                title=origin.name,
                source=origin.source,
                distribution=origin.distribution,
                version=origin.version,
                status=status,
                problem=problem,
                details=details,
            )
        )


def _disabled() -> set[str]:
    return {name.strip() for name in os.environ.get("PERSONA_LAB_DISABLE_PLUGINS", "").split(",") if name.strip()}


def _is_resource_error(error: Exception) -> bool:
    # full disks and exhausted devices are not the plugin's fault; the worker names them
    return isinstance(error, OSError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")


def _candidates(folder: Path | None) -> Iterable[tuple[Origin, Callable[[], Any]]]:
    """Every plugin to try: the built-in, then packages by name, then files by name."""
    points = sorted(
        importlib.metadata.entry_points(group=GROUP), key=lambda point: (point.name != "builtin", point.name)
    )
    if not any(point.name == "builtin" for point in points):  # run from a checkout that is not installed
        builtin = importlib.metadata.EntryPoint("builtin", "persona_lab_builtin.plugin", GROUP)
        points.insert(0, builtin)
    seen: set[tuple[str, str]] = set()
    for point in points:
        if (point.name, point.value) in seen:  # an editable install can list its metadata twice
            continue
        seen.add((point.name, point.value))
        yield _origin(point), point.load
    if folder is not None and folder.is_dir():
        for path in sorted(folder.glob("*.py")):
            yield Origin(path.stem, str(path)), functools.partial(_load_file, path)


def _origin(point: importlib.metadata.EntryPoint) -> Origin:
    distribution = getattr(point, "dist", None)
    name = distribution.name if distribution else "persona-lab"
    version = distribution.version if distribution else ""
    return Origin(point.name, "built-in" if point.name == "builtin" else "package", name, version)


def _load_file(path: Path) -> ModuleType:
    name = f"persona_lab_local_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _checked(kind: Kind, part_class: Any) -> Any:
    """An instance of the class, after checking that it is whole.

    Raises:
        TypeError: something of the contract is missing, named.
    """
    if not inspect.isclass(part_class):
        raise TypeError(f"{part_class!r} is not a class; give the class itself")
    missing = [name for name in ("id", "title", *REQUIRED[kind]) if not getattr(part_class, name, None)]
    if missing:
        raise TypeError(f"{part_class.__name__} lacks {', '.join(missing)}")
    return part_class()
