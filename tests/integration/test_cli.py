"""The command line keeps its promises: JSON, exit codes, one-paragraph errors, an intact library after bad input."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from persona_lab.home import Home


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def card_png(card: dict) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    text = png_chunk(b"tEXt", b"chara\0" + base64.b64encode(json.dumps(card).encode()))
    return (
        b"\x89PNG\r\n\x1a\n" + header + text + png_chunk(b"IDAT", zlib.compress(b"\0\1\2\3")) + png_chunk(b"IEND", b"")
    )


def bad_files(folder: Path) -> dict[str, Path]:
    whole = card_png({"name": "Tam", "description": "x" * 500})
    files = {
        "truncated.png": whole[: len(whole) // 2],
        "empty.json": b"",
        "latin1.json": '{"name": "Café", "description": "déjà vu"}'.encode("latin-1"),
        "list.json": b"[1, 2, 3]",
        "wrong_shape.json": b'{"weights": [0.1, 0.2]}',
        "not_json.json": b"Dear diary,",
        "deep.json": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    }
    return {name: _write(folder / name, data) for name, data in files.items()}


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def assert_refused(result, code: int = 2) -> None:
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    paragraph = result.stderr.strip()
    assert paragraph.startswith("persona-lab: "), paragraph
    assert "\n\n" not in paragraph
    assert len(paragraph) < 1500


def test_help_lists_every_command(cli) -> None:
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-m", "persona_lab.cli", "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    promised = [
        "doctor",
        "plugins",
        "personas",
        "datasets",
        "models",
        "plan",
        "train",
        "runs",
        "variants",
        "eval",
        "compare",
        "say",
        "export",
        "bench-strategies",
        "serve",
    ]
    for command in promised:
        assert command in result.stdout


def test_bad_cards_are_refused_one_paragraph_each(cli, home: Home, tmp_path: Path) -> None:
    for path in bad_files(tmp_path).values():
        assert_refused(cli("personas", "import", str(path)))
    assert_refused(cli("personas", "import", str(tmp_path / "missing.json")))
    listed = json.loads(cli("personas", "list", "--json").stdout)
    assert [row for row in listed if row["installed"]] == []


def test_bad_datasets_are_refused_and_the_library_stays_intact(cli, ready_home: Home, tmp_path: Path) -> None:
    for path in bad_files(tmp_path).values():
        assert_refused(cli("datasets", "import", str(path), "--persona", "tam"))
    no_rows = _write(tmp_path / "none.jsonl", b'{"messages": []}\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    assert_refused(cli("datasets", "import", str(no_rows), "--persona", "tam"))
    assert_refused(cli("datasets", "import", str(no_rows), "--persona", "tim"))
    assert_refused(cli("datasets", "import", str(no_rows), "--persona", "tam", "--format", "sharegtp"))
    data = json.loads(cli("datasets", "list", "--json").stdout)
    assert [row["id"] for row in data] == ["tam-v1"]


def test_bad_models_strategies_and_settings(cli, ready_home: Home, tmp_path: Path) -> None:
    fake = _write(tmp_path / "fake.gguf", b"not a model at all" * 100)
    short = _write(tmp_path / "short.gguf", b"GGUF\3\0\0\0")
    train = ("train", "--persona", "tam", "--strategy")
    for arguments in (
        (*train, "lorra"),
        (*train, "lora", "--set", "rnak=3"),
        (*train, "lora", "--set", "epochs=-1"),
        (*train, "lora", "--set", "epochs"),
        ("plan", "--persona", "tam", "--strategy", "nope"),
        ("say", "nobody", "--prompt", "hi"),
        ("say", "base-tam"),
        ("eval", "nobody"),
        ("eval", "base-tam", "--evaluators", ","),
        ("compare", "base-tam", "--out", str(fake / "x")),
        ("plan", "--persona", "tam", "--set", "rnak=3"),
        (*train, "lora", "--seed", str(10**20)),
        ("runs", "show", "nothing"),
        ("runs", "resume", "nothing"),
        ("variants", "delete", "nothing"),
        ("personas", "show", "nobody"),
        ("datasets", "preview", "tam-v1", "--row", "999"),
    ):
        assert_refused(cli(*arguments))
    for path in (fake, short):
        result = cli(*train, "lora", "--base", str(path))
        assert result.returncode in (1, 2)
        assert_refused(result, result.returncode)
        assert "GGUF" in result.stderr
    assert cli("train", "--persona", "tam").returncode == 2
    assert json.loads(cli("runs", "list", "--json").stdout) == []


def test_a_hub_id_without_a_network_is_a_clear_error(cli, ready_home: Home) -> None:
    result = cli("models", "fetch", "somebody/some-model", HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    last = result.stderr.strip().split("persona-lab: ")[-1]
    assert "somebody/some-model" in last
    assert "Traceback" not in result.stderr


def test_json_is_one_document_and_progress_is_elsewhere(cli, ready_home: Home, tiny_model: Path) -> None:
    arguments = ("--strategy", "lora", "--base", str(tiny_model), "--set", "epochs=1", "--seed", "3", "--json")
    result = cli("train", "--persona", "tam", *arguments)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["status"] == "done"
    assert set(document) >= {
        "run", "status", "variant", "strategy", "base", "seed", "seconds", "examples", "supervised_tokens",
        "trainable_parameters", "total_parameters", "peak_memory_bytes", "artifact_bytes", "loss",
    }  # fmt: skip
    assert set(document["seconds"]) == {"total", "load", "train", "save"}
    assert set(document["loss"]) == {"train", "validation_before", "validation_after"}
    assert document["seed"] == 3
    assert 0 < document["trainable_parameters"] < document["total_parameters"]
    variant = json.loads(cli("variants", "list", "--json").stdout)[0]
    assert {"id", "name", "persona", "strategy", "base", "run", "created"} <= set(variant)
    said = cli("say", variant["id"], "--prompt", "Hello?", "--max-new-tokens", "8", "--seed", "5", "--json")
    row = json.loads(said.stdout)[0]
    assert set(row) == {"variant", "adapter", "prompt", "reply", "tokens", "seconds", "first_token_seconds", "seed"}
    assert "lora" in row["adapter"].lower()
    assert row["seed"] == 5


def test_a_base_named_from_here_is_found_from_anywhere(ready_home: Home, tiny_model: Path) -> None:
    from persona_lab.engine import Engine

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model.parent)
        patch.setattr("persona_lab.jobs.Supervisor.submit", lambda self, job: jobs.append(job) or job.id)
        jobs: list[Any] = []
        engine = Engine.open(ready_home.root)
        try:
            engine.train("tam", "lora", f"./{tiny_model.name}", force=True)
        finally:
            engine.close()
    assert [job.base for job in jobs] == [str(tiny_model.resolve())]


def test_plan_ranks_every_strategy(cli, ready_home: Home, tiny_model: Path) -> None:
    rows = json.loads(cli("plan", "--persona", "tam", "--base", str(tiny_model), "--json").stdout)
    assert {row["strategy"] for row in rows} >= {"prompt", "lora", "qlora", "full", "hybrid"}
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert {
            "fits",
            "reason",
            "trainable_parameters",
            "peak_memory_bytes",
            "seconds",
            "disk_bytes",
            "uncertainty",
        } <= set(row)


@pytest.mark.parametrize("format", ["png", "json"])
def test_a_card_goes_out_and_comes_back(cli, ready_home: Home, tmp_path: Path, format: str) -> None:
    out = tmp_path / f"tam-card.{format}"
    assert cli("personas", "export", "tam", "--format", format, "--out", str(out)).returncode == 0
    assert_refused(cli("personas", "export", "tam", "--format", format, "--out", str(out)))
    assert cli("personas", "import", str(out), "--id", "tam2").returncode == 0
    assert json.loads(cli("personas", "show", "tam2", "--json").stdout)["name"] == "Tam"


def test_a_running_page_does_not_lock_readers_out(cli, ready_home: Home) -> None:
    from persona_lab.engine import Engine

    with Engine.open(ready_home.root):
        assert cli("personas", "list", "--json").returncode == 0
        result = cli("personas", "delete", "tam")
        assert_refused(result, 1)
        assert "in use by another Persona Lab" in result.stderr
