"""The studio's results: how far a batch is, its rows in a table, one of them in full with its rating, and downloads."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.studio.records import Rating
from persona_lab.studio.taking import FORMATS
from persona_lab.ui.html import PICK_SCRIPT, empty
from persona_lab.ui.notices import guarded
from persona_lab.ui.page import QUIET, Page
from persona_lab.ui.studio_view import FILTERS, ROWS_A_PAGE, batch_status, chosen_rows, row_detail, rows_table

BUSY_SECONDS = 1.5
FORMAT_NAMES = {"csv": "CSV, for a spreadsheet", "jsonl": "JSONL, for programs", "md": "Markdown, to read"}


class Review:
    """Everything below the tab `Results`."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.studio = page.engine.studio
        self.row = gr.State("")
        self.at = gr.State(0)
        self.seen = gr.State("")
        self.batch = gr.Dropdown([], label="Batch", elem_id="studio-batch", interactive=True)
        self.status = gr.HTML(elem_id="studio-status")
        with gr.Row(elem_classes=["pl-runbuttons"]):
            self.stop = gr.Button("Stop", variant="stop", size="sm", visible=False, elem_id="studio-stop")
            self.go_on = gr.Button("Go on", size="sm", visible=False, elem_id="studio-go-on")
            self.delete = gr.Button("Delete", size="sm", visible=False, elem_id="studio-delete")
            self.undo = gr.Button("Undo the deletion", size="sm", visible=False)
        with gr.Row(equal_height=False, visible=False) as self.body:
            with gr.Column(scale=3, min_width=340):
                self.filter = gr.Radio(list(FILTERS), value="all", label="Show", elem_id="studio-filter")
                self.table = gr.HTML(elem_id="studio-rows", js_on_load=PICK_SCRIPT)
                with gr.Row(elem_classes=["pl-pager"]):
                    back = gr.Button("← Back", size="sm", min_width=80)
                    self.where = gr.HTML()
                    on = gr.Button("More →", size="sm", min_width=80)
            with gr.Column(scale=2, min_width=320):
                self.detail = gr.HTML(elem_id="studio-row")
                with gr.Column(visible=False) as self.judge:
                    with gr.Row():
                        good = gr.Button("✓ Good", size="sm", min_width=80, elem_id="studio-good")
                        bad = gr.Button("✗ Bad", size="sm", min_width=80, elem_id="studio-bad")
                        after = gr.Button("Next →", size="sm", min_width=80)
                    self.stars = gr.Radio(
                        [("★" * n, n) for n in range(1, 6)] + [("none", 0)], label="Stars", elem_id="studio-stars"
                    )
                    self.note = gr.Textbox(
                        label="Note", lines=1, max_lines=4, info="Enter saves it.", elem_id="studio-note"
                    )
                with gr.Accordion("Take it along", open=False):
                    self.format = gr.Dropdown(
                        [(FORMAT_NAMES[name], name) for name in FORMATS], value="csv", label="As", interactive=True
                    )
                    make = gr.Button("Make the file", size="sm", elem_id="studio-make")
                    self.file = gr.DownloadButton("Download", size="sm", visible=False, elem_id="studio-download")
        self.shown = [
            self.status, self.stop, self.go_on, self.delete, self.body, self.table, self.where, self.detail,
            self.judge, self.stars, self.note, self.row, self.at, self.seen,
        ]  # fmt: skip
        self._wire(good, bad, after, back, on, make)

    def _wire(self, good: Any, bad: Any, after: Any, back: Any, on: Any, make: Any) -> None:
        draw = guarded(len(self.shown))
        place = [self.batch, self.filter, self.row, self.at]
        self.batch.change(
            draw(lambda batch, wanted: self.draw(batch, wanted)), [self.batch, self.filter], self.shown, **QUIET
        )
        self.filter.input(
            draw(lambda batch, wanted: self.draw(batch, wanted)), [self.batch, self.filter], self.shown, **QUIET
        )
        back.click(draw(lambda b, w, r, at: self.draw(b, w, r, at - 1)), place, self.shown, **QUIET)
        on.click(draw(lambda b, w, r, at: self.draw(b, w, r, at + 1)), place, self.shown, **QUIET)
        self.table.select(self._pick, place, self.shown, **QUIET)
        judged = [*place, self.note]
        good.click(draw(lambda *a: self._judge("good", *a)), judged, self.shown, **QUIET)
        bad.click(draw(lambda *a: self._judge("bad", *a)), judged, self.shown, **QUIET)
        after.click(draw(lambda b, w, r, at: self.draw(b, w, self._after(b, w, r), at)), place, self.shown, **QUIET)
        self.stars.input(draw(self._rate), [*place, self.stars], self.shown, **QUIET)
        self.note.submit(draw(self._note), judged, self.shown, **QUIET)
        self.stop.click(guarded(1)(self._stop), self.batch, self.seen, **QUIET)
        self.go_on.click(guarded(2)(self._go_on), self.batch, [self.seen, self.page.timer], **QUIET)
        self.delete.click(guarded(2)(self._delete), self.batch, [self.batch, self.undo], **QUIET)
        self.undo.click(guarded(2)(self._undo), None, [self.batch, self.undo], **QUIET)
        make.click(guarded(1)(self._make), [self.batch, self.format], self.file, **QUIET)
        self.format.change(lambda: gr.update(visible=False), None, self.file, **QUIET)

    def attach(self, tab: gr.Tab, inner: gr.Tab) -> None:
        """Fill on opening and keep up with the clock."""
        gr.on(
            [tab.select, inner.select, self.page.demo.load], guarded(1)(self.open), self.batch, self.batch, **QUIET
        ).then(guarded(len(self.shown))(self.draw), [self.batch, self.filter, self.row, self.at], self.shown, **QUIET)
        polled = [*self.shown, self.page.timer]
        inputs = [self.batch, self.filter, self.row, self.at, self.seen]
        self.page.timer.tick(guarded(len(polled))(self.poll), inputs, polled, **QUIET)

    def open(self, batch: str | None) -> Any:
        """The batches to choose from. One that is chosen is not named again: a new one may be on its way here."""
        found = self.studio.batches()
        choices = [(f"{view.name} ({view.total})", view.id) for view in found]
        if batch and batch in {view.id for view in found}:
            return gr.update(choices=choices)
        return gr.update(choices=choices, value=found[0].id if found else None)

    def draw(self, batch: str | None, wanted: str = "all", row: str = "", at: int = 0) -> list[Any]:
        """Updates for `shown`."""
        if not batch:
            hint = "Choose prompts and variants under New batch; what is written stays here, also after a restart."
            no = gr.update(visible=False)
            return [empty("No batches yet", hint), no, no, no, no, "", "", "", no, None, "", "", 0, ""]
        pulse = self.studio.pulse(batch)  # before reading, so that what comes meanwhile is drawn next
        view, rows, ratings = self.studio.view(batch), self.studio.rows(batch), self.studio.ratings(batch)
        found = chosen_rows(rows, ratings, wanted)
        pages = max(1, -(-len(found) // ROWS_A_PAGE))
        at = min(max(at, 0), pages - 1)
        chosen = next((r for r in rows if r.id == row), None)
        rating = ratings.get(row) or Rating(row=row or "none")
        active = view.status in ("running", "waiting")
        hint = empty("No reply is chosen", "Click one in the table to read and rate it.")
        return [
            batch_status(view), gr.update(visible=active), gr.update(visible=view.status == "paused"),
            gr.update(visible=not active), gr.update(visible=bool(rows)),
            rows_table(found, ratings, row, at), f"page {at + 1} of {pages}", row_detail(chosen) if chosen else hint,
            gr.update(visible=chosen is not None), rating.stars, rating.note, row if chosen else "", at,
            pulse,
        ]  # fmt: skip

    def poll(self, batch: str | None, wanted: str, row: str, at: int, seen: str) -> list[Any]:
        """What changed since `seen`; the rating being written is left alone."""
        still = [gr.skip() for _ in (*self.shown, self.page.timer)]
        pulse = self.studio.pulse(batch) if batch else ""
        if not batch or pulse in ("", seen):
            return still
        updates = self.draw(batch, wanted, row, at)
        for component in (self.detail, self.judge, self.stars, self.note):
            if row:
                updates[self.shown.index(component)] = gr.skip()
        busy = updates[self.shown.index(self.stop)]["visible"]  # as was just read
        timer = gr.Timer(BUSY_SECONDS) if busy else gr.skip()
        return [*updates, timer]

    def _after(self, batch: str, wanted: str, row: str) -> str:
        """The row after this one in the table, or this one if it is the last."""
        rows, ratings = self.studio.rows(batch), self.studio.ratings(batch)
        ids = [r.id for r in rows]
        let = {r.id for r in chosen_rows(rows, ratings, wanted)}
        later = ids[ids.index(row) + 1 :] if row in ids else ids
        return next((r for r in later if r in let), row)

    def _pick(self, batch: str, wanted: str, row: str, at: int, event: gr.EventData) -> list[Any]:
        return guarded(len(self.shown))(self.draw)(batch, wanted, event.id, at)

    def _judge(self, verdict: str, batch: str, wanted: str, row: str, at: int, note: str) -> list[Any]:
        """Good or bad, then on to the next."""
        after = self._after(batch, wanted, row)  # found before the filter may drop this row
        self.studio.rate(batch, row, verdict=verdict, note=note or "")
        return self.draw(batch, wanted, after, at)

    def _rate(self, batch: str, wanted: str, row: str, at: int, stars: int | None) -> list[Any]:
        self.studio.rate(batch, row, stars=int(stars or 0))
        return self.draw(batch, wanted, row, at)

    def _note(self, batch: str, wanted: str, row: str, at: int, note: str) -> list[Any]:
        self.studio.rate(batch, row, note=note or "")
        return self.draw(batch, wanted, row, at)

    def _stop(self, batch: str) -> str:
        self.studio.stop(batch)
        gr.Info("Stopping; what is written stays.")
        return ""

    def _go_on(self, batch: str) -> tuple[str, Any]:
        self.studio.start(batch)
        return "", gr.Timer(BUSY_SECONDS)

    def _delete(self, batch: str) -> tuple[Any, Any]:
        self.studio.delete(batch)
        gr.Info("Deleted. You can undo this.")
        return self.open(None), gr.update(visible=True)

    def _undo(self) -> tuple[Any, Any]:
        self.page.engine.undo_delete()
        return self.open(None), gr.update(visible=False)

    def _make(self, batch: str, format: str) -> Any:
        path = self.studio.export(batch, format, self.page.fresh_file(f"{batch}.{format}"))
        return gr.update(value=str(path), label=f"Download {path.name}", visible=True)
