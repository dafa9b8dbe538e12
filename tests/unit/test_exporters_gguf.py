"""GGUF files say in llama.cpp what the merged model says; Ollama's folder is read back; what cannot be is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_exporters import check_sums, export, variant

from persona_lab.errors import BadInput
from persona_lab.export import llama_cpp
from persona_lab.export.check import round_trip
from persona_lab.export.gguf_file import refuse_architecture, write_gguf
from persona_lab.export.gguf_tokenizer import pre_tokenizer_name, read_vocabulary
from persona_lab.export.modelfile import go_template, parse_modelfile
from persona_lab.export.run import run as run_export
from persona_lab.export.toolkit import license_of, with_stated_license
from persona_lab.home import Home
from persona_lab.models.gguf import convert_gguf, read_gguf
from persona_lab.models.machine import worker_machine
from persona_lab.models.registry import describe
from persona_lab.personas.cards import read_card
from persona_lab.plugins import Plugins
from persona_lab.testing import Watcher, Workshop
from persona_lab.types import ExportOrder, Job, Message, Metric, Persona, Variant

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def trained(tiny_model_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Variant]:
    """Makes (once each) a LoRA variant whose update is large, on a licensed copy of a tiny model."""
    made: dict[str, Variant] = {}

    def make(architecture: str, **config: Any) -> Variant:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from persona_lab.training.lora import attach_lora

        name = f"{architecture}{'-'.join(config)}"
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp("trained") / name
        shutil.copytree(tiny_model_of(architecture), folder)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(3)
            if config:
                whole = AutoConfig.from_pretrained(folder)
                for key, value in config.items():
                    setattr(whole, key, value)
                (folder / "model.safetensors").unlink()
                AutoModelForCausalLM.from_config(whole, dtype=torch.float32).save_pretrained(folder)
            model = attach_lora(AutoModelForCausalLM.from_pretrained(folder), rank=4, alpha=8, targets="all-linear")
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.2)
        model.save_pretrained(folder.parent / f"{name}-adapter")
        made[name] = variant(folder, "adapter", folder.parent / f"{name}-adapter")
        return made[name]

    return make


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE}),
        ("mistral", {"sliding_window": 256}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
    ids=["llama", "llama3-untied", "mistral", "qwen2", "qwen3"],
)
def test_f16_says_in_llama_cpp_what_the_variant_says(
    architecture: str,
    config: dict[str, Any],
    trained: Callable[..., Variant],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    chosen = trained(architecture, **config)
    result = export(home, persona_factory(), chosen, "gguf", tmp_path / "out", reporter, config={"type": "F16"})
    checked = result["check"]
    assert "llama.cpp" in checked["loaded_with"]
    assert checked["probes"] == 8
    assert checked["same_tokenization"] == 8
    # llama.cpp rounds activations to F16 too, and a random model is so undecided that now and then it shows
    assert checked["same_replies"] >= 5, json.dumps(checked["rows"], indent=1)
    assert checked["mean_loglikelihood"]["relative_difference"] < 1e-3
    assert checked["good"]
    assert checked["rows"][0]["variant"], "it says something"
    assert set(result["files"]) >= {"tamsin_one-F16.gguf", "card.json", "README.md", "check.json", "SHA256SUMS"}
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    check_sums(tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Checked after export" in readme
    assert 'base_model_relation: "quantized"' in readme


def pulled(chosen: Variant, folder: Path) -> Variant:
    """The variant, pulled hard along a random vector that it has a copy of."""
    import numpy

    from persona_lab.inference.trait_files import KeptTrait, write_kept
    from persona_lab.traits.library import shipped
    from persona_lab.types import TraitCalibration

    found = TraitCalibration(
        layers=(0, 1), towards=12.0, away=12.0, unsteered_bits_per_byte=1.0, unsteered_repetition=0.0
    )
    vectors = {layer: numpy.random.default_rng(layer).normal(size=64).astype(numpy.float32) for layer in (0, 1)}
    write_kept(folder / "grumpy.safetensors", KeptTrait(shipped()[0], found, vectors))
    return chosen.model_copy(update={"traits": {"grumpy": 50.0}, "steering": str(folder)})


@pytest.mark.parametrize("format", ["gguf", "merged"])
@pytest.mark.parametrize("kind", ["adapter", "prompt"])
def test_a_pull_along_traits_is_in_the_weights(
    format: str,
    kind: str,
    trained: Callable[..., Variant],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    chosen = trained("llama")
    if kind == "prompt":
        chosen = chosen.model_copy(update={"kind": "prompt", "path": ""})
    config = {"type": "F16"} if format == "gguf" else {}
    found = {}
    for name, who in (("plain", chosen), ("pulled", pulled(chosen, tmp_path / "vectors"))):
        if name == "plain" and kind == "prompt":
            continue  # the base's own file, which is refused
        result = export(home, persona_factory(), who, format, tmp_path / name, reporter, config=config)
        assert result["check"]["mean_loglikelihood"]["relative_difference"] < 1e-3, result["check"]["verdict"]
        assert result["check"]["good"]
        found[name] = [row["export"] for row in result["check"]["rows"]]
    if kind == "adapter":
        assert not any(a == b for a, b in zip(found["plain"], found["pulled"], strict=True))
    readme = (tmp_path / "pulled" / "README.md").read_text(encoding="utf-8")
    assert "grumpy +50" in readme


def test_a_pull_that_has_no_place_is_refused(
    trained: Callable[..., Variant], persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    chosen = pulled(trained("qwen2"), tmp_path / "vectors")
    with pytest.raises(BadInput, match="'qwen2' has no place"):
        export(home, persona_factory(), chosen, "merged", tmp_path / "out", reporter)


@pytest.mark.parametrize(("kind", "off"), [("Q8_0", 0.01), ("Q4_0", 0.2)])
def test_rounded_types_are_smaller_and_close(
    kind: str,
    off: float,
    trained: Callable[..., Variant],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    chosen = trained("llama")
    result = export(home, persona_factory(), chosen, "gguf", tmp_path / "out", reporter, config={"type": kind})
    assert result["check"]["mean_loglikelihood"]["relative_difference"] < off
    size = next((tmp_path / "out").glob("*.gguf")).stat().st_size
    whole = (Path(chosen.base) / "model.safetensors").stat().st_size
    assert size < whole * (0.6 if kind == "Q8_0" else 0.5)
    assert result["estimated_bytes"] > size


@pytest.mark.parametrize("strategy", ["lora", "qlora", "hybrid"])
def test_what_each_strategy_really_leaves_loads_in_llama_cpp(strategy: str, tiny_model: Path, tmp_path: Path) -> None:
    """Trained by the strategy itself. On the real starter: benchmarks/export_check.py."""
    shop = Workshop(tmp_path / "shop", Plugins.load(tmp_path / "none"), tiny_model)
    settings = {"lora_learning_rate": 5e-3, "learning_rate": 2e-3} if strategy == "hybrid" else {"learning_rate": 5e-3}
    shop.train(strategy, run_id="trained", epochs=2, samples=0, **settings)
    chosen = shop.variant("trained")
    assert chosen.kind == ("weights" if strategy == "hybrid" else "adapter")
    for kind, off in (("F16", 1e-3), ("Q8_0", 0.01)):
        job = Job(
            id=f"export-{kind}",
            kind="export",
            name="test",
            home=str(shop.home.root),
            created="",
            persona=shop.persona,
            dataset=str(shop.dataset()),
            variants=(chosen,),
            config={"type": kind},
            format="gguf",
            out=str(tmp_path / kind),
            export=ExportOrder(license="mit"),
        )
        checked = run_export(job, Watcher(), shop.plugins)["check"]
        assert "llama.cpp" in checked["loaded_with"]
        assert checked["same_tokenization"] == checked["probes"] == 8
        assert checked["mean_loglikelihood"]["relative_difference"] < off
        assert kind != "F16" or checked["same_replies"] >= 5, json.dumps(checked["rows"], indent=1)


def test_without_llama_cpp_transformers_reads_the_file_and_says_so(
    trained: Callable[..., Variant],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    chosen = trained("llama")
    result = export(home, persona_factory(), chosen, "gguf", tmp_path / "out", reporter, config={"type": "F16"})
    assert "transformers" in result["check"]["loaded_with"]
    assert "llama.cpp is not installed" in result["check"]["verdict"]
    assert result["check"]["mean_loglikelihood"]["relative_difference"] < 1e-3


def test_a_wrong_file_is_noticed(
    trained: Callable[..., Variant], persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    """The base's weights in the place of the variant's."""
    chosen = trained("llama")
    write_gguf(Path(chosen.base), tmp_path / "wrong-F16.gguf", "F16", reporter)
    base, machine = describe(chosen.base, home), worker_machine(home.root)
    checked = round_trip(tmp_path, chosen, persona_factory(), base, (), machine, reporter)
    assert checked is not None
    assert not checked["good"]
    assert checked["same_replies"] == 0


def test_ollama_folder_is_read_back(
    trained: Callable[..., Variant], persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    persona = persona_factory(first_mes='"Mind the stair," she said.\nIt was drawn from memory, {{user}}.')
    chosen = trained("llama").model_copy(update={"system": 'You are "Tamsin".\n\nAlways.'})
    result = export(home, persona, chosen, "ollama", tmp_path / "out", reporter)
    read = parse_modelfile((tmp_path / "out" / "Modelfile").read_text(encoding="utf-8"))
    assert (tmp_path / "out" / read.source).is_file()
    assert read.system == chosen.system
    assert read.messages == [("assistant", '"Mind the stair," she said.\nIt was drawn from memory, User.')]
    assert ("stop", "<|im_end|>") in read.parameters
    assert dict(read.parameters)["num_ctx"] == 512, "no more than the model can"
    assert read.license == "apache-2.0"
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in read.template
    assert read.template.endswith("<|im_start|>assistant\n")
    assert result["check"]["mean_loglikelihood"]["relative_difference"] < 0.01


def test_a_fixed_prompt_becomes_messages_and_a_choosing_one_is_refused(
    trained: Callable[..., Variant],
    persona_factory: Callable[..., Persona],
    conversations_factory: Callable[..., Any],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    base = trained("llama").base
    shown = variant(base, "prompt", examples=tuple(conversations_factory(1)))
    export(home, persona_factory(), shown, "ollama", tmp_path / "out", reporter)
    read = parse_modelfile((tmp_path / "out" / "Modelfile").read_text(encoding="utf-8"))
    assert [role for role, _ in read.messages] == ["user", "assistant", "assistant"]
    with pytest.raises(BadInput, match="anew for each question"):
        export(home, persona_factory(), variant(base, "prompt", base), "ollama", tmp_path / "other", reporter)


def test_bundle_holds_a_card_png_and_the_weights_where_programs_look(
    trained: Callable[..., Variant], persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    result = export(home, persona_factory(), trained("llama"), "bundle", tmp_path / "out", reporter)
    assert read_card(tmp_path / "out" / "tamsin_quill.png").card["data"]["name"] == "Tamsin Quill"
    assert "persona-lab/tamsin-tamsin_one/tamsin_one-Q8_0.gguf" in result["files"]
    how = (tmp_path / "out" / "HOW-TO.md").read_text(encoding="utf-8")
    assert "LM Studio" in how
    assert "tamsin_one-Q8_0.gguf" in how
    assert result["check"]["same_tokenization"] == 8


def test_the_model_card_names_data_and_measurements(
    trained: Callable[..., Variant], persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    metric = Metric(
        evaluator="voice", metric="likeness", value=0.5, low=0.4, high=0.6, n=30, unit="share", better="higher"
    )
    dataset = {"name": "letters", "conversations": 12, "fingerprint": "abc", "source": "/home/me/letters.jsonl"}
    order = ExportOrder(dataset=dataset, metrics=(metric,), report="tamsin-eval-1", check=False)
    result = export(home, persona_factory(), trained("llama"), "adapter", tmp_path / "out", reporter, export=order)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "letters: 12 conversations, from letters.jsonl, fingerprint `abc`" in text
    assert "| voice likeness | 0.500 | 0.400 to 0.600 | 30 | share |" in text
    assert "tamsin-eval-1" in text
    assert "/home/me" not in text
    assert result["check"] is None


def test_a_stated_licence_is_told_as_stated(
    tiny_model: Path, persona_factory: Callable[..., Persona], home: Home, tmp_path: Path, reporter: Any
) -> None:
    chosen = variant(tiny_model, "weights", tiny_model)
    order = ExportOrder(license="mit", check=False)
    export(home, persona_factory(), chosen, "merged", tmp_path / "out", reporter, export=order)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'license: "mit"\n' in text
    assert "whoever exported this states that it is `mit`" in text
    base = describe(str(tiny_model), home)
    with pytest.raises(BadInput, match="not a licence"):
        with_stated_license(base, "do what you want")
    with pytest.raises(BadInput, match="it is mit, not"):
        with_stated_license(base.model_copy(update={"license": "mit"}), "apache-2.0")
    assert license_of(with_stated_license(base, "mit")) == {"license": "mit"}


def test_what_would_come_out_wrong_is_refused(
    tiny_model_of: Callable[[str], Path],
    persona_factory: Callable[..., Persona],
    home: Home,
    tmp_path: Path,
    reporter: Any,
) -> None:
    base = tmp_path / "gemma"
    shutil.copytree(tiny_model_of("gemma"), base)
    (base / "README.md").write_text("---\nlicense: gemma\n---\n", encoding="utf-8")
    with pytest.raises(BadInput, match="'gemma' cannot be written as GGUF"):
        export(home, persona_factory(), variant(base, "weights", base), "gguf", tmp_path / "out", reporter)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="'yarn'"):
        refuse_architecture({"model_type": "llama", "rope_scaling": {"type": "yarn"}})
    with pytest.raises(BadInput, match="sliding window"):
        refuse_architecture({"model_type": "qwen2", "use_sliding_window": True})


def test_pre_tokenizers_are_named_by_their_rules(tiny_model: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny_model / "tokenizer.json").read_text(encoding="utf-8"))
    assert pre_tokenizer_name(raw) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, raw["pre_tokenizer"]]}
    assert pre_tokenizer_name(raw) == "smollm"
    with pytest.raises(BadInput, match="not known here"):
        pre_tokenizer_name(raw | {"pre_tokenizer": {"type": "Whitespace"}})
    folder = tmp_path / "t"
    shutil.copytree(tiny_model, folder)
    raw["model"]["byte_fallback"] = True
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(BadInput, match="no byte-level BPE"):
        read_vocabulary(folder, 600)


def test_a_gguf_that_was_converted_and_written_again_keeps_its_pre_tokenizer(
    tiny_model: Path, tmp_path: Path, reporter: Any
) -> None:
    first = write_gguf(tiny_model, tmp_path / "a.gguf", "F16", reporter)
    (tmp_path / "folder").mkdir()
    convert_gguf(first, tmp_path / "folder", reporter)
    second = write_gguf(tmp_path / "folder", tmp_path / "b.gguf", "F16", reporter)
    one, two = read_gguf(first).metadata, read_gguf(second).metadata
    kept = [name for name in one if name.startswith(("tokenizer.", "llama."))]
    assert {name: two.get(name) for name in kept} == {name: one[name] for name in kept}


# --- the Modelfile --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SYSTEM hi", "no FROM"),
        ("FROM x\nSHOUT hi", "'SHOUT' is no instruction"),
        ("FROM x\nPARAMETER loudness 3", "'loudness' is no parameter"),
        ("FROM x\nPARAMETER top_k many", "must be a number"),
        ("FROM x\nMESSAGE narrator hi", "'narrator' is no role"),
        ('FROM x\nSYSTEM """hi\nthere', "does not end"),
    ],
)
def test_the_modelfile_grammar_is_strict(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        parse_modelfile(text)


def test_the_modelfile_grammar_takes_ollamas_own_example() -> None:
    read = parse_modelfile(
        "# a comment\nFROM llama3.2\nPARAMETER temperature 1\nparameter num_ctx 4096\n"
        'PARAMETER stop "AI assistant:"\n\n'
        "SYSTEM You are Mario from super mario bros, acting as an assistant.\n"
        'TEMPLATE """{{ .System }}\n{{ .Prompt }}"""\n'
        "MESSAGE user Is Toronto in Canada?\nMESSAGE assistant yes\n"
    )
    assert read.source == "llama3.2"
    assert read.parameters == [("temperature", 1.0), ("num_ctx", 4096), ("stop", "AI assistant:")]
    assert read.template == "{{ .System }}\n{{ .Prompt }}"
    assert read.messages == [("user", "Is Toronto in Canada?"), ("assistant", "yes")]


TEMPLATES = {
    "chatml": None,
    "smollm": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe nice<|im_end|>\n"
        "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_go_templates_do_what_the_models_own_does(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(tiny_model, folder)
    if TEMPLATES[name]:
        (folder / "chat_template.jinja").write_text(str(TEMPLATES[name]), encoding="utf-8")
    found = go_template(folder)
    said = found.render([Message(role="system", content="S"), Message(role="user", content="U")])
    assert said.index("S") < said.index("U") < len(said) - 5
    assert ("index .Messages 0" in found.text()) == (name == "smollm")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m['content'] | trim | upper }}{% endfor %}",
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}",
        "{% for m in messages %}[{{ m['role'] }}{{ loop.index }}]{{ m['content'] }}{% endfor %}",
    ],
)
def test_templates_that_do_more_are_refused(source: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    with pytest.raises(BadInput, match="chat template"):
        go_template(folder)
