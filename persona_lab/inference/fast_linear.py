"""Linear layers while replies are written: packed weights, and each row's own LoRA adapters in one forward pass.

peft runs the adapters of a mixed batch one after another in every layer. Here the A matrices of all adapters in the
batch are one matrix, and so are the B matrices: [rows, in] @ A -> [rows, sum of ranks], everything of other rows'
adapters is set to zero, @ B. Exact, for any ranks, for rows without an adapter (all zero) and for several adapters on
one row (none of them zero). The modules' `forward` is replaced only inside the `with` block.

Layers that read the same state (query, key and value; gate and up) are one product: fewer, larger operations, since a
token of a small model costs as much in launching them as in arithmetic.

Weights are packed once into the blocks that oneDNN multiplies, which plain bf16 layers do again in every call, or
rounded to int8 with one scale an output.

oneDNN makes a program for every shape that it multiplies in bf16, and keeps a thousand of them. Prompts have all
lengths; so their rows are rounded up to one of a few numbers (`even_rows`), or memory grows with each new length.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.nn import functional

from persona_lab.models.work import PACK_BYTES

BASE = "__base__"
"""peft's name for "no adapter" in a mixed batch."""
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Children of one module that are called one after another with the same input; others are simply not joined."""
INT8_ROWS = 8
"""The int8 product is slower than the bf16 one for more rows; then the weights are multiplied as bf16."""
PACKED_ROWS = 64
"""Of more rows (a prompt) adapters are multiplied as they are."""
FEW = 8
"""Rows, as of one token for each reply, that are multiplied as they are."""
ROUNDED = ((FEW, 1), (64, 8), (256, 16), (512, 32))
"""(most rows, multiple that they are rounded up to); of more rows: to LARGE."""
LARGE = 64

Weights = Literal["native", "int8"]
Multiply = Callable[[torch.Tensor], torch.Tensor]


class NotMixable(Exception):
    """An adapter or a module that only peft's own forward can handle; the text says which."""


def even_rows(rows: int) -> int:
    """How many rows are multiplied where there are so many: at most a quarter more, but for the fewest."""
    multiple = next((multiple for most, multiple in ROUNDED if rows <= most), LARGE)
    return -(-rows // multiple) * multiple


def _padded(x: torch.Tensor) -> torch.Tensor:
    """[..., in] as [even rows, in]: zeros behind, unless it is even as it is."""
    flat = x.reshape(-1, x.shape[-1])
    rows = even_rows(len(flat))
    return flat if rows == len(flat) else functional.pad(flat, (0, 0, 0, rows - len(flat)))


def _unpadded(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What of a product [even rows, out] is of `x` [..., in]: [..., out]."""
    return out[: x.shape[:-1].numel()].view(*x.shape[:-1], out.shape[-1])


def evenly(multiply: Multiply) -> Multiply:
    """`multiply`, which only meets even numbers of rows."""
    return lambda x: multiply(x) if _few(x) else _unpadded(multiply(_padded(x)), x)


def _few(x: torch.Tensor) -> bool:
    """[rows, in] of few rows: the common case, in which the time to look is a share of the time to multiply."""
    return x.dim() == 2 and x.shape[0] <= FEW


class PackedWeights:
    """The linear layers of a model, packed once, for as long as this object lives.

    Only for weights that do not change meanwhile.

    Args:
        weights: `int8` rounds them (the output head included) and changes what the model says a little; `native` packs
            bf16 weights as they are, and only on a CPU.
    """

    def __init__(self, weights: Weights = "native") -> None:
        self.weights: Weights = weights
        self._packed: weakref.WeakKeyDictionary[torch.nn.Module, Multiply] = weakref.WeakKeyDictionary()
        self._joint: weakref.WeakKeyDictionary[torch.nn.Module, Multiply] = weakref.WeakKeyDictionary()
        self._updates: weakref.WeakKeyDictionary[torch.nn.Module, tuple[_Sources, _Update]] = (
            weakref.WeakKeyDictionary()
        )

    def update(self, first: torch.nn.Module, sources: _Sources | None, make: Callable[[], _Update]) -> _Update:
        """What `make` gives, or gave for the same adapters the last time; a chat asks the same ones again and again.

        Args:
            first: the layer, or the first of those that are multiplied together.
            sources: what it is made of; None: it cannot be seen whether that has changed.
        """
        known = self._updates.get(first)
        if known is not None and sources is not None and known[0].still(sources):
            return known[1]
        self._updates.pop(first, None)
        made = make()
        if sources is not None:
            self._updates[first] = (sources, made)
        return made

    def multiply(self, module: torch.nn.Module) -> Multiply | None:
        """How to multiply by the module's weight; None: by its own forward."""
        if type(module) is not torch.nn.Linear or not _on_cpu(module):
            return None
        if module not in self._packed:
            made = _int8(module) if self.weights == "int8" else _blocks(module)
            if made is None:
                return None
            self._packed[module] = made
        return self._packed[module]

    def multiply_joint(self, modules: Sequence[torch.nn.Module]) -> Multiply | None:
        """How to multiply by the weights of several layers at once, their outputs behind each other; None: not here."""
        plain = all(type(m) is torch.nn.Linear and _on_cpu(m) for m in modules)
        biases = [m.bias is not None for m in modules] if plain else [True, False]
        if self.weights != "native" or any(biases) != all(biases):
            return None
        first = modules[0]
        if first not in self._joint:
            with torch.no_grad():
                weight = torch.cat([m.weight for m in modules])
                joint = torch.nn.Linear(1, 1, bias=False)
                joint.weight = torch.nn.Parameter(weight, requires_grad=False)
                if all(biases):
                    joint.bias = torch.nn.Parameter(torch.cat([m.bias for m in modules]), requires_grad=False)
            made = _blocks(joint)
            if made is None:
                return None
            self._joint[first] = made
        return self._joint[first]


def worth_packing(model: torch.nn.Module) -> bool:
    """Whether a second copy of the linear weights is small enough, and the first one is bf16 on a CPU."""
    size = 0
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.bfloat16:
            size += module.weight.nbytes if _on_cpu(module) else PACK_BYTES + 1
    return 0 < size <= PACK_BYTES


def _on_cpu(module: torch.nn.Linear) -> bool:
    return module.weight.device.type == "cpu"


def _reordered(weight: torch.Tensor) -> Any:
    """A bf16 matrix [out, in] in oneDNN's own order; None where there is no such thing."""
    usable = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not usable:
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 4)
    except (RuntimeError, AttributeError):  # a torch or a CPU without it
        return None


def _blocks(module: torch.nn.Linear) -> Multiply | None:
    """Multiplication by bf16 weights in oneDNN's own order."""
    packed = _reordered(module.weight)
    if packed is None:
        return None
    multiply, bias = torch.ops.mkldnn._linear_pointwise, module.bias
    return evenly(lambda x: multiply(x, packed, bias, "none", [], ""))


def _int8(module: torch.nn.Linear) -> Multiply:
    weight = module.weight.detach().float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    rounded = (weight / scale).round().to(torch.int8)
    scale = scale[:, 0].to(module.weight.dtype)
    bias, size = module.bias, int(weight.shape[0])

    def multiply(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[0] <= INT8_ROWS and x.dtype == torch.bfloat16:
            out = torch._weight_int8pack_mm(flat.contiguous(), rounded, scale)
        else:
            out = _unpadded(functional.linear(_padded(flat), rounded.to(x.dtype)), flat) * scale
        return (out if bias is None else out + bias).view(*x.shape[:-1], size)

    return multiply


@dataclass(frozen=True)
class _Update:
    """Adapters of one product, joined: down [in, ranks of all], up [ranks of all, out], and both in oneDNN's order."""

    blocks: tuple[tuple[str, int], ...]
    down: torch.Tensor
    up: torch.Tensor
    narrowing: Any
    widening: Any

    @classmethod
    def of(cls, blocks: tuple[tuple[str, int], ...], down: torch.Tensor, up: torch.Tensor) -> _Update:
        """Of (adapter, rank) in the order of the ranks."""
        return cls(blocks, down, up, _reordered(down.T), _reordered(up.T))


class _Unseen(Exception):
    """Weights that could change without a sign of it."""


class _Sources:
    """The weights that an `_Update` is made of, and how many changes they had seen by then; they are not kept alive."""

    def __init__(self, loras: Sequence[Any], used: frozenset[str]) -> None:
        self.state: list[tuple[Any, ...]] = [(len(loras),)]
        self.weights: list[weakref.ref[Any]] = []
        for member, lora in enumerate(loras):
            for name in sorted(used) if lora is not None else ():
                if name not in lora.lora_A:
                    continue
                weights = [lora.lora_A[name].weight, lora.lora_B[name].weight]
                if any(weight.requires_grad for weight in weights):  # optimizers may write past the count of changes
                    raise _Unseen
                seen = [(id(weight), weight.data_ptr(), weight._version) for weight in weights]
                more = (name in lora.lora_variant, bool(lora.lora_bias.get(name)), lora.merged)
                self.state.append((member, name, float(lora.scaling[name]), *more, *seen))
                self.weights += map(weakref.ref, weights)

    def still(self, other: _Sources) -> bool:
        """Whether the other's weights are these, unchanged. An id says so only while its weight lives."""
        return self.state == other.state and all(weight() is not None for weight in self.weights)


def _sources(loras: Sequence[Any], used: frozenset[str]) -> _Sources | None:
    try:
        return _Sources(loras, used)
    except (_Unseen, RuntimeError, AttributeError):
        # being trained; or inference tensors, which count no changes; or a kind of adapter that has other parts
        return None


class _Layout:
    """Which adapters' ranks stand where in the joined matrices: one object for all modules that have it alike."""

    def __init__(self, blocks: tuple[tuple[str, int], ...], like: torch.Tensor) -> None:
        self.blocks = blocks
        self.like = like
        self.mask: torch.Tensor | None = None

    def fit(self, rows: Sequence[frozenset[str]]) -> None:
        """`mask` becomes [rows, sum of ranks], 1 where the rank belongs to an adapter of the row; None: all do."""
        owners = [name for name, rank in self.blocks for _ in range(rank)]
        mask = torch.tensor([[float(name in active) for name in owners] for active in rows])
        self.mask = None if bool(mask.all()) else mask.to(self.like.device, self.like.dtype)


class RowAdapters:
    """The adapters of each row of the batch that is being written.

    Args:
        rows: names of each row's adapters; empty for none.
    """

    def __init__(self, rows: Sequence[frozenset[str]]) -> None:
        self.rows = list(rows)
        self.used: frozenset[str] = frozenset().union(*rows) if rows else frozenset()
        self._layouts: dict[tuple[tuple[str, int], ...], _Layout] = {}

    def set(self, rows: Sequence[frozenset[str]]) -> None:
        """Other rows, of the same adapters."""
        self.rows = list(rows)
        for layout in self._layouts.values():
            layout.fit(self.rows)

    def layout(self, blocks: tuple[tuple[str, int], ...], like: torch.Tensor) -> _Layout:
        """The one for these (adapter, rank)."""
        if blocks not in self._layouts:
            self._layouts[blocks] = _Layout(blocks, like)
            self._layouts[blocks].fit(self.rows)
        return self._layouts[blocks]


def active_adapters(model: torch.nn.Module) -> frozenset[str]:
    """The LoRA adapters that peft would use now for every row."""
    for module in _lora_layers(model):
        return frozenset() if module.disable_adapters or module.merged else frozenset(module.active_adapters)
    return frozenset()


def _lora_layers(model: torch.nn.Module) -> Iterator[Any]:
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        return
    yield from (module for module in model.modules() if isinstance(module, LoraLayer))


@contextmanager
def fast_linears(
    model: torch.nn.Module, packed: PackedWeights | None, rows: RowAdapters
) -> Iterator[dict[torch.nn.Module, Multiply]]:
    """Inside the block the model's linear layers multiply by packed weights, and add each row's own adapters.

    Gives, for the first of several layers that read the same state, the product of all of them, their outputs behind
    each other.

    Args:
        model: a transformers model, with peft's layers in it where there are adapters.

    Raises:
        NotMixable: before anything is changed.
    """
    joint: dict[torch.nn.Module, Multiply] = {}
    replaced = _replacements(model, packed, rows, joint)
    for module, forward in replaced:
        module.forward = forward
    try:
        yield joint
    finally:
        for module, _ in replaced:
            del module.forward


def _replacements(
    model: torch.nn.Module,
    packed: PackedWeights | None,
    rows: RowAdapters,
    joint: dict[torch.nn.Module, Multiply],
) -> list[tuple[torch.nn.Module, Multiply]]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: list[tuple[torch.nn.Module, Multiply]] = []
    inside: set[torch.nn.Module] = set()
    loras = set(_lora_layers(model))
    # what 4-bit layers compute in, whose own weights are bytes
    compute = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for module in model.modules():
        if packed is not None:
            for group in _siblings(module):
                together, members = _as_one(group, packed, rows, compute)
                if together is not None:
                    joint[group[0]] = together
                found += members
                inside.update(part for member, _ in members for part in member.modules())
        if module in inside or "forward" in vars(module):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside.update(module.modules())
            if module not in loras:
                raise NotMixable(f"{type(module).__name__} is not LoRA")
            found.append((module, _with_lora(module, packed, rows, compute)))
        elif packed is not None and (multiply := packed.multiply(module)) is not None:
            found.append((module, multiply))
        elif type(module) is torch.nn.Linear and module.weight.dtype == torch.bfloat16 and _on_cpu(module):
            found.append((module, evenly(partial(functional.linear, weight=module.weight, bias=module.bias))))
    return found


def _siblings(parent: torch.nn.Module) -> Iterator[list[Any]]:
    children = dict(parent.named_children())
    for names in SIBLINGS:
        group = [children[name] for name in names if name in children]
        if len(group) == len(names) and not any("forward" in vars(member) for member in group):
            yield group


def _as_one(
    group: list[Any], packed: PackedWeights, rows: RowAdapters, compute: torch.dtype
) -> tuple[Multiply | None, list[tuple[torch.nn.Module, Multiply]]]:
    """The product of layers that read the same state, and stand-ins: the first one called works for all. None and
    empty: they cannot be joined.

    Raises:
        NotMixable
    """
    loras = [member if hasattr(member, "lora_A") and hasattr(member, "base_layer") else None for member in group]
    bases = [member if lora is None else lora.base_layer for member, lora in zip(group, loras, strict=True)]
    plain = packed.multiply_joint(bases)
    if plain is None or len({base.weight.shape[1] for base in bases}) != 1:
        return None, []
    asked = [lora is not None and any(name in lora.lora_A for name in rows.used) for lora in loras]
    if any(lora is not None and lora.merged and not some for lora, some in zip(loras, asked, strict=True)):
        return None, []
    sizes = [int(base.weight.shape[0]) for base in bases]

    def made() -> _Update:
        parts = [
            ((), None, None) if lora is None else _joined(lora, rows.used, base, compute)
            for lora, base in zip(loras, bases, strict=True)
        ]
        blocks = tuple(block for part in parts for block in part[0])
        down = torch.cat([part[1] for part in parts if part[0]], dim=1).contiguous()
        return _Update.of(blocks, down, _diagonal(parts, sizes, bases[0].weight.dtype))

    together = plain
    if any(asked):
        together = _with_update(plain, packed.update(bases[0], _sources(loras, rows.used), made), rows)
    shared: dict[str, Any] = {"x": None, "left": 0}

    def stand_in(number: int) -> Multiply:
        def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            if shared["x"] is not x:
                shared.update(x=x, out=together(x).split(sizes, dim=-1), left=len(sizes))
            result: torch.Tensor = shared["out"][number]
            shared["left"] -= 1
            if shared["left"] == 0:  # nobody else will ask for it
                shared.update(x=None, out=None)
            return result

        return forward

    return together, [(member, stand_in(number)) for number, member in enumerate(group)]


def _with_update(plain: Multiply, update: _Update, rows: RowAdapters) -> Multiply:
    """`plain`, and to its outcome each row's own adapters added."""
    down, up, narrowing, widening = update.down, update.up, update.narrowing, update.widening
    layout = rows.layout(update.blocks, down)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        few = _few(x)
        flat = x if few else _padded(x)
        out, rows_of_x = plain(flat), x.shape[:-1].numel()
        if narrowing is None or widening is None or flat.shape[0] > PACKED_ROWS:
            out.addmm_(_masked(torch.mm(flat, down), layout, rows_of_x), up)
        else:
            narrow = torch.ops.mkldnn._linear_pointwise(flat, narrowing, None, "none", [], "")
            narrow = _masked(narrow, layout, rows_of_x)
            out.add_(torch.ops.mkldnn._linear_pointwise(narrow, widening, None, "none", [], ""))
        return out if few else _unpadded(out, x)

    return multiply


def _diagonal(parts: Sequence[tuple[Any, Any, Any]], sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The members' B matrices [ranks of all, outputs of all], each at its own ranks and outputs, zero elsewhere."""
    heights = [part[2].shape[0] if part[0] else 0 for part in parts]
    whole = torch.zeros(sum(heights), sum(sizes), dtype=dtype)
    for number, part in enumerate(parts):
        top, left = sum(heights[:number]), sum(sizes[:number])
        if part[0]:
            whole[top : top + heights[number], left : left + sizes[number]] = part[2]
    return whole


def _masked(narrow: torch.Tensor, layout: Any, rows: int) -> torch.Tensor:
    """Zero where a rank belongs to another row's adapter: [rows * tokens, ranks], and the padding behind as it is."""
    mask = layout.mask
    if mask is None:
        return narrow
    if len(narrow) == len(mask):
        return narrow.mul_(mask)
    mine = narrow[:rows].view(len(mask), -1, mask.shape[1])
    mine.mul_(mask[:, None])
    return narrow


def _with_lora(module: Any, packed: PackedWeights | None, rows: RowAdapters, compute: torch.dtype) -> Multiply:
    base: torch.nn.Module = module.base_layer
    own = packed.multiply(base) if packed is not None else None
    plain: Multiply = own or base
    if not any(name in module.lora_A for name in rows.used):
        if module.merged or len(module.lora_embedding_A):
            raise NotMixable(f"{type(module).__name__} on {type(base).__name__}")
        return lambda x, *_, **__: plain(x)  # the base itself, set as `forward`, would become a part of the module

    def made() -> _Update:
        return _Update.of(*_joined(module, rows.used, base, compute))

    update = packed.update(base, _sources([module], rows.used), made) if packed is not None else made()
    multiply = _with_update(plain, update, rows)
    return lambda x, *_, **__: multiply(x)


def _joined(
    module: Any, used: frozenset[str], base: torch.nn.Module, compute: torch.dtype
) -> tuple[tuple[tuple[str, int], ...], torch.Tensor, torch.Tensor]:
    """((adapter, rank), ...), A [in, sum of ranks], B [sum of ranks, out] with the scaling in it.

    Raises:
        NotMixable
    """
    names = sorted(name for name in used if name in module.lora_A)
    down, up = [], []
    weight: Any = getattr(base, "weight", None)
    dtype = weight.dtype if weight is not None and weight.is_floating_point() else compute
    for name in names:
        a, b = module.lora_A[name], module.lora_B[name]
        linear = type(a) is torch.nn.Linear and type(b) is torch.nn.Linear
        if not linear or name in module.lora_variant or module.lora_bias.get(name) or module.merged:
            raise NotMixable(f"adapter {name} is more than plain LoRA")
        if not (a.weight.isfinite().all() and b.weight.isfinite().all()):
            # zero times infinity would reach the other rows, those without an adapter too
            raise NotMixable(f"adapter {name} holds numbers that are not finite")
        down.append(a.weight.detach().to(dtype).T)
        up.append((b.weight.detach().float() * module.scaling[name]).to(dtype).T)
    if not names:
        return (), torch.empty(0), torch.empty(0)
    blocks = tuple((name, int(a.shape[1])) for name, a in zip(names, down, strict=True))
    return blocks, torch.cat(down, dim=1).contiguous(), torch.cat(up).contiguous()
