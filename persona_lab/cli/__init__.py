"""The `persona-lab` command: everything the page does, for scripts. Parses, calls the engine, prints.

Exit codes: 0 ok, 1 the work failed, 2 bad usage or bad input, 130 cancelled. With `--json` exactly one JSON document is
printed on standard output; logs and progress are on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from persona_lab.cli.bench import bench_strategies
from persona_lab.cli.common import HomeOption, JsonOption, opened, show
from persona_lab.cli.datasets import datasets_app
from persona_lab.cli.judging import feedback_app, votes_app
from persona_lab.cli.keeping import backup, restore
from persona_lab.cli.library import models_app, variants_app
from persona_lab.cli.personas import personas_app
from persona_lab.cli.plugin_kit import new_plugin
from persona_lab.cli.probes import probes_app
from persona_lab.cli.serving import serve_api
from persona_lab.cli.share import share_app
from persona_lab.cli.studio import studio_app
from persona_lab.cli.traits import traits_app
from persona_lab.cli.work import commands, runs_app
from persona_lab.errors import PersonaLabError

app = typer.Typer(
    name="persona-lab",
    help="Build characters out of small open language models, and measure how well it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Parsed by `main`, which takes --debug out of the arguments; listed here for --help."""


# --- the machine and the plugins ------------------------------------------------------------------


@app.command()
def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Put aside what is damaged, put right what can be.")] = False,
    checksums: Annotated[bool, typer.Option("--checksums", help="Compare weights with what training wrote.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Versions, device, memory, disk, the starter model, and what of the data folder is damaged or half-made."""
    from persona_lab import checkup
    from persona_lab.cli.doctor import examine, print_findings
    from persona_lab.cli.terminal import print_table
    from persona_lab.home import Home

    place = Home.resolve(home)
    findings = (checkup.repair if repair else checkup.examine)(place, checksums)
    report = examine(place, findings)

    def tell() -> None:
        print_table(("", ""), _flat({key: value for key, value in report.items() if key != "findings"}), "")
        print_findings(findings, repair)

    show(report, as_json, tell)


def _flat(report: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in report.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


@app.command()
def plugins(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Strategies, evaluators, readers and exporters, where they come from, and which have problems."""
    from persona_lab.cli.terminal import print_table
    from persona_lab.plugins import Plugins

    with opened(home, readonly=True) as engine:
        # tabs too: a plugin's broken tab should show here as it does in the page
        infos = Plugins.load(engine.home.plugins, tabs=True).infos()
    columns = ("id", "kind", "source", "version", "status", "problem")
    rows = [(i.id, i.kind, i.source, i.version, i.status, i.problem) for i in infos]
    show(infos, as_json, lambda: print_table(columns, rows, "No plugins."))


@app.command()
def serve(
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="With any other than loopback the page asks for a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Or the next free one.", min=0, max=65535)] = 7860,
    share: Annotated[bool, typer.Option("--share", help="A public link; the page asks for a password.")] = False,
    public_url: Annotated[str, typer.Option(help="Where a proxy or tunnel of your own shows the page.")] = "",
    no_browser: Annotated[bool, typer.Option("--no-browser")] = False,
) -> None:
    """Start the page, the same as python app.py."""
    from persona_lab.ui.app import serve as serve_page

    serve_page(str(home) if home else None, host, port, share, not no_browser, "--debug" in sys.argv, public_url)


app.command()(backup)
app.command()(restore)
app.command("bench-strategies")(bench_strategies)
app.command("serve-api")(serve_api)
app.command("new-plugin")(new_plugin)
app.add_typer(commands)
for _name, _group in (
    ("personas", personas_app),
    ("datasets", datasets_app),
    ("probes", probes_app),
    ("models", models_app),
    ("runs", runs_app),
    ("variants", variants_app),
    ("traits", traits_app),
    ("votes", votes_app),
    ("feedback", feedback_app),
    ("studio", studio_app),
    ("share", share_app),
):
    app.add_typer(_group, name=_name)


def main() -> None:
    """The console script: runs the command, and turns errors into one paragraph and an exit code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(args=arguments, standalone_mode=False)
    except PersonaLabError as error:
        if debug:
            raise
        from persona_lab.cli.terminal import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if debug or not hasattr(error, "show"):
            _report_bug(error, debug)
        error.show()  # type: ignore[attr-defined]  # typer's own usage errors
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _report_bug(error: Exception, debug: bool) -> None:
    """The process border: an error nobody foresaw becomes a paragraph too."""
    if debug:
        raise error
    sys.stderr.write(f"persona-lab: {type(error).__name__}: {error}. This looks like a fault of ours; see --debug.\n")
    sys.exit(1)
