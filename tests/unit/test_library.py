"""The library keeps every row under threads, refuses a second process, and survives damage."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from persona_lab.errors import BadInput, HomeLocked
from persona_lab.home import Home
from persona_lab.library import Library


def test_rows_are_put_replaced_and_removed(home: Home) -> None:
    library = Library(home)
    library.put("personas", {"id": "a", "name": "One"})
    library.put("personas", {"id": "a", "name": "Two"})
    assert [row["name"] for row in library.all("personas")] == ["Two"]
    assert library.remove("personas", "a") == {"id": "a", "name": "Two"}
    assert library.get("personas", "a") is None
    library.close()


def test_no_row_is_lost_under_threads(home: Home) -> None:
    library = Library(home)

    def insert(worker: int) -> None:
        for number in range(15):
            library.put("votes", {"id": f"{worker}-{number}"})

    threads = [threading.Thread(target=insert, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(library.all("votes")) == 90
    library.close()
    again = Library(home)
    assert len(again.all("votes")) == 90
    again.close()


def test_a_second_process_is_refused_and_told_who_owns_it(home: Home) -> None:
    library = Library(home)
    code = (
        "import sys; from persona_lab.home import Home; from persona_lab.library import Library\n"
        "from persona_lab.errors import HomeLocked\n"
        f"home = Home.resolve({str(home.root)!r})\n"
        "try: Library(home)\n"
        "except HomeLocked as error: print(error); sys.exit(7)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 7, result.stderr
    assert "in use by another Persona Lab" in result.stdout
    library.close()


def test_a_reader_sees_the_writers_changes_and_cannot_write(home: Home) -> None:
    writer = Library(home)
    reader = Library(home, readonly=True)
    assert reader.all("runs") == []
    writer.put("runs", {"id": "r1"})
    assert reader.get("runs", "r1") == {"id": "r1"}
    with pytest.raises(HomeLocked):
        reader.put("runs", {"id": "r2"})
    writer.close()


def test_a_damaged_file_is_named_with_its_backup_and_left_alone(home: Home) -> None:
    library = Library(home)
    library.put("runs", {"id": "r1"})
    library.close()
    Library(home).close()  # makes the backup of the good file
    home.library.write_text('{"runs": {"1": {"id": "r')
    with pytest.raises(BadInput, match=r"damaged.*backup"):
        Library(home)
    assert home.library.read_text().startswith('{"runs"')
    backup = json.loads(home.library.with_suffix(".backup.json").read_text())
    assert backup["runs"]["1"] == {"id": "r1"}
    home.library.write_text(json.dumps(backup))
    restored = Library(home)
    assert restored.get("runs", "r1") == {"id": "r1"}
    restored.close()


def test_a_newer_schema_is_refused(home: Home) -> None:
    home.library.write_text(json.dumps({"meta": {"1": {"schema": 99}}}))
    with pytest.raises(BadInput, match="newer Persona Lab"):
        Library(home)


def test_new_ids_count_up(home: Home) -> None:
    library = Library(home)
    assert library.new_id("variants", "nan") == "nan"
    library.put("variants", {"id": "nan"})
    assert library.new_id("variants", "nan") == "nan-2"
    library.close()
