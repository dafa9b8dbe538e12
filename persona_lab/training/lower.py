"""The frozen lower layers of a model, run once for each example and then left out of every step.

Where only the upper layers are trained, what enters the first trained layer is the same in every epoch. It is computed
once, kept in memory, and the model then runs from there: its list of layers is shortened while it does, and the kept
states stand in for the embeddings. Exact without dropout; checked against the whole model before use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from persona_lab.training.attention import packed
from persona_lab.training.batches import Batch, collate
from persona_lab.training.lora import layer_of
from persona_lab.training.packing import Packing, filler
from persona_lab.training.paths import LossPath, batch_loss
from persona_lab.types import Rendered

FILLING_BATCH = 8
LAYER_LISTS = ("layers", "h", "blocks")
SHARE = 0.3
"""Of the free memory that kept states may take."""
CLOSE = {torch.float32: 1e-5}
"""Relative, between the losses with and without the lower layers; of other types, whose products round: 1e-3."""


class Lower:
    """States [tokens, hidden] that enter layer `depth`, by example.

    Args:
        model: a causal language model; `depth` of its layers are frozen, and so are its embeddings.
        prefix: the tokens that all examples share; their states are kept once.

    Attributes:
        trained_share: of the layers, those that a step goes through (0 .. 1).
    """

    def __init__(self, model: Any, depth: int, prefix: Sequence[int], pad_id: int, device: str) -> None:
        self.model, self.depth, self.prefix = model, depth, prefix
        self.pad_id, self.device = pad_id, device
        self.decoder = _inner(model).get_decoder()
        self.name = _layer_list(self.decoder)
        layers = len(getattr(self.decoder, self.name))
        self.trained_share = (layers - depth) / layers
        self.kept: dict[tuple[int, ...], torch.Tensor] = {}
        self.front: torch.Tensor | None = None

    @torch.no_grad()
    def fill(self, examples: Sequence[Rendered]) -> None:
        """Run the lower layers on examples that are not kept yet."""
        new = [example for example in examples if example.ids not in self.kept]
        training = self.model.training
        self.model.eval()
        for start in range(0, len(new), FILLING_BATCH):
            chosen = new[start : start + FILLING_BATCH]
            packing = Packing(collate(chosen, len(self.prefix), self.pad_id, self.device), self.prefix)
            states = self._enter(packing)
            self.front = states[: packing.prefix]
            tails = states[packing.prefix : len(states) - packing.filler].split(packing.lengths)
            for example, part in zip(chosen, tails, strict=True):
                self.kept[example.ids] = part.clone()
        self.model.train(training)

    def _enter(self, packing: Packing) -> torch.Tensor:
        """What enters layer `depth` [tokens, hidden]; the layers from there on are not run."""
        found: list[torch.Tensor] = []

        def note(_: Any, arguments: Any, options: Any) -> None:
            found.append((arguments[0] if arguments else options["hidden_states"])[0].detach())
            raise _Enough

        handle = getattr(self.decoder, self.name)[self.depth].register_forward_pre_hook(note, with_kwargs=True)
        try:
            with packed(packing):
                self.decoder(input_ids=packing.ids, position_ids=packing.positions, use_cache=False)
        except _Enough:
            pass  # the layers above are not wanted
        finally:
            handle.remove()
        return found[0]

    def states(self, examples: Sequence[Rendered]) -> torch.Tensor:
        """[1, tokens, hidden] of a packing of these examples, in their order."""
        self.fill(examples)
        assert self.front is not None
        rows = [self.front, *(self.kept[example.ids] for example in examples)]
        behind = rows[1][:1].expand(filler(sum(map(len, rows))), -1)
        return torch.cat([*rows, behind])[None]

    def loss(self, examples: Sequence[Rendered], batch: Batch, path: LossPath) -> torch.Tensor:
        """Summed nats of `batch`, which is of these examples, without running the lower layers; see `batch_loss`."""
        states = self.states(examples)
        with self.upper_only():
            return batch_loss(self.model, batch, self.prefix, path, states)

    @contextmanager
    def upper_only(self) -> Iterator[None]:
        """While this lasts, the decoder has only the layers from `depth` on."""
        layers = getattr(self.decoder, self.name)
        setattr(self.decoder, self.name, layers[self.depth :])
        try:
            yield
        finally:
            setattr(self.decoder, self.name, layers)


class _Enough(Exception):
    """Leaves a forward pass."""


def _state_bytes(model: Any, examples: Sequence[Rendered], prefix: int) -> int:
    """Of the states of all examples, each kept once."""
    tokens = sum(len(ids) - prefix for ids in {example.ids for example in examples}) + prefix
    width = next((p.element_size() for p in model.parameters() if p.is_floating_point()), 4)
    return int(tokens * _inner(model).config.get_text_config().hidden_size * width)


def frozen_depth(model: Any) -> int:
    """How many of the lowest decoder layers hold no trained weight, embeddings included; 0: none, or it is not sure."""
    trained = [layer_of(name) for name, p in model.named_parameters() if p.requires_grad]
    head = _inner(model).get_output_embeddings()
    above = {id(p) for p in head.parameters()} if head is not None else set()
    below = {id(p) for p in _inner(model).get_input_embeddings().parameters()}
    for name, p in model.named_parameters():
        if p.requires_grad and layer_of(name) is None and (id(p) in below or id(p) not in above):
            return 0  # an embedding, or something whose place is unknown
    numbered = [layer for layer in trained if layer is not None]
    return min(numbered, default=0)


def _drops(model: Any) -> bool:
    config = _inner(model).config.get_text_config()
    named = [getattr(config, name, 0) or 0 for name in ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop")]
    return any(named) or any(m.p > 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _layer_list(decoder: Any) -> str:
    """The attribute that holds the decoder's layers.

    Raises:
        ValueError: it has none of the usual names.
    """
    for name in LAYER_LISTS:
        if isinstance(getattr(decoder, name, None), torch.nn.ModuleList):
            return name
    raise ValueError("the decoder's layers have an unusual name")


def lower_for(
    model: Any,
    examples: Sequence[Rendered],
    prefix: Sequence[int],
    pad_id: int,
    device: str,
    agrees: Any,
    free_bytes: int = 1 << 62,
) -> tuple[Lower | None, str]:
    """The lower layers of `model` where leaving them out changes nothing; else None and why.

    Args:
        examples: all that will be trained and validated on.
        agrees: called with the candidate; gives (loss without the lower layers, loss of the whole model).
        free_bytes: of memory, of which the states of all examples may take a share.
    """
    depth = frozen_depth(model)
    if depth == 0:
        return None, ""
    if _drops(model):
        return None, "the model drops activations at random"
    needed = _state_bytes(model, examples, len(prefix))
    if needed > SHARE * free_bytes:
        return None, f"to keep what they give would take {needed / 1e9:.1f} GB of {free_bytes / 1e9:.1f} GB"
    kinds = list(getattr(_inner(model).config.get_text_config(), "layer_types", None) or ())
    if kinds[: len(kinds) - depth] != kinds[depth:]:
        # some models look up by a layer's place in the list, which is another without the lower ones, what it is
        return None, "the layers above them are of other kinds, in this order, than the first ones"
    try:
        lower = Lower(model, depth, prefix, pad_id, device)
        got, expected = agrees(lower)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        # any architecture may be loaded here; those that lack the doors used above say so in these ways
        return None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if not math.isclose(got, expected, rel_tol=CLOSE.get(dtype, 1e-3)):
        return None, f"the loss without them is {got:.5f} where it is {expected:.5f}"
    return lower, ""
