"""The page's script is served with two places changed, and as it is where those are others."""

from __future__ import annotations

from pathlib import Path

import gradio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from persona_lab.ui.mended_script import ALL, CHANGED, ONE_HANDLER, WHOLE_EVENT, MendedScript, mended


def test_the_installed_gradio_is_served_changed_and_everything_else_untouched() -> None:
    [script] = (Path(gradio.__file__).parent / "templates/frontend/assets").glob("Blocks-*.js")
    app = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("gradio's own"))])
    client = TestClient(MendedScript(app))
    changed = client.get(f"/assets/{script.name}")
    own = script.read_text(encoding="utf-8")
    assert changed.text == own.replace(ALL, CHANGED).replace(WHOLE_EVENT, ONE_HANDLER)
    assert changed.text.count(CHANGED) == 1
    assert changed.text.count(ONE_HANDLER) == 2
    assert changed.headers["content-type"].startswith("text/javascript")
    for path in ("/", "/assets/Blocks-none.js", "/assets/../Blocks-x.js", f"/gradio_api{script.name}"):
        assert client.get(path).text == "gradio's own"


def test_another_text_is_left_alone() -> None:
    assert mended("let a = 1") is None
    assert mended(ALL + WHOLE_EVENT) is None
    assert mended(ALL + ALL + WHOLE_EVENT + WHOLE_EVENT) is None
    assert mended(ALL + WHOLE_EVENT + WHOLE_EVENT) == CHANGED + ONE_HANDLER + ONE_HANDLER
