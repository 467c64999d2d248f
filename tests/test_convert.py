"""Checkpoints of transformers: in and out, equal outputs, equal bits after a round trip, and what is refused."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from huggingface_folders import (
    BASE,
    DATA2VEC,
    HUBERT,
    LARGE,
    LETTERS,
    MIXED,
    SMALL,
    WAVLM,
    a_run,
    imported,
    made,
    write,
)
from parameters import shapes_of

from w2v_jax import convert, evaluate
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import from_json, load, to_json
from w2v_jax.data import open_source
from w2v_jax.data.index import WAVE
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.inference.run import digest_of, open_run
from w2v_jax.interop import huggingface, huggingface_config
from w2v_jax.training.warm_start import warm_params

KINDS = [(head, fields) for head in huggingface_config.HEADS for fields in (BASE, LARGE, MIXED)]
KINDS += [("encoder", MIXED | DATA2VEC), ("ctc", MIXED | DATA2VEC), ("encoder", BASE | WAVLM), ("ctc", LARGE | WAVLM)]
KINDS += [("encoder", BASE | HUBERT), ("encoder", LARGE | HUBERT)]


@pytest.mark.parametrize(("head", "fields"), KINDS)
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
    again = huggingface.read_huggingface(tmp_path / "back")
    assert digest_of((again.params, {})) == run.digest
    told = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert len(told["tensors"]) == len(tensors) and "model.safetensors" in told["files"]


def test_imported_run_gives_features_codes_and_text_by_the_commands(tmp_path):
    write(tmp_path / "hf", *made("pretraining", BASE))
    run = imported(tmp_path)
    assert run.outputs.keys() == {"local", "context", "hidden", "codes"} and run.config.data.normalize
    shutil.rmtree(tmp_path / "run")
    write(tmp_path / "hf", *made("ctc", BASE))
    run = imported(tmp_path)
    alphabet = Alphabet.load(tmp_path / "run" / ALPHABET_FILE)
    assert alphabet.tokens == ("<blank>", "<s>", "</s>", "<unk>", "|", "E", "T", "A") and alphabet.casing == "upper"
    assert run.outputs["logits"][-1] == len(LETTERS)


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


def test_folder_of_a_cache_is_its_snapshot_and_of_several_the_current_one(tmp_path, capsys):
    cache = tmp_path / "hub" / "models--org--name"
    write(cache / "snapshots" / "abc", *made("encoder", BASE))
    convert_to = lambda source, name: convert.main(["--from", str(source), "--to", str(tmp_path / name)])
    for number, source in enumerate((cache, cache / "snapshots")):
        assert convert_to(source, f"run{number}") == 0
        assert f"its snapshot is used: {cache / 'snapshots' / 'abc'}" in capsys.readouterr().out
    shutil.copytree(cache / "snapshots" / "abc", cache / "snapshots" / "def")
    for source in (cache, tmp_path / "hub"):
        with pytest.raises(UserError, match=r"has no config.json.*give one of these: .*snapshots/abc, .*snapshots/def"):
            convert_to(source, "several")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("def\n")
    assert convert_to(cache, "current") == 0 and "snapshots/def" in capsys.readouterr().out
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "checkpoint_best.pt").touch()
    with pytest.raises(UserError, match="give one of these: .*checkpoint_best.pt"):
        convert_to(tmp_path / "fairseq", "x")


def test_folder_named_checkpoints_does_not_make_a_model_a_run(tmp_path):
    write(tmp_path / "hf", *made("encoder", BASE))
    (tmp_path / "hf" / "checkpoints").mkdir()
    assert imported(tmp_path).config.method == "wav2vec2"


def test_symbols_go_out_as_symbols_and_convert_says_so(tmp_path, capsys):
    run = a_run(tmp_path / "ctc", "finetune.py:tiny", {})
    alphabet = Alphabet(("<blank>", "|", "AH", "K"), "symbols")
    alphabet.save(run / ALPHABET_FILE, {}, {})
    assert convert.main(["--from", str(run), "--to", str(tmp_path / "hf")]) == 0
    assert "4 symbols, with spaces between them" in (told := capsys.readouterr().out) and "'| AH K'" in told
    (tmp_path / "hf" / ALPHABET_FILE).unlink()
    imported(tmp_path)
    assert "4 symbols, with spaces between them" in (told := capsys.readouterr().out) and "'| AH K'" in told
    assert Alphabet.load(tmp_path / "run" / ALPHABET_FILE) == alphabet


@pytest.mark.parametrize(
    ("alphabet", "words"),
    [
        (
            Alphabet(("<blank>", "<unk>", "|", "A", "B", "C", "X", "CH"), "letters"),
            "joined, '|' is the space~'ABC CHX'",
        ),
        (Alphabet(("<blank>", "你", "好", "|"), "letters", delimiter=" "), "joined, no token is the space~'你好|'"),
        (Alphabet(("<blank>", "AH", "K"), "symbols"), "with spaces between them:~'AH K'"),
        (Alphabet(("<blank>", "#", "AH"), "symbols", delimiter="#"), "between them, '#' is left out~'AH'"),
    ],
)
def test_example_of_a_text_shows_what_the_tokens_are(alphabet, words):
    lines = convert.alphabet_lines(alphabet)
    assert all(part in line for part, line in zip(words.split("~"), lines, strict=True))


def test_model_that_was_not_converted_is_no_run_and_the_command_is_told(tmp_path):
    folder = write(tmp_path / "hf", *made("encoder", BASE))
    with pytest.raises(
        UserError, match=r"model of transformers; make it a run first: python -m w2v_jax.convert --from"
    ):
        open_run(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json is not that of a run"):
        open_run(folder)


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


@pytest.mark.parametrize(
    ("method", "name", "architecture"), [("hubert", "HuBERT", "Hubert"), ("wavlm", "WavLM", "WavLM")]
)
def test_models_of_units_go_out_without_their_heads_and_pretraining_goes_on_from_what_comes_in(
    tmp_path, capsys, method, name, architecture
):
    run = a_run(tmp_path / method, f"{method}_base.py:tiny", {})
    assert convert.main(["--from", str(run), "--to", str(tmp_path / "hf")]) == 0
    assert "vectors of the classes are left out: transformers has no place" in capsys.readouterr().out
    told = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (told["architectures"], told["model_type"]) == ([f"{architecture}Model"], method)
    assert told.get("num_buckets") == (32 if method == "wavlm" else None)
    assert f"A {name} model" in (tmp_path / "hf" / "README.md").read_text()
    assert convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "run")]) == 0
    assert f"{method}, encoder only" in (said := capsys.readouterr().out)
    assert ("gated bias of the distance" in said) == (method == "wavlm")
    flags = [("init.run", str(tmp_path / "run")), ("encoder.conv_grad_scale", "1.0")]
    config = load(f"configs/{method}_base.py:tiny", [*flags, ("init.fresh", "^final_proj/,^label_embeddings$")])
    given, found = open_run(run).params["encoder"], warm_params(config, shapes_of(config), WAVE)
    assert found.keys() == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], given)
    with pytest.raises(UserError, match="label_embeddings: nothing there"):
        warm_params(load(f"configs/{method}_base.py:tiny", flags), shapes_of(config), WAVE)


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
    assert "starting from the run `before`" in (tmp_path / "on" / "README.md").read_text()
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
    family = next(name for name in ("Hubert", "Data2VecAudio", "WavLM", "Wav2Vec2") if kind.startswith(name))
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
    "WavLMModel group": ("WavLMModel", without_quantizer(SMALL | BASE) | WAVLM),
    "WavLMForCTC layer": ("WavLMForCTC", without_quantizer(SMALL | LARGE) | WAVLM),
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
    found = huggingface.read_huggingface(tmp_path / "hf")
    np.testing.assert_array_equal(found.params["head"]["bias"], model.lm_head.bias.detach().numpy())
    assert len(found.table) == len(model.state_dict())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # WavLM's own, in torch
@pytest.mark.parametrize("kind", ["Wav2Vec2ForCTC", "HubertModel", "WavLMModel"])
def test_every_hidden_state_equals_that_of_transformers_under_padding(transformers, tmp_path, kind):
    fields = SMALL | LARGE if kind == "Wav2Vec2ForCTC" else without_quantizer(SMALL | LARGE)
    fields |= WAVLM if kind == "WavLMModel" else {}
    check_equal(tmp_path, their_model(transformers, kind, fields), (16_000, 11_000, 13_333))


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
        ("WavLMModel", "wavlm_large.py:tiny", []),
        ("HubertModel", "hubert_base.py:tiny", []),
        ("Wav2Vec2ForCTC", "finetune.py:tiny", []),
    ):
        folder = tmp_path / f"{name}-{config.partition('.')[0]}"
        run = a_run(folder, config, {})
        out = tmp_path / f"{folder.name}-hf"
        assert convert.main(["--from", str(run), "--to", str(out), *flags]) == 0
        model, told = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], name
        opened = open_run(run)
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
    alphabet = Alphabet.load(run / ALPHABET_FILE)
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
