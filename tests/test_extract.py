"""Laws of `w2v_jax.extract`: what is written is what the run gives, whole parts only, and the same after a kill."""

import json
import os
import pathlib
import shutil
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet
import pytest

from w2v_jax import extract, train
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.code_vocabulary import Vocabulary, code_text
from w2v_jax.data.io.feature_files import read_metadata, read_parts
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import learnt_weights, open_run

REPOSITORY = pathlib.Path(__file__).parents[1]
PART = ("--part-hours", "0.003")


VQ: dict[str, Any] = dict(name="vq_wav2vec.py:tiny", optim__peak=1e-2)
PLAIN = "wav2vec_small.py:tiny"


@pytest.fixture
def vq(tiny_run, tmp_path):
    """The folder of a small vq-wav2vec, without a vocabulary."""
    return shutil.copytree(tiny_run(**VQ), tmp_path / "vq")


@pytest.fixture
def few(tiny_corpus, tmp_path):
    """A folder of four recordings, and something else."""
    folder = tmp_path / "few"
    folder.mkdir()
    for path in sorted((tiny_corpus / "train").rglob("*.flac"))[:4]:
        shutil.copy(path, folder)
    return folder


def run(*arguments):
    assert extract.main([str(argument) for argument in arguments]) == 0


def code(vq, root, out, *more):
    run("--run", vq, "--what", "codes", "--root", root, "--out", out, *PART, *more)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def utterances(folder):
    """{id: array} of everything in the parts."""
    return {
        u.id: part.array[u.first : u.first + u.frames]
        for part in read_parts(folder, read_metadata(folder))
        for u in part.utterances
    }


def test_codes_are_written_in_the_order_of_the_index_with_their_vocabulary(vq, few, tmp_path, capsys):
    code(vq, few, tmp_path / "out", "--build-vocabulary", "--text")
    source, model = open_source("folder", few), open_run(vq)
    found, about = utterances(tmp_path / "out"), read_metadata(tmp_path / "out")
    assert list(found) == source.index.ids.tolist()
    lines = []
    for row, alone in encode(model, source, batch_seconds=1.0):
        np.testing.assert_array_equal(found[source.index.ids[row]], alone["codes"])
    for part in read_parts(tmp_path / "out", about):
        tokens = part.path.with_suffix(".txt").read_text().splitlines()
        assert tokens == [code_text(part.array[u.first : u.first + u.frames]) for u in part.utterances]
        lines += tokens
        for u in part.utterances:
            assert u.seconds == pytest.approx(source.index.durations[source.index.ids.tolist().index(u.id)], abs=1e-6)
    assert about["parts"] > 1
    assert about["utterances"] == len(lines) == 4
    assert (about["method"], about["model"], about["hop"]) == ("vq_wav2vec", model.digest, 160)
    assert about["complete"] and about["unknown_frames"] == 0
    assert found[source.index.ids[0]].dtype == np.uint16
    vocabulary = Vocabulary.load(vq / "vocabulary.json")
    assert vocabulary.model == model.digest
    assert vocabulary.counts.sum() == about["frames"]
    assert (tmp_path / "out" / "vocabulary.json").read_bytes() == (vq / "vocabulary.json").read_bytes()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("extracting codes of")
    assert said[-1].endswith(f"--config.data.vocab_size={vocabulary.size}")


def test_the_folder_is_a_source_whose_rows_are_the_written_codes(vq, few, tmp_path):
    code(vq, few, tmp_path / "out", "--build-vocabulary")
    source, vocabulary = open_source("codes", tmp_path / "out"), Vocabulary.load(vq / "vocabulary.json")
    found = utterances(tmp_path / "out")
    assert source.index.ids.tolist() == list(found)
    for row, codes in enumerate(found.values()):
        np.testing.assert_array_equal(source.read(row, 0, 10**9), vocabulary.encode(codes))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1])
def test_a_killed_extraction_goes_on_to_the_same_bytes(vq, few, tmp_path, monkeypatch, after):
    (few / "broken.flac").write_bytes((few / sorted(few.iterdir())[0].name).read_bytes()[:20000])
    (few / "short.wav").write_bytes(short_wave(300))
    code(vq, few, tmp_path / "whole", "--build-vocabulary", "--text")
    whole = content(tmp_path / "whole")
    (vq / "vocabulary.json").unlink()
    real, calls = extract.write_part, []

    def killed(path, *rest, **named):
        calls.append(path)
        if len(calls) > after:
            path.with_name(f"{path.name}.partial").write_bytes(b"half")
            path.with_suffix(".jsonl").write_text("{")
            raise Killed
        real(path, *rest, **named)

    monkeypatch.setattr(extract, "write_part", killed)
    with pytest.raises(Killed):
        code(vq, few, tmp_path / "out", "--build-vocabulary", "--text")
    assert not read_metadata(tmp_path / "out", complete=False)["complete"]
    with pytest.raises(UserError, match="not finished; give its command again"):
        open_source("codes", tmp_path / "out")
    written = []
    monkeypatch.setattr(extract, "write_part", lambda path, *a, **b: (written.append(path), real(path, *a, **b)))
    code(vq, few, tmp_path / "out", "--build-vocabulary", "--text")
    assert content(tmp_path / "out") == whole
    assert len(written) == json.loads(whole["extract.json"])["parts"] - after
    code(vq, few, tmp_path / "out", "--build-vocabulary", "--text")  # a third time: nothing is left to do
    assert content(tmp_path / "out") == whole
    assert len(written) == json.loads(whole["extract.json"])["parts"] - after


def short_wave(samples):
    import io

    import soundfile

    memory = io.BytesIO()
    soundfile.write(memory, np.zeros(samples), 16000, format="WAV")
    return memory.getvalue()


def test_bad_and_short_files_are_counted_with_their_reason_and_end_nothing(vq, few, tmp_path, capsys):
    first = sorted(few.iterdir())[0]
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 3000] = bytes(3000)
    (few / "damaged.flac").write_bytes(damaged)
    (few / "short.wav").write_bytes(short_wave(300))
    (few / "notes.md").write_text("no audio")
    code(vq, few, tmp_path / "out", "--build-vocabulary")
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {pathlib.Path(skip["path"]).name for skip in skipped} == {"damaged.flac", "short.wav", "notes.md"}
    reasons = {pathlib.Path(skip["path"]).name: skip["reason"] for skip in skipped}
    assert reasons["short.wav"] == "too short for one frame: 300 samples of 465"
    assert "corrupt" in reasons["damaged.flac"] or "truncated" in reasons["damaged.flac"]
    assert read_metadata(tmp_path / "out")["skipped"] == 3
    assert len(utterances(tmp_path / "out")) == 4
    assert "3 were skipped" in capsys.readouterr().out


def test_other_data_need_the_vocabulary_of_the_run_and_count_what_it_lacks(vq, few, tmp_path, capsys):
    with pytest.raises(UserError, match=r"(?s)has no vocabulary yet.*w2v_jax\.extract --run .*--build-vocabulary"):
        code(vq, few, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    code(vq, few, tmp_path / "train", "--build-vocabulary")
    vocabulary = Vocabulary.load(vq / "vocabulary.json")
    assert len(vocabulary.types) > 1
    kept = Vocabulary(vocabulary.types[1:], vocabulary.counts[1:], vocabulary.codes, vocabulary.model, vocabulary.step)
    kept.save(vq / "vocabulary.json")
    code(vq, few, tmp_path / "out")
    about = read_metadata(tmp_path / "out")
    assert (about["unknown_frames"], about["unknown_types"]) == (vocabulary.counts[0], 1)
    assert about["vocab_size"] == vocabulary.size - 1
    share = vocabulary.counts[0] / about["frames"]
    assert (
        f"not in the vocabulary: {share:.2%} of the frames ({vocabulary.counts[0]:,} frames" in capsys.readouterr().out
    )
    assert (tmp_path / "out" / "vocabulary.json").read_bytes() == (vq / "vocabulary.json").read_bytes()


def test_a_vocabulary_of_other_parameters_is_refused(vq, few, tmp_path):
    code(vq, few, tmp_path / "train", "--build-vocabulary")
    for more in ((), ("--build-vocabulary",)):
        with pytest.raises(UserError, match=r"belongs to other parameters \(step 2.*than those of step 1"):
            code(vq, few, tmp_path / "out", "--step", "1", *more)
    code(vq, few, tmp_path / "out", "--step", "2")


def test_a_vocabulary_is_never_replaced(vq, few, tmp_path):
    code(vq, few, tmp_path / "train", "--build-vocabulary")
    before = (vq / "vocabulary.json").read_bytes()
    with pytest.raises(UserError, match="exists already; leave --build-vocabulary out"):
        code(vq, few, tmp_path / "out", "--build-vocabulary")
    assert (vq / "vocabulary.json").read_bytes() == before


def test_folders_with_other_settings_or_other_content_are_refused(vq, few, tmp_path):
    code(vq, few, tmp_path / "out", "--build-vocabulary")
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match=r"other settings:\n  text: False -> True\nChoose another --out"):
        code(vq, few, tmp_path / "out", "--text")
    sorted(few.iterdir())[0].unlink()
    with pytest.raises(UserError, match="fingerprint: "):
        code(vq, few, tmp_path / "out")
    assert content(tmp_path / "out") == before
    with pytest.raises(UserError, match="not empty and holds no extraction"):
        code(vq, few, few)


def read_parquet(path):
    """{id: features} of a part, as docs/features.md reads it."""
    part, found = pyarrow.parquet.read_table(path), {}
    for n, id in enumerate(part["id"].to_pylist()):
        found[id] = part["features"][n].values.to_numpy().reshape(part["frames"][n].as_py(), -1)
    return found


def read_hdf5(path):
    with h5py.File(path) as file:
        ends = file["first"][:] + file["frames"][:]
        return {id.decode(): file["features"][first:end] for id, first, end in zip(file["id"], file["first"], ends)}


READERS = {"parquet": (".parquet", read_parquet), "hdf5": (".h5", read_hdf5)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", READERS)
def test_every_format_holds_the_same_features(random_run, few, tmp_path, form, dtype):
    common = ("--run", random_run(PLAIN), "--what", "context", "--root", few, "--dtype", dtype, *PART)
    run(*common, "--out", tmp_path / "numpy")
    run(*common, "--out", tmp_path / "other", "--format", form)
    expected, found = utterances(tmp_path / "numpy"), {}
    suffix, read = READERS[form]
    for path in sorted((tmp_path / "other").glob(f"*{suffix}")):
        found |= read(path)
    assert list(found) == list(expected)
    for id, features in expected.items():
        assert found[id].dtype == dtype
        np.testing.assert_array_equal(found[id], features)
    about, other = read_metadata(tmp_path / "numpy"), read_metadata(tmp_path / "other")
    assert other == about | {"format": form} and about["parts"] > 1
    with pytest.raises(UserError, match=f"holds features as {form}, for other programs"):
        open_source("features", tmp_path / "other")


@pytest.mark.parametrize("form", READERS)
def test_a_killed_extraction_of_every_format_goes_on_to_the_same_bytes(random_run, few, tmp_path, monkeypatch, form):
    common = ("--run", random_run(PLAIN), "--what", "local", "--root", few, "--format", form, *PART)
    run(*common, "--out", tmp_path / "whole")
    real, calls = os.replace, []

    def killed(source, target):
        if pathlib.Path(target).suffix == READERS[form][0]:
            calls.append(target)
            if len(calls) == 2:
                raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        run(*common, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob(f"part-?????{READERS[form][0]}"))) == 1
    run(*common, "--out", tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    part = sorted((tmp_path / "out").glob(f"part-?????{READERS[form][0]}"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"(?s)part-00000.*is truncated or not what its name says.*delete part-00000"):
        run(*common, "--out", tmp_path / "out")


def test_the_lines_of_the_docs_read_every_format(random_run, few, tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "features.md").read_text(encoding="utf-8")
    block = page.split("<!-- run by tests/test_extract.py -->\n```python\n")[1].split("```")[0]
    imports, *readers = block.strip().split("\n\n")
    assert len(readers) == 3 and all(len(reader.splitlines()) == 2 for reader in readers)
    monkeypatch.chdir(tmp_path)
    for form in ("numpy", "parquet", "hdf5"):
        run("--run", random_run(PLAIN), "--what", "local", "--root", few, "--out", form, "--format", form)
        shutil.copytree(form, "features/dev", dirs_exist_ok=True)
    first = next(iter(utterances(tmp_path / "numpy").values()))
    for reader in readers:
        scope: dict[str, Any] = {}
        exec(f"{imports}\n{reader}", scope)
        np.testing.assert_array_equal(scope["x"], first)


def test_a_weighted_sum_of_layers_is_that_of_the_layers(random_run, few, tmp_path):
    path, source = random_run(), open_source("folder", few)
    run("--run", path, "--what", "hidden", "--layers", "0.5,-1,2", "--root", few, "--out", tmp_path / "out")
    found = utterances(tmp_path / "out")
    for row, alone in encode(open_run(path), source, [0, 1], keys=("hidden",)):
        expected = np.einsum("l,lfd->fd", [0.5, -1, 2], alone["hidden"])
        np.testing.assert_allclose(found[source.index.ids[row]], expected, rtol=0, atol=5e-5)
    with pytest.raises(UserError, match="2 weights: .* has 3 hidden states"):
        run("--run", path, "--what", "hidden", "--layers", "1,2", "--root", few, "--out", tmp_path / "two")
    with pytest.raises(UserError, match=r"layer: \[0\.5, -1\.0, 2\.0\] -> 1"):
        run("--run", path, "--what", "hidden", "--layer", "1", "--root", few, "--out", tmp_path / "out")


def test_learnt_weights_give_what_the_acoustic_model_reads(random_run, few, tmp_path):
    path = random_run("acoustic_frozen.py:tiny")
    model, source = open_run(path), open_source("folder", few)
    weights = learnt_weights(model)
    assert sum(weights) == pytest.approx(1) and len(set(weights)) == 3
    run("--run", path, "--what", "hidden", "--layers", "learnt", "--root", few, "--out", tmp_path / "out")
    assert read_metadata(tmp_path / "out")["layer"] == list(weights)
    found = utterances(tmp_path / "out")
    ((row, alone),) = encode(model, source, [0], keys=("hidden",))
    expected = np.einsum("l,lfd->fd", weights, alone["hidden"])
    np.testing.assert_allclose(found[source.index.ids[row]], expected, rtol=0, atol=2e-5)
    with pytest.raises(UserError, match="has learnt no weights of its layers"):
        run("--run", random_run(), "--what", "hidden", "--layers", "learnt", "--root", few, "--out", tmp_path / "no")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("what", [("local",), ("hidden", "--layer", "1")])
def test_features_are_those_of_the_recording_alone(tiny_run, few, tmp_path, what, dtype):
    path = tiny_run(PLAIN)
    run("--run", path, "--what", *what, "--root", few, "--out", tmp_path / "out", "--dtype", dtype)
    found, source = utterances(tmp_path / "out"), open_source("folder", few)
    key, layer = what[0], 1 if len(what) > 1 else None
    tolerance = 1e-2 if dtype == "float16" else 2e-5
    for row in range(2):
        ((_, alone),) = encode(open_run(path), source, [row], keys=(key,), layer=layer, batch_seconds=1.0)
        features = found[source.index.ids[row]]
        assert features.dtype == dtype
        np.testing.assert_allclose(features, alone[key], rtol=0, atol=tolerance)
    with pytest.raises(UserError, match="holds features"):
        open_source("codes", tmp_path / "out")


def test_features_of_the_untrained_model_are_others_and_the_same_every_time(tiny_run, few, tmp_path):
    found = []
    for name, more in (("trained", ()), ("one", ("--untrained",)), ("two", ("--untrained",))):
        run("--run", tiny_run(PLAIN), "--what", "local", "--root", few, "--out", tmp_path / name, *more)
        found.append(utterances(tmp_path / name))
    id = next(iter(found[0]))
    assert np.any(found[0][id] != found[1][id])
    np.testing.assert_array_equal(found[1][id], found[2][id])
    with pytest.raises(UserError):
        run("--run", tiny_run(PLAIN), "--what", "local", "--root", few, "--out", tmp_path / "one")


def test_long_recordings_lose_no_frame(vq, few, tmp_path):
    code(vq, few, tmp_path / "whole", "--build-vocabulary")
    code(vq, few, tmp_path / "cut", "--max-seconds", "1.5")
    assert [len(x) for x in utterances(tmp_path / "cut").values()] == [
        len(x) for x in utterances(tmp_path / "whole").values()
    ]


def test_what_cannot_be_extracted_is_refused_before_anything_is_written(tiny_run, few, tmp_path):
    def refused(message, *arguments):
        with pytest.raises(UserError, match=message):
            run(*arguments, "--root", few, "--out", tmp_path / "out")

    plain, empty = tiny_run(PLAIN), tmp_path / "empty"
    refused("has no codes; it gives local, context, hidden", "--run", plain, "--what", "codes")
    refused(r"layer 9: .* has \d hidden states, 0 to", "--run", plain, "--what", "hidden", "--layer", 9)
    refused("does not exist", "--run", tmp_path / "nowhere", "--what", "local")
    empty.mkdir()
    refused(r"config\.json is missing", "--run", empty, "--what", "local")
    shutil.copy(plain / "config.json", empty)
    refused("has no checkpoint yet", "--run", empty, "--what", "local")
    with pytest.raises(UserError, match="no readable audio"):
        run("--run", plain, "--what", "local", "--root", empty, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--what", "hidden"),
        ("--what", "local", "--layer", "1"),
        ("--what", "codes", "--dtype", "float16"),
        ("--what", "local", "--text"),
        ("--what", "hidden", "--layer", "1", "--layers", "1,2"),
        ("--what", "hidden", "--layers", "1,nan"),
        ("--what", "context", "--layers", "learnt"),
        ("--what", "codes", "--format", "hdf5"),
        ("--what", "context", "--build-vocabulary"),
        ("--what", "context", "--part-hours", "0"),
        ("--what", "context", "--step", "last"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        run("--run", "runs/x", "--root", "data", "--out", "out", *arguments)
    assert exit.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def chain(tiny_run, tmp_path_factory, tiny_corpus):
    """(vq-wav2vec, BERT trained on its codes of the tiny corpus, the folder of codes)."""
    folder = tmp_path_factory.mktemp("chain")
    vq = shutil.copytree(tiny_run(**VQ), folder / "vq")
    code(vq, tiny_corpus / "train", folder / "codes", "--build-vocabulary")
    return vq, tiny_run("bert_codes_base.py:tiny", data__root=folder / "codes", data__hours=0), folder / "codes"


def test_bert_reads_audio_through_its_quantizer_as_it_reads_codes(chain, tiny_corpus, few, tmp_path):
    vq, trained, codes = chain
    path = shutil.copytree(trained, tmp_path / "bert")
    common = ("--run", path, "--what", "context")
    run(*common, "--source", "codes", "--root", codes, "--out", tmp_path / "from-codes")
    audio = (*common, "--root", tiny_corpus / "train", "--out", tmp_path / "from-audio")
    run(*audio, "--quantizer", vq)
    one, other = utterances(tmp_path / "from-codes"), utterances(tmp_path / "from-audio")
    assert one.keys() == other.keys()
    limit = json.loads((path / "config.json").read_text())["encoder"]["max_frames"]
    assert max(map(len, one.values())) > limit, "some are longer than the positions, and cut"
    for name, frames in one.items():
        assert frames.shape == other[name].shape
        if len(frames) < limit - 2:
            np.testing.assert_allclose(frames, other[name], rtol=0, atol=2e-5)
    with pytest.raises(UserError, match=r"the source holds audio: name the run.*--quantizer RUN"):
        run(*common, "--root", few, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="reads audio, but the source holds codes"):
        run("--run", vq, "--what", "local", "--source", "codes", "--root", codes, "--out", tmp_path / "out")
    data = json.loads((path / "data.json").read_text())
    data["form"]["made_by"] = "another"
    (path / "data.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="was not trained on codes of"):
        run(*audio[:-1], tmp_path / "out", "--quantizer", vq)
    with pytest.raises(UserError, match="were not made by the model and vocabulary"):
        run(*common, "--source", "codes", "--root", codes, "--out", tmp_path / "out")


def test_training_names_data_that_the_method_cannot_read(chain, tmp_path, tiny_corpus):
    _, _, codes = chain
    overrides = {"data.root": str(codes), "data.loader": "threads"}
    file = str(REPOSITORY / "configs" / "bert_codes_base.py:tiny")
    with pytest.raises(UserError, match=r"encoder\.hop=320.* 160 samples apart: --config\.encoder\.hop=160"):
        train.run(configs.load(file, [*overrides.items(), ("encoder.hop", "320")]), tmp_path / "other")
    with pytest.raises(UserError, match=r"--config\.data\.vocab_size="):
        train.run(configs.load(file, [*overrides.items(), ("data.vocab_size", "4")]), tmp_path / "other")
    with pytest.raises(UserError, match="data.normalize is for audio"):
        train.run(configs.load(file, [*overrides.items(), ("data.normalize", "true")]), tmp_path / "third")
    audio = {"data.root": str(tiny_corpus), "data.loader": "threads", "data.name": "synthetic"}
    with pytest.raises(UserError, match="method=bert_codes reads codes, and data.name=synthetic gives wave"):
        train.run(configs.load(file, [*audio.items(), ("encoder.hop", "1")]), tmp_path / "other")
