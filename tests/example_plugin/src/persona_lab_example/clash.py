"""Its id is taken by a built-in."""

from persona_lab.api import Estimate, Strategy, hookimpl


class MyLoRA(Strategy):
    """Wants the id of a built-in."""

    id = "lora"
    title = "My LoRA"
    summary = "A better one."

    def estimate(self, config, base, dataset, machine):
        return Estimate(trainable_parameters=0, peak_memory_bytes=0, seconds=0, disk_bytes=0)

    def train(self, job, ctx):
        raise RuntimeError("never reached")


@hookimpl
def persona_lab_strategies():
    return [MyLoRA]
