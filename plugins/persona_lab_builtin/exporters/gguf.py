"""One file for llama.cpp and everything built on it: the merged weights, the tokenizer and the chat template."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from persona_lab.api import BadInput, BaseModelInfo, ExportContext, Exporter, Frozen, Persona, Problem, Variant

USAGE = """# llama.cpp: the system prompt is in system_prompt.txt
llama-cli -m {file} -sysf system_prompt.txt --temp 0.7 --top-p 0.9 --repeat-penalty 1.15"""


class GGUFConfig(Frozen):
    """Settings of exporters that write a GGUF file."""

    type: Literal["F16", "Q8_0", "Q5_0", "Q4_1", "Q4_0"] = Field(
        "Q8_0",
        description="How exactly weights are kept: F16 as they are, Q8_0 half of that with hardly a difference, Q4_0 a "
        "quarter with replies that differ.",
    )


class HoldsGGUF(Exporter):
    """What exporters with a GGUF file in them share. `instead`: what to take for a variant without weights."""

    Config = GGUFConfig
    keeps_traits = True
    instead: ClassVar[str] = "Export the persona's card, or train a variant."

    def check(self, variant: Variant) -> list[Problem]:
        """Only what has weights of its own."""
        from persona_lab.api import merged_warning

        if variant.kind in ("base", "prompt") and not variant.traits:
            why = "the base model, untrained" if variant.kind == "base" else "only a prompt, without weights of its own"
            return [Problem(message=f"{variant.name!r} is {why}: its file would be the base's.", fix=self.instead)]
        return merged_warning(variant)

    def check_base(self, variant: Variant, base: BaseModelInfo, settings: GGUFConfig) -> list[Problem]:
        """Kinds of models that would come out wrong."""
        from persona_lab.api import pull_problems

        return architecture_problems(base) + pull_problems(variant, base)

    def estimate_bytes(self, variant: Variant, base: BaseModelInfo, settings: GGUFConfig) -> int:
        """The file, and the merged model that is made on the way."""
        from persona_lab.api import estimate_gguf_bytes, whole_model_bytes

        return estimate_gguf_bytes(base.config, base.parameters, settings.type) + whole_model_bytes(variant, base)


class GGUFExporter(HoldsGGUF):
    """Merges, and writes F16, Q8_0 or a type of 4 or 5 bits."""

    id = "gguf"
    title = "GGUF (llama.cpp)"
    summary = "One file for llama.cpp, LM Studio, KoboldCpp and others."
    rank = 30
    instead = "Export it as `ollama`, where the prompt goes along, or train a variant."

    def export(
        self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: ExportContext
    ) -> list[Path]:
        """Write the file, the persona's files and a model card."""
        from persona_lab.api import write_model_card, write_persona_files

        path, notes = write_gguf_file(variant, persona, base, out, ctx)
        write_persona_files(out, variant, persona)
        usage = USAGE.format(file=path.name)
        ctx.use(usage)
        write_model_card(
            out, variant, persona, base, "gguf", usage, notes, ctx.metrics, dataset=ctx.dataset, report=ctx.report
        )
        return sorted(out.iterdir())


# --- shared by exporters with a GGUF file in them -------------------------------------------------


def architecture_problems(base: BaseModelInfo) -> list[Problem]:
    """Why a model of this kind cannot be written, if so."""
    from persona_lab.api import refuse_architecture

    if "model_type" not in base.config:
        return []
    try:
        refuse_architecture(base.config)
    except BadInput as error:
        return [Problem(message=error.message, fix=error.fix)]
    return []


def write_gguf_file(
    variant: Variant, persona: Persona, base: BaseModelInfo, folder: Path, ctx: ExportContext
) -> tuple[Path, list[str]]:
    """Merge, and write `<name>-<type>.gguf` into `folder`; gives its path and what its user must know."""
    from persona_lab.api import hub_name, license_of, slug, write_gguf, write_whole_model

    kind: str = ctx.settings.type
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged.") as work:
        notes = write_whole_model(variant, base, Path(work), ctx)
        name = f"{persona.name}, {variant.name}"
        details = {
            "general.license": license_of(base)["license"],
            "general.base_model.0.name": hub_name(base),
            "general.description": f"A character made with Persona Lab: {persona.name}.",
        }
        path = write_gguf(Path(work), folder / f"{slug(variant.name, 'model')}-{kind}.gguf", kind, ctx, name, details)
    return path, [*notes, f"The weights are written as {kind}."]
