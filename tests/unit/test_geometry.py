"""Geometry against numpy's own singular value decomposition, planted intruders, and updates read back from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_lab_builtin.evaluators.geometry import Geometry, GeometryConfig

from persona_lab.errors import BadModel
from persona_lab.evaluation import updates as updates_room
from persona_lab.evaluation.context import Models, VariantContext
from persona_lab.evaluation.geometry import (
    closest_cosines,
    effective_rank,
    energies,
    measure_update,
    relative_norm,
    rounding_share,
)
from persona_lab.evaluation.updates import updates
from persona_lab.home import Home
from persona_lab.inference.loading import load_model
from persona_lab.models import registry
from persona_lab.models.machine import worker_machine
from persona_lab.types import BaseModelInfo, Machine, Metric, Persona, Variant

SHAPES = [(24, 24), (16, 40), (40, 16), (5, 30), (64, 48)]


def matrix(rows: int, columns: int, seed: int, decay: float = 0.0) -> torch.Tensor:
    """Random, with singular values that fall off by `decay`."""
    rng = np.random.default_rng(seed)
    u, s, v = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    return torch.tensor(u * (s * np.exp(-decay * np.arange(len(s)))) @ v, dtype=torch.float32)


def by_numpy(base: torch.Tensor, delta: torch.Tensor) -> tuple[float, int, np.ndarray]:
    """Relative norm, effective rank and the cosines that decide on intruders, by definition and in fp64."""
    w, d = base.double().numpy(), delta.double().numpy()
    energy = np.linalg.svd(d, compute_uv=False) ** 2
    rank = next(k for k in range(1, len(energy) + 1) if energy[:k].sum() >= 0.9 * energy.sum())
    before, after = (np.linalg.svd(x, full_matrices=False)[0] for x in (w, w + d))
    cosines = np.array(
        [max(abs(after[:, j] @ before[:, i]) for i in range(before.shape[1])) for j in range(10)[: after.shape[1]]]
    )
    return float(np.linalg.norm(d) / np.linalg.norm(w)), rank, cosines


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.003, 0.3, 1.5])
def test_measures_agree_with_numpy(shape: tuple[int, int], strength: float) -> None:
    base, delta = matrix(*shape, seed=1, decay=0.05), matrix(*shape, seed=2, decay=0.4) * strength
    relative, rank, cosines = by_numpy(base, delta)
    found = measure_update(base, delta)
    assert found.relative == pytest.approx(relative, rel=1e-5)
    assert found.rank == rank
    np.testing.assert_allclose(closest_cosines(base, base + delta).double().numpy(), cosines, atol=2e-3)
    assert found.intruders == int((cosines < 0.5).sum())
    assert found.directions == len(cosines)


def test_planted_intruders_are_counted() -> None:
    """The base is strong in the first 20 of 120 outputs; a large update spread over the weak others is a stranger."""
    base = torch.cat([matrix(20, 140, seed=3), matrix(100, 140, seed=4) * 0.01])
    left, sizes, right = torch.linalg.svd(base, full_matrices=False)
    outside, second = torch.zeros(120), torch.zeros(120)
    outside[20:] = 0.1
    second[20:] = torch.tensor([0.1, -0.1] * 50)
    stranger = torch.outer(outside, right[-1]) * sizes[0] * 2
    another = torch.outer(second, right[-2]) * sizes[0] * 1.5
    assert measure_update(base, stranger).intruders == 1
    assert measure_update(base.T, stranger.T).intruders == 0  # its other side was there: right[-1] is the base's own
    assert measure_update(base, stranger + another).intruders == 2
    assert measure_update(base, torch.outer(left[:, 0], right[-1]) * sizes[0] * 2).intruders == 0  # a direction it had
    assert measure_update(base, stranger * 1e-4).intruders == 0
    assert measure_update(base, base * 0.5).intruders == 0  # much, but turned nowhere
    assert measure_update(base, stranger).rank == 1


def test_a_doubtful_cosine_is_worked_out_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weak directions of the base are mixed up in fp32: one of them, amplified, must not look new."""
    rng = np.random.default_rng(5)
    u, v = (np.linalg.qr(rng.standard_normal((64, 64)))[0] for _ in range(2))
    sizes = np.concatenate([np.linspace(1, 0.5, 32), np.linspace(3e-4, 2.9e-4, 32)])
    base = torch.tensor(u * sizes @ v.T, dtype=torch.float64)
    tuned = base + torch.tensor(np.outer(u[:, 48], v[:, 48]) * 2)
    assert float(closest_cosines(base, tuned).min()) > 0.99
    assert float(closest_cosines(base.float(), tuned.float()).min()) > 0.9


def test_effective_rank_of_known_spectra() -> None:
    for values, rank in [((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), 9), ((3, 1e-3), 1), ((3, 0.9, 0.1), 1), ((2, 1, 1), 3)]:
        delta = torch.zeros(12, 15)
        delta.fill_diagonal_(0)
        for i, value in enumerate(values):
            delta[i, i] = value
        assert [effective_rank(energies(d)) for d in (delta, delta.T, delta * 1e-25)] == [rank] * 3, values
    assert effective_rank(energies(torch.zeros(4, 4))) == 0
    assert effective_rank(energies(torch.eye(4)), 1.0) == 4
    assert relative_norm(torch.zeros(4, 4), torch.zeros(4, 4)) == 0.0
    assert relative_norm(torch.full((2, 2), 3.0), torch.full((2, 2), 4.0)) == pytest.approx(0.75)


def test_rounding_to_bf16_is_recognised_and_taken_out_of_the_rank() -> None:
    base = matrix(96, 160, seed=6).bfloat16().float()
    low = matrix(96, 3, seed=7) @ matrix(3, 160, seed=8)
    delta = low * (0.006 * base.norm() / low.norm())
    rounded = (base + delta).bfloat16().float() - base
    exact, kept = measure_update(base, delta), measure_update(base, rounded)
    assert (exact.rounding, exact.signal_rank) == (0.0, exact.rank)
    error = float((rounded - delta).square().sum() / rounded.square().sum())
    assert kept.rounding == pytest.approx(error, rel=0.25)
    assert kept.rounding > 0.03
    assert exact.rank == 3
    assert kept.signal_rank in (2, 3)
    assert kept.rank is not None
    assert kept.rank >= 3
    tiny = measure_update(base, (base + delta / 20).bfloat16().float() - base)
    assert (tiny.rounding > 0.5, tiny.signal_rank) == (True, None)
    one_row = torch.zeros_like(base)
    one_row[5] = base[5]  # a doubled row is on the grid; the rows that did not change were not rounded
    assert 0 < rounding_share(base + one_row, one_row) < 1e-4


def test_matrices_that_are_too_large_are_measured_by_what_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_lab.evaluation import geometry as room

    base, delta = matrix(40, 16, 1), matrix(40, 16, 2) * 0.1
    monkeypatch.setattr(room, "LARGEST_LEFT", 39)
    tall = measure_update(base, delta)
    assert (tall.intruders, tall.directions) == (None, 0)
    assert tall.rank == effective_rank(energies(delta))
    monkeypatch.setattr(room, "LARGEST_SIDE", 15)
    assert measure_update(base, delta).rank is None
    assert measure_update(base, delta).relative == tall.relative


# --- updates read from files ----------------------------------------------------------------------


@pytest.fixture
def machine(home: Home) -> Machine:
    return worker_machine(home.root).model_copy(update={"bf16": False})


@pytest.fixture
def make(tiny_model_of: Callable[[str], Path], home: Home, tmp_path: Path) -> Callable[..., Any]:
    """Makes an adapter variant on a tiny model: (variant, base, the peft model)."""

    def build(architecture: str = "llama", **options: Any) -> tuple[Variant, BaseModelInfo, Any]:
        from peft import LoraConfig, get_peft_model

        info = registry.describe(str(tiny_model_of(architecture)), home)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False}
            settings |= {"fan_in_fan_out": architecture == "gpt2"}
            model = get_peft_model(
                load_model(info, worker_machine(home.root), full_precision=True), LoraConfig(**settings | options)
            )
        folder = tmp_path / f"adapter-{len(list(tmp_path.glob('adapter-*')))}"
        model.save_pretrained(folder)
        variant = Variant(
            id="v", name="v", persona="tamsin", base=info.id, strategy="lora", kind="adapter", path=str(folder)
        )
        return variant, info, model

    return build


OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 20}},
    {"use_dora": True},
    {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    {"architecture": "gpt2"},
    {"architecture": "gpt2", "use_dora": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_an_adapters_updates_are_what_merging_it_changes(
    options: dict[str, Any], make: Callable[..., Any], machine: Machine, tmp_path: Path
) -> None:
    variant, info, model = make(**options)
    if "modules_to_save" in options:
        with torch.no_grad():  # what was trained of the head itself
            model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.25)
        model.save_pretrained(variant.path)
    found = {name: (kind, layer, base, delta) for name, kind, layer, base, delta in updates(variant, info, machine)}
    before = load_model(info, machine, full_precision=True)
    original = {name: p.clone() for name, p in before.named_parameters()}
    merged = dict(model.merge_and_unload().named_parameters())
    expected = {n for n, p in merged.items() if p.dim() == 2 and n in original and not torch.equal(p, original[n])}
    names = {name if f"{name}.weight" in original else f"transformer.{name}" for name in found}
    assert {f"{name}.weight" for name in names} == expected
    assert expected
    for name, (kind, layer, base, delta) in found.items():
        whole = name if f"{name}.weight" in original else f"transformer.{name}"
        old, new = original[f"{whole}.weight"], merged[f"{whole}.weight"]
        if "gpt2" in options.values() and kind != "embedding":
            old, new = old.T, new.T
        torch.testing.assert_close(base, old)
        torch.testing.assert_close(delta, new - old, atol=2e-6, rtol=1e-4)
        assert base.dtype == delta.dtype == torch.float32
        assert kind == ("embedding" if name.endswith(("lm_head", "wte", "embed_tokens")) else name.rsplit(".", 1)[-1])
        assert layer is None or f".{layer}." in name


def test_full_weights_and_the_adapter_they_were_merged_from_agree(
    make: Callable[..., Any], machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, info, model = make()
    by_files = list(updates(variant, info, machine))
    monkeypatch.setattr(updates_room, "_plain_lora", lambda *_: None)
    by_merging = list(updates(variant, info, machine))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    whole = variant.model_copy(update={"kind": "weights", "path": str(tmp_path / "merged")})
    by_weights = list(updates(whole, info, machine))
    assert [u[:3] for u in by_files] == [u[:3] for u in by_merging] == [u[:3] for u in by_weights]
    assert len(by_files) == 14  # 7 matrices in each of 2 layers; nothing else was touched
    assert [u[2] for u in by_files] == [0] * 7 + [1] * 7
    for one, two, three in zip(by_files, by_merging, by_weights, strict=True):
        torch.testing.assert_close(one[4], two[4], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(one[4], three[4], atol=1e-6, rtol=1e-4)
        a, b = measure_update(one[3], one[4]), measure_update(three[3], three[4])
        assert (a.rank, a.intruders) == (b.rank, b.intruders)
        assert a.relative == pytest.approx(b.relative, rel=1e-4)


def test_the_relative_norm_of_a_known_lora(make: Callable[..., Any], machine: Machine) -> None:
    variant, info, model = make(target_modules=["v_proj"])
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.lora_A["default"].weight.zero_()[0, 0] = 3.0
                module.lora_B["default"].weight.zero_()[0, 0] = 2.0
    model.save_pretrained(variant.path)
    rows = list(updates(variant, info, machine))
    assert [name for name, *_ in rows] == [f"model.layers.{i}.self_attn.v_proj" for i in range(2)]
    for _, _, _, base, delta in rows:
        # scaling 6 / 4 times 3 times 2, in one entry
        assert measure_update(base, delta).relative == pytest.approx(9.0 / float(base.norm()), rel=1e-5)
        assert measure_update(base, delta).rank == 1


def test_trained_embeddings_are_marked_and_tied_ones_come_once(
    tiny_model: Path, home: Home, machine: Machine, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    info = registry.describe(str(tiny_model), home)
    tensors = load_file(tiny_model / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * 1.5
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # some write both
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole = Variant(id="w", name="w", persona="t", base=info.id, strategy="full", kind="weights", path=str(folder))
    [(name, kind, layer, base, delta)] = list(updates(whole, info, machine))
    assert (name, kind, layer) == ("model.embed_tokens", "embedding", None)
    assert relative_norm(delta, base) == pytest.approx(0.5)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModel, match="embed_tokens"):
        list(updates(whole, info, machine))
    save_file({"other": torch.ones(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModel, match="No weight"):
        list(updates(whole, info, machine))
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadModel, match="no safetensors"):
        list(updates(whole, info, machine))


def test_a_prompt_adapter_changes_no_weight_but_its_foundation_did(
    tiny_model: Path, home: Home, machine: Machine, tmp_path: Path
) -> None:
    from peft import PromptTuningConfig, get_peft_model

    info = registry.describe(str(tiny_model), home)
    model = load_model(info, machine, full_precision=True)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path / "words"
    )
    words = Variant(
        id="s", name="s", persona="t", base=info.id, strategy="soft", kind="adapter", path=str(tmp_path / "words")
    )
    assert list(updates(words, info, machine)) == []
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "foundation")
    foundation = info.model_copy(update={"path": str(tmp_path / "foundation")})
    assert [name for name, *_ in updates(words, info, machine, foundation)] == ["model.embed_tokens"]


# --- the evaluator --------------------------------------------------------------------------------


class KnownContext:
    """Updates that the test decides."""

    def __init__(self, rows: list[Any], quick: bool = False, step: int = 1) -> None:
        self.rows, self.quick, self.settings, self.seed = rows, quick, GeometryConfig(layer_step=step), 0

    def phase(self, title: str, total: int | None = None) -> None: ...
    def step(self, step: int, total: int, **values: Any) -> None: ...
    def updates(self, variant: Variant) -> Any:
        return iter(self.rows)


def rows(layers: int = 6) -> list[Any]:
    found: list[Any] = [("embed_tokens", "embedding", None, torch.eye(8), torch.eye(8) * 0.5)]
    for layer in range(layers):
        found.append((f"layers.{layer}.q_proj", "q_proj", layer, torch.eye(8), torch.eye(8) * 0.1 * (layer + 1)))
    return found


def by_name(metrics: Any) -> dict[str, Metric]:
    return {m.metric: m for m in metrics}


def tuned(kind: Any = "weights", **more: Any) -> Variant:
    return Variant(id="v", name="v", persona="t", base="starter", strategy="full", kind=kind, **more)


def test_the_evaluator_maps_matrices_to_items_and_layers_to_clusters() -> None:
    found = by_name(Geometry().score(tuned(), [], KnownContext(rows())))
    assert list(found) == ["relative_update", "effective_rank", "intruder_dimensions"]
    assert all(m.better == "none" for m in found.values())
    relative = found["relative_update"]
    assert relative.value == pytest.approx((0.5 + 0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 7)
    assert [(i.id, i.cluster, i.note) for i in relative.items[:2]] == [
        ("embed_tokens", "embedding", "embedding"),
        ("layers.0.q_proj", "0", "q_proj"),
    ]
    assert "layers.5.q_proj" in relative.note  # moved most
    assert found["effective_rank"].value == 8.0  # 90% of eight equal values takes eight
    assert (found["intruder_dimensions"].value, found["intruder_dimensions"].n) == (0.0, 56)


def test_intruders_are_summed_over_matrices() -> None:
    rng = np.random.default_rng(9)
    base = torch.tensor(rng.standard_normal((30, 30)) / 30, dtype=torch.float32)
    turned = torch.outer(torch.ones(30), torch.ones(30))
    assert measure_update(base, turned).intruders == 1
    planted = [(f"layers.{i}.o_proj", "o_proj", i, base, turned if i != 1 else turned * 1e-6) for i in range(3)]
    found = by_name(Geometry().score(tuned(), [], KnownContext(planted)))["intruder_dimensions"]
    assert (found.value, found.n) == (2.0, 30)
    assert [item.value for item in found.items] == [1.0, 0.0, 1.0]


def test_fewer_layers_when_quick_or_asked_and_the_note_says_so() -> None:
    for context, layers in (
        (KnownContext(rows(), quick=True), ["0", "3"]),
        (KnownContext(rows(), step=2), ["0", "2", "4"]),
        (KnownContext(rows(), quick=True, step=5), ["0", "5"]),
    ):
        found = by_name(Geometry().score(tuned(), [], context))["relative_update"]
        assert [item.cluster for item in found.items] == ["embedding", *layers]
        assert "every " in found.note


def test_the_note_says_what_rounding_did() -> None:
    base = matrix(96, 160, seed=6).bfloat16().float()
    low = matrix(96, 3, seed=7) @ matrix(3, 160, seed=8)
    rounded = (base + low * (0.006 * base.norm() / low.norm())).bfloat16().float() - base
    planted = [(f"layers.{i}.o_proj", "o_proj", i, base, rounded) for i in range(2)]
    grown = [("layers.0.o_proj", "o_proj", 0, torch.zeros(4, 4), torch.eye(4))]
    assert by_name(Geometry().score(tuned(), [], KnownContext(grown)))["relative_update"].value is None
    assert "without it; do not" in by_name(Geometry().score(tuned(), [], KnownContext(planted)))["effective_rank"].note
    assert "bf16" not in by_name(Geometry().score(tuned(), [], KnownContext(rows())))["effective_rank"].note


def test_nothing_changed_is_withheld() -> None:
    for kind in ("base", "prompt"):
        found = by_name(Geometry().score(tuned(kind), [], KnownContext(rows())))
        assert all(m.value is None and "Nothing was changed" in m.note for m in found.values())
    assert all(m.value is None for m in Geometry().score(tuned(), [], KnownContext([])))
    note = by_name(Geometry().score(tuned("adapter", quantization="nf4"), [], KnownContext(rows())))
    assert "unquantised" in note["relative_update"].note


def test_the_context_gives_updates_of_real_files(
    make: Callable[..., Any], home: Home, machine: Machine, persona_factory: Callable[..., Persona], reporter: Any
) -> None:
    variant, _, _ = make()
    models = Models(home, machine, reporter)
    ctx = VariantContext(models, reporter, variant, persona_factory(), None, machine, seed=0, quick=False)
    found = by_name(Geometry().score(variant, [], ctx.with_settings(GeometryConfig())))
    assert len(found["relative_update"].items) == 14
    assert found["intruder_dimensions"].n == 140
    assert found["effective_rank"].value is not None
    assert 1 <= found["effective_rank"].value <= 4  # the rank it was given
    assert list(ctx.updates(variant.model_copy(update={"kind": "prompt"}))) == []
