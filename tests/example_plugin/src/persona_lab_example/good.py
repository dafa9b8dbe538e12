"""A strategy of each hook kind that works: the whole plugin fits on one screen."""

from pydantic import Field

from persona_lab.api import (
    Conversation,
    DatasetReader,
    Detection,
    Estimate,
    Evaluator,
    Exporter,
    Frozen,
    ItemScore,
    Message,
    Metric,
    ReadResult,
    Strategy,
    hookimpl,
)


class FirstLines(Strategy):
    """Uses the first conversations of the train split as examples."""

    id = "first_lines"
    title = "First lines"
    summary = "Shows the model the first conversations; nothing is trained."

    class Config(Frozen):
        count: int = Field(2, ge=1, le=8, description="How many conversations are shown.")

    def estimate(self, config, base, dataset, machine):
        return Estimate(trainable_parameters=0, peak_memory_bytes=10**8, seconds=1, disk_bytes=1000)

    def train(self, job, ctx):
        ctx.phase("Choosing", total=job.settings.count)
        for number in range(job.settings.count):
            ctx.step(number + 1, job.settings.count)
        return ctx.save_prompt(ctx.dataset.of("train")[: job.settings.count])


class SystemLength(Evaluator):
    """How long the system prompt is, in characters: a constant, but a whole evaluator."""

    id = "system_length"
    title = "System prompt length"
    summary = "Characters of the variant's system prompt."

    def score(self, variant, probes, ctx):
        value = float(len(variant.system))
        item = ItemScore(id="system", cluster="system", value=value)
        yield Metric(
            evaluator=self.id,
            metric="characters",
            value=value,
            low=value,
            high=value,
            n=1,
            unit="characters",
            better="none",
            items=(item,),
        )


class OneLineReader(DatasetReader):
    """`question = answer` lines."""

    id = "one_line"
    title = "question = answer"
    summary = "A line a conversation."

    def detect(self, path):
        return Detection(score=0.99 if path.suffix == ".qa" else 0.0, why="its name ends in .qa")

    def read(self, path, persona, mapping):
        rows = [line.split(" = ", 1) for line in path.read_text().splitlines() if " = " in line]
        return ReadResult(
            conversations=tuple(
                Conversation(
                    id=f"qa-{n}", messages=(Message(role="user", content=q), Message(role="assistant", content=a))
                )
                for n, (q, a) in enumerate(rows)
            )
        )


class NameExporter(Exporter):
    """Writes the variant's name into a file."""

    id = "name_only"
    title = "Name only"
    summary = "A text file with the name."

    def export(self, variant, persona, base, out, ctx):
        path = out / "name.txt"
        path.write_text(variant.name)
        return [path]


seen: list[str] = []


@hookimpl
def persona_lab_strategies():
    return [FirstLines]


@hookimpl
def persona_lab_evaluators():
    return [SystemLength]


@hookimpl
def persona_lab_dataset_readers():
    return [OneLineReader]


@hookimpl
def persona_lab_exporters():
    return [NameExporter]


@hookimpl
def persona_lab_run_event(run, event):
    seen.append(f"{run.id} {event.kind}")
