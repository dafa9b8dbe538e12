"""Loads well, then raises in `train`; and its observer raises at every event."""

from persona_lab.api import Estimate, Strategy, hookimpl


class Explodes(Strategy):
    """Raises in the middle of its work."""

    id = "explodes"
    title = "Explodes"
    summary = "Raises in the middle of its work."

    def estimate(self, config, base, dataset, machine):
        return Estimate(trainable_parameters=0, peak_memory_bytes=10**8, seconds=1, disk_bytes=1000)

    def train(self, job, ctx):
        ctx.phase("Lighting the fuse", total=2)
        ctx.step(1, 2)
        raise ZeroDivisionError("the fuse was too short")


@hookimpl
def persona_lab_strategies():
    return [Explodes]


@hookimpl
def persona_lab_run_event(run, event):
    raise RuntimeError("this observer does not like events")
