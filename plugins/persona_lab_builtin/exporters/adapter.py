"""The adapter alone: small, and of use to whoever has the same base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from persona_lab.api import BaseModelInfo, ExportContext, Exporter, Persona, Problem, Variant

_USAGE = """from pathlib import Path
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = Path(".")  # where you put these files
model = AutoPeftModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = folder / "system_prompt.txt"
messages = [{"role": "system", "content": prompt.read_text(encoding="utf-8")}] if prompt.exists() else []
messages += [{"role": "user", "content": "Who are you?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**ids, max_new_tokens=120, do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.15)
print(tokenizer.decode(reply[0][ids["input_ids"].shape[1]:], skip_special_tokens=True))"""


class AdapterExporter(Exporter):
    """Copies the LoRA adapter (safetensors), the tokenizer, the persona and a model card."""

    id = "adapter"
    title = "Adapter (PEFT)"
    summary = "The small LoRA file alone, for people who have the same base model."
    rank = 10

    def check(self, variant: Variant) -> list[Problem]:
        """Only variants that have an adapter can be exported so."""
        if variant.kind == "adapter" and variant.anchor:
            message = (
                f"The adapter of {variant.name!r} fits only the foundation {variant.base!r}, which nobody else has."
            )
            return [Problem(message=message, fix="Export it as `merged`.")]
        if variant.kind == "adapter":
            return []
        why = {
            "base": "it is the base model, untrained",
            "prompt": "it changes only the prompt and has no weights of its own",
            "weights": "it has whole weights, not an adapter",
        }[variant.kind]
        fix = (
            "Export it as `merged`." if variant.kind == "weights" else "Export the persona's card, or train a variant."
        )
        return [Problem(message=f"{variant.name!r} has no adapter: {why}.", fix=fix)]

    def estimate_bytes(self, variant: Variant, base: BaseModelInfo, settings: Any) -> int:
        """The adapter and the tokenizer."""
        folders = ((Path(variant.path), "adapter_model*.safetensors"), (Path(base.path), "tokenizer*.json"))
        return sum(path.stat().st_size for folder, pattern in folders for path in folder.glob(pattern))

    def export(
        self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: ExportContext
    ) -> list[Path]:
        """Write the adapter's folder. Paths of this machine are taken out of its configuration."""
        from persona_lab.api import BadInput, copy_tokenizer, hub_name, write_model_card, write_persona_files

        source = Path(variant.path)
        weights = sorted(source.glob("adapter_model*.safetensors"))
        if not weights or not (source / "adapter_config.json").is_file():
            raise BadInput(f"The adapter of {variant.name!r} is not at {source} any more.", "Train the variant again.")
        ctx.phase("Copying the adapter", None)
        files = [Path(shutil.copyfile(path, out / path.name)) for path in weights]
        config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = hub_name(base)
        (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        notes = ["It was trained on 4-bit (NF4) weights of the base."] if variant.quantization else []
        return [
            *files,
            out / "adapter_config.json",
            *copy_tokenizer(Path(base.path), out),
            *write_persona_files(out, variant, persona),
            write_model_card(
                out,
                variant,
                persona,
                base,
                "peft",
                _USAGE,
                notes,
                ctx.metrics,
                dataset=ctx.dataset,
                report=ctx.report,
            ),
        ]
