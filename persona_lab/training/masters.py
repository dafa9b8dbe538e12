"""AdamW on fp32 masters: the model computes in its own type, the optimizer moves fp32 copies of its weights.

Plain bf16 weights lose updates smaller than their rounding (measured: held-out loss 3.763 against 3.424). So each
trained weight that is not fp32 has a master, and after each step the model gets the rounded master. Where that is too
much, `low_memory` keeps weights and moments in bf16 alone and rounds them at random, so that small updates survive on
average.

On a CPU a step is bound by memory: gradients are scaled, moved and published piece by piece, while it is in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch.optim.adamw import adamw

from persona_lab.errors import BadSetting

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
MOMENTS = ("exp_avg", "exp_avg_sq")
SHARED = ("qmap1", "qmap2")
"""Of the state of 8-bit moments: what the 256 numbers stand for, one tensor for all weights."""
PIECE = 1 << 18
"""Weights moved at once on a CPU: few enough for weight, gradient and both moments to stay in a core's cache."""
LARGE_PIECE = 1 << 26
"""Elsewhere: enough to keep a device busy, few enough for the fp32 copies of a step to be small beside the rest."""
NOISE = 2 * PIECE
"""Random bits drawn for a step; every piece takes a stretch of them from a random place."""
LOW_MEMORY_ALONE = "low_memory rounds both moments at random; 8-bit optimizers keep moments of their own."
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Masters:
    """Trained weights of a model, by name, with AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).

    Args:
        low_memory: no masters; weights and moments in the model's own type with stochastic rounding (Gupta et al. 2015,
            https://arxiv.org/abs/1502.02551): 8 bytes a weight, gradient included, instead of 16.
        optimizer: `adamw_8bit` and `paged_adamw_8bit` keep the moments in 8 bits (Dettmers et al. 2022,
            https://arxiv.org/abs/2110.02861); paged moments move to main memory when a CUDA device runs out.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        weight_decay: float,
        optimizer: OptimizerName = "adamw",
        low_memory: bool = False,
    ) -> None:
        if low_memory and optimizer != "adamw":
            raise BadSetting(LOW_MEMORY_ALONE, "Choose one of the two: low_memory, or 8-bit moments.")
        self.working = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weight_decay = weight_decay
        self.low_memory = low_memory
        self.weights = {name: self._master(p) for name, p in self.working.items()}
        self.moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.steps = 0
        self.quantized = None if optimizer == "adamw" else _eight_bit(optimizer, self.weights, weight_decay)
        self.generator = torch.Generator()
        self.noise = torch.zeros(0, dtype=torch.int32)
        # parts that a start like PiSSA's wants as they are, which weight decay would move all the same
        self.fixed = {name: p.fixed for name, p in self.working.items() if weight_decay and hasattr(p, "fixed")}
        self.as_they_were = {name: self.weights[name].narrow(*at).clone() for name, at in self.fixed.items()}

    def _master(self, weight: torch.nn.Parameter) -> torch.Tensor:
        kept = weight.dtype == torch.float32 or self.low_memory
        return weight.detach() if kept else weight.detach().float()

    def step(self, learning_rate: float, max_norm: float) -> float:
        """Move the masters by the working weights' gradients, and the working weights after them.

        Returns:
            The norm of the gradient before clipping; nothing was moved if it is not finite.
        """
        norm = self._norm()
        if math.isfinite(norm):
            scale = min(1.0, max_norm / (norm + 1e-6))
            self.steps += 1
            if self.low_memory:  # by the step's number alone, so that a resumed run rounds alike
                self.generator.manual_seed(self.steps)
                # moved once: every piece would copy its own stretch, and wait for it
                noise = torch.randint(0, 1 << 16, (NOISE,), dtype=torch.int32, generator=self.generator)
                self.noise = noise.to(next(iter(self.working.values())).device)
            if self.quantized is not None:
                self._step_quantized(learning_rate, scale)
            else:
                for group in self._groups():
                    self._move(group, learning_rate, scale)
            self._put_back()
        for working in self.working.values():
            working.grad = None
        return norm

    @torch.no_grad()
    def _put_back(self) -> None:
        for name, at in self.fixed.items():
            self.weights[name].narrow(*at).copy_(self.as_they_were[name])
            self.working[name].narrow(*at).copy_(self.as_they_were[name])

    @torch.no_grad()
    def _norm(self) -> float:
        grads = [p.grad for p in self.working.values() if p.grad is not None]
        if not grads:
            return 0.0
        limit = PIECE if grads[0].device.type == "cpu" else max(grad.numel() for grad in grads)
        pieces = [piece for grad in grads for piece in grad.reshape(-1).split(limit)]
        # summed up in fp32 and rounded to the gradient's type once a piece: good enough to clip by, and three times as
        # fast on a CPU as asking for fp32, which copies the gradient
        norms = torch.stack(torch._foreach_norm(pieces)).float()
        return float(torch.linalg.vector_norm(norms))

    def _groups(self) -> Iterator[list[tuple[torch.Tensor, ...]]]:
        """Pieces (working, master, both moments, gradient), as flat views; on a CPU a few at a time."""
        group: list[tuple[torch.Tensor, ...]] = []
        size = 0
        for name, working in self.working.items():
            if working.grad is None:
                continue
            tensors = (working.detach(), self.weights[name], *self._moments(name), working.grad)
            limit = PIECE if self.low_memory or working.device.type == "cpu" else working.numel()
            for piece in zip(*(tensor.reshape(-1).split(limit) for tensor in tensors), strict=True):
                group.append(piece)
                size += piece[0].numel()
                if size >= (PIECE if working.device.type == "cpu" else LARGE_PIECE):
                    yield group
                    group, size = [], 0
        if group:
            yield group

    def _moments(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        if name not in self.moments:
            weight = self.weights[name]
            self.moments[name] = (torch.zeros_like(weight), torch.zeros_like(weight))
        return self.moments[name]

    @torch.no_grad()
    def _move(self, group: list[tuple[torch.Tensor, ...]], learning_rate: float, scale: float) -> None:
        working, masters, firsts, seconds, raw = (list(part) for part in zip(*group, strict=True))
        grads = [grad.to(torch.float32, copy=True).mul_(scale) for grad in raw]
        kept = [masters, firsts, seconds]
        moved = [[t if t.dtype == torch.float32 else t.float() for t in part] for part in kept]
        adamw(
            moved[0],
            grads,
            moved[1],
            moved[2],
            [],
            # the function counts by itself; each piece gets a count of its own
            [torch.full((), float(self.steps - 1), device=grad.device) for grad in grads],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )
        for before, after in zip(kept, moved, strict=True):
            for target, exact in zip(before, after, strict=True):
                if target is not exact:
                    self._round(target, exact)
        if not self.low_memory:
            torch._foreach_copy_(working, masters)

    def _round(self, target: torch.Tensor, exact: torch.Tensor) -> None:
        """Round fp32 `exact` up or down into bf16 `target`, each with the probability that keeps the mean."""
        if target.dtype != torch.bfloat16:
            target.copy_(exact)
            return
        size = exact.numel()
        start = int(torch.randint(0, NOISE - size + 1, (), generator=self.generator))
        bits = exact.view(torch.int32) + self.noise[start : start + size].to(exact.device)
        target.copy_(bits.bitwise_and_(-65536).view(torch.float32))

    def _step_quantized(self, learning_rate: float, scale: float) -> None:
        for name, master in self.weights.items():
            grad = self.working[name].grad
            master.grad = None if grad is None else grad.to(torch.float32, copy=True).mul_(scale)
        assert self.quantized is not None
        for group in self.quantized.param_groups:
            group["lr"] = learning_rate
        self.quantized.step()
        self.quantized.zero_grad()
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        for name, master in self.weights.items():
            if not self._is_working(name):
                self.working[name].copy_(master)

    def _is_working(self, name: str) -> bool:
        """Whether the master is the very weight that the model computes with."""
        return self.weights[name].data_ptr() == self.working[name].data_ptr()

    @torch.no_grad()
    def copy_working(self) -> dict[str, torch.Tensor]:
        """The trained weights as the model computes with them, copied to the CPU."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.working.items()}

    @torch.no_grad()
    def load_working(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the trained weights; masters are left alone."""
        for name, working in self.working.items():
            working.copy_(weights[name])

    def step_bytes(self) -> int:
        """What a step takes beside activations, and may not have taken yet: gradients, masters, moments."""
        gradients = sum(p.nbytes for p in self.working.values())
        masters = sum(w.nbytes for name, w in self.weights.items() if not self._is_working(name))
        moments = sum(2 * (w.numel() if self.quantized is not None else w.nbytes) for w in self.weights.values())
        return gradients + masters + moments

    def checkpoint_bytes(self) -> int:
        """Of `state` and the best weights, once there are moments."""
        return sum(3 * w.nbytes + self.working[name].nbytes for name, w in self.weights.items())

    def state(self) -> dict[str, torch.Tensor]:
        """Masters and optimizer state, to go on from here exactly."""
        tensors = {f"weight.{name}": master.detach() for name, master in self.weights.items()}
        tensors["steps"] = torch.tensor(self.steps)
        for name, both in self.moments.items():
            tensors |= {f"{key}.{name}": moment for key, moment in zip(MOMENTS, both, strict=True)}
        if self.quantized is not None:
            for name, master in self.weights.items():
                for key, value in self.quantized.state[master].items():
                    # all weights have the same maps, and a file takes no tensor twice
                    tensors[f"eight.{key}.{name}"] = value.clone() if key in SHARED else torch.as_tensor(value)
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up a `state`, on this model's device."""
        self.steps = int(tensors["steps"])
        for name, master in self.weights.items():
            master.copy_(tensors[f"weight.{name}"])
            if f"{MOMENTS[0]}.{name}" in tensors:
                first, second = (tensors[f"{key}.{name}"].to(master.device, copy=True) for key in MOMENTS)
                self.moments[name] = (first, second)
            if self.quantized is not None:
                self.quantized.state[master] = _quantized_state(tensors, name, master.device)
        self._publish()


def _eight_bit(optimizer: OptimizerName, weights: dict[str, torch.Tensor], weight_decay: float) -> Any:
    """AdamW with 8-bit moments from bitsandbytes, over the masters.

    Raises:
        BadSetting: a paged one without a CUDA device.
    """
    if optimizer.startswith("paged") and not all(weight.is_cuda for weight in weights.values()):
        raise BadSetting(f"The optimizer {optimizer!r} needs a CUDA device.", "Use `adamw` or `adamw_8bit` here.")
    import bitsandbytes

    kind = bitsandbytes.optim.AdamW8bit if optimizer == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
    return kind(list(weights.values()), betas=BETAS, eps=EPSILON, weight_decay=weight_decay)


def _quantized_state(tensors: Mapping[str, torch.Tensor], name: str, device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tensors.items():
        if key.startswith("eight.") and key.endswith(f".{name}"):
            field = key.removeprefix("eight.").removesuffix(f".{name}")
            found[field] = int(value) if value.dim() == 0 else value.to(device, copy=True)
    return found
