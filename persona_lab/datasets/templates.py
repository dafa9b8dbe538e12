"""Chat templates: finding one in a model folder and rendering it to text in a sandbox, as transformers does.

Source: transformers 5.23, utils/chat_template_utils.py (`_cached_compile_jinja_template`, `mark_control_tokens`).
It does not tokenize (rendering.py does), so neither transformers nor torch is needed.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from persona_lab.errors import BadModel

# Private-use characters put around control tokens in people's text, so that only the template can write real ones.
MARK_START = "\U000f0000"
MARK_END = "\U000f0001"


class _GenerationBlocks(jinja2.ext.Extension):
    """Lets templates use `{% generation %}`; what is inside is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - so declared by jinja

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _SafeNamespace(jinja2.utils.Namespace):
    """A namespace that refuses underscore names, which could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as jinja's own: `namespace(self=...)` must work
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _SafeNamespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _SafeNamespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"Chat templates cannot store the attribute {name!r}.")


class _TemplateDict:
    """`dict(...)` for templates, without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the jinja text.
        special: what the template may refer to: bos_token, eos_token, ...

    Raises:
        BadModel: the template is not valid jinja.
    """

    def __init__(self, source: str, special: dict[str, str]) -> None:
        self.source = source
        self.special = special
        started = datetime.now()  # one time for the whole life: the same conversation always renders the same
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = started.strftime
        environment.globals["dict"] = _TemplateDict()
        environment.globals["namespace"] = _SafeNamespace
        try:
            self._template = environment.from_string(source)
            nodes = environment.parse(source)
        except jinja2.TemplateError as error:
            raise BadModel(f"The model's chat template cannot be read: {error}.", "Use another base model.") from error
        literals = {node.data for node in nodes.find_all(jinja2.nodes.TemplateData)}
        literals |= {str(node.value) for node in nodes.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
        self.literal_text = "\0".join(sorted(literals))
        """The template's own text: added tokens found in it are control tokens."""

    def text(self, messages: list[dict[str, str]], generation_prompt: bool = False) -> str:
        """The conversation as text.

        Raises:
            jinja2.TemplateError: the template refuses these roles.
        """
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=generation_prompt, **self.special
        )


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own filter escapes HTML characters
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def load_template(folder: Path) -> ChatTemplate:
    """The chat template of a model folder: chat_template.jinja, else the one in tokenizer_config.json.

    Raises:
        BadModel: there is none.
    """
    config = read_config(folder / "tokenizer_config.json")
    source: Any = config.get("chat_template")
    if isinstance(source, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default") or next(iter(named.values()), None)
    if (folder / "chat_template.jinja").is_file():
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not isinstance(source, str) or not source.strip():
        raise BadModel(
            f"The model in {folder} has no chat template, so it cannot hold a conversation.",
            "Use an instruction-tuned (chat) model, or put a chat_template.jinja into its folder.",
        )
    return ChatTemplate(source, _special_tokens({**read_config(folder / "special_tokens_map.json"), **config}))


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    special: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    return special


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; empty where the file is missing.

    Raises:
        BadModel: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{path} is damaged: {error}.", "Fetch the model again.") from error
    return value if isinstance(value, dict) else {}


def control_token_pattern(tokens: list[str]) -> re.Pattern[str]:
    """Matches any of `tokens`, longer ones first; matches nothing when there are none."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)")
