"""The comparison is true: of each pane, the stamp, the words and the weights in memory are those of one file.

Two adapters are trained to say one word each, whatever they are asked. So what a pane says shows which weights ran.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home
from persona_lab.inference.chat_worker import ChatWorker
from persona_lab.models.weights import fingerprint
from persona_lab.types import ChatChunk, ChatRequest, Message, Sampling, Variant

GREEDY = Sampling(temperature=0, max_new_tokens=10, repetition_penalty=1, seed=5)
QUESTIONS = ("Are you lost?", "Say it again.", "What is the time, old friend?")


def train_to_say(word: str, base: Path, folder: Path) -> Path:
    """A LoRA adapter that answers everything with `word`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    renderer = ChatRenderer(base)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    rows = []
    for question in QUESTIONS:
        row = renderer.render([Message(role="user", content=question), Message(role="assistant", content=word)])
        labels = [token if trained else -100 for token, trained in zip(row.ids, row.mask, strict=True)]
        rows.append((torch.tensor([row.ids]), torch.tensor([labels])))
    for _ in range(30):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters `quokka` and `zebra`."""
    folder = tmp_path_factory.mktemp("markers")
    for word in ("quokka", "zebra"):
        train_to_say(word, tiny_model, folder / word)
    return folder


@pytest.fixture
def worker(home: Home) -> ChatWorker:
    made = ChatWorker(home)
    made.machine = made.machine.model_copy(update={"bf16": False})
    return made


def variant(name: str, base: Path, folder: Path | None = None) -> Variant:
    kind: dict[str, Any] = {"kind": "adapter", "strategy": "lora", "path": str(folder)} if folder else {"kind": "base"}
    return Variant(**{"id": name, "name": name, "persona": "tamsin", "base": str(base), "strategy": "base"} | kind)


def answers(worker: ChatWorker, panes: dict[str, Variant], question: str, begun: str = "") -> dict[str, ChatChunk]:
    """The last chunk of each pane, with its whole text."""
    messages = (Message(role="user", content=question),)
    messages += (Message(role="assistant", content=begun),) if begun else ()
    said: dict[str, list[ChatChunk]] = {pane: [] for pane in panes}
    worker.answer(
        [ChatRequest(pane=pane, variant=who, messages=messages, sampling=GREEDY) for pane, who in panes.items()],
        lambda chunk: said[chunk.pane].append(chunk),
        lambda: False,
    )
    return {p: c[-1].model_copy(update={"text": "".join(x.text for x in c)}) for p, c in said.items()}


def in_memory(worker: ChatWorker, base: Path, who: Variant) -> dict[str, torch.Tensor]:
    """The adapter's tensors as the worker has them loaded."""
    host = worker._served[str(base)].host
    return get_peft_model_state_dict(host._shared[""].peft, adapter_name=host.weights_key(who))


def plain_reply(base: Path, question: str) -> str:
    """What the base says by itself, through transformers, in a model of its own."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    renderer = ChatRenderer(base)
    ids = torch.tensor([renderer.prompt_ids([Message(role="user", content=question)])])
    out = model.generate(
        ids, max_new_tokens=10, do_sample=False, eos_token_id=list(renderer.eos_ids), pad_token_id=renderer.pad_id
    )
    return renderer.decode(out[0, ids.shape[1] :].tolist()).replace("\ufffd", "")  # half characters are not shown


def test_stamp_words_and_weights_in_memory_agree(
    worker: ChatWorker, tiny_model: Path, trained: Path, tmp_path: Path
) -> None:
    quokka, zebra = shutil.copytree(trained / "quokka", tmp_path / "quokka"), trained / "zebra"
    one, two = variant("one", tiny_model, quokka), variant("two", tiny_model, zebra)
    panes = {"0": variant("base", tiny_model), "1": one, "2": two}
    for question in QUESTIONS[:2]:
        said = answers(worker, panes, question)
        assert said["1"].text == "quokka"
        assert said["2"].text == "zebra"
        # the base beside them is the base (unsloth#4503), down to the last word
        assert said["0"].text == plain_reply(tiny_model, question)
        for pane, name in (("0", f"base {tiny_model}"), ("1", "lora one"), ("2", "lora two")):
            stamp = said[pane].stamp
            assert stamp is not None
            assert stamp.adapter == f"{name} {fingerprint(Path(panes[pane].path or tiny_model))}"
            assert (stamp.variant, stamp.seed) == (panes[pane].id, 5)
        for who, folder in ((one, quokka), (two, zebra)):
            loaded, file = in_memory(worker, tiny_model, who), load_file(folder / "adapter_model.safetensors")
            assert loaded.keys() == file.keys()
            assert all(torch.equal(loaded[name].float().cpu(), file[name].float()) for name in file)

    # the file changes under the same variant: words, stamp and memory change with it
    before = said["1"].stamp
    (quokka / "adapter_model.safetensors").write_bytes((zebra / "adapter_model.safetensors").read_bytes())
    said = answers(worker, panes, QUESTIONS[0])
    assert said["1"].text == "zebra"
    assert said["1"].stamp != before
    assert said["1"].stamp is not None
    assert said["1"].stamp.adapter == f"lora one {fingerprint(zebra)}"


def test_a_reply_is_continued_and_a_pane_that_cannot_answer_fails_alone(
    worker: ChatWorker, tiny_model: Path, trained: Path
) -> None:
    panes = {"0": variant("base", tiny_model), "1": variant("one", tiny_model, trained / "quokka")}
    assert answers(worker, panes, QUESTIONS[0], begun="quo")["1"].text == "kka"
    renderer = ChatRenderer(tiny_model)
    talk = [Message(role="user", content="Hm?"), Message(role="assistant", content="quo")]
    assert renderer.decode(renderer.prompt_ids(talk), False).endswith("assistant\nquo")

    long = variant("long", tiny_model).model_copy(update={"kind": "prompt", "system": "word " * 5000})
    said = answers(worker, {**panes, "2": long}, QUESTIONS[0])
    assert "does not fit" in said["2"].error
    assert said["1"].text == "quokka"
    assert said["0"].done
