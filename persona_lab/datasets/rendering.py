"""Conversations to token ids with an exact completion mask, through the model's own chat template.

Needs tokenizers and jinja2 only, so that the page can preview what is trained on. It does not batch or pad: the
training and scoring rooms do.

The mask comes from prefixes: for each assistant turn the conversation is rendered up to the generation prompt; what
follows it, up to and with the end-of-turn token, is trained on. Where a template's prefixes do not nest, that is an
error: never a wrong mask.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2

from persona_lab.datasets.batching import KEPT_CONTEXT
from persona_lab.datasets.encoding import MarkedTokenizer, count_before
from persona_lab.datasets.templates import load_template, read_config
from persona_lab.errors import BadInput
from persona_lab.types import Conversation, Message, PreviewToken, Problem, Rendered

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Text:
    """A conversation as marked text. `spans`: [start, end) of what is trained on; `prefix`: end of the system text."""

    text: str
    spans: tuple[tuple[int, int], ...]
    prefix: int


_LOADING = threading.Lock()


def renderer_of(model_dir: Path) -> ChatRenderer:
    """The renderer of a model's folder, shared: a tokenizer takes tens of megabytes and a fraction of a second.

    Raises:
        BadModel, BadInput: as `ChatRenderer`.
    """
    files = (model_dir / name for name in ("tokenizer.json", "tokenizer_config.json", "config.json"))
    changed = tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)
    with _LOADING:  # two threads that ask at once must not load it twice
        return _kept(model_dir, changed)


@lru_cache(maxsize=2)
def _kept(model_dir: Path, changed: tuple[int, ...]) -> ChatRenderer:
    return ChatRenderer(model_dir)


class ChatRenderer:
    """Renders conversations for one base model.

    Text in a message that spells a control token (`<|im_start|>`) is encoded as plain text, as transformers'
    `sanitize_control_tokens` does, so nobody's dataset or question can forge a turn.

    Args:
        model_dir: folder with tokenizer.json, tokenizer_config.json, config.json and a chat template.

    Raises:
        BadModel: the tokenizer or the template is missing or damaged.
    """

    def __init__(self, model_dir: Path) -> None:
        self.folder = Path(model_dir)
        self._template = load_template(self.folder)
        self._tokens = MarkedTokenizer(self.folder, self._template.literal_text)
        self._prefix_of = lru_cache(maxsize=64)(self._prefix_text)
        self.vocabulary_size: int = self._tokens.vocabulary_size
        self._read_configs()

    def _read_configs(self) -> None:
        config = read_config(self.folder / "config.json")
        generation = read_config(self.folder / "generation_config.json")
        nested = config.get("text_config")
        inner: dict[str, Any] = nested if isinstance(nested, dict) else {}
        names = ("max_position_embeddings", "n_positions", "seq_length")
        length = next((part[name] for part in (config, inner) for name in names if part.get(name)), None)
        self.context_length: int = length if isinstance(length, int) else 2048
        self.eos_ids: tuple[int, ...] = tuple(
            dict.fromkeys(self._end_of_turn() + _ids(config.get("eos_token_id")) + _ids(generation.get("eos_token_id")))
        )
        named = self._tokens.id_of(self._template.special.get("pad_token", ""))
        candidates = _ids(named) + _ids(config.get("pad_token_id")) + list(self.eos_ids)
        self.pad_id: int = candidates[0] if candidates else 0

    def _end_of_turn(self) -> list[int]:
        """Ids that end a reply: the tokenizer's eos, and what the template writes after an assistant's turn."""
        found = self._tokens.id_of(self._template.special.get("eos_token", ""))
        sample = self._layout((("user", "a"), ("assistant", "b")))
        start, end = sample.spans[-1]
        tail = self._tokens.encode(sample.text[start:end])[0]
        return [*_ids(tail[-1] if tail and tail[-1] in self._tokens.special_ids else None), *_ids(found)]

    # --- public -------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], max_tokens: int | None = None) -> Rendered:
        """A conversation for training: ids, and True in the mask for each reply's tokens and its end-of-turn token.

        Args:
            max_tokens: longer conversations lose their oldest user/assistant pairs, then the beginning of the last
                question, then, where the system prompt and the last reply leave no room for one, that of the system
                prompt; the reply itself is cut only when it alone is too long.

        Raises:
            BadInput: there is no assistant turn, or this template cannot be masked exactly.
        """
        turns = _turns(messages)
        if not any(role == "assistant" for role, _ in turns):
            raise BadInput("A conversation has no reply of the assistant to train on.", "Add one, or remove it.")
        rendered = self._render(turns)
        if max_tokens is None or len(rendered.ids) <= max_tokens:
            return rendered
        while len(rendered.ids) > max_tokens and (shorter := _without_oldest(turns)) is not None:
            turns = shorter
            rendered = self._render(turns)
        if len(rendered.ids) <= max_tokens:
            return rendered.model_copy(update={"truncated": True})
        return _cut(rendered, max_tokens, self._opening(turns))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation as ids, ending where the assistant's next reply begins.

        Where the last turn is the assistant's, it is a reply that is not finished: the ids end with it.

        Raises:
            BadInput: the template refuses these turns.
        """
        turns = _turns(messages)
        begun = ""
        if len(turns) > 1 and turns[-1][0] == "assistant":
            begun, turns = turns[-1][1], turns[:-1]
        try:
            text = self._text(self._fitted(turns), generation_prompt=True)
        except jinja2.TemplateError as error:
            raise _refused(error) from error
        return self._tokens.encode(text + self._tokens.mark(begun))[0]

    def text_ids(self, text: str) -> list[int]:
        """Plain text as ids, without a template and without special tokens."""
        return self._tokens.encode(self._tokens.mark(text))[0]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Ids as text."""
        return self._tokens.decode(ids, skip_special)

    def preview(self, messages: Sequence[Message], max_tokens: int | None = None) -> list[PreviewToken]:
        """Each token as text, and whether it is trained on. A character of several tokens stands at its last one."""
        rendered = self.render(messages, max_tokens)
        tokens: list[PreviewToken] = []
        pending: list[int] = []
        for number, trained in zip(rendered.ids, rendered.mask, strict=True):
            pending.append(number)
            text = self.decode(pending, skip_special=False)
            whole = not text.endswith("\ufffd") or len(pending) >= 6
            tokens.append(PreviewToken(text=text if whole else "", trained=trained))
            pending = [] if whole else pending
        return tokens

    # --- text ---------------------------------------------------------------------------------------

    def _text(self, turns: Turns, generation_prompt: bool = False) -> str:
        return self._template.text(
            [{"role": role, "content": self._tokens.mark(content)} for role, content in turns], generation_prompt
        )

    def _accepts(self, turns: Turns) -> bool:
        try:
            return self._tokens.mark(turns[0][1]).strip() in self._text(turns)
        except jinja2.TemplateError:
            return False

    @cached_property
    def _takes_system(self) -> bool:
        return self._accepts((("system", "Zq7"), ("user", "a"), ("assistant", "b")))

    @cached_property
    def _takes_greeting(self) -> bool:
        return self._accepts((("assistant", "Zq7"), ("user", "a"), ("assistant", "b")))

    @cached_property
    def takes_system_between(self) -> bool:
        """Whether the template writes a system message between turns, and after the last one, where it stands."""
        turns: Turns = (("system", "a"), ("user", "Zq5"), ("assistant", "Zq6"))
        for more in ((("system", "Zq7"), ("user", "Zq8")), (("user", "Zq7"), ("system", "Zq8"))):
            try:
                text = self._text((*turns, *more), generation_prompt=True)
            except jinja2.TemplateError:
                return False
            places = [text.find(word) for word in ("Zq5", "Zq6", "Zq7", "Zq8")]
            if -1 in places or places != sorted(places):
                return False
        return True

    def _fitted(self, turns: Turns) -> Turns:
        """The turns as this template takes them: a refused (or ignored) system message goes into the first user turn,
        which is made where a refused greeting of the assistant comes first."""
        if turns and turns[0][0] == "system" and not self._takes_system:
            system, rest = turns[0][1], turns[1:]
            if rest and rest[0][0] == "user":
                return (("user", f"{system}\n\n{rest[0][1]}"), *rest[1:])
            return (("user", system), *rest)
        first = turns[1:2] if turns and turns[0][0] == "system" else turns[:1]
        if first and first[0][0] == "assistant" and not self._takes_greeting:
            at = turns.index(first[0])
            return (*turns[:at], ("user", "Hello."), *turns[at:])
        return turns

    def _layout(self, turns: Turns) -> _Text:
        turns = self._fitted(turns)
        try:
            text = self._text(turns)
            spans = tuple(self._span(text, turns, i) for i, turn in enumerate(turns) if turn[0] == "assistant")
        except jinja2.TemplateError as error:
            raise _refused(error) from error
        prefix = self._prefix_of(turns[0][1]) if turns[0][0] == "system" else ""
        return _Text(text, spans, len(prefix) if text.startswith(prefix) else 0)

    def _prefix_text(self, system: str) -> str:
        """The system message alone as text; empty where the template does not render it alone."""
        try:
            return self._text((("system", system),))
        except jinja2.TemplateError:
            return ""

    def _span(self, text: str, turns: Turns, index: int) -> tuple[int, int]:
        """[start, end) in `text` of the assistant turn at `index` with its end-of-turn token."""
        body = self._tokens.mark(turns[index][1]).strip()
        whole = text if index == len(turns) - 1 else self._text(turns[: index + 1])
        # with nothing before it, some templates render nothing (not even their default system message)
        before = self._text(turns[:index], generation_prompt=True) if index else whole[: whole.find(body)]
        if not text.startswith(before):
            raise _unmaskable(index)
        start = len(before)
        nested = text.startswith(whole) and len(whole) > start
        tail = text[start : len(whole)] if nested else text[start:]
        at = tail.find(body)
        # a template may write something between prompt and reply (an empty thought), but only in the last turn
        if not body or at < 0 or (not nested and tail[:at].strip()):
            raise _unmaskable(index)
        after = start + at + len(body)
        ending = self._tokens.control.search(text, after, start + len(tail))
        if ending is None and not nested:
            raise _unmaskable(index)
        return start, ending.end() if ending else start + len(tail)

    # --- tokens -------------------------------------------------------------------------------------

    def _render(self, turns: Turns) -> Rendered:
        layout = self._layout(turns)
        ids, starts = self._tokens.encode(layout.text)
        cuts = [start for start, _ in layout.spans]
        if any(self._tokens.crosses(layout.text, cut, ids, starts) for cut in cuts):
            # a token crosses from prompt to reply: encode the parts apart, as they are when the model is used
            ids, starts = self._tokens.encode_parts(layout.text, cuts)
        mask = [False] * len(ids)
        for start, end in layout.spans:
            for position in range(count_before(starts, start), count_before(starts, end)):
                mask[position] = True
        return Rendered(ids=tuple(ids), mask=tuple(mask), prefix=count_before(starts, layout.prefix))

    def _opening(self, turns: Turns) -> int:
        """How many tokens stand before a single exchange's question: the system prompt and a turn's mark."""
        layout = self._layout(turns)
        _, starts = self._tokens.encode(layout.text)
        question = next((content for role, content in turns if role == "user"), "").strip()
        at = layout.text.find(self._tokens.mark(question), layout.prefix) if question else -1
        return count_before(starts, max(at, layout.prefix))


def _ids(value: Any) -> list[int]:
    """Token ids in a config: one, several or none."""
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int) and not isinstance(number, bool)]


def _turns(messages: Iterable[Message]) -> Turns:
    return tuple((message.role, message.content) for message in messages)


def _refused(error: jinja2.TemplateError) -> BadInput:
    return BadInput(
        f"The base model's chat template refuses this conversation: {error}.",
        "User and assistant must take turns; check its messages, or use another base model.",
    )


def _unmaskable(index: int) -> BadInput:
    return BadInput(
        f"The base model's chat template rewrites earlier turns, so what turn {index + 1} trains on cannot be told.",
        "Use another base model, or conversations of a single exchange.",
    )


def _without_oldest(turns: Turns) -> Turns | None:
    """The turns without the oldest exchange (a leading greeting counts as one); None when only the last is left."""
    head = turns[:1] if turns[0][0] == "system" else ()
    rest = turns[len(head) :]
    starts = [i for i, (role, _) in enumerate(rest) if role == "user" and i > 0]
    if not starts or not any(role == "assistant" for role, _ in rest[starts[0] :]):
        return None
    return (*head, *rest[starts[0] :])


def _cut(rendered: Rendered, max_tokens: int, opening: int) -> Rendered:
    """`max_tokens` tokens of more: context goes from the left, but what stands before the question last (all examples
    share it, so it is computed once), the last reply from its end if it alone is too long."""
    ids, mask = rendered.ids, rendered.mask
    end = max(i for i, trained in enumerate(mask) if trained) + 1
    start = end
    while start > 0 and mask[start - 1]:
        start -= 1
    room = max_tokens - (end - start)
    if room >= opening + KEPT_CONTEXT and not any(mask[:opening]):
        first = start - (room - opening)
        ids, mask = ids[:opening] + ids[first:end], mask[:opening] + mask[first:end]
        return Rendered(ids=ids, mask=mask, prefix=rendered.prefix, truncated=True)
    if room <= 0:
        room = max_tokens // 4  # the reply alone is too long; it still needs something to follow
    first = max(start - room, 0)
    ids, mask = ids[first:end][:max_tokens], mask[first:end][:max_tokens]
    return Rendered(ids=ids, mask=mask, prefix=max(rendered.prefix - first, 0), truncated=True)


def check_trainable(
    renderer: ChatRenderer, system: str, conversations: Sequence[Conversation], max_tokens: int
) -> list[Problem]:
    """What stands in the way of training: no conversations, or rows in which nothing is trained on.

    Args:
        system: put first where a conversation has no system message of its own; may be empty.
    """
    if not conversations:
        return [Problem(message="There are no conversations to train on.", fix="Import a dataset with replies.")]
    problems: list[Problem] = []
    truncated = 0
    for conversation in conversations:
        messages = list(conversation.messages)
        if system and (not messages or messages[0].role != "system"):
            messages.insert(0, Message(role="system", content=system))
        name = conversation.source or conversation.id
        try:
            rendered = renderer.render(messages, max_tokens)
        except BadInput as error:
            problems.append(Problem(message=f"Row {name}: {error.message}", fix=error.fix))
            continue
        truncated += rendered.truncated
        if not any(rendered.mask):
            problems.append(Problem(message=f"Row {name}: no token of it is trained on.", fix="Remove or repair it."))
    if truncated:
        message = (
            f"{truncated} of {len(conversations)} conversations are longer than {max_tokens} tokens and are shortened."
        )
        problems.append(Problem(message=message, fix="Raise max_tokens.", field="max_tokens", severity="warning"))
    return problems
