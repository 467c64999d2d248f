"""Laws of reading folders of transformers: every form of them is read, and what does not fit is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from huggingface_folders import BASE, LARGE, a_run, imported, made, write

from w2v_jax import convert
from w2v_jax.core.cli import UserError
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.interop import huggingface


def test_alphabet_comes_back_as_it_was(tmp_path):
    run = a_run(tmp_path / "ctc", "finetune.py:tiny", {})
    whole = Alphabet(("<blank>", "|", "a", "b"), "letters", "lower", "'-")
    whole.save(run / ALPHABET_FILE, {}, {})
    convert.main(["--from", str(run), "--to", str(tmp_path / "hf")])
    assert convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "back")]) == 0
    assert Alphabet.load(tmp_path / "back" / ALPHABET_FILE) == whole
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "b": 2, "a": 3}))
    with pytest.raises(UserError, match="other tokens than vocab.json"):
        huggingface.read_huggingface(tmp_path / "hf")


def test_blank_of_another_id_becomes_the_first_output(tmp_path):
    theirs, tensors = made("ctc", BASE)
    vocabulary = {"A": 0, "E": 1, "|": 2, "T": 3, "<unk>": 4, "[PAD]": 7}
    write(tmp_path / "hf", theirs | {"pad_token_id": 7}, tensors)
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "hf" / "added_tokens.json").write_text(json.dumps({"<s>": 5, "</s>": 6}))
    run = imported(tmp_path)
    alphabet = Alphabet.load(tmp_path / "run" / ALPHABET_FILE)
    assert alphabet.tokens[:4] == ("<blank>", "A", "E", "|")
    np.testing.assert_array_equal(run.params["head"]["bias"], tensors["lm_head.bias"][[7, 0, 1, 2, 3, 4, 5, 6]])


def test_old_names_half_precision_and_shards_are_read(tmp_path):
    from safetensors.numpy import save_file

    theirs, tensors = made("encoder", LARGE)
    old = {v: k for k, v in huggingface.WEIGHT_NORM.items()}
    tensors = {
        name.replace(*next(((n, o) for n, o in old.items() if n in name), ("", ""))): x for name, x in tensors.items()
    }
    assert "encoder.pos_conv_embed.conv.weight_g" in tensors
    names = sorted(tensors)
    write(tmp_path / "hf", theirs, {})
    (tmp_path / "hf" / "model.safetensors").unlink()
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: np.ascontiguousarray(tensors[n]).astype(np.float16) for n in part}, tmp_path / "hf" / file)
    index = {"weight_map": {n: file for file, part in shards.items() for n in part}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = huggingface.read_huggingface(tmp_path / "hf")
    assert any("float16" in note for note in found.notes)
    scale = found.params["encoder"]["transformer"]["positional"]["scale"]
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, tensors["encoder.pos_conv_embed.conv.weight_g"].astype(np.float16).reshape(-1))
    (tmp_path / "hf" / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="model-2.safetensors"):
        huggingface.read_huggingface(tmp_path / "hf")


def test_head_that_another_training_left_in_the_file_is_left_out_and_named(tmp_path):
    theirs, tensors = made("ctc", BASE)
    left = {"quantizer.codevectors": np.ones((1, 24, 8), np.float32), "project_hid.bias": np.ones(20, np.float32)}
    for architectures in (["Wav2Vec2ForCTC"], None):
        folder = write(tmp_path / "ctc", theirs | {"architectures": architectures}, tensors | left)
        found = huggingface.read_huggingface(folder)
        assert found.config.method == "ctc" and len(found.table) == len(tensors)
        assert any("another head: project_hid.bias, quantizer.codevectors" in note for note in found.notes)
    theirs, tensors = made("pretraining", BASE)
    left = {"lm_head.weight": np.ones((8, 32), np.float32), "lm_head.bias": np.ones(8, np.float32)}
    folder = write(tmp_path / "pre", theirs | {"architectures": ["Wav2Vec2ForPreTraining"]}, tensors | left)
    assert huggingface.read_huggingface(folder).config.method == "wav2vec2"


def test_number_of_outputs_is_that_of_the_head(tmp_path):
    theirs, tensors = made("ctc", BASE)
    with pytest.raises(UserError, match="config.json: vocab_size is 7, but lm_head.weight has 8 outputs"):
        huggingface.read_huggingface(write(tmp_path / "hf", theirs | {"vocab_size": 7}, tensors))
    folder = write(tmp_path / "hf", {key: x for key, x in theirs.items() if key != "vocab_size"}, tensors)
    assert huggingface.read_huggingface(folder).config.acoustic.outputs == 8
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 1}))
    with pytest.raises(UserError, match="vocab.json: the model has 8 outputs.*have none: 2, 3, 4, 5, 6 and 1 more"):
        huggingface.read_huggingface(folder)


def damage_pointer(folder, theirs, tensors):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")


def damage_pickled_pointer(folder, theirs, tensors):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")


def damage_link(folder, theirs, tensors):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/aa")


def damage_page(folder, theirs, tensors):
    (folder / "config.json").write_text("<!doctype html>")


def damage_truncated(folder, theirs, tensors):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def damage_missing(folder, theirs, tensors):
    write(folder, theirs, {k: v for k, v in tensors.items() if "layers.1.final_layer_norm" not in k})


def damage_unexpected(folder, theirs, tensors):
    write(folder, theirs, tensors | {"wav2vec2.adapter.weight": np.ones(3, np.float32)})


def damage_shape(folder, theirs, tensors):
    write(folder, theirs | {"intermediate_size": 64}, tensors)


def damage_nan(folder, theirs, tensors):
    write(folder, theirs, tensors | {"project_q.bias": np.full_like(tensors["project_q.bias"], np.nan)})


def damage_norm(folder, theirs, tensors):
    write(folder, theirs | {"feat_extract_norm": "layer"}, tensors)


def damage_layers(folder, theirs, tensors):
    write(folder, theirs | {"num_hidden_layers": 5}, tensors)


def damage_kind(folder, theirs, tensors):
    write(folder, theirs | {"model_type": "whisper"}, tensors)


def damage_conformer(folder, theirs, tensors):
    write(folder, theirs | {"model_type": "wav2vec2-conformer"}, tensors)


def damage_wavlm(folder, theirs, tensors):
    """A model without the bias that its name promises."""
    tensors = {name.replace("wav2vec2.", "wavlm."): x for name, x in tensors.items()}
    write(folder, theirs | {"model_type": "wavlm"}, tensors)


def damage_data2vec(folder, theirs, tensors):
    stack = {"model_type": "data2vec-audio", "feat_extract_norm": "group", "num_conv_pos_embeddings": 5}
    tensors = {name.replace("wav2vec2.", "data2vec_audio."): x for name, x in tensors.items()}
    write(folder, theirs | stack | {"conv_pos_kernel_size": 19}, tensors)


def damage_integers(folder, theirs, tensors):
    write(folder, theirs, tensors | {"project_q.bias": np.ones(20, np.int8)})


def damage_head(folder, theirs, tensors):
    write(folder, theirs | {"architectures": ["Wav2Vec2ForCTC"]}, tensors)


def damage_json(folder, theirs, tensors):
    (folder / "config.json").write_text("{")


def damage_activation(folder, theirs, tensors):
    write(folder, theirs | {"hidden_act": "relu"}, tensors)


def damage_weights(folder, theirs, tensors):
    (folder / "model.safetensors").unlink()


DAMAGE = {
    damage_pointer: "model.safetensors is a pointer of Git LFS.*git lfs pull",
    damage_pickled_pointer: "pytorch_model.bin is a pointer of Git LFS",
    damage_link: "model.safetensors is a link to a file that is not there",
    damage_page: "config.json:1: is an HTML or XML page",
    damage_truncated: "damaged",
    damage_missing: r"missing \(2\)[\s\S]*layers.1.final_layer_norm.bias",
    damage_unexpected: r"unexpected \(1\)[\s\S]*adapter.weight",
    damage_shape: r"has shape \(48, 32\), but the settings require \(64, 32\)",
    damage_nan: r"NaN[\s\S]*project_q.bias",
    damage_norm: "feat_extract_norm is 'layer', but the tensors have 'group'",
    damage_layers: "num_hidden_layers is 5, but the tensors have 3",
    damage_kind: "'whisper'",
    damage_conformer: "its blocks are Conformers",
    damage_wavlm: r"missing \(10\)[\s\S]*wavlm.encoder.layers.0.attention.gru_rel_pos_linear.weight",
    damage_data2vec: r"unexpected[\s\S]*pos_conv_embed.conv.bias",
    damage_integers: "quantised weights",
    damage_head: "the architecture is Wav2Vec2ForCTC, but no tensor name starts with lm_head",
    damage_json: "is not valid JSON",
    damage_activation: "hidden_act='relu'",
    damage_weights: "none of model.safetensors",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__.removeprefix("damage_"))
def test_damaged_or_foreign_folders_are_named_and_nothing_is_written(tmp_path, damage):
    theirs, tensors = made("pretraining", BASE)
    write(tmp_path / "hf", theirs, tensors)
    damage(tmp_path / "hf", theirs, tensors)
    with pytest.raises(UserError, match=DAMAGE[damage]):
        imported(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_vector_of_masks_that_a_recogniser_lacks_is_said_and_one_that_a_pretraining_lacks_is_an_error(tmp_path):
    for head in ("ctc", "encoder"):
        theirs, tensors = made(head, BASE)
        less = {name: x for name, x in tensors.items() if not name.endswith("masked_spec_embed")}
        found = huggingface.read_huggingface(write(tmp_path / head, theirs, less))
        assert any("masked_spec_embed is not in the file" in note for note in found.notes)
        assert not found.params["encoder"]["mask_vector"].any()
    theirs, tensors = made("pretraining", BASE)
    del tensors["wav2vec2.masked_spec_embed"]
    with pytest.raises(UserError, match=r"missing \(1\)[\s\S]*masked_spec_embed"):
        huggingface.read_huggingface(write(tmp_path / "pretraining", theirs, tensors))


def test_encoder_of_a_model_with_any_head_comes_in_alone(tmp_path):
    theirs, tensors = made("ctc", LARGE)
    encoder = {name: x for name, x in tensors.items() if name.startswith("wav2vec2.")}
    other = encoder | {"classifier.weight": np.ones((2, 3), np.float32)}
    write(tmp_path / "hf", theirs | {"architectures": ["Wav2Vec2ForSequenceClassification"]}, other)
    with pytest.raises(UserError, match=r"unexpected \(1\)[\s\S]*classifier.weight"):
        huggingface.read_huggingface(tmp_path / "hf")
    found = huggingface.read_huggingface(tmp_path / "hf", encoder_only=True)
    assert any("left out because they are not part of the encoder: classifier.weight" in note for note in found.notes)
    assert found.params.keys() == {"encoder"} and found.config.method == "wav2vec2"
    write(tmp_path / "ctc", theirs, tensors)
    assert huggingface.read_huggingface(tmp_path / "ctc", encoder_only=True).params.keys() == {"encoder"}


def test_normalisation_is_what_the_extractor_or_the_processor_was_saved_with(tmp_path):
    folder = write(tmp_path / "hf", *made("ctc", BASE))
    saved = {"feature_extractor": {"do_normalize": False, "sampling_rate": 16_000}}
    (folder / "processor_config.json").write_text(json.dumps(saved))
    assert huggingface.read_huggingface(folder).config.data.normalize, "the extractor's own file comes first"
    (folder / "preprocessor_config.json").unlink()
    assert not huggingface.read_huggingface(folder).config.data.normalize
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Wav2Vec2Processor"}))
    found = huggingface.read_huggingface(folder)
    assert found.config.data.normalize and any(
        "no file says whether audio is normalised" in note for note in found.notes
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 8000}))
    with pytest.raises(UserError, match="expects audio at 8000 Hz"):
        huggingface.read_huggingface(folder)
