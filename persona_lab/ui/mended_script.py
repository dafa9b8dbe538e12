"""Gradio's own script, served with two places mended.

Loading states: gradio 6.31's page tells every component that any event may update its loading status, three times an
event, whether it changed or not, and looks each of them up by walking the whole page. With some hundred of either, one
event takes a second of processor time, and clocks that tick every few seconds leave the browser no rest (measured with
Chromium's profiler: 5.3 of 6 seconds). The function asks first what has changed.

Events that wait: a handler that is asked for while it runs waits (`always_last`), and at its end gradio plays the whole
event again, for every handler of it. Where two of them overlap, each end starts the others anew: choosing a character
while the page loads kept some thirty handlers busy for ever, at 15 to 30 requests a second. Only the one that waited
is played again.

Where gradio's text is another (another version), it is served as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

SCRIPT = re.compile(r"/assets/(Blocks-[\w-]+\.js)$")
ALL = "Object.entries(this.loading_stati.current).map("
CHANGED = (
    "Object.entries(this.loading_stati.current).filter(([e,t])=>{let n=JSON.stringify(t),"
    "r=this.pl_told??={},i=r[e]!==n;return r[e]=n,i}).map("
)
WHOLE_EVENT = "this.queue.has(r.id)&&(this.queue.delete(r.id),this.dispatch(e))"
ONE_HANDLER = (
    "this.queue.has(r.id)&&(this.queue.delete(r.id),"
    "this.dispatch({type:`fn`,fn_index:r.id,event_data:e.event_data,target_id:e.target_id}))"
)
MENDED = ((ALL, CHANGED, 1), (WHOLE_EVENT, ONE_HANDLER, 2))
"""(gradio's text, ours, how often it occurs)."""


def mended(text: str) -> str | None:
    """Gradio's script with the changes; None where one of the places is not found as often as expected."""
    for theirs, ours, count in MENDED:
        if text.count(theirs) != count:
            return None
        text = text.replace(theirs, ours)
    return text


class MendedScript:
    """Serves the changed script; everything else passes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._made: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = SCRIPT.search(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        text = self._text(found[1]) if found else None
        if text is None:
            await self._app(scope, receive, send)
            return
        headers = {"cache-control": "no-cache"}  # the same name holds other text where gradio serves it itself
        await Response(text, media_type="text/javascript", headers=headers)(scope, receive, send)

    def _text(self, name: str) -> str | None:
        if name in self._made:
            return self._made[name]
        text = _read(name)
        if text is not None:  # names are a visitor's: only those that exist are kept
            self._made[name] = text
        return text


def _read(name: str) -> str | None:
    import gradio

    path = Path(gradio.__file__).parent / "templates" / "frontend" / "assets" / name
    return mended(path.read_text(encoding="utf-8")) if path.is_file() else None
