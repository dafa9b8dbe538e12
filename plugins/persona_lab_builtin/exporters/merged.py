"""A whole model folder that plain transformers loads: the adapter merged into the unquantised base, or full weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from persona_lab.api import BaseModelInfo, Exporter, Persona, Problem, Reporter, Variant

FLOAT32_BELOW = 1_000_000_000
"""Models with fewer weights are stored in float32, larger ones in bfloat16."""
_USAGE = """from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path(".")  # where you put these files
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = folder / "system_prompt.txt"
messages = [{"role": "system", "content": prompt.read_text(encoding="utf-8")}] if prompt.exists() else []
messages += [{"role": "user", "content": "Who are you?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**ids, max_new_tokens=120)
print(tokenizer.decode(reply[0][ids["input_ids"].shape[1]:], skip_special_tokens=True))"""


class MergedExporter(Exporter):
    """Writes safetensors, tokenizer, chat template, generation settings, the persona and a model card."""

    id = "merged"
    title = "Merged model (transformers)"
    summary = "A whole model folder that works without Persona Lab and without the adapter."
    rank = 20

    def check(self, variant: Variant) -> list[Problem]:
        """Variants without weights of their own cannot be merged; a 4-bit one is merged into other weights."""
        if variant.kind in ("base", "prompt"):
            why = "the base model, untrained" if variant.kind == "base" else "only a prompt, without weights of its own"
            return [
                Problem(
                    message=f"{variant.name!r} is {why}: there is nothing to merge.",
                    fix="Export the persona's card, or train a variant.",
                )
            ]
        if variant.quantization:
            return [
                Problem(
                    message="Trained on 4-bit weights, it is merged into the unquantised base, so its replies may "
                    "differ a little from those in the chat.",
                    severity="warning",
                )
            ]
        return []

    def estimate_bytes(self, variant: Variant, base: BaseModelInfo) -> int | None:
        """All weights: as they are, or merged in the type they will be stored in."""
        if variant.kind == "weights":
            return variant.bytes
        return base.parameters * (4 if base.parameters < FLOAT32_BELOW else 2) or None

    def export(self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: Reporter) -> list[Path]:
        """Write the model folder."""
        from persona_lab.api import copy_tokenizer, write_generation_config, write_model_card, write_persona_files

        if variant.kind == "weights":
            ctx.phase("Copying the weights", None)
            _copy_weights(variant, out)
            notes = ["All or part of the base's weights were trained; they are stored as training left them."]
        else:
            ctx.phase("Merging the adapter into the base", None)
            kind = _merge(variant, base, out)
            notes = [f"The adapter is merged into the base and stored in {kind}: coarser numbers would round it away."]
            if kind == "bfloat16":
                notes = ["The adapter is merged into the base and stored in bfloat16, which rounds it a little."]
        if variant.quantization:
            notes.append("It was trained on 4-bit (NF4) weights and is merged into the unquantised base.")
        copy_tokenizer(Path(base.path), out)
        write_generation_config(out, Path(base.path))
        write_persona_files(out, variant, persona)
        write_model_card(out, variant, persona, base, "transformers", _USAGE, notes)
        return sorted(path for path in out.iterdir() if path.is_file())


def _copy_weights(variant: Variant, out: Path) -> None:
    from persona_lab.api import BadInput

    source = Path(variant.path)
    files = [
        *sorted(source.glob("*.safetensors")),
        *sorted(source.glob("*.safetensors.index.json")),
        source / "config.json",
    ]
    if len(files) < 2 or not files[-1].is_file():
        raise BadInput(f"The weights of {variant.name!r} are not at {source} any more.", "Train the variant again.")
    for path in files:
        shutil.copyfile(path, out / path.name)


def _merge(variant: Variant, base: BaseModelInfo, out: Path) -> str:
    """Merge in float32, whatever the storage; returns the name of the type stored."""
    import torch

    from persona_lab.api import load_variant, merged_model, worker_machine

    unquantised = variant.model_copy(update={"quantization": None})
    exact = worker_machine(out).model_copy(
        update={"bf16": False}
    )  # loads in float32: bf16 would round base and adapter
    model: Any = load_variant(unquantised, base, exact)
    merged = merged_model(model.float())
    kind = torch.float32 if base.parameters < FLOAT32_BELOW else torch.bfloat16
    merged.to("cpu", kind).save_pretrained(out)
    return str(kind).removeprefix("torch.")
