"""In the worker: a base model writes prompts for the passages of a document (see datasets.instructions).

Of several it writes for a passage, the one that makes the passage likeliest as its answer is kept; where none can
be used, the template's stays. What is written is kept in `prompts.jsonl` of the run's folder as it comes, so that a
stopped run goes on. The dataset is not touched here: the engine makes a new version of it when the run is done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lab.api import Reporter
from persona_lab.datasets.instructions import askable, asks_for, usable_prompt
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.datasets.store import load_dataset
from persona_lab.errors import BadInput, Cancelled, WorkFailed
from persona_lab.events import drop_partial_line
from persona_lab.home import Home, disk_errors
from persona_lab.models.machine import worker_machine
from persona_lab.models.registry import ensure
from persona_lab.types import Conversation, Job, Message, Sampling

PROMPTS_FILE = "prompts.jsonl"
PASSAGES_AT_ONCE = 5
CANDIDATES = 6
TEMPERATURE = 0.6
MOST_TOKENS = 48


def run(job: Job, reporter: Reporter) -> dict[str, Any]:
    """Write prompts for the rows of `job.dataset` whose prompt was made by us; a run's result.

    Returns:
        {"dataset", "model" (its name), "rows": how many were to be asked, "written": how many have a new prompt,
        "seconds"}.

    Raises:
        BadInput: there are no such rows. WorkFailed: nothing that was written can be used. Cancelled, OutOfMemory
    """
    home = Home(Path(job.home))
    rows = askable(load_dataset(Path(job.dataset)).conversations)
    if not rows:
        raise BadInput(f"{job.dataset_id} has no prompts that were made of templates.", "Import a document.")
    started = time.perf_counter()
    base = ensure(job.base, home, reporter)
    kept = home.run(job.id) / PROMPTS_FILE
    written = _write_all(rows, base, kept, job, reporter)
    found = sum(bool(prompt) for prompt in written.values())
    if not found:
        raise WorkFailed(
            f"{base.name} wrote no prompt that fits its passage, for any of {len(rows)} passages.",
            "Nothing was changed. Try a larger base model.",
        )
    reporter.log(f"{found} of {len(rows)} passages have a prompt by {base.name}; the others keep their template's.")
    seconds = time.perf_counter() - started
    return {"dataset": job.dataset_id, "model": base.name, "rows": len(rows), "written": found, "seconds": seconds}


def read_prompts(file: Path) -> dict[str, str]:
    """What was written so far: a prompt by a row's id, empty where none could be used. A cut last line is left out."""
    found: dict[str, str] = {}
    if not file.exists():
        return found
    for line in file.read_text("utf-8").split("\n")[:-1]:
        row = json.loads(line)
        found[str(row["id"])] = str(row["prompt"])
    return found


def _write_all(rows: Sequence[Conversation], base: Any, kept: Path, job: Job, reporter: Reporter) -> dict[str, str]:
    from persona_lab.inference.loading import load_model

    written = read_prompts(kept)
    if written:
        reporter.log(f"{len(written)} of {len(rows)} passages were asked about before; going on with the others.")
    todo = [row for row in rows if row.id not in written]
    reporter.phase(f"{base.name} writes prompts", len(rows))
    if not todo:
        return written
    model = load_model(base, worker_machine(Path(job.home)))
    renderer = ChatRenderer(Path(base.path))
    drop_partial_line(kept)
    for at in range(0, len(todo), PASSAGES_AT_ONCE):
        batch = todo[at : at + PASSAGES_AT_ONCE]
        prompts = _write(model, renderer, [_passage(row) for row in batch], job.seed + len(written), reporter)
        lines = "".join(
            json.dumps({"id": row.id, "prompt": prompt}) + "\n" for row, prompt in zip(batch, prompts, strict=True)
        )
        with disk_errors(kept), kept.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        written |= {row.id: prompt for row, prompt in zip(batch, prompts, strict=True)}
        reporter.step(len(written), len(rows))
    return written


def _passage(row: Conversation) -> str:
    return next(message.content for message in row.messages if message.role == "assistant")


def _write(model: Any, renderer: ChatRenderer, passages: Sequence[str], seed: int, reporter: Reporter) -> list[str]:
    """For each passage the prompt that makes it likeliest, of those written; empty where none can be used."""
    from persona_lab.inference.decoding import generate
    from persona_lab.inference.scoring import loglikelihood

    asked = [(number, candidate) for number in range(len(passages)) for candidate in range(CANDIDATES)]
    sampling = [
        Sampling(temperature=TEMPERATURE, max_new_tokens=MOST_TOKENS, seed=seed * CANDIDATES + place)
        for place in range(len(asked))
    ]
    stop = _Stop(reporter)
    said = generate(model, renderer, [asks_for(passages[n]) for n, _ in asked], sampling, should_stop=stop)
    stop.check()
    found: list[list[str]] = [[] for _ in passages]
    for (number, _), reply in zip(asked, said, strict=True):
        prompt = usable_prompt(reply.text, passages[number])
        if prompt and prompt not in found[number]:
            found[number].append(prompt)
    items = [(number, prompt) for number, prompts in enumerate(found) for prompt in prompts]
    scores = loglikelihood(
        model, renderer, [([Message(role="user", content=prompt)], passages[number]) for number, prompt in items]
    )
    best: dict[int, tuple[float, str]] = {}
    for (number, prompt), score in zip(items, scores, strict=True):
        if number not in best or score.total > best[number][0]:
            best[number] = (score.total, prompt)
    return [best[number][1] if number in best else "" for number in range(len(passages))]


class _Stop:
    """Whether the user asked to stop, in the middle of a batch; remembers it for after the batch."""

    def __init__(self, reporter: Reporter) -> None:
        self._check = getattr(reporter, "check_cancelled", None)
        self._asked: Cancelled | None = None

    def __call__(self) -> bool:
        try:
            if self._check is not None:
                self._check()
        except Cancelled as error:
            self._asked = error
        return self._asked is not None

    def check(self) -> None:
        """Raise what was asked for."""
        if self._asked is not None:
            raise self._asked
