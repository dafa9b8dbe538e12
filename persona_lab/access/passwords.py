"""The owner's password: made up, hashed with scrypt, compared. Keeps nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

# OWASP's second choice for scrypt (Password Storage Cheat Sheet): as costly as N = 2^17 with p = 1, in an eighth of
# the memory, so that a flood of logins cannot take the memory that a model needs.
_COST, _BLOCK, _PARALLEL = 2**14, 8, 5
_MEMORY = 64 * 2**20
_MOST_TYPED = 1024
# without letters and digits that are mistaken for each other
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_GROUPS, _GROUP = 4, 4


def make_password() -> str:
    """A new password such as `k7wm-3hqd-x9bt-e2rn`: 79 bits."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))


def hash_password(password: str) -> str:
    """What to keep of a password: `scrypt$N$r$p$salt$hash`. Takes about a tenth of a second, by design."""
    salt = secrets.token_bytes(16)
    parts = (_COST, _BLOCK, _PARALLEL, _text(salt), _text(_derive(password, salt, _COST, _BLOCK, _PARALLEL)))
    return "scrypt$" + "$".join(str(part) for part in parts)


def matches(password: str, kept: str) -> bool:
    """Whether the password is the one that was hashed; no for anything that is not such a hash."""
    try:
        kind, cost, block, parallel, salt, wanted = kept.split("$")
        if kind != "scrypt" or len(password) > _MOST_TYPED:
            return False
        found = _derive(password, base64.b64decode(salt), int(cost), int(block), int(parallel))
        return hmac.compare_digest(found, base64.b64decode(wanted))
    except ValueError:
        return False


def same(given: str, wanted: str) -> bool:
    """Whether two texts are the same, in a time that does not tell how much of them is."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode("utf-8", "replace"))


def _derive(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    derive = partial(hashlib.scrypt, salt=salt, n=cost, r=block, p=parallel, maxmem=_MEMORY, dklen=32)
    return _one_thread().submit(derive, password.encode("utf-8", "replace")).result()


@cache
def _one_thread() -> ThreadPoolExecutor:
    """Where hashes are made, whoever asks. Each takes 17 MB (128 * N * r bytes), and the C library keeps them, for each
    thread apart, once they are given back."""
    return ThreadPoolExecutor(1, thread_name_prefix="password")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
