"""The other side of `bench`: the same training step in PyTorch, with the same sizes, dropouts and loss.

wav2vec 2.0 and CTC on it are Hugging Face's; the other methods are the reference's formulations (`reference.py`). Needs
the extra `parity`; torch and transformers are imported when a function is called.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from w2v_jax import huggingface_config, reference
from w2v_jax.config import UserError

THEIRS = {
    "wav2vec2": "transformers Wav2Vec2ForPreTraining in training mode with the same sizes, dropouts and LayerDrop; "
    "masks and negative indices are drawn outside the timed part; quantizer, projections and loss on all frames (its "
    "own way); no feature penalty",
    "wav2vec": "the reference's formulation of wav2vec: channels first, distractors gathered",
    "vq_wav2vec": "the reference's formulation of vq-wav2vec: channels first, distractors gathered; nearest codes by "
    "torch.cdist, Gumbel's vectors by one product",
    "cpc": "CPC after Riviere et al. 2020: torch's recurrent network, distractors gathered for every present frame",
    "bert_codes": "transformers RobertaForMaskedLM with the head on masked frames only; masks are drawn in NumPy",
    "ctc": "transformers Wav2Vec2ForCTC in training mode with the same sizes, dropouts, LayerDrop and masks, which it "
    "draws in NumPy within the step",
}


class Side(NamedTuple):
    """One contender. run() does one whole step, waits for it and returns the loss in nats per prediction."""

    words: str  # what it does
    first_seconds: float  # compilation and first step
    run: Callable[[], float]
    parameters: int
    compile_seconds: float | None = None  # where it can be told apart
    program_bytes: int | None = None
    text: Callable[[], str] = str  # of the program


def their_side(config: Any, batch: dict[str, np.ndarray], compiled: bool) -> Side:
    """A step of torch with AdamW on the batch: on the GPU where JAX has one, else on all CPU cores."""
    torch = _import_torch()
    import jax

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("JAX has a GPU and torch has none: install a CUDA build of torch, or set JAX_PLATFORMS=cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(config.seed)
    builders = {"wav2vec2": wav2vec2, "ctc": ctc, "cpc": reference.cpc, "bert_codes": reference.bert}
    model, loss = builders.get(config.method, reference.wav2vec)(torch, config)
    model.to(device).train()
    o = config.optim
    adam = dict(lr=o.peak / max(o.warmup, 1), betas=tuple(o.betas), eps=o.eps, weight_decay=o.weight_decay)
    optimizer = torch.optim.AdamW(model.parameters(), **adam, fused=True)
    forward = torch.compile(loss) if compiled else loss
    tensors = {name: torch.from_numpy(x).to(device) for name, x in batch.items()}
    half = torch.autocast(device, torch.bfloat16, enabled=config.train.dtype == "bfloat16")

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with half:
            total, shown = forward(tensors)
        total.backward()
        optimizer.step()
        return shown.item()

    start = time.perf_counter()
    run()
    words = [THEIRS[config.method], "torch.optim.AdamW(fused=True)", "torch.compile" if compiled else "eager"]
    if hasattr(model, "config"):
        words.insert(1, f"attention by {model.config._attn_implementation}")
    return Side("; ".join(words), time.perf_counter() - start, run, sum(p.numel() for p in model.parameters()))


def _import_torch() -> Any:
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"--against=torch needs {error.name}: pip install -e '.[parity]'") from None
    return torch


def wav2vec2(torch: Any, config: Any) -> tuple[Any, reference.Loss]:
    """Hugging Face's model, and its loss per masked frame; what is shown is the contrastive part."""
    import transformers

    model = transformers.Wav2Vec2ForPreTraining(their_config(config, "pretraining"))
    model.set_gumbel_temperature(config.quantizer.temperature[0])
    draws = None

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal draws
        draws = draws or _their_draws(config, batch["wave"], torch)
        masked, negatives, count = next(draws)
        out = model(batch["wave"], mask_time_indices=masked, sampled_negative_indices=negatives)
        return out.loss / count, out.contrastive_loss.detach() / count

    return model, loss


def ctc(torch: Any, config: Any) -> tuple[Any, reference.Loss]:
    """Hugging Face's recogniser, with a feature encoder that is trained where ours is; what is shown is per token."""
    import transformers

    model = transformers.Wav2Vec2ForCTC(their_config(config, "ctc"))
    if not config.encoder.conv_grad_scale:
        model.freeze_feature_encoder()
    if config.encoder.frozen_steps:  # the first updates
        model.wav2vec2.requires_grad_(False)

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        total = model(batch["wave"], labels=batch["tokens"].long()).loss
        return total / len(batch["wave"]), total.detach() / batch["num_tokens"].sum()

    return model, loss


def their_config(config: Any, head: str) -> Any:
    """transformers.Wav2Vec2Config of the same model, dropouts and loss. UserError where it has no such choice."""
    from transformers import Wav2Vec2Config

    if head == "pretraining" and (config.loss.cross_negatives or config.loss.codebook_negatives):
        raise UserError("transformers has neither loss.cross_negatives nor loss.codebook_negatives: set both to 0")
    huggingface_config.check_export(config, head)
    return Wav2Vec2Config.from_dict(huggingface_config.their_config(config, head))


def _their_draws(config: Any, wave: Any, torch: Any):
    """Masks and negative indices for ever: a few drawn in the first step, so that drawing is not part of the time."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

    from w2v_jax.frontend import num_frames
    from w2v_jax.masking import span_mask_oracle

    frames = num_frames(wave.shape[1], config.encoder.conv_layers)
    rng, m = np.random.default_rng(config.seed), config.masking
    np.random.seed(config.seed)  # noqa: NPY002  _sample_negative_indices draws from this generator
    drawn = []
    for _ in range(4):
        lengths = np.full(len(wave), frames)
        masked = span_mask_oracle(rng, lengths, frames, prob=m.prob, length=m.length, min_spans=m.min_spans)
        negatives = _sample_negative_indices(masked.shape, config.loss.negatives, masked)
        tensors = (torch.from_numpy(x).to(wave.device) for x in (masked, negatives))
        drawn.append((*tensors, int(masked.sum())))
    while True:
        yield from drawn
