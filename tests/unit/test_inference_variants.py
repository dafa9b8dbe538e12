"""Loading variants: the base stays the base, mixed batches equal single ones, stamps name what is active."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadModel
from persona_lab.home import Home
from persona_lab.inference.decoding import generate
from persona_lab.inference.loading import VariantHost, load_model, load_variant
from persona_lab.inference.prompting import messages_for
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.models.weights import fingerprint
from persona_lab.types import BaseModelInfo, Conversation, Machine, Message, Sampling, Variant

GREEDY = Sampling(temperature=0, max_new_tokens=10, repetition_penalty=1)
PROMPT = [Message(role="user", content="Why do you keep the sea in a drawer?")]


@pytest.fixture
def base(tiny_model: Path, home: Home) -> BaseModelInfo:
    return registry.describe(str(tiny_model), home)


@pytest.fixture
def machine(home: Home) -> Machine:
    """This machine, told to use fp32, so that equal means equal."""
    return worker_machine(home.root).model_copy(update={"bf16": False})


@pytest.fixture
def adapter(base: BaseModelInfo, machine: Machine, tmp_path: Path) -> Callable[..., Variant]:
    """Makes a LoRA (or DoRA) variant whose update is large enough to change what is said."""

    def make(name: str, seed: int, **options: Any) -> Variant:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        model = get_peft_model(
            load_model(base, machine), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options)
        )
        folder = tmp_path / name
        model.save_pretrained(folder)
        return Variant(
            id=name, name=name, persona="tamsin", base=base.id, strategy="lora", kind="adapter", path=str(folder)
        )

    return make


def logits(model: Any, renderer: ChatRenderer) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([renderer.prompt_ids(PROMPT)], device=model.device)).logits.cpu()


def test_the_base_is_exactly_the_base_after_adapters_were_loaded(
    base: BaseModelInfo, machine: Machine, home: Home, adapter: Callable[..., Variant]
) -> None:
    renderer = ChatRenderer(Path(base.path))
    alone = logits(load_model(base, machine), renderer)
    host = VariantHost(base, machine, home)
    variants = [adapter("one", 1), adapter("two", 2)]
    changed = []
    for variant in variants:
        with host.model_for(variant) as model:
            changed.append(logits(model, renderer))
        with host.model_for(None) as model:
            assert torch.equal(logits(model, renderer), alone)
    assert not torch.allclose(changed[0], alone, atol=1e-2)
    assert not torch.allclose(changed[0], changed[1], atol=1e-2)
    for variant, seen in zip(variants, changed, strict=True):
        own = load_variant(variant, base, machine)
        torch.testing.assert_close(logits(own, renderer), seen, atol=1e-4, rtol=1e-4)
        assert not any(p.requires_grad for p in own.parameters())


def test_a_mixed_batch_says_what_each_variant_says_alone(
    base: BaseModelInfo, machine: Machine, home: Home, adapter: Callable[..., Variant]
) -> None:
    renderer = ChatRenderer(Path(base.path))
    host = VariantHost(base, machine, home)
    plain = Variant(id="base-tamsin", name="base", persona="tamsin", base=base.id, strategy="base", kind="base")
    variants = [adapter("one", 1), plain, adapter("two", 2)]
    assert host.mixable(variants)
    with host.model_for_batch(variants) as (model, names):
        together = [r.text for r in generate(model, renderer, [PROMPT] * 3, GREEDY, adapter_names=names)]
    alone = []
    for variant in variants:
        with host.model_for(variant) as model:
            alone.append(generate(model, renderer, [PROMPT], GREEDY)[0].text)
    assert together == alone
    assert len(set(alone)) == 3


def test_joined_adapters_outlive_a_message_to_the_base_alone(
    base: BaseModelInfo, machine: Machine, home: Home, adapter: Callable[..., Variant]
) -> None:
    host = VariantHost(base, machine, home)
    variants = [adapter("one", 1), adapter("two", 2)]

    def learning() -> int:
        with host.model_for_batch(variants) as (model, _):
            return sum(parameter.requires_grad for parameter in model.parameters())

    assert learning() == 0
    with host.model_for(None):
        pass
    assert learning() == 0
    with host.model_for(variants[0]):
        pass
    assert learning() == 0


def test_dora_answers_alone(base: BaseModelInfo, machine: Machine, home: Home, adapter: Callable[..., Variant]) -> None:
    host = VariantHost(base, machine, home)
    dora = adapter("dora", 3, use_dora=True)
    assert not host.mixable([dora])
    renderer = ChatRenderer(Path(base.path))
    with host.model_for(dora) as model:
        torch.testing.assert_close(
            logits(model, renderer), logits(load_variant(dora, base, machine), renderer), atol=1e-4, rtol=1e-4
        )


def test_full_weights_and_stamps(
    base: BaseModelInfo, machine: Machine, home: Home, adapter: Callable[..., Variant], tmp_path: Path
) -> None:
    renderer = ChatRenderer(Path(base.path))
    model = load_model(base, machine)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "weights")
    whole = Variant(
        id="w", name="whole", persona="t", base=base.id, strategy="full", kind="weights", path=str(tmp_path / "weights")
    )
    host = VariantHost(base, machine, home)
    with host.model_for(whole) as own:
        assert torch.equal(logits(own, renderer), logits(model, renderer))
    lora = adapter("one", 1)
    assert not host.mixable([lora, whole])
    assert host.stamp_name(whole) == f"full whole {fingerprint(tmp_path / 'weights')}"
    assert host.stamp_name(lora) == f"lora one {fingerprint(Path(lora.path))}"
    assert host.stamp_name(None) == f"base {base.id} {fingerprint(Path(base.path))}"
    assert len({host.stamp_name(v).split()[-1] for v in (whole, lora, None)}) == 3


def test_a_variant_whose_files_are_gone_is_named(base: BaseModelInfo, machine: Machine, home: Home) -> None:
    gone = Variant(id="g", name="ghost", persona="t", base=base.id, strategy="lora", kind="adapter", path="/nowhere")
    host = VariantHost(base, machine, home)
    with pytest.raises(BadModel, match="ghost"), host.model_for(gone):
        pass


def test_messages_put_system_and_examples_first() -> None:
    example = Conversation(
        id="e", messages=(Message(role="user", content="Hi"), Message(role="assistant", content="Hm."))
    )
    variant = Variant(
        id="p", name="p", persona="t", base="b", strategy="prompt", kind="prompt", system="Be odd.", examples=(example,)
    )
    roles = [m.role for m in messages_for(variant, [Message(role="system", content="Be plain."), *PROMPT])]
    assert roles == ["system", "user", "assistant", "user"]
    assert messages_for(variant, PROMPT)[0].content == "Be odd."
    bare = variant.model_copy(update={"prompt_mode": "none", "examples": ()})
    assert messages_for(bare, PROMPT) == PROMPT
