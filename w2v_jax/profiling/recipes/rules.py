"""The table of choices: which rule holds for which facts, why, and on which measurement it rests.

Of the rules about one choice the first that holds is taken, so that each choice ends with a rule that always holds. To
change a choice, change a row. docs/recipe.md says the same in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from w2v_jax.core.config import load
from w2v_jax.profiling.recipes.look import DataFacts, MachineFacts
from w2v_jax.profiling.recipes.speed import TimedConfig, Timing

UNMEASURED = "not measured here"

SAFE = 0.9
"""The share of a budget that is planned for."""
READING = 1.25
"""Updates in training take longer than those that are timed alone: recordings are read and changed beside them."""
LOGMEL_FEWEST, LOGMEL_UPDATES, LOGMEL_MOST = 300, 4500, 20_000
"""Updates of a log-mel recogniser: the fewest that leave the plateau, those of ten labelled minutes, the most."""
CPC_FEWEST, CPC_UPDATES, CPC_MOST = 2000, 3000, 9000
"""Updates of a pretraining by CPC."""
CPC_RECOGNISER = 900
"""Updates of the recogniser after CPC_UPDATES, and in proportion after more or fewer."""
BASE_FEWEST, BASE_MOST = 25_000, 400_000
"""Updates of wav2vec 2.0 Base or HuBERT Base with the batch of the papers."""
FINETUNE_FEWEST = 500
CONTINUED_FEWEST, CONTINUED_MOST = 5000, 50_000
"""Updates, with the batch of the papers, of a pretraining that goes on from a given model."""
CONTINUED_SHARE = 0.5
"""The share of the time that such a pretraining is given."""
AMOUNTS = {"10m": 0.5, "1h": 4.0, "10h": 40.0, "100h": 400.0, "960h": float("inf")}
"""The variants of configs/finetune.py, and below how many labelled hours each is taken."""


class Init(NamedTuple):
    """The model of --from: the folder or files, its method, and the config and changed keys that fine-tune it.

    is_run: it needs no conversion first. small: an acoustic model learns with the encoder, as after a CPC of one's own.
    pretraining: the config and changed keys with which its own pretraining goes on; None where it cannot.
    """

    path: str
    is_run: bool
    method: str
    config: str
    changes: dict[str, Any]
    pretraining: tuple[str, dict[str, Any]] | None = None

    @property
    def small(self) -> bool:
        return self.config.startswith("acoustic_frozen")


class Facts(NamedTuple):
    """All that a choice may depend on. budget, start: seconds of the whole, and until a process computes."""

    data: DataFacts
    machine: MachineFacts
    budget: float
    start: float
    timings: Mapping[str, Timing]
    init: Init | None = None

    @property
    def accelerated(self) -> bool:
        return self.machine.platform != "cpu"

    @property
    def labelled_hours(self) -> float:
        return self.data.train_minutes / 60

    def updates(self, name: str, share: float = 1.0) -> float:
        """How many updates of a candidate fit into a share of the budget; none of one that was not timed."""
        return self._room(share, name) / (READING * self.timings[name].update) if name in self.timings else 0.0

    @property
    def cpc_rounds(self) -> float:
        """How often CPC_UPDATES and CPC_RECOGNISER after them fit into the budget."""
        if not {"cpc", "cpc_ctc"} <= self.timings.keys():
            return 0.0
        cost = CPC_UPDATES * self.timings["cpc"].update + CPC_RECOGNISER * self.timings["cpc_ctc"].update
        return self._room(1.0, "cpc", "cpc_ctc") / (READING * cost)

    def _room(self, share: float, *names: str) -> float:
        """Seconds of a share of the budget, less about what starting and compiling takes."""
        compiling = 8 * sum(self.timings[name].compile for name in names)
        return max(0.0, SAFE * share * self.budget - 20 * self.start - compiling)


class Rule(NamedTuple):
    """`value` is chosen `about` something where `when` holds. rests_on: page and section with the measurement."""

    about: str
    value: str
    when: Callable[[Facts], bool]
    because: str
    rests_on: str


def few_labels(data: DataFacts) -> bool:
    """Whether audio without labels could say what the labels do not."""
    return data.train_minutes <= 20 and 60 * data.hours >= 2 * data.train_minutes


def much_unlabelled(data: DataFacts) -> bool:
    """Whether audio is so much more than its labels that a pretrained model could learn from it first."""
    return data.hours >= 10 and 60 * data.hours >= 10 * data.train_minutes


def cpc_may_help(data: DataFacts) -> bool:
    """The part of the rule of CPC that needs no measurement."""
    return few_labels(data) and data.hours >= 0.4


always: Callable[[Facts], bool] = lambda facts: True

RULES = (
    Rule(
        "held out",
        "whole speakers",
        lambda f: f.data.by_speaker,
        because="there are five speakers or more: errors are those of voices that were never heard",
        rests_on="results.md, The claims",
    ),
    Rule(
        "held out",
        "recordings",
        always,
        because="with fewer than five speakers, to hold one out would cost too much of the labels",
        rests_on="ten_minutes.md, What to expect",
    ),
    Rule(
        "method",
        "the given model, pretrained further",
        lambda f: (
            f.init is not None
            and much_unlabelled(f.data)
            and f.updates("continued", CONTINUED_SHARE) >= CONTINUED_FEWEST
            and f.updates("given", 1 - CONTINUED_SHARE) >= 4 * FINETUNE_FEWEST
        ),
        because=f"audio is 10 h or more and ten times as long as the labels, and {CONTINUED_FEWEST:,} updates fit into "
        "half of the budget: the model can get to know the language and the channel first",
        rests_on=f"papers on Amis and Seediq (arXiv 2409.08872) and others; {UNMEASURED}",
    ),
    Rule(
        "method",
        "the given model",
        lambda f: f.init is not None,
        because="its encoder is ahead of what this budget could pretrain: from ten labelled minutes, a pretrained one "
        "makes a third of the errors of a fresh one",
        rests_on="results.md, A pretrained model needs few labels",
    ),
    Rule(
        "method",
        "wav2vec 2.0 Base",
        lambda f: f.accelerated and f.data.hours >= 100 and f.updates("base", 0.75) >= BASE_FEWEST,
        because=f"there are 100 h of audio or more, and {BASE_FEWEST:,} updates of 1.6 h fit into three quarters of "
        "the budget",
        rests_on=f"the paper (960 h); {UNMEASURED}",
    ),
    Rule(
        "method",
        "HuBERT Base",
        lambda f: f.accelerated and f.data.hours >= 10 and f.updates("hubert", 0.75) >= BASE_FEWEST,
        because="of less than 100 h, wav2vec 2.0 may use a handful of codes (6 of 128 on an hour), which given units "
        "cannot",
        rests_on=f"results.md, Units, on an hour of Mboshi; the paper; {UNMEASURED} at this size",
    ),
    Rule(
        "method",
        "CPC",
        lambda f: cpc_may_help(f.data) and f.cpc_rounds >= CPC_FEWEST / CPC_UPDATES,
        because=f"labels are few, audio is at least twice as long, and {CPC_FEWEST:,} updates of CPC fit: after 3,000 "
        "it makes 11 points fewer character errors than log-mel from ten minutes of commands, after 600 none fewer",
        rests_on="results.md, Learned features beat log-mel",
    ),
    Rule(
        "method",
        "log-mel",
        lambda f: not few_labels(f.data),
        because="there are more than twenty minutes of labels, or most audio has them: log-mel then uses all of the "
        "time (44 % of characters wrong with 40 minutes of Mboshi, 49 with nine)",
        rests_on="ten_minutes.md, What to expect",
    ),
    Rule(
        "method",
        "log-mel",
        always,
        because=f"time or unlabelled audio is too little for {CPC_FEWEST:,} updates of CPC: after 600, CPC is no "
        "better than log-mel, and wav2vec 2.0 of this size is worse",
        rests_on="results.md, Learned features beat log-mel",
    ),
    Rule(
        "recogniser",
        "log-mel, two models that must agree",
        lambda f: f.updates("logmel") >= 2 * logmel_updates(f.data.train_minutes),
        because="twice the updates of one model fit: two make a point of character errors fewer, at twice the cost",
        rests_on="ten_minutes.md, Several models, and models that must agree",
    ),
    Rule(
        "recogniser",
        "log-mel, one model",
        always,
        because="two models at half of the updates each would be stopped early",
        rests_on="ten_minutes.md, Several models, and models that must agree",
    ),
    Rule(
        "arithmetic",
        "float32",
        lambda f: f.machine.slow_bfloat16,
        because="this processor has no units for bfloat16",
        rests_on="performance.md, Base, 2 x 10 s",
    ),
    Rule(
        "arithmetic",
        "as the config says",
        always,
        because="float32 for small models, else bfloat16",
        rests_on="performance.md",
    ),
)


def choose(facts: Facts, about: str) -> Rule:
    """The first rule about a choice that holds."""
    return next(rule for rule in RULES if rule.about == about and rule.when(facts))


def logmel_updates(minutes: float) -> int:
    """The updates that a log-mel recogniser is given at the most: as many epochs as ten minutes have (200), capped."""
    return round(min(LOGMEL_MOST, LOGMEL_UPDATES * max(1.0, minutes / 9)))


def amount_of(hours: float) -> str:
    """The variant of configs/finetune.py for so many labelled hours."""
    return next(name for name, below in AMOUNTS.items() if hours < below)


def buckets_of(data: DataFacts) -> tuple[float, ...]:
    """Static lengths in seconds: below the first lie half of the labelled recordings, below the second nine tenths."""
    rounded = [max(1.0, -(-length // 0.5) * 0.5) for length in data.lengths]
    kept = rounded[-1:]
    for length in reversed(rounded[:-1]):
        if length < 0.75 * kept[0]:
            kept.insert(0, length)
    return tuple(kept)


UPDATE_SECONDS = 24.0
"""Speech in an update of a small recogniser, as in all of the measurements."""


def recogniser_batch(data: DataFacts) -> dict[str, Any]:
    """The keys of lengths and batch of a small recogniser: 24 s of speech, more where one recording is longer."""
    buckets = buckets_of(data)
    unit = max(UPDATE_SECONDS / 2, buckets[-1])
    whole = max(UPDATE_SECONDS, unit)
    units = max(1, round(whole / unit))
    keys = {"data.bucket_seconds": buckets, "data.batch_hours": units * unit / 3600, "data.unit_seconds": unit}
    keys |= {"data.device_seconds": units * unit}
    if data.tokens_per_second > 25:
        keys["data.tokens_per_second"] = float(-(-data.tokens_per_second // 5) * 5)
    return keys


REGULARISED = {"acoustic.dropout": 0.2, "masking.time_prob": 0.15, "data.speeds": (0.85, 1.15)}
"""What `acoustic_logmel.py:ten_minutes` has beyond the demo, for recognisers on a pretrained encoder."""
FINE_TUNED = {"encoder.frozen": False, "optim.rules": (("^encoder/", 0.3, 0.0),)}
"""The encoder learns with the acoustic model, at three tenths of its rate (results.md, A pretrained model ...)."""
ONE_MODEL = {"acoustic.members": 1, "acoustic.consistency": 0.0}


def crop_of(data: DataFacts) -> float:
    """Seconds of a crop of CPC: those of the config, or less where recordings are shorter."""
    return min(1.28, max(0.5, data.crop // 0.1 * 0.1))


def candidates(data: DataFacts, init: Init | None) -> dict[str, TimedConfig]:
    """What is timed: a model of each size that may be chosen."""
    batch = recogniser_batch(data)
    length = batch["data.bucket_seconds"][0]
    rows = max(1, int(batch["data.unit_seconds"] // length)) * round(
        batch["data.device_seconds"] / batch["data.unit_seconds"]
    )
    if init is not None:
        units = {"data.unit_seconds": max(UPDATE_SECONDS, buckets_of(data)[-1])}
        rows = max(1, int(UPDATE_SECONDS // length))
        found = {"given": TimedConfig(init.config, {**init.changes, **units}, rows, seconds=length)}
        if init.pretraining and much_unlabelled(data):
            found["continued"] = _paper_batch(*init.pretraining)
        return found
    found = {"logmel": TimedConfig("acoustic_logmel.py:ten_minutes", {**batch, **ONE_MODEL}, rows, seconds=length)}
    if not cpc_may_help(data):
        return found | _large(data, length)
    crop = crop_of(data)
    crops = {"data.bucket_seconds": (crop,), "data.min_seconds": 0.5}
    found["cpc"] = TimedConfig("cpc.py:demo", crops, 3 * max(1, int(5.12 // crop)), seconds=crop)
    changes = {**batch, **REGULARISED, **FINE_TUNED}
    found["cpc_ctc"] = TimedConfig("acoustic_frozen.py:cpc_demo", changes, rows, seconds=length)
    return found | _large(data, length)


def _large(data: DataFacts, length: float) -> dict[str, TimedConfig]:
    """The candidates of accelerators, with the batches of the papers. length: seconds of most labelled recordings."""
    found = {
        name: _paper_batch(config, {}) for name, config in (("base", "w2v2_base.py"), ("hubert", "hubert_base.py"))
    }
    config, rows = f"finetune.py:{amount_of(data.train_minutes / 60)}", max(1, int(UPDATE_SECONDS // length))
    return found | {"finetune": TimedConfig(config, {}, rows, seconds=length, on_accelerator=True)}


def _paper_batch(config: str, changes: dict[str, Any]) -> TimedConfig:
    """A pretraining with the batch of its paper, of which a device is timed on five long rows."""
    hours = load(config).data.batch_hours
    rows, crop = 5, 15.625
    return TimedConfig(config, changes, rows, seconds=crop, parts=3600 * hours / (rows * crop), on_accelerator=True)
