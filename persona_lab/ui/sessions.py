"""What one browser window holds of the chat, and how it is saved and brought back. No gradio."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from persona_lab.chats.records import Candidate, SavedChat, SavedPane, Vote, new_id
from persona_lab.engine import Engine
from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.personas import prompt
from persona_lab.types import ChatRequest, Persona, Sampling, Variant, now
from persona_lab.ui.talk import PANES, Talk, Turn

LETTERS = "ABCDEF"
MODEL = "model:"


@dataclass
class Session:
    """The conversation of one window.

    `variants`: who speaks in each pane; while `hidden` (a blind comparison) in a shuffled order that the browser must
    not learn. `chat` is empty until something was said.
    """

    persona: str = ""
    owner: str = ""
    talks: list[Talk] = field(default_factory=lambda: [Talk() for _ in range(PANES)])
    variants: list[str] = field(default_factory=list)
    traits: list[dict[str, float]] = field(default_factory=lambda: [{} for _ in range(PANES)])
    """Of each pane, the traits that have a slider there, and where it stands."""
    count: int = 2
    hidden: bool = False
    voted: str = ""
    greeting: str = ""
    busy: bool = False
    asked: int = 0
    """How often replies were asked for in this window."""
    looked: int = 0
    """`asked`, when all of the panes were last drawn by something else than the replies' own stream."""
    chat: str = ""
    created: str = ""
    revision: int = 0
    branch_of: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the last replies were drawn, as saved."""
    models: list[str] = field(default_factory=list)
    """Ids of base models that were added to the panes' lists."""
    names: dict[str, str] = field(default_factory=dict)
    """What those who can speak are called, by id, as the panes' lists were last drawn."""

    @property
    def shown(self) -> list[Talk]:
        """The conversations of the visible panes."""
        return self.talks[: self.count]

    @property
    def said(self) -> bool:
        """Whether the user has said anything."""
        return any(talk.questions() for talk in self.talks)

    def refuse_while_busy(self) -> None:
        """Raise while replies are written.

        Raises:
            BadInput
        """
        if self.busy:
            raise BadInput("Replies are still being written.", "Wait for them, or press Stop.")

    def begin(self, said: str | None = None) -> None:
        """A new conversation, with a greeting (None: the one before)."""
        self.greeting = self.greeting if said is None else said
        self.talks = [Talk([Turn("assistant", self.greeting)] if self.greeting else []) for _ in range(PANES)]
        self.chat, self.created, self.revision, self.branch_of, self.voted = "", "", 0, "", ""

    def branch(self) -> None:
        """Go on as a conversation of its own; what was saved stays as it is."""
        self.branch_of, self.chat, self.created, self.revision, self.voted = self.chat, "", "", 0, ""

    def hide(self) -> None:
        """Begin a blind comparison of the visible panes. Sliders are put back: what is compared are variants.

        Raises:
            BadInput: there is nothing to compare.
        """
        if len(set(self.variants[: self.count])) < 2:
            raise BadInput(
                "A blind comparison needs two panes with different variants.", "Choose them in the panes first."
            )
        order = list(dict.fromkeys(self.variants[: self.count]))
        random.SystemRandom().shuffle(order)
        rest = [variant for variant in self.variants if variant not in order]
        self.count = len(order)
        self.traits = [{} for _ in range(PANES)]
        self.variants = (order + rest + order * PANES)[:PANES]
        self.hidden = True
        self.begin()

    # --- asking ----------------------------------------------------------------------------------

    def requests(self, engine: Engine, sampling: Sampling) -> list[ChatRequest]:
        """What to ask the chat worker for; a pane whose variant is gone fails by itself."""
        wanted = []
        for number, talk in enumerate(self.shown):
            if not talk.waiting:
                continue
            try:
                variant = find_variant(engine, self.persona, self.variants[number])
                if self.traits[number]:
                    (variant,) = engine.pulled([variant], self.traits[number])
            except PersonaLabError as error:
                talk.fail(str(error))
                continue
            wanted.append(ChatRequest(pane=str(number), variant=variant, messages=talk.messages(), sampling=sampling))
        return wanted

    def vote(self, voter: str, outcome: str, winner: int | None, reason: str) -> Vote:
        """The judgement of the last replies.

        Raises:
            BadInput: they cannot be judged (yet).
        """
        if not self.hidden:
            raise BadInput("The names are shown, so a vote would not be blind.", "Begin a blind comparison.")
        if not all(talk.answered() and not talk.turns[-1].error for talk in self.shown):
            raise BadInput("Not every pane has a reply to judge.", "Say something, and wait for all replies.")
        candidates = []
        for number, talk in enumerate(self.shown):
            last = talk.turns[-1]
            candidates.append(
                Candidate(
                    reply=last.id,
                    variant=self.variants[number],
                    adapter=last.stamp.adapter if last.stamp else "",
                    seed=last.stamp.seed if last.stamp else 0,
                    messages=talk.messages(len(talk.turns) - 1),
                    text=last.text,
                )
            )
        return Vote.model_validate(
            {
                "id": "",
                "persona": self.persona,
                "voter": voter,
                "chat": self.chat,
                "candidates": candidates,
                "outcome": outcome,
                "winner": winner,
                "reason": reason.strip()[:2000],
                "created": now(),
            }
        )

    # --- saving ----------------------------------------------------------------------------------

    def save(self, engine: Engine, settings: Mapping[str, Any]) -> None:
        """Write the conversation, if anything was said."""
        self.settings = dict(settings)
        if not self.said:
            return
        self.chat = self.chat or new_id()
        self.created = self.created or now()
        panes = [
            SavedPane(
                variant=v, name=self.names.get(v, v), turns=tuple(turn.saved() for turn in talk.turns), traits=traits
            )
            for v, talk, traits in zip(self.variants, self.talks, self.traits, strict=False)
        ]
        chat = SavedChat(
            id=self.chat,
            persona=self.persona,
            owner=self.owner,
            created=self.created,
            revision=self.revision,
            panes=tuple(panes),
            count=self.count,
            settings=dict(settings),
            branch_of=self.branch_of,
            hidden=self.hidden,
            voted=self.voted,
        )
        saved = engine.chats.save(chat)
        self.chat, self.revision, self.created, self.branch_of = (
            saved.id,
            saved.revision,
            saved.created,
            saved.branch_of,
        )

    def bring_back(self, saved: SavedChat) -> None:
        """Go on with a saved conversation."""
        self.persona, self.chat, self.created, self.revision = saved.persona, saved.id, saved.created, saved.revision
        self.branch_of, self.hidden, self.voted, self.count = saved.branch_of, saved.hidden, saved.voted, saved.count
        self.settings = dict(saved.settings)
        self.variants = [pane.variant for pane in saved.panes]
        self.variants += self.variants[-1:] * (PANES - len(self.variants))
        self.traits = [dict(pane.traits) for pane in saved.panes]
        self.traits += [{} for _ in range(PANES - len(self.traits))]
        self.talks = [Talk([Turn.of(turn) for turn in pane.turns]) for pane in saved.panes]
        self.talks += [Talk() for _ in range(PANES - len(self.talks))]
        self.models = list(
            dict.fromkeys([*self.models, *(v.removeprefix(MODEL) for v in self.variants if v.startswith(MODEL))])
        )


# --- who can speak ------------------------------------------------------------------------------------


def find_variant(engine: Engine, persona: str, value: str) -> Variant:
    """The variant that a pane's value names.

    Raises:
        UnknownName, BadInput, BadModel
    """
    if value.startswith(MODEL):
        return engine.model_variant(persona, value.removeprefix(MODEL))
    return engine.variant(value)


def variant_choices(engine: Engine, persona: str, models: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(name, value) of all that can speak: this character's variants, the base, other models, other characters'."""
    found = engine.variants()
    people = {person.id: person.name for person in engine.personas()}
    base = engine.base_variant(persona)
    own = [(f"{v.name} ({v.strategy})", v.id) for v in found if v.persona == persona]
    kept = [info for info in engine.models() if info.id != base.base]
    bases = [("Base model, untrained", base.id)]
    bases += [(f"{info.name}, untrained", MODEL + info.id) for info in kept]
    named = {value for _, value in bases}
    bases += [(f"{model}, untrained", MODEL + model) for model in models if MODEL + model not in named]
    others = [
        (f"{people.get(v.persona, v.persona)}: {v.name} ({v.strategy})", v.id) for v in found if v.persona != persona
    ]
    return [*own, *bases, *others]


def greetings(persona: Persona) -> list[tuple[str, str]]:
    """(short, whole) of the card's first message and its alternatives, and none at all."""
    return [*((_short(text), text) for text in prompt.greetings(persona)), ("No greeting", "")]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:88] + " …"
