"""Do trait sliders pull as asked? `python benchmarks/traits.py --home DIR`.

Of each shipped trait on a base: replies to held-out prompts at -100, -50, 0, 50 and 100, scored by two judges that did
not build the vector and did not calibrate it:

- **likelihood**: of each reply under the unsteered base after six exchanges in the manner of `towards`, less the same
  after six in the manner of `away`, in nats a byte. The lines of these are in traits_held_out.json and nowhere else.
- **classifier**: logistic regression on sentence embeddings (all-MiniLM-L6-v2) of the same held-out lines.

The judge whose order is reported as the outcome is the likelihood; this was decided before the first run. Spearman's
rank correlation is that of the five settings with the five mean scores; intervals are bootstraps over prompts. Also:
bits per byte of the replies under the unsteered base and repetition, the time steering adds to a batch of four panes,
and how long a trait took to compute.

Results are written after each trait, so a run that was cut off goes on: --out results.json; --page docs/traits.md puts
the table between its markers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import torch
from scipy.stats import spearmanr

from persona_lab.datasets.rendering import ChatRenderer
from persona_lab.home import Home, write_atomic
from persona_lab.inference.decoding import generate
from persona_lab.inference.fast_linear import PackedWeights, worth_packing
from persona_lab.inference.loading import VariantHost
from persona_lab.inference.scoring import loglikelihood
from persona_lab.inference.steering import Shift
from persona_lab.inference.steps import Prompt, open_steps
from persona_lab.inference.trait_files import KeptTrait, kept_path, read_kept, same_trait, write_kept
from persona_lab.models import embedding, registry
from persona_lab.models.machine import worker_machine
from persona_lab.traits import library
from persona_lab.traits.calibrate import MORE_BITS, MORE_REPETITION, compute, repetition
from persona_lab.types import Message, Sampling

HERE = Path(__file__).resolve().parent
SETTINGS = (-100, -50, 0, 50, 100)
RESAMPLES = 2000
REPLY_TOKENS = 40
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
LN2 = 0.6931471805599453


class Quiet:
    """A reporter for fetching a base: says what is begun."""

    def phase(self, title: str, total: int | None = None) -> None:
        print(title, file=sys.stderr)

    def step(self, step: int, total: int, **values: Any) -> None:
        """Not worth a line."""

    def log(self, message: str, level: str = "info") -> None:
        print(message, file=sys.stderr)


class Bench:
    """One base, and what is asked of it."""

    def __init__(self, home: Home, base: str, prompts: int, seed: int) -> None:
        held_out = json.loads((HERE / "traits_held_out.json").read_text(encoding="utf-8"))
        self.home, self.seed = home, seed
        self.info = registry.ensure(base, home, Quiet())
        self.host = VariantHost(self.info, worker_machine(home.root), home)
        self.renderer = ChatRenderer(Path(self.info.path))
        self.prompts = [Message(role="user", content=text) for text in held_out["prompts"][:prompts]]
        self.lines = held_out["lines"]
        self.embed = embedding.Embedder(embedding.ensure(home, Quiet()))
        self._plain: list[str] | None = None

    def trait(self, model: Any, trait_id: str) -> tuple[KeptTrait, float | None]:
        """The trait's vector, computed unless this home has it, and the CPU seconds of all cores that it took."""
        trait = library.trait(self.home, trait_id)
        path = kept_path(self.home, trait_id, self.host.base_fingerprint)
        if path.is_file() and same_trait(read_kept(path).trait, trait):
            return read_kept(path), None
        started = time.process_time()
        kept = compute(model, self.renderer, trait, self.seed, lambda done, what: None)
        write_kept(path, kept)
        return kept, time.process_time() - started

    def definition(self, trait_id: str) -> str:
        """A hash of what the trait and its judges are: results of another definition are measured again."""
        parts = [library.trait(self.home, trait_id).model_dump(mode="json"), self.lines[trait_id]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def replies(self, model: Any, kept: KeptTrait, setting: float) -> list[str]:
        """One to each prompt; those at 0 are the same for every trait."""
        if setting == 0 and self._plain is not None:
            return self._plain
        vectors = kept.pulled(setting)
        shift = Shift({layer: torch.from_numpy(vector) for layer, vector in vectors.items()}) if vectors else None
        sampling = Sampling(seed=self.seed, max_new_tokens=REPLY_TOKENS)
        asked = [[prompt] for prompt in self.prompts]
        texts = [r.text for r in generate(model, self.renderer, asked, sampling, shifts=[shift] * len(asked))]
        if setting == 0:
            self._plain = texts
        return texts

    def likelihood(self, model: Any, trait_id: str, texts: list[str]) -> list[float]:
        """The judge: see the top of the file. Nats a byte."""
        sides = []
        for side in ("towards", "away"):
            manner = []
            for prompt, line in zip(self.prompts, self.lines[trait_id][side], strict=False):
                manner += [Message(role="user", content=prompt.content), Message(role="assistant", content=line)]
            # the exchanges shown ask other questions than the one that is judged
            items = [
                ([m for pair in _others(manner, prompt) for m in pair] + [prompt], text)
                for prompt, text in zip(self._asked(texts), texts, strict=True)
            ]
            sides.append(loglikelihood(model, self.renderer, items))
        return [(a.total - b.total) / max(a.bytes, 1) for a, b in zip(*sides, strict=True)]

    def _asked(self, texts: list[str]) -> list[Message]:
        return [self.prompts[number % len(self.prompts)] for number in range(len(texts))]

    def classify(self, trait_id: str, texts: list[str]) -> list[float]:
        """Log odds of `towards` by the classifier."""
        from sklearn.linear_model import LogisticRegression

        lines = self.lines[trait_id]
        known = self.embed([*lines["towards"], *lines["away"]])
        sides = [1] * len(lines["towards"]) + [0] * len(lines["away"])
        model = LogisticRegression(C=10.0, max_iter=1000).fit(known, sides)
        return [float(x) for x in model.decision_function(self.embed(texts))]

    def fluency(self, model: Any, texts: list[str]) -> tuple[float, float]:
        """(bits per byte under the unsteered base, repetition)."""
        items = [([prompt], text) for prompt, text in zip(self._asked(texts), texts, strict=True)]
        found = loglikelihood(model, self.renderer, items)
        bits = -sum(one.total for one in found) / LN2 / max(1, sum(one.bytes for one in found))
        return bits, float(numpy.mean([repetition(text) for text in texts]))


def _others(manner: list[Message], prompt: Message) -> list[tuple[Message, Message]]:
    pairs = list(zip(manner[::2], manner[1::2], strict=True))
    return [pair for pair in pairs if pair[0] != prompt]


def measure(bench: Bench, model: Any, trait_id: str) -> dict[str, Any]:
    """All that is told of one trait."""
    kept, cpu_seconds = bench.trait(model, trait_id)
    told: dict[str, Any] = {
        "trait": trait_id,
        "title": kept.trait.title,
        "between": [kept.trait.away_label, kept.trait.towards_label],
        "layers": kept.calibration.layers,
        "towards": kept.calibration.towards,
        "away": kept.calibration.away,
        "seconds": kept.calibration.seconds,
        "cpu_seconds": cpu_seconds,
    }
    usable = [s for s in SETTINGS if s == 0 or (kept.calibration.towards if s > 0 else kept.calibration.away)]
    if len(usable) < 2:
        return told | {"steers": False}
    texts = {setting: bench.replies(model, kept, setting) for setting in usable}
    everything = [text for setting in usable for text in texts[setting]]
    judges = {
        "likelihood": bench.likelihood(model, trait_id, everything),
        "classifier": bench.classify(trait_id, everything),
    }
    shape = (len(usable), len(bench.prompts))
    for name, scores in judges.items():
        told[name] = _order(numpy.array(scores).reshape(shape), usable, bench.seed)
    fluency = {setting: bench.fluency(model, texts[setting]) for setting in usable}
    told["fluency"] = {s: {"bits_per_byte": bits, "repetition": repeated} for s, (bits, repeated) in fluency.items()}
    plain = fluency[0]
    told["fluent"] = all(
        bits <= plain[0] + MORE_BITS and repeated <= plain[1] + MORE_REPETITION for bits, repeated in fluency.values()
    )
    told["samples"] = {setting: texts[setting][:3] for setting in usable}
    return told | {"steers": True, "both_ways": len(usable) == len(SETTINGS)}


def _order(scores: Any, settings: list[int], seed: int) -> dict[str, Any]:
    """Spearman of the settings with the mean scores [settings, prompts], with an interval over prompts."""
    rng = numpy.random.default_rng(seed)
    draws = rng.integers(0, scores.shape[1], (RESAMPLES, scores.shape[1]))
    means = scores[:, draws].mean(axis=2)  # [settings, resamples]
    low, high = numpy.quantile(means, (0.025, 0.975), axis=1)
    ranks = [float(spearmanr(settings, column).statistic) for column in means.T]
    return {
        "spearman": float(spearmanr(settings, scores.mean(axis=1)).statistic),
        "spearman_low": float(numpy.quantile(ranks, 0.025)),
        "spearman_high": float(numpy.quantile(ranks, 0.975)),
        "means": {
            s: {"mean": float(m), "low": float(lo), "high": float(hi)}
            for s, m, lo, hi in zip(settings, scores.mean(axis=1), low, high, strict=True)
        },
    }


def decoding(bench: Bench, model: Any, rounds: int = 24, steps: int = 24) -> dict[str, Any]:
    """Seconds a step of a batch of four, without and with a trait on every pane, taken in turns."""
    hidden = int(model.get_input_embeddings().weight.shape[1])
    layers = range(9, 19, 3)  # four layers a pane: the most a trait takes, and two traits on one pane
    shifts = [Shift({layer: 1e-3 * torch.randn(hidden) for layer in layers}) for _ in range(4)]
    ids = tuple(bench.renderer.prompt_ids([bench.prompts[0]]))
    packed = PackedWeights() if worth_packing(model) else None
    times: dict[bool, list[float]] = {False: [], True: []}
    with torch.no_grad():
        for number in range(2 * rounds + 2):
            with_traits = number % 2 == 1
            rows = [Prompt(ids, steps + 1, shift=shift if with_traits else None) for shift in shifts]
            with open_steps(model, rows, bench.renderer.pad_id, packed) as run:
                run.start()
                started = time.perf_counter()
                for _ in range(steps):
                    run.step([50, 51, 52, 53])
                if number >= 2:  # the first two warm up
                    times[with_traits].append((time.perf_counter() - started) / steps)
    ratios = [b / a for a, b in zip(times[False], times[True], strict=True)]
    rng = numpy.random.default_rng(0)
    medians = numpy.median(rng.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    return {
        "milliseconds_without": 1000 * statistics.median(times[False]),
        "milliseconds_with": 1000 * statistics.median(times[True]),
        "added": statistics.median(ratios) - 1,
        "low": float(numpy.quantile(medians, 0.025)) - 1,
        "high": float(numpy.quantile(medians, 0.975)) - 1,
        "rounds": rounds,
    }


# --- telling --------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """The measured part of docs/traits.md."""
    rows = [
        "| trait | -100 … 100 | Spearman (likelihood) | mean score at -100, -50, 0, 50, 100 | Spearman (classifier) "
        "| bits per byte at -100, 0, 100 | inside the bound | seconds (of CPU) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results["traits"].values():
        between = " … ".join(one["between"])
        if not one["steers"]:
            rows.append(f"| {one['trait']} | {between} | does not steer this base | | | | | {_seconds(one)} |")
            continue
        judge, other = one["likelihood"], one["classifier"]
        means = " ".join(f"{m['mean']:+.3f} [{m['low']:+.3f}, {m['high']:+.3f}]" for m in judge["means"].values())
        bits = ", ".join(
            f"{one['fluency'][s]['bits_per_byte']:.2f}" if s in one["fluency"] else "–" for s in ("-100", "0", "100")
        )
        ways = "" if one["both_ways"] else " (one way only)"
        rows.append(
            f"| {one['trait']} | {between}{ways} | {_rank(judge)} | {means} | {_rank(other)} | {bits} "
            f"| {'yes' if one['fluent'] else 'no'} | {_seconds(one)} |"
        )
    found = list(results["traits"].values())
    if not found:
        rows = ["The traits themselves were not measured in this run."]
    good = [o for o in found if o["steers"] and o["both_ways"] and o["likelihood"]["spearman"] > 0.9]
    fluent = sum(o["fluent"] for o in good)
    lines = [*rows, ""]
    if found:
        lines.append(
            f"{len(good)} of {len(found)} traits are ordered as asked (Spearman of the mean score over 0.9), "
            f"{fluent} of these inside the bound on the held-out prompts at every setting."
        )
    if speed := results.get("decoding"):
        lines.append(
            f"A step of four panes with traits on each against one without: {speed['added']:+.1%} "
            f"[{speed['low']:+.1%}, {speed['high']:+.1%}] in the median of {speed['rounds']} pairs taken in turns. "
            f"(Unpaired medians: {speed['milliseconds_without']:.1f} ms without, {speed['milliseconds_with']:.1f} ms "
            "with; where other work shares the machine these say less than the pairs.)"
        )
    lines.append(f"`{results['command']}`, {results['machine']}, {results['date']}; {results['note']}")
    return "\n".join(lines)


def _seconds(one: dict[str, Any]) -> str:
    cpu = one.get("cpu_seconds")
    return f"{one['seconds']:.0f}" + (f" ({cpu:.0f})" if cpu else "")


def _rank(judge: dict[str, Any]) -> str:
    return f"{judge['spearman']:.2f} [{judge['spearman_low']:.2f}, {judge['spearman_high']:.2f}]"


def put_into_page(page: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN, 1)
    write_atomic(page, f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def main() -> None:
    """Parse, measure, tell."""
    parser = argparse.ArgumentParser(description="Do trait sliders pull as asked?")
    parser.add_argument(
        "--home",
        required=True,
        help="A data home; vectors that it has are used, so take a new one after changes of the calibration.",
    )
    parser.add_argument("--base", default="starter")
    parser.add_argument("--traits", default="", help="Ids, with commas; default: all shipped.")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="Said of the machine, such as that others were using it.")
    parser.add_argument("--out", type=Path, default=Path("traits.json"))
    parser.add_argument("--page", type=Path, help="A page with the markers, whose table is replaced.")
    parser.add_argument("--no-decoding", action="store_true")
    parser.add_argument("--only-decoding", action="store_true")
    options = parser.parse_args()
    bench = Bench(Home.resolve(options.home), options.base, options.prompts, options.seed)
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"traits": {}}
    results = known | {
        "command": f"python benchmarks/traits.py --home DIR --base {options.base} --prompts {options.prompts} "
        f"--seed {options.seed}" + (f" --traits {options.traits}" if options.traits else ""),
        "machine": f"{torch.get_num_threads()} threads of {bench.host.machine.device_name}, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "base": options.base,
        "fingerprint": bench.host.base_fingerprint,
        "note": options.note or f"{options.prompts} prompts, replies of up to {REPLY_TOKENS} tokens, one seed.",
        "bound": {"more_bits_per_byte": MORE_BITS, "more_repetition": MORE_REPETITION},
    }
    names = [n for n in options.traits.split(",") if n] or [t.id for t in library.shipped()]
    with bench.host.model_for(None) as model:
        for name in [] if options.only_decoding else names:
            before = results["traits"].get(name, {})
            asked = {
                "prompts": options.prompts,
                "seed": options.seed,
                "fingerprint": bench.host.base_fingerprint,
                "definition": bench.definition(name),
            }
            # those of before definitions were kept are taken as they are
            if not asked.items() <= ({"definition": asked["definition"]} | before).items():
                results["traits"][name] = measure(bench, model, name) | asked
                if results["traits"][name]["cpu_seconds"] is None:
                    results["traits"][name]["cpu_seconds"] = before.get("cpu_seconds")
                _keep(options.out, results)
            print(name, json.dumps(results["traits"][name].get("likelihood", {})), file=sys.stderr, flush=True)
        if not options.no_decoding:
            results["decoding"] = decoding(bench, model)
            _keep(options.out, results)
    results = json.loads(options.out.read_text(encoding="utf-8"))
    print(table(results))
    if options.page:
        put_into_page(options.page, table(results))


def _keep(path: Path, results: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
