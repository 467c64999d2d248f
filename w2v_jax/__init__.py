"""Self-supervised speech pretraining in JAX and Flax: wav2vec 2.0 and its family.

Start reading at `core/types.py` (the shared types), then `methods/wav2vec2.py` (a paper in one file),
`training/step.py` (one update) and `train.py` (the loop). Importing the package initialises no device.
"""

from typing import Any

from w2v_jax.core.environment import VERSION as __version__  # noqa: F401


def load(path: Any, *, step: int | str | None = None, quantizer: Any = None):
    """The trained model in the folder of a run (its --workdir): a function of recordings, `model(wave, rate)`.

    >>> import numpy as np
    >>> import w2v_jax
    >>> model = w2v_jax.load("runs/demo")
    >>> second = np.sin(np.arange(22050) / 10)  # [samples] or [samples, channels], at any rate
    >>> record = model(second, 22050)
    >>> record.context.shape[0], record.times[:2].round(4).tolist()  # frames, and the middle of each in seconds
    (49, [0.0125, 0.0325])
    >>> sorted(model.keys)
    ['codes', 'context', 'hidden', 'local']
    >>> one, other = model([second, second[:11025]], 22050, keys=["hidden"], layer=1)  # a batch; only this is computed
    >>> len(one.hidden), len(other.hidden), one.context
    (49, 24, None)

    Runs of CTC give `record.text` and `record.log_probs`, too. path: the folder, or what `open_run` made of it.
    step: a checkpoint's number, "best", "newest", or None for the best of a recogniser and the newest of others.
    quantizer: the run of vq-wav2vec that makes the codes which a BERT reads. The fields of a record, and what a model
    is given, stand in `w2v_jax/inference/model.py`. Raises w2v_jax.core.cli.UserError.
    """
    from w2v_jax.inference.model import open_model

    return open_model(path, step=step, quantizer=quantizer)
