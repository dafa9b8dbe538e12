"""Tokens a second of written replies: Persona Lab's loop, transformers' generate, peft, llama.cpp.

    python benchmarks/decoding.py --home ~/persona-lab-bench --out results/

The starter (or `--base`), bf16 where the machine is fast at it, greedy, 48 new tokens with no stop at the end of a
turn, so that all write as many; prefill is included. Every repetition asks other questions after the same system
prompt and runs all ways one after another, so that a machine that slows down slows all of them; ratios are taken within
a repetition. "prefix kept": a call before has left the system prompt's keys and values, as in a chat. The four LoRA
adapters (r = 16, every linear layer) are random: speed does not depend on what they hold.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.export import llama_cpp as peer
from persona_lab.home import Home
from persona_lab.inference.decoding import DecodingMemory, generate
from persona_lab.inference.fast_linear import BASE, PackedWeights, RowAdapters, fast_linears, worth_packing
from persona_lab.inference.kv_cache import PrefixCache
from persona_lab.inference.loading import load_model
from persona_lab.inference.steps import FastSteps, Prompt, open_steps
from persona_lab.models.machine import worker_machine
from persona_lab.models.registry import ensure
from persona_lab.personas.prompt import system_prompt
from persona_lab.personas.store import load_persona
from persona_lab.types import Message, Sampling

EXAMPLES = Path(__file__).resolve().parents[1] / "personas"
SYSTEM = (
    "You are Tamsin Quill, a retired cartographer who lives above a shop that sells only string. You speak in short, "
    "dry sentences and fold every answer twice before you hand it over. You keep the sea in a drawer, distrust clocks, "
    "and like soup, maps with mistakes in them, and people who arrive late. You never hurry, never explain a joke, and "
    "never say that you are an assistant or a program."
)
"""About as long as the system prompt of the project's other measurements (91 tokens)."""
ADAPTERS = ["one", "two", "three", "four"]
STEPS = 40
LLAMA_CPP = "llama.cpp, one stream, "
RATIOS = [
    ("four LoRA in one batch", "peft, four LoRA one after another"),
    ("four LoRA in one batch, prefix kept", "peft, four LoRA one after another"),
    ("four LoRA in one batch, prefix kept, int8", "peft, four LoRA one after another"),
    ("peft, one mixed batch", "peft, four LoRA one after another"),
    ("batch 1", "transformers, batch 1"),
    ("batch 1, prefix kept", "transformers, batch 1"),
    ("batch 16", "transformers, batch 16"),
    ("batch 32", "transformers, batch 32"),
]


class Quiet:
    """Reports to the error stream."""

    def phase(self, title: str, total: int | None = None) -> None:
        """Say what begins."""
        print(title, file=sys.stderr)

    def step(self, step: int, total: int, **values: float | str | None) -> None:
        """Nothing."""

    def log(self, message: str, level: str = "info") -> None:
        """Pass it on."""
        print(message, file=sys.stderr)


class NoEnd:
    """A renderer whose replies have no end."""

    eos_ids: tuple[int, ...] = ()

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)


@dataclass
class Bench:
    """The model with four adapters, and the prompts of a repetition."""

    model: Any
    tuned: Any
    renderer: Any
    system: Message
    openings: list[str]
    tokens: int

    def prompts(self, repetition: int, rows: int) -> list[list[Message]]:
        """A question each, others in every repetition; the same question for the panes of a chat is asked by `ask`."""
        at = repetition * rows
        texts = [f"{self.openings[(at + i) % len(self.openings)]} ({repetition}.{i})" for i in range(rows)]
        return [[self.system, Message(role="user", content=text)] for text in texts]

    def panes(self, repetition: int) -> list[list[Message]]:
        """One question to four panes."""
        return self.prompts(repetition, 1) * 4

    def ours(self, prompts: list[list[Message]], names: list[str] | None, memory: DecodingMemory | None) -> int:
        """New tokens written by our loop."""
        sampling = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=self.tokens)
        if names is not None:
            replies = generate(self.tuned, self.renderer, prompts, sampling, adapter_names=names, memory=memory)
        else:
            with self.tuned.disable_adapter():
                replies = generate(self.model, self.renderer, prompts, sampling, memory=memory)
            self.tuned.requires_grad_(False)
        return sum(reply.tokens for reply in replies)

    def theirs(self, model: Any, prompts: list[list[Message]], **options: Any) -> int:
        """New tokens written by `generate` of transformers."""
        rows = [self.renderer.prompt_ids(prompt) for prompt in prompts]
        width, pad = max(map(len, rows)), self.renderer.pad_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=self.tokens,
                eos_token_id=None,
                pad_token_id=pad,
                **options,
            )
        return int((out.shape[1] - width) * len(rows))

    def one_after_another(self, prompts: list[list[Message]]) -> int:
        """The usual way to ask four adapters: switch, write, switch."""
        written = 0
        for name, prompt in zip(ADAPTERS, prompts, strict=True):
            self.tuned.set_adapter(name)
            self.tuned.requires_grad_(False)  # which peft switches on, as if the adapter was to be trained
            written += self.theirs(self.tuned, [prompt])
        return written


def with_adapters(model: Any) -> Any:
    """Four random LoRA adapters, their update a few hundredths of the weights, as training leaves them."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    tuned = get_peft_model(model, config, adapter_name=ADAPTERS[0])
    for name in ADAPTERS[1:]:
        tuned.add_adapter(name, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.003)
    return tuned.eval().requires_grad_(False)


def ways(bench: Bench) -> dict[str, Callable[[int], int]]:
    """Name -> a function from the repetition to new tokens."""
    packed = PackedWeights() if worth_packing(bench.model) else None
    four = DecodingMemory(packed, PrefixCache(), ADAPTERS)
    one = DecodingMemory(packed, PrefixCache(), [BASE])
    found: dict[str, Callable[[int], int]] = {
        "peft, four LoRA one after another": lambda r: bench.one_after_another(bench.panes(r)),
        "four LoRA in one batch": lambda r: bench.ours(bench.panes(r), ADAPTERS, None),
        "four LoRA in one batch, prefix kept": lambda r: bench.ours(bench.panes(r), ADAPTERS, four),
        "peft, one mixed batch": lambda r: bench.theirs(bench.tuned, bench.panes(r), adapter_names=ADAPTERS),
        "batch 1, prefix kept": lambda r: bench.ours(bench.prompts(r, 1), None, one),
    }
    if packed is not None:
        eight = DecodingMemory(PackedWeights("int8"), PrefixCache(), [f"int8 {name}" for name in ADAPTERS])
        found["four LoRA in one batch, prefix kept, int8"] = lambda r: bench.ours(bench.panes(r), ADAPTERS, eight)
    for rows in (1, 16, 32):
        found[f"transformers, batch {rows}"] = _plain(bench, rows)
        found[f"batch {rows}"] = _own(bench, rows)
    return found


def _plain(bench: Bench, rows: int) -> Callable[[int], int]:
    def run(repetition: int) -> int:
        with bench.tuned.disable_adapter():
            return bench.theirs(bench.model, bench.prompts(repetition, rows))

    return run


def _own(bench: Bench, rows: int) -> Callable[[int], int]:
    return lambda repetition: bench.ours(bench.prompts(repetition, rows), None, None)


def int8_cost(bench: Bench, persona: str, replies: int) -> dict[str, float]:
    """What rounding to int8 changes in the base, on replies of the example: KL in nats a token, top-1 agreement."""
    rows = []
    for text in (EXAMPLES / persona / "dataset.jsonl").read_text(encoding="utf-8").splitlines()[:replies]:
        turns = [Message(**message) for message in json.loads(text)["messages"]]
        rows.append(bench.renderer.render([bench.system, *(turn for turn in turns if turn.role != "system")]))
    divergence, agree, count = 0.0, 0, 0
    eight = PackedWeights("int8")
    for row in rows:
        at = [i - 1 for i, trained in enumerate(row.mask) if trained and i]
        ids = torch.tensor([row.ids])
        with torch.no_grad(), bench.tuned.disable_adapter():
            exact = bench.model(input_ids=ids).logits[0, at].float().log_softmax(-1)
            with fast_linears(bench.model, eight, RowAdapters([frozenset()])):
                rounded = bench.model(input_ids=ids).logits[0, at].float().log_softmax(-1)
        divergence += float((exact.exp() * (exact - rounded)).sum())
        agree += int((exact.argmax(1) == rounded.argmax(1)).sum())
        count += len(at)
    return {"replies": len(rows), "tokens": count, "kl_nats_a_token": divergence / count, "top1": agree / count}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median, maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def measure(found: dict[str, Callable[[int], int]], repetitions: int) -> dict[str, list[float]]:
    """Tokens a second of each way in each repetition; one more before them is thrown away."""
    speeds: dict[str, list[float]] = {name: [] for name in found}
    for repetition in range(repetitions + 1):
        for name, run in found.items():
            begun = time.perf_counter()
            written = run(repetition)
            if repetition:
                speeds[name].append(written / (time.perf_counter() - begun))
        latest = {name: round(values[-1], 1) for name, values in speeds.items() if values}
        print(f"repetition {repetition} of {repetitions}: {latest}", file=sys.stderr, flush=True)
    return speeds


def report(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"{result['machine']}, {result['threads']} threads, torch {result['torch']}, {result['base']} in "
        f"{result['dtype']}, {result['new_tokens']} new tokens after prompts of about {result['prompt_tokens']}, "
        f"{result['repetitions']} repetitions, interleaved.",
        "",
        "| tokens a second | min | median | max |",
        "|---|---|---|---|",
        *(f"| {n} | {s['min']:.0f} | {s['median']:.0f} | {s['max']:.0f} |" for n, s in result["speeds"].items()),
        "",
        "| ratio, within a repetition | min | median | max |",
        "|---|---|---|---|",
        *(f"| {n} | {s['min']:.2f} | {s['median']:.2f} | {s['max']:.2f} |" for n, s in result["ratios"].items()),
        "",
        f"llama.cpp: {result['llama_cpp']}.",
    ]
    if result["step_milliseconds"]:
        lines += ["", "| milliseconds of a step | min | median | max |", "|---|---|---|---|"]
        lines += [
            f"| {n} | {t['min']:.1f} | {t['median']:.1f} | {t['max']:.1f} |"
            for n, t in result["step_milliseconds"].items()
        ]
    if result["int8"]:
        cost = result["int8"]
        lines += [
            "",
            f"int8 against the model's own weights, {cost['tokens']} tokens of {cost['replies']} replies: KL "
            f"{cost['kl_nats_a_token']:.4f} nats a token, the likeliest token is the same for {cost['top1']:.1%}.",
        ]
    return "\n".join(lines) + "\n"


def llama_cpp(files: Sequence[Path], bench: Bench, found: dict[str, Callable[[int], int]]) -> str:
    """Add llama.cpp to what is measured, where it is installed and has models; says which."""
    if not peer.available():
        return "not installed (extra `gguf`), so not measured"
    if not files:
        return "installed, but no --gguf FILE was given"
    for file in files:
        found[f"{LLAMA_CPP}{file.name}"] = _llama_cpp(file, bench)
    return (
        f"xllamacpp {importlib.metadata.version('xllamacpp')}, one stream, a process of its own, keys and values in "
        f"F32, its own prompt cache, until {bench.tokens} tokens or the end of a turn"
    )


def _llama_cpp(file: Path, bench: Bench) -> Callable[[int], int]:
    """In a process of its own: a second thread in this one that has used OpenMP would halve the speed of all the others
    here, since GNU's OpenMP hardly spins once it has more threads than there are cores."""
    process = ProcessPoolExecutor(1, get_context("spawn"), _load, (file, torch.get_num_threads()))
    process.submit(_written, bench.renderer.prompt_ids(bench.prompts(0, 1)[0]), 1).result()  # or told why not

    def run(repetition: int) -> int:
        [prompt] = bench.prompts(repetition, 1)
        return process.submit(_written, bench.renderer.prompt_ids(prompt), bench.tokens).result()

    return run


_loaded: list[peer.LlamaCpp] = []
"""In llama.cpp's process only."""


def _load(file: Path, threads: int) -> None:
    _loaded.append(peer.LlamaCpp(file, 2048, threads))


def _written(prompt: list[int], tokens: int) -> int:
    return len(_loaded[0].greedy(prompt, tokens))


def step_times(bench: Bench, repetitions: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one step of decoding, by turns: with `token_step`, with the model's own layers, and with
    `token_step` while a second thread of this process exists that has used OpenMP and sleeps."""
    packed = PackedWeights() if worth_packing(bench.model) else None
    found: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for title, names in (("four LoRA", ADAPTERS), ("1 row", [BASE]), ("16 rows", [BASE] * 16)):
            for way in ("few operations", "the model's layers"):
                taken = _step_time(bench, names, packed, way == "few operations")
                if math.isnan(taken):
                    return {}
                found.setdefault(f"{title}, {way}", []).append(taken)
        with second_thread():
            taken = _step_time(bench, ADAPTERS, packed, True)
        found.setdefault("four LoRA, few operations, beside a sleeping thread that has used OpenMP", []).append(taken)
    return {name: spread(values) for name, values in found.items()}


def _step_time(bench: Bench, names: list[str], packed: PackedWeights | None, few: bool) -> float:
    """Milliseconds; not a number where the model cannot be run that way."""
    ids = tuple(bench.renderer.prompt_ids(bench.prompts(0, 1)[0]))
    rows = [Prompt(ids, STEPS + 1, name) for name in names]
    with torch.no_grad(), open_steps(bench.tuned, rows, bench.renderer.pad_id, packed) as steps:
        if not isinstance(steps, FastSteps) or steps.token is None:
            return math.nan
        steps.token = steps.token if few else None
        steps.start()
        begun = time.perf_counter()
        for _ in range(STEPS):
            steps.step([ids[-1]] * len(rows))
        return (time.perf_counter() - begun) / STEPS * 1000


@contextmanager
def second_thread() -> Iterator[None]:
    """Inside the block there is another thread, which has multiplied a matrix and does nothing more."""
    multiplied, over = threading.Event(), threading.Event()

    def run() -> None:
        matrix = torch.ones(800, 800)
        (matrix @ matrix).add_(1)
        multiplied.set()
        over.wait()

    thread = threading.Thread(target=run)
    thread.start()
    multiplied.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", help="data home that holds the base, or where to fetch it to")
    parser.add_argument("--base", default="starter")
    parser.add_argument("--persona", default="magpie", choices=sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir()))
    parser.add_argument("--card", action="store_true", help="the persona's own, longer, system prompt")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--gguf", type=Path, action="append", default=[], help="the base as a GGUF file, for llama.cpp; may be repeated"
    )
    parser.add_argument("--out", type=Path, help="folder for decoding.json and decoding.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    home = Home.resolve(given.home)
    machine = worker_machine(home.root).model_copy(update={"device": "cpu"})
    info = ensure(given.base, home, Quiet())
    model = load_model(info, machine)
    renderer = ChatRenderer(Path(info.path))
    persona = load_persona(EXAMPLES / given.persona)
    rows = [json.loads(t) for t in (EXAMPLES / given.persona / "dataset.jsonl").read_text("utf-8").splitlines()]
    openings = [next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]
    system = Message(role="system", content=system_prompt(persona) if given.card else SYSTEM)
    bench = Bench(model, with_adapters(model), NoEnd(renderer), system, openings, given.tokens)
    found = ways(bench)
    told = llama_cpp(given.gguf, bench, found)
    speeds = measure(found, given.repeats)
    result = {
        "machine": platform.processor() or platform.machine(),
        "threads": given.threads,
        "torch": torch.__version__,
        "base": given.base,
        "dtype": str(model.dtype).removeprefix("torch."),
        "new_tokens": given.tokens,
        "prompt_tokens": len(renderer.prompt_ids(bench.prompts(0, 1)[0])),
        "system_prompt_tokens": len(renderer.prompt_ids([system])),
        "repetitions": given.repeats,
        "speeds": {name: spread(values) for name, values in speeds.items()},
        "ratios": {
            f"{a} / {b}": spread([x / y for x, y in zip(speeds[a], speeds[b], strict=True)])
            for a, b in [*RATIOS, *(("batch 1, prefix kept", name) for name in found if name.startswith(LLAMA_CPP))]
            if a in speeds and b in speeds
        },
        "llama_cpp": told,
        "step_milliseconds": step_times(bench, given.repeats),
        "int8": int8_cost(bench, given.persona, 20) if worth_packing(model) else None,
    }
    print(report(result))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "decoding.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (given.out / "decoding.md").write_text(report(result), encoding="utf-8")


if __name__ == "__main__":
    main()
