"""The Chat tab: up to four variants side by side, one box to all, each reply stamped with the weights that made it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from persona_lab.errors import BadInput
from persona_lab.personas.prompt import greeting
from persona_lab.types import ChatRequest, Sampling
from persona_lab.ui.html import empty
from persona_lab.ui.notices import explain, guarded, warn
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.talk import PANES, Talk, Turn, default_panes, drawn

REDRAW_SECONDS = 0.08
PANE_HEIGHT = "max(300px, calc(100vh - 530px))"
SEED_LIMIT = 2**31 - 1


def build(page: Page) -> None:
    """Create the tab."""
    with gr.Tab("Chat", id="chat") as tab:
        _Chat(page, tab)


class _Chat:
    """Panes, box, buttons and sampling settings."""

    def __init__(self, page: Page, tab: gr.Tab) -> None:
        self.page = page
        self.talks = gr.State([Talk() for _ in range(PANES)])
        self.of = gr.State("")
        self.nothing = gr.HTML()
        with gr.Column(visible=False) as self.body:
            self.count = gr.Radio(
                [1, 2, 3, 4], value=2, label="Side by side", elem_id="panes", elem_classes=["pl-inline"]
            )
            with gr.Row(equal_height=False, elem_classes=["pl-panes"]):
                panes = [self._pane(number) for number in range(PANES)]
            self.columns, self.variants, self.bots = (list(part) for part in zip(*panes, strict=True))
            with gr.Row(equal_height=True, elem_classes=["pl-say"]):
                self.box = gr.Textbox(
                    label="Your message", placeholder="Say something to all of them …", lines=1, max_lines=6, scale=8,
                    elem_id="message",
                )  # fmt: skip
                self.send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
            with gr.Row():
                stop = gr.Button("Stop", size="sm", variant="stop", elem_id="chat-stop")
                again = gr.Button("Regenerate with a new seed", size="sm")
                clear = gr.Button("Clear", size="sm")
            self.sampling = self._settings()
        self.drawn = [*self.bots, self.talks]
        self._wire(tab, stop, again, clear)

    def _pane(self, number: int) -> tuple[gr.Column, gr.Dropdown, gr.Chatbot]:
        with gr.Column(visible=number < 2, min_width=260) as column:
            variant = gr.Dropdown([], label=f"Pane {number + 1}", elem_id=f"pane-{number + 1}", interactive=True)
            bot = gr.Chatbot(
                label=f"Replies of pane {number + 1}", show_label=False, height=PANE_HEIGHT, buttons=[],
                layout="bubble", elem_id=f"chat-{number + 1}", feedback_options=None, placeholder="Nothing said yet.",
            )  # fmt: skip
        return column, variant, bot

    def _settings(self) -> list[Any]:
        default = Sampling.model_validate({})
        info = {name: field.description or "" for name, field in Sampling.model_fields.items()}
        with gr.Accordion("How replies are drawn", open=False), gr.Row():
            return [
                gr.Number(
                    0, label="Seed", precision=0, info="All panes use the same one.", min_width=140, elem_id="seed"
                ),
                gr.Slider(8, 512, default.max_new_tokens, step=8, label="Longest reply", info=info["max_new_tokens"]),
                gr.Slider(0, 2, default.temperature, step=0.05, label="Temperature", info=info["temperature"]),
                gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top-p", info=info["top_p"]),
                gr.Slider(
                    1,
                    2,
                    default.repetition_penalty,
                    step=0.05,
                    label="Repetition penalty",
                    info=info["repetition_penalty"],
                ),
            ]

    def _wire(self, tab: gr.Tab, stop: gr.Button, again: gr.Button, clear: gr.Button) -> None:
        opened = [self.nothing, self.body, *self.variants, *self.drawn, self.of]
        gr.on(
            [tab.select, self.page.persona.change, self.page.demo.load],
            guarded(len(opened))(self.open), [self.page.persona, self.of, self.talks, *self.variants], opened, **QUIET,
        )  # fmt: skip
        self.count.change(self._show, self.count, self.columns, **QUIET)
        said = [self.box, self.count, *self.variants, *self.sampling, self.talks]
        stream: dict[str, Any] = QUIET | {"concurrency_limit": 2, "concurrency_id": "chat"}
        gr.on([self.box.submit, self.send.click], self.say, said, [self.box, *self.drawn], **stream)
        again.click(self.again, said[1:], [self.sampling[0], *self.drawn], **stream)
        stop.click(self.page.engine.stop_chat, None, None, queue=False, api_visibility="private")
        clear.click(guarded(len(self.drawn))(self.clear), self.page.persona, self.drawn, **QUIET)

    @staticmethod
    def _show(count: int) -> list[Any]:
        return [gr.update(visible=number < count) for number in range(PANES)]

    def _fresh(self, persona_id: str) -> list[Talk]:
        said = greeting(self.page.engine.persona(persona_id))
        return [Talk([Turn("assistant", said)] if said else []) for _ in range(PANES)]

    def open(self, persona: str | None, of: str, talks: list[Talk], *variants: str | None) -> list[Any]:
        """Fill the panes; a conversation with the same character goes on."""
        if not persona:
            hint = "Pick a character in the Personas tab; then talk to it here, trained and untrained side by side."
            nobody = empty("Nobody is chosen yet", hint)
            return [nobody, gr.update(visible=False), *[gr.skip()] * (2 * PANES + 1), ""]
        found = self.page.engine.variants(persona)
        base = self.page.engine.base_variant(persona)
        choices = [(f"{v.name} ({v.strategy})", v.id) for v in found] + [("Base model, untrained", base.id)]
        known = {value for _, value in choices}
        wanted = default_panes([variant.id for variant in found], base.id)
        trained_since = of == persona and all(variant == base.id for variant in variants) and bool(found)
        keep = of == persona and not trained_since
        picked = [v if keep and v in known else w for v, w in zip(variants, wanted, strict=True)]
        talks = talks if of == persona else self._fresh(persona)
        panes = [gr.update(choices=choices, value=value) for value in picked]
        hint = "" if found else empty("Only the base model so far", "Train a variant, and it appears beside it.")
        return [hint, gr.update(visible=True), *panes, *(drawn(talk) for talk in talks), talks, persona]

    def clear(self, persona: str) -> list[Any]:
        """Begin again, with the greeting."""
        talks = self._fresh(persona)
        return [*(drawn(talk) for talk in talks), talks]

    def say(self, text: str, count: int, *rest: Any) -> Iterator[list[Any]]:
        """Send one message to every visible pane and stream their replies."""
        variants, sampling, talks = self._split(rest)
        if not (text or "").strip():
            yield [gr.skip()] * (len(self.drawn) + 1)
            return
        for talk in talks[:count]:
            talk.ask(text.strip())
        for update in self._stream(talks, count, variants, sampling):
            yield ["", *update]

    def again(self, count: int, *rest: Any) -> Iterator[list[Any]]:
        """Write the last replies anew, with the next seed."""
        variants, sampling, talks = self._split(rest)
        redo = [talk.ask_again() for talk in talks[:count]]
        if not any(redo):
            warn(BadInput("There is no reply to write anew.", "Say something first."))
            yield [gr.skip()] * (len(self.drawn) + 1)
            return
        sampling[0] = (int(sampling[0] or 0) + 1) % SEED_LIMIT
        for update in self._stream(talks, count, variants, sampling):
            yield [sampling[0], *update]

    @staticmethod
    def _split(rest: tuple[Any, ...]) -> tuple[list[str], list[Any], list[Talk]]:
        return list(rest[:PANES]), list(rest[PANES:-1]), rest[-1]

    def _requests(self, talks: list[Talk], count: int, variants: list[str], values: list[Any]) -> list[ChatRequest]:
        seed, longest, temperature, top_p, penalty = values
        sampling = Sampling(
            seed=int(seed or 0),
            max_new_tokens=int(longest),
            temperature=temperature,
            top_p=top_p,
            repetition_penalty=penalty,
        )
        return [
            ChatRequest(
                pane=str(number),
                variant=self.page.engine.variant(variants[number]),
                messages=talks[number].messages(),
                sampling=sampling,
            )
            for number in range(count)
            if talks[number].turns[-1].waiting
        ]

    def _stream(self, talks: list[Talk], count: int, variants: list[str], sampling: list[Any]) -> Iterator[list[Any]]:
        """Updates for `drawn`. Whatever goes wrong is written into the panes that wait (the page's border)."""
        yield [*(drawn(talk) for talk in talks), talks]
        last = time.monotonic()
        try:
            for chunk in self.page.engine.chat(self._requests(talks, count, variants, sampling)):
                talks[int(chunk.pane)].add(chunk)
                if chunk.done or time.monotonic() - last > REDRAW_SECONDS:
                    last = time.monotonic()
                    yield [*(drawn(talk) for talk in talks), talks]
        except Exception as error:  # noqa: BLE001
            warn(error)
            for talk in talks[:count]:
                if talk.turns[-1].waiting:
                    talk.fail(explain(error))
        for talk in talks:
            talk.settle()
        yield [*(drawn(talk) for talk in talks), talks]
