"""Checkpoints of transformers: in and out, equal outputs, equal bits after a round trip, and what is refused."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from w2v_jax import checkpoint, convert, evaluate, foreign, huggingface, huggingface_config, runs
from w2v_jax.api import State
from w2v_jax.config import UserError, from_json, load, to_json
from w2v_jax.data import open_source
from w2v_jax.data.labels import FILE, Alphabet

SMALL = dict(conv_dim=[24] * 7, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
SMALL |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_codevectors_per_group=12)
SMALL |= dict(codevector_dim=16, proj_codevector_dim=20, num_negatives=15)
BASE = dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
MIXED = dict(feat_extract_norm="layer", do_stable_layer_norm=False, conv_bias=False)
DATA2VEC = dict(num_conv_pos_embeddings=5, conv_pos_kernel_size=7)
LETTERS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7}


def made(head: str, fields: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json, tensors with random values) of a small model, by this package's own list of tensors."""
    kind = "data2vec-audio" if "conv_pos_kernel_size" in fields else "wav2vec2"
    theirs = huggingface_config.DEFAULTS | SMALL | fields | {"model_type": kind, "vocab_size": len(LETTERS)}
    config = huggingface_config.our_config(theirs, head, True, len(LETTERS))
    rng, shapes = np.random.default_rng(0), foreign.parameter_shapes(config)
    params = foreign.nest({path: rng.normal(size=s).astype(np.float32) for path, s in shapes.items()})
    return theirs, huggingface.tensors_of(config, params, head)


def write(folder: pathlib.Path, theirs: dict, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(theirs))
    (folder / "vocab.json").write_text(json.dumps(LETTERS))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def imported(tmp_path, *arguments, **kwargs) -> runs.Run:
    assert convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "run"), *arguments]) == 0
    return runs.open_run(tmp_path / "run", **kwargs)


KINDS = [(head, fields) for head in huggingface_config.HEADS for fields in (BASE, LARGE, MIXED)]


@pytest.mark.parametrize(("head", "fields"), [*KINDS, ("encoder", MIXED | DATA2VEC), ("ctc", MIXED | DATA2VEC)])
def test_tensors_that_come_in_and_go_out_again_are_the_same_bits(tmp_path, head, fields, capsys):
    theirs, tensors = made(head, fields)
    write(tmp_path / "hf", theirs, tensors)
    run = imported(tmp_path)
    assert f"{len(tensors)} tensors" in capsys.readouterr().out
    assert convert.main(["--from", str(tmp_path / "run"), "--to", str(tmp_path / "back")]) == 0
    found, _ = huggingface.read_tensors(tmp_path / "back")
    assert found.keys() == tensors.keys()
    order = [0, *range(1, len(LETTERS))]
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array[order] if name.startswith("lm_head") else array, name)
    again = huggingface.read(tmp_path / "back")
    assert runs.digest_of((again.params, {})) == run.digest
    told = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert len(told["tensors"]) == len(tensors) and "model.safetensors" in told["files"]


def test_imported_run_gives_features_codes_and_text_by_the_commands(tmp_path):
    write(tmp_path / "hf", *made("pretraining", BASE))
    run = imported(tmp_path)
    assert run.outputs.keys() == {"local", "context", "hidden", "codes"} and run.config.data.normalize
    shutil.rmtree(tmp_path / "run")
    write(tmp_path / "hf", *made("ctc", BASE))
    run = imported(tmp_path)
    alphabet = Alphabet.load(tmp_path / "run" / FILE)
    assert alphabet.tokens == ("<blank>", "<s>", "</s>", "<unk>", "|", "E", "T", "A") and alphabet.casing == "upper"
    assert run.outputs["logits"][-1] == len(LETTERS)


def test_alphabet_comes_back_as_it_was(tmp_path):
    run = a_run(tmp_path / "ctc", "finetune.py:tiny", {})
    whole = Alphabet(("<blank>", "|", "a", "b"), "letters", "lower", "'-")
    whole.save(run / FILE, {}, {})
    convert.main(["--from", str(run), "--to", str(tmp_path / "hf")])
    assert convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "back")]) == 0
    assert Alphabet.load(tmp_path / "back" / FILE) == whole
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "b": 2, "a": 3}))
    with pytest.raises(UserError, match="other tokens than vocab.json"):
        huggingface.read(tmp_path / "hf")
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps({"<pad>": 0, " ": 1, "|": 2, "a": 3}))
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": " "}))
    with pytest.raises(UserError, match="several ids"):
        huggingface.read(tmp_path / "hf")


def test_blank_of_another_id_becomes_the_first_output(tmp_path):
    theirs, tensors = made("ctc", BASE)
    vocabulary = {"A": 0, "E": 1, "|": 2, "T": 3, "<unk>": 4, "[PAD]": 7}
    write(tmp_path / "hf", theirs | {"pad_token_id": 7}, tensors)
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "hf" / "added_tokens.json").write_text(json.dumps({"<s>": 5, "</s>": 6}))
    run = imported(tmp_path)
    alphabet = Alphabet.load(tmp_path / "run" / FILE)
    assert alphabet.tokens[:4] == ("<blank>", "A", "E", "|")
    np.testing.assert_array_equal(run.params["head"]["bias"], tensors["lm_head.bias"][[7, 0, 1, 2, 3, 4, 5, 6]])


def test_old_names_half_precision_and_shards_are_read(tmp_path):
    from safetensors.numpy import save_file

    theirs, tensors = made("encoder", LARGE)
    old = {v: k for k, v in huggingface.OLD_WEIGHT_NORM.items()}
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
    found = huggingface.read(tmp_path / "hf")
    assert any("float16" in note for note in found.notes)
    scale = found.params["encoder"]["transformer"]["positional"]["scale"]
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, tensors["encoder.pos_conv_embed.conv.weight_g"].astype(np.float16).reshape(-1))
    (tmp_path / "hf" / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="model-2.safetensors"):
        huggingface.read(tmp_path / "hf")


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


def damage_wavlm(folder, theirs, tensors):
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
    damage_truncated: "damaged",
    damage_missing: r"missing \(2\)[\s\S]*layers.1.final_layer_norm.bias",
    damage_unexpected: r"unexpected \(1\)[\s\S]*adapter.weight",
    damage_shape: r"\(48, 32\), the settings say \(64, 32\)",
    damage_nan: r"NaN[\s\S]*project_q.bias",
    damage_norm: "feat_extract_norm is 'layer', but the tensors say 'group'",
    damage_layers: "num_hidden_layers is 5, but the tensors say 3",
    damage_kind: "'whisper'",
    damage_wavlm: "gated relative position bias",
    damage_data2vec: r"unexpected[\s\S]*pos_conv_embed.conv.bias",
    damage_integers: "quantised weights",
    damage_head: "the architecture is Wav2Vec2ForCTC, and no tensor is named lm_head",
    damage_json: "not readable as JSON",
    damage_activation: "hidden_act='relu'",
    damage_weights: "none of model.safetensors",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__.removeprefix("damage_"))
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, damage):
    theirs, tensors = made("pretraining", BASE)
    write(tmp_path / "hf", theirs, tensors)
    damage(tmp_path / "hf", theirs, tensors)
    with pytest.raises(UserError, match=DAMAGE[damage]):
        imported(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_folder_that_exists_is_never_overwritten(tmp_path):
    write(tmp_path / "hf", *made("encoder", BASE))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        imported(tmp_path)
    assert (tmp_path / "run" / "mine").read_text() == "x" and not (tmp_path / "run.partial").exists()
    with pytest.raises(UserError, match="does not exist"):
        convert.main(["--from", str(tmp_path / "nowhere"), "--to", str(tmp_path / "x")])
    for target in (".", "/", "", str(tmp_path / ("x" * 300))):
        with pytest.raises(UserError, match="names no new folder|cannot be written"):
            convert.main(["--from", str(tmp_path / "hf"), "--to", target])
    for flags, words in ((("--step", "1"), "for runs"), (("--dictionary", "x"), "for .pt files of fairseq")):
        with pytest.raises(UserError, match=words):
            convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "x"), *flags])


def test_vector_of_masks_that_a_recogniser_lacks_is_said_and_one_that_a_pretraining_lacks_is_an_error(tmp_path):
    for head in ("ctc", "encoder"):
        theirs, tensors = made(head, BASE)
        less = {name: x for name, x in tensors.items() if not name.endswith("masked_spec_embed")}
        found = huggingface.read(write(tmp_path / head, theirs, less))
        assert any("masked_spec_embed is not in the file" in note for note in found.notes)
        assert not found.params["encoder"]["mask_vector"].any()
    theirs, tensors = made("pretraining", BASE)
    del tensors["wav2vec2.masked_spec_embed"]
    with pytest.raises(UserError, match=r"missing \(1\)[\s\S]*masked_spec_embed"):
        huggingface.read(write(tmp_path / "pretraining", theirs, tensors))


def test_encoder_of_a_model_with_any_head_comes_in_alone(tmp_path):
    theirs, tensors = made("ctc", LARGE)
    encoder = {name: x for name, x in tensors.items() if name.startswith("wav2vec2.")}
    other = encoder | {"classifier.weight": np.ones((2, 3), np.float32)}
    write(tmp_path / "hf", theirs | {"architectures": ["Wav2Vec2ForSequenceClassification"]}, other)
    with pytest.raises(UserError, match=r"unexpected \(1\)[\s\S]*classifier.weight"):
        huggingface.read(tmp_path / "hf")
    found = huggingface.read(tmp_path / "hf", encoder_only=True)
    assert any("left out, as no part of the encoder: classifier.weight" in note for note in found.notes)
    assert found.params.keys() == {"encoder"} and found.config.method == "wav2vec2"
    write(tmp_path / "ctc", theirs, tensors)
    assert huggingface.read(tmp_path / "ctc", encoder_only=True).params.keys() == {"encoder"}


def test_normalisation_is_what_the_extractor_or_the_processor_was_saved_with(tmp_path):
    folder = write(tmp_path / "hf", *made("ctc", BASE))
    saved = {"feature_extractor": {"do_normalize": False, "sampling_rate": 16_000}}
    (folder / "processor_config.json").write_text(json.dumps(saved))
    assert huggingface.read(folder).config.data.normalize, "the extractor's own file comes first"
    (folder / "preprocessor_config.json").unlink()
    assert not huggingface.read(folder).config.data.normalize
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Wav2Vec2Processor"}))
    found = huggingface.read(folder)
    assert found.config.data.normalize and any("nothing says" in note for note in found.notes)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 8000}))
    with pytest.raises(UserError, match="hears 8000 Hz"):
        huggingface.read(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("conv_dim", [24] * 6, "conv_dim has 6, conv_kernel has 7"),
        ("conv_dim", 24, "conv_dim is 24; it must be whole numbers"),
        ("conv_stride", [0] * 7, "conv_stride is .*; it must be whole numbers"),
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
    assert huggingface.read(write(tmp_path / "encoder", theirs | none, tensors)).config.method == "wav2vec2"
    theirs, tensors = made("ctc", BASE)
    with pytest.raises(UserError, match="the blank is None"):
        huggingface.read(write(tmp_path / "ctc", theirs | none, tensors))


def test_model_that_was_not_converted_is_no_run_and_the_command_is_told(tmp_path):
    folder = write(tmp_path / "hf", *made("encoder", BASE))
    with pytest.raises(
        UserError, match=r"model of transformers; make it a run first: python -m w2v_jax.convert --from"
    ):
        runs.open_run(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json is not that of a run"):
        runs.open_run(folder)


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
        Alphabet(("<blank>", "|", "a", "b"), "letters").save(folder / FILE, {}, {})
        with config.unlocked():
            config.acoustic.outputs = 4
    shapes = foreign.parameter_shapes(config)
    rng = np.random.default_rng(0)
    params = foreign.nest({path: rng.normal(size=s).astype(np.float32) for path, s in shapes.items()})
    manager = checkpoint.open_checkpoints(folder / "checkpoints", keep_latest=1, keep_best=0)
    checkpoint.save(manager, 7, State(jax.numpy.int32(7), params, {}, {}))
    checkpoint.close(manager)
    return folder


def test_run_that_transformers_has_no_model_for_is_refused_with_the_reason(tmp_path):
    run = a_run(tmp_path / "cpc", "cpc.py:tiny", {})
    with pytest.raises(UserError, match="no model for method 'cpc'"):
        convert.main(["--from", str(run), "--to", str(tmp_path / "out")])
    run = a_run(tmp_path / "ctc", "finetune.py:tiny", {"acoustic.standardise": True})
    with pytest.raises(UserError, match="standardise"):
        convert.main(["--from", str(run), "--to", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert convert.main(["--from", str(run), "--to", str(tmp_path / "out"), "--encoder-only"]) == 0
    assert not (tmp_path / "out" / "vocab.json").exists()


def test_stack_that_transformers_does_not_have_is_refused(tmp_path):
    run = a_run(tmp_path / "run", "w2v2_base.py:tiny", {"encoder.pos_layers": 5})
    with pytest.raises(UserError, match="encoder.pos_layers"):
        convert.main(["--from", str(run), "--to", str(tmp_path / "out"), "--encoder-only"])
    run = a_run(tmp_path / "layer", "w2v2_base.py:tiny", {"encoder.pos_layers": 5, "encoder.conv_norm": "layer"})
    with pytest.raises(UserError, match="no heads for pretraining"):
        convert.main(["--from", str(run), "--to", str(tmp_path / "out")])
    assert convert.main(["--from", str(run), "--to", str(tmp_path / "out"), "--encoder-only"]) == 0
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert told["architectures"] == ["Data2VecAudioModel"] and "Data2VecAudioModel" in card


def test_model_card_holds_what_the_run_says(tmp_path):
    run = a_run(tmp_path / "pre", "w2v2_base.py:tiny", {})
    (run / "metrics.jsonl").write_text(json.dumps({"step": 7, "split": "eval", "loss": 3.25}) + "\n")
    convert.main(["--from", str(run), "--to", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| updates | 7 |" in card and "held-out `loss` | 3.25" in card and "Wav2Vec2ForPreTraining" in card
    assert str(tmp_path) not in card and "trained with w2v_jax" in card and "from the run" not in card
    config = from_json((run / "config.json").read_text())
    with config.unlocked():
        config.init.run = str(tmp_path / "before")
    (run / "config.json").write_text(to_json(config))
    convert.main(["--from", str(run), "--to", str(tmp_path / "on")])
    assert "from the run `before` on" in (tmp_path / "on" / "README.md").read_text()
    assert convert.main(["--from", str(tmp_path / "out"), "--to", str(tmp_path / "in")]) == 0
    convert.main(["--from", str(tmp_path / "in"), "--to", str(tmp_path / "again")])
    again = (tmp_path / "again" / "README.md").read_text()
    assert (
        "converted by w2v_jax" in again and "not trained further" in again and "`model.safetensors`, SHA-256" in again
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Wav2Vec2ForPreTraining"]


# Beside transformers


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="torch or transformers is not installed (extra `parity`)")
    return pytest.importorskip("transformers", reason="torch or transformers is not installed (extra `parity`)")


def their_model(transformers, kind: str, fields: dict, seed: int = 0):
    """A model with no parameter at a neutral value."""
    import torch

    torch.manual_seed(seed)
    family = next(name for name in ("Hubert", "Data2VecAudio", "Wav2Vec2") if kind.startswith(name))
    config = getattr(transformers, f"{family}Config")(**fields, vocab_size=len(LETTERS))
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def without_quantizer(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if "code" not in key and "neg" not in key}


MODELS = {
    "Wav2Vec2Model group": ("Wav2Vec2Model", SMALL | BASE),
    "Wav2Vec2Model layer": ("Wav2Vec2Model", SMALL | LARGE),
    "Wav2Vec2ForPreTraining group": ("Wav2Vec2ForPreTraining", SMALL | BASE),
    "Wav2Vec2ForPreTraining layer": ("Wav2Vec2ForPreTraining", SMALL | LARGE),
    "Wav2Vec2ForCTC mixed": ("Wav2Vec2ForCTC", SMALL | MIXED),
    "Wav2Vec2ForCTC layer": ("Wav2Vec2ForCTC", SMALL | LARGE),
    "HubertModel group": ("HubertModel", without_quantizer(SMALL | BASE)),
    "Data2VecAudioModel": ("Data2VecAudioModel", without_quantizer(SMALL) | DATA2VEC),
    "Data2VecAudioForCTC": ("Data2VecAudioForCTC", without_quantizer(SMALL) | DATA2VEC | {"conv_bias": True}),
}


def check_equal(tmp_path, model, lengths: tuple[int, ...]) -> None:
    """Every hidden state, and the logits, of ours and theirs: padded where their architecture ignores padding."""
    import torch

    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(LETTERS))
    run = imported(tmp_path)
    rng = np.random.default_rng(1)
    wave = rng.normal(size=(len(lengths), max(lengths))).astype(np.float32)
    wave *= np.arange(wave.shape[1]) < np.asarray(lengths)[:, None]
    batch = dict(wave=wave, num_samples=np.asarray(lengths, np.int32), weight=np.ones(len(lengths), np.float32))
    batch |= dict(row=np.arange(len(lengths), dtype=np.int32))
    ours = jax.jit(run.method.predict)(run.params, run.extra, batch)
    attention = (np.arange(wave.shape[1]) < np.asarray(lengths)[:, None]).astype(np.int64)
    with torch.no_grad():
        mask = None if len(set(lengths)) == 1 else torch.from_numpy(attention)
        theirs = model.base_model(torch.from_numpy(wave), attention_mask=mask, output_hidden_states=True)
    states = [h.numpy() for h in (*theirs.hidden_states, theirs.last_hidden_state)]
    hidden = [*np.asarray(ours["hidden"]), np.asarray(ours["context"])]
    if run.config.encoder.pre_norm and np.array_equal(states[-1], states[-2]):
        hidden[-2] = hidden[-1]  # some versions list the last one after the last norm
    valid = np.asarray(ours["valid"])
    for number, (here, there) in enumerate(zip(hidden, states, strict=True)):
        assert np.abs(here - there)[valid].max() < 1e-4, f"hidden state {number}"
    if "logits" in ours:
        with torch.no_grad():
            logits = model(torch.from_numpy(wave), attention_mask=mask).logits.numpy()
        assert np.abs(np.asarray(ours["logits"]) - logits)[valid].max() < 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_every_hidden_state_equals_that_of_transformers(transformers, tmp_path, name):
    kind, fields = MODELS[name]
    check_equal(tmp_path, their_model(transformers, kind, fields), (16_000, 16_000))


@pytest.mark.parity
def test_weights_in_the_file_of_torch_are_the_same(transformers, tmp_path):
    import torch

    model = their_model(transformers, "Wav2Vec2ForCTC", SMALL | BASE)
    write(tmp_path / "hf", json.loads(model.config.to_json_string(use_diff=False)), {})
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    found = huggingface.read(tmp_path / "hf")
    np.testing.assert_array_equal(found.params["head"]["bias"], model.lm_head.bias.detach().numpy())
    assert len(found.table) == len(model.state_dict())


@pytest.mark.parity
def test_every_hidden_state_equals_that_of_transformers_under_padding(transformers, tmp_path):
    check_equal(tmp_path, their_model(transformers, "Wav2Vec2ForCTC", SMALL | LARGE), (16_000, 11_000, 13_333))


@pytest.mark.parity
@pytest.mark.slow
def test_base_in_full_size_equals_that_of_transformers(transformers, tmp_path):
    check_equal(tmp_path, their_model(transformers, "Wav2Vec2ForPreTraining", BASE), (16_000, 16_000))


@pytest.mark.parity
def test_exported_models_load_in_transformers_with_every_tensor(transformers, tmp_path):
    import torch

    for name, config, flags in (
        ("Wav2Vec2ForPreTraining", "w2v2_base.py:tiny", []),
        ("Wav2Vec2ForPreTraining", "w2v2_large.py:tiny", []),
        ("Wav2Vec2Model", "w2v2_base.py:tiny", ["--encoder-only"]),
        ("Wav2Vec2ForCTC", "finetune.py:tiny", []),
    ):
        folder = tmp_path / f"{name}-{config.partition('.')[0]}"
        run = a_run(folder, config, {})
        out = tmp_path / f"{folder.name}-hf"
        assert convert.main(["--from", str(run), "--to", str(out), *flags]) == 0
        model, told = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], name
        opened = runs.open_run(run)
        wave = np.random.default_rng(0).normal(size=(1, 16_000)).astype(np.float32)
        batch = dict(wave=wave, num_samples=np.full(1, 16_000, np.int32), weight=np.ones(1, np.float32))
        ours = opened.method.predict(opened.params, opened.extra, batch | dict(row=np.zeros(1, np.int32)))
        with torch.no_grad():
            theirs = model.eval().base_model(torch.from_numpy(wave))
        here, there = np.asarray(ours["context"]), theirs.last_hidden_state.numpy()
        scale = np.abs(there).max()
        assert np.abs(here - there).max() < 1e-4 * max(scale, 1.0), name
        extractor = transformers.AutoFeatureExtractor.from_pretrained(out)
        assert extractor.do_normalize == opened.config.data.normalize
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(out)
    ids = [2, 2, 0, 1, 3, 0, 3, 1, 2]
    alphabet = Alphabet.load(run / FILE)
    assert tokenizer.decode(ids) == alphabet.decode([2, 1, 3, 3, 1, 2]) == "a bb a"


def test_exported_recogniser_writes_the_same_texts_in_transformers(transformers, random_run, tiny_corpus, tmp_path):
    """And so has the same error rates: each recording of the self-made corpus alone, by the best path."""
    import librosa
    import torch

    run, out = random_run("finetune.py:tiny", data__normalize=True), tmp_path / "hf"
    corpus = str(tiny_corpus / "train")
    assert evaluate.main(["--run", str(run), "--root", corpus, "--out", str(tmp_path / "ours")]) == 0
    rows = map(json.loads, (tmp_path / "ours" / "hypotheses.jsonl").read_text().splitlines())
    ours = {row["id"]: row["hypothesis"] for row in rows}
    assert convert.main(["--from", str(run), "--to", str(out)]) == 0
    model = transformers.Wav2Vec2ForCTC.from_pretrained(out).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(out)
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(out)
    index, theirs = open_source("folder", (corpus,)).index, {}
    for name, path in zip(index.ids, index.paths, strict=True):
        wave = librosa.load(path, sr=16_000)[0]
        with torch.no_grad():
            logits = model(extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values).logits
        theirs[str(name)] = tokenizer.decode(logits[0].argmax(-1).tolist())
    assert theirs == ours and len(set(ours.values())) > 1 and all(ours.values())


def test_imported_config_is_that_of_a_run(tmp_path):
    """A run that fine-tunes from the import finds the same encoder that its config describes."""
    write(tmp_path / "hf", *made("encoder", LARGE))
    imported(tmp_path)
    config = from_json((tmp_path / "run" / "config.json").read_text())
    tiny = load("configs/finetune.py:tiny", [])
    assert set(config.encoder) <= set(tiny.encoder)
    assert config.quantizer.groups == 0
    with pytest.raises(UserError, match="no loss"):
        method = runs.method_module("wav2vec2").make(config)
        method.loss({}, {}, {}, None, None, train=True)
