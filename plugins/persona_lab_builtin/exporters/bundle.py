"""Everything for LM Studio and KoboldCpp in one folder: the character card as PNG, the GGUF file where those programs
look for it, and a page that says what to click."""

from __future__ import annotations

from pathlib import Path

from persona_lab.api import BaseModelInfo, ExportContext, Persona, Variant
from persona_lab_builtin.exporters.gguf import HoldsGGUF, write_gguf_file

_HOW = """# {name}: how to talk to it

`{card}` is the character card: a picture with the character inside. `{weights}` are the model's weights.

## LM Studio

1. Copy the folder `{publisher}` into LM Studio's models folder (My Models, the three dots, Open in File Explorer).
2. Load `{model}`. Its chat template is in the file.
3. Paste `system_prompt.txt` into the chat's System Prompt, and set Temperature 0.7, Top P 0.9, Repeat Penalty 1.15.

## KoboldCpp

1. `koboldcpp --model {weights} --contextsize {context} --chatcompletionsadapter AutoGuess`
2. In the page it opens: Settings, Instruct Mode; then drop `{card}` onto the window (or Load, Import Character Card).

## SillyTavern

1. Start KoboldCpp as above, or `persona-lab serve-api VARIANT`, and connect to it under API.
2. Characters, Import, and choose `{card}`.
"""


class BundleExporter(HoldsGGUF):
    """Card PNG, GGUF in `publisher/model/`, HOW-TO, persona and model card."""

    id = "bundle"
    title = "Bundle (LM Studio, KoboldCpp)"
    summary = "The card as a picture, the weights, and a page that says what to click."
    rank = 50

    def export(
        self, variant: Variant, persona: Persona, base: BaseModelInfo, out: Path, ctx: ExportContext
    ) -> list[Path]:
        """Write the folder."""
        from persona_lab.api import card_png, slug, write_atomic, write_model_card, write_persona_files

        publisher, model = "persona-lab", slug(f"{persona.id}-{variant.name}", "character")
        path, notes = write_gguf_file(variant, persona, base, out / publisher / model, ctx)
        card = f"{slug(persona.name, 'character')}.png"
        write_atomic(out / card, card_png(persona))
        write_persona_files(out, variant, persona)
        context = int(base.config.get("max_position_embeddings") or 2048)
        weights = path.relative_to(out).as_posix()
        write_atomic(
            out / "HOW-TO.md",
            _HOW.format(
                name=" ".join(persona.name.split()),
                card=card,
                weights=weights,
                publisher=publisher,
                model=model,
                context=min(context, 4096),
            ),
        )
        usage = f"koboldcpp --model {weights} --chatcompletionsadapter AutoGuess  # HOW-TO.md says the rest"
        write_model_card(
            out, variant, persona, base, "gguf", usage, notes, ctx.metrics, dataset=ctx.dataset, report=ctx.report
        )
        return sorted(path for path in out.rglob("*") if path.is_file())
