"""The Chat tab: one to six panes side by side, one box to all, each reply stamped with the weights that made it.

This file has the panes, the box and what writes replies; the panels below them are in chat_panels.py, chat_blind.py
and chat_teach.py, the sliders beside the panes in chat_traits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from persona_lab.errors import UnknownName
from persona_lab.ui import chat_blind, chat_panels, chat_teach
from persona_lab.ui.chat_saying import Saying, owner_of
from persona_lab.ui.chat_traits import PaneTraits
from persona_lab.ui.html import empty, thumbnail_file
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.sessions import LETTERS, Session, greetings, variant_choices
from persona_lab.ui.talk import PANES, default_panes, drawn, thumbs


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Chat", id="chat") as tab:
        Chat(page, tab)


class Chat:
    """Panes, box and buttons. `look` is what a redraw of all of it gives; `bots` what a stream gives."""

    def __init__(self, page: Page, tab: gr.Tab) -> None:
        self.page = page
        self.session = gr.State(Session())
        self.nothing = gr.HTML()
        with gr.Column(visible=False) as self.body:
            with gr.Row(elem_classes=["pl-chatbar"]):
                self.count = gr.Radio(
                    list(range(1, PANES + 1)), value=2, label="Side by side", elem_id="panes",
                    elem_classes=["pl-inline"], min_width=250,
                )  # fmt: skip
                self.fresh = gr.Button("New conversation", size="sm", elem_id="new-chat", min_width=130)
                self.hide = gr.Button("Compare blind", size="sm", elem_id="blind-start", min_width=130)
            with gr.Row(equal_height=False, elem_classes=["pl-panes"]):
                panes = [self._pane(number) for number in range(PANES)]
            self.columns, self.heads, self.choosers, self.bots, self.pulls = (
                list(part) for part in zip(*panes, strict=True)
            )
            self.blind = chat_blind.Blind(self)
            with gr.Row(equal_height=True, elem_classes=["pl-say"]):
                self.box = gr.Textbox(
                    label="Your message", placeholder="Say something to all of them …", lines=1, max_lines=6, scale=8,
                    elem_id="message",
                )  # fmt: skip
                self.send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
            with gr.Row(elem_classes=["pl-after"]):
                self.stop = gr.Button("Stop", size="sm", variant="stop", elem_id="chat-stop", min_width=80)
                self.again = gr.Button("Regenerate", size="sm", elem_id="again", min_width=100)
                self.more = gr.Button("Continue", size="sm", elem_id="continue", min_width=90)
                self.rewrite = gr.Button("Edit last message", size="sm", elem_id="rewrite", min_width=130)
            self.sampling = chat_panels.SamplingPanel()
            self.saying = Saying(self)
            self.teach = chat_teach.Teach(self)
            self.blind.build_ratings()
            self.saved = chat_panels.SavedPanel(self)
            self.reading = chat_panels.ReadingPanel(self)
        self.streamed = [*self.bots, self.session]
        self.look = [
            self.nothing, self.body, self.count, self.hide, *self.columns, *self.heads, *self.choosers, *self.bots,
            *self.blind.bar, *self.teach.shown, *self.saved.shown, *self.reading.shown,
            *(part for pulls in self.pulls for part in pulls.shown), self.session,
        ]  # fmt: skip
        self._wire(tab)
        for panel in (self.saying, self.blind, self.teach, self.saved, self.reading):
            panel.wire()
        for pulls in self.pulls:
            pulls.wire(self)

    def _pane(self, number: int) -> tuple[gr.Column, gr.HTML, gr.Dropdown, gr.Chatbot, PaneTraits]:
        with gr.Column(visible=number < 2, min_width=280) as column:
            head = gr.HTML(visible=False)
            chooser = gr.Dropdown([], label=f"Pane {number + 1}", elem_id=f"pane-{number + 1}", interactive=True)
            bot = gr.Chatbot(
                label=f"Replies of pane {number + 1}", show_label=False, buttons=["copy"], layout="bubble",
                elem_id=f"chat-{number + 1}", elem_classes=["pl-bot"], placeholder="Nothing said yet.",
                feedback_options=("Like", "Dislike"), editable="user", height=None, allow_tags=False,
                latex_delimiters=[],
            )  # fmt: skip
            pulls = PaneTraits(number)
        return column, head, chooser, bot, pulls

    def _wire(self, tab: gr.Tab) -> None:
        redraw = guarded(len(self.look))
        gr.on(
            [tab.select, self.page.persona.change, self.page.demo.load],
            guarded(len(self.look) + len(self.sampling.values))(self.open),
            [self.page.persona, self.session, self.page.browser],
            [*self.look, *self.sampling.values],
            trigger_mode="always_last",  # what is asked while the page still answers is not dropped
            **QUIET,
        ).then(*self.late, **QUIET)
        self.count.input(redraw(self.set_count), [self.count, self.session], self.look, **QUIET).then(
            *self.late, **QUIET
        )
        self.fresh.click(redraw(self.new), self.session, self.look, **QUIET)
        for number, chooser in enumerate(self.choosers):
            chooser.input(guarded(1)(_choosing(number)), [chooser, self.session], self.session, **QUIET)

    @property
    def after(self) -> tuple[Callable[..., Any], Any, Any]:
        """What follows when replies are written: panels that list them (handler, inputs, outputs)."""
        outputs = [*self.teach.shown, *self.saved.shown]
        return guarded(len(outputs))(self._after), self.session, outputs

    def _after(self, session: Session) -> list[Any]:
        return [*self.teach.draw(session), *self.saved.draw(session)]

    @property
    def late(self) -> tuple[Callable[..., Any], Any, Any]:
        """What follows a redraw that nobody waits for (handler, inputs, outputs): on a slow machine it may reach the
        window after replies that were asked for behind it, and would show the panes as they were before."""
        outputs = [*self.bots, *self.teach.shown, *self.saved.shown]
        return guarded(len(outputs))(self._catch_up), self.session, outputs

    def _catch_up(self, session: Session) -> list[Any]:
        if session.busy or session.looked == session.asked:  # while replies are written, their stream draws
            return [gr.skip()] * (len(self.bots) + len(self.teach.shown) + len(self.saved.shown))
        return [*self.saying.drawn(session, True), *self._after(session)]

    # --- opening and drawing -------------------------------------------------------------------------

    def open(self, request: gr.Request, persona: str | None, session: Session, browser: Any) -> list[Any]:
        """Fill the panes: this window's conversation goes on, else the browser's last one with this character."""
        rest = [gr.skip() for _ in self.sampling.values]
        session.owner = owner_of(browser, request)
        if not persona:
            session.persona = ""
            return [*self.draw(session), *rest]
        if session.persona != persona:
            last = (browser or {}).get("chats", {}).get(persona, "")
            settings = self._start(session, persona, last)
            rest = self.sampling.updates(settings) if settings else rest
        elif not session.said and not session.hidden:
            self._line_up(session)  # what was trained meanwhile stands beside the base by itself
        return [*self.draw(session), *rest]

    def _start(self, session: Session, persona: str, last: str) -> dict[str, Any]:
        for talk in session.talks:
            talk.settle()
        if session.persona:
            session.save(self.page.engine, session.settings)
        session.persona, session.hidden, session.variants = persona, False, []
        session.traits = [{} for _ in range(PANES)]
        session.begin(greetings(self.page.engine.persona(persona))[0][1])
        if last:
            try:
                saved = self.page.engine.chats.get(last, session.owner)
            except UnknownName:
                saved = None
            if saved is not None and saved.persona == persona:
                session.bring_back(saved)
                return saved.settings
        self._line_up(session)
        return {}

    def _line_up(self, session: Session) -> None:
        """The newest variants and the base, unless the user chose otherwise."""
        engine = self.page.engine
        base = engine.base_variant(session.persona).id
        known = {value for _, value in variant_choices(engine, session.persona, session.models)}
        wanted = default_panes([variant.id for variant in engine.variants(session.persona)], base)
        chosen = session.variants or [base] * PANES
        if set(chosen) <= {base}:
            session.variants = wanted
        else:
            session.variants = [v if v in known else w for v, w in zip(chosen, wanted, strict=False)]

    def draw(self, session: Session) -> list[Any]:
        """Updates for `look`."""
        if not session.persona:
            hint = "Pick a character in the Personas tab; then talk to it here, trained and untrained side by side."
            nobody = empty("Nobody is chosen yet", hint)
            return [nobody, gr.update(visible=False), *[gr.skip()] * (len(self.look) - 3), session]
        engine, hidden = self.page.engine, session.hidden
        alone = not engine.variants(session.persona)
        hint = empty("Only the base model so far", "Train a variant, and it appears beside it.") if alone else ""
        choices = variant_choices(engine, session.persona, session.models)
        session.names = {value: name for name, value in choices}
        known = {value for _, value in choices}
        choices += [(f"{v} (deleted)", v) for v in dict.fromkeys(session.variants) if v not in known]
        face = self._face(session.persona)
        height = "max(300px, calc(100vh - 530px))" if session.count <= 4 else "380px"
        heads = [
            gr.update(value=f'<h4 class="pl-letter-head">Reply {LETTERS[n]}</h4>', visible=hidden) for n in range(PANES)
        ]
        # panes that are not visible are left as they are: what is sent to them would only cost time
        unseen = [gr.skip()] * (PANES - session.count)
        choosers = [
            gr.update(choices=[], value=None, visible=False)
            if hidden
            else gr.update(choices=choices, value=session.variants[n], visible=True)
            for n in range(session.count)
        ]
        session.looked = session.asked
        # a reply that is being written is drawn by its stream: what is drawn here may arrive when that has ended
        bots = [
            gr.update(height=height, avatar_images=face)
            if talk.waiting
            else gr.update(value=drawn(talk, hidden), feedback_value=thumbs(talk), height=height, avatar_images=face)
            for talk in session.shown
        ]
        return [
            hint,
            gr.update(visible=True),
            gr.update(value=session.count, interactive=not hidden),
            gr.update(value="New blind round" if hidden or session.voted else "Compare blind"),
            *(gr.update(visible=number < session.count) for number in range(PANES)),
            *heads,
            *choosers,
            *unseen,
            *bots,
            *unseen,
            *self.blind.draw(session),
            *self.teach.draw(session),
            *self.saved.draw(session),
            *self.reading.draw(session),
            *(update for pulls in self.pulls[: session.count] for update in pulls.draw(self, session)),
            *[gr.skip()] * sum(len(pulls.shown) for pulls in self.pulls[session.count :]),
            session,
        ]

    def _face(self, persona_id: str) -> tuple[None, str] | None:
        """The character's picture, small, from this process's own folder: the page serves no file of the user's."""
        path = thumbnail_file(self.page.engine.persona(persona_id).avatar, self.page.downloads)
        return (None, path) if path else None

    def set_count(self, count: int, session: Session) -> list[Any]:
        """Show so many panes."""
        session.count = int(count)
        return self.draw(session)

    def new(self, session: Session) -> list[Any]:
        """Begin again, with the greeting; the conversation before stays among the saved ones."""
        session.refuse_while_busy()
        session.hidden = False
        session.begin()
        return self.draw(session)


def _choosing(number: int) -> Callable[[str, Session], Session]:
    def choose(value: str, session: Session) -> Session:
        if value and not session.hidden:
            session.variants[number] = value
        return session

    return choose
