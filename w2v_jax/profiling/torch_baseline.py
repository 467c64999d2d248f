"""The PyTorch side of `bench`: the same training step, with the same sizes, dropouts and loss.

wav2vec 2.0, CTC on it and the encoder of HuBERT are Hugging Face's models. The other methods follow fairseq
(`profiling/torch_models.py`). Needs the extra `parity`: torch and transformers are imported when a function is called.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from w2v_jax.core.cli import UserError, needing
from w2v_jax.core.config import Config
from w2v_jax.interop import huggingface_config
from w2v_jax.ops.frames import num_frames
from w2v_jax.profiling import torch_models

DESCRIPTIONS = {
    "wav2vec2": "transformers Wav2Vec2ForPreTraining in training mode with the same sizes, dropouts and LayerDrop; "
    "masks and negative indices are drawn outside the timed part; quantizer, projections and loss on all frames, as "
    "transformers does; no feature penalty",
    "wav2vec": "fairseq's formulation of wav2vec: channels first, distractors gathered",
    "vq_wav2vec": "fairseq's formulation of vq-wav2vec: channels first, distractors gathered; nearest codes by "
    "torch.cdist, vectors of the Gumbel softmax by one product",
    "cpc": "CPC after Riviere et al. 2020: torch's recurrent network, distractors gathered for every present frame",
    "bert_codes": "transformers RobertaForMaskedLM with the head on masked frames only; masks are drawn in NumPy",
    "hubert": "transformers HubertModel in training mode with the same sizes, dropouts and LayerDrop, and fairseq's "
    "formulation of the loss: the right class beside all classes by cosine_similarity, masked and other frames apart; "
    "masks are drawn outside the timed part; no feature penalty",
    "wavlm": "as for hubert, with transformers WavLMModel; no recordings are mixed on either side",
    "ctc": "transformers Wav2Vec2ForCTC in training mode with the same sizes, dropouts, LayerDrop and masks, which it "
    "draws in NumPy within the step",
}
"""Method -> what its step in PyTorch does."""


class Side(NamedTuple):
    """One side of a comparison. run() does a whole step, waits for it, and returns the loss in nats per prediction.

    first_seconds: compilation and the first step. compile_seconds: None where compilation cannot be timed alone. text:
    returns the text of the compiled program.
    """

    description: str
    first_seconds: float
    run: Callable[[], float]
    parameters: int
    compile_seconds: float | None = None
    program_bytes: int | None = None
    text: Callable[[], str] = str


def torch_side(config: Config, batch: dict[str, np.ndarray], *, compiled: bool) -> Side:
    """A step in PyTorch with AdamW on the batch: on the GPU if JAX uses one, else on all CPU cores."""
    torch = _import_torch()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("JAX has a GPU but torch has none: install a CUDA build of torch, or set JAX_PLATFORMS=cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(config.seed)
    builders = {
        "wav2vec2": wav2vec2_baseline,
        "ctc": ctc_baseline,
        "hubert": unit_baseline,
        "wavlm": unit_baseline,
        "cpc": torch_models.cpc,
        "bert_codes": torch_models.bert,
    }
    model, loss = builders.get(config.method, torch_models.wav2vec)(torch, config)
    model.to(device).train()
    o = config.optim
    rate = o.peak / max(o.warmup, 1)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=tuple(o.betas), eps=o.eps, weight_decay=o.weight_decay, fused=True
    )
    forward = torch.compile(loss) if compiled else loss
    tensors = {name: torch.from_numpy(x).to(device) for name, x in batch.items()}
    autocast = torch.autocast(device, torch.bfloat16, enabled=config.train.dtype == "bfloat16")

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            total, printed = forward(tensors)
        total.backward()
        optimizer.step()
        return printed.item()

    start = time.perf_counter()
    run()
    first_seconds = time.perf_counter() - start
    details = [DESCRIPTIONS[config.method], "torch.optim.AdamW(fused=True)", "torch.compile" if compiled else "eager"]
    if hasattr(model, "config"):
        details.insert(1, f"attention by {model.config._attn_implementation}")
    return Side("; ".join(details), first_seconds, run, parameters=sum(p.numel() for p in model.parameters()))


def _import_torch() -> Any:
    with needing("--against=torch needs {error.name}: pip install -e '.[parity]'"):
        import torch
        import transformers  # noqa: F401
    return torch


def wav2vec2_baseline(torch: Any, config: Config) -> tuple[Any, torch_models.TorchLoss]:
    """Hugging Face's model and its loss per masked frame. The printed loss is the contrastive part."""
    import transformers

    model = transformers.Wav2Vec2ForPreTraining(baseline_config(config, "pretraining"))
    model.set_gumbel_temperature(config.quantizer.temperature[0])
    draws = None

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal draws
        draws = draws or _draws(config, batch["wave"], torch)
        masked, negatives, count = next(draws)
        out = model(batch["wave"], mask_time_indices=masked, sampled_negative_indices=negatives)
        return out.loss / count, out.contrastive_loss.detach() / count

    return model, loss


def unit_baseline(torch: Any, config: Config) -> tuple[Any, torch_models.TorchLoss]:
    """Hugging Face's HuBERT or WavLM, and fairseq's loss per masked frame. The printed loss is per label set."""
    import transformers

    settings, options = huggingface_config.transformers_config(config, "encoder"), config.loss
    rows = [options.extra_classes + clusters for clusters in options.classes]
    model = torch.nn.Module()
    family = {"hubert": "Hubert", "wavlm": "WavLM"}[config.method]
    sizes = getattr(transformers, f"{family}Config").from_dict(settings)
    model.encoder = getattr(transformers, f"{family}Model")(sizes)
    outputs = options.proj * (len(rows) if options.untied else 1)
    model.final_proj = torch.nn.Linear(config.encoder.width, outputs)
    model.label_embs_concat = torch.nn.Parameter(torch.rand(sum(rows), options.proj))
    model.config = model.encoder.config
    draws = None

    def cross_entropy(x: Any, labels: Any) -> Any:
        """The summed loss of frames [N D] with labels [N S]."""
        z, total = model.final_proj(x).float(), 0.0
        parts = z.chunk(len(rows), dim=-1) if options.untied else [z] * len(rows)
        for i, (part, table) in enumerate(zip(parts, model.label_embs_concat.split(rows))):
            right = table[labels[:, i] + options.extra_classes]
            compared = torch.cat([right[None], table[:, None].expand(-1, len(part), -1)])  # [1+V N P]
            logits = torch.cosine_similarity(part[None], compared, dim=-1) / options.temperature
            logits[1:][(compared[1:] == right).all(dim=-1)] = float("-inf")
            first = torch.zeros(len(part), dtype=torch.long, device=x.device)
            total = total + torch.nn.functional.cross_entropy(logits.T, first, reduction="sum")
        return total

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal draws
        draws = draws or _masks(config, batch["wave"], torch)
        masked, count = next(draws)
        x = model.encoder(batch["wave"], mask_time_indices=masked).last_hidden_state
        step = batch["targets"].shape[2] // x.shape[1] or 1
        labels = batch["targets"].long()[:, :, ::step][:, :, : x.shape[1]].transpose(1, 2)
        hidden, shown = (cross_entropy(x[frames], labels[frames]) for frames in (masked, ~masked))
        total = options.masked_weight * hidden + options.unmasked_weight * shown
        return total / count, hidden.detach() / count / len(rows)

    return model, loss


def ctc_baseline(torch: Any, config: Config) -> tuple[Any, torch_models.TorchLoss]:
    """Hugging Face's recogniser; its feature encoder is trained if ours is. The printed loss is per token."""
    import transformers

    model = transformers.Wav2Vec2ForCTC(baseline_config(config, "ctc"))
    if not config.encoder.conv_grad_scale:
        model.freeze_feature_encoder()
    if config.encoder.frozen_steps:  # one of the first updates is timed
        model.wav2vec2.requires_grad_(False)

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        total = model(batch["wave"], labels=batch["tokens"].long()).loss
        return total / len(batch["wave"]), total.detach() / batch["num_tokens"].sum()

    return model, loss


def baseline_config(config: Config, head: str) -> Any:
    """The transformers.Wav2Vec2Config of the same model, dropouts and loss. Raises UserError where there is none."""
    from transformers import Wav2Vec2Config

    if head == "pretraining" and (config.loss.cross_negatives or config.loss.codebook_negatives):
        raise UserError("transformers supports neither loss.cross_negatives nor loss.codebook_negatives: set both to 0")
    huggingface_config.check_export(config, head)
    return Wav2Vec2Config.from_dict(huggingface_config.transformers_config(config, head))


def _masks(config: Config, wave: Any, torch: Any) -> Iterator[tuple[Any, int]]:
    """Endless masks and numbers of masked frames: four drawn at first, so that no step draws any."""
    rng, frames = np.random.default_rng(config.seed), num_frames(wave.shape[1], config.encoder.conv_layers)
    masks = [torch_models.draw_masked(config, rng, len(wave), frames=frames) for _ in range(4)]
    while True:
        yield from ((torch.from_numpy(masked).to(wave.device), int(masked.sum())) for masked in masks)


def _draws(config: Config, wave: Any, torch: Any) -> Iterator[tuple[Any, Any, int]]:
    """Endless masks, negative indices and numbers of masked frames: four drawn at first, so that no step draws any."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

    rng, frames = np.random.default_rng(config.seed), num_frames(wave.shape[1], config.encoder.conv_layers)
    np.random.seed(config.seed)  # noqa: NPY002  _sample_negative_indices draws from this generator
    draws = []
    for _ in range(4):
        masked = torch_models.draw_masked(config, rng, len(wave), frames=frames)
        negatives = _sample_negative_indices(masked.shape, config.loss.negatives, masked)
        tensors = (torch.from_numpy(x).to(wave.device) for x in (masked, negatives))
        draws.append((*tensors, int(masked.sum())))
    while True:
        yield from draws
