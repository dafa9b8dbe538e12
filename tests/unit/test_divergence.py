"""KL divergence against the definition, computed from whole logits; tiny random models, fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import Cancelled
from persona_lab.evaluation.context import Models, VariantContext
from persona_lab.home import Home
from persona_lab.inference import divergence as divergence_room
from persona_lab.inference.divergence import divergence
from persona_lab.inference.loading import load_model
from persona_lab.inference.scoring import loglikelihood
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.types import Message, Persona, Variant

TEXTS = [
    "The kettle on the stair has opinions about the weather, and will share them.",
    "Ask me again when the clock has finished its soup: é☕, 1, 2, 3. " * 6,
    "<|im_start|>user is only text here.",
    "Never.",
]
TASKS = [
    ((Message(role="user", content="Are you lost?"),), "Never. The map is merely late."),
    ((Message(role="user", content="Count."),), "1, 2, 3, 5, 8, 13."),
]


def load(folder: Path, home: Home) -> Any:
    return load_model(registry.describe(str(folder), home), worker_machine(home.root), full_precision=True)


def moved(model: Any, amount: float = 0.02) -> Any:
    """The same model with noise added to every weight."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return model


def by_definition(base: Any, variant: Any, ids: list[int], first: int) -> tuple[float, float, float]:
    """KL, base and variant log-likelihood of ids[first:], from whole logits in fp64."""
    with torch.no_grad():
        p, q = (m(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1) for m in (base, variant))
    kl = sum(float((p[i - 1].exp() * (p[i - 1] - q[i - 1])).sum()) for i in range(first, len(ids)))
    targets = [(i - 1, ids[i]) for i in range(first, len(ids))]
    return kl, sum(float(p[at]) for at in targets), sum(float(q[at]) for at in targets)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("positions", [1 << 20, 7])
def test_divergence_equals_its_definition(
    architecture: str,
    positions: int,
    tiny_model_of: Callable[[str], Path],
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny_model_of(architecture)  # gemma2 caps its logits behind the head
    base, variant, renderer = load(folder, home), moved(load(folder, home)), ChatRenderer(folder)
    vocabulary = base.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(divergence_room, "LOGIT_BYTES", positions * 4 * vocabulary)
    found = divergence(lambda: nullcontext(base), lambda: nullcontext(variant), renderer, [*TEXTS, *TASKS])
    for text, result in zip(TEXTS, found, strict=False):
        plain = divergence_room.load_tokenizer(folder)
        plain.encode_special_tokens = True
        ids = plain.encode(text).ids
        kl, before, after = by_definition(base, variant, ids, 1)
        assert result.kl == pytest.approx(kl, rel=1e-3, abs=1e-4)
        assert kl > 0.005
        assert result.base_total == pytest.approx(before, rel=1e-4, abs=1e-3)
        assert result.variant_total == pytest.approx(after, rel=1e-4, abs=1e-3)
        assert result.tokens == len(ids) - 1
        # nothing predicts the first token, so its bytes do not count
        assert result.bytes == len(text.encode()) - len(renderer.decode(ids[:1]).encode())
        assert result.base_bpb == pytest.approx(-before / result.bytes / 0.6931471805599453, rel=1e-3)
    for task, result in zip(TASKS, found[len(TEXTS) :], strict=True):
        [likely], [after] = (loglikelihood(m, renderer, [task]) for m in (base, variant))
        assert (result.tokens, result.bytes) == (likely.tokens, likely.bytes)
        assert result.base_total == pytest.approx(likely.total, rel=1e-4, abs=1e-3)
        assert result.variant_total == pytest.approx(after.total, rel=1e-4, abs=1e-3)


def test_made_up_words_before_a_text_move_no_position(tiny_model: Path, home: Home) -> None:
    from peft import PromptTuningConfig, get_peft_model

    base, renderer = load(tiny_model, home), ChatRenderer(tiny_model)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    torch.manual_seed(5)
    tuned = get_peft_model(load(tiny_model, home), config).eval().requires_grad_(False)
    passages = [*TEXTS[:1], *TASKS]
    found = divergence(lambda: nullcontext(base), lambda: nullcontext(tuned), renderer, passages)
    for task, result in zip(TASKS, found[1:], strict=True):
        [likely] = loglikelihood(tuned, renderer, [task])
        assert result.variant_total == pytest.approx(likely.total, rel=1e-4, abs=1e-3)
    ids = divergence_room.load_tokenizer(tiny_model).encode(TEXTS[0]).ids
    with torch.no_grad():
        p = base(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        q = tuned(input_ids=torch.tensor([ids])).logits[0, config.num_virtual_tokens :].double().log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1)[:-1].sum())
    assert found[0].kl == pytest.approx(kl, rel=1e-3)


def test_a_start_token_of_the_tokenizer_is_read_and_not_counted(tiny_model: Path, home: Home, tmp_path: Path) -> None:
    import shutil

    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path / "with-start"
    shutil.copytree(tiny_model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", number)])
    tokenizer.save(str(folder / "tokenizer.json"))
    base, variant = load(folder, home), moved(load(folder, home))
    [found] = divergence(lambda: nullcontext(base), lambda: nullcontext(variant), ChatRenderer(folder), [TEXTS[0]])
    ids = [number, *divergence_room.load_tokenizer(tiny_model).encode(TEXTS[0]).ids]
    assert found.tokens == len(ids) - 1
    assert found.bytes == len(TEXTS[0].encode())
    assert found.kl == pytest.approx(by_definition(base, variant, ids, 1)[0], rel=1e-3)


def test_one_model_at_a_time_and_the_same_weights_do_not_move(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home), ChatRenderer(tiny_model)
    active = 0

    @contextmanager
    def alone() -> Iterator[Any]:
        nonlocal active
        active += 1
        assert active == 1
        yield model
        active -= 1

    twice = divergence(alone, alone, renderer, [*TEXTS, *TASKS])
    once = divergence(alone, None, renderer, [*TEXTS, *TASKS])
    assert [d.kl for d in twice] == [0.0] * 6
    assert twice == once
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_nothing_to_predict_and_texts_longer_than_the_context(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home), ChatRenderer(tiny_model)
    words = ["sea " * 2000, "", "a", (TASKS[0][0], " ")]
    long, empty, single, blank = divergence(lambda: nullcontext(model), None, renderer, words)
    assert long.tokens == renderer.context_length - 1
    assert long.bytes < 8000
    assert (empty.tokens, single.tokens, blank.tokens) == (0, 0, 0)
    assert empty.kl_per_token == 0.0


def test_it_can_be_stopped(tiny_model: Path, home: Home) -> None:
    model, renderer = load(tiny_model, home), ChatRenderer(tiny_model)

    def stop(done: int, total: int) -> None:
        assert 0 <= done < total
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        divergence(lambda: nullcontext(model), None, renderer, TEXTS, stop)


def test_the_context_measures_weights_and_remembers(
    tiny_model: Path, home: Home, tmp_path: Path, persona_factory: Callable[..., Persona], reporter: Any
) -> None:
    from transformers import AutoModelForCausalLM

    from persona_lab.training.lora import attach_lora

    model = attach_lora(AutoModelForCausalLM.from_pretrained(tiny_model), rank=4, alpha=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    plain = Variant(id="b", name="b", persona="tamsin", base=str(tiny_model), strategy="base", kind="base")
    prompt = plain.model_copy(update={"id": "p", "kind": "prompt", "system": "You are a kettle."})
    adapter = plain.model_copy(update={"id": "a", "kind": "adapter", "path": str(tmp_path / "adapter"), "system": "x"})
    weights = plain.model_copy(update={"id": "w", "kind": "weights", "path": str(tmp_path / "merged")})
    machine = worker_machine(home.root).model_copy(update={"bf16": False})
    models = Models(home, machine, reporter)

    def measured(variant: Variant) -> Any:
        ctx = VariantContext(models, reporter, variant, persona_factory(), None, machine, seed=0, quick=False)
        return ctx.divergence(variant, [*TEXTS, *TASKS])

    of_adapter = measured(adapter)
    assert all(d.kl_per_token > 1e-4 for d in of_adapter)
    for a, b in zip(of_adapter, measured(weights), strict=True):
        assert b.kl == pytest.approx(a.kl, rel=1e-2, abs=1e-4)
        assert b.base_total == pytest.approx(a.base_total, rel=1e-5)
        assert b.variant_total == pytest.approx(a.variant_total, rel=1e-4)
    assert measured(prompt) == measured(plain)
    assert all(d.kl == 0.0 and d.base_total == d.variant_total for d in measured(plain))
    reporter.messages.clear()
    assert measured(adapter) == of_adapter
    assert reporter.messages == []  # nothing was computed again


def test_of_a_4_bit_variant_what_quantising_moved_counts(
    tiny_model: Path, home: Home, tmp_path: Path, persona_factory: Callable[..., Persona], reporter: Any
) -> None:
    """As the evaluator's note says: an adapter that changes nothing costs nothing, unless its base is 4-bit."""
    from transformers import AutoModelForCausalLM

    from persona_lab.training.lora import attach_lora

    attach_lora(AutoModelForCausalLM.from_pretrained(tiny_model), rank=4).save_pretrained(tmp_path / "adapter")
    machine = worker_machine(home.root).model_copy(update={"bf16": False})
    models = Models(home, machine, reporter)
    found = {}
    for quantization in (None, "nf4"):
        variant = Variant(
            id="v",
            name="v",
            persona="tamsin",
            base=str(tiny_model),
            strategy="lora",
            kind="adapter",
            path=str(tmp_path / "adapter"),
            quantization=quantization,
        )
        ctx = VariantContext(models, reporter, variant, persona_factory(), None, machine, seed=0, quick=False)
        found[quantization] = ctx.divergence(variant, TEXTS)
    assert all(d.kl < 1e-6 for d in found[None])
    assert all(d.kl_per_token > 1e-4 for d in found["nf4"])
