"""`models` and `variants`: what the home holds. Personas and datasets have files of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from persona_lab.cli.common import (
    HomeOption,
    JsonOption,
    follow,
    opened,
    require_done,
    show,
)

models_app = typer.Typer(no_args_is_help=True, help="Base models.")
variants_app = typer.Typer(no_args_is_help=True, help="What was made.")


# --- models ---------------------------------------------------------------------------------------


@models_app.command("list")
def models_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The starter, and every base model in the data folder."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.models()
    rows = [
        (m.id, m.name, f"{m.parameters / 1e6:.0f} M", m.license, "ready" if m.ready else "not fetched") for m in found
    ]
    columns = ("id", "name", "parameters", "licence", "")
    show(found, as_json, lambda: print_table(columns, rows, "None."))


@models_app.command("fetch")
def models_fetch(name: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Fetch and convert a base model, once."""
    with opened(home) as engine:
        run = follow(engine, engine.fetch_model(name))
        require_done(run)
    show(
        run.result["model"],
        as_json,
        lambda: print(f"{run.result['model']['name']} is ready: {run.result['model']['path']}"),
    )


@models_app.command("delete")
def models_delete(model_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put a kept foundation aside; refused while variants need it."""
    with opened(home) as engine:
        engine.delete_model(model_id)
    note = f"{model_id} was put aside until the next delete; the page can bring it back."
    show({"id": model_id, "deleted": True}, as_json, lambda: print(note))


# --- variants -------------------------------------------------------------------------------------


@variants_app.command("list")
def variants_list(
    persona: Annotated[str | None, typer.Option("--persona")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was made, newest first."""
    from persona_lab.cli.terminal import print_table, size

    with opened(home, readonly=True) as engine:
        found = engine.variants(persona)
    rows = [(v.id, v.name, v.persona, v.strategy, v.base, size(v.bytes), v.created[:19]) for v in found]
    columns = ("id", "name", "persona", "strategy", "base", "size", "created")
    documents = [v.model_dump(mode="json", exclude={"examples", "system"}) for v in found]
    show(
        documents,
        as_json,
        lambda: print_table(columns, rows, "None yet: persona-lab train --persona ID --strategy lora."),
    )


@variants_app.command("show")
def variants_show(variant_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """One variant: what it is made of."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        variant = engine.variant(variant_id)
    rows = [(key, value) for key, value in variant.model_dump(mode="json", exclude={"examples"}).items() if value]
    show(variant, as_json, lambda: print_table(("", ""), rows, ""))


@variants_app.command("delete")
def variants_delete(variant_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put a variant aside."""
    with opened(home) as engine:
        engine.delete_variant(variant_id)
    note = f"{variant_id} was put aside until the next delete; the page can bring it back."
    show({"id": variant_id, "deleted": True}, as_json, lambda: print(note))


@variants_app.command("merge")
def variants_merge(
    variant_id: str,
    blend: Annotated[str, typer.Option("--blend", help="Weights of its aspects: voice=1,mood=0.5.")] = "",
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Cut the sum to this rank; default: exact.")] = None,
    name: Annotated[str, typer.Option("--name", help="A name for the new variant.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A blend of a variant's aspects as a new variant with one ordinary adapter."""
    from persona_lab.datasets.aspects import parse_weights

    with opened(home) as engine:
        made = engine.merge_aspects(variant_id, parse_weights(blend), rank, name)
    lost = f", {made.merged['error']:.2%} of the update lost" if rank else ", exact"
    show(made, as_json, lambda: print(f"Variant {made.id} is ready: {made.name}{lost}."))


@variants_app.command("steer")
def variants_steer(
    variant_id: str,
    traits: Annotated[str, typer.Option("--traits", help="Trait sliders from -100 to 100: grumpy=60,archaic=-30.")],
    name: Annotated[str, typer.Option("--name", help="A name for the new variant.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """A variant (or `base-PERSONA`) with its trait sliders set, as a new variant; nothing is trained."""
    from persona_lab.inference.trait_files import parse_traits

    with opened(home) as engine:
        made = engine.save_steered(variant_id, parse_traits(traits), name)
    show(made, as_json, lambda: print(f"Variant {made.id} is ready: {made.name}."))
