"""What a part of the engine may use of the whole."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from persona_lab.catalog import Catalog
from persona_lab.events import AnyEvent
from persona_lab.home import Home
from persona_lab.jobs import Supervisor
from persona_lab.library import Library
from persona_lab.plugins import Plugins
from persona_lab.types import (
    BaseModelInfo,
    ChatChunk,
    ChatRequest,
    Dataset,
    DatasetSummary,
    Persona,
    ReportView,
    RunView,
    Variant,
)

if TYPE_CHECKING:
    from persona_lab.chats.votes import Votes


class Part(ABC):
    """The engine as its parts see it; documented where it is defined, in `engine`."""

    home: Home
    library: Library
    catalog: Catalog
    supervisor: Supervisor
    _guard: threading.RLock
    _votes: Votes | None

    @property
    @abstractmethod
    def plugins(self) -> Plugins: ...
    @abstractmethod
    def persona(self, persona_id: str) -> Persona: ...
    @abstractmethod
    def datasets(self, persona_id: str | None = None) -> list[DatasetSummary]: ...
    @abstractmethod
    def dataset(self, dataset_id: str) -> Dataset: ...
    @abstractmethod
    def base_model(self, base: str) -> BaseModelInfo: ...
    @abstractmethod
    def base_variant(self, persona_id: str, base: str = "starter") -> Variant: ...
    @abstractmethod
    def variants(self, persona_id: str | None = None) -> list[Variant]: ...
    @abstractmethod
    def variant(self, variant_id: str) -> Variant: ...
    @abstractmethod
    def runs(self) -> list[RunView]: ...
    @abstractmethod
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
    ) -> str: ...
    @abstractmethod
    def run(self, run_id: str) -> RunView: ...
    @abstractmethod
    def events(self, run_id: str, offset: int = 0) -> tuple[list[AnyEvent], int]: ...
    @abstractmethod
    def reports(self, persona_id: str | None = None) -> list[ReportView]: ...
    @abstractmethod
    def _submit(self, kind: Any, stem: str, **fields: Any) -> str: ...
    @abstractmethod
    def chat(self, requests: Iterable[ChatRequest], owner: str = "") -> Iterator[ChatChunk]: ...
