"""A shared page behind a tunnel, for which a reverse proxy on loopback stands: it changes Host, address and scheme."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from shared_page import PUBLIC, SharedPage, fill, running, said, say
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from persona_lab.home import Home

pytestmark = pytest.mark.slow

HOST = urlsplit(PUBLIC).netloc
HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")


class Tunnel:
    """Passes everything on to a page, as a tunnel's end on the same machine would."""

    def __init__(self, page: str, names_host: bool) -> None:
        self.page, self.names_host = page, names_host
        self.seen: list[str] = []
        routes = [Route("/{path:path}", self.pass_on, methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    async def pass_on(self, request: Request) -> StreamingResponse:
        """One request: the tunnel's own Host and address, and what it says of the visitor's."""
        headers = {name: value for name, value in request.headers.items() if name not in HOP}
        headers |= {"host": urlsplit(self.page).netloc, "x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}
        if self.names_host:
            headers["x-forwarded-host"] = request.headers["host"]
        client = httpx.AsyncClient(base_url=self.page, timeout=60)
        body = await request.body()
        asked = client.build_request(request.method, request.url.path, params=request.query_params, headers=headers,
                                     content=body)  # fmt: skip
        reply = await client.send(asked, stream=True)
        self.seen.append(f"{request.method} {request.url.path} {reply.status_code}")
        kept = [(n, v) for n, v in reply.headers.multi_items() if n.lower() not in HOP]
        passed = StreamingResponse(self._body(reply), reply.status_code, background=BackgroundTask(client.aclose))
        passed.raw_headers = [(n.encode(), v.encode()) for n, v in kept]
        return passed

    async def _body(self, reply: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for piece in reply.aiter_raw():
                yield piece
        except asyncio.CancelledError:
            await reply.aclose()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"


@contextmanager
def tunnel(page: SharedPage, names_host: bool = True) -> Iterator[Tunnel]:
    made = Tunnel(page.url, names_host)
    made.thread.start()
    while not made.server.started:
        time.sleep(0.02)
    yield made
    made.server.should_exit = True
    made.thread.join(20)


class Browser:
    """What a browser at the public address does: its Host and Origin, and cookies that go over https."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, headers={"host": HOST}, timeout=60)
        self.cookies: dict[str, str] = {}

    def request(self, method: str, path: str, **more: object) -> httpx.Response:
        headers = {"cookie": "; ".join(f"{n}={v}" for n, v in self.cookies.items())}
        if method != "GET":
            headers |= {"origin": PUBLIC, "sec-fetch-site": "same-origin"}
        reply = self.client.request(method, path, headers=headers | dict(more.pop("headers", {})), **more)  # type: ignore
        for cookie in reply.headers.get_list("set-cookie"):
            assert "; secure" in cookie.lower(), cookie
            name, _, value = cookie.split(";")[0].partition("=")
            self.cookies[name] = value
        self.client.cookies.clear()
        return reply


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[SharedPage]:
    yield from running(tmp_path_factory.mktemp("behind"), tiny_model)


def test_the_owner_works_through_a_tunnel(page: SharedPage) -> None:
    with tunnel(page) as door:
        browser = Browser(door.url)
        with browser.client:
            assert browser.request("GET", "/").headers["location"] == "/login"
            reply = browser.request("POST", "/login", data={"password": page.password})
            assert reply.status_code == 303
            config = browser.request("GET", "/config").json()
            assert config["root"] == PUBLIC  # what the page asks for goes through the tunnel again
            tick = next(d for d in config["dependencies"] if any(t[1] == "tick" for t in d["targets"]))
            body = {"data": [None] * len(tick["inputs"]), "fn_index": tick["id"], "session_hash": "behind01"}
            joined = browser.request("POST", "/gradio_api/queue/join", json=body)
            assert joined.status_code == 200, joined.text
            cookie = "; ".join(f"{n}={v}" for n, v in browser.cookies.items())
            with browser.client.stream(
                "GET", "/gradio_api/queue/data", params={"session_hash": "behind01"}, headers={"cookie": cookie}
            ) as stream:
                messages = [json.loads(line[5:])["msg"] for line in stream.iter_lines() if line.startswith("data:")]
            assert "process_completed" in messages
            for origin in ("https://evil.example", "null", "https://x.lab.example.org", PUBLIC + ".evil.example"):
                reply = browser.request("POST", "/gradio_api/queue/join", json=body, headers={"origin": origin})
                assert reply.status_code == 403, origin


@pytest.mark.parametrize("names_host", [True, False])
def test_a_guest_talks_through_a_tunnel(page: SharedPage, names_host: bool) -> None:
    link = page.share("create", "--persona", "tam", "--variant", "tam-1", "--limit", "reply_tokens=12")
    assert str(link["url"]).startswith(f"{PUBLIC}/g/")
    with tunnel(page, names_host) as door:
        browser = Browser(door.url)
        with browser.client:
            assert browser.request("GET", str(link["path"])).status_code == 200
            assert browser.request("POST", str(link["path"])).status_code == 303
            assert len(browser.cookies) == 1
            assert browser.request("GET", "/guest/state").json()["name"] == "Tam"
            cookie = "; ".join(f"{n}={v}" for n, v in browser.cookies.items())
            browser.client.headers.update({"cookie": cookie, "origin": PUBLIC})
            status, lines = say(browser.client, "Who are you?")
            assert status == 200, lines
            assert said(lines)
            assert browser.client.get("/config").status_code == 403


def test_wrong_passwords_are_counted_whatever_address_they_claim(page: SharedPage) -> None:
    with tunnel(page) as door, httpx.Client(base_url=door.url, headers={"host": HOST, "origin": PUBLIC}) as client:
        codes = [
            client.post("/login", data={"password": "x"}, headers={"x-forwarded-for": f"198.51.100.{n}"}).status_code
            for n in range(12)
        ]
    assert set(codes) == {401, 429}
    assert codes.count(401) <= 7


def test_without_a_name_for_the_outside_a_tunnel_that_changes_host_is_told_what_to_do(
    tmp_path: Path, tiny_model: Path
) -> None:
    home = Home.resolve(tmp_path / "home")
    fill(home, tiny_model)
    page = SharedPage(home.root, options=("--host", "0.0.0.0"))
    page.start()
    try:
        with tunnel(page) as door:
            browser = Browser(door.url)
            with browser.client:
                reply = browser.request("POST", "/login", data={"password": page.password})
                assert reply.status_code == 403
                assert "--public-url" in reply.text
    finally:
        assert page.stop() == 0


def test_a_share_link_that_cannot_be_made_leaves_the_page_running(tmp_path: Path, tiny_model: Path) -> None:
    home = Home.resolve(tmp_path / "home")
    fill(home, tiny_model, 1)
    # an address where nothing answers, as on a machine without the internet
    nowhere = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
    local = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    page = SharedPage(home.root, options=("--share",), environment=nowhere | local | {"HOME": str(tmp_path)}).start()
    try:
        told = "".join(page.told)
        assert "The share link could not be made" in told
        assert "docs/sharing.md" in told
        assert "--public-url" in told
        assert "Traceback" not in told
        with page.owner() as owner:
            assert owner.get("/config").status_code == 200
        with page.nobody() as client:
            assert client.get("/config").status_code == 401
    finally:
        assert page.stop() == 0
