"""A pull along traits as llama.cpp's control vector: what is written, what llama.cpp makes of it, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from test_exporters import check_sums, export, variant
from transformers import AutoConfig, AutoModelForCausalLM

from persona_lab.errors import BadInput, BadModel
from persona_lab.export import llama_cpp
from persona_lab.export.choices import export_choices
from persona_lab.export.control_vector import (
    ENDING,
    added,
    control_vector_in,
    read_control_vector,
    require_same,
    write_control_vector,
)
from persona_lab.export.pulls import own_pull
from persona_lab.home import Home
from persona_lab.inference.steering import Shift, steered
from persona_lab.inference.trait_files import KeptTrait, write_kept
from persona_lab.models.registry import describe
from persona_lab.plugins import Plugins
from persona_lab.traits.library import shipped
from persona_lab.types import ExportOrder, Persona, TraitCalibration, Variant

LAYERS, HIDDEN = 5, 64
PROGRAM = llama_cpp.program()


@pytest.fixture(scope="session")
def base_of(tiny_model_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes (once each) a licensed tiny model of five layers, so that a pull at the wrong one shows."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp("bases") / architecture
            shutil.copytree(tiny_model_of(architecture), folder)
            (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
            config = AutoConfig.from_pretrained(folder)
            config.num_hidden_layers = LAYERS
            if getattr(config, "layer_types", None):
                config.layer_types = ["full_attention"] * LAYERS
            (folder / "model.safetensors").unlink()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(11)
                AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
            made[architecture] = folder
        return made[architecture]

    return make


def pulled(base: Path, folder: Path, *layers: int, **values: Any) -> Variant:
    """A prompt variant, pulled hard along two random traits that it has copies of."""
    for number, name in enumerate(("grumpy", "archaic")):
        found = TraitCalibration(
            layers=layers, towards=6.0, away=9.0, unsteered_bits_per_byte=1.0, unsteered_repetition=0.0
        )
        vectors = {
            layer: numpy.random.default_rng(10 * layer + number).normal(size=HIDDEN).astype(numpy.float32)
            for layer in layers
        }
        write_kept(folder / f"{name}.safetensors", KeptTrait(shipped()[number], found, vectors))
    traits = {"grumpy": 50.0, "archaic": -40.0}
    return variant(base, "prompt", traits=traits, steering=str(folder), strategy="steer", **values)


def steered_logits(model: Any, chosen: Variant, ids: torch.Tensor) -> torch.Tensor:
    """As the chat computes them."""
    shift = Shift({layer: torch.from_numpy(vector) for layer, vector in own_pull(chosen).items()})
    with steered(model, [shift]), torch.no_grad():
        return model(input_ids=ids).logits


def by_rule(model: Any, directions: dict[int, Any], ids: torch.Tensor) -> torch.Tensor:
    with added(model, directions), torch.no_grad():
        return model(input_ids=ids).logits


def test_the_file_is_what_llama_cpp_reads(base_of: Callable[[str], Path], home: Home, tmp_path: Path) -> None:
    base = base_of("llama")
    chosen, path = pulled(base, tmp_path / "vectors", 1, 3), tmp_path / f"x{ENDING}"
    note = write_control_vector(chosen, describe(str(base), home), path)
    assert "archaic -40, grumpy +50" in note
    assert "layers [1, 3]" in note
    reader = GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert said["general.architecture"] == "controlvector"
    assert said["controlvector.model_hint"] == "llama"
    assert said["controlvector.layer_count"] == LAYERS - 1
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{layer}" for layer in range(1, LAYERS)]
    pull = own_pull(chosen)
    for layer, tensor in enumerate(reader.tensors, 1):
        assert tensor.tensor_type.name == "F32"
        assert tensor.shape.tolist() == [HIDDEN]
        assert numpy.array_equal(tensor.data, pull.get(layer, numpy.zeros(HIDDEN, numpy.float32)))
    assert float(numpy.abs(pull[1]).max()) > 1
    assert control_vector_in(tmp_path) == path
    require_same(read_control_vector(path), chosen)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_added_where_llama_cpp_adds_it_it_is_our_pull(
    architecture: str, base_of: Callable[[str], Path], home: Home, tmp_path: Path
) -> None:
    base = base_of(architecture)
    chosen, path = pulled(base, tmp_path / "vectors", 1, 2, LAYERS - 1), tmp_path / f"x{ENDING}"
    write_control_vector(chosen, describe(str(base), home), path)
    found = dict(read_control_vector(path).directions)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.arange(3, 43)[None]
    wanted = steered_logits(model, chosen, ids)
    torch.testing.assert_close(by_rule(model, found, ids), wanted, rtol=1e-5, atol=1e-5)
    elsewhere = {layer - 1: vector for layer, vector in found.items()}
    assert float((by_rule(model, elsewhere, ids) - wanted).abs().max()) > 0.1, "a layer before shows"
    assert float((by_rule(model, {}, ids) - wanted).abs().max()) > 0.1
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, by_rule(model, {}, ids)), "no hook is left"


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_an_export_without_llama_cpps_program_is_checked_by_its_rule_and_says_so(
    architecture: str,
    base_of: Callable[[str], Path],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama_cpp, "program", lambda: None)
    chosen = pulled(base_of(architecture), tmp_path / "vectors", 1, 3)
    out = tmp_path / "out"
    result = export(home, persona_factory(), chosen, "control-vector", out, reporter, config={"type": "F16"})
    checked = result["check"]
    assert checked["good"], checked["verdict"]
    assert "by llama.cpp's rule and not by llama.cpp itself" in checked["verdict"]
    assert checked["mean_loglikelihood"]["relative_difference"] < 1e-3
    assert checked["same_replies"] >= 5
    assert checked["same_tokenization"] == 8, "the model itself is loaded by llama.cpp"
    assert set(result["files"]) >= {"tamsin_one-F16.gguf", "tamsin_one-control-vector.gguf", "README.md", "card.json"}
    command = "llama-cli -m tamsin_one-F16.gguf --control-vector-scaled tamsin_one-control-vector.gguf:1.0"
    assert command in result["usage"]
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert command in readme
    assert "would be pulled twice" in readme
    pull = {f"blk.{layer}.ffn_down.bias" for layer in range(LAYERS)}
    assert not pull & {tensor.name for tensor in GGUFReader(out / "tamsin_one-F16.gguf").tensors}
    check_sums(out)


@pytest.mark.skipif(PROGRAM is None, reason="llama-server is not here (PATH, or PERSONA_LAB_LLAMA_SERVER)")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_says_with_the_vector_what_the_variant_says(
    architecture: str,
    base_of: Callable[[str], Path],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    chosen = pulled(base_of(architecture), tmp_path / "vectors", 1, 3)
    out = tmp_path / "out"
    result = export(home, persona_factory(), chosen, "control-vector", out, reporter, config={"type": "F16"})
    checked = result["check"]
    assert "added by it" in checked["loaded_with"]
    assert checked["good"], checked["verdict"]
    assert checked["same_tokenization"] == 8
    assert checked["same_replies"] >= 5, checked["rows"]
    assert checked["mean_loglikelihood"]["relative_difference"] < 1e-3


@pytest.mark.skipif(PROGRAM is None, reason="llama-server is not here (PATH, or PERSONA_LAB_LLAMA_SERVER)")
def test_llama_cpp_counts_layers_as_the_file_does(
    base_of: Callable[[str], Path], persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    """One layer after the other, since the same vector at its neighbour would say something else."""
    base, ids = base_of("llama"), list(range(3, 43))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    scores: dict[int, tuple[float, float]] = {}
    for layer in range(1, LAYERS):
        chosen = pulled(base, tmp_path / f"vectors-{layer}", layer)
        out, order = tmp_path / f"out-{layer}", ExportOrder(check=False)
        config = {"type": "F16"}
        export(home, persona_factory(), chosen, "control-vector", out, reporter, config=config, export=order)
        told = steered_logits(model, chosen, torch.tensor([ids]))[0].log_softmax(-1)
        ours = float(sum(told[place - 1, ids[place]] for place in range(20, 40)))
        assert PROGRAM is not None
        files = (out / "tamsin_one-F16.gguf", out / f"tamsin_one{ENDING}")
        with llama_cpp.WithControlVector(PROGRAM, *files, 128, 2) as loaded:
            scores[layer] = (ours, loaded.loglikelihood(ids, 20, model.config.vocab_size))
    for layer, (ours, theirs) in scores.items():
        assert theirs == pytest.approx(ours, rel=1e-3), layer
        others = [abs(other - ours) for number, (other, _) in scores.items() if number != layer]
        assert min(others) > 10 * abs(theirs - ours), "layers would be told apart"


@pytest.mark.skipif(PROGRAM is None, reason="llama-server is not here (PATH, or PERSONA_LAB_LLAMA_SERVER)")
def test_what_llama_cpp_does_not_load_fails_with_its_words(
    base_of: Callable[[str], Path], persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    chosen, out = pulled(base_of("llama"), tmp_path / "vectors", 1), tmp_path / "out"
    export(home, persona_factory(), chosen, "control-vector", out, reporter, export=ExportOrder(check=False))
    write(out / f"tamsin_one{ENDING}", {"direction.0": numpy.ones(HIDDEN, numpy.float32)})
    assert PROGRAM is not None
    with pytest.raises(BadModel, match=r"does not load tamsin_one-Q8_0\.gguf with tamsin_one-control"):
        llama_cpp.WithControlVector(PROGRAM, out / "tamsin_one-Q8_0.gguf", out / f"tamsin_one{ENDING}", 128, 2)


def write(
    path: Path,
    tensors: dict[str, Any],
    architecture: str = "controlvector",
    hint: str = "llama",
    count: int | None = None,
) -> Path:
    path.unlink(missing_ok=True)
    writer = GGUFWriter(path, architecture)
    if hint:
        writer.add_string("controlvector.model_hint", hint)
    writer.add_int32("controlvector.layer_count", len(tensors) if count is None else count)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ONES = numpy.ones(8, numpy.float32)


@pytest.mark.parametrize(
    ("tensors", "more", "why"),
    [
        ({"direction.1": ONES}, {"architecture": "llama"}, "architecture 'llama'"),
        ({"direction.1": ONES}, {"hint": ""}, "for None"),
        ({"direction.1": ONES}, {"count": 2}, "says that it has 2 directions and has 1"),
        ({"direction.0": ONES}, {}, "'direction.0'"),
        ({"directions": ONES}, {}, "'directions'"),
        ({"direction.1": ONES.astype(numpy.float16)}, {}, "is F16"),
        ({"direction.1": ONES.reshape(2, 4)}, {}, "2 dimensions"),
        ({"direction.1": ONES, "direction.2": numpy.ones(4, numpy.float32)}, {}, "different lengths"),
    ],
)
def test_what_llama_cpp_would_not_take_is_named(
    tensors: dict[str, Any], more: dict[str, Any], why: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"x{ENDING}", tensors, **more)
    with pytest.raises(BadModel, match=why):
        read_control_vector(path)


def test_a_file_that_is_none_and_other_numbers_are_noticed(
    base_of: Callable[[str], Path], home: Home, tmp_path: Path
) -> None:
    path = tmp_path / f"x{ENDING}"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BadModel, match="no control vector"):
        read_control_vector(path)
    base = base_of("llama")
    chosen = pulled(base, tmp_path / "vectors", 1, 3)
    path.unlink()
    write_control_vector(chosen, describe(str(base), home), path)
    found = read_control_vector(path)
    require_same(found, chosen)
    with pytest.raises(BadModel, match="at layer 1"):
        require_same(found, chosen.model_copy(update={"traits": {"grumpy": 50.0}}))


def test_what_has_no_place_in_a_control_vector_is_refused(
    base_of: Callable[[str], Path],
    tiny_model_of: Callable[[str], Path],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    base, out = base_of("llama"), tmp_path / "out"
    with pytest.raises(BadInput, match="not pulled along any trait"):
        export(home, persona_factory(), variant(base, "prompt"), "control-vector", out, reporter)
    with pytest.raises(BadInput, match="at the first layer"):
        export(home, persona_factory(), pulled(base, tmp_path / "first", 0, 2), "control-vector", out, reporter)
    other = describe(str(tiny_model_of("llama")), home)
    with pytest.raises(BadModel, match="layer 4 with 64 numbers; its base has 2 layers"):
        write_control_vector(pulled(base, tmp_path / "four", 4), other, tmp_path / f"x{ENDING}")
    gemma = tmp_path / "gemma"
    shutil.copytree(tiny_model_of("gemma"), gemma)
    (gemma / "README.md").write_text("---\nlicense: gemma\n---\n", encoding="utf-8")
    with pytest.raises(BadInput, match="'gemma' cannot be written as GGUF"):
        export(home, persona_factory(), pulled(gemma, tmp_path / "g", 1), "control-vector", out, reporter)
    assert not out.exists()


def test_it_is_a_choice_for_pulled_variants_only(base_of: Callable[[str], Path], home: Home, tmp_path: Path) -> None:
    base, plugins = describe(str(base_of("qwen2")), home), Plugins.load(tmp_path / "none")

    def possible(chosen: Variant) -> dict[str, bool]:
        return {choice.format: choice.possible for choice in export_choices(plugins, chosen, base)}

    steered_one = possible(pulled(Path(base.path), tmp_path / "vectors", 1))
    assert steered_one["control-vector"], "qwen2 has no bias for a pull, and needs none here"
    assert not steered_one["gguf"]
    assert not possible(variant(base.path, "weights", base.path))["control-vector"]
    assert plugins.get("exporter", "control-vector").keeps_traits
