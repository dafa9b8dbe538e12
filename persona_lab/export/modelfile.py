"""Ollama's Modelfile: the model's chat template as a Go template, writing the file, and reading one back strictly.

Grammar: https://github.com/ollama/ollama/blob/main/docs/modelfile.md and parser/parser.go. The Go template is derived
from what the jinja template does to sample conversations, and refused where it does not do the same to others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from persona_lab.datasets.templates import ChatTemplate, load_template
from persona_lab.errors import BadInput
from persona_lab.types import Message

PARAMETERS: Mapping[str, type] = {
    "num_ctx": int,
    "repeat_last_n": int,
    "repeat_penalty": float,
    "temperature": float,
    "seed": int,
    "stop": str,
    "num_predict": int,
    "top_k": int,
    "top_p": float,
    "min_p": float,
}
"""Those of Ollama's parameters that we write and read; `stop` may stand several times."""
_INSTRUCTIONS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE")
_AS_GGUF = "Export it as `gguf`: llama.cpp, LM Studio and KoboldCpp read the model's own template from the file."
_ROLES = ("system", "user", "assistant")
_S, _U, _A = "\u2402sys\u2403", "\u2402usr\u2403", "\u2402ast\u2403"


# --- the template ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoTemplate:
    """What stands before and after each role's text, and where the assistant begins to speak.

    `lead`: what the model's template puts first where no system message comes first.
    """

    around: Mapping[str, tuple[str, str]]
    prompt: str
    lead: str = ""

    def text(self) -> str:
        """As a Go template for `TEMPLATE`."""
        lead = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_go(self.lead)}{{{{ end }}}}' if self.lead else ""
        parts = []
        for number, (role, (before, after)) in enumerate(self.around.items()):
            condition = f'{"else if" if number else "if"} eq .Role "{role}"'
            parts.append(f"{{{{ {condition} }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}")
        turns = f"{{{{ range .Messages }}}}{''.join(parts)}{{{{ end }}}}{{{{ end }}}}"
        return f"{lead}{turns}{_go(self.prompt)}"

    def render(self, messages: Sequence[Message]) -> str:
        """What Ollama makes of these messages."""
        lead = self.lead if messages and messages[0].role != "system" else ""
        turns = "".join(self.around[m.role][0] + m.content + self.around[m.role][1] for m in messages)
        return f"{lead}{turns}{self.prompt}"


def _go(text: str) -> str:
    """Literal text in a Go template."""
    return text.replace("{{", '{{ "{{" }}')


def go_template(folder: Path) -> GoTemplate:
    """The chat template of a model folder for Ollama.

    Raises:
        BadInput: it does more than put something around each message. BadModel: there is none.
    """
    template = load_template(folder)
    try:
        found = _derived(template)
        for sample in _samples():
            whole = template.text([{"role": m.role, "content": m.content} for m in sample], generation_prompt=True)
            # Ollama and llama.cpp put the first token themselves
            if found is None or found.render(sample) != _without_bos(whole, template):
                raise BadInput(
                    "The model's chat template does more than Ollama's template language can be made to do here.",
                    _AS_GGUF,
                )
    except jinja2.TemplateError as error:
        raise BadInput(
            f"The model's chat template refuses a system message or a usual order of turns: {error}.",
            _AS_GGUF,
        ) from error
    assert found is not None
    return found


def _samples() -> list[list[Message]]:
    system, user, reply = (
        Message(role="system", content="Be Ann."),
        Message(role="user", content="Hi?"),
        Message(role="assistant", content="Ho."),
    )
    more = Message(role="user", content="And { then } 2?")
    return [[system, user], [user], [system, user, reply, more], [user, reply, more], [system, reply, user]]


def _without_bos(text: str, template: ChatTemplate) -> str:
    bos = template.special.get("bos_token", "")
    twice = bos and template.text([{"role": "user", "content": "a"}]).count(bos) > 1
    return text.removeprefix(bos) if bos and not twice and not _turn_opens_with(template, bos) else text


def _turn_opens_with(template: ChatTemplate, bos: str) -> bool:
    """Whether the first token is the sign of a turn (ChatML), not of a text."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    return template.text(turns).count(bos) > 1


def _derived(template: ChatTemplate) -> GoTemplate | None:
    turns = [
        {"role": "system", "content": _S},
        {"role": "user", "content": _U},
        {"role": "assistant", "content": _A},
        {"role": "user", "content": _U},
    ]
    closed = _without_bos(template.text(turns), template)
    opened = _without_bos(template.text(turns, generation_prompt=True), template)
    alone = _without_bos(template.text(turns[1:2]), template)
    parts = re.split(f"{_S}|{_U}|{_A}", closed)
    if len(parts) != 5 or not opened.startswith(closed) or alone.count(_U) != 1:
        return None
    # what stands between two turns is the end of the first and the beginning of the second: the beginning of a user's
    # turn is known from its end, which is the end of the whole
    end_user = parts[4]
    if not parts[2].startswith(end_user):
        return None
    before_assistant = parts[2][len(end_user) :]
    between = (parts[1], parts[3])  # system to user, assistant to user
    before_user = _common_end(*between)
    end_system, end_assistant = (text[: len(text) - len(before_user)] for text in between)
    if end_system == end_assistant == "" and end_user and before_user.startswith(end_user):
        end_system = end_assistant = end_user
        before_user = before_user[len(end_user) :]
    lead = alone.split(_U)[0]
    if not lead.endswith(before_user):
        return None
    around = {
        "system": (parts[0], end_system),
        "user": (before_user, end_user),
        "assistant": (before_assistant, end_assistant),
    }
    return GoTemplate(around, opened[len(closed) :], lead.removesuffix(before_user))


def _common_end(a: str, b: str) -> str:
    length = 0
    while length < min(len(a), len(b)) and a[-1 - length] == b[-1 - length]:
        length += 1
    return a[len(a) - length :]


# --- the file -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile's instructions."""

    source: str
    template: str = ""
    system: str = ""
    parameters: Sequence[tuple[str, str | int | float]] = ()
    messages: Sequence[tuple[str, str]] = ()
    license: str = ""
    comments: Sequence[str] = field(default_factory=tuple)


def write_modelfile(path: Path, model: Modelfile) -> Path:
    """Write it, and read it back: what Ollama would read is what was meant.

    Raises:
        BadInput: a text cannot be written so that it is read back the same.
    """
    lines = [*(f"# {' '.join(comment.split())}" for comment in model.comments), f"FROM {model.source}"]
    lines += [f"PARAMETER {name} {_quoted(v) if isinstance(v, str) else v}" for name, v in model.parameters]
    for name, text in (("TEMPLATE", model.template), ("SYSTEM", model.system), ("LICENSE", model.license)):
        if text:
            lines.append(f"{name} {_quoted(text)}")
    lines += [f"MESSAGE {role} {_quoted(text)}" for role, text in model.messages]
    text = "\n".join(lines) + "\n"
    again = parse_modelfile(text)
    same = (
        again.source,
        again.template,
        again.system,
        list(again.parameters),
        list(again.messages),
        again.license,
    ) == (
        model.source,
        model.template,
        model.system,
        list(model.parameters),
        list(model.messages),
        model.license,
    )
    if not same:
        raise BadInput(
            "A text of this character has a line that ends in three double quotes, which a Modelfile cannot hold.",
            "Take the quotes out of the card or its greeting.",
        )
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _quoted(text: str) -> str:
    """As a value. Three quotes hold all but a line that ends in three quotes, which `write_modelfile` notices."""
    return f'"""{text}"""'


def parse_modelfile(text: str) -> Modelfile:
    """Read a Modelfile as strictly as Ollama does.

    Raises:
        BadInput: an unknown instruction, parameter or role, a value of the wrong type, an open quote, or no FROM.
    """
    found: dict[str, str] = {}
    parameters: list[tuple[str, str | int | float]] = []
    messages: list[tuple[str, str]] = []
    for number, name, word, value in _instructions(text):
        if name == "PARAMETER":
            parameters.append((word, _parameter(number, word, value)))
        elif name == "MESSAGE":
            if word not in _ROLES:
                raise BadInput(f"Line {number}: {word!r} is no role of a MESSAGE.", f"Roles: {', '.join(_ROLES)}.")
            messages.append((word, value))
        else:
            found[name] = value
    if not found.get("FROM"):
        raise BadInput("The Modelfile has no FROM.", "Name the model's file: FROM ./model.gguf.")
    return Modelfile(
        found["FROM"],
        found.get("TEMPLATE", ""),
        found.get("SYSTEM", ""),
        parameters,
        messages,
        found.get("LICENSE", ""),
    )


def _instructions(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, instruction, a parameter's name or a message's role, value).

    As Ollama's parser, a value goes on over line ends until what has been read is no open quote any more.
    """
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        word = ""
        if name.upper() not in _INSTRUCTIONS:
            raise BadInput(f"Line {number}: {name!r} is no instruction.", f"Known: {', '.join(_INSTRUCTIONS)}.")
        if name.upper() in ("PARAMETER", "MESSAGE"):
            word, _, value = value.strip().partition(" ")
        while (whole := _unquoted(value.strip())) is None:
            if at == len(lines):
                raise BadInput(f"Line {number}: a quoted text does not end.", 'Close it with """.')
            value += "\n" + lines[at]
            at += 1
        yield number, name.upper(), word, whole


def _unquoted(value: str) -> str | None:
    """A value without its quotes; None while a quote is open."""
    for quote in ('"""', '"'):
        if value.startswith(quote):
            closed = len(value) >= 2 * len(quote) and value.endswith(quote)
            return value[len(quote) : -len(quote)] if closed else None
    return value


def _parameter(number: int, name: str, value: str) -> str | int | float:
    if name not in PARAMETERS:
        raise BadInput(f"Line {number}: {name!r} is no parameter known here.", f"Known: {', '.join(PARAMETERS)}.")
    try:
        return PARAMETERS[name](value)
    except ValueError:
        kind = PARAMETERS[name].__name__
        raise BadInput(f"Line {number}: {name} must be a number ({kind}), not {value!r}.") from None
