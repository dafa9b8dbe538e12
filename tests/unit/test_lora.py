"""LoRA's choices on tiny real models: exact counts, starts that leave the base alone, adapters that reload exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from persona_lab_builtin.strategies.lora import LoRAConfig, LoRAStrategy
from persona_lab_builtin.strategies.qlora import QLoRAConfig, QLoRAStrategy
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadSetting
from persona_lab.inference.loading import _mixable
from persona_lab.training import saving
from persona_lab.training.context import _counts
from persona_lab.training.lora import attach_lora, merged_model, relative_update
from persona_lab.training.masters import Masters
from persona_lab.training.saving import relative_change, write_adapter
from persona_lab.training.sizes import lora_parameters
from persona_lab.types import BaseModelInfo, Machine

CPU = Machine(
    device="cpu",
    device_name="a CPU",
    cores=2,
    memory_bytes=16 << 30,
    memory_free_bytes=12 << 30,
    disk_free_bytes=99 << 30,
    bf16=True,
)
STARTS = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva")
IDS = torch.tensor([[1, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [1, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 2]])
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def info(folder: Path) -> BaseModelInfo:
    config = json.loads((folder / "config.json").read_text())
    return BaseModelInfo(id=str(folder), key="tiny", name="tiny", path=str(folder), ready=True, config=config)


def train(model: Any, steps: int = 4, rate: float = 2e-2, weight_decay: float = 0.0) -> None:
    """A few steps as the fit loop takes them: fp32 masters under the working weights."""
    masters = Masters(model, weight_decay)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        masters.step(rate, max_norm=1.0)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize("targets", ["all", "attention", "mlp"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3", "gpt2"])
def test_trainable_weights_are_counted_exactly(
    architecture: str, targets: str, tiny_model_of: Callable[[str], Path]
) -> None:
    folder = tiny_model_of(architecture)
    for dora in (False, True):
        names = "all-linear" if targets == "all" else targets
        model = attach_lora(load(folder), rank=4, targets=names, dora=dora)
        assert lora_parameters(info(folder), 4, targets, dora) == _counts(model)[0]
        adapted = {name for name, p in model.named_parameters() if p.requires_grad}
        if targets == "attention":
            assert all("attn" in name for name in adapted)
        if targets == "mlp":
            assert not any("attn" in name for name in adapted)


def test_names_that_a_model_lacks_are_refused(tiny_model: Path) -> None:
    model = load(tiny_model)
    del model.model.layers
    with pytest.raises(BadSetting, match="attention"):
        attach_lora(model, targets="attention")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize("start", STARTS)
def test_every_start_is_the_base_and_reloads_on_the_original_base(
    start: str, rslora: bool, dtype: torch.dtype, tiny_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    untouched = load(tiny_model, dtype)
    before = logits(untouched)
    model = attach_lora(load(tiny_model, dtype), rank=8, alpha=8, rslora=rslora, initialisation=start, batch=BATCH)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {dtype}
    close = 1e-4 if dtype == torch.float32 else 0.03 * float(before.abs().max())
    torch.testing.assert_close(logits(model), before, atol=close, rtol=0)
    assert _counts(model)[0] == lora_parameters(info(tiny_model), 8)
    train(model)
    trained = logits(model)
    assert (trained - before).abs().max() > 0.05
    write_adapter(model, info(tiny_model), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert _mixable(config)
    reloaded = PeftModel.from_pretrained(untouched, tmp_path / "adapter", autocast_adapter_dtype=False)
    torch.testing.assert_close(logits(reloaded), trained, atol=1e-4 if dtype == torch.float32 else 0.0, rtol=0)
    with reloaded.disable_adapter():
        torch.testing.assert_close(logits(reloaded), before, atol=0, rtol=0)
    size = relative_update(model)
    assert 0 < size < 1
    torch.testing.assert_close(logits(merged_model(model)), trained, atol=1e-3 if dtype == torch.float32 else 1, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_kept_start_trains_as_pefts_residual_does(
    start: str, architecture: str, tiny_model_of: Callable[[str], Path]
) -> None:
    folder = tiny_model_of(architecture)
    if (architecture, start) == ("gpt2", "olora"):
        return  # peft's own OLoRA cannot read GPT-2's transposed layers: there is nothing to compare with
    ours = attach_lora(load(folder), rank=4, alpha=4, initialisation=start)
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules="all-linear",
        init_lora_weights=start,
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture == "gpt2",
    )
    theirs = get_peft_model(load(folder), config)
    for _ in range(2):
        train(ours, steps=1, rate=1e-3)
        train(theirs, steps=1, rate=1e-3)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-3, rtol=1e-3)
    halves = [m.lora_A["default"].weight for _, m in ours.named_modules() if hasattr(m, "lora_A")]
    fresh = attach_lora(load(folder), rank=4, alpha=4, initialisation=start)
    starts = [m.lora_A["default"].weight for _, m in fresh.named_modules() if hasattr(m, "lora_A")]
    for half, first in zip(halves, starts, strict=True):
        torch.testing.assert_close(half[4:].abs(), first[4:].abs(), atol=1e-3, rtol=1e-2)  # a randomised SVD's signs
        assert (half[:4].abs() - half[4:].abs()).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_weight_decay_leaves_the_half_alone_that_is_kept(dtype: torch.dtype, tiny_model: Path) -> None:
    model = attach_lora(load(tiny_model, dtype), rank=4, alpha=4, initialisation="pissa")
    both = [m.lora_A["default"].weight for m in model.modules() if hasattr(m, "lora_A")]
    before = [weight.detach().clone() for weight in both]
    train(model, rate=1e-2, weight_decay=0.5)
    for weight, first in zip(both, before, strict=True):
        assert torch.equal(weight[4:], first[4:])
        assert not torch.equal(weight[:4], first[:4])


def test_a_rank_beyond_a_weights_own_trains_the_rest_plainly(tiny_model: Path) -> None:
    model = attach_lora(load(tiny_model), rank=80, alpha=80, initialisation="pissa")
    torch.testing.assert_close(logits(model), logits(load(tiny_model)), atol=1e-4, rtol=0)
    train(model, steps=1)


def test_dora_trains_magnitudes_in_the_bases_type_and_reloads(tiny_model: Path, tmp_path: Path) -> None:
    for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        model = attach_lora(load(tiny_model, dtype), rank=4, dora=True)
        magnitudes = [p for name, p in model.named_parameters() if "magnitude" in name]
        assert {p.dtype for p in magnitudes} == {dtype}
        assert all(p.requires_grad for p in magnitudes)
        train(model)
        write_adapter(model, info(tiny_model), tmp_path / "dora")
        reloaded = PeftModel.from_pretrained(load(tiny_model, dtype), tmp_path / "dora", autocast_adapter_dtype=False)
        torch.testing.assert_close(logits(reloaded), logits(model), atol=close, rtol=0)
        assert not _mixable(json.loads((tmp_path / "dora" / "adapter_config.json").read_text()))


def test_eva_starts_on_the_inputs_main_directions(tiny_model: Path) -> None:
    model = attach_lora(load(tiny_model), rank=4, initialisation="eva", batch=BATCH)
    first = model.base_model.model.model.layers[0].self_attn
    a = first.q_proj.lora_A["default"].weight
    torch.testing.assert_close(a @ a.t(), torch.eye(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(a, first.k_proj.lora_A["default"].weight)  # they read the same input


@pytest.mark.parametrize(
    ("settings", "field", "severity"),
    [
        ({"initialisation": "orthogonal", "rank": 7, "alpha": 14}, "rank", "error"),
        ({"rslora": True}, "alpha", "warning"),
        ({"dora": True, "initialisation": "pissa"}, "dora", "warning"),
        ({"dora": True, "rank": 64, "alpha": 128}, "dora", "warning"),
        ({"rslora": True, "alpha": 8}, "", ""),
        ({}, "", ""),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], field: str, severity: str) -> None:
    problems = LoRAStrategy().check(LoRAConfig(**settings), None, None, CPU)  # type: ignore[arg-type]
    assert [(p.field, p.severity) for p in problems] == ([(field, severity)] if field else [])


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
def test_a_4_bit_base_refuses_what_it_cannot_start_from(start: str) -> None:
    problems = QLoRAStrategy().check(QLoRAConfig(initialisation=start), None, None, CPU)  # type: ignore[arg-type]
    (refused,) = [p for p in problems if p.severity == "error"]
    assert refused.field == "initialisation"
    assert "lora" in refused.fix


def test_eva_finds_the_directions_that_pefts_finds(tiny_model: Path) -> None:
    from peft import EvaConfig
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    ours = attach_lora(load(tiny_model), rank=4, initialisation="eva", batch=BATCH)
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, tau=0.999),
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(load(tiny_model), config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(theirs, [BATCH], show_progress_bar=False)
    pairs = [
        (a.lora_A["default"].weight, b.lora_A["default"].weight)
        for (_, a), (_, b) in zip(ours.named_modules(), theirs.named_modules(), strict=True)
        if hasattr(a, "lora_A")
    ]
    assert len(pairs) == 14
    for mine, other in pairs:
        assert torch.linalg.svdvals(mine @ other.t()).min() > 0.9  # cosines between the two spaces


def test_eva_reads_supervised_tokens_only(tiny_model: Path, conversations_factory: Callable[..., Any]) -> None:
    from persona_lab_builtin.strategies.lora import _read_for_eva

    renderer = ChatRenderer(tiny_model)

    class Context:
        dataset = type("D", (), {"of": staticmethod(lambda split: conversations_factory(6, split))})

        def __init__(self) -> None:
            self.renderer = renderer

        def rendered(self, conversation: Any, max_tokens: int) -> Any:
            return renderer.render(conversation.messages, max_tokens)

    batch = _read_for_eva(LoRAConfig(), Context())  # type: ignore[arg-type]
    assert batch is not None
    assert len(batch["input_ids"]) == 6
    assert (batch["labels"] != -100).any(dim=1).all()
    assert (batch["labels"] == -100).any(dim=1).all()
    assert ((batch["labels"] == -100) | (batch["labels"] == batch["input_ids"])).all()
    assert (batch["attention_mask"].sum(dim=1) > 10).all()


def test_how_far_weights_moved_is_counted_piece_by_piece(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseModelInfo(id="tiny", key="tiny", name="tiny", path=str(tiny_model), ready=True, parameters=1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert relative_change(model, base) == 0
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn_like(weight)
    moved = sum(float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters())
    expected = (moved / sum(float(p.square().sum()) for p in before.values())) ** 0.5
    assert relative_change(model, base) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(saving, "COMPARED", 1000)
    assert relative_change(model, base) == pytest.approx(expected, rel=1e-5)


def test_weights_are_known_by_a_name_without_its_prefix(tiny_model_of: Callable[[str], Path], tmp_path: Path) -> None:
    """As in the files that GPT-2 was published with, which have buffers of the attention besides."""
    folder = tiny_model_of("gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = load_file(folder / "model.safetensors")
    assert all(name.startswith("transformer.") for name in weights)
    published = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    published |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "mtp.h.0.ln_1.weight": torch.full((64,), 9.0)}
    save_file(published, tmp_path / "model.safetensors")
    base = BaseModelInfo(id="tiny", key="tiny", name="tiny", path=str(tmp_path), ready=True, parameters=1)
    assert relative_change(model, base) == 0
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.5
    assert relative_change(model, base) == pytest.approx(0.5)
    save_file({"something.else.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    assert relative_change(model, base) is None
