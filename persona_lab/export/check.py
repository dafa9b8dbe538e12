"""The round trip: what was exported is loaded again, and must say what the variant says.

Greedy replies and the mean log-likelihood of held-out replies, on 8 probes. A folder with a GGUF file is loaded in
llama.cpp, where that is installed, else with transformers' own GGUF reader, and the result says which. A control
vector beside it is read back, compared with the variant's pull to the last bit, and then added: by llama.cpp's own
program where there is one, else by its rule, in transformers.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from persona_lab.api import Reporter
from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.export import llama_cpp
from persona_lab.export.control_vector import ENDING, added, control_vector_in, read_control_vector, require_same
from persona_lab.inference.prompting import messages_for
from persona_lab.types import BaseModelInfo, Conversation, Machine, Message, Persona, Sampling, Variant

PROBES = 8
TOKENS = 32
Rounding = Literal["none", "fine", "coarse"]
FEWEST_SAME = 0.5
MOST_OFF: dict[Rounding, float] = {"none": 0.01, "fine": 0.02, "coarse": 0.2}
"""Below that share of equal replies, or above this relative difference in mean log-likelihood, the verdict warns."""
_STOCK = (
    ("Who are you?", "I am who I am, and you have found me."),
    ("What did you do yesterday?", "Very little, and I did it very well."),
    ("What do you think of the weather?", "It has its opinions, as I have mine."),
    ("Tell me a secret.", "If I told you, it would not be one."),
    ("What makes you angry?", "People who ask that before breakfast."),
    ("Do you like music?", "I like it best when it stops in time."),
    ("What is the meaning of life?", "Ask me something easier."),
    ("Goodbye!", "Until the next time, then."),
)


@dataclass(frozen=True)
class _Probe:
    """`asked` is the whole prompt as messages; `ids`: prompt and reply as tokens, the reply's from `start` on."""

    asked: tuple[Message, ...]
    reply: str
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class _Loading:
    """With what an export is loaded. `context`: the most tokens of prompt and reply."""

    variant: Variant
    base: BaseModelInfo
    machine: Machine
    context: int


def round_trip(
    folder: Path,
    variant: Variant,
    persona: Persona,
    base: BaseModelInfo,
    held_out: Sequence[Conversation],
    machine: Machine,
    ctx: Reporter,
) -> dict[str, Any] | None:
    """Load what stands in `folder` and compare it with the variant; None where there is nothing that could be loaded.

    Args:
        held_out: conversations the variant was not trained on; stock questions stand in for what is missing of 8.

    Raises:
        BadModel: it does not load. OutOfMemory, Cancelled
    """
    kind, path = _artifact(folder)
    if kind == "":
        return None
    renderer = ChatRenderer(Path(base.path))
    probes = _probes(renderer, variant, persona, held_out)
    if not probes:
        ctx.log("Not checked: the prompt leaves no room for a reply in this model's context.", "warning")
        return None
    exact = machine.model_copy(
        update={"bf16": False}
    )  # rounding of the machine's own must not hide or make differences
    merged = kind != "adapter" and variant.quantization is not None
    # merged on the unquantised base, it is that which the file must be like
    reference = variant.model_copy(update={"quantization": None}) if merged else variant
    ctx.phase("Asking the variant", None)
    wanted, expected, _ = _ask_transformers(_variant_model(reference, base, exact), renderer, probes, _pull(variant))
    ctx.phase("Asking what was exported", None)
    agreed: int | None = None
    context = max(len(probe.ids) for probe in probes) + TOKENS + 16
    vector = control_vector_in(folder) if kind == "gguf" else None
    if vector is not None:
        require_same(read_control_vector(vector), variant)
        asked = _ask_program if llama_cpp.program() else _ask_by_rule
        said, found, name, agreed = asked(path, vector, _Loading(variant, base, exact, context), renderer, probes, ctx)
    elif kind == "gguf" and llama_cpp.available():
        loaded = llama_cpp.LlamaCpp(path, context, machine.cores)
        name = loaded.name
        said, found = _ask_llama_cpp(loaded, renderer, probes, ctx)
        agreed = _agreed(loaded, renderer, probes)
    else:
        said, found, name = _ask_transformers(_exported_model(kind, path, variant, base, exact), renderer, probes)
        if kind == "gguf":
            name += ", its GGUF reader, since llama.cpp is not installed (pip install 'persona-lab[gguf]')"
    result = _compared(name, _rounding(path), probes, wanted, said, expected, found, agreed)
    if merged:
        result["verdict"] += " The variant was asked on the unquantised base, into which it is merged."
    return result


def _artifact(folder: Path) -> tuple[str, Path]:
    for kind, pattern in (("gguf", "*.gguf"), ("adapter", "adapter_config.json"), ("model", "config.json")):
        found = sorted(path for path in folder.rglob(pattern) if not path.name.endswith(ENDING))
        if found and (kind == "gguf" or list(found[0].parent.glob("*.safetensors"))):
            return kind, found[0] if kind == "gguf" else found[0].parent
    return "", folder


def _rounding(path: Path) -> Rounding:
    if path.suffix != ".gguf" or path.stem.endswith("-F16"):
        return "none"
    return "fine" if path.stem.endswith("-Q8_0") else "coarse"


def _probes(
    renderer: ChatRenderer, variant: Variant, persona: Persona, held_out: Sequence[Conversation]
) -> list[_Probe]:
    pairs = []
    for conversation in held_out:
        place = next((i for i, turn in enumerate(conversation.messages) if turn.role == "assistant"), 0)
        if place and conversation.messages[place].content.strip():
            pairs.append((conversation.messages[:place], conversation.messages[place].content))
    pairs += [((Message(role="user", content=question),), answer) for question, answer in _STOCK]
    found = []
    for asked, reply in pairs:
        messages = tuple(messages_for(variant, asked))
        rendered = renderer.render([*messages, Message(role="assistant", content=reply)])
        end = max(i for i, trained in enumerate(rendered.mask) if trained) + 1
        start = end
        while rendered.mask[start - 1]:
            start -= 1
        while rendered.ids[end - 1] in renderer.eos_ids:
            end -= 1
        prompt = tuple(renderer.prompt_ids(messages))
        if end > start and len(rendered.ids) + TOKENS < renderer.context_length:
            found.append(_Probe(messages, reply, prompt, rendered.ids[:end], start))
    return found[:PROBES]


def _variant_model(variant: Variant, base: BaseModelInfo, machine: Machine) -> Any:
    from persona_lab.inference.loading import load_variant

    return load_variant(variant, base, machine)


def _exported_model(kind: str, path: Path, variant: Variant, base: BaseModelInfo, machine: Machine) -> Any:
    from persona_lab.inference.loading import load_model, load_variant

    if kind == "adapter":
        return load_variant(variant.model_copy(update={"path": str(path)}), base, machine)
    if kind == "model":
        return load_model(base.model_copy(update={"path": str(path), "name": path.name, "config": {}}), machine)
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
        local_files_only=True,
    )
    return model.to(machine.device).eval()


def _pull(variant: Variant) -> Any:
    """What the variant's trait sliders add; what was exported has it in its weights."""
    import torch

    from persona_lab.export.pulls import own_pull
    from persona_lab.inference.steering import Shift

    vectors = own_pull(variant)
    return Shift({layer: torch.from_numpy(vector) for layer, vector in vectors.items()}) if vectors else None


def _ask_transformers(
    model: Any, renderer: ChatRenderer, probes: Sequence[_Probe], pull: Any = None
) -> tuple[list[str], list[float], str]:
    """(greedy replies, log-likelihood a token, what was used).

    Args:
        pull: a `Shift` that holds meanwhile.
    """
    import transformers

    from persona_lab.inference.decoding import generate
    from persona_lab.inference.scoring import loglikelihood
    from persona_lab.inference.steering import steered

    greedy = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=TOKENS)
    with steered(model, [pull]):
        said = [reply.text for reply in generate(model, renderer, [probe.asked for probe in probes], greedy)]
        scores = loglikelihood(model, renderer, [(probe.asked, probe.reply) for probe in probes])
    del model
    gc.collect()
    return said, [score.total / max(score.tokens, 1) for score in scores], f"transformers {transformers.__version__}"


def _ask_llama_cpp(
    loaded: llama_cpp.Asked, renderer: ChatRenderer, probes: Sequence[_Probe], ctx: Reporter
) -> tuple[list[str], list[float]]:
    said, found = [], []
    for number, probe in enumerate(probes, 1):
        ids = loaded.greedy(probe.prompt, TOKENS)
        ends = [place for place, token in enumerate(ids) if token in renderer.eos_ids]
        said.append(renderer.decode(ids[: ends[0]] if ends else ids))
        total = loaded.loglikelihood(probe.ids, probe.start, renderer.vocabulary_size)
        found.append(total / (len(probe.ids) - probe.start))
        ctx.step(number, len(probes))
    return said, found


def _agreed(loaded: llama_cpp.Asked, renderer: ChatRenderer, probes: Sequence[_Probe]) -> int:
    """Of how many replies llama.cpp makes the same tokens."""
    return sum(loaded.tokens(probe.reply) == renderer.text_ids(probe.reply) for probe in probes)


def _ask_program(
    path: Path, vector: Path, how: _Loading, renderer: ChatRenderer, probes: Sequence[_Probe], ctx: Reporter
) -> tuple[list[str], list[float], str, int | None]:
    """(replies, log-likelihoods a token, what was used, same tokens) of model and vector, in llama.cpp's program."""
    program = llama_cpp.program()
    assert program is not None
    with llama_cpp.WithControlVector(program, path, vector, how.context, how.machine.cores) as loaded:
        said, found = _ask_llama_cpp(loaded, renderer, probes, ctx)
        return said, found, f"{loaded.name}, the control vector added by it", _agreed(loaded, renderer, probes)


def _ask_by_rule(
    path: Path, vector: Path, how: _Loading, renderer: ChatRenderer, probes: Sequence[_Probe], ctx: Reporter
) -> tuple[list[str], list[float], str, int | None]:
    """The same without that program: the vector as it is in the file, added in transformers where llama.cpp adds it.

    Transformers' own loops are asked, not ours, which are what it is compared with.
    """
    import torch
    import transformers

    agreed, loads = None, ""
    if llama_cpp.available():  # which cannot add the vector, and can say whether the model is whole
        loaded = llama_cpp.LlamaCpp(path, how.context, how.machine.cores)
        agreed, loads = _agreed(loaded, renderer, probes), f"; {loaded.name} loads the model, and cannot add the vector"
        del loaded
    model = _exported_model("gguf", path, how.variant, how.base, how.machine)
    said, found = [], []
    with added(model, read_control_vector(vector).directions), torch.inference_mode():
        for number, probe in enumerate(probes, 1):
            prompt = torch.tensor([probe.prompt], device=model.device)
            ids = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=TOKENS,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                eos_token_id=list(renderer.eos_ids) or None,
                pad_token_id=0,  # of one row, which is never padded
            )[0, len(probe.prompt) :].tolist()
            ends = [place for place, token in enumerate(ids) if token in renderer.eos_ids]
            said.append(renderer.decode(ids[: ends[0]] if ends else ids))
            whole = torch.tensor([probe.ids], device=model.device)
            told = model(input_ids=whole).logits[0].float().log_softmax(-1)
            found.append(float(told[range(probe.start - 1, len(probe.ids) - 1), probe.ids[probe.start :]].mean()))
            ctx.step(number, len(probes))
    name = (
        f"transformers {transformers.__version__}, the control vector added by llama.cpp's rule and not by llama.cpp "
        f"itself (there is no llama-server on the PATH or in {llama_cpp.PROGRAM}{loads})"
    )
    return said, found, name, agreed


def _compared(
    name: str,
    rounding: Rounding,
    probes: Sequence[_Probe],
    wanted: Sequence[str],
    said: Sequence[str],
    expected: Sequence[float],
    found: Sequence[float],
    agreed: int | None,
) -> dict[str, Any]:
    same = [_tidy(a) == _tidy(b) for a, b in zip(wanted, said, strict=True)]
    before, after = math.fsum(expected) / len(probes), math.fsum(found) / len(probes)
    off = abs(after - before) / max(abs(before), 1e-9)
    # rounded weights change what is said; that the file is whole shows in the likelihood
    good = off <= MOST_OFF[rounding] and (rounding != "none" or sum(same) >= FEWEST_SAME * len(probes))
    good = good and agreed in (None, len(probes))
    verdict = (
        f"Loaded with {name}: {sum(same)} of {len(probes)} greedy replies ({TOKENS} tokens) are the variant's, and its "
        f"mean log-likelihood of held-out replies differs by {off:.2%}."
    )
    if agreed not in (None, len(probes)):
        verdict += f" Its tokenizer reads {len(probes) - (agreed or 0)} of {len(probes)} texts otherwise."
    return {
        "loaded_with": name,
        "good": good,
        "verdict": verdict,
        "probes": len(probes),
        "tokens": TOKENS,
        "same_replies": sum(same),
        "same_tokenization": agreed,
        "mean_loglikelihood": {"variant": before, "export": after, "relative_difference": off},
        "rows": [
            {
                "prompt": probe.asked[-1].content,
                "variant": wanted[i],
                "export": said[i],
                "same": same[i],
                "loglikelihood_per_token": {"variant": expected[i], "export": found[i]},
            }
            for i, probe in enumerate(probes)
        ],
    }


def _tidy(text: str) -> str:
    """Without bytes that are no characters, which the two decoders show differently."""
    return text.replace("\ufffd", "").strip()
