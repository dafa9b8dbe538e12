"""The studio's batches, rows, prompts and styles as HTML and words. No gradio, no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from persona_lab.studio.records import BatchView, Prompt, Rating, Row, Style
from persona_lab.ui.html import chip, duration, empty, esc, plural, table
from persona_lab.ui.notices import problem_box

ROWS_A_PAGE = 25
TONES = {"running": "busy", "waiting": "", "paused": "warn", "done": "good"}
WORDS = {"running": "writing", "waiting": "waiting", "paused": "paused", "done": "done"}
FILTERS = (("All", "all"), ("Not rated", "unrated"), ("Good", "good"), ("Bad", "bad"), ("Failed", "failed"))
GOOD_STARS, BAD_STARS = 4, 2


def counted(prompts: int, variants: int, seeds: int) -> str:
    """`3 prompts × 2 variants × 2 seeds = 12 replies`, or what is missing."""
    missing = [word for count, word in ((prompts, "a prompt"), (variants, "a variant")) if not count]
    if missing:
        return f'<p class="pl-soft">Choose {esc(" and ".join(missing))}.</p>'
    parts = " × ".join((plural(prompts, "prompt"), plural(variants, "variant"), plural(seeds, "seed")))
    total = prompts * variants * seeds
    return f'<p class="pl-count">{parts} = <b>{total:,} {"reply" if total == 1 else "replies"}</b></p>'


def batch_status(view: BatchView) -> str:
    """Name, state, bar, time left and what went wrong."""
    share = view.done / view.total if view.total else 0
    parts = [f"{view.done:,} of {view.total:,} written"]
    if view.failed:
        parts.append(f"{view.failed} failed")
    if view.rated:
        parts.append(f"{view.rated} rated")
    if view.status == "running":
        left = view.seconds_left
        parts.append("loading the model" if left is None else f"about {duration(left)} left")
    parts.append(f"style: {view.style}")
    tone = TONES[view.status] or "idle"
    wait = " pl-bar-wait" if view.status == "running" and view.seconds_left is None and not view.done else ""
    problem = problem_box("It was given up", view.problem) if view.problem else ""
    return (
        f'<div class="pl-status" data-batch="{esc(view.id)}" data-status="{view.status}">'
        f"<h3>{esc(view.name)} {chip(WORDS[view.status], TONES[view.status])}</h3>"
        f'<div class="pl-bar pl-bar-{tone}{wait}" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}"><i style="width:{share * 100:.1f}%"></i></div>'
        f'<p class="pl-soft">{esc(" · ".join(parts))}</p>{problem}</div>'
    )


def chosen_rows(rows: Sequence[Row], ratings: Mapping[str, Rating], wanted: str) -> list[Row]:
    """The rows that a filter lets through. Four stars and more are good, two and fewer bad."""
    return [row for row in rows if wanted == "all" or wanted == _class(row, ratings.get(row.id))]


def _class(row: Row, rating: Rating | None) -> str:
    if row.error:
        return "failed"
    if rating is None:
        return "unrated"
    if rating.verdict:
        return rating.verdict
    if rating.stars >= GOOD_STARS:
        return "good"
    return "bad" if 0 < rating.stars <= BAD_STARS else "rated"


def rows_table(rows: Sequence[Row], ratings: Mapping[str, Rating], chosen: str, page: int) -> str:
    """One page of rows; a click on a reply opens it."""
    if not rows:
        return empty("No replies here", "They appear as they are written; another filter may show more.")
    body = []
    for row in rows[page * ROWS_A_PAGE : (page + 1) * ROWS_A_PAGE]:
        mark = ' aria-current="true"' if row.id == chosen else ""
        said = row.error or row.reply or "(nothing)"
        body.append(
            [
                f'<button type="button" class="pl-rowbutton" data-id="{esc(row.id)}"{mark}>'
                f'<span class="pl-clamp">{esc(said)}</span></button>',
                f"{esc(row.prompt)}",
                f'{esc(row.variant_name)}<br><span class="pl-soft">seed {row.seed}</span>',
                rating_words(ratings.get(row.id)) or (chip("failed", "bad") if row.error else "–"),
            ]
        )
    return table(["Reply", "Prompt", "Who", "Rating"], body, f"{plural(len(rows), 'row')}; click a reply to rate it")


def rating_words(rating: Rating | None) -> str:
    """Stars and verdict as HTML; empty where nothing was said."""
    if rating is None:
        return ""
    parts = []
    if rating.verdict:
        parts.append(chip(rating.verdict, rating.verdict))
    if rating.stars:
        parts.append(f'<span class="pl-stars" title="{rating.stars} of 5">{"★" * rating.stars}</span>')
    if rating.note:
        parts.append(f'<span class="pl-soft pl-clamp">{esc(rating.note)}</span>')
    return " ".join(parts)


def row_detail(row: Row) -> str:
    """One row in full: what was said, the answer, and the weights that gave it."""
    speed = f"{row.tokens} tokens in {row.seconds:.1f} s" if row.tokens else ""
    stamp = " · ".join(part for part in (row.adapter, f"seed {row.seed}", speed) if part)
    said = (
        problem_box("No reply", row.error)
        if row.error
        else f'<blockquote class="pl-greeting">{esc(row.reply)}</blockquote>'
    )
    return (
        f'<article class="pl-details" data-row="{esc(row.id)}"><h3>{esc(row.prompt)}</h3><p>{esc(row.text)}</p>'
        f'<h3>{esc(row.variant_name)}</h3>{said}<div class="pl-stamp">{esc(stamp)}</div></article>'
    )


def prompts_table(prompts: Sequence[Prompt], chosen: str) -> str:
    """The library; a click opens a prompt for editing."""
    if not prompts:
        return empty("No prompts", "Write one below, or bring back those that come with Persona Lab.")
    body = []
    for prompt in prompts:
        mark = ' aria-current="true"' if prompt.id == chosen else ""
        button = (
            f'<button type="button" class="pl-rowbutton" data-id="{esc(prompt.id)}"{mark}>{esc(prompt.name)}</button>'
        )
        body.append(
            [button, f'<span class="pl-clamp">{esc(prompt.text)}</span>', "".join(chip(t) for t in prompt.tags)]
        )
    return table(["Name", "Text", "Tags"], body, f"{plural(len(prompts), 'prompt')}; click one to edit it")


def style_words(style: Style) -> str:
    """What a style does, in a line."""
    s = style.sampling
    drawn = (
        f"temperature {s.temperature:g} · top-p {s.top_p:g} · repetition {s.repetition_penalty:g} · "
        f"up to {s.max_new_tokens} tokens"
    )
    notes = f"<p>“{esc(style.notes)}”</p>" if style.notes else ""
    return f'<div class="pl-style">{notes}<p class="pl-soft">{esc(drawn)}</p></div>'
