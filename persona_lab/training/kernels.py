"""Hand-written gradients for three pieces of modern decoders: LoRA beside a linear layer, RMS norm, gated MLP.

torch's autograd would save and read several copies of the activations in each; on a CPU a training step of a small
model spends as long on those as on its matrix products. Modules are recognised by what they compute, not by their
class: each stand-in is tried on random numbers against the module it replaces, and only equals are used (`fused`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


class _LoRALinear(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T, with W frozen. x: [..., inputs]; W: [outputs, inputs]; A: [rank, inputs]; B:
    [outputs, rank]. The update is added into the product in place, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        low = torch.mm(flat, a.t())
        out = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
        out.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        flat, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        of_low = torch.mm(grad, b).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.mm(grad, weight).addmm_(of_low, a).view(ctx.shape)
        of_a = torch.mm(of_low.t(), flat) if ctx.needs_input_grad[3] else None
        of_b = torch.mm(grad.t(), low).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_a, of_b, None


def _lora_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A stand-in for the forward of a peft LoRA layer, if it is a plain one on a plain frozen linear layer."""
    from peft.tuners.lora.layer import Linear

    active = [name for name in module.active_adapters if name in module.lora_A] if isinstance(module, Linear) else []
    if len(active) != 1 or module.lora_variant or module.merged or module.fan_in_fan_out or module.disable_adapters:
        return None
    (name,) = active
    base, a, b = module.get_base_layer(), module.lora_A[name], module.lora_B[name]
    dropped = not isinstance(module.lora_dropout[name], torch.nn.Identity) and module.lora_dropout[name].p > 0
    kinds = {base.weight.dtype, a.weight.dtype, b.weight.dtype}
    if (
        type(base) is not torch.nn.Linear
        or base.weight.requires_grad
        or len(kinds) != 1
        or b.bias is not None
        or dropped
    ):
        return None
    (kind,) = kinds
    if not kind.is_floating_point or (base.bias is not None and base.bias.requires_grad):
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _LoRALinear.apply(x, base.weight, base.bias, a.weight, b.weight, module.scaling[name])
        return result

    return forward


def _fp32(x: torch.Tensor) -> torch.Tensor:
    """An fp32 copy, which may be written to."""
    return x.to(torch.float32, copy=True)


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * (weight + shift) over the last dimension, worked out in fp32 (Zhang & Sennrich 2019,
    https://arxiv.org/abs/1910.07467). x: [..., size]; weight: [size]."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float, shift: float) -> Any:
        size = x.shape[-1]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = length.square_().div_(size).add_(eps).rsqrt_()
        unit = _fp32(x).mul_(inverse)
        ctx.save_for_backward(x, weight, inverse)
        ctx.shift = shift
        if shift:
            return unit.mul_(weight.float() + shift).to(x.dtype)
        return unit.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        unit = _fp32(x).mul_(inverse)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grad.float() * unit).flatten(0, -2).sum(dim=0).to(weight.dtype)
        of_x = _fp32(grad).mul_(weight.float() + ctx.shift if ctx.shift else weight)
        along = torch.linalg.vecdot(of_x, unit).div_(x.shape[-1]).unsqueeze(-1)
        of_x.sub_(unit.mul_(along)).mul_(inverse)
        return of_x.to(x.dtype), of_weight, None, None


def _norm_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A stand-in for an RMS norm's forward, if the module's own weights and formula are those of one."""
    if not type(module).__name__.endswith("RMSNorm") or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    eps = next((value for name in ("variance_epsilon", "eps") if (value := getattr(module, name, None))), None)
    if not isinstance(eps, float) or list(module.children()):
        return None
    for shift in (0.0, 1.0):

        def forward(hidden_states: torch.Tensor, shift: float = shift) -> torch.Tensor:
            result: torch.Tensor = _RMSNorm.apply(hidden_states, module.weight, eps, shift)
            return result

        if _agree(module, forward, module.weight.shape[0], module.weight.dtype):
            return forward
    return None


class _GatedProduct(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020, https://arxiv.org/abs/2002.05202); any shape, both alike."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any) -> Any:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        gate, up = ctx.saved_tensors
        of_up = functional.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), of_up


def _mlp_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A stand-in for the forward of a gated MLP with SiLU, if that is what the module computes."""
    parts = {"gate_proj", "up_proj", "down_proj"}
    children = dict(module.named_children())
    if not parts <= children.keys() or set(children) - parts - {"act_fn"}:
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = module.down_proj(_GatedProduct.apply(module.gate_proj(x), module.up_proj(x)))
        return result

    weight = getattr(module.gate_proj, "weight", None)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None
    return forward if _agree(module, forward, weight.shape[1], weight.dtype) else None


@torch.no_grad()
def _agree(module: Any, forward: Callable[[torch.Tensor], torch.Tensor], size: int, dtype: torch.dtype) -> bool:
    """Whether both give the same on random numbers, up to rounding."""
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, size, generator=generator).to(device, dtype)
    training = module.training
    try:
        expected, got = module.eval()(x), forward(x)
    finally:
        module.train(training)
    error = (got.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-12)
    return got.dtype == expected.dtype and bool(error < TOLERANCE.get(dtype, 1e-5))


_STAND_INS: tuple[Callable[[Any], Callable[[torch.Tensor], torch.Tensor] | None], ...] = (
    _lora_forward,
    _norm_forward,
    _mlp_forward,
)


@contextmanager
def fused(model: torch.nn.Module, active: bool = True) -> Iterator[int]:
    """While this lasts, modules of `model` that have an equal stand-in use it; gives how many do."""
    with ExitStack() as undo:
        count = 0
        for module in model.modules() if active else ():
            if "forward" in vars(module):
                continue  # somebody else's stand-in
            forward = next((found for make in _STAND_INS if (found := make(module)) is not None), None)
            if forward is not None:
                module.forward = forward
                undo.callback(vars(module).pop, "forward")
                count += 1
        yield count
