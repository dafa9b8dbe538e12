"""The Sharing tab: links for guests, who is here, and a switch that stops it all."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.access.records import MOST_HOURS, GuestLimits, GuestLink
from persona_lab.errors import BadInput
from persona_lab.ui.door import Door
from persona_lab.ui.html import chip, duration, empty, esc, plural, table, when
from persona_lab.ui.notices import guarded, problem_box
from persona_lab.ui.page import QUIET, Page

PAUSE = "Pause sharing"
TONES = {"open": "good", "revoked": "bad", "expired": "warn"}
_LIMITS = ("messages_a_minute", "message_characters", "turns", "reply_tokens", "tokens", "link_tokens", "guests")


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Sharing", id="sharing") as tab:
        _Sharing(page, page.door or Door(page.engine), tab)


class _Sharing:
    """The switch on top; then a new link, the links, and the guests."""

    def __init__(self, page: Page, door: Door, tab: gr.Tab) -> None:
        self.page, self.door, self.engine = page, door, page.engine
        gr.Markdown("### Let others talk to your characters\nA guest sees a chat and nothing else of this page.")
        self.status = gr.HTML(elem_id="sharing-status")
        with gr.Row():
            self.switch = gr.Button(PAUSE, variant="stop", size="sm", elem_id="sharing-pause")
            self.fresh = gr.Button("Refresh", size="sm", elem_id="sharing-refresh")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                self._form()
            with gr.Column(scale=3, min_width=340):
                self.links = gr.HTML(elem_id="sharing-links")
                with gr.Row(equal_height=False):
                    self.which = gr.Dropdown([], label="Link", elem_id="sharing-link", interactive=True, scale=3)
                    self.show = gr.Button("Show its address", size="sm", elem_id="sharing-show", min_width=120)
                    self.revoke = gr.Button("Revoke", variant="stop", size="sm", elem_id="sharing-revoke", min_width=90)
                self.guests = gr.HTML(elem_id="sharing-guests")
                with gr.Row(equal_height=False):
                    self.guest = gr.Dropdown([], label="Guest", elem_id="sharing-guest", interactive=True, scale=3)
                    self.away = gr.Button("Send away", size="sm", elem_id="sharing-away", min_width=90)
        self.opened = [self.status, self.switch, self.links, self.which, self.guests, self.guest]
        self._wire(tab)

    def _form(self) -> None:
        self.variants = gr.CheckboxGroup([], label="Guests may talk to", elem_id="sharing-variants")
        self.vote = gr.Checkbox(
            False, label="Guests compare two of them, blind, and vote", elem_id="sharing-vote",
            info="Their votes count as yours do, with the replies they were cast on.",
        )  # fmt: skip
        self.hours = gr.Number(
            24, label="Hours that the link holds", minimum=0.1, maximum=MOST_HOURS, elem_id="sharing-hours"
        )
        self.name = gr.Textbox("", label="Name, for your own list", max_length=80, elem_id="sharing-name")
        with gr.Accordion("Limits of a guest", open=False):
            known = GuestLimits()
            self.limits = [self._limit(name, getattr(known, name)) for name in _LIMITS]
        self.make = gr.Button("Make a link", variant="primary", size="sm", elem_id="sharing-make")
        self.made = gr.Textbox(
            "", label="The link; whoever has it may come in", interactive=False, buttons=["copy"],
            elem_id="sharing-made",
        )  # fmt: skip

    def _limit(self, name: str, value: int) -> gr.Number:
        info = GuestLimits.model_fields[name].description
        label = name.replace("_", " ").capitalize()
        return gr.Number(value, label=label, info=info, precision=0, minimum=1, elem_id=f"sharing-{name}")

    def _wire(self, tab: gr.Tab) -> None:
        filled = [*self.opened, self.variants]
        gr.on(
            [tab.select, self.page.persona.change], guarded(len(filled))(self.open), self.page.persona, filled,
            trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.fresh.click(guarded(len(self.opened))(self.draw), None, self.opened, **QUIET)
        # not through gradio's queue: the switch has to work while everything waits
        self.switch.click(
            guarded(len(self.opened))(self._switch), self.switch, self.opened, queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        asked = [self.page.persona, self.variants, self.vote, self.hours, self.name, *self.limits]
        self.make.click(guarded(1 + len(self.opened))(self._make), asked, [self.made, *self.opened], **QUIET)
        self.show.click(guarded(1)(self._address), self.which, self.made, **QUIET)
        self.revoke.click(guarded(len(self.opened))(self._revoke), self.which, self.opened, **QUIET)
        self.away.click(guarded(len(self.opened))(self._away), self.guest, self.opened, **QUIET)

    # --- drawing ---------------------------------------------------------------------------------

    def open(self, persona: str | None) -> list[Any]:
        """Updates for `opened`, and the variants that a link can name."""
        choices = []
        if persona:
            choices = [(f"{v.name} ({v.strategy})", v.id) for v in self.engine.variants(persona)]
            choices.append(("Base model, untrained", self.engine.base_variant(persona).id))
        return [*self.draw(), gr.update(choices=choices, value=[choices[0][1]] if choices else [])]

    def draw(self) -> list[Any]:
        """Updates for `opened`."""
        paused, links, guests = self.door.paused, self.door.store.links(), self.door.guests.all()
        names = {link.id: link.name for link in links}
        usable = [(link.name, link.id) for link in links if link.status == "open"]
        here = [(f"{guest.id} ({names.get(guest.link, 'no link')})", guest.id) for guest in guests]
        return [
            self._status(paused, len(guests)),
            gr.update(value="Go on sharing" if paused else PAUSE, variant="primary" if paused else "stop"),
            links_table(links),
            gr.update(choices=usable, value=None),
            self._guests(names),
            gr.update(choices=here, value=None),
        ]

    def _status(self, paused: bool, guests: int) -> str:
        if paused:
            told = "Guests see that you have paused it. Nothing is answered."
            return problem_box("Sharing is paused", told, tone="warn")
        waiting = plural(self.door.line.length, "message")
        if self.door.login:
            told = f"{plural(guests, 'guest')} here; {waiting} waiting. Others reach the page at {self.door.address}."
            return problem_box("The page asks for your password; guests come in by their links", told, tone="good")
        told = (
            "Start it with --share, or with --public-url behind a proxy or tunnel of yours; then others can open links."
        )
        return problem_box("This page is open on this machine only", told, tone="warn")

    def _guests(self, names: dict[str, str]) -> str:
        found = self.door.guests.all()
        if not found:
            return empty("Nobody is here", "Guests appear once they have opened a link.")
        rows = [
            [
                f"<code>{esc(guest.id)}</code>",
                esc(names.get(guest.link, "")),
                esc(duration(self.door.guests.idle(guest))),
                f"{guest.messages}",
                f"{guest.tokens:,}",
                f"{guest.votes}",
                f"{guest.refused}",
                chip("talking", "busy") if guest.busy else "",
            ]
            for guest in found[:100]
        ]
        head = ["Guest", "Link", "Idle for", "Messages", "Tokens", "Votes", "Refused", ""]
        return table(head, rows, f"{plural(len(found), 'guest')} here. What they say is not kept.")

    # --- doing -----------------------------------------------------------------------------------

    def _switch(self, label: str) -> list[Any]:
        self.door.pause(label == PAUSE)  # what the button says, also if it was paused elsewhere meanwhile
        return self.draw()

    def _make(
        self, persona: str | None, variants: list[str], vote: bool, hours: float, name: str, *limits: float
    ) -> list[Any]:
        if not persona:
            raise BadInput("Nobody is chosen yet.", "Pick a character first.")
        given = {key: int(value) for key, value in zip(_LIMITS, limits, strict=True) if value is not None}
        checked = self.engine.guest_limits(given)
        link = self.engine.make_guest_link(
            persona, variants or [], vote=vote, hours=float(hours or 0), name=name or "", limits=checked
        )
        return [self.door.link_address(link), *self.draw()]

    def _address(self, link_id: str | None) -> str:
        if not link_id:
            raise BadInput("No link is chosen.", "Choose one of the list, or make one.")
        return self.door.link_address(self.door.store.link(link_id))

    def _revoke(self, link_id: str | None) -> list[Any]:
        if not link_id:
            raise BadInput("No link is chosen.", "Choose the one to revoke.")
        self.door.revoke(link_id)
        return self.draw()

    def _away(self, guest_id: str | None) -> list[Any]:
        if not guest_id:
            raise BadInput("No guest is chosen.", "Choose one of the list; Refresh looks again.")
        self.door.send_away(guest_id)
        return self.draw()


def links_table(links: tuple[GuestLink, ...]) -> str:
    """Every link with what it allows."""
    if not links:
        return empty("No links yet", "Choose whom guests may talk to, and make one.")
    rows = [
        [
            f"{esc(link.name)}<br><span class='pl-soft'>{esc(link.persona)}</span>",
            esc(", ".join(link.variants)),
            "chat and vote" if link.vote else "chat",
            f'<span class="pl-nowrap">{esc(when(link.expires))}</span>',
            chip(link.status, TONES[link.status]),
        ]
        for link in links
    ]
    return table(["Link", "Variants", "Allows", "Until (UTC)", ""], rows, plural(len(links), "link"))
