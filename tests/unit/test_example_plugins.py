"""The example packages work, and a prompt as adapter is trained and scored by the model's own way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_lab.plugins import Plugins
from persona_lab.testing import Workshop, check_estimate, check_loads_and_speaks, check_result, check_settings
from persona_lab.types import Message

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def shop_with(tmp_path: Path, tiny_model: Path) -> Callable[[str], Workshop]:
    """A workshop with one example's file in its plugins folder."""

    def make(name: str) -> Workshop:
        folder = tmp_path / "plugins"
        folder.mkdir()
        package = EXAMPLES / f"persona-lab-{name.replace('_', '-')}" / "src" / f"persona_lab_{name}"
        shutil.copyfile(package / "__init__.py", folder / f"{name}.py")
        return Workshop(tmp_path / "shop", Plugins.load(folder), tiny_model)

    return make


def test_soft_prompt_learns_and_speaks(shop_with: Callable[[str], Workshop]) -> None:
    shop = shop_with("soft_prompt")
    settings = {"epochs": 2, "samples": 0, "length": 4}
    check_settings(shop, "soft_prompt")
    check_estimate(shop, "soft_prompt", settings)
    check_result(shop, "soft_prompt", settings)
    check_loads_and_speaks(shop, "soft_prompt", settings)
    assert shop.whole("soft_prompt", settings)["trainable_parameters"] == 4 * 64


def test_a_prompt_as_adapter_is_scored_as_the_model_itself_does(tiny_model: Path) -> None:
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.inference.scoring import loglikelihood

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).eval()
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, std=2)
    renderer = ChatRenderer(tiny_model)
    asked, replies = [Message(role="user", content="Who are you?")], ["I am the keeper.", "Nobody told the bicycle."]
    for reply, score in zip(replies, loglikelihood(model, renderer, [(asked, r) for r in replies]), strict=True):
        rendered = renderer.render([*asked, Message(role="assistant", content=reply)])
        ids = torch.tensor([rendered.ids])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 5:]
        places = [i for i, on in enumerate(rendered.mask) if on and rendered.ids[i] not in renderer.eos_ids]
        expected = sum(float(logits[i - 1].log_softmax(-1)[rendered.ids[i]]) for i in places)
        assert score.total == pytest.approx(expected, rel=1e-4)


def test_a_prompt_as_adapter_speaks_as_peft_generates(tiny_model: Path) -> None:
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from persona_lab.datasets.rendering import ChatRenderer
    from persona_lab.inference.decoding import generate
    from persona_lab.types import Sampling

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).eval()
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, std=2)
    renderer = ChatRenderer(tiny_model)
    asked = [[Message(role="user", content=text)] for text in ("Who?", "What is in the top drawer of the harbour?")]
    greedy = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=12)
    together = [reply.text for reply in generate(model, renderer, asked, greedy)]
    for messages, text in zip(asked, together, strict=True):
        assert text == generate(model, renderer, [messages], greedy)[0].text, "rows of a batch disturb each other"
        ids = list(renderer.prompt_ids(messages))
        for _ in range(12):  # without a cache: the whole conversation through peft's own forward, each time
            row = torch.tensor([ids])
            with torch.no_grad():
                ids.append(int(model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -1].argmax()))
        said = ids[len(renderer.prompt_ids(messages)) :]
        ends = [place for place, token in enumerate(said) if token in renderer.eos_ids]
        expected = renderer.decode(said[: ends[0]] if ends else said)
        assert text.replace("\ufffd", "") == expected.replace("\ufffd", "")


def test_dpo_reads_votes_and_says_what_is_missing(shop_with: Callable[[str], Workshop], tmp_path: Path) -> None:
    shop = shop_with("dpo")
    check_settings(shop, "dpo")
    check_estimate(shop, "dpo", {})
    part: Any = shop.plugins.get("strategy", "dpo")
    fields = {problem.field for problem in part.check(part.Config(preferences="/nowhere"), None, None, None)}
    assert {"variant", "preferences"} <= fields
    module = sys.modules["persona_lab_local_dpo"]
    path = tmp_path / "votes.jsonl"
    path.write_text('{"prompt": "Hi", "chosen": "Ho", "rejected": "Hum"}\n', encoding="utf-8")
    assert module.read_pairs(path)[0][1:] == ("Ho", "Hum")
