"""CPC, wav2vec, vq-wav2vec and BERT in PyTorch, formulated as by their authors, for `bench` to compare with.

Distractors are gathered, and each is multiplied with each prediction. Convolutions are channels first, and
normalisations are PyTorch's. The parameters of wav2vec and vq-wav2vec have the names of fairseq (models/wav2vec), so
that its arrays can be loaded. Only what the published configs use is here: no padding, no restart of dead codes.

Each function takes torch and a config and returns (model, loss). loss takes a batch (`random_batch`, as tensors) and
returns the loss to differentiate and the loss to print, in nats per prediction. It draws all random numbers itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config
from w2v_jax.core.units import CODE_MASK
from w2v_jax.nn.future_prediction import first_offset
from w2v_jax.ops.frames import num_frames
from w2v_jax.ops.masking import span_mask_oracle

TorchLoss = Callable[[dict[str, Any]], tuple[Any, Any]]


def wav2vec(torch: Any, config: Config) -> tuple[Any, TorchLoss]:
    """wav2vec (Schneider et al. 2019) or vq-wav2vec (Baevski et al. 2020), as config.method says."""
    nn, functional = torch.nn, torch.nn.functional
    e, options = config.encoder, config.loss
    if e.context != "conv" or options.cross_negatives:
        raise UserError("the PyTorch side supports only encoder.context='conv' and loss.cross_negatives=0")
    width = e.conv_layers[-1][0]
    model = _encoder(nn, e, lambda channels: nn.GroupNorm(1, channels))
    quantize = vector_quantizer(torch, config, model) if config.method == "vq_wav2vec" else None
    model.feature_aggregator = nn.Module()
    model.feature_aggregator.conv_layers = nn.ModuleList(
        nn.Sequential(
            nn.ConstantPad1d((k - 1, 0), 0.0) if e.context_zero_pad else nn.ReplicationPad1d((k - 1, 0)),
            nn.Conv1d(width, width, k),
            nn.Identity(),
            nn.GroupNorm(1, width),
            _activation(nn, e.activation),
        )
        for k in e.context_kernels
    )
    model.wav2vec_predictions = nn.Module()
    model.wav2vec_predictions.project_to_steps = nn.ConvTranspose2d(width, width, (1, options.steps))
    first = first_offset(config)

    def loss(batch: dict[str, Any], index: Any = None) -> tuple[Any, Any]:
        z = _local(model, e, batch["wave"])  # [B C F]
        rows, _, frames = z.shape
        z, extra = (z, 0.0) if quantize is None else quantize(z)
        x = z
        for layer in model.feature_aggregator.conv_layers:
            x = (layer(x) + x) * math.sqrt(0.5) if e.context_skip else layer(x)
        if index is None:
            index = torch.randint(frames - 1, (rows, options.negatives, frames), device=z.device)
            index = index + (index >= torch.arange(frames, device=z.device))
        drawn = torch.gather(z, 2, index.reshape(rows, 1, -1).expand(-1, width, -1))
        drawn = drawn.view(rows, width, options.negatives, frames).permute(2, 0, 1, 3)
        targets = torch.cat([z[None], drawn])  # [1+N B C F]
        predictions = model.wav2vec_predictions.project_to_steps(x[..., None])  # [B C F S]
        logits = torch.cat(
            [
                torch.einsum("bcf,nbcf->nbf", predictions[:, :, : frames - offset, s], targets[..., offset:]).flatten(1)
                for s, offset in enumerate(range(first, min(first + options.steps, frames)))
            ],
            dim=1,
        ).float()  # [1+N pairs]
        if options.kind == "infonce":
            total = -functional.log_softmax(logits, dim=0)[0].sum()
        else:
            labels = torch.zeros_like(logits)
            labels[0] = 1.0
            weight = torch.full_like(logits, 1.0 / options.negatives if options.balanced else 1.0)
            weight[0] = 1.0
            total = functional.binary_cross_entropy_with_logits(logits, labels, weight, reduction="sum")
        total = total / logits.shape[1] + extra
        return total, total.detach()

    return model, loss


def vector_quantizer(torch: Any, config: Config, model: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Adds a quantizer to the model. Returns a function of z [B C F]: (codes' vectors [B C F], term of the loss)."""
    nn, functional, q, options = torch.nn, torch.nn.functional, config.quantizer, config.loss
    width = config.encoder.conv_layers[-1][0]
    books, inner = 1 if q.shared else q.groups, width // q.groups
    model.vector_quantizer = part = nn.Module()
    if q.kind == "gumbel":
        if options.diversity_weight:
            raise UserError("the PyTorch side supports only loss.diversity_weight=0")
        part.vars = nn.Parameter(torch.rand(1, books * q.codes, inner))
        hidden = nn.Sequential(nn.Linear(width, 2 * width), _activation(nn, config.encoder.activation))
        last = nn.Linear(2 * width if q.depth == 2 else width, q.groups * q.codes)
        part.weight_proj = nn.Sequential(hidden, last) if q.depth == 2 else last

        def gumbel(z: Any) -> tuple[Any, Any]:
            rows, _, frames = z.shape
            logits = part.weight_proj(z.transpose(1, 2).reshape(-1, width)).float().view(-1, q.codes)
            sample = functional.gumbel_softmax(logits, tau=q.temperature[0], hard=True).view(-1, q.groups, q.codes)
            book = part.vars.view(books, q.codes, inner).expand(q.groups, -1, -1)
            vectors = torch.einsum("ngv,gve->nge", sample, book)
            return vectors.reshape(rows, frames, width).transpose(1, 2).to(z.dtype), 0.0

        return gumbel
    part.embedding = nn.Parameter(0.01 * torch.randn(q.codes, books, inner))
    part.projection = nn.Sequential(
        nn.Conv1d(width, width, 1, groups=q.groups, bias=False), nn.GroupNorm(q.groups, width)
    )

    def kmeans(z: Any) -> tuple[Any, Any]:
        rows, _, frames = z.shape
        projected = part.projection(z).float()
        grouped = projected.view(rows, q.groups, inner, frames).permute(1, 0, 3, 2).reshape(q.groups, -1, inner)
        book = part.embedding.transpose(0, 1).expand(q.groups, -1, -1)
        nearest = torch.cdist(grouped, book).argmin(dim=-1)  # [G B*F]
        chosen = torch.gather(book, 1, nearest[..., None].expand(-1, -1, inner))
        chosen = chosen.view(q.groups, rows, frames, inner).permute(1, 0, 3, 2).reshape(rows, width, frames)
        term = functional.mse_loss(chosen, projected.detach())
        term = term + options.commitment_gamma * functional.mse_loss(projected, chosen.detach())
        return projected - (projected - chosen).detach(), options.commitment_weight * term

    return kmeans


def cpc(torch: Any, config: Config) -> tuple[Any, TorchLoss]:
    """CPC (van den Oord et al. 2018) after Riviere et al. 2020: distractors are gathered for every present frame."""
    nn, functional = torch.nn, torch.nn.functional
    e, options = config.encoder, config.loss
    if e.conv_norm not in ("frame", "none") or e.context not in ("gru", "lstm") or options.negatives_from == "others":
        raise UserError("the PyTorch side of CPC lacks this encoder.conv_norm, encoder.context or negatives_from")
    width = e.conv_layers[-1][0]

    class ChannelNorm(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, channels, 1))
            self.bias = nn.Parameter(torch.zeros(1, channels, 1))

        def forward(self, x: Any) -> Any:
            mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True)
            return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias

    model = _encoder(nn, e, ChannelNorm if e.conv_norm == "frame" else lambda channels: nn.Identity())
    recurrent = nn.GRU if e.context == "gru" else nn.LSTM
    model.context = recurrent(width, e.width, e.layers, batch_first=True)
    model.predictors = nn.ModuleList(nn.Linear(e.width, width, bias=False) for _ in range(options.steps))

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        z = _local(model, e, batch["wave"]).transpose(1, 2)  # [B F C]
        rows, frames, _ = z.shape
        c = model.context(z)[0]
        present = frames - options.steps - options.offset + 1
        shape, device = (rows, present, options.negatives), z.device
        distance = torch.randint(1, frames, shape, device=device)
        later = (torch.arange(present, device=device)[:, None] + distance) % frames
        row = torch.arange(rows, device=device).view(-1, 1, 1)
        if options.negatives_from == "both":
            row = torch.randint(rows, shape, device=device)
        drawn = z.reshape(-1, width)[(row * frames + later).flatten()].view(*shape, width)  # [B F N C]
        total = 0.0
        for s, predictor in enumerate(model.predictors):
            positive = z[:, s + options.offset : s + options.offset + present]
            candidates = torch.cat([positive[:, :, None], drawn], dim=2)
            logits = torch.einsum("bfc,bfnc->bfn", predictor(c[:, :present]), candidates).float()
            logits = logits / width if options.scale == "mean" else logits
            total = total - functional.log_softmax(logits, dim=-1)[..., 0].mean()
        total = total / options.steps
        return total, total.detach()

    return model, loss


def bert(torch: Any, config: Config) -> tuple[Any, TorchLoss]:
    """RoBERTa of Hugging Face over codes, with the head on the masked frames only, as in fairseq."""
    import transformers

    e = config.encoder
    if e.positions != "learned" or e.pre_norm:
        raise UserError("the PyTorch side of BERT supports only encoder.positions='learned' and pre_norm=False")
    roberta_config = transformers.RobertaConfig(
        vocab_size=config.data.vocab_size,
        hidden_size=e.width,
        num_hidden_layers=e.layers,
        num_attention_heads=e.heads,
        intermediate_size=e.mlp,
        hidden_dropout_prob=e.dropout,
        attention_probs_dropout_prob=e.attention_dropout,
        max_position_embeddings=e.max_frames + 1,
        type_vocab_size=1,
        pad_token_id=0,
    )
    model = transformers.RobertaForMaskedLM(roberta_config)
    rng = np.random.default_rng(config.seed)

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        codes = batch["codes"].long()
        rows, frames = codes.shape
        masked = torch.from_numpy(draw_masked(config, rng, rows, frames=frames)).to(codes.device)
        x = model.roberta(torch.where(masked, torch.full_like(codes, CODE_MASK), codes))[0]
        total = torch.nn.functional.cross_entropy(model.lm_head(x[masked]).float(), codes[masked])
        return total, total.detach()

    return model, loss


def draw_masked(config: Config, rng: np.random.Generator, rows: int, *, frames: int) -> np.ndarray:
    """Masked frames [B F] of full rows, drawn by section masking of the config."""
    m = config.masking
    lengths = np.full(rows, frames)
    return span_mask_oracle(rng, lengths, frames, prob=m.prob, length=m.length, min_spans=m.min_spans)


def _encoder(nn: Any, e: Any, norm: Callable[[int], Any]) -> Any:
    """A module with the strided convolutions of the section encoder, under the names of fairseq."""
    model, channels, layers = nn.Module(), 1, []
    for width, kernel, stride in e.conv_layers:
        conv = nn.Conv1d(channels, width, kernel, stride, bias=e.conv_bias)
        layers.append(nn.Sequential(conv, nn.Identity(), norm(width), _activation(nn, e.activation)))
        channels = width
    model.feature_extractor = nn.Module()
    model.feature_extractor.conv_layers = nn.ModuleList(layers)
    return model


def _local(model: Any, e: Any, wave: Any) -> Any:
    """wave [B T] -> local features [B C F]."""
    if num_frames(wave.shape[1], e.conv_layers) < 2:
        raise UserError(f"rows of {wave.shape[1]} samples are too short: they have no frame to predict")
    x = wave[:, None]
    for layer in model.feature_extractor.conv_layers:
        x = layer(x)
    return x.abs().add(1.0).log() if e.log_compression else x


def _activation(nn: Any, name: str) -> Any:
    return nn.ReLU() if name == "relu" else nn.GELU()
