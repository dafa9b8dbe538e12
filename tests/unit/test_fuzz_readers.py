"""A few hundred seeded damaged files: no crash, no hang. The campaign is benchmarks/fuzz_readers.py."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import fuzz_readers
import pytest


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here to catch a hang with")
def test_damaged_files_are_read_or_refused() -> None:
    result = fuzz_readers.campaign(cases=420, seed=7)
    assert not result["failed"]
    assert result["memory_over_start_mb"] < fuzz_readers.MEGABYTES
    assert result["outcomes"]["read"] > 60  # the mutations leave something to read
    assert result["outcomes"]["refused"] > 100
