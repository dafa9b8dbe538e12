"""Do damaged files ever crash, hang or bloat the readers?

    python benchmarks/fuzz_readers.py [--cases 10000] [--seed 0] [--data DATA] [--keep FOLDER]

Files of every format the readers know are made (and taken from DATA, if given), mutated with a seed, and read by every
reader's detection, the chosen reader, the building of a dataset, its checks and their fixes. A case fails if it ends in
anything but a result or a PersonaLabError, if a reader's own exception had to be caught at the plugin border, if it
takes over 2 processor seconds, or if memory rises over 500 MB above the start. Prints one JSON document; exit code 1 if
a case failed. `--keep` saves failing files.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 2.0
MEGABYTES = 500
MOST_BYTES = 2_000_000
SPICES = (
    b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b"\t", b",", b'"', b"'", b"{", b"}",
    b"[", b"]", b"<", b">", b":", b"\\", b"\\u0000", b"\\ud800", b"null", b"true", b"NaN", b"Infinity", b"-0",
    b"1e999", b"9" * 400, b"[" * 3000, b'{"a":' * 3000, b"a" * 50_000, b"((((((((((", b"[[[[[[[[", b"<" * 2000,
    b"{{char}}", b"<|im_start|>", b"***START OF THE PROJECT", "\u202e\u200b\ufeff".encode(), "é".encode("latin-1"),
    b"A. " * 2000,
    b"_ _" * 2000, b"-" * 5000, b" " * 20_000, b"1" * 5000,
)  # fmt: skip


def seeds(data: Path | None = None) -> list[tuple[str, bytes]]:
    """(file name, content) of one healthy file or more of each format."""
    pairs = [(f"Is it raining, {i}?", f"It is always raining somewhere, love: {i} times now.") for i in range(12)]
    rows = [{"user": q, "assistant": a, "split": "train"} for q, a in pairs]
    openai = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": [{"type": "text", "text": a}]}]}
        for q, a in pairs
    ]
    sharegpt = [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}], "system": "Be Nan."}
        for q, a in pairs
    ]
    alpaca = [{"instruction": q, "input": "", "output": a, "history": [["a", "b"]]} for q, a in pairs]
    tavern: list[dict[str, Any]] = [{"user_name": "Kim", "character_name": "Nan", "chat_metadata": {}}]
    tavern += [
        {"name": n, "is_user": n == "Kim", "mes": t, "send_date": 1}
        for q, a in pairs
        for n, t in (("Kim", q), ("Nan", a))
    ]
    telegram = {"name": "x", "type": "personal_chat", "messages": [
        {"id": i, "type": "message", "date": "2024-01-01T10:00:00", "date_unixtime": "170410320" + str(i),
         "from": ("Kim", "Nan")[i % 2],
         "text": [q, {"type": "link", "text": "x"}], "reply_to_message_id": i - 1}
        for i, (q, _) in enumerate(pairs[:9])]}  # fmt: skip
    discord = {"guild": {}, "messages": [
        {"id": str(i), "type": "Default", "timestamp": f"2024-01-01T10:0{i}:00+00:00", "content": q, "mentions": [],
         "author": {"id": "1", "name": ("kim", "nan")[i % 2], "nickname": ("Kim", "Nan")[i % 2], "isBot": False}}
        for i, (q, _) in enumerate(pairs[:9])]}  # fmt: skip
    irc = "\n".join(
        f"[10:{i:02}] <{n}> {t}"
        for i, (q, a) in enumerate(pairs)
        for n, t in (("kim", f"nan: {q}"), ("jo", "hm"), ("nan", a))
    )
    whatsapp = "\n".join(
        f"{i + 1}/01/24, 10:{i:02} - {n}: {t}" for i, (q, a) in enumerate(pairs) for n, t in (("Kim", q), ("Nan", a))
    )
    play = "ACT I\n\n" + "\n\n".join(f"KIM.  [_Enters_.]  {q}\n\nNAN.  {a}" for q, a in pairs)
    film = "INT. KITCHEN - DAY\n\n" + "\n\n".join(f"     KIM\n{q}\n\n     NAN (V.O.)\n(low)\n{a}" for q, a in pairs)
    prose = "\n\n".join(f"Chapter {i}\n\n{q} {a} {a}" for i, (q, a) in enumerate(pairs))
    table = "user,assistant\n" + "\n".join(f'"{q}","{a}"' for q, a in pairs)
    made: list[tuple[str, str]] = [
        ("rows.jsonl", _lines(rows)), ("openai.jsonl", _lines(openai)), ("openai.json", json.dumps(openai)),
        ("sharegpt.json", json.dumps(sharegpt)), ("alpaca.json", json.dumps({"train": alpaca})),
        ("tavern.jsonl", _lines(tavern)),
        ("telegram.json", json.dumps(telegram)), ("discord.json", json.dumps(discord)), ("room.log", irc),
        ("whatsapp.txt", whatsapp),
        ("play.txt", play), ("film.txt", film), ("prose.txt", prose), ("notes.md", "# A\n\n" + prose),
        ("table.csv", table),
        ("table.tsv", table.replace(",", "\t")),
        ("text.jsonl", _lines([{"text": f"### Human: {q}\n### Assistant: {a}"} for q, a in pairs])),
    ]  # fmt: skip
    found = [(name, text.encode()) for name, text in made]
    found += [("book.epub", _epub(prose)), ("notes.docx", _docx(prose)), ("paper.pdf", _pdf(prose))]
    if data:
        for file in sorted(data.rglob("*")):
            if file.is_file() and file.suffix in (".json", ".jsonl", ".txt") and file.stat().st_size < MOST_BYTES:
                found.append((file.name, file.read_bytes()))
    return found


def _lines(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def _zip(parts: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return out.getvalue()


def _epub(prose: str) -> bytes:
    page = "".join(f"<p>{part}</p>" for part in prose.split("\n\n"))
    return _zip({
        "META-INF/container.xml": '<c><rootfile full-path="o.opf"/></c>',
        "o.opf": '<p xmlns="http://www.idpf.org/2007/opf"><item id="a" href="a.xhtml"/><itemref idref="a"/></p>',
        "a.xhtml": f"<html><body>{page}</body></html>",
    })  # fmt: skip


def _docx(prose: str) -> bytes:
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = "".join(f"<w:p><w:r><w:t>{part}</w:t></w:r></w:p>" for part in prose.split("\n\n"))
    return _zip({"word/document.xml": f"<w:document {space}><w:body>{body}</w:body></w:document>"})


def _pdf(prose: str) -> bytes:
    """A minimal PDF of one page (ISO 32000-1, annex H.3)."""
    lines = "".join(f"({line}) Tj T*\n" for line in prose.replace("(", "").replace(")", "").split("\n") if line)
    stream = f"BT /F1 9 Tf 12 TL 40 780 Td\n{lines}ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream", "<< /Type /Font /Subtype /Type1 /BaseFont "
        "/Helvetica >>",
    ]  # fmt: skip
    out, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    tail = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF"
    return (out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{tail}").encode()


# --- mutations ------------------------------------------------------------------------------------


def mutate(content: bytes, dice: random.Random, others: list[tuple[str, bytes]]) -> bytes:
    """A content damaged in one to six ways."""
    data = bytearray(content)
    for _ in range(dice.randint(1, 6)):
        dice.choice(_WAYS)(data, dice, others)
        if not data:
            data += b"\n"
    return bytes(data[:MOST_BYTES])


def _flip(data: bytearray, dice: random.Random, others: Any) -> None:
    for _ in range(dice.randint(1, 20)):
        data[dice.randrange(len(data))] = dice.randrange(256)


def _spice(data: bytearray, dice: random.Random, others: Any) -> None:
    for _ in range(dice.randint(1, 5)):
        at = dice.randrange(len(data) + 1)
        data[at:at] = dice.choice(SPICES)


def _cut(data: bytearray, dice: random.Random, others: Any) -> None:
    a, b = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    del data[a:b]


def _end(data: bytearray, dice: random.Random, others: Any) -> None:
    del data[dice.randrange(len(data)) :]


def _again(data: bytearray, dice: random.Random, others: Any) -> None:
    a = dice.randrange(len(data))
    piece = data[a : a + dice.randint(1, 400)]
    data[a:a] = piece * dice.choice((2, 10, 300))


def _splice(data: bytearray, dice: random.Random, others: list[tuple[str, bytes]]) -> None:
    other = dice.choice(others)[1]
    a, b = dice.randrange(len(data) + 1), dice.randrange(len(other) + 1)
    data[a:] = other[b:]


def _swap_type(data: bytearray, dice: random.Random, others: Any) -> None:
    """A quoted text becomes another JSON value."""
    start = data.find(b'"', dice.randrange(len(data)))
    end = data.find(b'"', start + 1)
    if 0 <= start < end:
        data[start : end + 1] = dice.choice(
            (b"null", b"7", b"[]", b"{}", b"true", b'""', b"-1e400", b'[["x"]]', b'{"text": 1}')
        )


_WAYS: tuple[Callable[[bytearray, random.Random, list[tuple[str, bytes]]], None], ...] = (
    _flip, _spice, _cut, _end, _again, _splice, _swap_type, _swap_type,
)  # fmt: skip


# --- one case -------------------------------------------------------------------------------------


class TooSlow(Exception):
    """The case ran out of its time."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooSlow after so many processor seconds; regular expressions notice signals too."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"over {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attempt(path: Path, readers: list[Any], persona: Any, mapping: dict[str, str]) -> str:
    """Read one file in every way; `read`, `refused`, or what went wrong."""
    from persona_lab.datasets.build import build_dataset
    from persona_lab.datasets.held_out import HeldOut
    from persona_lab.datasets.quality.report import fixed, quality_report
    from persona_lab.datasets.reading import look_at, read_dataset
    from persona_lab.errors import PersonaLabError

    try:
        with limited(SECONDS):
            for reader in readers:
                reader.detect(path)
            with contextlib.suppress(PersonaLabError):
                look_at(path, readers, persona)
            try:
                reading = read_dataset(path, readers, persona, mapping=mapping)
                dataset, _ = build_dataset(reading, "nan", 1, "nan v1", path.name)
                kinds = [finding.kind for finding in quality_report(dataset, persona).findings]
                if kinds:
                    fixed(dataset, persona, kinds, HeldOut())
            except PersonaLabError as error:
                if " failed on " in error.message or " failed to look at it" in error.message:
                    return f"crash caught at the border: {error.message[:300]}"
                return "refused"
            return "read"
    except TooSlow as error:
        return f"hang: {error}"
    except Exception as error:  # noqa: BLE001 - finding these is what the campaign is for
        return f"crash: {type(error).__name__}: {error}"[:300]


def campaign(cases: int, seed: int, data: Path | None = None, keep: Path | None = None) -> dict[str, Any]:
    """Run it; the counts, the slowest case, memory, and what failed."""
    from persona_lab_builtin.plugin import persona_lab_dataset_readers

    from persona_lab.types import Persona

    healthy = seeds(data)
    readers = [reader() for reader in persona_lab_dataset_readers()]
    persona = Persona(id="nan", name="Nan", card={"data": {"name": "Nan", "nickname": "nan"}})
    outcomes: collections.Counter[str] = collections.Counter()
    failed: list[dict[str, Any]] = []
    slowest = (0.0, "")
    started, memory = time.monotonic(), _peak()
    with tempfile.TemporaryDirectory() as folder:
        for case in range(cases):
            dice = random.Random(f"{seed}/{case}")
            name, content = healthy[case % len(healthy)]
            damaged = mutate(content, dice, healthy) if case >= len(healthy) else content
            path = Path(folder) / (name if dice.random() < 0.85 else dice.choice(healthy)[0])
            path.write_bytes(damaged)
            mapping = dice.choice(
                ({}, {}, {"assistant": "nan"}, {"assistant": "Nan", "user": "*"}, {"user": "a", "assistant": "b"})
            )
            before = time.process_time()
            outcome = attempt(path, readers, persona, mapping)
            slowest = max(slowest, (time.process_time() - before, f"{case} {path.name}"))
            outcomes[outcome.split(":")[0]] += 1
            if outcome not in ("read", "refused"):
                failed.append({"case": case, "file": path.name, "what": outcome})
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{case}-{path.name}").write_bytes(damaged)
            path.unlink()
            if case % 1000 == 999:
                print(f"{case + 1} of {cases}: {dict(outcomes)}", file=sys.stderr, flush=True)
    return {
        "cases": cases, "seed": seed, "outcomes": dict(outcomes), "failed": failed[:50],
        "seconds": time.monotonic() - started,
        "slowest": {"seconds": slowest[0], "case": slowest[1]}, "memory_over_start_mb": _peak() - memory,
    }  # fmt: skip


def _peak() -> float:
    """The largest memory of this process so far, MB."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    result = campaign(options.cases, options.seed, options.data, options.keep)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["failed"]) or result["memory_over_start_mb"] > MEGABYTES)


if __name__ == "__main__":
    main()
