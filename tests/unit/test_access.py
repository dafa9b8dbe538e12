"""Passwords, links, sessions, throttles and the waiting line: what decides who may do what, without a page."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from persona_lab.access.line import Line, LineFull
from persona_lab.access.passwords import hash_password, make_password, matches
from persona_lab.access.records import GuestLimits, GuestLink
from persona_lab.access.sessions import GUEST_IDLE, NEVER_CAME, OWNER_IDLE, OWNER_LONGEST, Guests, OwnerSessions
from persona_lab.access.signing import TICKET_SECONDS, Signing
from persona_lab.access.store import AccessStore
from persona_lab.access.throttle import FREE_TRIES, LONGEST_WAIT, Bucket, LoginThrottle
from persona_lab.errors import BadInput, BadSetting, UnknownName

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def link(**changed: object) -> GuestLink:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    known = {"id": "a1", "name": "n", "persona": "tam", "variants": ("v1", "v2"), "created": later, "expires": later}
    return GuestLink.model_validate(known | changed)


# --- passwords ------------------------------------------------------------------------------------


def test_a_password_is_kept_as_a_hash_that_only_it_matches() -> None:
    password = make_password()
    assert len(password) == 19
    assert make_password() != password
    kept = hash_password(password)
    assert password not in kept
    assert kept != hash_password(password)
    assert matches(password, kept)
    for wrong in ("", password + "x", password.upper(), "x" * 2000):
        assert not matches(wrong, kept)
    for damaged in ("", "scrypt$1", "plain$1$1$1$a$b", "scrypt$a$b$c$d$e", kept.replace("scrypt", "md5")):
        assert not matches(password, damaged)


def test_a_flood_of_passwords_takes_the_memory_of_one() -> None:
    """The threads of a pool would each keep what one hash takes."""
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
import psutil
from persona_lab.access import passwords
kept = passwords.hash_password("right")
before = psutil.Process().memory_info().rss
together = threading.Barrier(8)
def guess(number):
    together.wait()
    return passwords.matches("wrong", kept)
with ThreadPoolExecutor(8) as pool:
    assert not any(pool.map(guess, range(16)))
    grown = psutil.Process().memory_info().rss - before
assert grown < 34e6, f"{grown / 1e6:.0f} MB more"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_store_shows_a_password_once_and_keeps_its_hash(tmp_path: Path) -> None:
    store = AccessStore(tmp_path)
    first = store.first_password()
    assert matches(first, store.read().password)
    assert store.first_password() == ""
    second = store.new_password()
    assert not matches(first, store.read().password)
    assert matches(second, store.read().password)
    assert first not in (tmp_path / "sharing/sharing.json").read_text()


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_nobody_else_on_the_machine_reads_key_and_hash(tmp_path: Path) -> None:
    store = AccessStore(tmp_path)
    store.new_password()
    assert len(store.key) == 32
    for name in ("key", "sharing.json"):
        assert stat.S_IMODE((tmp_path / "sharing" / name).stat().st_mode) & 0o077 == 0


# --- links ----------------------------------------------------------------------------------------


def test_a_link_is_revoked_for_every_reader_at_once(tmp_path: Path) -> None:
    page, terminal = AccessStore(tmp_path), AccessStore(tmp_path)
    made = page.make_link("tam", ["v1", "v2", "v1"], vote=True, hours=2)
    assert made.variants == ("v1", "v2")
    assert terminal.link(made.id) == made
    assert terminal.revoke(made.id).status == "revoked"
    assert page.link(made.id).status == "revoked"
    with pytest.raises(UnknownName):
        page.revoke("nothing")
    assert not page.read().paused
    terminal.pause(True)
    assert page.read().paused


def test_a_link_that_allows_nothing_is_not_made(tmp_path: Path) -> None:
    store = AccessStore(tmp_path)
    for variants, settings in (([], {}), (["v1"], {"vote": True}), (["v1"], {"hours": 0}), (["v1"], {"hours": 1e9})):
        with pytest.raises(BadSetting):
            store.make_link("tam", variants, **settings)
    with pytest.raises(BadSetting):
        store.make_link("tam", [f"v{n}" for n in range(13)])
    assert store.links() == ()


def test_a_link_expires_by_itself() -> None:
    made = link()
    assert made.status == "open"
    assert made.expired(datetime.now(UTC) + timedelta(hours=2))
    assert link(expires=(datetime.now(UTC) - timedelta(seconds=1)).isoformat()).status == "expired"


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    store = AccessStore(tmp_path)
    store.make_link("tam", ["v1"])
    (tmp_path / "sharing/sharing.json").write_text('{"links": 7}')
    with pytest.raises(BadInput, match="cannot be read"):
        store.read()


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from persona_lab.access.store import AccessStore\n"
        f"store = AccessStore(Path({str(tmp_path)!r}))\n"
        "for n in range(10): store.make_link('tam', ['v1'], name=f'{sys.argv[1]} {n}')\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("a", "b")]
    assert [process.wait(60) for process in both] == [0, 0]
    names = {made.name for made in AccessStore(tmp_path).links()}
    assert names == {f"{who} {n}" for who in "ab" for n in range(10)}


def test_signed_texts_are_worth_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = Signing(b"k" * 32), Signing(b"o" * 32)
    token = mine.link_token("a1b2")
    assert mine.link_id(token) == "a1b2"
    assert other.link_id(token) is None
    for changed in (token[:-1], token + "A", "x" + token, token.replace(".", ""), "", "é" * 50, "a" * 5000):
        assert mine.link_id(changed) is None
    ticket = mine.ticket()
    assert mine.ticket_id(ticket)
    # one kind of text is not taken for another
    assert mine.link_id(ticket) is None
    assert mine.device_id(ticket) is None
    assert mine.ticket_id(token) is None
    import time

    later = time.time() + TICKET_SECONDS + 5
    monkeypatch.setattr("time.time", lambda: later)
    assert mine.ticket_id(ticket) is None
    assert mine.link_id(token) == "a1b2"


# --- sessions -------------------------------------------------------------------------------------


def test_a_session_of_the_owner_ends_by_itself_and_with_the_password() -> None:
    clock, password = Clock(), ["one"]
    sessions = OwnerSessions(lambda: password[0], clock)
    secret = sessions.begin("ann")
    assert sessions.user(secret) == "ann"
    assert sessions.user("") is None
    assert sessions.user(secret + "x") is None
    clock.now += OWNER_IDLE + 1
    assert sessions.user(secret) is None
    used = sessions.begin("ann")
    for _ in range(int(OWNER_LONGEST / OWNER_IDLE) + 1):
        assert sessions.user(used) == "ann"
        clock.now += OWNER_IDLE - 1
        if clock.now - 1000 - OWNER_IDLE > OWNER_LONGEST:
            break
    clock.now += OWNER_IDLE - 1
    assert sessions.user(used) is None
    third = sessions.begin("ann")
    password[0] = "two"
    assert sessions.user(third) is None
    fourth = sessions.begin("ann")
    sessions.end(fourth)
    assert sessions.user(fourth) is None
    many = [sessions.begin("ann") for _ in range(60)]
    assert sessions.user(many[-1]) == "ann"
    assert sessions.user(many[0]) is None


def test_guests_are_counted_by_link_and_go_when_they_are_idle() -> None:
    clock = Clock()
    guests = Guests(clock)
    small = link(limits=GuestLimits(guests=2))
    first, guest = guests.begin(small)
    guests.begin(small)
    with pytest.raises(BadInput, match="2 guests"):
        guests.begin(small)
    guests.begin(link(id="a2"))
    assert guests.get(first) is guest
    assert guests.get("other") is None
    assert first not in repr(guests._guests)
    clock.now += GUEST_IDLE + 1
    assert guests.get(first) is None
    assert guests.all() == []
    again, guest = guests.begin(small)
    assert guests.end(guest.id)
    assert guests.get(again) is None


def test_a_session_that_nobody_came_back_with_frees_its_place_soon() -> None:
    clock = Clock()
    guests = Guests(clock)
    small = link(limits=GuestLimits(guests=2))
    secret, came = guests.begin(small)
    assert guests.get(secret) is came
    _, never = guests.begin(small)
    clock.now += NEVER_CAME + 1
    guests.begin(small)
    assert never.ended
    assert not came.ended
    assert guests.get(secret) is came


def test_a_new_visit_does_not_renew_what_a_link_may_cost() -> None:
    clock = Clock()
    guests = Guests(clock)
    limited = link(limits=GuestLimits(tokens=100, link_tokens=150))
    _, first = guests.begin(limited)
    guests.spend(first, 100)
    assert guests.left(first, limited) == 0
    _, second = guests.begin(limited)
    assert guests.left(second, limited) == 50
    guests.spend(second, 60)
    assert guests.left(second, limited) == 0
    clock.now += 24 * 3600 + 1
    _, third = guests.begin(limited)
    assert guests.left(third, limited) == 100


# --- limits ---------------------------------------------------------------------------------------


def test_nothing_is_kept_of_links_that_nobody_uses_any_more() -> None:
    clock = Clock()
    guests = Guests(clock)
    for number in range(300):
        used = link(id=f"link-{number}")
        _, guest = guests.begin(used)
        guests.spend(guest, 10)
        guests.end_link(used.id)
        clock.now += 600
    kept = 24 * 3600 / 600 + 1
    assert len(guests._spent) <= kept, "what was spent within a day still counts, nothing else"
    assert len(guests._doors) == 1, "who came within a minute still counts, nothing else"
    assert guests.left(guest, used) == used.limits.tokens - 10


def test_a_bucket_refills() -> None:
    clock = Clock()
    bucket = Bucket(3, 60, clock)
    assert [bucket.take() for _ in range(3)] == [0, 0, 0]
    assert bucket.take() == pytest.approx(20)
    clock.now += 20
    assert bucket.take() == 0
    assert bucket.take() > 0


def test_wrong_passwords_wait_longer_and_longer_and_a_known_browser_does_not_wait_for_strangers() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    assert [throttle.begin() for _ in range(FREE_TRIES)] == [0.0] * FREE_TRIES
    waits = []
    for _ in range(9):
        wait = throttle.begin()
        assert wait > 0
        waits.append(wait)
        clock.now += wait
        assert throttle.begin() == 0
    assert waits == sorted(waits)
    assert waits[0] == 1
    assert waits[-1] == LONGEST_WAIT
    assert throttle.begin("a browser that is known") == 0
    clock.now += LONGEST_WAIT
    assert throttle.begin() == 0
    throttle.right()
    assert throttle.begin() == 0


def test_a_flood_of_logins_is_let_through_a_few_times_an_hour() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    tried = 0
    for _ in range(200 * 60):
        tried += throttle.begin() == 0
        clock.now += 1 / 200
    assert tried <= FREE_TRIES + 7


def test_the_line_serves_in_order_and_says_who_must_come_back() -> None:
    async def play() -> None:
        line = Line(at_once=1, most_waiting=2)
        first, second, third = line.join(), line.join(), line.join()
        assert [place.position for place in (first, second, third)] == [0, 1, 2]
        with pytest.raises(LineFull) as full:
            line.join()
        assert full.value.position == 3
        assert await first.wait(0.01)
        assert not await second.wait(0.01)
        second.leave()  # gone while waiting
        assert third.position == 1
        first.leave()
        first.leave()
        assert await third.wait(0.01)
        third.leave()
        assert line.join().position == 0

    asyncio.run(play())


# --- content filters ------------------------------------------------------------------------------

FILTER = """
from persona_lab.api import hookimpl

@hookimpl
def persona_lab_guest_text(text, role):
    if "boom" in text:
        raise RuntimeError("no idea")
    return f"Not here ({role})." if "forbidden" in text else None
"""


def test_a_filter_refuses_with_its_own_words_and_one_that_fails_stops_everything(tmp_path: Path) -> None:
    from persona_lab.plugins import Plugins

    assert not Plugins.load().filtering
    assert Plugins.load().refusal("anything", "user", "tam") == ""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/polite.py").write_text(FILTER)
    plugins = Plugins.load(tmp_path / "plugins")
    assert plugins.filtering
    assert plugins.refusal("hello", "user", "tam") == ""
    assert plugins.refusal("a forbidden word", "assistant", "tam") == "Not here (assistant)."
    assert "could not be checked" in plugins.refusal("boom", "user", "tam")
    assert "could not be checked" in plugins.refusal("boom", "user", "tam")
    failed = [info for info in plugins.infos() if info.status == "failed"]
    assert [info.id for info in failed] == ["polite"]
    assert "no idea" in failed[0].problem


# --- the command ----------------------------------------------------------------------------------


def test_the_command_makes_lists_and_revokes_links_beside_an_open_home(tmp_path: Path) -> None:
    from persona_lab.engine import Engine

    card = tmp_path / "tam.json"
    card.write_text(json.dumps({"name": "Tam", "description": "A mender of clocks."}))

    def command(*arguments: str, code: int = 0) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "persona_lab.cli", "share", *arguments, "--home", str(tmp_path / "home"), "--json"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else {"told": done.stderr}

    with Engine.open(tmp_path / "home") as engine:
        engine.import_persona(card, "tam")
        made = command("create", "--persona", "tam", "--variant", "base-tam", "--limit", "tokens=500", "--hours", "3")
        assert made["limits"]["tokens"] == 500  # type: ignore[index]
        assert made["url"] is None
        assert str(made["path"]).startswith("/g/")
        assert [row["id"] for row in command("list")] == [made["id"]]  # type: ignore[index]
        assert "tokens" in str(
            command("create", "--persona", "tam", "--variant", "base-tam", "--limit", "tokns=5", code=2)
        )
        command("create", "--persona", "tam", "--variant", "nothing", code=2)
        assert command("pause") == {"paused": True}
        assert engine.access.read().paused
        assert command("resume") == {"paused": False}
        assert command("revoke", str(made["id"]))["status"] == "revoked"
        assert engine.access.link(str(made["id"])).status == "revoked"
        engine.access.publish("https://lab.example.org")
        assert str(command("login-link")["url"]).startswith("https://lab.example.org/login?ticket=")
        assert len(str(command("password")["password"])) == 19
