"""Judging a round: how models fare, and which is proposed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from napari_attunet.errors import Cancelled, ChannelError
from napari_attunet.model import Model
from napari_attunet.progress import Enough, Progress, Steps
from napari_attunet.training.lessons import Lessons
from napari_attunet.training.record import Contender, Round
from napari_attunet.training.validation import merit_of, validation_steps

__all__ = ["NOTHING_LEARNT", "Judge", "Scores", "merit", "propose"]

R = TypeVar("R")

#: By part (validation, corrections), then by name.
Scores = dict[str, dict[str, float]]

#: A Dice from which a model knows this kind of image, so that it is the start to take.
KNOWN = 0.6

NOTHING_LEARNT = "Stopped before anything was learnt."

#: By so much a model from scratch must be better than one that had seen more images
#: before, where little is held out to tell.
MARGIN = 0.03


@dataclass(slots=True)
class Judge:
    """Scores models step by step.

    Before anything was learnt there is nothing to keep, and `Enough` ends it at once.
    After that it cannot end early, for what was learnt has to be compared.

    Attributes
    ----------
    device, thread_count
        As in `Segmenter`.
    enough : bool
        Whether `Enough` was thrown in meanwhile.
    learnt : bool
        Whether anything was.
    """

    device: str
    thread_count: int | None
    enough: bool = False
    learnt: bool = False

    def tell(self, progress: Progress) -> Generator[Progress, None, None]:
        """Yield a progress.

        Raises
        ------
        Cancelled
            If `Enough` comes before anything was learnt.
        """
        try:
            yield progress
        except Enough:
            if not self.learnt:
                raise Cancelled(NOTHING_LEARNT) from None
            self.enough = True

    def through(self, steps: Steps[R], total: int = 0) -> Steps[R]:
        """Go through steps that cannot end early, ``total`` steps having been done."""
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                result: R = end.value
                return result
            yield from self.tell(Progress(total, total, progress.message))

    def scores(self, model: Model, lessons: Lessons, total: int = 0) -> Steps[Scores]:
        """Score a model where nothing was learnt, and on all that was corrected.

        There are no scores of one that tells something else, or takes other channels.
        """
        nothing: Scores = {"validation": {}, "corrections": {}}
        if model.spec.output != lessons.output:
            return nothing
        found = dict(nothing)
        for part, pairs in (
            ("validation", lessons.validation),
            ("corrections", lessons.everything),
        ):
            if pairs:
                steps = validation_steps(
                    model, pairs, device=self.device, threads=self.thread_count
                )
                try:
                    found[part] = yield from self.through(steps, total)
                except ChannelError:
                    return nothing
        return found

    def knows(self, old: Model, lessons: Lessons, scores: Scores) -> Steps[bool]:
        """Return whether a model does so well that starting from scratch is in vain."""
        found = scores["corrections"]
        scored = {id(pair) for pair in lessons.everything}
        if found and any(id(pair) not in scored for pair in lessons.accepted):
            steps = validation_steps(
                old, lessons.accepted, device=self.device, threads=self.thread_count
            )
            found = yield from self.through(steps)
        return found.get("dice", 0.0) >= KNOWN


def merit(scores: Scores, *, trusted: bool) -> float:
    """Return the number that models are ranked by.

    Where little is held out, that is the Dice, which wavers less than counts of
    objects; without anything held out, what was corrected has to do.
    """
    found = scores["validation"] or scores["corrections"]
    if not found:
        return 0.0
    return merit_of(found) if trusted else found["dice"]


def propose(contenders: Sequence[Contender], *, trusted: bool) -> Round:
    """Return the outcome: the best is proposed, of equals the first."""
    ranks = {c.name: c.merit for c in contenders}
    if not trusted and "tuned" in ranks and "scratch" in ranks:
        ranks["scratch"] -= MARGIN
    best = max(contenders, key=lambda c: ranks[c.name])
    if best.name == "parent":
        reason = (
            f"Nothing beats {best.model} ({best.merit:.3f}): keep it. Correct more, or "
            "train thoroughly."
        )
    else:
        others = [c for c in contenders if c is not best]
        told = ", ".join(f"{c.name} {c.merit:.3f}" for c in others)
        reason = f"{best.name} is best with {best.merit:.3f}"
        reason += f" ({told})." if told else "."
    if not trusted:
        reason += (
            " Too little is held out for a meaningful number: look at what would "
            "change, and add more images."
        )
    return Round(
        contenders=tuple(contenders),
        proposed=best.name,
        reason=reason,
        trusted=trusted,
    )
