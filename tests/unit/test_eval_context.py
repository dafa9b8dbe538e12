"""The evaluators' context on a tiny real model: which weights and which prompt a score is of, and that it is cached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.datasets.templates import load_template
from persona_lab.errors import Cancelled
from persona_lab.evaluation.context import Models, VariantContext, base_of
from persona_lab.home import Home
from persona_lab.models.machine import worker_machine
from persona_lab.personas.prompt import system_prompt
from persona_lab.training.lora import attach_lora
from persona_lab.types import Conversation, Message, Persona, Sampling, Variant

ITEMS = [((Message(role="user", content=f"Ask me again, {i}?"),), f"The clock counts slowly: {i}.") for i in range(3)]


@pytest.fixture
def tuned(tiny_model: Path, tmp_path: Path) -> Variant:
    import torch
    from transformers import AutoModelForCausalLM

    model = attach_lora(AutoModelForCausalLM.from_pretrained(tiny_model), rank=4, alpha=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    model.save_pretrained(tmp_path / "adapter")
    return Variant(
        id="v1",
        name="v1",
        persona="tamsin",
        base=str(tiny_model),
        strategy="lora",
        kind="adapter",
        path=str(tmp_path / "adapter"),
        system="You are Tamsin Quill.",
        fingerprint="f1",
    )


@pytest.fixture
def context(
    tuned: Variant, home: Home, persona_factory: Callable[..., Persona], reporter: Any
) -> Callable[[Variant], VariantContext]:
    machine = worker_machine(home.root)
    models = Models(home, machine, reporter)

    def make(subject: Variant) -> VariantContext:
        return VariantContext(models, reporter, subject, persona_factory(), None, machine, seed=0, quick=False)

    return make


def test_none_is_the_base_under_the_variants_own_prompt(
    tuned: Variant, context: Callable[[Variant], VariantContext], conversations_factory: Any
) -> None:
    ctx = context(tuned)
    base = base_of(tuned, ctx.persona)
    assert (base.kind, base.system) == ("base", tuned.system)
    of_base, of_tuned = ctx.loglikelihood(None, ITEMS), ctx.loglikelihood(tuned, ITEMS)
    assert of_base == ctx.loglikelihood(base, ITEMS)
    assert all(abs(a.total - b.total) > 1e-3 for a, b in zip(of_base, of_tuned, strict=True))
    assert ctx.loglikelihood(None, ITEMS) == of_base  # still the base after an adapter was active
    examples: tuple[Conversation, ...] = tuple(conversations_factory(2))
    prompt = base.model_copy(update={"id": "p", "kind": "prompt", "examples": examples})
    assert context(prompt).loglikelihood(None, ITEMS) == of_base
    assert all(a.total != b.total for a, b in zip(ctx.loglikelihood(prompt, ITEMS), of_base, strict=True))


def test_a_base_without_a_prompt_of_its_own_gets_the_card(tuned: Variant, persona_factory: Any) -> None:
    persona = persona_factory()
    assert base_of(tuned.model_copy(update={"system": ""}), persona).system == system_prompt(persona)
    assert base_of(tuned.model_copy(update={"prompt_mode": "none", "system": ""}), persona).system == ""


def test_nothing_is_computed_twice_and_order_is_kept(
    tuned: Variant, context: Callable[[Variant], VariantContext], reporter: Any
) -> None:
    ctx = context(tuned)
    first = ctx.loglikelihood(None, ITEMS)
    replies = ctx.generate(tuned, [messages for messages, _ in ITEMS], Sampling(max_new_tokens=5))
    said = len(reporter.messages)
    assert ctx.loglikelihood(None, list(reversed(ITEMS)) + ITEMS[:1]) == [*reversed(first), first[0]]
    assert context(tuned).generate(tuned, [ITEMS[1][0]], Sampling(max_new_tokens=5)) == [replies[1]]
    assert len(reporter.messages) == said  # no step was reported: nothing was run


def test_scores_from_before_the_scaling_or_the_template_was_edited_are_not_taken_for_new_ones(
    tuned: Variant,
    tiny_model: Path,
    home: Home,
    tmp_path: Path,
    persona_factory: Callable[..., Persona],
    reporter: Any,
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    variant, machine = tuned.model_copy(update={"base": str(folder)}), worker_machine(home.root)

    def scored() -> tuple[list[float], str]:
        models = Models(home, machine, reporter)
        ctx = VariantContext(models, reporter, variant, persona_factory(), None, machine, seed=0, quick=False)
        stamp = models.of(variant.base)[1].stamp_name(variant)
        return [found.total for found in ctx.loglikelihood(variant, ITEMS)], stamp

    first, stamp = scored()
    settings = Path(variant.path) / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "lora_alpha": 80}))
    scaled, _ = scored()
    template = "{{ 'Kettles only. ' }}" + load_template(folder).source
    (folder / "chat_template.jinja").write_text(template)
    reworded, again = scored()
    assert len({first[0], scaled[0], reworded[0]}) == 3
    assert again == stamp  # the fingerprint that is shown is that of the weights


def test_a_wish_to_stop_is_heard_between_batches(
    tuned: Variant, context: Callable[[Variant], VariantContext], reporter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(step: int, total: int, **values: Any) -> None:
        raise Cancelled("Stopped.")

    monkeypatch.setattr(reporter, "step", stop)
    with pytest.raises(Cancelled):
        context(tuned).loglikelihood(None, ITEMS)
    with pytest.raises(Cancelled):
        context(tuned).generate(None, [ITEMS[0][0]], Sampling(max_new_tokens=5))
