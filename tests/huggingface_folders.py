"""Small models in folders as transformers saves them, their import by the command, and runs to export."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np

from w2v_jax import convert
from w2v_jax.core.config import load, to_json
from w2v_jax.core.tree import nest
from w2v_jax.core.types import State
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.inference.run import Run, open_run
from w2v_jax.interop import huggingface, huggingface_config, tensor_mapping
from w2v_jax.training import checkpoint

SMALL = dict(conv_dim=[24] * 7, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
SMALL |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_codevectors_per_group=12)
SMALL |= dict(codevector_dim=16, proj_codevector_dim=20, num_negatives=15)
BASE = dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
MIXED = dict(feat_extract_norm="layer", do_stable_layer_norm=False, conv_bias=False)
DATA2VEC = dict(num_conv_pos_embeddings=5, conv_pos_kernel_size=7)
WAVLM = dict(num_buckets=16, max_bucket_distance=20)
HUBERT = dict(model_type="hubert")
LETTERS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7}


def made(head: str, fields: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json, tensors with random values) of a small model, by this package's own list of tensors."""
    kind = "data2vec-audio" if "conv_pos_kernel_size" in fields else "wavlm" if "num_buckets" in fields else "wav2vec2"
    kind = fields.get("model_type", kind)
    theirs = huggingface_config.DEFAULTS | SMALL | fields | {"model_type": kind, "vocab_size": len(LETTERS)}
    config = huggingface_config.our_config(theirs, head, normalize=True, outputs=len(LETTERS))
    rng, shapes = np.random.default_rng(0), tensor_mapping.parameter_shapes(config)
    params = nest({path: rng.normal(size=s).astype(np.float32) for path, s in shapes.items()})
    return theirs, huggingface.tensors_of(config, params, head)


def write(folder: pathlib.Path, theirs: dict, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(theirs))
    (folder / "vocab.json").write_text(json.dumps(LETTERS))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def imported(tmp_path, *arguments, **kwargs) -> Run:
    assert convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "run"), *arguments]) == 0
    return open_run(tmp_path / "run", **kwargs)


def a_run(folder: pathlib.Path, name: str, changes: dict) -> pathlib.Path:
    """A run with random parameters, as training writes it."""
    config = load(f"configs/{name}", [])
    with config.unlocked():
        for key, value in changes.items():
            section, _, leaf = key.partition(".")
            config[section][leaf] = value
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    if config.method == "ctc":
        Alphabet(("<blank>", "|", "a", "b"), "letters").save(folder / ALPHABET_FILE, {}, {})
        with config.unlocked():
            config.acoustic.outputs = 4
    shapes = tensor_mapping.parameter_shapes(config)
    rng = np.random.default_rng(0)
    params = nest({path: rng.normal(size=s).astype(np.float32) for path, s in shapes.items()})
    manager = checkpoint.open_checkpoints(folder / "checkpoints", keep_latest=1, keep_best=0)
    checkpoint.save(manager, 7, State(jax.numpy.int32(7), params, {}, {}))
    checkpoint.close(manager)
    return folder
