"""Sample replies: before and after always, between only while that costs little."""

from __future__ import annotations

from persona_lab.training.sample_budget import SampleBudget


def written(cost: float, step_seconds: float, total: int = 40, every: int = 5) -> list[int]:
    """At which steps replies are written, in a training of these costs."""
    clock = [0.0]
    budget = SampleBudget(clock=lambda: clock[0])

    def write() -> None:
        clock[0] += cost

    steps = []
    for step in range(total + 1):
        clock[0] += step_seconds if step else 0
        budget.total, budget.trained = total, step > 0
        if step % every == 0 and budget.due(step):
            budget.record(write)
            steps.append(step)
    return steps


def test_replies_between_are_written_only_while_they_cost_little() -> None:
    assert written(cost=0.5, step_seconds=10) == [0, 5, 10]  # the kept weights' are the fourth
    assert written(cost=10, step_seconds=1) == [0]
    between = written(cost=0.4, step_seconds=1)  # 3 % of 40 s are three samplings
    assert between == [0, 5]
