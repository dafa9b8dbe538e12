"""What exporters share: licences, model cards, checksums and the files every export carries. Loads no model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_lab.errors import BadInput
from persona_lab.home import write_atomic
from persona_lab.personas.cards import card_to_json, card_to_png
from persona_lab.types import BaseModelInfo, Metric, Persona, Problem, Sampling, Variant

CHECKSUMS = "SHA256SUMS"
SYSTEM_PROMPT = "system_prompt.txt"
_HUB_NAMES = {"starter": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_BLOCK = 1 << 20


def license_of(base: BaseModelInfo) -> dict[str, str]:
    """The base's licence as model-card fields: `license`, and `license_name` and `license_link` where it is `other`.

    Raises:
        BadInput: it is not known; a variant must not be passed on without it.
    """
    fields = _license_fields(Path(base.path) / "README.md")
    if base.license and base.license.lower() != "unknown":
        fields["license"] = base.license.removesuffix(STATED)
    license_id = fields.get("license", "").lower()
    if license_id in ("", "unknown") or (license_id == "other" and not fields.get("license_name")):
        raise BadInput(
            f"The licence of the base model {base.name!r} is not known, so what is built on it cannot be exported.",
            "Write `license: ...` (for `other` also `license_name:` and `license_link:`) between two --- lines at the "
            f"top of {Path(base.path) / 'README.md'}, as its makers state it; or state it yourself with --license ID.",
        )
    return fields


def hub_name(base: BaseModelInfo) -> str:
    """The name under which others know the base: a hub id where there is one, never a path of this machine."""
    if base.origin:  # a foundation trained here: known is what it was trained from
        base = base.model_copy(update={"id": base.origin, "origin": ""})
    if base.id in _HUB_NAMES:
        return _HUB_NAMES[base.id]
    return base.id if re.fullmatch(r"[\w.-]+/[\w.-]+", base.id) and not Path(base.id).exists() else base.name


def write_checksums(folder: Path) -> Path:
    """Write SHA256SUMS over every other file of `folder`, in the format that `sha256sum -c` reads."""
    lines = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        lines.append(f"{digest.hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    write_atomic(folder / CHECKSUMS, "".join(lines))
    return folder / CHECKSUMS


def write_persona_files(folder: Path, variant: Variant, persona: Persona) -> list[Path]:
    """Write card.json, and system_prompt.txt where the variant has a system prompt."""
    write_atomic(folder / "card.json", card_to_json(persona.card))
    if not variant.system:
        return [folder / "card.json"]
    write_atomic(folder / SYSTEM_PROMPT, variant.system)
    return [folder / "card.json", folder / SYSTEM_PROMPT]


def copy_tokenizer(source: Path, folder: Path) -> list[Path]:
    """Copy the tokenizer and the chat template of a model folder."""
    copied = []
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            copied.append(Path(shutil.copyfile(source / name, folder / name)))
    return copied


def write_generation_config(folder: Path, source: Path) -> Path:
    """The base's generation_config.json with the sampling that the chat uses by default."""
    path = source / "generation_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sampling = Sampling()
    config |= {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
    }
    write_atomic(folder / "generation_config.json", json.dumps(config, indent=2) + "\n")
    return folder / "generation_config.json"


def write_model_card(
    folder: Path,
    variant: Variant,
    persona: Persona,
    base: BaseModelInfo,
    library: str,
    usage: str,
    notes: Sequence[str] = (),
    metrics: Sequence[Metric] = (),
    dataset: Mapping[str, Any] | None = None,
    report: str = "",
) -> Path:
    """Write README.md: front matter for the hub, what this is, how to use it, the system prompt, measured numbers.

    Args:
        library: `peft`, `transformers` or `gguf`.
        usage: how the model is loaded and asked; Python, or shell commands for `gguf`.
        notes: what a user must know, a sentence each.
        metrics: measured values to quote; none are invented where there are none.
        dataset: what it was trained on, as `ExportContext.dataset`.
        report: id of the evaluation the metrics are from.

    Raises:
        BadInput: the base's licence is not known.
    """
    fields: dict[str, Any] = {
        "library_name": library,
        "base_model": hub_name(base),
        "base_model_relation": {"peft": "adapter", "gguf": "quantized"}.get(library, "finetune"),
        **license_of(base),
        "pipeline_tag": "text-generation",
        "tags": ["persona-lab", "roleplay", variant.strategy],
    }
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items())
    parts = [f"---\n{front}---\n", f"# {_line(persona.name)}: {_line(variant.name)}\n", _origin(variant, base)]
    parts += [f"- {note}\n" for note in [*notes, *_stated(base)]]
    if dataset:
        parts += ["\n## Training data\n\n", _training_data(dataset)]
    parts += ["\n## Use\n\n", _fenced(usage, "bash" if library == "gguf" else "python")]
    if variant.system:
        parts += [
            "\n## System prompt\n\nIt was trained with this prompt; give it the same one.\n\n",
            _fenced(variant.system),
        ]
    if metrics:
        parts += [
            "\n## Measured\n\n",
            f"Evaluation `{report}`, on held-out data.\n\n" if report else "",
            _measured(metrics),
        ]
    write_atomic(folder / "README.md", "".join(parts))
    return folder / "README.md"


def _origin(variant: Variant, base: BaseModelInfo) -> str:
    starter = (
        " The starter's weights were read from its 4-bit (Q4_1) copy, so the original 16-bit weights differ slightly."
        if base.id == "starter"
        else ""
    )
    return (
        f"\nA character made with Persona Lab: strategy `{variant.strategy}` on {_line(hub_name(base))}, seed "
        f"{variant.seed}, fingerprint `{variant.fingerprint}`. It invents things: it is a character, no source."
        f"{starter}\n\n"
    )


STATED = " (stated by whoever exported it)"


def with_stated_license(base: BaseModelInfo, stated: str) -> BaseModelInfo:
    """The base with a licence that the user states, where its own is not known.

    Raises:
        BadInput: it is known and is another, or what is stated is no licence id.
    """
    if not stated:
        return base
    try:
        known = license_of(base)["license"]
    except BadInput:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,40}", stated) or stated in ("unknown", "other"):
            raise BadInput(
                f"{stated!r} is not a licence's id.", "Name it as hubs do: apache-2.0, mit, llama3.2, gemma, ..."
            ) from None
        return base.model_copy(update={"license": stated + STATED})
    if known.lower() != stated.lower():
        raise BadInput(f"The licence of {base.name!r} is known: it is {known}, not {stated}.", "Leave --license out.")
    return base


def _stated(base: BaseModelInfo) -> list[str]:
    if not base.license.endswith(STATED):
        return []
    license_id = base.license.removesuffix(STATED)
    return [f"The base's licence is not known; whoever exported this states that it is `{license_id}`."]


def _training_data(dataset: Mapping[str, Any]) -> str:
    parts = [f"{_line(str(dataset.get('name', '')))}: {dataset.get('conversations', 0)} conversations"]
    if dataset.get("source"):
        parts.append(f"from {_line(Path(str(dataset['source'])).name)}")
    if dataset.get("fingerprint"):
        parts.append(f"fingerprint `{dataset['fingerprint']}`")
    return ", ".join(parts) + ". A part of them was held out and never trained on.\n"


def append_check(folder: Path, checked: Mapping[str, Any]) -> None:
    """Keep the result of the round trip: check.json, and a paragraph in README.md where there is one."""
    write_atomic(folder / "check.json", json.dumps(checked, indent=2, ensure_ascii=False) + "\n")
    readme = folder / "README.md"
    if readme.is_file():
        told = f"\n## Checked after export\n\n{_line(str(checked['verdict']))} Details: check.json.\n"
        write_atomic(readme, readme.read_text(encoding="utf-8") + told)


def card_png(persona: Persona) -> bytes:
    """The character card as a PNG: its picture, with the card inside."""
    avatar = Path(persona.avatar) if persona.avatar else None
    return card_to_png(persona.card, avatar.read_bytes() if avatar and avatar.is_file() else None)


def _measured(metrics: Sequence[Metric]) -> str:
    rows = "".join(
        f"| {m.evaluator} {m.metric} | {m.value:.3f} | {m.low:.3f} to {m.high:.3f} | {m.n} | {m.unit} |\n"
        for m in metrics
        if m.value is not None and m.low is not None and m.high is not None
    )
    return f"| metric | value | 95% interval | n | unit |\n|---|---|---|---|---|\n{rows}"


def _fenced(text: str, language: str = "") -> str:
    """A code block that the text itself cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _line(text: str) -> str:
    """User text as one line without HTML."""
    return " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;")


def _license_fields(readme: Path) -> dict[str, str]:
    """`license`, `license_name` and `license_link` of a model card's front matter; {} where there is none."""
    if not readme.is_file():
        return {}
    found = _FRONT_MATTER.match(readme.read_text(encoding="utf-8", errors="replace")[:100_000])
    fields: Mapping[str, str] = dict(
        re.findall(
            r"^(license|license_name|license_link):[ \t]*[\"']?([^\"'\n]+?)[\"']?[ \t]*$", found.group(1), re.MULTILINE
        )
        if found
        else []
    )
    return dict(fields)


def merged_warning(variant: Variant) -> list[Problem]:
    """That a 4-bit variant is merged into other weights than it was trained on."""
    if not variant.quantization:
        return []
    message = (
        "Trained on 4-bit weights, it is merged into the unquantised base, so its replies may differ a little from "
        "those in the chat."
    )
    return [Problem(message=message, severity="warning")]
