"""A folder for Ollama: the GGUF file and a Modelfile with the template, the character, sampling and greeting.

Weights are merged: Ollama's own ADAPTER knows few kinds of models, and scales some adapters wrongly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from persona_lab.api import BaseModelInfo, ExportContext, Persona, Problem, Sampling, Variant
from persona_lab_builtin.exporters.gguf import GGUFConfig, HoldsGGUF, write_gguf_file

if TYPE_CHECKING:
    from persona_lab.api import GoTemplate

_USAGE = """cd THIS_FOLDER
ollama create {name} -f Modelfile
ollama run {name}"""


class OllamaConfig(GGUFConfig):
    """Settings of the Ollama folder."""

    greeting: bool = Field(True, description="Begin every chat with the character's first message.")
    context: int = Field(
        2048, ge=256, le=131072, description="Tokens of a conversation that the model remembers; at most what it can."
    )


class OllamaExporter(HoldsGGUF):
    """GGUF, Modelfile, persona and model card."""

    id = "ollama"
    title = "Ollama folder"
    summary = "Weights and Modelfile: `ollama create NAME -f Modelfile`, and the character talks."
    rank = 40
    Config = OllamaConfig

    def check(self, variant: Variant) -> list[Problem]:
        """A prompt that chooses its examples anew for each question cannot be written down."""
        from persona_lab.api import merged_warning

        if variant.kind == "prompt" and variant.path:
            return [
                Problem(
                    message=f"{variant.name!r} chooses its examples anew for each question, which Ollama cannot do.",
                    fix="Train a `prompt` variant with --set choose=fixed, or one with weights of its own.",
                )
            ]
        return merged_warning(variant)

    def export(
        self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: ExportContext
    ) -> list[Path]:
        """Write the folder. The template comes first: where it cannot be expressed, nothing heavy is begun."""
        from persona_lab.api import go_template, slug, write_model_card, write_persona_files

        template = go_template(Path(base.path))
        path, notes = write_gguf_file(variant, persona, base, out, ctx)
        _write(out, path.name, template, variant, persona, base, ctx.settings)
        write_persona_files(out, variant, persona)
        usage = _USAGE.format(name=slug(f"{persona.id}-{variant.name}", "character"))
        ctx.use(usage)
        write_model_card(
            out, variant, persona, base, "gguf", usage, notes, ctx.metrics, dataset=ctx.dataset, report=ctx.report
        )
        return sorted(out.iterdir())


def _write(
    out: Path,
    weights: str,
    template: GoTemplate,
    variant: Variant,
    persona: Persona,
    base: BaseModelInfo,
    settings: OllamaConfig,
) -> None:
    from persona_lab.api import ChatRenderer, Modelfile, greeting, license_of, write_modelfile

    renderer, sampling = ChatRenderer(Path(base.path)), Sampling()
    stops = [renderer.decode([token], skip_special=False) for token in renderer.eos_ids]
    messages = [(m.role, m.content) for example in variant.examples for m in example.messages if m.role != "system"]
    first = greeting(persona) if settings.greeting else ""
    if first:
        messages.append(("assistant", first))
    parameters: list[tuple[str, str | int | float]] = [
        ("num_ctx", min(settings.context, renderer.context_length)),
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("repeat_penalty", sampling.repetition_penalty),
        ("num_predict", sampling.max_new_tokens * 4),
        *(("stop", stop) for stop in dict.fromkeys(stops) if stop),
    ]
    write_modelfile(
        out / "Modelfile",
        Modelfile(
            source=f"./{weights}",
            template=template.text(),
            system=variant.system if variant.prompt_mode == "card" else "",
            parameters=parameters,
            messages=messages,
            license=license_of(base)["license"],
            comments=(f"{persona.name}, made with Persona Lab from {base.name}",),
        ),
    )
