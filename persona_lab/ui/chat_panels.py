"""Panels below the chat: how replies are drawn, saved conversations, and what the panes read. See chat_tab.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from pydantic import ValidationError

from persona_lab.chats.records import SavedChat
from persona_lab.chats.store import exported
from persona_lab.errors import BadInput, PersonaLabError
from persona_lab.home import write_atomic
from persona_lab.types import Sampling, Variant
from persona_lab.ui.html import esc, when
from persona_lab.ui.notices import error_box, guarded, problem_box
from persona_lab.ui.page import QUIET
from persona_lab.ui.sessions import MODEL, Session, find_variant, greetings

if TYPE_CHECKING:
    from persona_lab.ui.chat_tab import Chat

SEED_LIMIT = 2**31 - 1
FIELDS = ("max_new_tokens", "temperature", "top_p", "repetition_penalty")
PRESETS: dict[str, dict[str, float]] = {
    "Balanced": {},
    "Always the likeliest words": {"temperature": 0.0},
    "Careful": {"temperature": 0.4, "top_p": 0.8},
    "Lively": {"temperature": 1.0, "top_p": 0.95},
    "Wild": {"temperature": 1.4, "top_p": 0.98, "repetition_penalty": 1.2},
}
OWN = "My own"


class SamplingPanel:
    """Seed, presets and the numbers behind them. `values`: seed, then one component for each of FIELDS."""

    def __init__(self) -> None:
        default = Sampling.model_validate({})
        info = {name: field.description or "" for name, field in Sampling.model_fields.items()}
        with gr.Accordion("How replies are drawn", open=False, elem_id="sampling"):
            with gr.Row():
                self.preset = gr.Dropdown(
                    [*PRESETS, OWN], value="Balanced", label="Preset", elem_id="preset",
                    info="Small models repeat themselves when they are careful, and ramble when they are wild.",
                )  # fmt: skip
                self.seed = gr.Number(
                    0, label="Seed", precision=0, info="All panes use the same one; it is in every stamp.",
                    min_width=140, elem_id="seed",
                )  # fmt: skip
            with gr.Accordion("Advanced", open=False), gr.Row():
                longest = gr.Slider(
                    8, 512, default.max_new_tokens, step=8, label="Longest reply", info=info["max_new_tokens"],
                    elem_id="longest",
                )  # fmt: skip
                numbers = [
                    gr.Slider(low, high, getattr(default, name), step=0.05, label=label, info=info[name])
                    for name, label, low, high in (
                        ("temperature", "Temperature", 0, 2),
                        ("top_p", "Top-p", 0.05, 1),
                        ("repetition_penalty", "Repetition penalty", 1, 2),
                    )
                ]
        self.values = [self.seed, longest, *numbers]
        self.preset.input(_preset, self.preset, numbers, **QUIET)
        for slider in numbers:
            slider.input(_name_of, numbers, self.preset, **QUIET)

    @staticmethod
    def read(values: Sequence[Any]) -> tuple[Sampling, dict[str, Any]]:
        """The settings, and the same as plain values to be saved.

        Raises:
            BadInput: one is out of its bounds.
        """
        try:
            sampling = Sampling(seed=int(values[0] or 0), **dict(zip(FIELDS, values[1:], strict=True)))
        except (ValidationError, ValueError, TypeError) as error:
            raise BadInput(f"A setting under 'How replies are drawn' is out of bounds: {error}.") from error
        return sampling, sampling.model_dump(mode="json")

    @staticmethod
    def next_seed(seed: Any) -> int:
        """The seed after this one."""
        return (int(seed or 0) + 1) % SEED_LIMIT

    @staticmethod
    def updates(saved: Mapping[str, Any]) -> list[Any]:
        """Updates for `values`; what was not saved stays."""
        return [gr.update(value=saved[name]) if name in saved else gr.skip() for name in ("seed", *FIELDS)]


def _numbers(preset: str) -> tuple[float, ...]:
    default = Sampling.model_validate({})
    return tuple(PRESETS[preset].get(name, getattr(default, name)) for name in FIELDS[1:])


def _preset(name: str) -> list[Any]:
    return list(_numbers(name)) if name in PRESETS else [gr.skip()] * 3


def _name_of(*numbers: float) -> str:
    return next((name for name in PRESETS if _numbers(name) == tuple(numbers)), OWN)


class SavedPanel:
    """Conversations that were saved: every one is, as it goes. Open, branch, take away, delete."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        with gr.Accordion("Conversations", open=False, elem_id="conversations-panel"):
            gr.HTML('<p class="pl-soft">Everything said is saved at once, for this browser only.</p>')
            with gr.Row(elem_classes=["pl-withbutton"]):
                self.pick = gr.Dropdown(
                    [], label="Saved conversations", elem_id="saved-chats", interactive=True, scale=4
                )
                self.open = gr.Button("Open", size="sm", min_width=80, elem_id="open-chat")
                self.delete = gr.Button("Delete", size="sm", min_width=80, elem_id="delete-chat")
            with gr.Row(elem_classes=["pl-withbutton"]):
                self.before = gr.Dropdown(
                    [], label="Branch: go back to before …", elem_id="branch-before", interactive=True, scale=4,
                    info="The conversation so far stays saved; a copy goes on from there.",
                )  # fmt: skip
                self.branch = gr.Button("Branch", size="sm", min_width=80, elem_id="branch")
            with gr.Row():
                self.files = [
                    gr.DownloadButton(f"Download as {name}", size="sm", interactive=False, elem_id=f"download-{kind}")
                    for name, kind in (("Markdown", "md"), ("JSONL", "jsonl"))
                ]
        self.shown = [self.pick, self.before, *self.files]

    def wire(self) -> None:
        """Connect the buttons."""
        chat, values = self.chat, self.chat.sampling.values
        redraw = guarded(len(chat.look) + len(values))
        self.open.click(redraw(self._open), [self.pick, chat.session], [*chat.look, *values], **QUIET)
        self.delete.click(guarded(len(chat.look))(self._delete), [self.pick, chat.session], chat.look, **QUIET)
        self.branch.click(
            guarded(1 + len(chat.look))(self._branch), [self.before, chat.session], [chat.box, *chat.look], **QUIET
        )

    def draw(self, session: Session) -> list[Any]:
        """Updates for `shown`."""
        found = self.chat.page.engine.chats.all(session.owner, session.persona) if session.owner else []
        choices = [(f"{when(c.changed)}  {c.title}{' (blind)' if c.hidden else ''}", c.id) for c in found]
        asked = next((talk for talk in session.shown if talk.questions()), None)
        questions = [asked.turns[place].text for place in asked.questions()] if asked else []
        points = [(f"{n + 1}: {' '.join(text.split())[:80]}", n) for n, text in enumerate(questions)]
        current = next((c for c in found if c.id == session.chat), None)
        return [
            gr.update(choices=choices, value=current.id if current else None),
            gr.update(choices=points, value=len(points) - 1 if points else None),
            *self._files(current if not session.busy else None),
        ]

    def _files(self, current: SavedChat | None) -> list[Any]:
        if current is None or current.hidden:
            return [gr.update(value=None, interactive=False)] * 2
        folder = Path(self.chat.page.downloads) / "chats"
        updates = []
        for kind in ("md", "jsonl"):
            file = folder / f"{current.persona}-{current.id}.{kind}"
            write_atomic(file, exported(current, kind))
            updates.append(gr.update(value=str(file), interactive=True))
        return updates

    def _open(self, chat_id: str | None, session: Session) -> list[Any]:
        _refuse(session, chat_id, "No conversation is chosen.")
        saved = self.chat.page.engine.chats.get(chat_id or "", session.owner)
        session.bring_back(saved)
        return [*self.chat.draw(session), *self.chat.sampling.updates(saved.settings)]

    def _delete(self, chat_id: str | None, session: Session) -> list[Any]:
        _refuse(session, chat_id, "No conversation is chosen.")
        self.chat.page.engine.chats.delete(chat_id or "", session.owner)
        if chat_id == session.chat:
            session.hidden = False
            session.begin()
        gr.Info("The conversation is deleted; votes and feedback given in it stay.")
        return self.chat.draw(session)

    def _branch(self, question: int | None, session: Session) -> list[Any]:
        _refuse(session, question, "There is nothing to go back to yet.")
        talk = next(talk for talk in session.shown if talk.questions())
        text = talk.turns[talk.questions()[int(question or 0)]].text
        session.branch()
        for each in session.talks:
            each.cut(int(question or 0))
        return [text, *self.chat.draw(session)]


class ReadingPanel:
    """The greeting, the system prompt of each pane, and models that are not in the lists yet."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        with gr.Accordion("Greeting, and what each pane reads", open=False, elem_id="reading") as self.panel:
            self.greeting = gr.Dropdown(
                [], label="Greeting", elem_id="greeting", interactive=True,
                info="The card's first message or one of its alternatives; a new one begins a new conversation.",
            )  # fmt: skip
            self.prompts = gr.HTML(elem_id="prompts")
        with gr.Accordion("Talk to another model", open=False, elem_id="other-model"):
            with gr.Row(elem_classes=["pl-withbutton"]):
                self.name = gr.Textbox(
                    label="Hub id, local folder or GGUF file", elem_id="model-name", max_lines=1, scale=4,
                    placeholder="org/model, /path/to/folder or /path/to/file.gguf",
                    info="It answers under the character's card, untrained. Safetensors or GGUF only; no code is run.",
                )  # fmt: skip
                self.add = gr.Button("Put it into the last pane", size="sm", elem_id="add-model")
            self.told = gr.HTML(elem_id="model-told")
        self.shown = [self.greeting, self.prompts]

    def wire(self) -> None:
        """Connect the controls."""
        chat = self.chat
        redraw = guarded(len(chat.look))
        self.greeting.input(redraw(self._greet), [self.greeting, chat.session], chat.look, **QUIET)
        self.panel.expand(guarded(1)(self._read), chat.session, self.prompts, **QUIET)
        for chooser in chat.choosers:
            chooser.change(guarded(1)(self._read), chat.session, self.prompts, **QUIET)
        gr.on(
            [self.add.click, self.name.submit],
            guarded(len(chat.look) + 2)(self._add),
            [self.name, chat.session],
            [self.told, self.name, *chat.look],
            **QUIET,
        )

    def draw(self, session: Session) -> list[Any]:
        """Updates for `shown`."""
        choices = greetings(self.chat.page.engine.persona(session.persona))
        known = {text for _, text in choices}
        value = session.greeting if session.greeting in known else choices[0][1]
        return [gr.update(choices=choices, value=value), self._read(session)]

    def _read(self, session: Session) -> str:
        if not session.persona or session.hidden:
            return problem_box("Hidden", "What the panes read is shown when you have voted.", tone="warn")
        parts = []
        for number in range(session.count):
            try:
                variant = find_variant(self.chat.page.engine, session.persona, session.variants[number])
            except PersonaLabError as error:
                parts.append(error_box(error))
                continue
            parts.append(f"<h4>Pane {number + 1}: {esc(variant.name)}</h4>{_reads(variant)}")
        return f'<div class="pl-reads">{"".join(parts)}</div>'

    def _greet(self, text: str, session: Session) -> list[Any]:
        _refuse(session, True, "")
        session.hidden = False
        session.begin(text or "")
        return self.chat.draw(session)

    def _add(self, name: str, session: Session) -> list[Any]:
        try:
            if session.hidden:
                raise BadInput("A blind comparison is going on.", "Vote, or reveal the names first.")
            info = self.chat.page.engine.base_model((name or "").strip())
        except PersonaLabError as error:
            return [error_box(error), *[gr.skip()] * (len(self.chat.look) + 1)]
        base = self.chat.page.engine.base_variant(session.persona)
        if info.id not in (base.base, *session.models):
            session.models.append(info.id)
        session.variants[session.count - 1] = base.id if info.id == base.base else MODEL + info.id
        fetched = (
            "It is on this machine." if info.ready else "It is fetched with the first message, which may take long."
        )
        return [
            problem_box(f"{info.name} speaks in pane {session.count}", fetched, tone="good"),
            "",
            *self.chat.draw(session),
        ]


def _reads(variant: Variant) -> str:
    system = variant.system if variant.prompt_mode == "card" else ""
    said = f"<pre>{esc(system)}</pre>" if system else '<p class="pl-soft">No system prompt.</p>'
    examples = "".join(
        f"<p><b>{esc(m.role)}</b> {esc(m.content)}</p>" for example in variant.examples for m in example.messages
    )
    if variant.example_tokens:
        examples += f"<p>Examples chosen for each question, up to {variant.example_tokens:,} tokens of them.</p>"
    title = "<p class='pl-soft'>Examples that it reads before the conversation:</p>"
    return said + (title + f"<div class='pl-mask'>{examples}</div>" if examples else "")


def _refuse(session: Session, chosen: Any, why: str) -> None:
    session.refuse_while_busy()
    if chosen is None:
        raise BadInput(why, "Choose one first.")
