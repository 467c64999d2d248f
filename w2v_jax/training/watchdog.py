"""What rows of metrics say of a run: whether it is dead, what to try, and whether it still gets better. Pure.

A self-supervised loss can look fine while nothing is learned (all codes equal: loss 0, accuracy 1), or hide that
nothing moves (loss at ln(K + 1)). The levels of the method (`levels` of its file) say what such a run reaches. What
to do about a finding (warn, stop, nothing) is the loop's affair; skipping a non-finite update is `step.py`'s.

    dog = Watchdog(levels, settings_for(config))
    for finding in dog.see(row):       # each finding once, until it has cleared
        print(finding.message)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from w2v_jax.core.config import Config, setting
from w2v_jax.core.types import Levels, MetricsRow


class Finding(NamedTuple):
    """Something wrong: a short name, a message for people, and whether the run is dead (rather than hurt)."""

    name: str
    message: str
    dead: bool = True


class WatchdogSettings(NamedTuple):
    """patience: logged rows in a row that must agree. grace_steps: until then a loss at chance is normal.
    late_steps: until then a dip is normal (few codes in use, labels not learnt yet).

    batch_hours, peak (the highest learning rate) and clean_steps (a recogniser's first updates without dropout and
    masks) are only quoted in the messages; 0 where unknown.
    """

    patience: int = 10
    grace_steps: int = 3000
    late_steps: int = 12_000
    batch_hours: float = 0.0
    peak: float = 0.0
    clean_steps: int = 0


def settings_for(config: Config) -> WatchdogSettings:
    """The settings of a config. Grace is the warm-up or a third of the run, between 100 and 3000 steps.

    It is late after four times the grace, or at seven tenths of a short run.
    """
    grace = min(max(config.optim.warmup, config.train.steps // 3, 100), 3000)
    late = max(min(4 * grace, config.train.steps * 7 // 10), grace)
    clean = setting(config, "acoustic.clean_steps")
    return WatchdogSettings(
        grace_steps=grace,
        late_steps=late,
        batch_hours=config.data.batch_hours,
        peak=config.optim.peak,
        clean_steps=clean,
    )


class Watchdog:
    """Remembers the last rows of training, all evaluations, and which findings were reported.

    history: rows of metrics.jsonl on a resumed run.
    """

    def __init__(self, levels: Levels, settings: WatchdogSettings | None = None, history: Sequence[MetricsRow] = ()):
        self.levels, self.settings = levels, settings or WatchdogSettings()
        self._rows: list[MetricsRow] = []
        self._evaluations: list[MetricsRow] = []
        self._reported: dict[str, int] = {}
        for row in history:
            self.see(row)

    def see(self, row: MetricsRow) -> list[Finding]:
        """What is newly wrong with this row. One that was reported comes again only after a while without it."""
        split = row.get("split", "train")
        if split == "eval":
            self._evaluations.append(row)
        elif split == "train":
            self._rows = [*self._rows, row][-2 * self.settings.patience - 1 :]
        else:
            return []
        findings = check([*self._rows, *self._evaluations], self.levels, self.settings)
        present = {finding.name: finding for finding in findings}
        new = [finding for name, finding in present.items() if name not in self._reported]
        absent = {name: count + 1 for name, count in self._reported.items() if name not in present}
        self._reported = {name: count for name, count in absent.items() if count < 2 * self.settings.patience}
        self._reported |= dict.fromkeys(present, 0)
        return new


def check(history: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> list[Finding]:
    """Everything that is wrong at the end of a history of logged rows (of each split the newest last).

    A row may lack any metric, and hold None or NaN for one that was not finite. At most one finding is about
    collapse: the first that fits, from the most to the least specific.
    """
    rows = [row for row in history if row.get("split", "train") == "train"]
    evaluations = [row for row in history if row.get("split") == "eval"]
    specific = (_equal_logits, _one_code, _accuracy_stuck, _no_gradient)
    general = (_at_chance, _few_codes, _only_counts, _one_unit, _labels_not_learnt, _only_blanks)
    collapses = (rule(rows, levels, settings) for rule in specific + general) if rows else ()
    findings = [_not_finite(rows, levels, settings)] if rows else []
    findings.append(next((finding for finding in collapses if finding), None))
    findings += [rule(evaluations, levels, settings) for rule in (_writes_nothing, _overfits) if evaluations]
    return list({finding.name: finding for finding in findings if finding}.values())


def _last(rows: Sequence[MetricsRow], name: str, count: int) -> list[float] | None:
    """The metric's last `count` values; None if there are not so many or one is not finite."""
    values = [row.get(name) for row in rows[-count:]]
    if len(values) < count or any(value is None or not math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values if value is not None]


def _stays_at(rows: Sequence[MetricsRow], level: str, settings: WatchdogSettings) -> str:
    """Where the loss has been late in the run what the metric `level` is: "(LEVEL) for N logged steps"; else ""."""
    count = 2 * settings.patience
    losses, levels = (_last(rows, name, count) for name in ("loss", level))
    if losses is None or levels is None or rows[-count]["step"] <= settings.late_steps:
        return ""
    mean = math.fsum(levels) / count
    return "" if math.fsum(losses) < 0.98 * math.fsum(levels) else f"({mean:.3f}) for {count} logged steps"


def _cause(settings: WatchdogSettings) -> str:
    """The usual suspect, with this run's numbers."""
    rate = f"optim.peak={settings.peak:g}" if settings.peak else "the learning rate"
    batch = f"{settings.batch_hours:.3g} h of audio per update" if settings.batch_hours else "the batch"
    return f"{rate} is too high for {batch} (wav2vec 2.0 Base: 0.0005 at 1.56 h)"


REMEDY = "lower optim.peak to a fifth or raise data.batch_hours (accumulation keeps memory), and lengthen optim.warmup"


def _equal_logits(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    losses, chance = _last(rows, "loss", settings.patience), levels.get("loss_chance")
    if chance is None or losses is None or any(abs(loss - chance) > 1e-4 * chance for loss in losses):
        return None
    return Finding(
        "collapsed to a constant",
        f"the loss has been exactly at chance ({chance:.4f}) for {settings.patience} logged steps: every frame gets "
        f"the same vector, so all choices look alike. Likely cause: {_cause(settings)}, or input that is not speech at "
        f"16 kHz. Next: {REMEDY}; start anew, this does not recover",
    )


def _one_code(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    floor = levels.get("perplexity_floor")
    for name in ("code_perplexity", "prob_perplexity"):
        values = _last(rows, name, settings.patience)
        if floor is not None and values is not None and max(values) <= 1.1 * floor:
            return Finding(
                "codebook collapsed",
                f"{name} has been at its floor ({floor:g}: one code per group) for {settings.patience} logged steps; "
                f"a low loss or a high accuracy means nothing now. Likely cause: {_cause(settings)}, or the diversity "
                f"term is too weak (loss.diversity_weight, 0.1 for wav2vec 2.0), or quantizer.temperature starts too "
                f"low (2.0 in the papers). Next: {REMEDY}; raise loss.diversity_weight (Gumbel) or quantizer.restart "
                f"(k-means); start anew, this does not recover",
            )
    return None


def _accuracy_stuck(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    values = _last(rows, "accuracy", settings.patience)
    if values is None or any(value not in (0.0, 1.0) for value in values):
        return None
    if not any(values) and rows[-1]["step"] <= settings.grace_steps:
        return None  # no hit in a small batch is chance early on
    what = "1" if all(values) else "0" if not any(values) else "jumping between 0 and 1"
    return Finding(
        "accuracy stuck",
        f"the accuracy has been exactly {what} for {settings.patience} logged steps: the choices are all equal to the "
        f"target (one code everywhere) or all equal to each other. Likely cause: {_cause(settings)}; or too few masked "
        f"frames per row (masking.prob, very short recordings). Next: look at the perplexities in curves.png; {REMEDY}",
    )


def _no_gradient(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    norms = _last(rows, "grad_norm", settings.patience)
    if norms is None or max(norms) > 1e-6:
        return None
    return Finding(
        "no gradient",
        f"the gradient norm has been below 1e-6 for {settings.patience} logged steps (a healthy run has about 0.1 to "
        f"2): nothing is learned any more. Likely cause: a collapse ({_cause(settings)}), or optim.rules freeze every "
        f"parameter. Next: look at the perplexities in curves.png; {REMEDY}",
    )


def _at_chance(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    chance, count = levels.get("loss_chance"), 2 * settings.patience
    losses = _last(rows, "loss", count)
    if chance is None or losses is None or rows[-count]["step"] <= settings.grace_steps:
        return None
    if math.fsum(losses) / count < 0.98 * chance:
        return None
    return Finding(
        "loss at chance",
        f"the loss has stayed at chance ({chance:.3f}) for {count} logged steps after the first "
        f"{settings.grace_steps} steps: nothing is learned yet. Likely cause: {_cause(settings)}, or input that is not "
        f"speech at 16 kHz (listen to a few files; a wrong rate in a manifest sounds too fast or too slow). "
        f"Next: {REMEDY}",
    )


def _few_codes(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    floor, most, count = levels.get("perplexity_floor"), levels.get("perplexity_max"), 2 * settings.patience
    name = "prob_perplexity" if "prob_perplexity" in rows[-1] else "code_perplexity"  # k-means has no probabilities
    values = _last(rows, name, count)
    if floor is None or most is None or values is None or rows[-count]["step"] <= settings.late_steps:
        return None
    bound = floor + 0.03 * (most - floor)
    if max(values) > bound:
        return None
    return Finding(
        "few codes in use",
        f"{name} has not been above {bound:.3g} of {most:g} for {count} logged steps (a dip to a twentieth "
        f"early in a run is normal, staying there is not): the codebook is close to collapse. Likely cause: "
        f"{_cause(settings)}, or nothing keeps codes alive. Next: {REMEDY}; raise loss.diversity_weight (Gumbel) or "
        f"quantizer.restart (k-means)",
        dead=False,
    )


def _only_counts(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    """The loss of a model over codes stays at `unigram_loss`; each row has both, of the same frames."""
    if not (stays := _stays_at(rows, "unigram_loss", settings)):
        return None
    return Finding(
        "no better than counting",
        f"the loss has stayed at the unigram entropy of the codes {stays}: the model knows how often each code occurs, "
        f"and uses nothing of the frames around. Likely cause: optim.peak={settings.peak:g} is too low for "
        f"{settings.batch_hours:.3g} h of codes per update (the paper's 1e-5 belongs to 1.09 h and 250k updates), or "
        "masking.length is so short that neighbours give the code away. Next: raise optim.peak tenfold; "
        "masking.length=10",
        dead=False,
    )


def _one_unit(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    """A method that predicts given labels names the same one everywhere. As the first plateau of a run it is normal."""
    count = 2 * settings.patience
    predicted, entropy = (_last(rows, name, count) for name in ("prediction_perplexity", "label_entropy"))
    first = rows[-count]["step"] if predicted is not None else 0
    if predicted is None or entropy is None or first <= settings.grace_steps:
        return None
    if max(predicted) > 1.1 or min(entropy) < 0.2:
        return None
    return Finding(
        "one unit everywhere",
        f"every masked frame has been taken for the same unit for {count} logged steps, although the labels are many "
        f"(their entropy is {math.fsum(entropy) / count:.2f} nats): nothing of the audio is used. Likely cause: "
        f"{_cause(settings)}, or labels that do not belong to these recordings. Next: {REMEDY}; listen to a recording "
        "beside its units in data.targets",
        dead=first > settings.late_steps,
    )


def _labels_not_learnt(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    """The loss stays at the entropy of the labels, which a model reaches that knows only how frequent each is."""
    if not (stays := _stays_at(rows, "label_entropy", settings)):
        return None
    return Finding(
        "labels are not learnt",
        f"the loss has stayed at the entropy of the labels {stays}: the model knows how frequent each unit is, and "
        "uses nothing of the frames around. Likely cause: the units are noise or belong to other recordings "
        "(data.targets; python -m w2v_jax.units measure says what they are worth), or "
        f"{_cause(settings)}. Next: check the units; {REMEDY}",
        dead=False,
    )


def _only_blanks(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    """The plateau of CTC as the training rows show it, where there are no evaluations."""
    count = 2 * settings.patience
    shares = _last(rows, "blank_share", count)
    if shares is None or min(shares) < 0.999 or rows[-count]["step"] <= settings.grace_steps:
        return None
    return _plateau(f"every frame has been blank for {count} logged steps", settings)


def _writes_nothing(evaluations: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    """The plateau of CTC as the newest evaluation shows it."""
    newest = evaluations[-1]
    if newest["step"] <= settings.grace_steps or not on_plateau(newest, levels):
        return None
    blank = f", {newest['blank_share']:.0%} of the frames blank" if newest.get("blank_share") is not None else ""
    return _plateau(f"token error {newest['token_error']:.3f}{blank} after {newest['step']:,} updates", settings)


def _plateau(seen: str, settings: WatchdogSettings) -> Finding:
    noisy = "" if settings.clean_steps else "dropout and masks from the first update on (acoustic.clean_steps=0), "
    return Finding(
        "on the plateau of CTC",
        f"{seen}: the recogniser writes next to nothing. Likely cause: {noisy}optim.peak={settings.peak:g} is too high "
        "for a pretrained encoder (the papers: 2e-5 to 1e-4) or too low for a new acoustic model (about 1e-3), too few "
        "updates so far, or transcripts that do not belong to the audio (python -m w2v_jax.prepare --plot shows some). "
        "Next: docs/ten_minutes.md, When it is stuck",
        dead=False,
    )


PLATEAU_AT_THE_END = (
    "this run ended on the plateau of CTC: it writes next to nothing, and its error rates say nothing about its input. "
    "docs/ten_minutes.md, When it is stuck, says what to try"
)


def _overfits(evaluations: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    """The held-out loss of a recogniser is a tenth above its lowest, and was above it in the last three evaluations."""
    lowest, best = best_evaluation(evaluations, "loss"), best_evaluation(evaluations, "token_error")
    later = [row.get("loss") for row in evaluations if lowest is not None and row["step"] > lowest.step]
    if lowest is None or best is None or len(later) < 3:
        return None
    if not all(loss is not None and loss > 1.1 * lowest.value for loss in later[-3:]):
        return None
    gap = evaluations[-1].get("loss_gap")
    training = "" if gap is None else f", {gap:.2f} above the training loss"
    return Finding(
        "overfits",
        f"overfits since update {lowest.step:,}: the held-out loss was {lowest.value:.2f} there and is {later[-1]:.2f} "
        f"now{training}. The lowest held-out error so far is {best.value:.3f}, of {best}; that checkpoint is kept "
        "and is the one that evaluate and transcribe use. Next: more labelled audio; masking.time_prob, "
        "masking.channel_prob, acoustic.dropout up; acoustic.members=2; train.patience ends a run that gets no better",
        dead=False,
    )


def _not_finite(rows: Sequence[MetricsRow], levels: Levels, settings: WatchdogSettings) -> Finding | None:
    """A loss or gradient that is not finite, or updates skipped since the row before."""
    bad = [_is_bad(rows, i) for i in range(len(rows))]
    if not bad[-1]:
        return None
    total = rows[-1].get("skipped_updates") or 0
    dead = len(bad) >= settings.patience and all(bad[-settings.patience :])
    return Finding(
        "not finite, again and again" if dead else "not finite",
        f"the loss or gradient was not finite around step {rows[-1]['step']}; such updates are skipped ({total:.0f} so "
        f"far) and their recordings are named in the workdir. Once in a while is harmless. Likely cause otherwise: "
        f"broken audio, or {_cause(settings)}. Next: look at the named recordings; set optim.clip_norm=1; "
        f'train.dtype="float32"; {REMEDY}',
        dead=dead,
    )


def _is_bad(rows: Sequence[MetricsRow], i: int) -> bool:
    for name in ("loss", "grad_norm"):
        if name in rows[i] and (rows[i][name] is None or not math.isfinite(rows[i][name])):
            return True
    before = rows[i - 1].get("skipped_updates") if i else None
    return before is not None and (rows[i].get("skipped_updates") or 0) > before


# The best evaluation


PLATEAU = 0.95
"""A token error of this share of `error_silent`, what saying nothing gets, or above, is that of the plateau."""


class Best(NamedTuple):
    """The evaluation with the lowest value of a metric."""

    step: int
    metric: str
    value: float

    def __str__(self) -> str:
        return f"step {self.step:,} (held-out {self.metric} {self.value:.3f})"


def best_evaluation(rows: Sequence[MetricsRow], metric: str) -> Best | None:
    """The evaluation with the lowest finite value; an older one wins a tie. None without any."""
    values = [(row[metric], row["step"]) for row in rows if row.get("split") == "eval" and _is_finite(row.get(metric))]
    if not values:
        return None
    value, step = min(values)
    return Best(step, metric, value)


def on_plateau(row: MetricsRow, levels: Levels) -> bool:
    """Whether an evaluation is one of a recogniser that writes next to nothing."""
    silent, error = levels.get("error_silent"), row.get("token_error")
    return silent is not None and error is not None and error >= PLATEAU * silent


def ended_early(rows: Sequence[MetricsRow], config: Config, levels: Levels) -> str:
    """Why the run ends at the newest evaluation of the rows, before its last step; "" where it goes on.

    The patience counts from the best evaluation, in updates. It does not count while a recogniser is on the plateau of
    CTC, where it writes next to nothing: what was best before then says nothing about what comes after.
    """
    evaluations = [row for row in rows if row.get("split") == "eval"]
    best, patience = best_evaluation(evaluations, config.train.best), config.train.patience
    if best is None or not patience or on_plateau(evaluations[-1], levels):
        return ""
    step = evaluations[-1]["step"]
    if step - best.step < patience or step >= config.train.steps:
        return ""
    return f"no held-out {best.metric} below {best.value:.3f} of step {best.step:,} for {patience:,} updates"


def outcome(
    rows: Sequence[MetricsRow], config: Config, levels: Levels, *, corpora: Mapping[str, Any]
) -> dict[str, Any]:
    """What done.json says of a whole run beside its last rows.

    best: {"step", "metric", "value"} of the best evaluation, or None. ended_early: why it ended before its last step,
    or "". on_plateau: whether it ended as a recogniser that writes next to nothing. corpora: what was heard of each
    (`dataset.heard`), where there are several.
    """
    best = best_evaluation(rows, config.train.best)
    evaluations = [row for row in rows if row.get("split") == "eval"]
    return {
        "best": best._asdict() if best else None,
        "ended_early": ended_early(rows, config, levels),
        "on_plateau": bool(evaluations) and on_plateau(evaluations[-1], levels),
        **({"corpora": corpora} if corpora else {}),
    }


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
