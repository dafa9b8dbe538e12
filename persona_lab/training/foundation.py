"""Foundations: passages of a corpus without what any persona of the home holds out, and the bases kept of them.

A foundation is found again by its recipe: the origin's weights, the very tokens that were trained on, settings and
seed. So another character shares it only if it was trained on nothing that this character holds out.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lab.datasets.corpus import Unit, own_corpus, read_corpus
from persona_lab.datasets.corpus_filter import HeldText, without_held
from persona_lab.datasets.encoding import load_tokenizer
from persona_lab.datasets.held_out import read_ledger
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.datasets.store import load_dataset
from persona_lab.errors import BadInput, BadSetting
from persona_lab.evaluation.probes import reply_probes
from persona_lab.models import cache, kept
from persona_lab.models.weights import count_parameters, fingerprint
from persona_lab.personas.probe_file import probes_of
from persona_lab.training.saving import fill_with_weights
from persona_lab.types import BaseModelInfo, Dataset, FitResult, Rendered, slug

STAGE = "foundation"
"""The stage of the fit loop that trains one."""
SHORTEST = 16
"""Tokens: a passage with fewer teaches nothing and is left out."""
MOST_HELD_OUT = 60
"""Passages the validation loss is measured on at most."""
_VERSION = re.compile(r"-v(\d+)$")


@dataclass(frozen=True)
class Passages:
    """A corpus as rendered passages, every token of which is trained on but the first.

    `counts`: files, units, dropped (units that hold a held-out line), passages, validation, tokens.
    """

    train: tuple[Rendered, ...]
    validation: tuple[Rendered, ...]
    counts: dict[str, int]

    def recipe(self, base: BaseModelInfo, settings: dict[str, Any], seed: int) -> str:
        """sha256, hex, of everything that decides the trained weights."""
        ids = [[list(p.ids) for p in part] for part in (self.train, self.validation)]
        made_of = [fingerprint(Path(base.path)), ids, settings, seed]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


# --- what must not be in a corpus -----------------------------------------------------------------


def held_text(ctx: Any) -> HeldText:
    """What any persona of the home holds out: lines of test and validation splits, probes, and the lines of other
    speakers that these are measured against (read by a foundation, they would make every specificity too low).

    Raises:
        BadInput: a ledger is damaged, so that nothing says what is held out.
    """
    lines = list(_held_lines(ctx.dataset))
    keys: set[str] = set()
    for folder in sorted((ctx.home.root / "personas").glob("*/")) if ctx.home is not None else ():
        keys |= {key for key, entry in read_ledger(folder).entries.items() if entry.kind == "reply"}
        lines += [probe.reply for probe in probes_of(folder).replies]
        newest = _newest(folder)
        try:
            lines += _held_lines(load_dataset(newest)) if newest else []
        except BadInput as error:
            ctx.log(f"{error.message} Its held-out lines are known by their fingerprints only.", "warning")
    return HeldText(lines, keys)


def _held_lines(dataset: Dataset) -> Iterator[str]:
    for conversation in (*dataset.of("test"), *dataset.of("validation")):
        yield from (m.content for m in conversation.messages if m.role == "assistant")
    yield from (probe.other for probe in reply_probes(dataset) if probe.other)


def _newest(folder: Path) -> Path | None:
    found = [path for path in (folder / "datasets").glob("*.jsonl") if _VERSION.search(path.stem)]
    return max(found, key=lambda path: int(_VERSION.search(path.stem)[1]), default=None)  # type: ignore[index]


# --- passages -------------------------------------------------------------------------------------


def corpus_passages(ctx: Any, path: str, passage_tokens: int, held_out_share: float) -> Passages:
    """The corpus at `path`, or what the persona's own data says of its world, as passages.

    Args:
        path: file or folder; empty: the lines of other speakers, and the training conversations as text.
        passage_tokens: the longest passage. None goes over the end of a document, or over a hole in it.
        held_out_share: of the passages, for the validation loss of this stage; at most 60, at least one of three.

    Raises:
        BadInput: nothing readable, or nothing left of it.
    """
    corpus = read_corpus(Path(path)) if path else own_corpus(ctx.dataset)
    for note in corpus.notes:
        ctx.log(note, "warning")
    allowed = without_held(corpus.units, held_text(ctx))
    passages = list(_passages(ctx.renderer, allowed.units, passage_tokens))
    if not passages:
        raise BadInput(
            f"Nothing is left of the corpus: of its {len(corpus.units)} pieces {allowed.dropped} hold held-out lines, "
            f"and no passage of the rest has {SHORTEST} tokens.",
            "Use a larger corpus.",
        )
    share = min(MOST_HELD_OUT, max(round(held_out_share * len(passages)), 1)) if len(passages) > 2 else 0
    share = share if held_out_share else 0
    chosen = set(random.Random(ctx.seed).sample(range(len(passages)), share))
    train = tuple(p for i, p in enumerate(passages) if i not in chosen)
    counts = {
        "files": corpus.files,
        "units": len(corpus.units),
        "dropped": allowed.dropped,
        "passages": len(train),
        "validation": share,
        "tokens": sum(len(p.ids) for p in train),
    }
    return Passages(train, tuple(p for i, p in enumerate(passages) if i in chosen), counts)


def _passages(renderer: ChatRenderer, units: Sequence[Unit], most: int) -> Iterator[Rendered]:
    start = _start_ids(renderer)
    between = renderer.text_ids("\n\n")
    ids: list[int] = []
    for unit in units:
        more = renderer.text_ids(unit.text)
        if ids and (unit.begins or len(ids) + len(between) + len(more) > most - len(start)):
            yield from _cut(start, ids, most)
            ids = []
        ids += [*between, *more] if ids and not unit.goes_on else more
    yield from _cut(start, ids, most)


def _cut(start: list[int], ids: list[int], most: int) -> Iterator[Rendered]:
    """In equal parts, so that no rest is too short to be read."""
    parts = math.ceil(len(ids) / (most - len(start)))
    size = math.ceil(len(ids) / max(parts, 1))
    for at in range(0, len(ids), max(size, 1)):
        part = (*start, *ids[at : at + size])
        if len(part) - len(start) >= SHORTEST:
            first = max(len(start), 1)
            yield Rendered(ids=part, mask=(False,) * first + (True,) * (len(part) - first))


def _start_ids(renderer: ChatRenderer) -> list[int]:
    """What the tokenizer writes before any text, such as Llama's begin-of-text."""
    encoding = load_tokenizer(renderer.folder).encode("a")
    count = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    return list(encoding.ids[:count])


# --- kept bases -----------------------------------------------------------------------------------


def kept_base(ctx: Any, recipe: str, name: str) -> tuple[BaseModelInfo, FitResult] | None:
    """The foundation made of just this before, and what its training did; None: it must be trained.

    Raises:
        BadSetting: there is another model under the name that was asked for.
    """
    found = kept.find_made_of(ctx.home, recipe)
    if found is not None:
        return found, FitResult.model_validate(kept.marker(ctx.home, found.id)["fit"])
    if name and ctx.home.model(_id(recipe, name)).exists():
        raise BadSetting(
            f"There is a model kept as {_id(recipe, name)!r} already, and it was made of something else.",
            "Choose another `keep_as`, or leave it empty.",
        )
    return None


def keep_base(ctx: Any, model: Any, recipe: str, name: str, fit: FitResult, passages: Passages) -> BaseModelInfo:
    """Keep a trained model as a base of its own: `foundation-<recipe>`, or `name` as an id. `model` becomes bf16.

    Raises:
        DiskFull: nothing is left behind. Cancelled
    """
    origin: BaseModelInfo = ctx.base
    ended = fit.stopped == "asked"
    if ended:  # or the next character would be given it as the whole
        recipe = hashlib.sha256(f"{recipe} ended after step {fit.steps}".encode()).hexdigest()
    model_id = _id(recipe, name)

    def make(folder: Path) -> dict[str, Any]:
        fill_with_weights(model, origin, folder)
        read = (*passages.train, *passages.validation)  # the latter chose the checkpoint
        kept.write_read(folder, (ctx.renderer.decode(passage.ids) for passage in read))
        return {
            "id": model_id,
            "name": name or f"{origin.name}, foundation {recipe[:8]}",
            "kind": kept.KIND,
            "recipe": recipe,
            "origin": origin.origin or origin.id,
            "license": origin.license,
            "parameters": count_parameters(folder),
            "architecture": origin.architecture,
            "corpus": passages.counts,
            "fit": fit.model_dump(mode="json"),
        }

    ctx.phase("Keeping the foundation")
    made = cache.build(ctx.home, model_id, ctx.reporter, 2 * origin.parameters + 50_000_000, make)
    if not ended:
        # found by its recipe from now on, so a resumed run needs them no more, and they are large
        shutil.rmtree(ctx.run_dir / "checkpoints" / STAGE, ignore_errors=True)
    return made


def _id(recipe: str, name: str) -> str:
    return slug(name, "foundation") if name else f"foundation-{recipe[:12]}"
