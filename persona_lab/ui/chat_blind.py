"""Blind comparison: nameless panes in a shuffled order, a vote, the names, and ratings from all votes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_lab.chats.ratings import Rating
from persona_lab.chats.votes import pairs
from persona_lab.home import write_atomic
from persona_lab.ui.html import empty, esc, plural, table
from persona_lab.ui.notices import guarded, problem_box
from persona_lab.ui.page import QUIET
from persona_lab.ui.sessions import LETTERS, Session, variant_choices
from persona_lab.ui.talk import PANES

if TYPE_CHECKING:
    from persona_lab.ui.chat_tab import Chat


class Blind:
    """The voting bar under the panes, and the ratings. `bar` is redrawn with the tab."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        with gr.Column(visible=False, elem_classes=["pl-vote"], elem_id="vote") as self.row:
            self.ask = gr.HTML('<p class="pl-ask">Which reply is best? The names are shown once you have voted.</p>')
            with gr.Row(elem_classes=["pl-votes"]):
                self.best = [
                    gr.Button(f"{letter} is best", size="sm", elem_id=f"vote-{letter.lower()}", min_width=90)
                    for letter in LETTERS
                ]
                self.tie = gr.Button("Tie", size="sm", elem_id="vote-tie", min_width=70)
                self.bad = gr.Button("All are bad", size="sm", elem_id="vote-bad", min_width=90)
                self.reveal = gr.Button("Show names without a vote", size="sm", min_width=150, elem_id="reveal")
            self.reason = gr.Textbox(
                label="Why? (optional)", max_lines=2, lines=1, elem_id="vote-reason", max_length=2000
            )
        self.told = gr.HTML(elem_id="vote-told")
        self.bar = [self.row, *self.best, self.told]

    def build_ratings(self) -> None:
        """Create the ratings, where they belong on the page."""
        with gr.Accordion("Ratings from blind votes", open=False, elem_id="ratings") as self.panel:
            self.table = gr.HTML(elem_id="ratings-table")
            self.pairs = gr.DownloadButton(
                "Download the votes as preference pairs (JSONL)", size="sm", interactive=False, elem_id="download-pairs"
            )

    def wire(self) -> None:
        """Connect the buttons."""
        chat = self.chat
        redraw = guarded(len(chat.look))
        chat.hide.click(redraw(self._begin), chat.session, chat.look, **QUIET)
        self.reveal.click(redraw(self._reveal), chat.session, chat.look, **QUIET)
        voted = [self.reason, self.table, self.pairs, *chat.look]
        for button, outcome, winner in (
            *((button, "win", number) for number, button in enumerate(self.best)),
            (self.tie, "tie", None),
            (self.bad, "bad", None),
        ):
            button.click(
                guarded(len(voted))(self._voting(outcome, winner)), [self.reason, chat.session], voted, **QUIET
            )
        self.panel.expand(guarded(2)(self._ratings), chat.session, [self.table, self.pairs], **QUIET)

    def draw(self, session: Session) -> list[Any]:
        """Updates for `bar`."""
        told = ""
        if session.voted and not session.hidden:
            told = self._told(session)
        best = [gr.update(visible=number < session.count) for number in range(PANES)]
        return [gr.update(visible=session.hidden), *best, told]

    def _told(self, session: Session) -> str:
        vote = next((v for v in self.chat.page.engine.votes.all(session.persona) if v.id == session.voted), None)
        if vote is None:
            return ""
        names = {value: name for name, value in variant_choices(self.chat.page.engine, session.persona, session.models)}
        called = [names.get(candidate.variant, candidate.variant) for candidate in vote.candidates]
        listed = "; ".join(f"{LETTERS[n]} was {name}" for n, name in enumerate(called))
        verdict = {
            "win": f"You chose {called[vote.winner or 0]}",
            "tie": "You called it a tie",
            "bad": "You found all of them bad",
        }
        return problem_box(verdict[vote.outcome], f"{listed}. The vote is stored.", tone="good")

    def _begin(self, session: Session) -> list[Any]:
        session.refuse_while_busy()
        session.hide()
        gr.Info("Say something; then choose the best reply.")
        return self.chat.draw(session)

    def _reveal(self, session: Session) -> list[Any]:
        session.refuse_while_busy()
        session.hidden = False
        self._keep(session)
        return self.chat.draw(session)

    def _voting(self, outcome: str, winner: int | None) -> Callable[[str, Session], list[Any]]:
        def vote(reason: str, session: Session) -> list[Any]:
            session.refuse_while_busy()
            cast = self.chat.page.engine.votes.cast(session.vote(session.owner, outcome, winner, reason or ""))
            session.voted, session.hidden = cast.id, False
            self._keep(session)
            return ["", *self._ratings(session), *self.chat.draw(session)]

        return vote

    def _keep(self, session: Session) -> None:
        session.save(self.chat.page.engine, session.settings)

    def _ratings(self, session: Session) -> list[Any]:
        engine = self.chat.page.engine
        votes = engine.votes.all(session.persona)
        if not votes:
            hint = "Press Compare blind above the panes, say something, and choose the better reply."
            return [empty("No votes yet", hint), gr.update(interactive=False)]
        names = {value: name for name, value in variant_choices(engine, session.persona, session.models)}
        file = Path(self.chat.page.downloads) / f"{session.persona}-preferences.jsonl"
        found = list(pairs(votes))
        write_atomic(file, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in found))
        label = f"Download {plural(len(found), 'preference pair')} (JSONL)"
        shown = ratings_table(engine.ratings(session.persona), names, len(votes))
        return [shown, gr.update(value=str(file), interactive=bool(found), label=label)]


def ratings_table(ratings: list[Rating], names: dict[str, str], votes: int) -> str:
    """Ratings with their intervals as a table."""
    rows = [
        [
            f'<div class="pl-rated">{esc(names.get(r.variant, r.variant))}<p class="pl-soft">{esc(r.note)}</p></div>',
            f'<span class="pl-value">{r.rating:.0f}</span>',
            f'<span class="pl-nowrap">{r.low:.0f} to {r.high:.0f}</span>',
            f"{r.votes}",
            f'<span class="pl-nowrap">{r.wins} / {r.ties} / {r.losses}</span>',
        ]
        for r in ratings
    ]
    head = ["Variant", "Rating", "95% interval", "Votes", "Won / tied / lost"]
    note = (
        '<p class="pl-soft">Bradley-Terry: 400 points more are odds of 10 to 1. Where intervals overlap, the votes '
        "do not tell the two apart. Few votes are drawn towards 1000, since who has never lost may still be weak.</p>"
    )
    return table(head, rows, f"{plural(votes, 'blind vote')} on this character") + note
