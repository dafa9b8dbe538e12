"""The commands of trait sliders: JSON, exit codes, one-paragraph errors, and a trait of one's own."""

from __future__ import annotations

import json
from pathlib import Path

from persona_lab.home import Home

OWN = {
    "id": "drawers",
    "title": "Drawers",
    "away_label": "shelves",
    "towards_label": "drawers",
    "away": "You love shelves.",
    "towards": "You love drawers.",
}


def test_traits_are_listed_added_shown_and_put_aside(cli, home: Home, tmp_path: Path) -> None:
    listed = json.loads(cli("traits", "list", "--json").stdout)
    assert len(listed) >= 16
    assert {"id", "name", "status", "towards", "away"} <= listed[0].keys()
    file = tmp_path / "drawers.json"
    file.write_text(json.dumps(OWN))
    assert json.loads(cli("traits", "add", str(file), "--json").stdout)["own"]
    assert json.loads(cli("traits", "show", "drawers", "--json").stdout)["towards"] == "You love drawers."
    assert json.loads(cli("traits", "delete", "drawers", "--json").stdout) == {"id": "drawers", "deleted": True}


def test_what_cannot_be_is_one_paragraph(cli, home: Home, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"id": "x"}')
    for arguments, said in (
        (("traits", "show", "grumy"), "grumpy"),
        (("traits", "add", str(tmp_path / "bad.json")), "Field required"),
        (("traits", "delete", "grumpy"), "shipped"),
        (("traits", "compute"), "No trait is named"),
        (("say", "base-magpie", "--traits", "grumpy=101", "--prompt", "Hi"), "-100 to 100"),
        (("variants", "steer", "base-magpie", "--traits", "grumpy=0"), "at 0"),
    ):
        result = cli(*arguments)
        assert result.returncode == 2, (arguments, result.stderr)
        # lines are wrapped for the terminal
        assert said in " ".join(result.stderr.split()), (arguments, result.stderr)
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
