"""`traits`: what sliders there are, what they do on a base model, computing them, and the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.common import BaseOption, HomeOption, JsonOption, SeedOption, follow, opened, require_done, show
from persona_lab.errors import BadInput

if TYPE_CHECKING:
    from persona_lab.types import TraitState

traits_app = typer.Typer(no_args_is_help=True, help="Sliders that pull a model towards a manner, with nothing trained.")
VariantOption = Annotated[str, typer.Option("--variant", help="A trained variant, for its own weights.")]


@traits_app.command("list")
def traits_list(
    base: BaseOption = "starter", variant: VariantOption = "", home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Every trait, and what it does on a base model or a variant."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        found = engine.traits(base, engine.variant(variant) if variant else None)
    rows = [
        (s.trait.id, s.trait.title, f"{s.trait.away_label} ... {s.trait.towards_label}", _status(s), _made(s))
        for s in found
    ]
    show([_document(s) for s in found], as_json, lambda: print_table(("id", "name", "-100 ... 100", "", ""), rows, ""))


@traits_app.command("show")
def traits_show(
    trait_id: str,
    base: BaseOption = "starter",
    variant: VariantOption = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """One trait: its descriptions and lines, and how it was measured on a base model."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        wanted = engine.trait(trait_id)
        found = engine.traits(base, engine.variant(variant) if variant else None)
    state = next(s for s in found if s.trait.id == wanted.id)
    document = _document(state) | state.trait.model_dump(mode="json")
    if state.calibration:
        document["calibration"] = state.calibration.model_dump(mode="json")

    def tell() -> None:
        rows = [(key, value) for key, value in document.items() if key != "calibration" and value not in (None, "")]
        print_table(("", ""), rows, "")
        if state.calibration:
            levels = [
                (f"{v.strength:+g}", f"{v.score:+.3f}", f"{v.bits_per_byte:.2f}", f"{v.repetition:.0%}")
                for v in state.calibration.levels
            ]
            print_table(("strength", "gain, nats a byte", "bits a byte", "repeated"), levels, "")

    show(document, as_json, tell)


@traits_app.command("compute")
def traits_compute(
    trait_ids: Annotated[list[str] | None, typer.Argument(help="Ids; see --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were not computed for this base yet.")] = False,
    base: BaseOption = "starter",
    variant: VariantOption = "",
    seed: SeedOption = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find a trait's vector on a base model, and what 100 is there: about a minute a trait on two cores."""
    with opened(home) as engine:
        names = list(trait_ids or ())
        who = engine.variant(variant) if variant else None
        if every:
            # a variant's own vectors are asked for: those of its base do not count
            states = engine.traits(base, who)
            names += [s.trait.id for s in states if s.trait.id not in names and (who or s.status == "not computed")]
            if not names:
                raise BadInput("Every trait was computed for this base already.", "Name those to compute again.")
        run = follow(engine, engine.compute_traits(names, base, variant, seed))
        require_done(run)
        found = [s for s in engine.traits(base, who) if s.trait.id in names]
    document = {"run": run.id, **run.result}

    def tell() -> None:
        for state in found:
            print(f"{state.trait.title} ({state.trait.id}): {_status(state)}.")

    show(document, as_json, tell)


@traits_app.command("add")
def traits_add(file: Path, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """A trait of your own from a JSON file; one of the same id is replaced."""
    from persona_lab.traits.library import read_file

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read: {error}.", "Name a JSON file in UTF-8.") from error
    with opened(home) as engine:
        made = engine.add_trait(read_file(text))
    note = f"{made.title} is kept as {made.id}. Compute it: persona-lab traits compute {made.id}."
    show(made, as_json, lambda: print(note))


@traits_app.command("delete")
def traits_delete(trait_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put one of your own traits aside; variants keep their copies."""
    with opened(home) as engine:
        engine.delete_trait(trait_id)
    note = f"{trait_id} was put aside until the next delete; the page can bring it back."
    show({"id": trait_id, "deleted": True}, as_json, lambda: print(note))


def _document(state: TraitState) -> dict[str, Any]:
    calibration = state.calibration
    return {
        "id": state.trait.id,
        "name": state.trait.title,
        "away": state.trait.away_label,
        "towards": state.trait.towards_label,
        "own": state.trait.own,
        "status": state.status,
        "steers_towards": calibration is not None and calibration.towards is not None,
        "steers_away": calibration is not None and calibration.away is not None,
        "layers": list(calibration.layers) if calibration else [],
    }


def _status(state: TraitState) -> str:
    calibration = state.calibration
    if calibration is None or not calibration.steers:
        return state.status
    if calibration.towards is None:
        return f"steers towards {state.trait.away_label} only"
    if calibration.away is None:
        return f"steers towards {state.trait.towards_label} only"
    return "ready"


def _made(state: TraitState) -> str:
    return "your own" if state.trait.own else ""
