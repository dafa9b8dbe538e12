"""Who may reach the page: passwords, ports, origins; and that starting it stays light."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from persona_lab.engine import Engine
from persona_lab.home import Home
from persona_lab.ui.door import Door
from persona_lab.ui.gate import Gate
from persona_lab.ui.server import (
    ClosedWindows,
    Refused,
    credentials,
    free_port,
    needs_login,
    origin_of,
    refuse_vibe_mode,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def test_no_password_is_needed_on_this_machine_only() -> None:
    account = {"PERSONA_LAB_AUTH": "ann:s3:cret"}
    assert credentials({}) is None
    assert credentials(account) == ("ann", "s3:cret")
    for host in ("127.0.0.1", "localhost", "::1"):
        assert not needs_login(host, False, "", {})
        assert needs_login(host, False, "", account)
        assert needs_login(host, True, "", {})
        assert needs_login(host, False, "https://lab.example.org", {})
    for host in ("0.0.0.0", "192.168.1.7", "::"):
        assert needs_login(host, False, "", {})


@pytest.mark.parametrize(
    "address",
    ["lab.example.org", "ftp://lab.example.org", "https://", "https://u:p@x.org", "https://x.org/a", "http://["],
)
def test_a_public_address_is_a_scheme_and_a_host(address: str) -> None:
    with pytest.raises(Refused, match="--public-url"):
        origin_of(address)
    assert origin_of("https://Lab.Example.org/") == "https://lab.example.org"
    assert origin_of("http://10.0.0.7:8080") == "http://10.0.0.7:8080"


@pytest.mark.parametrize("value", ["ann", "ann:", ":secret"])
def test_a_malformed_password_is_refused_even_locally(value: str) -> None:
    with pytest.raises(Refused, match="user:password"):
        credentials({"PERSONA_LAB_AUTH": value})


def test_vibe_mode_is_refused() -> None:
    refuse_vibe_mode({})
    with pytest.raises(Refused, match="GRADIO_VIBE_MODE"):
        refuse_vibe_mode({"GRADIO_VIBE_MODE": "1"})


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, True),
        ({"host": "127.0.0.1:7860", "origin": "https://evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "null"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://["}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:9999"}, False),
        ({"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
        ({"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ({"host": "evil.example:7860"}, False),
        ({"host": "["}, False),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True),
        ({}, False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_sites_cannot_use_the_page_nor_rebind_their_name(
    headers: dict[str, str], passes: bool, method: str, home: Home
) -> None:
    """On this machine alone, without a login."""
    page = PlainTextResponse("the page")
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "query_string": b"", "headers": raw}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    with Engine.open(home.root) as engine, ThreadPoolExecutor(1) as apart:
        answer = Gate(page, Door(engine), loopback=True)(scope, receive, send)
        apart.submit(asyncio.run, answer).result()
    assert sent[0]["status"] == (200 if passes else 403)


def test_a_taken_port_gives_the_next_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(Refused, match="99999"):
        free_port("127.0.0.1", 99999)


def test_a_malformed_public_address_ends_with_one_paragraph_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "app.py", "--home", str(tmp_path), "--public-url", "my lab", "--no-browser"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "--public-url" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_page_is_built_without_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from persona_lab.ui.app import build_page, Engine\n"
        f"with Engine.open({str(tmp_path)!r}, tabs=True) as engine:\n"
        "    demo, page = build_page(engine)\n"
        "banned = {'torch', 'transformers', 'peft', 'bitsandbytes', 'sklearn', 'scipy', 'matplotlib'}\n"
        "assert not banned & set(sys.modules), banned & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def gone(status: int) -> RuntimeError:
    error = RuntimeError("Caught handled exception, but response already started.")
    error.__cause__ = HTTPException(status)
    return error


@pytest.mark.parametrize("sent", [0, 1, 2])
@pytest.mark.parametrize(("path", "raised", "silent"), [
    ("/gradio_api/queue/data", KeyError("abc"), True),
    ("/gradio_api/queue/data", KeyError("another"), False),
    ("/gradio_api/queue/data", gone(404), True),
    ("/gradio_api/queue/data", gone(500), False),
    ("/gradio_api/queue/data", RuntimeError("another"), False),
    ("/gradio_api/queue/join", KeyError("abc"), False),
])  # fmt: skip
def test_only_what_a_closed_window_left_behind_is_passed_over(
    path: str, raised: Exception, silent: bool, sent: int
) -> None:
    begun = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"data: 1", "more_body": True},
    ][:sent]
    heard: list[Any] = []

    async def forgetful(scope: Any, receive: Any, send: Any) -> None:
        for message in begun:
            await send(message)
        raise raised

    async def hear(message: Any) -> None:
        heard.append(message)

    scope = {"type": "http", "path": path, "query_string": b"session_hash=abc"}
    answer = ClosedWindows(forgetful)(scope, None, hear)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as apart:  # the browser's driver leaves a running loop in the thread of the tests
        if silent:
            apart.submit(asyncio.run, answer).result()
            # an answer that is not ended is an error in the server's log
            assert heard[0]["status"] == (200 if sent else 404)
            assert [m["type"] for m in heard].count("http.response.start") == 1
            assert heard[-1]["type"] == "http.response.body"
            assert not heard[-1].get("more_body", False)
        else:
            with pytest.raises(type(raised)):
                apart.submit(asyncio.run, answer).result()
            assert heard == begun


def test_gradio_keeps_no_record_of_every_event() -> None:
    """Its queue would hold 10,000, and make a table of them with pandas after each event."""
    code = """
from persona_lab.ui import quick_gradio
import gradio
with gradio.Blocks() as page:
    pass
queue = page.queue()._queue
assert queue.ANALYTICS_MAX_EVENTS == 1, queue.ANALYTICS_MAX_EVENTS
queue.events_recorded = 5000
records = [{"function": "tick", "status": "success", "process_time": 1.0}]
assert queue.compute_analytics_summary(records) == {"functions": {}}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
