"""Laws of the settings of transformers: they become a config of ours and come back, and wrong ones are named."""

from __future__ import annotations

import pytest
from huggingface_folders import BASE, DATA2VEC, LARGE, LETTERS, MIXED, SMALL, WAVLM, imported, made, write

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import from_json, load
from w2v_jax.interop import huggingface, huggingface_config


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("conv_dim", [24] * 6, "conv_dim has 6, conv_kernel has 7"),
        ("conv_dim", 24, "conv_dim is 24; it must be a list of whole numbers"),
        ("conv_stride", [0] * 7, "conv_stride is .*; it must be a list of whole numbers"),
        ("hidden_size", "abc", "hidden_size is 'abc'; it must be a whole number of at least 1"),
        ("hidden_size", None, "hidden_size is None"),
        ("num_attention_heads", 0, "num_attention_heads is 0"),
        ("num_attention_heads", 5, "num_attention_heads=5 does not divide hidden_size=32"),
        ("vocab_size", "8", "vocab_size is '8'"),
        ("mask_time_prob", "x", "mask_time_prob is 'x'; it must be a number"),
        ("conv_bias", "no", "conv_bias is 'no'; it must be true or false"),
    ],
)
def test_settings_of_another_type_are_named_with_the_file(tmp_path, key, value, words):
    theirs, tensors = made("ctc", BASE)
    write(tmp_path / "hf", theirs | {key: value}, tensors)
    with pytest.raises(UserError, match=f"config.json: .*{words}"):
        imported(tmp_path)
    assert not (tmp_path / "run").exists()


def test_settings_that_only_a_recogniser_needs_may_be_null_in_other_models(tmp_path):
    none = {"vocab_size": None, "pad_token_id": None}
    theirs, tensors = made("encoder", BASE)
    assert huggingface.read_huggingface(write(tmp_path / "encoder", theirs | none, tensors)).config.method == "wav2vec2"
    theirs, tensors = made("ctc", BASE)
    with pytest.raises(UserError, match="the blank is None"):
        huggingface.read_huggingface(write(tmp_path / "ctc", theirs | none, tensors))


def test_imported_config_is_that_of_a_run(tmp_path):
    """A run that fine-tunes from the import finds the same encoder that its config describes."""
    write(tmp_path / "hf", *made("encoder", LARGE))
    imported(tmp_path)
    config = from_json((tmp_path / "run" / "config.json").read_text())
    tiny = load("configs/finetune.py:tiny", [])
    assert set(config.encoder) <= set(tiny.encoder)
    assert config.quantizer.groups == 0
    with pytest.raises(UserError, match="no loss"):
        method = methods.load(config)
        method.loss({}, {}, {}, None, None, train=True)


def ours(head, fields):
    """(their settings, our config) of a small model."""
    kind = "data2vec-audio" if "conv_pos_kernel_size" in fields else "wavlm" if "num_buckets" in fields else "wav2vec2"
    theirs = huggingface_config.DEFAULTS | SMALL | fields | {"model_type": kind, "vocab_size": len(LETTERS)}
    return theirs, huggingface_config.our_config(theirs, head, normalize=True, outputs=len(LETTERS))


@pytest.mark.parametrize("head", huggingface_config.HEADS)
@pytest.mark.parametrize("fields", [BASE, LARGE, MIXED])
def test_settings_that_come_in_and_go_out_again_are_the_same(head, fields):
    theirs, config = ours(head, fields)
    back = huggingface_config.transformers_config(config, head)
    for key in huggingface_config.ENCODER | {"conv_dim": 0, "conv_kernel": 0, "conv_stride": 0, "model_type": 0}:
        assert list(back[key]) == theirs[key] if isinstance(theirs[key], list) else back[key] == theirs[key], key
    assert back["num_conv_pos_embeddings"] == 16 and "conv_pos_kernel_size" not in back
    heads = {"pretraining": huggingface_config.QUANTIZER | huggingface_config.LOSS, "ctc": {"vocab_size": 0}}
    heads["ctc"] |= huggingface_config.CTC_MASKING
    assert all(back[key] == theirs[key] for key in heads.get(head, ()))
    assert back["architectures"] == ["Wav2Vec2" + huggingface_config.HEADS[head]]


@pytest.mark.parametrize("head", ["encoder", "ctc"])
def test_a_stack_of_positions_comes_back_as_data2vec(head):
    theirs, config = ours(head, MIXED | DATA2VEC)
    assert (config.encoder.pos_layers, config.encoder.pos_kernel) == (5, 7)
    back = huggingface_config.transformers_config(config, head)
    for key in ("model_type", "num_conv_pos_embeddings", "conv_pos_kernel_size", "hidden_size"):
        assert back[key] == theirs[key]
    assert not {"feat_extract_norm", "do_stable_layer_norm"} & back.keys(), "data2vec has no such settings"
    assert back["architectures"] == ["Data2VecAudio" + huggingface_config.HEADS[head]]


@pytest.mark.parametrize("head", ["encoder", "ctc"])
def test_a_bias_of_the_distance_comes_back_as_wavlm(head):
    theirs, config = ours(head, LARGE | WAVLM)
    assert config.method == {"encoder": "wavlm", "ctc": "ctc"}[head]
    assert (config.encoder.relative_buckets, config.encoder.relative_distance) == (16, 20)
    back = huggingface_config.transformers_config(config, head)
    for key in ("model_type", "num_buckets", "max_bucket_distance", "do_stable_layer_norm", "feat_extract_norm"):
        assert back[key] == theirs[key]
    assert back["architectures"] == ["WavLM" + huggingface_config.HEADS[head]]
    with pytest.raises(UserError, match="WavLM in transformers.*no heads for pretraining"):
        huggingface_config.check_export(ours("pretraining", LARGE | WAVLM)[1], "pretraining")


def test_a_model_without_masks_keeps_its_mask_vector():
    _, config = ours("ctc", BASE | {"mask_time_prob": 0.0})
    assert 0 < huggingface_config.transformers_config(config, "ctc")["mask_time_prob"] < 1e-6


def test_only_models_with_layer_norm_take_attention_masks():
    for fields, takes in ((BASE, False), (LARGE, True), (MIXED, True)):
        found = huggingface_config.their_preprocessor(ours("encoder", fields)[1])
        assert found["return_attention_mask"] is takes and found["do_normalize"] is True
