"""For tests of strategies, yours and ours: `check_strategy` runs one on a tiny model the way the worker does.

    from persona_lab.testing import Workshop, check_strategy

    def test_my_strategy(tmp_path):
        check_strategy(Workshop(tmp_path), "my_strategy", {"epochs": 2})

Nothing here needs pytest; a check that fails raises AssertionError with what was expected.
"""

from persona_lab.testing.made_up import made_up_conversation, made_up_persona, make_tiny_model
from persona_lab.testing.strategies import (
    CHECKS,
    CPU,
    STARTER,
    Watcher,
    Workshop,
    check_estimate,
    check_lightness,
    check_loads_and_speaks,
    check_repeats,
    check_result,
    check_resumes,
    check_settings,
    check_strategy,
)

__all__ = [
    "CHECKS",
    "CPU",
    "STARTER",
    "Watcher",
    "Workshop",
    "check_estimate",
    "check_lightness",
    "check_loads_and_speaks",
    "check_repeats",
    "check_result",
    "check_resumes",
    "check_settings",
    "check_strategy",
    "made_up_conversation",
    "made_up_persona",
    "make_tiny_model",
]
