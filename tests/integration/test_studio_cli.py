"""`persona-lab studio` with a real chat worker on the starter model: run, list, go on, export."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from persona_lab.home import Home

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_a_batch_from_the_command_line(cli: Cli, home: Home, starter_home: Home, tmp_path: Path) -> None:
    (home.root / "models").mkdir()
    (home.root / "models" / "starter").symlink_to(starter_home.model("starter").resolve(), target_is_directory=True)
    for name in ("Tam", "Nan"):  # short cards: soon read
        card = tmp_path / f"{name}.json"
        card.write_text(json.dumps({"name": name, "description": "A mender of clocks."}))
        assert cli("personas", "import", str(card)).returncode == 0
    lines = tmp_path / "lines.txt"
    lines.write_text("Are you lost?\n\n=1+1\n")
    run = ("studio", "run", "base-tam", "base-nan", "--seeds", "2", "--style", "short_and_quick", "--json")
    made = cli(*run, "--prompts", str(lines), "--use", "Farewell", "--name", "First")
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert (document["batch"]["id"], document["batch"]["done"], document["batch"]["status"]) == ("first", 12, "done")
    rows = document["rows"]
    assert all(row["adapter"].startswith("base starter") and row["tokens"] for row in rows)
    assert {row["text"] for row in rows} == {
        "Are you lost?", "=1+1", "We shall not see each other for a long time. What do you say?",
    }  # fmt: skip
    assert "12 of 12" in made.stderr

    # half of it is lost, and only that is written again
    kept = home.root / "studio" / "batches" / "first" / "rows.jsonl"
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:6]))
    again = cli("studio", "run", "--go-on", "first", "--json")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(" of 12:") == 6
    assert json.loads(again.stdout)["batch"]["done"] == 12

    out = tmp_path / "rows.csv"
    assert cli("studio", "export", "first", "--out", str(out)).returncode == 0
    with out.open(encoding="utf-8-sig", newline="") as file:
        assert "'=1+1" in {row["text"] for row in csv.DictReader(file)}
    refused = cli("studio", "export", "first", "--out", str(out))
    assert (refused.returncode, "left alone" in refused.stderr) == (2, True)
    wrong = cli("studio", "run", "base-tam", "--tag", "no-such-tag")
    assert (wrong.returncode, "no-such-tag" in wrong.stderr) == (2, True)
    assert [batch["id"] for batch in json.loads(cli("studio", "list", "--json").stdout)] == ["first"]
