"""A whole model folder that plain transformers loads: the adapter merged into the unquantised base, or full weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_lab.api import BaseModelInfo, ExportContext, Exporter, Persona, Problem, Variant

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
    keeps_traits = True

    def check(self, variant: Variant) -> list[Problem]:
        """Variants without weights of their own cannot be merged; a 4-bit one is merged into other weights."""
        from persona_lab.api import merged_warning

        if variant.kind in ("base", "prompt") and not variant.traits:
            why = "the base model, untrained" if variant.kind == "base" else "only a prompt, without weights of its own"
            return [
                Problem(
                    message=f"{variant.name!r} is {why}: there is nothing to merge.",
                    fix="Export the persona's card, or train a variant.",
                )
            ]
        return merged_warning(variant)

    def check_base(self, variant: Variant, base: BaseModelInfo, settings: Any) -> list[Problem]:
        """A pull along traits fits into some kinds of models only."""
        from persona_lab.api import pull_problems

        return pull_problems(variant, base)

    def estimate_bytes(self, variant: Variant, base: BaseModelInfo, settings: Any) -> int:
        """The weights."""
        from persona_lab.api import whole_model_bytes

        return whole_model_bytes(variant, base)

    def export(
        self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: ExportContext
    ) -> list[Path]:
        """Write the model folder."""
        from persona_lab.api import write_model_card, write_persona_files, write_whole_model

        notes = write_whole_model(variant, base, out, ctx)
        write_persona_files(out, variant, persona)
        write_model_card(
            out,
            variant,
            persona,
            base,
            "transformers",
            _USAGE,
            notes,
            ctx.metrics,
            dataset=ctx.dataset,
            report=ctx.report,
        )
        return sorted(path for path in out.iterdir() if path.is_file())
