"""CPC, wav2vec, vq-wav2vec and BERT in PyTorch, formulated as their authors did: what `bench` compares with.

Distractors are gathered and each is multiplied with each prediction, convolutions are channels first, normalisations
PyTorch's own. The parameters of wav2vec and vq-wav2vec have the names of the reference (fairseq, models/wav2vec), so
that its arrays fit. Only what the published configs use: no padding, no codes that are restarted.

Each function takes torch and a config and returns (model, loss): of a batch (`batches.random_batch`, as tensors), loss
gives what is to be differentiated and what is to be shown, in nats per prediction. What is random is drawn inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from w2v_jax.config import UserError
from w2v_jax.frontend import num_frames
from w2v_jax.prediction import first_offset

Loss = Callable[[dict[str, Any]], tuple[Any, Any]]


def wav2vec(torch: Any, config: Any) -> tuple[Any, Loss]:
    """wav2vec (Schneider et al. 2019) and vq-wav2vec (Baevski et al. 2020), whichever the config is of."""
    nn, functional = torch.nn, torch.nn.functional
    e, law = config.encoder, config.loss
    if e.context != "conv" or law.cross_negatives:
        raise UserError("the reference side has encoder.context='conv' and loss.cross_negatives=0 only")
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
    model.wav2vec_predictions.project_to_steps = nn.ConvTranspose2d(width, width, (1, law.steps))
    first = first_offset(config)

    def loss(batch: dict[str, Any], index: Any = None) -> tuple[Any, Any]:
        z = _local(model, e, batch["wave"])  # [B C F]
        rows, _, frames = z.shape
        z, extra = (z, 0.0) if quantize is None else quantize(z)
        x = z
        for layer in model.feature_aggregator.conv_layers:
            x = (layer(x) + x) * math.sqrt(0.5) if e.context_skip else layer(x)
        if index is None:
            index = torch.randint(frames - 1, (rows, law.negatives, frames), device=z.device)
            index = index + (index >= torch.arange(frames, device=z.device))
        drawn = torch.gather(z, 2, index.reshape(rows, 1, -1).expand(-1, width, -1))
        drawn = drawn.view(rows, width, law.negatives, frames).permute(2, 0, 1, 3)
        targets = torch.cat([z[None], drawn])  # [1+N B C F]
        predictions = model.wav2vec_predictions.project_to_steps(x[..., None])  # [B C F S]
        logits = torch.cat(
            [
                torch.einsum("bcf,nbcf->nbf", predictions[:, :, : frames - offset, s], targets[..., offset:]).flatten(1)
                for s, offset in enumerate(range(first, min(first + law.steps, frames)))
            ],
            dim=1,
        ).float()  # [1+N pairs]
        if law.kind == "infonce":
            total = -functional.log_softmax(logits, dim=0)[0].sum()
        else:
            truth = torch.zeros_like(logits)
            truth[0] = 1.0
            weight = torch.full_like(logits, 1.0 / law.negatives if law.balanced else 1.0)
            weight[0] = 1.0
            total = functional.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum")
        total = total / logits.shape[1] + extra
        return total, total.detach()

    return model, loss


def vector_quantizer(torch: Any, config: Any, model: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Gives the model its quantizer: a function of z [B C F] to (codes' vectors [B C F], what the loss adds)."""
    nn, functional, q, law = torch.nn, torch.nn.functional, config.quantizer, config.loss
    width = config.encoder.conv_layers[-1][0]
    books, inner = 1 if q.shared else q.groups, width // q.groups
    model.vector_quantizer = part = nn.Module()
    if q.kind == "gumbel":
        if law.diversity_weight:
            raise UserError("the reference side has loss.diversity_weight=0 only")
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
        given = part.projection(z).float()
        grouped = given.view(rows, q.groups, inner, frames).permute(1, 0, 3, 2).reshape(q.groups, -1, inner)
        book = part.embedding.transpose(0, 1).expand(q.groups, -1, -1)
        nearest = torch.cdist(grouped, book).argmin(dim=-1)  # [G B*F]
        chosen = torch.gather(book, 1, nearest[..., None].expand(-1, -1, inner))
        chosen = chosen.view(q.groups, rows, frames, inner).permute(1, 0, 3, 2).reshape(rows, width, frames)
        term = functional.mse_loss(chosen, given.detach())
        term = term + law.commitment_gamma * functional.mse_loss(given, chosen.detach())
        return given - (given - chosen).detach(), law.commitment_weight * term

    return kmeans


def cpc(torch: Any, config: Any) -> tuple[Any, Loss]:
    """CPC (van den Oord et al. 2018) after Riviere et al. 2020: distractors are gathered for every present frame."""
    nn, functional = torch.nn, torch.nn.functional
    e, law = config.encoder, config.loss
    if e.conv_norm not in ("frame", "none") or e.context not in ("gru", "lstm") or law.negatives_from == "others":
        raise UserError("the reference side of CPC has no such encoder.conv_norm, encoder.context or negatives_from")
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
    model.predictors = nn.ModuleList(nn.Linear(e.width, width, bias=False) for _ in range(law.steps))

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        z = _local(model, e, batch["wave"]).transpose(1, 2)  # [B F C]
        rows, frames, _ = z.shape
        c = model.context(z)[0]
        present = frames - law.steps - law.offset + 1
        shape, device = (rows, present, law.negatives), z.device
        later = (
            torch.arange(present, device=device)[:, None] + torch.randint(1, frames, shape, device=device)
        ) % frames
        row = torch.arange(rows, device=device).view(-1, 1, 1)
        if law.negatives_from == "both":
            row = torch.randint(rows, shape, device=device)
        drawn = z.reshape(-1, width)[(row * frames + later).flatten()].view(*shape, width)  # [B F N C]
        total = 0.0
        for s, predictor in enumerate(model.predictors):
            positive = z[:, s + law.offset : s + law.offset + present]
            candidates = torch.cat([positive[:, :, None], drawn], dim=2)
            logits = torch.einsum("bfc,bfnc->bfn", predictor(c[:, :present]), candidates).float()
            logits = logits / width if law.scale == "mean" else logits
            total = total - functional.log_softmax(logits, dim=-1)[..., 0].mean()
        total = total / law.steps
        return total, total.detach()

    return model, loss


def bert(torch: Any, config: Any) -> tuple[Any, Loss]:
    """RoBERTa of Hugging Face over codes, with the head on the masked frames only, as the reference has it."""
    import numpy as np
    import transformers

    from w2v_jax.config import CODE_MASK
    from w2v_jax.masking import span_mask_oracle

    e, m = config.encoder, config.masking
    if e.positions != "learned" or e.pre_norm:
        raise UserError("the reference side of BERT has encoder.positions='learned' and pre_norm=False only")
    settings = transformers.RobertaConfig(
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
    model = transformers.RobertaForMaskedLM(settings)
    rng = np.random.default_rng(config.seed)

    def loss(batch: dict[str, Any]) -> tuple[Any, Any]:
        codes = batch["codes"].long()
        rows, frames = codes.shape
        lengths = np.full(rows, frames)
        drawn = span_mask_oracle(rng, lengths, frames, prob=m.prob, length=m.length, min_spans=m.min_spans)
        masked = torch.from_numpy(drawn).to(codes.device)
        x = model.roberta(torch.where(masked, torch.full_like(codes, CODE_MASK), codes))[0]
        total = torch.nn.functional.cross_entropy(model.lm_head(x[masked]).float(), codes[masked])
        return total, total.detach()

    return model, loss


def _encoder(nn: Any, e: Any, norm: Callable[[int], Any]) -> Any:
    """A module with the strided convolutions of the encoder section, under the reference's names."""
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
        raise UserError(f"rows of {wave.shape[1]} samples have no frame to predict")
    x = wave[:, None]
    for layer in model.feature_extractor.conv_layers:
        x = layer(x)
    return x.abs().add(1.0).log() if e.log_compression else x


def _activation(nn: Any, name: str) -> Any:
    return nn.ReLU() if name == "relu" else nn.GELU()
