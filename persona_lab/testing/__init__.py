"""For tests of plugins, yours and ours: `check_strategy` and its kin run one on a tiny model as the worker does.

    from persona_lab.testing import Workshop, check_strategy

    def test_my_strategy(tmp_path):
        check_strategy(Workshop(tmp_path), "my_strategy", {"epochs": 2})

For pytest there are fixtures in `persona_lab.testing.pytest_plugin`. Nothing else here needs it; a check that fails
raises AssertionError with what was expected.
"""

from persona_lab.testing.evaluators import check_evaluator
from persona_lab.testing.exporters import check_exporter
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
    "check_evaluator",
    "check_exporter",
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
