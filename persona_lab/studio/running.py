"""Writes a batch's rows through the chat worker, several in one pass; keeps each as it comes. Knows no page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from persona_lab.errors import WorkFailed
from persona_lab.studio.records import Batch, Row, Style, Task
from persona_lab.types import ChatChunk, ChatRequest, Message, Stamp, Variant

ROWS_AT_ONCE = 16
"""Rows of one base in one pass of the model: more gain little on a CPU, and each takes memory for its prompt."""
FAILED_PASSES = 2
"""Passes in a row without a single reply after which a batch is given up."""
CUT_PASSES = 5

Chat = Callable[[Sequence[ChatRequest]], Iterator[ChatChunk]]


def styled(variant: Variant, style: Style) -> Variant:
    """The variant with the style's notes after its system prompt; its weights are the same."""
    if not style.notes:
        return variant
    before = variant.system if variant.prompt_mode == "card" else ""
    system = f"{before}\n{style.notes}".strip()
    return variant.model_copy(update={"system": system, "prompt_mode": "card"})


def request_of(batch: Batch, task: Task) -> ChatRequest:
    """The task as the chat worker takes it; its pane is the row's id."""
    return ChatRequest(
        pane=task.id,
        variant=styled(task.variant, batch.style),
        messages=(Message(role="user", content=batch.said(task)),),
        sampling=batch.style.sampling.model_copy(update={"seed": task.seed}),
    )


def passes(tasks: Sequence[Task], most: int = ROWS_AT_ONCE) -> Iterator[list[Task]]:
    """Tasks in groups that one pass can answer: at most `most`, all on one base, in the given order."""
    group: list[Task] = []
    for task in tasks:
        if group and (len(group) == most or group[0].variant.base != task.variant.base):
            yield group
            group = []
        group.append(task)
    if group:
        yield group


def write_rows(batch: Batch, done: dict[str, Row], chat: Chat, should_stop: Callable[[], bool]) -> Iterator[Row]:
    """Rows that are missing or failed before, in the order in which they are finished.

    Args:
        done: rows there are already, by id.
        should_stop: asked at every piece of text; True ends this without the rows being written.

    Raises:
        WorkFailed: two passes in a row gave no reply at all; the rows say why, and can be tried again.
    """
    missing = [task for task in batch.tasks() if task.id not in done or done[task.id].error]
    failed = 0
    for group in passes(missing):
        reason, replies = "", 0
        for row in _pass(batch, group, chat, should_stop):
            replies += not row.error
            reason = row.error or reason
            yield row
        if should_stop():
            return
        failed = 0 if replies else failed + 1
        if failed == FAILED_PASSES:
            raise WorkFailed(f"No variant could answer: {reason}", "Mend that and go on with the batch.")


def _pass(batch: Batch, group: Sequence[Task], chat: Chat, should_stop: Callable[[], bool]) -> Iterator[Row]:
    """The rows of one pass. What a stop in the chat cut short is asked for again."""
    left = {task.id: task for task in group}
    for attempt in range(CUT_PASSES):
        texts = dict.fromkeys(left, "")
        stream = chat([request_of(batch, task) for task in left.values()])
        for chunk in stream:
            if should_stop():
                stream.close()  # type: ignore[attr-defined]  # a generator: leaving it tells the worker to stop
                return
            texts[chunk.pane] += chunk.text
            if chunk.error:
                yield _row(batch, left.pop(chunk.pane), error=chunk.error)
            elif chunk.done and chunk.stamp is not None and not chunk.stopped:
                yield _row(batch, left.pop(chunk.pane), texts[chunk.pane], chunk.stamp)
        if not left:
            return
        time.sleep(0.1 * (attempt + 1))
    for task in left.values():
        yield _row(batch, task, error="It was stopped again and again while it was being written.")


def _row(batch: Batch, task: Task, reply: str = "", stamp: Stamp | None = None, error: str = "") -> Row:
    made = Row(
        id=task.id,
        prompt=task.prompt.name,
        text=batch.said(task),
        variant=task.variant.id,
        variant_name=task.variant.name,
        seed=task.seed,
        reply=reply.strip(),
        error=error,
        base=task.variant.base,
    )
    if stamp is None:
        return made
    return made.model_copy(update={"adapter": stamp.adapter, "tokens": stamp.tokens, "seconds": stamp.seconds})
