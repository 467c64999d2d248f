"""From short rows to long ones: a training plan whose longest length grows.

A stage is a plan with fewer of the static lengths. Longer recordings are cropped in it, and those with transcripts wait
for their stage. Nothing else changes: every shape is one of the whole run, and any step is found without those before.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.batch_plan import Plan, Step, TrainPlan
from w2v_jax.data.index import TooFew


class Curriculum(Plan):
    """Plans of the same recordings, each from its first step on. A stage starts where it would be without the others.

    Every recording comes once in each epoch of its bucket within a stage, not across the end of one.
    """

    def __init__(self, stages: Sequence[TrainPlan], firsts: Sequence[int]):
        last = stages[-1]
        super().__init__(last.num_samples, last.buckets, last.units)
        self.stages, self.firsts, self.augment = tuple(stages), tuple(firsts), last.augment
        self.shares = last.shares
        shapes = {shape for stage in stages for shape in stage.shapes}
        self.shapes = tuple(sorted(shapes, key=lambda shape: shape[1]))

    def step(self, step: int) -> Step:
        """The batch of `step` (from 0). Safe to call from several threads."""
        stage = self.stages[bisect.bisect_right(self.firsts, step) - 1]
        return stage.step(step)._replace(epoch=self.epoch(step))

    def epoch(self, step: int) -> float:
        return sum(plan.epoch(end) - plan.epoch(first) for plan, first, end in self._parts(step))

    def heard(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(seconds of audio, epochs) of each group [G] that the steps before `step` hold."""
        parts = [(plan.heard(first), plan.heard(end)) for plan, first, end in self._parts(step)]
        seconds, epochs = (sum(after[i] - before[i] for before, after in parts) for i in range(2))
        return np.asarray(seconds), np.asarray(epochs)

    def _parts(self, step: int) -> list[tuple[TrainPlan, int, int]]:
        """(stage, its first step, its last one + 1) of the stages that the steps before `step` belong to."""
        ends = [*self.firsts[1:], step]
        parts = zip(self.stages, self.firsts, ends, strict=True)
        return [(plan, first, min(end, step)) for plan, first, end in parts if first < step or first == 0]


def curriculum(
    make: Callable[[Sequence[int]], TrainPlan], bucket_samples: Sequence[int], steps: Sequence[int]
) -> TrainPlan | Curriculum:
    """The plan that `make(bucket_samples)` gives, in stages: after each of `steps`, one more length is in use.

    bucket_samples: all lengths; the first stage lacks as many of the longest as there are steps. Without steps it is
    the one plan. Raises UserError, and TooFew where a stage has too few recordings for a batch.
    """
    lengths = sorted(set(bucket_samples))
    if not steps:
        return make(lengths)
    if len(steps) >= len(lengths) or list(steps) != sorted(set(steps)) or steps[0] < 1:
        raise UserError(
            f"data.curriculum={tuple(steps)}: needs rising numbers of updates above 0, fewer than the {len(lengths)} "
            "lengths of data.bucket_seconds: after each of them, the next longer length is in use"
        )
    counts = range(len(lengths) - len(steps), len(lengths) + 1)
    return Curriculum([_stage(make, lengths, count) for count in counts], [0, *steps])


def _stage(make: Callable[[Sequence[int]], TrainPlan], lengths: Sequence[int], count: int) -> TrainPlan:
    """The plan with the first `count` lengths. Raises TooFew that names the stage."""
    try:
        return make(lengths[:count])
    except TooFew as error:
        if count == len(lengths):
            raise
        stage = f"data.curriculum: its stage up to {lengths[count - 1] / SAMPLE_RATE:g} s"
        raise TooFew(f"{stage}: {error}; or leave out the first number of data.curriculum", []) from None
