"""Learning from chat: thumbs, "what it should have said", and the review that turns them into data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_lab.chats.records import Feedback
from persona_lab.errors import BadInput
from persona_lab.types import now
from persona_lab.ui.html import esc
from persona_lab.ui.notices import guarded, problem_box
from persona_lab.ui.page import QUIET
from persona_lab.ui.sessions import LETTERS, Session
from persona_lab.ui.talk import Talk, Turn

if TYPE_CHECKING:
    from persona_lab.ui.chat_tab import Chat

LISTED = 5


class Teach:
    """The panel and the thumbs of all panes. `shown` is redrawn with the tab."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        with gr.Accordion("Teach it: what should it have said?", open=False, elem_id="teach"):
            with gr.Row(equal_height=False):
                with gr.Column(min_width=300):
                    self.which = gr.Dropdown([], label="Reply", elem_id="teach-which", interactive=True)
                    self.better = gr.Textbox(
                        label="What it should have said", lines=3, max_lines=8, elem_id="teach-text",
                        placeholder="Write the reply you wanted, in the character's voice.",
                    )  # fmt: skip
                    self.keep = gr.Button("Keep this reply", size="sm", elem_id="teach-keep")
                with gr.Column(min_width=300):
                    self.waiting = gr.CheckboxGroup(
                        [], label="To review: what would be learnt", elem_id="teach-review", elem_classes=["pl-review"],
                        info="Liked and corrected replies of everybody who talks here. Choose what is right.",
                    )  # fmt: skip
                    with gr.Row():
                        self.learn = gr.Button(
                            "Add the chosen to the data", size="sm", variant="primary", elem_id="teach-add"
                        )
                        self.drop = gr.Button("Discard the chosen", size="sm", elem_id="teach-drop")
            self.told = gr.HTML(elem_id="teach-told")
        self.shown = [self.which, self.waiting]

    def wire(self) -> None:
        """Connect the buttons and the thumbs."""
        chat = self.chat
        for number, bot in enumerate(chat.bots):
            liked = [*self.shown, self.better, chat.session]
            bot.like(guarded(len(liked))(self._liking(number)), chat.session, liked, **QUIET)
        self.which.change(guarded(1)(self._text), [self.which, chat.session], self.better, **QUIET)
        drawn = [self.told, *self.shown, *chat.streamed]
        self.keep.click(guarded(len(drawn))(self._correct), [self.which, self.better, chat.session], drawn, **QUIET)
        told = [self.told, *self.shown]
        self.learn.click(guarded(len(told))(self._learn), [self.waiting, chat.session], told, **QUIET)
        self.drop.click(guarded(len(told))(self._discard), [self.waiting, chat.session], told, **QUIET)

    def draw(self, session: Session) -> list[Any]:
        """Updates for `shown`."""
        choices = [
            (f"Pane {LETTERS[n] if session.hidden else n + 1}: {_short(turn.text, 52)}", turn.id)
            for n, talk in enumerate(session.shown)
            for turn in _replies(talk)[-LISTED:]
        ]
        last = [_replies(talk)[-1].id for talk in session.shown if _replies(talk)]
        found = self.chat.page.engine.feedback.to_review(session.persona)
        review = [(_row(item), item.id) for item in found]
        return [
            gr.update(choices=choices, value=last[0] if last else None),
            gr.update(choices=review, value=[]),
        ]

    # --- giving --------------------------------------------------------------------------------------

    def _liking(self, pane: int) -> Callable[[gr.LikeData, Session], list[Any]]:
        def like(event: gr.LikeData, session: Session) -> list[Any]:
            place = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
            talk = session.talks[pane]
            turn = talk.turns[place] if place < len(talk.turns) else None
            if turn is None or not turn.id or turn.waiting:
                raise BadInput("Only finished replies can be judged.", "Greetings come from the card: edit it there.")
            thumb = "up" if event.liked is True else "down" if event.liked is False else ""
            talk.turns[place] = replace(turn, thumb=thumb)  # type: ignore[arg-type]
            self._give(session, talk, place)
            if thumb == "down":
                gr.Info("Noted. Under 'Teach it' you can write what it should have said.")
            elif thumb == "up":
                gr.Info("Noted. It waits under 'Teach it' to be reviewed and learnt.")
            which, waiting = self.draw(session)
            which["value"] = turn.id
            return [which, waiting, turn.correction or turn.text, session]

        return like

    def _give(self, session: Session, talk: Talk, place: int) -> None:
        engine, turn = self.chat.page.engine, talk.turns[place]
        if not turn.thumb and not turn.correction:
            engine.feedback.take_back(session.owner, turn.id)
        else:
            pane = next(number for number, each in enumerate(session.talks) if each is talk)
            engine.feedback.give(
                Feedback(
                    id="",
                    persona=session.persona,
                    author=session.owner,
                    chat=session.chat,
                    reply=turn.id,
                    variant=session.variants[pane],
                    adapter=turn.stamp.adapter if turn.stamp else "",
                    messages=talk.messages(place),
                    text=turn.text,
                    thumb=turn.thumb,
                    correction=turn.correction,
                    created=now(),
                )
            )
        session.save(engine, session.settings)

    def _correct(self, reply: str | None, text: str, session: Session) -> list[Any]:
        talk, place = _find(session, reply)
        if not (text or "").strip():
            raise BadInput("There is nothing to keep.", "Write what it should have said.")
        if text.strip() == talk.turns[place].text.strip():
            raise BadInput("This is what it said.", "Change it, or give the reply a thumb up.")
        talk.turns[place] = replace(talk.turns[place], correction=text.strip())
        self._give(session, talk, place)
        kept = problem_box("Kept", "It waits in the list to be reviewed.", tone="good")
        return [kept, *self.draw(session), *self.chat.saying.drawn(session, True), session]

    @staticmethod
    def _text(reply: str | None, session: Session) -> Any:
        try:
            talk, place = _find(session, reply)
        except BadInput:
            return ""
        return talk.turns[place].correction or talk.turns[place].text

    # --- reviewing -----------------------------------------------------------------------------------

    def _learn(self, chosen: list[str], session: Session) -> list[Any]:
        if not chosen:
            raise BadInput("Nothing is chosen.", "Tick what the character should learn.")
        made = self.chat.page.engine.learn_from_feedback(session.persona, chosen)
        parts = []
        if made.dataset is not None:
            more = "1 reply" if len(made.added) == 1 else f"{len(made.added)} replies"
            title = f"Version {made.dataset.version} of the data is ready, with {more} more"
            parts.append(problem_box(title, "The next training uses it. Held-out rows are as before.", tone="good"))
        if made.refused:
            names = {item.id: item.question for item in self.chat.page.engine.feedback.all(session.persona)}
            lines = "".join(
                f"<li>{esc(_short(names.get(one, one)))}: {esc(why)}</li>" for one, why in made.refused.items()
            )
            parts.append(
                f'<div class="pl-box pl-warn"><strong>Left out</strong><ul>{lines}</ul><p>What is held out must stay '
                "new to the character, or its scores would mean nothing. Discard these.</p></div>"
            )
        return ["".join(parts), *self.draw(session)]

    def _discard(self, chosen: list[str], session: Session) -> list[Any]:
        if not chosen:
            raise BadInput("Nothing is chosen.", "Tick what should go.")
        count = self.chat.page.engine.feedback.discard(chosen)
        return [problem_box("Discarded", f"{count} of the list will not be learnt.", tone="good"), *self.draw(session)]


def _replies(talk: Talk) -> list[Turn]:
    return [turn for turn in talk.turns if turn.id and turn.text and not turn.waiting]


def _find(session: Session, reply: str | None) -> tuple[Talk, int]:
    for talk in session.shown:
        place = talk.place_of(reply or "")
        if place is not None:
            return talk, place
    raise BadInput("No reply is chosen.", "Say something first, then choose a reply.")


def _row(item: Feedback) -> str:
    kind = "corrected" if item.correction else "liked"
    return f"“{_short(item.question)}” → “{_short(item.wanted, 140)}” ({kind})"


def _short(text: str, most: int = 70) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 2] + " …"
