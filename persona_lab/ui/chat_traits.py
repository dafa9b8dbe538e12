"""Trait sliders beside each pane of the Chat tab: choose traits, pull, compute what is missing, save as a variant."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.inference.trait_files import FULL
from persona_lab.inference.trait_files import told as told_traits
from persona_lab.traits.library import told as told_state
from persona_lab.types import RunView, TraitState, Variant
from persona_lab.ui.html import esc
from persona_lab.ui.notices import guarded, problem_box, warn
from persona_lab.ui.page import QUIET
from persona_lab.ui.runs import ACTIVE
from persona_lab.ui.sessions import Session, find_variant

if TYPE_CHECKING:
    from persona_lab.ui.chat_tab import Chat

SLIDERS = 4
"""Traits at once in one pane."""
LOOK_SECONDS = 0.5


class PaneTraits:
    """The sliders of one pane. `shown` is redrawn with the tab; session.traits has the settings."""

    def __init__(self, number: int) -> None:
        self.number = number
        name = f"traits-{number + 1}"
        with gr.Accordion("Traits", open=False, elem_id=name, elem_classes=["pl-traits"]) as self.box:
            self.pick = gr.Dropdown(
                [], value=[], multiselect=True, max_choices=SLIDERS, label=f"Traits of pane {number + 1}",
                elem_id=f"{name}-pick", interactive=True,
                info="Pull this pane towards a manner while it speaks; nothing is trained.",
            )  # fmt: skip
            self.sliders = [
                gr.Slider(
                    -100, 100, 0, step=5, visible=False, label=f"Trait {place + 1}", elem_id=f"{name}-{place + 1}"
                )
                for place in range(SLIDERS)
            ]
            self.told = gr.HTML(elem_id=f"{name}-told")
            with gr.Row():
                self.compute = gr.Button("Compute", size="sm", visible=False, elem_id=f"{name}-compute")
                self.save = gr.Button("Save as variant", size="sm", interactive=False, elem_id=f"{name}-save")
        self.shown = [self.box, self.pick, *self.sliders, self.told, self.compute, self.save]

    def wire(self, chat: Chat) -> None:
        """Connect the controls."""
        own = [*self.shown, chat.session]
        redraw = guarded(len(own))
        self.pick.input(redraw(self._picking(chat)), [self.pick, chat.session], own, **QUIET)
        moved = [self.box, self.save, chat.session]
        for place, slider in enumerate(self.sliders):
            slider.input(
                guarded(len(moved))(self._moving(place)), [slider, chat.session], moved,
                trigger_mode="always_last", **QUIET,
            )  # fmt: skip
        self.compute.click(self._computing(chat), chat.session, own, **QUIET)
        self.save.click(guarded(len(chat.look))(self._saving(chat)), chat.session, chat.look, **QUIET)
        # another variant may lie on another base, where other traits are ready
        chooser = chat.choosers[self.number]
        chooser.input(redraw(self._choosing(chat)), [chooser, chat.session], own, **QUIET)

    def draw(self, chat: Chat, session: Session) -> list[Any]:
        """Updates for `shown`."""
        hidden = [gr.update(visible=False), *[gr.skip()] * (len(self.shown) - 1)]
        if session.hidden:
            return hidden
        try:
            variant = find_variant(chat.page.engine, session.persona, session.variants[self.number])
            states = {state.trait.id: state for state in chat.page.engine.traits(variant=variant)}
        except PersonaLabError:
            return hidden  # the pane itself says why it cannot speak
        settings = session.traits[self.number]
        chosen = [states[name] for name in settings if name in states][:SLIDERS]
        keep_possible(settings, chosen)
        sliders = [_slider(state, settings[state.trait.id]) for state in chosen]
        sliders += [gr.update(visible=False)] * (SLIDERS - len(chosen))
        missing = [state for state in chosen if state.status == "not computed"]
        return [
            gr.update(visible=True, label=title(settings)),
            gr.update(choices=choices(list(states.values())), value=[state.trait.id for state in chosen]),
            *sliders,
            told(variant, chosen),
            gr.update(visible=bool(missing), interactive=True, value=f"Compute {len(missing)} for {variant.base}"),
            gr.update(interactive=any(settings.values())),
        ]

    def _choosing(self, chat: Chat) -> Callable[[str | None, Session], list[Any]]:
        def choose(value: str | None, session: Session) -> list[Any]:
            if value and not session.hidden:  # the chooser's own handler may come after this one
                session.variants[self.number] = value
            return [*self.draw(chat, session), session]

        return choose

    def _picking(self, chat: Chat) -> Callable[[list[str] | None, Session], list[Any]]:
        def pick(ids: list[str] | None, session: Session) -> list[Any]:
            before = session.traits[self.number]
            session.traits[self.number] = {name: before.get(name, 0.0) for name in (ids or [])[:SLIDERS]}
            return [*self.draw(chat, session), session]

        return pick

    def _moving(self, place: int) -> Callable[[float, Session], list[Any]]:
        def move(value: float, session: Session) -> list[Any]:
            settings = session.traits[self.number]
            names = list(settings)
            if place < len(names):
                settings[names[place]] = float(value or 0)
            return [gr.update(label=title(settings)), gr.update(interactive=any(settings.values())), session]

        return move

    def _computing(self, chat: Chat) -> Callable[[Session], Iterator[list[Any]]]:
        rest = len(self.shown)

        def compute(session: Session) -> Iterator[list[Any]]:
            engine = chat.page.engine
            try:
                variant = find_variant(engine, session.persona, session.variants[self.number])
                states = {state.trait.id: state for state in engine.traits(variant=variant)}
                chosen = [states[name] for name in session.traits[self.number] if name in states]
                names = [state.trait.id for state in chosen if state.status == "not computed"]
                run_id = engine.compute_traits(names, variant.base)
                while (run := engine.run(run_id)).status in ACTIVE:
                    updates: list[Any] = [gr.skip()] * (rest + 1)
                    updates[self.shown.index(self.told)] = progress(run)
                    updates[self.shown.index(self.compute)] = gr.update(interactive=False)
                    yield updates
                    time.sleep(LOOK_SECONDS)
                updates = [*self.draw(chat, session), session]
                if run.status != "done":
                    box = problem_box(f"The traits were not computed: {run.status}", run.message, run.fix)
                    updates[self.shown.index(self.told)] = box
                yield updates
            except Exception as error:  # noqa: BLE001 - the page's border: it must reach the user
                warn(error)
                yield [gr.skip()] * (rest + 1)

        return compute

    def _saving(self, chat: Chat) -> Callable[[Session], list[Any]]:
        def save(session: Session) -> list[Any]:
            session.refuse_while_busy()
            variant = find_variant(chat.page.engine, session.persona, session.variants[self.number])
            if not any(session.traits[self.number].values()):
                raise BadInput("Every slider stands at 0, so there is nothing to keep.", "Move one first.")
            made = chat.page.engine.save_steered(variant, session.traits[self.number])
            session.variants[self.number], session.traits[self.number] = made.id, {}
            gr.Info(f"Kept as {esc(made.name)}: it can be evaluated, compared and voted on like any other.")
            return chat.draw(session)

        return save


def choices(states: Sequence[TraitState]) -> list[tuple[str, str]]:
    """(name, id) of the traits: those that work here first."""
    order = {"ready": 0, "not computed": 1, "does not steer": 2}
    notes = {"ready": "", "not computed": " (not computed yet)", "does not steer": " (does not steer this model)"}
    found = sorted(states, key=lambda state: order[state.status])
    return [
        (f"{s.trait.title}: {s.trait.away_label} … {s.trait.towards_label}{notes[s.status]}", s.trait.id) for s in found
    ]


def title(settings: dict[str, float]) -> str:
    """Of the closed panel: what is pulled."""
    count = sum(1 for value in settings.values() if value)
    return f"Traits ({count} pulled)" if count else "Traits"


def told(variant: Variant, chosen: Sequence[TraitState]) -> str:
    """What the user should know about these sliders. HTML."""
    lines = []
    if variant.traits:
        own = told_traits(variant.traits)
        lines.append(f"{variant.name} keeps a pull of its own: {own}. A slider here takes its trait's place.")
    lines += [told_state(state) for state in chosen if bounds(state) != (-FULL, FULL) or state.calibration is None]
    return "".join(f'<p class="pl-soft">{esc(line)}</p>' for line in lines)


def progress(run: RunView) -> str:
    """One line on a computation. HTML."""
    if run.status == "queued":
        return '<p class="pl-soft">Waiting for the runs before it …</p>'
    share = f" ({run.step / run.total:.0%})" if run.total else ""
    return f'<p class="pl-soft">{esc(run.phase or "Starting")}{share} …</p>'


def _slider(state: TraitState, value: float) -> Any:
    trait, works = state.trait, state.calibration is not None and state.calibration.steers
    label = f"{trait.title}: {trait.away_label} ← → {trait.towards_label}"
    # a slider that cannot be moved has its whole width all the same
    low, high = bounds(state) if works else (-FULL, FULL)
    kept = min(max(value, low), high)
    return gr.update(visible=True, label=label, minimum=low, maximum=high, value=kept, interactive=works)


def keep_possible(settings: dict[str, float], chosen: Sequence[TraitState]) -> None:
    """Take back, in place, what this model cannot be pulled to: it must not stand behind a slider that shows 0."""
    for state in chosen:
        low, high = bounds(state)
        settings[state.trait.id] = min(max(settings[state.trait.id], low), high)


def bounds(state: TraitState) -> tuple[float, float]:
    """How far a trait can be pulled on this model, each way; all the way while that is not known."""
    found = state.calibration
    if found is None:
        return -FULL, FULL
    return -FULL if found.away is not None else 0.0, FULL if found.towards is not None else 0.0
