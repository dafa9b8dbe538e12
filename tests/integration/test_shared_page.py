"""The real page, shared: every endpoint in every role, and what guests can and cannot do. Real workers, tiny models."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from shared_page import PUBLIC, REPOSITORY, SharedPage, running, said, say

from persona_lab.access.line import MOST_WAITING
from persona_lab.engine import Engine

pytestmark = pytest.mark.slow

SESSION = "stolenhash1"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[SharedPage]:
    yield from running(tmp_path_factory.mktemp("shared"), tiny_model)


@pytest.fixture(scope="module")
def link(page: SharedPage) -> str:
    """The path of a link for chatting with `tam-1`."""
    limits = ("--limit", "messages_a_minute=60", "--limit", "reply_tokens=12")
    return str(page.share("create", "--persona", "tam", "--variant", "tam-1", *limits)["path"])


@pytest.fixture(scope="module")
def blind_link(page: SharedPage) -> str:
    """The path of a link for comparing `tam-1` and `tam-2`."""
    both = ("--variant", "tam-1", "--variant", "tam-2", "--vote")
    return str(page.share("create", "--persona", "tam", *both, "--limit", "reply_tokens=12")["path"])


ROUTES = """
import json, sys
from fastapi.routing import APIRoute
from gradio.routes import App
from persona_lab.ui.app import Engine, build_page

with Engine.open(sys.argv[1], tabs=True) as engine:
    demo, _ = build_page(engine)
    app = App.create_app(demo, app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None})
found, stack = set(), list(app.routes)
while stack:
    route = stack.pop()
    inner = getattr(route, "original_router", None) or getattr(route, "router", None)
    stack += list(getattr(route, "routes", None) or getattr(inner, "routes", None) or [])
    for method in getattr(route, "methods", None) or ["GET"]:
        found.add((method, getattr(route, "path", "")))
print(json.dumps(sorted(found)))
"""


def routes_of_the_page(home: Path) -> list[tuple[str, str]]:
    """(method, path) of all that gradio serves of our page, asked of gradio itself."""
    command = [sys.executable, "-c", ROUTES, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=REPOSITORY)
    return [(method, path) for method, path in json.loads(done.stdout.splitlines()[-1])]


def filled(path: str) -> str:
    """A route's path with something in place of its parameters: the stolen session where one is asked for."""
    return re.sub(r"\{([^}:]+)(:path)?\}", lambda m: SESSION if "session" in m[1] else "config", path)


def test_the_lab_answers_its_owner_and_nobody_else(page: SharedPage, link: str, tmp_path: Path) -> None:
    routes = routes_of_the_page(tmp_path)
    assert len(routes) > 60
    assert ("POST", "/gradio_api/queue/join") in routes
    body = {"data": [], "fn_index": 0, "session_hash": SESSION, "event_data": None}
    with page.owner() as owner:
        # the owner's page is in use, so that there is a session to steal
        joined = owner.post("/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        config = owner.get("/config").json()
        assert len(config["dependencies"]) > 100
        for path in ("/", "/theme.css", "/gradio_api/info", "/manifest.json"):
            assert owner.get(path).status_code == 200, path
        assert owner.get("/monitoring").status_code != 200
        for path in ("/docs", "/redoc", "/openapi.json", "/gradio_api/openapi.json"):
            assert owner.get(path).status_code == 404 or path == "/gradio_api/openapi.json", path
        with page.guest(link) as visitor:
            secret = next(iter(visitor.cookies.values()))
            guest = _cookies(visitor)
        mine = _cookies(owner)
        strangers: dict[str, dict[str, str]] = {
            "nobody": {},
            "guest": {"cookie": guest},
            "made-up cookie": {"cookie": "; ".join(f"{name}=AAAA" for name in owner.cookies)},
            "guest's secret as the owner's": {"cookie": "; ".join(f"{name}={secret}" for name in owner.cookies)},
            "another site": {"cookie": mine, "origin": "https://evil.example"},
            "a sibling of the tunnel's name": {"cookie": mine, "sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
            "no origin at all": {"cookie": mine, "origin": "null"},
        }
        answered = []
        for who, headers in strangers.items():
            with page.nobody(**headers) as client:
                for method, path in routes:
                    if path in ("/login", "/login/", "/logout"):  # ours stand there
                        continue
                    sends = {"json": body} if method in ("POST", "PUT", "PATCH", "DELETE") else {}
                    reply = client.request(method, filled(path), **sends)
                    login = reply.status_code == 303 and reply.headers["location"] == "/login"
                    if not login and reply.status_code not in (401, 403):
                        answered.append((who, method, path, reply.status_code))
                for number in range(len(config["dependencies"])):
                    reply = client.post("/gradio_api/queue/join", json=body | {"fn_index": number})
                    if reply.status_code not in (401, 403):
                        answered.append((who, "fn", str(number), reply.status_code))
        assert answered == []
        assert owner.get("/config").status_code == 200


def _cookies(client: httpx.Client) -> str:
    return "; ".join(f"{name}={value}" for name, value in client.cookies.items())


def test_every_handler_is_refused_to_a_guest_by_gradio_too(page: SharedPage) -> None:
    """Without our gate in front of it, gradio's own checks ask who is there; the gate's answer decides."""
    from starlette.requests import Request

    from persona_lab.ui.gate import USER, user_of

    for scope in ({"type": "http"}, {"type": "http", USER: None}, {"type": "http", USER: 7}):
        assert user_of(Request(scope)) is None
    assert user_of(Request({"type": "http", USER: "owner"})) == "owner"
    with page.owner() as owner:
        assert owner.get("/gradio_api/user").json() == "owner"


def test_headers_and_strange_paths_open_nothing(page: SharedPage, link: str) -> None:
    tricks = [
        {"x-forwarded-host": "127.0.0.1"}, {"x-original-url": "/guest/"}, {"x-rewrite-url": "/guest/"},
        {"x-http-method-override": "GET"}, {"x-forwarded-for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1"},
        {"authorization": "Basic b3duZXI6b3duZXI="}, {"x-forwarded-prefix": "/guest"}, {"host": "127.0.0.1"},
        {"host": "localhost"}, {"x-gradio-server": "http://evil.example"}, {"x-real-ip": "127.0.0.1"},
    ]  # fmt: skip
    with page.guest(link) as guest:
        cookie = _cookies(guest)  # sent everywhere, not only where a browser sends it
        for trick in tricks:
            assert guest.get("/config", headers=trick | {"cookie": cookie}).status_code == 403, trick
        for path in (
            "/guest/../config", "/guest/%2e%2e/config", "/guest/..%2fconfig", "//config", "/guest//config",
            "/g/../config",
            "/guest/page.py", "/guest/page.html", "/guest/page.css%00.py", "/config/", "/CONFIG", "/guest/..;/config",
            "/gradio_api/file=/etc/passwd", "/guest/gradio_api/file=/etc/passwd", "/file=/etc/passwd",
            "/static/../config",
        ):  # fmt: skip
            reply = guest.get(path, headers={"accept": "application/json", "cookie": cookie})
            login = reply.status_code == 303 and reply.headers["location"] == "/login"
            assert login or reply.status_code in (401, 403, 404), (path, reply.status_code)
            assert "dependencies" not in reply.text
            assert "root:" not in reply.text


def test_forwarded_names_do_not_get_into_the_page(page: SharedPage) -> None:
    with page.owner() as owner:
        for name in ("x-forwarded-host", "x-gradio-server"):
            assert "evil.example" not in owner.get("/config", headers={name: "http://evil.example"}).text
        own = {"x-forwarded-host": "lab.example.org", "x-forwarded-proto": "https"}
        assert owner.get("/config", headers=own).json()["root"] == PUBLIC
        assert owner.get("/", headers={"origin": PUBLIC}).status_code == 200


def test_every_answer_has_the_headers_that_browsers_heed(page: SharedPage, link: str) -> None:
    with page.owner() as owner, page.guest(link) as guest:
        for client, path in (
            (owner, "/"),
            (owner, "/config"),
            (guest, "/guest/"),
            (guest, "/login"),
            (guest, "/guest/state"),
        ):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert "frame-ancestors" in headers["content-security-policy"]
        policy = guest.get("/guest/").headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy


def test_cookies_cannot_be_read_by_scripts_nor_sent_by_other_sites(page: SharedPage, link: str) -> None:
    with page.nobody() as client:
        for reply in (client.post("/login", data={"password": page.password}), client.post(link)):
            for cookie in reply.headers.get_list("set-cookie"):
                assert "httponly" in cookie.lower()
                assert "samesite=lax" in cookie.lower()
                assert "max-age=" in cookie.lower()
                assert "; secure" not in cookie.lower()
    with page.nobody() as client:
        reply = client.post(link, headers={"x-forwarded-proto": "https"})
        assert "; secure" in reply.headers["set-cookie"].lower()


def test_a_one_time_link_opens_once_and_logging_out_ends_it(page: SharedPage) -> None:
    path = str(page.share("login-link")["path"])
    with page.nobody() as client:
        assert client.get(path).status_code == 303
        assert client.get("/config").status_code == 200
        kept = _cookies(client)
        assert client.post("/logout").status_code == 303
        assert client.get("/config").status_code == 401
    with page.nobody(cookie=kept) as thief:
        assert thief.get("/config").status_code == 401
        assert thief.get(path).status_code == 401


# --- guests ---------------------------------------------------------------------------------------


def test_a_guest_talks_and_the_conversation_stays(page: SharedPage, link: str) -> None:
    with page.guest(link) as guest:
        state = guest.get("/guest/state").json()
        assert state["name"] == "Tam"
        assert state["panes"] == [[{"who": "assistant", "text": "Tick, User.", "error": ""}]]
        status, lines = say(guest, "Who are you?")
        assert status == 200, lines
        assert lines[-1]["done"] is True
        assert said(lines)
        turns = guest.get("/guest/state").json()["panes"][0]
        assert [turn["who"] for turn in turns] == ["assistant", "user", "assistant"]
        assert turns[1]["text"] == "Who are you?"
        assert turns[2]["text"] == said(lines)
        assert state["tokens_left"] - int(str(lines[-1]["tokens_left"])) in range(1, 13)
        told = json.dumps(lines) + guest.get("/guest/state").text
        for inner in ("tam-1", "adapter", "seed", str(page.home)):
            assert inner not in told
        fresh = guest.post("/guest/new", json={"speaker": 0}).json()
        assert len(fresh["panes"][0]) == 1


def test_a_guest_votes_blind_and_once(page: SharedPage, blind_link: str) -> None:
    with page.guest(blind_link) as guest:
        state = guest.get("/guest/state").json()
        assert state["blind"]
        assert state["speakers"] == []
        assert len(state["panes"]) == 2
        assert guest.post("/guest/vote", json={"outcome": "tie"}).status_code == 409
        status, lines = say(guest, "What is the time?")
        assert status == 200
        assert said(lines, 0)
        assert said(lines, 1)
        assert guest.post("/guest/vote", json={"outcome": "win", "winner": 1}).json() == {"voted": True}
        assert guest.post("/guest/vote", json={"outcome": "win", "winner": 0}).status_code == 409
    votes = list((page.home / "votes").glob("*.json"))
    assert len(votes) == 1
    vote = json.loads(votes[0].read_text())
    assert vote["voter"].startswith("guest:")
    assert {candidate["variant"] for candidate in vote["candidates"]} == {"tam-1", "tam-2"}


def test_what_a_guest_sends_is_a_text_or_a_small_number(page: SharedPage, link: str) -> None:
    with page.guest(link) as guest:
        for body in (
            {"text": ["a"]}, {"text": "a", "variant": "tam-2"}, {"text": "a", "sampling": {"max_new_tokens": 4096}},
            {"text": ""}, {"text": 7}, {}, {"text": "x" * 20_000}, [], "a", {"text": "a", "model": "../../etc/passwd"},
        ):  # fmt: skip
            assert guest.post("/guest/say", json=body).status_code == 422, body
        assert guest.post("/guest/say", json={"text": "x" * 1001}).status_code == 413
        assert guest.post("/guest/say", content=b"{" + b" " * 50_000).status_code == 415
        assert guest.post("/guest/say", json={"text": "x" * 100_000}).status_code == 413
        assert guest.post("/guest/say", json={"text": "\x00\u202e\x07"}).status_code == 422
        for body in ({"speaker": 1}, {"speaker": -1}, {"speaker": "tam-2"}, {"speaker": 0.5}):
            assert guest.post("/guest/new", json=body).status_code == 422, body
        assert guest.post("/guest/vote", json={"outcome": "tie"}).status_code == 403
        assert guest.post("/guest/upload", files={"files": b"x"}).status_code == 404
        # half a character would break what is written later
        reply = guest.post("/guest/say", content=b'{"text": "a\\ud800b"}', headers={"content-type": "application/json"})
        assert reply.status_code in (200, 422)
        assert guest.get("/guest/state").status_code == 200


def test_limits_of_a_guest(page: SharedPage) -> None:
    limits = ("tokens=30", "messages_a_minute=4", "turns=2", "message_characters=20", "reply_tokens=12", "guests=2")
    options = [part for limit in limits for part in ("--limit", limit)]
    made = page.share("create", "--persona", "tam", "--variant", "tam-1", *options)
    with page.guest(str(made["path"])) as guest, page.guest(str(made["path"])) as other:
        with page.nobody() as third:
            assert third.post(str(made["path"])).status_code == 503
        assert say(guest, "x" * 21)[0] == 413
        assert say(guest, "one")[0] == 200
        assert say(guest, "two")[0] == 200
        status, told = say(guest, "three")
        assert (status, told[0].get("full")) == (429, True)
        guest.post("/guest/new", json={})
        status, lines = say(guest, "four")
        assert status == 200
        assert lines[-1]["tokens_left"] == 0
        status, told = say(guest, "five")
        assert (status, told[0].get("spent")) == (429, True)
        for text in ("one", "two"):
            assert say(other, text)[0] == 200
        other.post("/guest/new", json={})
        assert say(other, "three")[0] == 200


def test_too_many_messages_wait_and_say_how_long(page: SharedPage) -> None:
    made = page.share("create", "--persona", "tam", "--variant", "tam-1", "--limit", "messages_a_minute=1")
    with page.guest(str(made["path"])) as guest:
        assert say(guest, "one")[0] == 200
        status, told = say(guest, "two")
        assert status == 429
        assert 0 < int(str(told[0]["seconds"])) <= 60
        fast = [guest.get("/guest/state").status_code for _ in range(200)]
        assert fast[0] == 200
        assert fast[-1] == 429


def test_many_at_once_are_told_their_place(page: SharedPage, link: str) -> None:
    results: list[tuple[int, list[dict[str, object]]]] = []
    with ExitStack() as stack:
        guests = [stack.enter_context(page.guest(link)) for _ in range(6)]
        threads = [threading.Thread(target=lambda g=g: results.append(say(g, "Tell me of clocks."))) for g in guests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert [status for status, _ in results] == [200] * 6
    places = sorted(max(int(str(line.get("position", 0))) for line in lines) for _, lines in results)
    assert places[-1] >= 2, places
    assert all(said(lines) for _, lines in results)


def test_a_pause_from_a_terminal_stops_a_reply_in_the_middle(page: SharedPage, tmp_path: Path) -> None:
    long = ("--limit", "reply_tokens=1024")
    made = page.share("create", "--persona", "tam", "--variant", "tam-1", *long)
    results: list[tuple[int, list[dict[str, object]]]] = []
    with ExitStack() as stack:
        stack.callback(page.share, "resume")
        # so many that they are not all answered before the command has started
        guests = [stack.enter_context(page.guest(str(made["path"]))) for _ in range(16)]
        threads = [threading.Thread(target=lambda g=g: results.append(say(g, "Go on for ever."))) for g in guests]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        page.share("pause")
        began = time.monotonic()
        for thread in threads:
            thread.join(60)
        assert time.monotonic() - began < 5
        assert any("paused" in json.dumps(lines) for _, lines in results), [str(lines)[-200:] for _, lines in results]
        assert guests[0].get("/guest/state").json()["paused"]
        assert say(guests[0], "Still there?")[0] == 503
    with page.guest(str(made["path"])) as guest:
        guest.post("/guest/new", json={})
        assert say(guest, "And now?")[0] == 200


def test_the_pages_own_switch_works_while_everything_waits(page: SharedPage) -> None:
    limits = ("--limit", "reply_tokens=1024", "--limit", "guests=120", "--limit", "messages_a_minute=60")
    path = str(page.share("create", "--persona", "tam", "--variant", "tam-1", *limits)["path"])
    crowd = MOST_WAITING + 30  # some are answered before the last ones come, on a slow machine

    async def talk(results: list[tuple[int, str]]) -> None:
        async with httpx.AsyncClient(base_url=page.url, timeout=60) as client:
            assert (await client.post(path)).status_code == 303
            async with client.stream("POST", "/guest/say", json={"text": "Go on for ever."}) as reply:
                results.append((reply.status_code, (await reply.aread()).decode()))

    async def switch_of(owner: httpx.AsyncClient) -> int:
        config = (await owner.get("/config")).json()
        button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "sharing-pause")
        switch = next(d for d in config["dependencies"] if [button, "click"] in [list(t) for t in d["targets"]])
        assert switch["queue"] is False
        return int(switch["id"])

    async def press(owner: httpx.AsyncClient, switch: int, label: str, wanted: str) -> None:
        body = {"data": [label], "fn_index": switch, "session_hash": "switching1"}
        told = await owner.post("/gradio_api/run/predict", json=body)
        assert told.status_code == 200, told.text
        assert wanted in told.text

    async def play() -> tuple[list[tuple[int, str]], float]:
        results: list[tuple[int, str]] = []
        async with httpx.AsyncClient(base_url=page.url, timeout=60) as owner:
            await owner.get(str(page.share("login-link")["path"]))
            # a page that is open knows its switch: while the line is full, only the press counts
            switch = await switch_of(owner)
            tasks = [asyncio.create_task(talk(results)) for _ in range(crowd)]
            while not any(code == 429 for code, _ in results):
                await asyncio.sleep(0.05)
                assert not all(task.done() for task in tasks)
            await press(owner, switch, "Pause sharing", "paused")
            began = time.monotonic()
            await asyncio.gather(*tasks)
            seconds = time.monotonic() - began
            await press(owner, switch, "Pause sharing", "paused")  # pressed twice, it does not go on
            await press(owner, switch, "Go on sharing", "asks for your password")
            return results, seconds

    try:
        results, seconds = asyncio.run(play())
    finally:
        page.share("resume")
    assert seconds < 15
    assert {code for code, _ in results} <= {200, 429, 503}
    full = [json.loads(text) for code, text in results if code == 429]
    assert full
    assert all(said["position"] == MOST_WAITING + 1 for said in full)
    assert sum("paused" in text for _, text in results) >= MOST_WAITING - 5


def test_a_revoked_link_is_dead_at_the_next_request(page: SharedPage) -> None:
    made = page.share("create", "--persona", "tam", "--variant", "tam-1")
    with page.guest(str(made["path"])) as guest:
        assert guest.get("/guest/state").status_code == 200
        page.share("revoke", str(made["id"]))
        assert guest.get("/guest/state").status_code == 403
        assert say(guest, "Hello?")[0] == 403
        assert guest.get("/guest/").status_code == 403
        assert guest.post(str(made["path"])).status_code == 410
        assert guest.get("/g/forged.token").status_code == 404


def test_a_link_that_is_opened_twice_in_one_browser_makes_one_guest(page: SharedPage) -> None:
    made = page.share("create", "--persona", "tam", "--variant", "tam-1", "--limit", "guests=1")
    path = str(made["path"])
    with page.guest(path) as first, page.nobody() as another:
        assert first.post(path).status_code == 303  # the place is still the same one's
        assert first.get("/guest/state").status_code == 200
        full = another.post(path)
        assert full.status_code == 503
        assert "This chat is full" in full.text


def test_stop_holds_in_the_waiting_line_too(page: SharedPage) -> None:
    long = ("--limit", "reply_tokens=1024")
    path = str(page.share("create", "--persona", "tam", "--variant", "tam-1", *long)["path"])
    results: dict[int, tuple[int, list[dict[str, object]]]] = {}

    def talk(number: int, client: httpx.Client) -> None:
        results[number] = say(client, "Go on for ever.")

    with ExitStack() as stack:
        guests = [stack.enter_context(page.guest(path)) for _ in range(12)]
        threads = [threading.Thread(target=talk, args=pair) for pair in enumerate(guests)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)  # in this order
        began = time.monotonic()
        assert guests[-1].post("/guest/stop", json={}).status_code == 200
        threads[-1].join(30)
        assert time.monotonic() - began < 5
        code, lines = results[len(guests) - 1]
        assert code == 200
        assert "Stopped." in json.dumps(lines)
        assert not any(line.get("position") == 0 for line in lines), "it was stopped before its turn"
        page.share("pause")
        for thread in threads:
            thread.join(60)
        page.share("resume")


def test_opening_a_link_makes_no_guest_until_the_button_is_pressed(page: SharedPage, link: str) -> None:
    with page.nobody() as preview:
        reply = preview.get(link)
        assert reply.status_code == 200
        assert "Talk to Tam" in reply.text
        assert not reply.cookies
        assert preview.get("/guest/state").status_code == 401


def test_the_owners_file_is_where_nobody_else_looks(page: SharedPage) -> None:
    """A guest's words are in no file; the log of the page has no password and no secret."""
    with Engine.open(page.home, readonly=True) as engine:
        assert list(engine.chats.folder.glob("*.json")) == []
    assert page.password not in "".join(line for line in page.told if "Your password" not in line)
