"""The page's script is served with one function changed, and as it is where that function is another."""

from __future__ import annotations

from pathlib import Path

import gradio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from persona_lab.ui.lean_status import ALL, CHANGED, LeanStatus, leaner


def test_the_installed_gradio_is_served_changed_and_everything_else_untouched() -> None:
    [script] = (Path(gradio.__file__).parent / "templates/frontend/assets").glob("Blocks-*.js")
    app = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("gradio's own"))])
    client = TestClient(LeanStatus(app))
    changed = client.get(f"/assets/{script.name}")
    assert changed.text == script.read_text(encoding="utf-8").replace(ALL, CHANGED)
    assert CHANGED in changed.text
    assert changed.headers["content-type"].startswith("text/javascript")
    for path in ("/", "/assets/Blocks-none.js", "/assets/../Blocks-x.js", f"/gradio_api{script.name}"):
        assert client.get(path).text == "gradio's own"


def test_another_text_is_left_alone() -> None:
    assert leaner("let a = 1") is None
    assert leaner(ALL + ALL) is None
