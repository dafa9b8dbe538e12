"""`persona-lab share ...`: links for guests, a pause, the owner's password. Works beside a running page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona_lab.cli.common import HomeOption, JsonOption, PersonaOption, opened, show

if TYPE_CHECKING:
    from persona_lab.access.records import GuestLink
    from persona_lab.engine import Engine

share_app = typer.Typer(no_args_is_help=True, help="Links for guests, pausing, and the owner's password.")


def _row(engine: Engine, link: GuestLink, secret: bool = False) -> dict[str, Any]:
    """A link as JSON-ready data; `secret`: with the address that opens it."""
    from persona_lab.access.signing import Signing

    row = link.model_dump(mode="json") | {"status": link.status}
    if secret:
        path = f"/g/{Signing(engine.access.key).link_token(link.id)}"
        address = engine.access.address()
        row |= {"path": path, "url": address + path if address else None}
    return row


@share_app.command("list")
def share_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Every link, newest first, with its address."""
    from persona_lab.cli.terminal import print_table

    with opened(home, readonly=True) as engine:
        rows = [_row(engine, link, link.status == "open") for link in engine.access.links()]
        paused = engine.access.read().paused
    columns = ("id", "name", "persona", "variants", "vote", "status", "expires", "path")
    table = [tuple(", ".join(v) if isinstance(v := row.get(c, ""), list) else v for c in columns) for row in rows]
    show(rows, as_json, lambda: print_table(columns, table, "No guest links yet; make one: persona-lab share create."))
    if paused and not as_json:
        typer.echo("Sharing is paused; go on with: persona-lab share resume.")


@share_app.command("create")
def share_create(
    persona: PersonaOption,
    variant: Annotated[list[str], typer.Option("--variant", help="Whom guests may talk to; may be repeated.")],
    vote: Annotated[bool, typer.Option("--vote", help="Guests compare two at a time, blind, and vote.")] = False,
    hours: Annotated[float, typer.Option(help="For so long it holds.", min=0.01)] = 24,
    name: Annotated[str, typer.Option(help="For your own list.")] = "",
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", help="Of a guest, as key=value, such as tokens=5000; may be repeated."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a link by which guests may talk to some variants of a character."""
    given = dict(_pair(text) for text in limit or ())
    with opened(home, readonly=True) as engine:
        limits = engine.guest_limits(given)
        link = engine.make_guest_link(persona, variant, vote=vote, hours=hours, name=name, limits=limits)
        row = _row(engine, link, True)
    where = row["url"] or f"the page's address, and then {row['path']}"
    show(row, as_json, lambda: typer.echo(f"{link.name}: until {link.expires}\n{where}"))


def _pair(text: str) -> tuple[str, str]:
    from persona_lab.errors import BadSetting

    key, separator, value = text.partition("=")
    if not separator:
        raise BadSetting(f"--limit {text!r} is not of the form key=value.", "Such as --limit tokens=5000.")
    return key.strip(), value.strip()


@share_app.command("revoke")
def share_revoke(link_id: str, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """End a link, and the visits of all who came by it."""
    with opened(home, readonly=True) as engine:
        row = _row(engine, engine.access.revoke(link_id))
    show(row, as_json, lambda: typer.echo(f"{row['name']} does not open any more."))


@share_app.command("pause")
def share_pause(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop answering guests, within a second also in the middle of a reply."""
    _pause(home, as_json, True)


@share_app.command("resume")
def share_resume(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Answer guests again."""
    _pause(home, as_json, False)


def _pause(home: Any, as_json: bool, paused: bool) -> None:
    with opened(home, readonly=True) as engine:
        engine.access.pause(paused)
    told = "Guests get no answers until: persona-lab share resume." if paused else "Guests are answered again."
    show({"paused": paused}, as_json, lambda: typer.echo(told))


@share_app.command("password")
def share_password(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """A new password for the owner, shown this once; who is logged in has to log in again."""
    with opened(home, readonly=True) as engine:
        password = engine.access.new_password()
    show({"password": password}, as_json, lambda: typer.echo(password))


@share_app.command("login-link")
def share_login_link(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The way into a running page without the password: once, within five minutes."""
    from persona_lab.access.signing import Signing

    with opened(home, readonly=True) as engine:
        path = f"/login?ticket={Signing(engine.access.key).ticket()}"
        address = engine.access.address()
    row = {"path": path, "url": address + path if address else None}
    show(row, as_json, lambda: typer.echo(row["url"] or f"the page's address, and then {path}"))
