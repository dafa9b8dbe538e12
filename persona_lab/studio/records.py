"""What the studio keeps: prompts, styles, batches, rows and ratings. Frozen models; no behaviour beyond derivation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from persona_lab.personas.prompt import substitute
from persona_lab.types import Frozen, Id, Persona, Sampling, Variant, now

MOST_ROWS = 5000
MOST_SEEDS = 100

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=30)]


class Prompt(Frozen):
    """Something to say to a character; `{{char}}` in it becomes the character's name."""

    id: Id
    name: Name
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8000)]
    tags: tuple[Tag, ...] = ()


class Style(Frozen):
    """A way of replying: notes that follow the system prompt, and how replies are drawn (its seed is not used)."""

    id: Id
    name: Name
    notes: Annotated[str, StringConstraints(strip_whitespace=True, max_length=4000)] = ""
    sampling: Sampling = Sampling()


PLAIN = Style(id="plain", name="As it is")


class Task(Frozen):
    """One reply to be written."""

    id: str
    prompt: Prompt
    variant: Variant
    seed: int


class Batch(Frozen):
    """Prompts x variants x seeds, as they were when it was made: changing a prompt later does not change the batch."""

    id: Id
    name: Name
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1, max_length=MOST_SEEDS)
    style: Style = PLAIN
    characters: dict[str, str] = Field(default_factory=dict)
    """Names of the variants' personas by id."""
    created: str = Field(default_factory=now)

    @property
    def size(self) -> int:
        """How many rows it will have."""
        return len(self.prompts) * len(self.variants) * len(self.seeds)

    def tasks(self) -> list[Task]:
        """Every reply to be written. Those on one base come together, so that it is loaded once and batches are full;
        within a base they go prompt by prompt."""
        bases = list(dict.fromkeys(variant.base for variant in self.variants))
        return [
            Task(id=f"p{p}-v{v}-s{seed}", prompt=prompt, variant=variant, seed=seed)
            for base in bases
            for p, prompt in enumerate(self.prompts, 1)
            for seed in self.seeds
            for v, variant in enumerate(self.variants, 1)
            if variant.base == base
        ]

    def said(self, task: Task) -> str:
        """The prompt with its macros replaced."""
        name = self.characters.get(task.variant.persona) or task.variant.persona
        return substitute(task.prompt.text, Persona(id=task.variant.persona, name=name, card={}))


class Row(Frozen):
    """One reply with the stamp of the weights that made it, or the reason why there is none."""

    id: str
    prompt: str
    """The prompt's name."""
    text: str
    """What was said."""
    variant: str
    variant_name: str
    seed: int
    reply: str = ""
    error: str = ""
    adapter: str = ""
    base: str = ""
    tokens: int = 0
    seconds: float = 0.0
    created: str = Field(default_factory=now)


class Rating(Frozen):
    """What a person thinks of a row; the last one of a row counts. `stars` 0: none given."""

    row: str
    stars: int = Field(0, ge=0, le=5)
    verdict: Literal["", "good", "bad"] = ""
    note: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)] = ""
    created: str = Field(default_factory=now)

    @property
    def given(self) -> bool:
        """Whether it says anything."""
        return bool(self.stars or self.verdict or self.note)


class BatchView(Frozen):
    """A batch and how far it is."""

    id: str
    name: str
    created: str
    style: str
    prompts: int
    variants: tuple[str, ...]
    seeds: int
    total: int
    done: int
    failed: int
    rated: int
    status: Literal["running", "waiting", "paused", "done"]
    seconds_left: float | None = None
    problem: str = ""
    """Why it was stopped, if not by somebody."""
    folder: str = ""
