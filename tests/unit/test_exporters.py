"""Exports load without Persona Lab and say the same; nothing is overwritten or passed on unlicensed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from persona_lab_builtin.plugin import persona_lab_exporters

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.errors import BadInput
from persona_lab.export.run import run
from persona_lab.export.toolkit import license_of, write_model_card
from persona_lab.home import Home
from persona_lab.inference.loading import load_variant
from persona_lab.models.machine import worker_machine
from persona_lab.models.registry import describe
from persona_lab.training.lora import attach_lora
from persona_lab.types import Job, Message, Persona, Variant

PROMPT = (Message(role="user", content="Why do you keep the sea in a drawer?"),)


class Exporters:
    """Stands where the plugin manager does."""

    def get(self, kind: str, name: str) -> Any:
        return next(part for part in persona_lab_exporters() if part.id == name)()


@pytest.fixture
def licensed(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model whose card states a licence."""
    folder = tmp_path / "licensed-base"
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n", encoding="utf-8")
    return folder


@pytest.fixture
def adapter(licensed: Path, tmp_path: Path) -> Variant:
    """A LoRA variant on the tiny model whose update is large enough to change what is said."""
    import torch
    from transformers import AutoModelForCausalLM

    model = attach_lora(AutoModelForCausalLM.from_pretrained(licensed), rank=4, alpha=8)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    return variant(licensed, "adapter", tmp_path / "adapter")


def variant(base: Path, kind: Any, path: Path | str = "", **values: Any) -> Variant:
    known = {
        "id": "v1",
        "name": "Tamsin one",
        "persona": "tamsin",
        "strategy": "lora",
        "system": "You are ```Tamsin```.",
    }
    return Variant(base=str(base), kind=kind, path=str(path), fingerprint="0123456789ab", **{**known, **values})


def export(
    home: Home, persona: Persona, chosen: Variant, form: str, out: Path, reporter: Any, **fields: Any
) -> dict[str, Any]:
    job = Job(
        id="x1",
        kind="export",
        name="export",
        home=str(home.root),
        created="",
        persona=persona,
        variants=(chosen,),
        format=form,
        out=str(out),
        **fields,
    )
    return run(job, reporter, Exporters())


def greedy(model: Any, base: Path) -> list[int]:
    """24 greedy tokens, by transformers' own generate."""
    import torch

    ids = torch.tensor([ChatRenderer(base).prompt_ids(PROMPT)])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=24,
        do_sample=False,
        temperature=None,
        top_p=None,
        repetition_penalty=1.0,
        pad_token_id=0,
    )
    return out[0, ids.shape[1] :].tolist()


def check_sums(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    named = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    assert set(named) == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in named.items())


def test_merged_loads_in_plain_transformers_and_says_the_same(
    adapter: Variant, licensed: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = export(home, persona_factory(), adapter, "merged", tmp_path / "out", reporter)
    out = Path(result["out"])
    merged = AutoModelForCausalLM.from_pretrained(out)
    machine = worker_machine(home.root).model_copy(update={"device": "cpu", "bf16": False})
    tuned = load_variant(adapter, describe(str(licensed), home), machine)
    assert greedy(merged, out) == greedy(tuned, licensed)
    assert greedy(merged, out) != greedy(AutoModelForCausalLM.from_pretrained(licensed), licensed)
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert merged.generation_config.repetition_penalty == 1.15
    assert not list(out.glob("adapter*"))
    assert set(result["files"]) >= {"config.json", "model.safetensors", "card.json", "README.md", "SHA256SUMS"}
    assert (out / "system_prompt.txt").read_text(encoding="utf-8") == adapter.system
    check_sums(out)


WITHOUT_US = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("persona_lab"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
try:
    import persona_lab
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("it is not hidden")
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
turns = [{"role": "user", "content": sys.argv[2]}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=24, do_sample=False, repetition_penalty=1.0, pad_token_id=0)
assert not any(name.startswith("persona_lab") for name in sys.modules)
print(json.dumps(out[0, ids["input_ids"].shape[1]:].tolist()))
"""


@pytest.mark.parametrize("kind", ["adapter", "weights"], ids=["lora", "hybrid"])
def test_a_merged_folder_needs_no_persona_lab(
    kind: str,
    adapter: Variant,
    tmp_path: Path,
    home: Home,
    persona_factory: Callable[..., Persona],
    licensed: Path,
    reporter: Any,
) -> None:
    """In a process of its own that cannot import the package, transformers says what the variant says."""
    chosen = adapter
    if kind == "weights":  # what hybrid and full leave: a whole folder
        whole = Path(export(home, persona_factory(), adapter, "merged", tmp_path / "whole", reporter)["out"])
        chosen = variant(licensed, "weights", whole, strategy="hybrid")
    out = Path(export(home, persona_factory(), chosen, "merged", tmp_path / "out", reporter)["out"])
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_US, str(out), PROMPT[0].content],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    machine = worker_machine(home.root).model_copy(update={"device": "cpu", "bf16": False})
    tuned = load_variant(chosen, describe(str(licensed), home), machine)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == greedy(tuned, licensed)


def test_weights_are_copied_as_they_are(
    licensed: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    chosen = variant(licensed, "weights", licensed, strategy="full")
    out = Path(export(home, persona_factory(), chosen, "merged", tmp_path / "out", reporter)["out"])
    assert (out / "model.safetensors").read_bytes() == (licensed / "model.safetensors").read_bytes()
    assert "base_model_relation" in (out / "README.md").read_text(encoding="utf-8")


def test_adapter_loads_on_the_base_and_names_no_path_of_this_machine(
    adapter: Variant, licensed: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = export(home, persona_factory(), adapter, "adapter", tmp_path / "out", reporter)
    out = Path(result["out"])
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(licensed), out)
    machine = worker_machine(home.root).model_copy(update={"device": "cpu", "bf16": False})
    assert greedy(tuned, licensed) == greedy(load_variant(adapter, describe(str(licensed), home), machine), licensed)
    for name in ("README.md", "adapter_config.json"):
        assert str(tmp_path) not in (out / name).read_text(encoding="utf-8")
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert readme.startswith('---\nlibrary_name: "peft"\nbase_model: "licensed-base"\n')
    assert 'license: "apache-2.0"' in readme
    assert "````\nYou are ```Tamsin```.\n````" in readme
    assert json.loads((out / "card.json").read_text(encoding="utf-8"))["data"]["name"] == "Tamsin Quill"
    check_sums(out)


@pytest.mark.parametrize(
    ("form", "kind", "why"),
    [
        ("adapter", "base", "untrained"),
        ("adapter", "prompt", "only the prompt"),
        ("adapter", "weights", "Export it as `merged`"),
        ("merged", "base", "nothing to merge"),
        ("merged", "prompt", "only a prompt"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_a_reason(
    form: str,
    kind: str,
    why: str,
    licensed: Path,
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    with pytest.raises(BadInput, match=why):
        export(home, persona_factory(), variant(licensed, kind, licensed), form, tmp_path / "out", reporter)
    assert not (tmp_path / "out").exists()


def test_an_unknown_licence_blocks_the_export(
    tiny_model: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    chosen = variant(tiny_model, "weights", tiny_model)
    with pytest.raises(BadInput, match="licence of the base model"):
        export(home, persona_factory(), chosen, "merged", tmp_path / "out", reporter)
    base = describe(str(tiny_model), home)
    with pytest.raises(BadInput, match="licence"):
        license_of(base.model_copy(update={"license": "other"}))
    assert license_of(base.model_copy(update={"license": "mit"})) == {"license": "mit"}


def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(
    licensed: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    chosen = variant(licensed, "weights", licensed)
    out = tmp_path / "exports" / "out"
    out.mkdir(parents=True)
    (out / "diary.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(BadInput, match="is not empty"):
        export(home, persona_factory(), chosen, "merged", out, reporter)
    assert (out / "diary.txt").read_text(encoding="utf-8") == "precious"
    gone = variant(licensed, "weights", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="not at"):
        export(home, persona_factory(), gone, "merged", tmp_path / "exports" / "other", reporter)
    assert [p.name for p in (tmp_path / "exports").iterdir()] == ["out"]
    (out / "diary.txt").unlink()
    assert export(home, persona_factory(), chosen, "merged", out, reporter)["bytes"] > 0


def test_an_export_that_was_in_place_when_its_worker_was_killed_is_done_by_resuming(
    licensed: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    chosen, out = variant(licensed, "weights", licensed), tmp_path / "out"
    first = export(home, persona_factory(), chosen, "merged", out, reporter)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert export(home, persona_factory(), chosen, "merged", out, reporter) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (out / "SHA256SUMS").write_text("of something else\n", encoding="utf-8")
    with pytest.raises(BadInput, match="is not empty"):
        export(home, persona_factory(), chosen, "merged", out, reporter)


def test_a_hostile_name_stays_text_in_the_model_card(
    licensed: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path
) -> None:
    chosen = variant(licensed, "weights", licensed, name="<script>x</script>\n---\nlicense: mit")
    write_model_card(tmp_path, chosen, persona_factory(), describe(str(licensed), home), "transformers", "print()")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert text.count("\n---\n") == 1
