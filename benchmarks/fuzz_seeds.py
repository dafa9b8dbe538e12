"""Good character files, ways to damage them, and bombs; for fuzz_cards.py and the tests."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from PIL import Image

from persona_lab.personas.bounded import pack
from persona_lab.personas.bundle import SUMS, write_bundle
from persona_lab.personas.cards import card_to_png
from persona_lab.personas.png import SIGNATURE, Chunk, read_chunks, write_chunks

CARD: dict[str, Any] = {
    "spec": "chara_card_v3",
    "spec_version": "3.0",
    "data": {
        "name": "Ada",
        "nickname": "A.",
        "description": "{{char}} keeps a tug. {{random:one,two}} {{roll:d6}} {{unknown}}",
        "personality": "dry",
        "scenario": "A lighthouse.",
        "first_mes": "Hm, {{user}}?",
        "mes_example": "<START>\n{{user}}: Who?\n{{char}}: Me.\n<START>\n{{char}}: Again.",
        "creator_notes": "",
        "system_prompt": "{{original}}",
        "post_history_instructions": "Be brief.",
        "alternate_greetings": ["Yes?", "No."],
        "tags": ["dry"],
        "creator": "me",
        "character_version": "1",
        "group_only_greetings": [],
        "extensions": {"vendor/x": {"deep": [1, 2.5, None, "é"]}},
        "assets": [{"type": "icon", "uri": "embeded://assets/icon/image/main.png", "name": "main", "ext": "png"}],
        "character_book": {
            "extensions": {},
            "scan_depth": 3,
            "token_budget": 200,
            "recursive_scanning": True,
            "entries": [
                {"keys": ["tug"], "content": "The tug sees the king.", "insertion_order": 1, "extensions": {}},
                {"keys": ["/k(i|a)ng/i"], "content": "@@scan_depth 2\nThe king.", "use_regex": True},
                {"keys": ["(a+)+$"], "content": "Evil.", "use_regex": True, "secondary_keys": ["b"], "selective": True},
            ],
        },
    },
}
WORLD = {
    "entries": {
        "0": {"uid": 0, "key": ["tug"], "keysecondary": ["b"], "content": "A tug.", "order": 3, "selectiveLogic": 1},
        "1": {"uid": 1, "key": ["king", "/q.*z/"], "content": "A king.", "constant": True, "position": 0},
    }
}
YAML = 'name: Ada\ngreeting: "Hm."\ncontext: |-\n  A tug.\n  <START>\n  {{user}}: a\n  {{char}}: b\nlist: [1, {a: b}]\n'
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_HOSTILE: tuple[Callable[[Random], Any], ...] = (
    lambda r: None,
    lambda r: r.choice([True, False]),
    lambda r: r.choice([-1, 0, 1, 2**31, 2**63, -(2**70), 10**300]),
    lambda r: r.choice([0.5, 1e308, -1e-308]),
    lambda r: "",
    lambda r: "A" * r.choice([300, 5_000, 100_000]),
    lambda r: r.choice(
        ["\0", "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "ignore") + "x", "‮", "<script>"]
    ),
    lambda r: "{{" * r.choice([3, 4_000]),
    lambda r: "{{random:" * 40 + "a" + "}}" * 40,
    lambda r: "{{description}}" * 500,
    lambda r: "<START>\n{{user}}: a\n{{char}}: b\n" * 2_000,
    lambda r: "\n".join(["@@activate", "@@@scan_depth 99999999999", "@@additional_keys " + "a," * 500]),
    lambda r: r.choice(["(a+)+$", "(" * 300, "(?:a{0,999}){99}", r"(\w+\s?)*$", "/(x+x+)+y/i", "(?R)"]),
    lambda r: [],
    lambda r: {},
    lambda r: [[]] * 50,
    lambda r: {"a": {"b": {"c": [1]}}},
    lambda r: _deep(r.choice([10, 60, 70, 500])),
    lambda r: [f"key {n}" for n in range(2_000)],
    lambda r: r.choice(["embeded://../../etc/passwd", "file:///etc/passwd", "data:image/png;base64,AAAA"]),
)


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Good files of every kind, by name."""
    picture = _picture()
    inner = CARD["data"]
    v2 = {**CARD, "spec": "chara_card_v2", "spec_version": "2.0"}
    v1 = {key: inner[key] for key in ("name", "description", "personality", "scenario", "first_mes", "mes_example")}
    row = {"kind": "conversation", "id": "c", "messages": [{"role": "user", "content": "a"}], "split": "train"}
    row["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    head = {"kind": "dataset", "id": "ada-v1", "persona": "ada", "version": 1, "name": "ada v1"}
    summary = {
        "id": "ada-v1", "name": "ada v1", "persona": "ada", "version": 1, "source": "s", "format": "f", "why": "w",
        "counts": {"train": 1}, "fingerprint": "x", "created": "2026-01-01",
    }  # fmt: skip
    fact = {"id": "f", "kind": "fact", "question": "q?", "answer": "a", "wrong": ["b"]}
    bundle = {
        "card.json": json.dumps(CARD),
        "avatar.png": picture,
        "dataset.jsonl": json.dumps(head | {"conversations": 1, "others": 0}) + "\n" + json.dumps(row) + "\n",
        "dataset.summary.json": json.dumps(summary),
        "probes.jsonl": json.dumps(fact) + "\n",
        "provenance.json": "{}",
        "LICENSE.txt": "CC0\n",
    }
    return {
        "v3.png": card_to_png(CARD, picture),
        "compressed.png": _zipped_png(CARD, picture),
        "v3.json": json.dumps(CARD).encode(),
        "v2.json": json.dumps(v2).encode(),
        "v1.json": json.dumps(v1).encode(),
        "card.charx": pack({"card.json": json.dumps(CARD), "assets/icon/image/main.png": picture, "x.bin": b"\0" * 99}),
        "bundle.zip": write_bundle(bundle, {"persona": {"id": "ada", "name": "Ada"}}),
        "world.json": json.dumps(WORLD).encode(),
        "webui.yaml": YAML.encode(),
    }


def _zipped_png(card: dict[str, Any], picture: bytes) -> bytes:
    body = base64.b64encode(json.dumps(card).encode())
    chunks = read_chunks(picture, "seed")
    both = [Chunk(b"zTXt", b"ccv3\0\0" + zlib.compress(body)), Chunk(b"iTXt", b"chara\0\0\0\0\0" + body)]
    return write_chunks([*chunks[:-1], *both, chunks[-1]], {})


# --- damage ---------------------------------------------------------------------------------------


def damaged(name: str, good: dict[str, bytes], random: Random) -> tuple[str, bytes]:
    """A good file damaged once, and how; half of the time in its structure."""
    data = good[name]
    if random.random() < 0.5:
        return _bytes(data, random, good)
    if name.endswith(".png"):
        return _png(data, random)
    if name.endswith((".zip", ".charx")):
        return _zip(data, random)
    if name.endswith(".json"):
        return "values", _json(data, random)
    return _bytes(data, random, good)


def _bytes(data: bytes, random: Random, good: dict[str, bytes]) -> tuple[str, bytes]:
    out = bytearray(data)
    how = random.choice(["bits", "noise", "cut", "gone", "twice", "number", "spliced", "empty"])
    at, end = sorted(random.randrange(len(out)) for _ in range(2))
    if how == "bits":
        for _ in range(random.randint(1, 20)):
            out[random.randrange(len(out))] ^= 1 << random.randrange(8)
    elif how == "noise":
        out[at : at + 64] = random.randbytes(random.randint(1, 200))
    elif how == "cut":
        del out[end:]
    elif how == "gone":
        del out[at:end]
    elif how == "twice":
        out[at:at] = out[at:end] * random.choice([1, 2, 30])
    elif how == "number":
        value = random.choice(_NUMBERS)
        out[at : at + 4] = struct.pack(random.choice(["<I", ">I"]), value)
    elif how == "spliced":
        other = good[random.choice(sorted(good))]
        out[at:] = other[random.randrange(len(other)) :]
    else:
        out = bytearray(random.choice([b"", b"\0" * 50, b" \n", data[:8], data[:4]]))
    return how, bytes(out)


def _json(data: bytes, random: Random) -> bytes:
    value = json.loads(data)
    for _ in range(random.randint(1, 3)):
        value = _replaced(value, random)
    text = json.dumps(value)
    if random.random() < 0.1:
        text = text.replace("1", random.choice(["NaN", "1e999", "1" * 5_000]), 1)
    return text.encode()


def _replaced(value: Any, random: Random) -> Any:
    """The document with one value, anywhere in it, made hostile, gone, or repeated. Changes `value`."""
    holders = [value] if isinstance(value, (dict, list)) and value else []
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [item for item in inner if isinstance(item, (dict, list)) and item]
    if not holders or random.random() < 0.02:
        return random.choice(_HOSTILE)(random)
    holder = random.choice(holders)
    key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    what = random.random()
    if what < 0.1:
        del holder[key]
    elif what < 0.2 and isinstance(holder, list):
        holder += holder * random.choice([1, 20])
    else:
        holder[key] = random.choice(_HOSTILE)(random)
    return value


def _png(data: bytes, random: Random) -> tuple[str, bytes]:
    chunks = read_chunks(data, "seed")
    how = random.choice(["card", "card", "chunk", "order", "gone", "size", "text"])
    at = random.randrange(len(chunks))
    if how == "card":
        body = base64.b64encode(_json(json.dumps(CARD).encode(), random))
        kept = [chunk for chunk in chunks if chunk.keyword not in ("ccv3", "chara")]
        chunks = [*kept[:-1], Chunk(b"tEXt", random.choice([b"ccv3", b"chara", b"CHARA"]) + b"\0" + body), kept[-1]]
    elif how == "chunk":
        chunks[at] = Chunk(chunks[at].kind, random.randbytes(random.randint(0, 300)))
    elif how == "order":
        random.shuffle(chunks)
    elif how == "gone":
        del chunks[at]
    elif how == "size":
        size = struct.pack(">II", random.choice(_NUMBERS), random.choice(_NUMBERS))
        chunks[0] = Chunk(b"IHDR", size + chunks[0].data[8:])
    else:
        body = random.choice([b"ccv3\0", b"ccv3", b"ccv3\0\0" + zlib.compress(b"{}"), b"ccv3\0\1\0\0\0" + b"junk", b""])
        chunks.insert(1, Chunk(random.choice([b"tEXt", b"zTXt", b"iTXt"]), body))
    return how, SIGNATURE + b"".join(_packed(chunk) for chunk in chunks)


def _packed(chunk: Chunk) -> bytes:
    checksum = zlib.crc32(chunk.kind + chunk.data)
    return struct.pack(">I", len(chunk.data)) + chunk.kind + chunk.data + struct.pack(">I", checksum)


def _zip(data: bytes, random: Random) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    how = random.choice(["values", "values", "inside", "name", "gone", "directory", "flags"])
    name = random.choice(sorted(files))
    if how == "values":
        name = random.choice([path for path in files if path.endswith(".json")])
        files[name] = _json(files[name], random)
    elif how == "inside":
        files[name] = _bytes(files[name] or b"x", random, {"": files[name] or b"x"})[1]
    elif how == "name":
        odd = ["../x", "/x", "a\\b", "C:x", "card.json/x", "CARD.JSON", "x" * 400, "é‮", "assets/" + "d/" * 90 + "x"]
        files[random.choice(odd)] = random.randbytes(20)
    elif how == "gone":
        del files[name]
    if SUMS in files and random.random() < 0.8:
        sums = (f"{hashlib.sha256(c).hexdigest()}  {path}\n" for path, c in files.items() if path != SUMS)
        files[SUMS] = "".join(sums).encode()
    packed = bytearray(pack(files))
    directory = packed.find(b"PK\x01\x02")
    if how == "directory" and directory >= 0:
        for _ in range(random.randint(1, 6)):
            packed[random.randrange(directory, len(packed))] ^= 1 << random.randrange(8)
    if how == "flags" and directory >= 0:
        at = directory + random.choice([8, 10, 20, 24, 42])
        packed[at : at + 4] = struct.pack("<I", random.choice(_NUMBERS))
    return how, bytes(packed)


# --- bombs ----------------------------------------------------------------------------------------


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that would become large, slow or dangerous things; each must be refused."""
    good = json.dumps(CARD)
    yield "zip of zeros", pack({"card.json": good, "assets/a": b"\0" * (60 * 2**20)})
    yield "zip of many", pack({"card.json": good, **{f"assets/{n}": b"\0" * 900_000 for n in range(300)}})
    yield "zip of empties", pack({"card.json": good, **{f"assets/{n}": b"" for n in range(3_000)}})
    yield "zip that overlaps", _overlapping(good)
    yield (
        "zip in a directory of lies",
        pack({"card.json": good})[:-22] + b"PK\x01\x02" * 20_000 + b"PK\x05\x06" + b"\0" * 18,
    )
    yield "zip that climbs out", pack({"card.json": good, "../../evil": b"x"})
    chunks = read_chunks(_picture(), "seed")
    for kind, head in ((b"zTXt", b"ccv3\0\0"), (b"iTXt", b"ccv3\0\1\0\0\0")):
        body = head + zlib.compress(b"A" * (200 * 2**20), 9)
        yield f"png with a {kind.decode()} of 200 MiB", write_chunks([*chunks[:-1], Chunk(kind, body), chunks[-1]], {})
    card = Chunk(b"tEXt", b"ccv3\0" + base64.b64encode(good.encode()))
    huge = Chunk(b"IHDR", struct.pack(">II", 60_000, 60_000) + chunks[0].data[8:])
    yield "png of 3.6 billion pixels", write_chunks([huge, *chunks[1:-1], card, chunks[-1]], {})
    pixels = zlib.compress(b"\0" * (50 * 2**20), 9)
    large = Chunk(b"IHDR", struct.pack(">II", 7_000, 7_000) + b"\x08\x02\0\0\0")
    yield "png of 49 million pixels", write_chunks([large, Chunk(b"IDAT", pixels), card, chunks[-1]], {})
    yield "png of many chunks", write_chunks([chunks[0], *([Chunk(b"tEXt", b"a\0b")] * 30_000), *chunks[1:]], {})
    yield "json of many lists", b'{"name": "A", "x": [' + b"[]," * 5_000_000 + b"1]}"
    yield "json of many objects", b'{"name": "A", "x": [' + b'{"":0},' * 2_000_000 + b"1]}"
    yield "json that is deep", b"[" * 3_000_000
    yield "json with a number of a million digits", b'{"name": "A", "x": 1' + b"0" * 1_000_000 + b"}"
    levels = "\n".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9))
    yield "laughs.yaml", f"name: A\ncontext: b\na0: &a0 lol\n{levels}\n".encode()
    yield "deep.yaml", b"name: A\ncontext: b\nx: " + b"[" * 100_000
    yield "long.yaml", b"name: A\ncontext: b\nx:\n" + b"- {a: b}\n" * 100_000


def _overlapping(card: str) -> bytes:
    """Many entries that are all the same bytes of the file."""
    packed = pack({"card.json": card, "assets/x": b"\0" * (40 * 2**20)})
    end = packed.rindex(b"PK\x05\x06")
    directory = packed.index(b"PK\x01\x02")
    entries = packed[directory:end]
    second = entries[entries.rindex(b"PK\x01\x02") :]
    copies = b"".join(second.replace(b"assets/x", f"assets/{chr(97 + n)}".encode()) for n in range(20))
    size = len(entries) + len(copies)
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 22, 22, size, directory, 0)
    return packed[:directory] + entries + copies + tail
