"""One step of decoding for a batch of rows, in two ways that give the same logits.

`PlainSteps` calls the model as anyone would. `FastSteps` adds a cache that grows in place, beginnings that are known
already, packed weights and all rows' adapters in one pass. `open_steps` takes the fast way where a first step on it
equals the plain one's, and says in the log why where it does not.
"""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from persona_lab.errors import BadInput
from persona_lab.inference.fast_linear import (
    BASE,
    NotMixable,
    PackedWeights,
    RowAdapters,
    active_adapters,
    fast_linears,
)
from persona_lab.inference.kv_cache import Known, PrefixCache, fill, growing_cache, row_states, shared_length
from persona_lab.inference.steering import RowShifts, Shift, steered
from persona_lab.inference.token_step import TokenStep, token_step

log = logging.getLogger(__name__)

WORTH = {"cpu": 128}
"""Tokens that running a common beginning once must save: a pass more takes about as long on a CPU."""
WORTH_ELSEWHERE = 2048
CHECKED_TOKENS = (12, 9)
"""Of two prompts, run both ways before the fast one is used."""
DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Allowed between the two ways (root mean square, relative to the logits' spread). Rounding gives a fraction of it:
bf16 models compute LoRA in bf16 here and in fp32 in peft. A mistake gives far more."""
QUANTIZED_DIFFERENCE = 0.1


@dataclass(frozen=True)
class Prompt:
    """A row: its prompt's token ids, how many tokens may follow, and what it runs on.

    `adapter`: peft's name, `__base__` for none, None for whatever is active. `weights` names the weights in a cache,
    and with them the `shift`, which is added to what the layers give.
    """

    ids: tuple[int, ...]
    room: int
    adapter: str | None = None
    weights: str = ""
    shift: Shift | None = None


class PlainSteps:
    """The model's own forward and cache; adapters through peft's `adapter_names`.

    Args:
        shifts: what `steered` gave for these rows, which follows them.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], pad: int, shifts: RowShifts | None = None) -> None:
        self.model = model
        self.shifts = shifts
        self.prompts = list(prompts)
        self.pad = pad
        self.cache: Any = None
        self.mask = torch.empty(0)
        self.positions = torch.empty(0)

    def start(self) -> torch.Tensor:
        """Logits of each row's first token [rows, vocabulary], fp32, on the CPU."""
        ids, mask = _padded([prompt.ids for prompt in self.prompts], self.pad, self.model.device)
        self.mask, self.positions = mask, (mask.cumsum(1) - 1).clamp(min=0)
        return self._forward(ids)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """The same for the token after these, one a row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], dim=1)
        self.positions = self.positions[:, -1:] + 1
        return self._forward(torch.tensor([[token] for token in tokens], device=self.model.device))

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows only."""
        chosen = torch.tensor(places, device=self.mask.device)
        self.prompts = [self.prompts[place] for place in places]
        self.mask, self.positions = self.mask[chosen], self.positions[chosen]
        self.cache.batch_select_indices(chosen)
        if self.shifts is not None:
            self.shifts.set([prompt.shift for prompt in self.prompts])

    def end(self, place: int, tokens: Sequence[int]) -> None:
        """A row is done, with these tokens."""

    def _forward(self, ids: torch.Tensor | None, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        names = [prompt.adapter for prompt in self.prompts]
        out = self.model(
            **({"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings}),
            # without padding no mask is needed, and the faster attention without one is used
            attention_mask=None if bool(self.mask.all()) else self.mask,
            position_ids=self.positions,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **({"adapter_names": names} if names[0] else {}),
        )
        self.cache = out.cache
        last: torch.Tensor = out.logits[:, -1].float().cpu()
        return last


class PromptedSteps(PlainSteps):
    """For an adapter of made-up words (prompt tuning, p-tuning): they are read once, right before each row's own.

    Through peft's own forward they would stand before every new token again.
    """

    def start(self) -> torch.Tensor:
        """Logits of each row's first token [rows, vocabulary], fp32, on the CPU."""
        inner = self.model.get_base_model()
        words = inner.get_input_embeddings()
        made_up = self.model.get_prompt(batch_size=1)[0].to(words.weight.dtype)  # [made-up words, hidden]
        rows = [torch.cat([made_up, words(torch.tensor(prompt.ids, device=inner.device))]) for prompt in self.prompts]
        embeddings = made_up.new_zeros((len(rows), max(map(len, rows)), made_up.shape[1]))
        mask = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=inner.device)
        for place, row in enumerate(rows):
            embeddings[place, -len(row) :], mask[place, -len(row) :] = row, 1
        self.mask, self.positions = mask, (mask.cumsum(1) - 1).clamp(min=0)
        self.model, self.prompts = inner, [replace(prompt, adapter=None) for prompt in self.prompts]
        return self._forward(None, embeddings)


def _made_up_words(model: Any) -> bool:
    config = getattr(model, "active_peft_config", None)
    return getattr(config, "peft_type", "") in ("PROMPT_TUNING", "P_TUNING")


class FastSteps:
    """The fast way. To be used inside `fast_linears` with the same `adapters` and inside `steered` with these `shifts`.

    Columns of the batch's cache: what was known of each row, aligned at the right; then what was not, so too; then new
    tokens. Where rows differ in length the holes are masked.
    """

    def __init__(
        self,
        inner: Any,
        prompts: Sequence[Prompt],
        pad: int,
        adapters: RowAdapters,
        prefixes: PrefixCache | None,
        token: TokenStep | None = None,
        shifts: RowShifts | None = None,
    ) -> None:
        self.inner = inner
        self.shifts = shifts
        self.token = token
        self.device = inner.device
        self.prompts = list(prompts)
        self.pad = pad
        self.adapters = adapters
        self.prefixes = prefixes
        self.cache: Any = None
        self.mask = torch.empty(0)
        self.holes = False
        self.positions = torch.empty(0)
        self.first: list[torch.Tensor] = []
        self._known = [self._find(prompt) for prompt in self.prompts]
        self._alike = self._worth_sharing()

    def fits(self) -> bool:
        """Whether the model keeps all keys and values of these rows until the longest reply is written."""
        return growing_cache(self.inner.config, self._widest()) is not None

    def start(self) -> torch.Tensor:
        """Logits of each row's first token [rows, vocabulary], fp32, on the CPU."""
        known, self._known = self._known, []
        self._share(known)
        logits = self._run([prompt.ids for prompt in self.prompts], known, max(p.room for p in self.prompts))
        self.first = list(logits)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """The same for the token after these, one a row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], dim=1)
        self.positions = self.positions + 1
        return self._forward(torch.tensor([[token] for token in tokens], device=self.device), self.positions)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows only."""
        chosen = torch.tensor(places, device=self.device)
        self.prompts = [self.prompts[place] for place in places]
        self.first = [self.first[place] for place in places]
        self.mask, self.positions = self.mask[chosen], self.positions[chosen]
        self.holes = not bool(self.mask.all())
        self.cache.batch_select_indices(chosen)
        self.adapters.set([self.adapters.rows[place] for place in places])
        self._shift(self.prompts)

    def end(self, place: int, tokens: Sequence[int]) -> None:
        """A row is done: keep what it computed, where things are kept."""
        if self.prefixes is None or bool(self.first[place].isnan().any()):
            return  # whatever went wrong is not to be found again
        prompt = self.prompts[place]
        columns = self.mask[place].nonzero()[:, 0]
        ids = (*prompt.ids, *tokens)[: len(columns)]
        states = row_states(self.cache, place, columns)
        self.prefixes.add(prompt.weights, ids, states, len(prompt.ids), self.first[place].clone())

    def _find(self, prompt: Prompt) -> Known | None:
        return self.prefixes.find(prompt.weights, prompt.ids) if self.prefixes is not None else None

    def _widest(self) -> int:
        """Columns that the cache comes to have, the holes of rows that differ in length included."""
        lengths = [0 if known is None else known.length for known in self._known]
        first = [(common, min(lengths[places[0]], common - 1)) for places, common in self._alike]
        for places, common in self._alike:
            for place in places:
                lengths[place] = common
        sizes = [len(prompt.ids) for prompt in self.prompts]
        room = max(prompt.room for prompt in self.prompts)
        return max(_columns(first), _columns(list(zip(sizes, lengths, strict=True))) + room)

    def _worth_sharing(self) -> list[tuple[list[int], int]]:
        """Rows on the same weights and how many tokens they begin with alike, where running these once saves enough."""
        alike: dict[str, list[int]] = defaultdict(list)
        for place, prompt in enumerate(self.prompts):
            alike[prompt.weights].append(place)
        runs: list[tuple[list[int], int]] = []
        for places in alike.values():
            first = self.prompts[places[0]].ids
            common = min(min(shared_length(first, self.prompts[p].ids), len(self.prompts[p].ids) - 1) for p in places)
            if _saved(common, [self._known[p] for p in places]) >= WORTH.get(self.device.type, WORTH_ELSEWHERE):
                runs.append((places, common))
        return runs

    def _share(self, known: list[Known | None]) -> None:
        """Run what rows begin with alike once; fills `known`."""
        runs = self._alike
        if not runs:
            return
        rows = self.adapters.rows
        firsts = [places[0] for places, _ in runs]
        self.adapters.set([rows[place] for place in firsts])
        self._shift([self.prompts[place] for place in firsts])
        ids = [self.prompts[places[0]].ids[:common] for places, common in runs]
        starts = [_cut(known[place], len(part) - 1) for place, part in zip(firsts, ids, strict=True)]
        self._run(ids, starts, 0)
        for row, (places, common) in enumerate(runs):
            states = row_states(self.cache, row, self.mask[row].nonzero()[:, 0])
            for place in places:
                known[place] = Known(states, common)
        self.adapters.set(rows)
        self._shift(self.prompts)

    def _shift(self, prompts: Sequence[Prompt]) -> None:
        if self.shifts is not None:
            self.shifts.set([prompt.shift for prompt in prompts])

    def _run(self, ids: Sequence[tuple[int, ...]], known: Sequence[Known | None], room: int) -> torch.Tensor:
        """Into a new cache: what is known, then the rest through the model; logits after each row's last token."""
        whole = [k.logits for k in known if k is not None and k.logits is not None]
        done = len(whole) == len(ids)
        if not done:  # the pass needs a token of every row
            known = [_cut(k, len(row) - 1) for k, row in zip(known, ids, strict=True)]
        lengths = [0 if k is None else k.length for k in known]
        rest = [row[length:] for row, length in zip(ids, lengths, strict=True)]
        width = max(lengths)
        self.cache = growing_cache(self.inner.config, width + max(len(row) for row in rest) + room)
        if self.cache is None:
            raise NotMixable("the model keeps something else than keys and values")
        if width:
            fill(self.cache, known, width)
        old, _ = _padded([row[:length] for row, length in zip(ids, lengths, strict=True)], self.pad, self.device)
        columns = torch.arange(width, device=self.device)[None]
        start = torch.tensor(lengths, device=self.device)[:, None]
        mask = (columns >= width - start).long().expand(len(ids), old.shape[1])
        tokens, fresh = _padded(rest, self.pad, self.device)
        self.mask = torch.cat([mask, fresh], dim=1)
        self.holes = not bool(self.mask.all())
        self.positions = start + torch.tensor([[len(row) - 1] for row in rest], device=self.device)
        if done:
            return torch.stack(whole)
        return self._forward(tokens, (start + fresh.cumsum(1) - 1).clamp(min=0))

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self.token is not None and ids.shape[1] == 1:
            return self.token(ids, positions, self.cache, self.mask if self.holes else None).float().cpu()
        out = self.inner(
            input_ids=ids,
            attention_mask=self.mask if self.holes else None,
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last: torch.Tensor = out.logits[:, -1].float().cpu()
        return last


def _columns(rows: Sequence[tuple[int, int]]) -> int:
    """Of rows of (tokens, those known already): both parts are aligned at the right."""
    known = max((known for _, known in rows), default=0)
    return known + max((tokens - known for tokens, known in rows), default=0)


def _saved(common: int, known: Sequence[Known | None]) -> int:
    """Tokens that need not be run if the common beginning is run once."""
    missing = [max(0, common - (0 if k is None else k.length)) for k in known]
    return sum(missing) - missing[0]


def _cut(known: Known | None, length: int) -> Known | None:
    return Known(known.states, min(known.length, length)) if known is not None and length > 0 else None


def _padded(rows: Sequence[tuple[int, ...]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [rows, longest], padded at the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long, device=device)
    return ids.view(len(rows), width), mask.view(len(rows), width)


# --- which way ------------------------------------------------------------------------------------


@dataclass
class _Verdict:
    """Why the fast way cannot be taken, if it cannot; and whether `token_step` may be used in it."""

    reason: str
    token: bool = False


_verdicts: weakref.WeakKeyDictionary[Any, dict[tuple[bool, bool], _Verdict]] = weakref.WeakKeyDictionary()


@contextmanager
def open_steps(
    model: Any,
    prompts: Sequence[Prompt],
    pad: int,
    packed: PackedWeights | None = None,
    prefixes: PrefixCache | None = None,
) -> Iterator[PlainSteps | FastSteps]:
    """Steps for these rows, the fast ones where the model allows them.

    Args:
        model: a transformers model, or a peft model of one, in eval mode.
        prompts: all with an adapter name, or none.

    Raises:
        BadInput: other weights than the model's own are asked for, and only the plain way could be taken.
        BadModel: a prompt's shift is not one for this model.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with steered(inner, ()):  # whether the two ways agree is a question about the model as it is
        verdict = _verdict(model, inner, prompts, pad, packed)
    with steered(inner, [prompt.shift for prompt in prompts]) as shifts:
        with _chosen_steps(model, inner, prompts, pad, packed, prefixes, verdict, shifts) as steps:
            yield steps


@contextmanager
def _chosen_steps(
    model: Any,
    inner: Any,
    prompts: Sequence[Prompt],
    pad: int,
    packed: PackedWeights | None,
    prefixes: PrefixCache | None,
    verdict: _Verdict,
    shifts: RowShifts | None,
) -> Iterator[PlainSteps | FastSteps]:
    reason = verdict.reason
    if not reason:
        fast = FastSteps(inner, prompts, pad, _adapters(inner, prompts), prefixes, shifts=shifts)
        reason = "" if fast.fits() else "prompt and reply may reach past the model's sliding window"
    if not reason:
        manager = fast_linears(inner, packed, fast.adapters)
        try:
            joint = manager.__enter__()
        except NotMixable as error:
            reason = str(error)
        else:
            try:
                fast.token = token_step(inner, joint, shifts) if verdict.token else None
                yield fast
            finally:
                manager.__exit__(None, None, None)
            return
    if packed is not None and packed.weights != "native":
        raise BadInput(f"{packed.weights} weights cannot be used with this model: {reason}.", "Switch them off.")
    log.warning("Replies are written by the plain loop: %s.", reason)
    yield (PromptedSteps if _made_up_words(model) else PlainSteps)(model, prompts, pad, shifts)


def _adapters(inner: Any, prompts: Sequence[Prompt]) -> RowAdapters:
    if prompts[0].adapter is None:
        return RowAdapters([active_adapters(inner)] * len(prompts))
    return RowAdapters([frozenset() if p.adapter in (BASE, None) else frozenset({str(p.adapter)}) for p in prompts])


def _verdict(model: Any, inner: Any, prompts: Sequence[Prompt], pad: int, packed: PackedWeights | None) -> _Verdict:
    """Found out once for a model, with and without adapters and packed weights."""
    if getattr(inner, "_is_stateful", False):
        return _Verdict("the model keeps a state instead of keys and values")
    if model is not inner and getattr(model.active_peft_config, "is_prompt_learning", False):
        return _Verdict("the adapter is a prompt, not weights")
    kinds = _verdicts.setdefault(inner, {})
    kind = (bool(_adapters(inner, prompts).used), packed is not None and packed.weights == "native")
    if kind not in kinds:
        few = [
            Prompt(prompt.ids[-tokens:], 2, prompt.adapter)
            for prompt, tokens in zip((prompts[0], prompts[-1]), CHECKED_TOKENS, strict=True)
        ]
        plain = PlainSteps(model, few, pad)
        expected = torch.stack([plain.start(), plain.step([prompt.ids[0] for prompt in few])])
        if bool(expected.isnan().any()):  # said of these adapters, or of these weights
            return _Verdict("its own logits are not numbers")
        used = packed if kind[1] else None
        try:
            unlike = (
                _difference(inner, few, pad, expected, used, token=True) if used is not None else "no packed weights"
            )
            if unlike:
                log.debug("The model's own layers run each token: %s.", unlike)
            kinds[kind] = _Verdict(_difference(inner, few, pad, expected, None) if unlike else "", token=not unlike)
        except NotMixable as error:  # said of these adapters, not of the model
            return _Verdict(str(error))
    return kinds[kind]


def _difference(
    inner: Any,
    few: Sequence[Prompt],
    pad: int,
    expected: torch.Tensor,
    packed: PackedWeights | None,
    token: bool = False,
) -> str:
    """Why this way cannot be taken: how its logits of two steps differ from the `expected`; empty when it can.

    Args:
        token: try `token_step`.
    """
    adapters = _adapters(inner, few)
    try:
        with fast_linears(inner, packed, adapters) as joint:
            step = token_step(inner, joint) if token else None
            if token and step is None:
                return "the model is of another kind"
            fast = FastSteps(inner, few, pad, adapters, None, step)
            got = torch.stack([fast.start(), fast.step([prompt.ids[0] for prompt in few])])
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        # any architecture may be loaded here; those that lack the doors used above say so in these ways
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    apart = float((got - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6))
    quantized = getattr(inner, "is_quantized", False)  # whose products round by the shape of the batch
    allowed = QUANTIZED_DIFFERENCE if quantized else DIFFERENCE.get(next(inner.parameters()).dtype, 0.1)
    if not apart <= allowed:
        return f"its logits are {apart:.2g} standard deviations from the model's own"
    return ""
