"""How one token is chosen from logits: greedy, temperature, top-p, repetition penalty; one random stream a row.

A row's choice depends on its own seed and its own logits only, never on what else is in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch  # noqa: TID253 - only the decoding loop imports this module

from persona_lab.types import Message, Sampling

CANDIDATES = 512
"""Sorting only the likeliest is enough nearly always; where it is not, everything is sorted."""


class RowSampler:
    """Draws the tokens of one reply.

    Args:
        sampling: its seed is mixed with the text of the last message, so that one seed gives different rows different
            luck, but the same question the same luck under every variant.
        exempt: token ids that the repetition penalty must not touch, such as the end of a turn.
        used: token ids that count as already said (the character's earlier replies).
    """

    def __init__(
        self, sampling: Sampling, messages: Sequence[Message], exempt: Iterable[int], used: Iterable[int] = ()
    ) -> None:
        self.sampling = sampling
        self._exempt = frozenset(exempt)
        self._used = {token for token in used if token not in self._exempt}
        text = messages[-1].content if messages else ""
        # not torch's generator: on a CPU it looks at 32 bits of its seed only, and similar seeds begin alike
        self._random = random.Random(f"{sampling.seed}\n{text}")

    def draw(self, logits: torch.Tensor) -> int:
        """The next token, from logits [vocabulary] (fp32, on the CPU)."""
        return draw_rows([self], logits[None])[0]

    def penalise(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [vocabulary] with what was said less likely.

        Source: CTRL, https://arxiv.org/abs/1909.05858 (as transformers: negative logits are multiplied).
        """
        if self.sampling.repetition_penalty == 1 or not self._used:
            return logits
        at = torch.tensor(sorted(self._used))
        said = logits[at]
        penalty = self.sampling.repetition_penalty
        return logits.index_copy(0, at, torch.where(said > 0, said / penalty, said * penalty))

    def say(self, token: int) -> int:
        """Note that the token was chosen."""
        if token not in self._exempt:
            self._used.add(token)
        return token

    def pick(self, mass: torch.Tensor) -> int:
        """A place in the running sum of probabilities `mass` [candidates], likeliest first."""
        # the likeliest tokens that together reach top_p, at least one
        kept = min(int((mass < self.sampling.top_p).sum()) + 1, len(mass))
        place = int(torch.searchsorted(mass[:kept], self._random.random() * mass[kept - 1], right=True))
        return min(place, kept - 1)


def draw_rows(samplers: Sequence[RowSampler], logits: torch.Tensor) -> list[int]:
    """The next token of each row, from logits [rows, vocabulary] (fp32, on the CPU)."""
    if any(sampler.sampling.repetition_penalty != 1 for sampler in samplers):
        logits = torch.stack([sampler.penalise(row) for sampler, row in zip(samplers, logits, strict=True)])
    warm = [i for i, sampler in enumerate(samplers) if sampler.sampling.temperature > 0]
    chosen: list[int] = logits.argmax(dim=1).tolist() if len(warm) < len(samplers) else [0] * len(samplers)
    if warm:
        for i, token in zip(warm, _sampled([samplers[i] for i in warm], logits[warm]), strict=True):
            chosen[i] = token
    return [sampler.say(token) for sampler, token in zip(samplers, chosen, strict=True)]


def _sampled(samplers: Sequence[RowSampler], logits: torch.Tensor) -> list[int]:
    logits = logits / torch.tensor([[sampler.sampling.temperature] for sampler in samplers])
    total = logits.logsumexp(1, keepdim=True)
    values, tokens = logits.topk(min(CANDIDATES, logits.shape[1]), dim=1)
    masses = (values - total).double().exp().cumsum(1)
    chosen = []
    for sampler, row, most, named, mass in zip(samplers, logits, total, tokens, masses, strict=True):
        if mass[-1] < sampler.sampling.top_p and len(mass) < len(row):
            ordered, named = row.sort(descending=True)
            mass = (ordered - most).double().exp().cumsum(0)
        chosen.append(int(named[sampler.pick(mass)]))
    return chosen
