"""A model for llama.cpp without the variant's trait sliders, and what they add as a control vector beside it."""

from __future__ import annotations

from pathlib import Path

from persona_lab.api import BaseModelInfo, ExportContext, Persona, Problem, Variant
from persona_lab_builtin.exporters.gguf import GGUFConfig, HoldsGGUF, architecture_problems, write_gguf_file

_USAGE = """# llama.cpp: 1.0 pulls as far as the variant is pulled, 0.5 half as far (older builds: {vector} 1.0)
llama-cli -m {model} --control-vector-scaled {vector}:1.0 \\
  {prompt}--temp 0.7 --top-p 0.9 --repeat-penalty 1.15"""


class ControlVectorExporter(HoldsGGUF):
    """Writes `<name>-<type>.gguf` without the pull, and `<name>-control-vector.gguf`."""

    id = "control-vector"
    title = "GGUF and control vector (llama.cpp)"
    summary = "The model without its trait sliders, and their pull beside it: llama.cpp adds it, as far as you like."
    rank = 35

    def check(self, variant: Variant) -> list[Problem]:
        """Only what is pulled along traits."""
        from persona_lab.api import control_vector_problems, merged_warning

        return control_vector_problems(variant) or merged_warning(variant)

    def check_base(self, variant: Variant, base: BaseModelInfo, settings: GGUFConfig) -> list[Problem]:
        """Kinds of models that would come out wrong. A pull needs no place in the weights here."""
        return architecture_problems(base)

    def export(
        self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: ExportContext
    ) -> list[Path]:
        """Write both files, the persona's and a model card. The vector comes first: where it is refused, nothing heavy
        is begun."""
        from persona_lab.api import slug, write_control_vector, write_model_card, write_persona_files

        vector = out / f"{slug(variant.name, 'model')}-control-vector.gguf"
        note = write_control_vector(variant, base, vector)
        plain = variant.model_copy(update={"traits": {}, "steering": ""})
        path, notes = write_gguf_file(plain, persona, base, out, ctx)
        write_persona_files(out, variant, persona)
        prompt = "-sysf system_prompt.txt " if variant.system else ""
        usage = _USAGE.format(model=path.name, vector=vector.name, prompt=prompt)
        ctx.use(usage)
        notes = [*notes, note]
        write_model_card(
            out, variant, persona, base, "gguf", usage, notes, ctx.metrics, dataset=ctx.dataset, report=ctx.report
        )
        return sorted(out.iterdir())
