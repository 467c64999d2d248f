"""Random draws of a plan, and what they change about the rows of a batch. Pure NumPy, no audio.

All randomness comes from raw Philox words and an integer hash, whose values no NumPy version changes. What happens to a
row is a function of (seed, epoch, row), so that neither the batch, the host nor the step at which a run resumes changes
it. Which other rows it is mixed with is one of the batch, too. `augment.py` carries it out.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.display import short_repr

NO_OTHER = -1
"""The number of the other row, of the recording of noise or of the room, where there is none."""


@enum.unique
class DrawnFor(enum.IntEnum):
    """What random numbers of one seed are drawn for. Runs go on as they began: a number never changes."""

    SCHEDULE = 0
    ORDER = 1
    CROP = 2
    CHOICE = 3
    SPEED = 4
    MIX = 5
    MIX_OTHER = 6
    MIX_LENGTH = 7
    MIX_FROM = 8
    MIX_TO = 9
    MIX_DECIBELS = 10
    NOISE = 11
    NOISE_ROW = 12
    NOISE_START = 13
    VOICES = 14
    ROOM = 15
    ROOM_ROW = 16
    GAIN = 17
    TELEPHONE = 18


class Noise(NamedTuple):
    """Recordings of noise, of `num_samples` [M] (16 kHz).

    prob: the share of the mixed rows that get noise instead of other rows. decibels: by how much such a row is louder
    at least and at most.
    """

    num_samples: np.ndarray
    prob: float
    decibels: tuple[float, float]

    __repr__ = short_repr


class Augmentation(NamedTuple):
    """What is done to training rows, and within which limits. As it is made without arguments, nothing is.

    speeds: at which a recording is played. mix_prob: the share of rows that something is mixed into; mix_decibels: by
    how much the row is louder, mix_part: which share of it is covered, mix_voices: how many other rows of the batch
    are added together for it (one is another speaker, several are babble), each at least and at most. noise: what some
    of these get in place of other rows. rooms: the number of impulse responses, one of which is laid on the share
    rooms_prob of rows. telephone_prob: the share that is heard through a telephone. gain_decibels: by how much rows
    are made louder.
    """

    speeds: tuple[float, float] = (1.0, 1.0)
    mix_prob: float = 0.0
    mix_decibels: tuple[float, float] = (0.0, 0.0)
    mix_part: tuple[float, float] = (0.0, 0.5)
    mix_voices: tuple[int, int] = (1, 1)
    noise: Noise | None = None
    rooms: int = 0
    rooms_prob: float = 0.0
    telephone_prob: float = 0.0
    gain_decibels: tuple[float, float] = (0.0, 0.0)

    __repr__ = short_repr


OFF = Augmentation()


class Mix(NamedTuple):
    """What is mixed into each row of a batch [n] (`augment.mixed`).

    others: the number in the batch of the row of which a part is added, NO_OTHER for none. lengths, froms, tos: shares
    in [0, 1) between the shortest and the longest length of that part, and of the last place in the other row and in
    this one where it may begin. decibels: by how much this row is louder. noises: the recording of noise that stands
    for the other row, from sample `noise_starts` on and as long as a row; NO_OTHER for none. voices: how many rows are
    added together in place of the other one, those that `voices_of` gives.
    """

    others: np.ndarray
    lengths: np.ndarray
    froms: np.ndarray
    tos: np.ndarray
    decibels: np.ndarray
    noises: np.ndarray
    noise_starts: np.ndarray
    voices: np.ndarray

    __repr__ = short_repr

    def voices_of(self, number: int) -> list[int]:
        """The rows of the batch that are added together for row `number`: never itself, and none twice."""
        if self.others[number] == NO_OTHER:
            return []
        others = [other for other in range(len(self.others)) if other != number]
        first = others.index(self.others[number])
        return [others[(first + i) % len(others)] for i in range(self.voices[number])]


class Effects(NamedTuple):
    """What is done to each row of a batch [n] as a whole.

    rooms: the impulse response that is laid on it, NO_OTHER for none. telephone: whether it is heard through one.
    gains: by how many decibels it is made louder.
    """

    rooms: np.ndarray
    telephone: np.ndarray
    gains: np.ndarray

    __repr__ = short_repr


def random_words(count: int, seed: int, *stream: int) -> np.ndarray:
    """Random uint64 [count] of this seed and stream: raw words of the generator, the same in every version."""
    entropy = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, *stream]
    return np.random.Philox(np.random.SeedSequence(entropy)).random_raw(count)


class Draws:
    """The random numbers of the rows of a batch, each of which is a recording in one of its epochs."""

    __repr__ = short_repr

    def __init__(self, rows: np.ndarray, epochs: np.ndarray, *, seed: int):
        self.rows, self.epochs, self.seed = rows, epochs, seed

    def words(self, stream: int) -> np.ndarray:
        """A random uint64 of each row."""
        key = random_words(1, self.seed, stream)
        return _mix(_mix(key + self.rows.astype(np.uint64)) + self.epochs.astype(np.uint64))

    def below(self, stream: int, limits: Any) -> np.ndarray:
        """A whole number of each row, from 0 to its limit less 1: int64 [n]."""
        return (self.words(stream) % np.asarray(limits, np.uint64)).astype(np.int64)

    def uniform(self, stream: int) -> np.ndarray:
        """A number in [0, 1) of each row."""
        return (self.words(stream) >> np.uint64(11)) / 2.0**53

    def between(self, stream: int, limits: tuple[float, float]) -> np.ndarray:
        """A number within the limits of each row."""
        return limits[0] + self.uniform(stream) * (limits[1] - limits[0])

    def starts(self, spare: np.ndarray) -> np.ndarray:
        """Where each row's crop begins: a sample in 0 .. spare, 0 where nothing is to spare."""
        return self.below(DrawnFor.CROP, np.maximum(spare, 0) + 1)

    def speeds(self, filled: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
        """Uniform speeds within the limits.

        `filled` is the recording's share of its row. At no speed is a recording longer than the row; 1 where it is
        cropped.
        """
        lowest, highest = np.clip(filled, *limits), limits[1]
        share = self.words(DrawnFor.SPEED) / 2.0**64
        return np.where(filled > 1, 1.0, lowest + share * (highest - lowest))

    def mix(self, augment: Augmentation, length: int) -> Mix | None:
        """What is mixed into rows of `length` samples; None where nothing is, as in one row alone without noise."""
        count, own, noise = len(self.rows), np.arange(len(self.rows)), augment.noise
        if not augment.mix_prob or (count < 2 and noise is None):
            return None
        is_mixed = self.uniform(DrawnFor.MIX) < augment.mix_prob
        decibels = self.between(DrawnFor.MIX_DECIBELS, augment.mix_decibels)
        noises, noise_starts = np.full(count, NO_OTHER, np.int64), np.zeros(count, np.int64)
        if noise is not None:
            is_noise = is_mixed & (self.uniform(DrawnFor.NOISE) < noise.prob)
            chosen = self.below(DrawnFor.NOISE_ROW, len(noise.num_samples))
            starts = self.below(DrawnFor.NOISE_START, np.maximum(noise.num_samples[chosen] - length, 0) + 1)
            noises, noise_starts = np.where(is_noise, chosen, NO_OTHER), np.where(is_noise, starts, 0)
            louder = self.between(DrawnFor.MIX_DECIBELS, noise.decibels)
            is_mixed, decibels = is_mixed & ~is_noise, np.where(is_noise, louder, decibels)
        others = self.below(DrawnFor.MIX_OTHER, max(count - 1, 1))
        fewest, most = augment.mix_voices
        voices = fewest + self.below(DrawnFor.VOICES, most - fewest + 1)
        return Mix(
            np.where(is_mixed & (count > 1), others + (others >= own), NO_OTHER),
            lengths=self.uniform(DrawnFor.MIX_LENGTH),
            froms=self.uniform(DrawnFor.MIX_FROM),
            tos=self.uniform(DrawnFor.MIX_TO),
            decibels=decibels,
            noises=noises,
            noise_starts=noise_starts,
            voices=np.minimum(voices, max(count - 1, 1)),
        )

    def effects(self, augment: Augmentation) -> Effects | None:
        """Room, telephone and gain of each row. None where there are none."""
        gains = augment.gain_decibels
        if not (augment.rooms_prob or augment.telephone_prob or any(gains)):
            return None
        in_room = (self.uniform(DrawnFor.ROOM) < augment.rooms_prob) & (augment.rooms > 0)
        room = self.below(DrawnFor.ROOM_ROW, max(augment.rooms, 1))
        return Effects(
            np.where(in_room, room, NO_OTHER),
            telephone=self.uniform(DrawnFor.TELEPHONE) < augment.telephone_prob,
            gains=self.between(DrawnFor.GAIN, gains),
        )


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: an integer hash, uint64 to uint64, wrapping."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
