"""Checkpoints of fairseq (`.pt` files): wav2vec, vq-wav2vec, HuBERT, and wav2vec 2.0 pretrained or fine-tuned by CTC.

WavLM, as Microsoft's unilm released it, has files of the same form: the settings are `cfg` itself, not a part of it.

Reading needs no fairseq, and runs nothing in the file (`torch_file.py`). The settings are in the checkpoint, as `args`
(old) or `cfg` (new). The letters of a fine-tuned model are not: they come from its dictionary (dict.ltr.txt).
Optimizer, schedule and data are not read: a run that starts from the checkpoint has its own.
"""

from __future__ import annotations

import ast
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, as_config, changed
from w2v_jax.core.text import numbered_lines
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.transcripts import BOUNDARY, Alphabet
from w2v_jax.interop import huggingface, huggingface_config, torch_file
from w2v_jax.interop.huggingface_config import check_supported
from w2v_jax.interop.huggingface_tokenizer import alphabet_of
from w2v_jax.interop.tensor_mapping import Imported, TensorPair, dense_pairs, import_tensors, norm_pairs

SPECIAL = ("<pad>", "</s>", "<unk>")
"""The tokens between the blank (fairseq's <s>) and the symbols of a dictionary."""
FILLER = re.compile(r"madeupword\d+")
"""The tokens with which fairseq fills a dictionary up to a multiple of 8."""
LABELS = {"ltr": "letters", "phn": "symbols", "wrd": "symbols"}
"""What fairseq calls transcripts -> kind of alphabet. The dictionary is dict.LABELS.txt."""
WAV2VEC_FIXED: dict[str, Any] = dict(
    aggregator="cnn", residual_scale=0.5, skip_connections_feat=False, no_conv_bias=False
)
WAV2VEC_FIXED |= dict(non_affine_group_norm=False, project_features="none", sample_distance=None)
"""The settings of wav2vec for which only one value is supported."""
WAV2VEC2_FIXED: dict[str, Any] = dict(
    activation_fn="gelu", layer_type="transformer", pos_conv_depth=1, quantize_input=False
)
"""The same of wav2vec 2.0, and in addition of its pretraining:"""
PRETRAINING_FIXED: dict[str, Any] = dict(
    quantize_targets=True, same_quantizer=False, target_glu=False, quantizer_depth=1
)
PRETRAINING_FIXED |= dict(negatives_from_everywhere=False)
SPECIAL_CLASSES = 4
"""The rows of fairseq's dictionary of units (begin, padding, end, unknown) before the first cluster."""
HUBERT_FIXED: dict[str, Any] = dict(activation_fn="gelu", layer_type="transformer", pos_conv_depth=1, target_glu=False)
HUBERT_FIXED |= dict(skip_masked=False, skip_nomask=False)
"""The settings of HuBERT for which only one value is supported."""
WAVLM_FIXED: dict[str, Any] = dict(relative_position_embedding=True, gru_rel_pos=True)
"""The same of WavLM."""
IGNORED = {r"(^|\.)_ema$": "a teacher's copy", r"(^|\.)num_updates$": "a counter", r"\.version$": "a version number"}
"""Pattern of a tensor's name -> why the tensor is left out."""

WAV2VEC2_NAMES = (
    (r"masked_spec_embed", "mask_emb"),
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
    (r"encoder\.layers\.(\d+)\.attention\.rel_attn_embed\.", r"encoder.layers.\1.self_attn.relative_attention_bias."),
    (r"encoder\.layers\.(\d+)\.attention\.gru_rel_pos_linear\.", r"encoder.layers.\1.self_attn.grep_linear."),
    (r"encoder\.layers\.(\d+)\.attention\.gru_rel_pos_const", r"encoder.layers.\1.self_attn.grep_a"),
    (r"encoder\.layers\.(\d+)\.attention\.", r"encoder.layers.\1.self_attn."),
    (r"encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"encoder.layers.\1.fc1."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"encoder.layers.\1.fc2."),
    (r"quantizer\.codevectors", "quantizer.vars"),
    (r"project_hid\.", "final_proj."),
    (r"lm_head\.", "w2v_encoder.proj."),
)
"""Name in transformers -> name in fairseq; names that match no pattern are the same."""


def read_fairseq(path: pathlib.Path, dictionary: pathlib.Path | None = None) -> Imported:
    """The checkpoint in a `.pt` file. dictionary: the dict.*.txt of a fine-tuned model. Raises UserError."""
    saved = torch_file.read_torch(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
        entries = ", ".join(map(str, list(saved)[:4])) if isinstance(saved, dict) else type(saved).__name__
        raise UserError(
            f"{path} has no 'model', so it is not a checkpoint of fairseq; it has {entries}. A model of transformers "
            "is a folder with config.json and model.safetensors or pytorch_model.bin: give that folder"
        )
    tensors = dict(saved["model"])
    if others := [str(name) for name, x in tensors.items() if not isinstance(x, np.ndarray)]:
        raise UserError(f"{path}: these entries of 'model' are not tensors: {', '.join(others[:3])}")
    settings = settings_of(saved, path)
    notes = []
    for pattern, reason in IGNORED.items():
        for name in [name for name in tensors if re.search(pattern, name)]:
            del tensors[name]
            notes.append(f"{name} was left out: it is {reason}")
    notes += huggingface.float32_notes(tensors)
    alphabet = None
    if any(name.startswith("w2v_encoder.") for name in tensors):
        if dictionary is None:
            raise UserError(
                f"{path} is a fine-tuned model: give the file of its letters with --dictionary dict.ltr.txt"
            )
        alphabet = read_dictionary(dictionary, labels=str(settings.get("labels", "")), notes=notes)
        outputs = len(tensors.get("w2v_encoder.proj.weight", ()))
        if outputs != len(alphabet):
            raise UserError(
                f"--dictionary {dictionary} gives {len(alphabet)} tokens with fairseq's own four, and the model in "
                f"{path} has {outputs} outputs; give the dictionary that the model was trained with"
            )
        config = _config_of(wav2vec2_config, path, settings, len(alphabet))
        pairs = wav2vec2_pairs(config, "w2v_encoder.w2v_model.", "ctc")
    elif "label_embs_concat" in tensors:
        settings["classes"] = _classes(settings, tensors, task=saved.get("task_state"), path=path)
        config = _config_of(hubert_config, path, settings)
        pairs = hubert_pairs(config)
    elif settings.get("relative_position_embedding"):
        config = _config_of(wavlm_config, path, settings)
        pairs = wav2vec2_pairs(config, "", "encoder")
    elif "post_extract_proj.weight" in tensors or any(name.startswith("encoder.layers.") for name in tensors):
        config = _config_of(wav2vec2_config, path, settings)
        pairs = wav2vec2_pairs(config, "", "pretraining")
    elif any(name.startswith("feature_aggregator.") for name in tensors):
        config = _config_of(wav2vec_config, path, settings)
        pairs = wav2vec_pairs(config)
    else:
        shown = ", ".join(sorted(tensors)[:3])
        raise UserError(
            f"{path} is neither wav2vec, vq-wav2vec, wav2vec 2.0, HuBERT nor WavLM; its tensors include {shown}"
        )
    params, table = import_tensors(tensors, pairs, config, source=str(path))
    return Imported(config, params, alphabet=alphabet, notes=notes, table=table)


def _config_of(make: Callable[..., Config], path: pathlib.Path, *arguments: Any) -> Config:
    """The config that `make` returns. A setting that it cannot use is a UserError that names the file."""
    try:
        return make(*arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise UserError(f"{path}: its settings cannot be used ({error})") from None


def settings_of(saved: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The flat settings of the model and its task, without those that are None.

    Of a fine-tuned model they are those of the pretraining, which it contains.
    """
    if saved.get("cfg") is not None:
        cfg = torch_file.plain(saved["cfg"])
    elif saved.get("args") is not None:
        cfg = {"model": torch_file.plain(saved["args"])}
    else:
        raise UserError(f"{path} has neither 'cfg' nor 'args', so its settings are unknown")
    if "relative_position_embedding" in cfg:  # WavLM's
        cfg = {"model": cfg}
    model, task, criterion = (cfg.get(key) or {} for key in ("model", "task", "criterion"))
    pretraining, labels = model.get("w2v_args"), task.get("labels") or model.get("labels")
    if isinstance(pretraining, dict):
        pretrained_model = pretraining.get("model", pretraining)
        task = (pretraining.get("task") or {}) | task
        model = {k: v for k, v in model.items() if k != "w2v_args"} | pretrained_model
    # the model's own entries may be the texts "${task.normalize}" and "${task.label_rate}"
    rates = [section["label_rate"] for section in (task, model) if type(section.get("label_rate")) in (int, float)]
    normalize = [section["normalize"] for section in (task, model) if isinstance(section.get("normalize"), bool)]
    loss_weights = {"loss_weights": criterion["loss_weights"]} if criterion.get("loss_weights") else {}
    flat = loss_weights | dict(model) | {"normalize": bool(normalize and normalize[0]), "labels": labels}
    flat["label_rate"] = rates[0] if rates else None
    return {key: value for key, value in flat.items() if value is not None}


def conv_layers(text: Any) -> tuple[tuple[int, int, int], ...]:
    """The (channels, kernel, stride) of "[(32,10,5)]+[(32,3,2)]*4+...", which is not run as code. Raises UserError."""
    layers: list[Any] = []
    try:
        for group, times in re.findall(r"(\[[^\]]*\])(?:\s*\*\s*(\d+))?", str(text)):
            layers += [tuple(int(x) for x in layer) for layer in ast.literal_eval(group) * int(times or 1)]
    except (ValueError, SyntaxError, TypeError):
        layers = []
    if not layers or any(len(layer) != 3 for layer in layers):
        raise UserError(f"the convolutions {text!r} cannot be read; expected e.g. [(512, 10, 5)] + [(512, 3, 2)] * 4")
    return tuple(layers)


def read_dictionary(path: pathlib.Path, *, labels: str = "", notes: list[str]) -> Alphabet:
    """The alphabet of a dict.*.txt: on each line a symbol, a count and maybe a flag. The blank is fairseq's <s>.

    labels: what the checkpoint calls its transcripts, one of LABELS; "" if it does not say. Adds to `notes` what a
    person should know. Raises UserError with the number of a malformed line.
    """
    tokens = ["<s>", *SPECIAL]
    for number, line in numbered_lines(path, f"--dictionary {path}"):
        if not line.strip():
            continue
        if (match := re.fullmatch(r"(.*[^ ]) [+-]?\d+( #fairseq:overwrite)?", line.rstrip())) is None:
            raise UserError(
                f"--dictionary {path}, line {number}: every line must be a symbol, a space and a number, as 'A 123', "
                f"and not {line[:40]!r}"
            )
        symbol, overwrites = match[1], match[2]
        if symbol in tokens and not overwrites:
            raise UserError(
                f"--dictionary {path}, line {number}: {symbol!r} has a place already; fairseq takes it again only with "
                "#fairseq:overwrite at the end of the line"
            )
        if symbol in tokens[1:]:
            place = tokens.index(symbol, 1)
            tokens[place] = f"{symbol}#{place}"
            notes.append(
                f"line {number} of {path.name} overwrites {symbol!r}; the first one is named {tokens[place]!r}"
            )
        tokens.append(symbol)
    if len(tokens) == 1 + len(SPECIAL):
        raise UserError(f"--dictionary {path} has no symbols")
    special = {*SPECIAL, *filter(FILLER.fullmatch, tokens)}
    kind = _kind_of(path, labels, tokens, special=special, notes=notes)
    return alphabet_of(tokens[1:], kind, special=special, delimiter=BOUNDARY if kind == "letters" else None)


def _kind_of(path: pathlib.Path, labels: str, tokens: list[str], *, special: set[str], notes: list[str]) -> str:
    """The kind of alphabet, by the labels of the checkpoint and the name of the dictionary; by its tokens without them.

    Raises UserError where the two contradict each other.
    """
    named = next((part for part in path.name.split(".") if part in LABELS), "")
    kinds = {LABELS[word] for word in (labels, named) if word in LABELS}
    if len(kinds) > 1:
        raise UserError(
            f"--dictionary {path} is named after {named!r}, but the checkpoint was trained on {labels!r}: give the "
            f"dictionary dict.{labels}.txt"
        )
    if kinds:
        return kinds.pop()
    single = all(len(token) == 1 for token in tokens[1:] if token not in special)
    kind = "letters" if single or BOUNDARY in tokens else "symbols"
    reason = "all of them are one sign long" if single else f"{'one' if kind == 'letters' else 'none'} is {BOUNDARY!r}"
    notes.append(
        f"neither the checkpoint nor the name of the dictionary says what its tokens are; they are taken for {kind}, "
        f"because {reason}. The name dict.ltr.txt says letters, and dict.phn.txt phonemes"
    )
    return kind


# wav2vec 2.0


def wav2vec2_pairs(config: Config, prefix: str, head: str) -> list[TensorPair]:
    """The tensor of each parameter. prefix: of the names of the encoder's tensors; head: "pretraining" or "ctc"."""
    norm = "2.1" if config.encoder.conv_norm == "layer" else "2"
    pairs = []
    for pair in huggingface.tensor_pairs(config, "", head):
        name = pair.theirs
        for pattern, replacement in WAV2VEC2_NAMES:
            name, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                break
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", rf"\1.{norm}.", name)
        pairs.append(pair._replace(theirs=name if name.startswith("w2v_encoder.") else f"{prefix}{name}"))
    return pairs


def wav2vec2_config(settings: Mapping[str, Any], outputs: int = 0) -> Config:
    """The sections of the config that the method reads. outputs: of a recogniser, the size of its alphabet."""
    get = settings.get
    check_supported(settings, WAV2VEC2_FIXED if outputs else WAV2VEC2_FIXED | PRETRAINING_FIXED)
    layers = conv_layers(get("conv_feature_layers", "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"))
    width = get("encoder_embed_dim", 768)
    final_width = get("final_dim", 0) or width
    theirs: dict[str, Any] = huggingface_config.DEFAULTS | dict(
        conv_dim=[c for c, _, _ in layers],
        conv_kernel=[k for _, k, _ in layers],
        conv_stride=[s for _, _, s in layers],
        feat_extract_norm="layer" if get("extractor_mode", "default") == "layer_norm" else "group",
        conv_bias=bool(get("conv_bias", False)),
        hidden_size=width,
        num_hidden_layers=get("encoder_layers", 12),
        num_attention_heads=get("encoder_attention_heads", 12),
        intermediate_size=get("encoder_ffn_embed_dim", 3072),
        do_stable_layer_norm=bool(get("layer_norm_first", False)),
        num_conv_pos_embeddings=get("conv_pos", 128),
        num_conv_pos_embedding_groups=get("conv_pos_groups", 16),
        num_codevector_groups=get("latent_groups", 2),
        num_codevectors_per_group=get("latent_vars", 320),
        codevector_dim=get("latent_dim", 0) or final_width,
        proj_codevector_dim=final_width,
        num_negatives=get("num_negatives", 100),
        contrastive_logits_temperature=get("logit_temp", 0.1),
        mask_time_prob=get("mask_prob", 0.65),
        mask_time_length=get("mask_length", 10),
        mask_feature_prob=get("mask_channel_prob", 0.0),
        mask_feature_length=get("mask_channel_length", 64),
    )
    huggingface_config.check_ranges(theirs, "the settings of the checkpoint, by their names in transformers")
    head = "ctc" if outputs else "pretraining"
    config = huggingface_config.our_config(theirs, head, normalize=settings["normalize"], outputs=outputs)
    if outputs:
        return config
    diversity_weight, penalty_weight = _numbers(get("loss_weights", (0.1, 10.0)))
    values = {
        "quantizer.temperature": _numbers(get("latent_temp", (2.0, 0.5, 0.999995))),
        "quantizer.input_dropout": float(get("dropout_features", 0.0)),
        "encoder.conv_grad_scale": float(get("feature_grad_mult", 1.0)),
        "masking.prob": float(theirs["mask_time_prob"]),
        "loss.cross_negatives": int(get("cross_sample_negatives", 0)),
        "loss.codebook_negatives": int(get("codebook_negatives", 0)),
        "loss.diversity_weight": diversity_weight,
        "loss.penalty_weight": penalty_weight,
    }
    return changed(config, values)


# HuBERT


def hubert_pairs(config: Config) -> list[TensorPair]:
    """The tensor of each parameter of HuBERT: wav2vec 2.0's trunk, the projection, the vectors of the classes."""
    trunk = [pair for pair in wav2vec2_pairs(config, "", "encoder") if pair.ours.startswith("encoder/")]
    heads = dense_pairs("final_proj", "final_proj")
    return [*trunk, *heads, TensorPair("label_embeddings", "label_embs_concat")]


def hubert_config(settings: Mapping[str, Any]) -> Config:
    """The sections of the config that the method reads. settings["classes"]: the rows of each label set's table."""
    get = settings.get
    check_supported(settings, HUBERT_FIXED)
    trunk = wav2vec2_config({k: v for k, v in settings.items() if k != "loss_weights"})
    layers, loss, masking = trunk.encoder.conv_layers, trunk.loss, trunk.masking
    rate, hop = float(get("label_rate", 50)), math.prod(stride for _, _, stride in layers)
    if rate <= 0 or not (hop * rate / SAMPLE_RATE).is_integer():
        raise UserError(f"label_rate={rate:g} is not supported; it is the rate of the frames or a multiple of it")
    data = dict(unit_seconds=1.0, bucket_seconds=(1.0,), normalize=settings["normalize"])
    config: dict[str, Any] = dict(method="hubert", seed=1, train=dict(dtype="float32"), encoder=trunk.encoder.to_dict())
    config["data"] = data | dict(targets=(), targets_model="", targets_hop=round(SAMPLE_RATE / rate))
    config["masking"] = masking.to_dict()
    config["loss"] = dict(
        proj=loss.proj,
        classes=tuple(int(rows) - SPECIAL_CLASSES for rows in settings["classes"]),
        extra_classes=SPECIAL_CLASSES,
        untied=bool(get("untie_final_proj", False)),
        temperature=float(get("logit_temp", 0.1)),
        masked_weight=float(get("pred_masked_weight", 1.0)),
        unmasked_weight=float(get("pred_nomask_weight", 0.0)),
        penalty_weight=_numbers(get("loss_weights", (10.0,)))[0],
    )
    return as_config(config)


def _classes(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, task: Any, path: pathlib.Path
) -> tuple[int, ...]:
    """The rows of each label set's table in `label_embs_concat`, which has one after the other. Raises UserError.

    They stand in the settings (num_classes), or are the sizes of the dictionaries that the task has saved.
    """
    table = tensors["label_embs_concat"]
    sizes = settings.get("num_classes")
    if sizes is None and isinstance(task, dict):
        dictionaries = task.get("dictionaries")
        found = [torch_file.plain(x) for x in dictionaries] if isinstance(dictionaries, list) else []
        if found and all(isinstance(x, dict) and isinstance(x.get("symbols"), list) for x in found):
            sizes = [len(x["symbols"]) for x in found]
    outputs, width = len(tensors.get("final_proj.weight", ())), max(table.shape[-1], 1)
    sets = outputs // width if settings.get("untie_final_proj", False) else None
    if sizes is None:
        if (sets or 1) > 1:
            raise UserError(
                f"{path}: a HuBERT of {sets} label sets, of which neither num_classes nor the dictionaries of the task "
                "say how many classes each has"
            )
        return (len(table),)
    sizes = tuple(int(size) for size in (sizes if isinstance(sizes, (list, tuple)) else [sizes]))
    if sum(sizes) != len(table) or sets not in (None, len(sizes)) or min(sizes, default=0) <= SPECIAL_CLASSES:
        raise UserError(
            f"{path}: its label sets have {' + '.join(map(str, sizes))} classes, and its tensors are of {len(table)} "
            f"classes in {sets or 'any number of'} set(s); is the file whole?"
        )
    return sizes


# WavLM


def wavlm_config(settings: Mapping[str, Any]) -> Config:
    """The sections of the config that the method reads. Released models have no heads of pretraining."""
    check_supported(settings, WAVLM_FIXED)
    trunk = wav2vec2_config(settings)
    encoder = trunk.encoder.to_dict() | dict(relative_buckets=int(settings.get("num_buckets", 320)))
    encoder |= dict(relative_distance=int(settings.get("max_distance", 1280)))
    length, normalize = trunk.masking.length, settings["normalize"]
    return huggingface_config.unit_encoder(encoder, length=length, normalize=normalize)


# wav2vec and vq-wav2vec


def wav2vec_pairs(config: Config) -> list[TensorPair]:
    """The tensor of each parameter of wav2vec or vq-wav2vec."""
    e, pairs = config.encoder, []
    for i in range(len(e.conv_layers)):
        ours, theirs = f"encoder/frontend/conv{i}", f"feature_extractor.conv_layers.{i}"
        pairs += dense_pairs(ours, f"{theirs}.0", bias=False) + norm_pairs(f"{ours}/norm", f"{theirs}.2")
    for i in range(len(e.context_kernels)):
        ours, theirs = f"encoder/aggregator/conv{i}", f"feature_aggregator.conv_layers.{i}"
        pairs += dense_pairs(ours, f"{theirs}.1") + norm_pairs(f"{ours}/norm", f"{theirs}.3")
    steps = "wav2vec_predictions.project_to_steps"
    pairs += [TensorPair("predictor/kernel", f"{steps}.weight", "steps"), TensorPair("predictor/bias", f"{steps}.bias")]
    if config.method == "wav2vec":
        return pairs
    quantizer = "vector_quantizer"
    if config.quantizer.kind == "kmeans":
        pairs.append(TensorPair("quantizer/codebook", f"{quantizer}.embedding", "entries"))
        pairs.append(TensorPair("quantizer/projection", f"{quantizer}.projection.0.weight", "grouped"))
        return pairs + norm_pairs("quantizer/norm", f"{quantizer}.projection.1")
    pairs.append(TensorPair("quantizer/codebook", f"{quantizer}.vars", "codebook"))
    if config.quantizer.depth == 2:
        pairs += dense_pairs("quantizer/hidden", f"{quantizer}.weight_proj.0.0")
        return pairs + dense_pairs("quantizer/weight_proj", f"{quantizer}.weight_proj.1")
    return pairs + dense_pairs("quantizer/weight_proj", f"{quantizer}.weight_proj")


def wav2vec_config(settings: Mapping[str, Any]) -> Config:
    """The sections of the config that the method reads. Raises UserError for settings that are not supported."""
    get = settings.get
    check_supported(settings, WAV2VEC_FIXED)
    layers = conv_layers(get("conv_feature_layers", ""))
    offset = str(get("offset", "auto"))
    if offset == "0":
        raise UserError("offset=0 (the first step predicts the present frame) is not supported")
    encoder = dict(
        conv_layers=layers,
        conv_norm="utterance",
        conv_bias=False,
        activation=str(get("activation", "relu")),
        log_compression=bool(get("log_compression", False)),
        padding_aware=True,
        context="conv",
        context_kernels=tuple(k for _, k, _ in conv_layers(get("conv_aggregator_layers", ""))),
        context_skip=bool(get("skip_connections_agg", False)),
        context_zero_pad=bool(get("agg_zero_pad", False)),
        width=layers[-1][0],
        layers=1,
        convolution="auto",
        remat_frontend="none",
    )
    loss = dict(
        kind="infonce" if get("infonce", False) else "bce",
        balanced=bool(get("balanced_classes", False)),
        steps=int(get("prediction_steps", 12)),
        offset=0 if offset == "auto" else int(offset),
        negatives=int(get("num_negatives", 10)),
        cross_negatives=int(get("cross_sample_negatives", 0)),
    )
    data = dict(unit_seconds=1.0, bucket_seconds=(1.0,), normalize=settings["normalize"])
    config: dict[str, Any] = dict(method="wav2vec", seed=1, data=data, encoder=encoder, loss=loss)
    config["train"] = dict(dtype="float32")
    kind = str(get("vq_type", "none"))
    if kind != "none":
        groups, codes = int(get("vq_groups", 2)), int(get("vq_vars", 320))
        config["method"] = "vq_wav2vec"
        config["quantizer"] = dict(
            kind=kind,
            groups=groups,
            codes=codes,
            shared=bool(get("combine_groups", False)),
            depth=int(get("vq_depth", 1)),
            temperature=_numbers(get("vq_temp", (2.0, 0.5, 0.999995))),
            restart=0.0,
            init_iterations=0,
        )
        weight = float((get("loss_weights") or [0.0])[0])
        loss |= dict(diversity_weight=weight * groups * codes if kind == "gumbel" else 0.0)
        loss |= dict(commitment_weight=weight, commitment_gamma=float(get("vq_gamma", 0.25)))
    return as_config(config)


def _numbers(value: Any) -> tuple[float, ...]:
    """The numbers of a sequence, or of its text."""
    return tuple(float(x) for x in (ast.literal_eval(value) if isinstance(value, str) else value))
