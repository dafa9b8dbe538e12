"""`serve-api`, as other programs use it: the official client against the real command and a real chat worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from persona_lab.engine import Engine
from persona_lab.home import Home
from persona_lab.types import Variant

KEY = "a key for the tests"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Home:
    """A home with one variant: the tiny base under a card, as if it had been trained."""
    import json

    made = Home.resolve(tmp_path_factory.mktemp("api") / "home")
    card = made.root / "tam.json"
    card.write_text(json.dumps({"name": "Tam", "description": "A mender of clocks."}))
    with Engine.open(made.root) as engine:
        engine.import_persona(card, "tam")
        variant = Variant(
            id="tam-1",
            name="Tam one",
            persona="tam",
            base=str(tiny_model),
            strategy="prompt",
            kind="prompt",
            system="You are Tam.",
        )
        made.variant("tam-1").mkdir(parents=True)
        (made.variant("tam-1") / "variant.json").write_text(variant.model_dump_json())
        engine.catalog.recover()
    return made


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[str]:
    """The base URL of a running server."""
    command = [sys.executable, "-m", "persona_lab.cli", "serve-api", "tam-1", "--port", "0", "--home", str(home.root)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PERSONA_LAB_API_KEY": KEY}
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].split() == ["Model:", "tam-1"]
        assert KEY not in "".join(lines)
        yield lines[1].split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server, api_key=KEY, max_retries=0, timeout=120) as made:
        yield made


ASK = [{"role": "system", "content": "You are somebody else."}, {"role": "user", "content": "Who are you?"}]


def test_the_client_lists_the_model_and_streams_a_chat(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tam-1"]
    settings = {"model": "tam-1", "messages": ASK, "temperature": 0, "max_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**settings)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens > 12
    assert whole.system_fingerprint.startswith("prompt Tam one")
    stream = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert len([chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content]) > 3, "not in one piece"
    assert stream[-1].usage == whole.usage
    assert stream[-2].choices[0].finish_reason == "length"


def test_stop_words_seed_and_temperature_are_honoured(client: openai.OpenAI) -> None:
    def say(**settings: object) -> str:
        reply = client.chat.completions.create(model="tam-1", messages=ASK, max_tokens=16, **settings)
        return reply.choices[0].message.content

    whole = say(temperature=0)
    stop = whole[4:7]
    assert say(temperature=0, stop=[stop]) == whole[: whole.index(stop)]
    assert say(temperature=1.5, seed=1) == say(temperature=1.5, seed=1) != say(temperature=1.5, seed=2)


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (openai.NotFoundError, {"model": "gpt-9"}),
        (openai.BadRequestError, {"max_tokens": 1_000_000}),
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"messages": [{"role": "assistant", "content": "I speak first."}]}),
        (openai.APIStatusError, {"messages": [{"role": "user", "content": "x" * 2**20}]}),
    ],
)
def test_what_is_wrong_is_told_in_openais_shape(
    client: openai.OpenAI, error: type[openai.APIStatusError], settings: dict[str, object]
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "tam-1", "messages": ASK, "max_tokens": 4} | settings)
    assert caught.value.body["type"] == "invalid_request_error"
    assert caught.value.body["message"].endswith(".")


def test_a_wrong_key_is_refused(server: str) -> None:
    with openai.OpenAI(base_url=server, api_key="guess", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="tam-1", messages=ASK)


def test_serving_imports_no_torch() -> None:
    code = (
        "import sys, persona_lab.serving, persona_lab.cli.serving\n"
        "print(*{'torch', 'transformers', 'gradio'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_stop_words_are_found_across_pieces() -> None:
    from persona_lab.serving import _StopWords

    words = _StopWords(["\nUser:", "END"])
    assert "".join(words.feed(piece) for piece in ("Well, E", "NTER\nUs", "er: me")) == "Well, ENTER"
    assert words.stopped
    words = _StopWords(["END"])
    assert words.feed("the EN") + words.rest() == "the EN"


def test_turns_that_the_chat_template_refuses_are_a_bad_request(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    from starlette.testclient import TestClient

    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.serving import make_app

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}"
        "{% endfor %}"
    )
    variant = Variant(id="v", name="v", persona="t", base=str(folder), strategy="base", kind="base")
    client = TestClient(make_app(variant, lambda requests: iter(()), KEY, ChatRenderer(folder)))
    asked = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    for stream in (False, True):
        answer = client.post(
            "/v1/chat/completions",
            json={"messages": asked, "stream": stream},
            headers={"Authorization": f"Bearer {KEY}"},
        )
        assert answer.status_code == 400
        assert "Roles must alternate" in answer.json()["error"]["message"]
