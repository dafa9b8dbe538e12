"""A base model writes the prompts of a document's passages, in a worker: stopped, gone on with, taken as a version."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persona_lab.backtranslation import PROMPTS_FILE, read_prompts
from persona_lab.datasets.documents import CONTINUATION, INSTRUCTION
from persona_lab.datasets.instructions import BY_MODEL
from persona_lab.engine import Engine
from persona_lab.errors import BadInput
from persona_lab.home import Home
from persona_lab.types import Dataset, Persona

SUBJECTS = {
    "lighthouse": "The lighthouse has a green railing, and my grandmother painted it every spring before it rained.",
    "violin": "I learned the violin from a sailor who had only three strings and did not miss the fourth.",
    "orchard": "There were eleven apple trees in the orchard, and each of them had a name and a grudge.",
    "ferry": "The ferry left when the captain had finished his tea, and the timetable learned to live with it.",
    "bakery": "At the bakery they sold the burnt loaves cheaper, and we grew up thinking that bread was black.",
    "school": "Our school had one stove and two teachers, and whoever sat near the stove learned the most.",
}


@pytest.fixture
def written(starter_home: Home, tmp_path: Path) -> Iterator[tuple[Engine, Dataset]]:
    """An engine on a home with the starter, and a document of some passages."""
    home = Home.resolve(tmp_path / "home")
    home.model("starter").parent.mkdir(parents=True, exist_ok=True)
    home.model("starter").symlink_to(starter_home.model("starter"), target_is_directory=True)
    file = tmp_path / "memories.txt"
    file.write_text("\n\n".join(f"{text} {_more(thing)}" for thing, text in SUBJECTS.items() for _ in (0, 1)))
    with Engine.open(home.root) as engine:
        engine.save_persona(Persona(id="ada", name="Ada", card={"data": {"name": "Ada"}}))
        yield engine, engine.dataset(engine.import_dataset(file, "ada").id)


def _more(thing: str) -> str:
    return " ".join(
        f"People ask me about the {thing} {when}, and I tell them that it was smaller than they think." for when in (
            "on Sundays", "in the winter", "after church", "when it rains", "at weddings",
        )
    )  # fmt: skip


@pytest.mark.slow
def test_prompts_are_written_stopped_gone_on_with_and_taken_once(written: tuple[Engine, Dataset]) -> None:
    engine, before = written
    asked = [c for c in before.conversations if c.made == INSTRUCTION]
    assert len(asked) >= 4
    run = engine.write_prompts(before.id)
    folder = engine.home.run(run)
    while engine.run(run).status == "queued":
        time.sleep(0.05)
    engine.stop(run)
    assert engine.wait(run).status == "cancelled"
    assert engine.datasets("ada")[0].id == before.id, "a stopped run changes nothing"

    # as if it had been killed while it wrote its second row
    (folder / PROMPTS_FILE).write_text(json.dumps({"id": asked[0].id, "prompt": "What of it?"}) + '\n{"id": "x')
    engine.resume(run)
    done = engine.wait(run)
    assert done.status == "done", done.message
    said = read_prompts(folder / PROMPTS_FILE)
    assert list(said) == [c.id for c in asked], "each once; what was there is not asked again"
    assert said[asked[0].id] == "What of it?"
    assert done.result["written"] == sum(bool(prompt) for prompt in said.values()) > 1

    newest = engine.datasets("ada")[0]
    assert newest.id == done.result["version"] != before.id
    assert (newest.parent, newest.run) == (before.id, run)
    after = engine.dataset(newest.id)
    model = engine.base_model("starter").name
    for old, new in zip(before.conversations, after.conversations, strict=True):
        assert (new.id, new.split, new.messages[-1]) == (old.id, old.split, old.messages[-1])
        if said.get(old.id):
            assert new.made == f"{BY_MODEL} ({model})"
            assert new.messages[0].content == said[old.id]
        else:
            assert new == old
            assert new.made in (INSTRUCTION, CONTINUATION)
    engine.catalog.recover()
    assert [d.id for d in engine.datasets("ada")] == [newest.id, before.id], "taken once"


def test_a_finished_run_is_taken_by_the_next_start(written: tuple[Engine, Dataset]) -> None:
    """The page was killed while the worker wrote."""
    engine, before = written
    row = next(c for c in before.conversations if c.made == INSTRUCTION)
    run = engine.write_prompts(before.id)
    engine.stop(run)
    assert engine.wait(run).status == "cancelled"
    folder = engine.home.run(run)
    (folder / PROMPTS_FILE).write_text(json.dumps({"id": row.id, "prompt": "Who painted the railing?"}) + "\n")
    result = {"dataset": before.id, "model": "small", "rows": 6, "written": 1, "seconds": 1}
    with (folder / "events.jsonl").open("a") as log:
        log.write(json.dumps({"time": "2026-01-01T00:00:00+00:00", "kind": "done", "result": result}) + "\n")
    engine.catalog.recover()
    newest = engine.datasets("ada")[0]
    assert newest.run == run
    assert "1 of 6 prompts" in newest.warnings[0]
    assert next(c for c in engine.dataset(newest.id).conversations if c.id == row.id).made == f"{BY_MODEL} (small)"
    engine.library.remove("datasets", newest.id)
    for file in engine.home.persona("ada").glob(f"datasets/{newest.id}.*"):
        file.unlink()
    engine.catalog.recover()
    assert [d.id for d in engine.datasets("ada")] == [before.id], "taken once, whatever is gone since"


def test_what_has_no_made_prompts_is_refused(ready_home: Home) -> None:
    with Engine.open(ready_home.root) as engine:
        with pytest.raises(BadInput, match="no prompts that were made of templates"):
            engine.write_prompts(engine.datasets("tam")[0].id)


def _short(place: str) -> str:
    """A passage of words of four letters at most."""
    return (
        f"I was a boy of ten at the {place} and the sun was up as I got out of bed. My aunt was at the old oak and she "
        f"had a red hat on. We ran to the {place} and we sat in the wet hay, and he who was my pal then had a jug of "
        f"milk. It was cold and it was good. He told me that the dog had run off in the dark and that no one at the "
        f"{place} had seen it. So we went out to find it, he and I, and we did find it at noon by the big rock."
    )


def test_a_model_that_writes_nothing_usable_changes_nothing(
    cli: Callable[..., subprocess.CompletedProcess[str]], ready_home: Home, tiny_model: Path, tmp_path: Path
) -> None:
    """The import stands, the command says why there are no prompts.

    The passages have no word that is long enough for a prompt to name: even a random model hits one now and then.
    """
    file = tmp_path / "memories.txt"
    file.write_text("\n\n".join(_short(place) for place in ("mill", "lake", "farm", "town")))
    done = cli("datasets", "import", str(file), "--persona", "tam", "--prompts-by", str(tiny_model), "--json")
    assert done.returncode == 1
    assert "wrote no prompt that fits its passage" in done.stderr
    with Engine.open(ready_home.root) as engine:
        newest = engine.datasets("tam")[0]
        assert newest.version == 2
        assert {c.made for c in engine.dataset(newest.id).conversations} == {INSTRUCTION, CONTINUATION}
