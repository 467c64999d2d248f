"""Laws of `w2v_jax.units`: from recordings to units and their figures, the same after a kill, and what it refuses."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from commands import environment, free_port

from w2v_jax import units
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.io.feature_files import read_metadata, read_parts
from w2v_jax.data.sources.speech_units import open_units
from w2v_jax.data.targets import with_targets
from w2v_jax.discrete.clustering import nearest
from w2v_jax.discrete.unit_model import UnitModel
from w2v_jax.inference.encode import encode
from w2v_jax.inference.run import Run, open_run

FAST = ("--starts", "2", "--passes", "3", "--batch", "500")
PART = ("--part-hours", "0.001")


class Killed(BaseException):
    pass


def run(*arguments):
    assert units.main([str(argument) for argument in arguments]) == 0


def fit(out, root, *more):
    run("fit", "--root", root, "--out", out, *FAST, *more)


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{id: units [F G]}."""
    parts = read_parts(folder, read_metadata(folder))
    return {u.id: np.array(part.array[u.first : u.first + u.frames]) for part in parts for u in part.utterances}


@pytest.fixture(scope="module")
def few(tiny_corpus, tmp_path_factory):
    """A folder of three recordings, one that cannot be read, and one of less than a frame."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted((tiny_corpus / "train").rglob("*.flac"))[:3]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_corpus):
    """The folder of 12 clusters of MFCC of a self-made corpus."""
    folder = tmp_path_factory.mktemp("model") / "mfcc"
    fit(folder, tiny_corpus / "train", "--clusters", "12")
    return folder


def test_units_of_mfcc_are_those_of_the_nearest_centres(model, few, tmp_path, capsys):
    run("label", "--model", model, "--root", few, "--out", tmp_path / "out", *PART)
    loaded, found, about = UnitModel.load(model), read(tmp_path / "out"), read_metadata(tmp_path / "out")
    source = open_source("folder", few)
    assert list(found) == source.index.ids.tolist() and about["parts"] > 1
    total = np.zeros(12, int)
    for row, arrays in loaded.features().encode(source, np.arange(3)):
        best = nearest(arrays["features"], loaded.centers)
        sure = np.asarray(best.gap)[:, 0] > loaded.margin[0]
        mine = found[source.index.ids[row]]
        assert mine.dtype == np.uint16 and mine.shape == (len(sure), 1)
        np.testing.assert_array_equal(mine[sure], np.asarray(best.codes)[sure])
        total += np.bincount(mine[:, 0], minlength=12)
    expected = dict(what="units", model=loaded.digest, features="mfcc", layer=None, run=None, hop=160, field=400)
    expected |= dict(groups=1, codes=12, cut=None, format="numpy", collapse=False, utterances=3, skipped=0)
    assert about.items() >= expected.items() and about["complete"]
    assert about["frames"] == total.sum() and about["in_use"] == [(total > 0).sum()]
    said = capsys.readouterr().out
    assert said.startswith("labelling with 12 clusters of MFCC: 3 recordings, ")
    assert "done: 3 recordings, " in said and "of 12 clusters in use, perplexity " in said


def test_training_reads_the_units_beside_their_recordings(model, few, tmp_path):
    """As `data.targets` of HuBERT: each recording finds its own, whatever the crop."""
    run("label", "--model", model, "--root", few, "--out", tmp_path / "units")
    units, source = open_units(tmp_path / "units"), open_source("folder", few)
    assert (units.clusters, units.model, units.form.hop) == (12, UnitModel.load(model).digest, 160)
    joined, found = with_targets(source, (units,), where="data.root"), read(tmp_path / "units")
    assert joined[0].index.ids.tolist() == list(found)
    for row, id in enumerate(found):
        np.testing.assert_array_equal(joined[1].read(row, 3_200, 8_000)[0], found[id][20:70, 0])


def test_the_model_says_how_it_was_made(model, tiny_corpus):
    about = UnitModel.load(model).about
    source = open_source("folder", tiny_corpus / "train")
    assert about["fingerprint"] == source.index.fingerprint() and about["recordings"] == len(source.index)
    assert np.sum(about["counts"]) == about["frames"] and about["settings"]["clusters"] == 12
    assert 1 < about["perplexity"][0] <= about["in_use"][0] <= 12
    assert sorted(path.name for path in model.iterdir()) == [".lock", "centers.npy", "skipped.jsonl", "units.json"]


@pytest.mark.parametrize("pools", [(), ("--memory", "0.0001")])
def test_a_killed_fit_goes_on_to_the_same_bytes(tiny_corpus, tmp_path, monkeypatch, capsys, pools):
    common = (tiny_corpus / "train", "--clusters", "10", "--share", "0.5", *pools)
    fit(tmp_path / "whole", *common)
    real, calls = units._save_state, []

    def killed(*arguments):
        real(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise Killed

    monkeypatch.setattr(units, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(units, "_save_state", killed)
    with pytest.raises(Killed):
        fit(tmp_path / "out", *common)
    with pytest.raises(UserError, match="the fit is not finished; give its command again"):
        run("label", "--model", tmp_path / "out", "--root", tiny_corpus / "dev", "--out", tmp_path / "units")
    fit(tmp_path / "out", *common)
    assert "going on in pass" in capsys.readouterr().out
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    fit(tmp_path / "out", *common)
    assert "is finished already: inertia " in capsys.readouterr().out


COMMAND = "import sys; from w2v_jax import units; units.SAVE_SECONDS = 0; sys.exit(units.main(sys.argv[1:]))"
"""The command, which saves after each pool."""


def processes(count: int, *arguments, devices: int = 2) -> list[subprocess.Popen]:
    """The command in so many processes."""
    port, running = free_port(), []
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for number in range(count):
        join = [f"--distributed=127.0.0.1:{port},{count},{number}"] if count > 1 else []
        command = [sys.executable, "-c", COMMAND, *map(str, arguments), *join]
        running.append(subprocess.Popen(command, env=environment(devices, JAX_PLATFORMS="cpu"), **pipes))
    return running


def ended(running: list[subprocess.Popen]) -> list[str]:
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said
    return said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_make_the_units_of_one_also_after_a_kill(tiny_corpus, few, tmp_path):
    words = ("fit", "--root", tiny_corpus / "train", "--clusters", "10", "--memory", "0.0001", *FAST)
    ended(processes(1, *words, "--out", tmp_path / "one"))
    first, second = ended(processes(2, *words, "--out", tmp_path / "two"))
    assert "done: inertia " in first and "done:" not in second
    one, two = (UnitModel.load(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one.centers, two.centers, rtol=0, atol=0.02)
    assert one.inertia_per_frame == pytest.approx(two.inertia_per_frame, rel=1e-4)
    running = processes(2, *words, "--passes", "30", "--out", tmp_path / "killed")
    while not (tmp_path / "killed" / units.STATE).exists():
        assert [process.poll() for process in running] == [None, None]
        time.sleep(0.05)
    running[1].kill()
    assert running[0].wait(60) not in (0, 2), "a lost process ends the other"
    running[1].wait()
    said, _ = ended(processes(2, *words, "--passes", "30", "--out", tmp_path / "killed"))
    assert "going on in pass" in said
    ended(processes(2, *words, "--passes", "30", "--out", tmp_path / "whole"))
    assert content(tmp_path / "killed") == content(tmp_path / "whole")

    few = shutil.copytree(few, tmp_path / "few")
    for name in "xyz":
        (few / f"{name}.flac").write_bytes(sorted(few.iterdir())[0].read_bytes()[:20_000])
    words = ("label", "--model", tmp_path / "one", "--root", few, *PART)
    ended(processes(1, *words, "--out", tmp_path / "alone"))
    first, second = ended(processes(2, *words, "--out", tmp_path / "together"))
    assert "done: 3 recordings" in first and "done:" not in second
    assert content(tmp_path / "together") == content(tmp_path / "alone")
    refused = processes(2, *words, "--out", tmp_path / "together", "--part-hours", "1")
    said = [process.communicate(timeout=120)[0] for process in refused]
    assert all("holds a labelling with other settings" in text for text in said), "it is told to both"


@pytest.mark.parametrize("form", [("--format", "numpy"), ("--format", "jsonl", "--collapse")])
def test_a_killed_labelling_goes_on_to_the_same_bytes(model, few, tmp_path, monkeypatch, form):
    from w2v_jax.discrete import labelling

    few = shutil.copytree(few, tmp_path / "few")
    (few / "broken.flac").write_bytes(sorted(few.iterdir())[0].read_bytes()[:20_000])
    common = ("label", "--model", model, "--root", few, *PART, *form)
    run(*common, "--out", tmp_path / "whole")
    real, written = labelling.write_units, []

    def killed(path, *rest, **named):
        written.append(path)
        if len(written) == 2:
            path.with_name(f"{path.name}.partial").write_bytes(b"half")
            raise Killed
        real(path, *rest, **named)

    monkeypatch.setattr(labelling, "write_units", killed)
    with pytest.raises(Killed):
        run(*common, "--out", tmp_path / "out")
    run(*common, "--out", tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert len(written) == read_metadata(tmp_path / "out")["parts"] + 1
    assert read_metadata(tmp_path / "out")["skipped"] == 1
    with pytest.raises(UserError, match=r"holds a labelling with other settings:\n  part_hours"):
        run(*common, "--out", tmp_path / "out", "--part-hours", "1")


def test_units_of_a_layer_need_the_run_that_they_were_fitted_to(random_run, few, tmp_path):
    path, out = random_run(), tmp_path / "l2"
    fit(out, few, "--run", path, "--layer", "2", "--clusters", "6", "--codebooks", "2")
    common = ("label", "--model", out, "--root", few)
    run(*common, "--run", path, "--out", tmp_path / "units")
    loaded, about, found = UnitModel.load(out), read_metadata(tmp_path / "units"), read(tmp_path / "units")
    expected = dict(features="hidden", layer=2, run=open_run(path).digest, method="wav2vec2", hop=320, groups=2)
    assert about.items() >= (expected | dict(cut="recipe", max_samples=1_600_000)).items()
    source = open_source("folder", few)
    for row, arrays in encode(open_run(path), source, [0], keys=("hidden",), layer=2):
        best = nearest(arrays["hidden"], loaded.centers)
        sure = np.asarray(best.gap) > loaded.margin
        np.testing.assert_array_equal(found[source.index.ids[row]][sure], np.asarray(best.codes)[sure])
    with pytest.raises(UserError, match="name it by --run RUN"):
        run(*common, "--out", tmp_path / "none")
    other = random_run(seed="5", encoder__mlp="40")
    with pytest.raises(UserError, match="was fitted to hidden 2 of other parameters"):
        run(*common, "--run", other, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_letters_in_time_are_told_better_by_units_than_by_chance(model, tiny_corpus, tmp_path, capsys):
    labelled, dev = tmp_path / "units", tiny_corpus / "dev"
    run("label", "--model", model, "--root", dev, "--out", labelled)
    common = ("measure", "--units", labelled)
    run(*common, "--alignment", "letters", "--root", dev, "--out", tmp_path / "letters.json", "--abx")
    found = json.loads((tmp_path / "letters.json").read_text())
    (figures,) = found["codebooks"]
    assert 0.1 < figures["pnmi"] < 1 and figures["pnmi"] > 2 * figures["pnmi_by_chance"]
    assert f"PNMI            {figures['pnmi']:.4f} (units in random order:" in capsys.readouterr().out
    assert 0 < found["abx_within"] < 0.45 and found["abx_across"] is None, "it has a single speaker"
    assert 5 < figures["label_length"] < 15, "a letter takes about 0.1 s"
    from w2v_jax.discrete.time_labels import corpus_letters

    letters = corpus_letters(open_source("folder", dev).index)
    lines = [
        f"{id}\t{start}\t{end}\t{letters.names[label]}\n"
        for id, own in letters.segments.items()
        for start, end, label in zip(*own)
    ]
    (tmp_path / "phones.tsv").write_text("".join(lines))
    run(*common, "--alignment", tmp_path / "phones.tsv", "--out", tmp_path / "file.json")
    assert json.loads((tmp_path / "file.json").read_text())["codebooks"] == [figures]


def test_alignments_that_do_not_belong_to_the_units_are_refused(model, few, tiny_corpus, tmp_path):
    run("label", "--model", model, "--root", few, "--out", tmp_path / "units")
    common = ("measure", "--units", tmp_path / "units", "--alignment")
    with pytest.raises(UserError, match="of other recordings: it has none of the 3"):
        run(*common, "letters", "--root", tiny_corpus / "dev")
    with pytest.raises(UserError, match="letters needs --root"):
        run(*common, "letters")
    with pytest.raises(UserError, match="is not of a self-made corpus"):
        run(*common, "letters", "--root", few)
    ids = list(read(tmp_path / "units"))
    (tmp_path / "late.tsv").write_text(f"{ids[0]}\t0\t1\tA\n{ids[0]}\t1\t900\tB\n")
    with pytest.raises(UserError, match="a segment ends after the recording"):
        run(*common, tmp_path / "late.tsv")


def test_what_cannot_be_fitted_is_refused_before_anything_is_computed(few, random_run, tmp_path):
    with pytest.raises(UserError, match=r"70,000 clusters need as many frames, but there are \d,\d\d\d"):
        fit(tmp_path / "a", few, "--clusters", "70000")
    with pytest.raises(UserError, match="layer 9: .* has 3 hidden states, 0 to 2"):
        fit(tmp_path / "b", few, "--run", random_run(), "--layer", "9", "--clusters", "4")
    with pytest.raises(UserError, match="--codebooks 5 does not divide the 39 numbers of a frame"):
        fit(tmp_path / "c", few, "--clusters", "4", "--codebooks", "5")
    with pytest.raises(UserError, match="not empty and holds no k-means model"):
        fit(shutil.copytree(few, tmp_path / "few"), few, "--clusters", "4")


def test_centres_of_scikit_learn_are_taken_as_they_are(few, tmp_path, capsys):
    import joblib
    from sklearn.cluster import KMeans

    from w2v_jax.discrete.frame_features import mfcc_features

    encoded = dict(mfcc_features().encode(open_source("folder", few), np.arange(3)))
    frames = np.concatenate([encoded[row]["features"] for row in range(3)])
    theirs = KMeans(9, n_init=1, random_state=0).fit(frames)
    joblib.dump(theirs, tmp_path / "km.bin")
    fit(tmp_path / "model", few, "--centers", tmp_path / "km.bin")
    model = UnitModel.load(tmp_path / "model")
    np.testing.assert_array_equal(model.centers[0], theirs.cluster_centers_)
    assert model.inertia_per_frame == pytest.approx(theirs.inertia_ / len(frames), rel=1e-4)
    assert capsys.readouterr().out.startswith("measuring 9 clusters on MFCC: 3 of 3 recordings")
    run("label", "--model", tmp_path / "model", "--root", few, "--out", tmp_path / "units")
    found = np.concatenate(list(read(tmp_path / "units").values()))[:, 0]
    assert (found == theirs.predict(frames)).mean() > 0.999
    np.save(tmp_path / "km.npy", theirs.cluster_centers_[:, :13])
    with pytest.raises(UserError, match="has 9 centres of 13 numbers in one codebook; a frame of MFCC has 39"):
        fit(tmp_path / "other", few, "--centers", tmp_path / "km.npy")


@pytest.mark.parametrize("seconds", [1600, 1])
def test_a_device_without_memory_names_no_flag_that_the_command_lacks(
    model, few, tmp_path, monkeypatch, capsys, seconds
):
    """The length of a piece is the recipe's: where a batch is one piece already, no flag helps."""
    without_memory = lambda batch: jnp.zeros((1 << 46,)).block_until_ready()
    monkeypatch.setattr(Run, "predictor", lambda self, keys, layer: without_memory)
    advice = "lower it with --batch-seconds=800$" if seconds == 1600 else "more memory, or .* JAX_PLATFORMS=cpu$"
    for command in (("fit", "--clusters", 4), ("label", "--model", model)):
        with pytest.raises(UserError, match=advice) as raised:
            run(*command, "--root", few, "--out", tmp_path / command[0], "--batch-seconds", seconds)
        with pytest.raises(SystemExit):
            units.main([command[0], "--help"])
        flags = lambda text: set(re.findall(r"--[a-z-]+", text))
        assert flags(str(raised.value)) <= flags(capsys.readouterr().out)


def test_a_fit_that_failed_at_once_leaves_its_folder_to_the_next(few, tmp_path):
    with pytest.raises(UserError, match="clusters need as many frames"):
        fit(tmp_path / "out", few, "--clusters", "70000")
    fit(tmp_path / "out", few, "--clusters", "5")
    assert UnitModel.load(tmp_path / "out").codes == 5


def test_a_model_with_other_settings_is_not_overwritten(model, tiny_corpus):
    before = content(model)
    with pytest.raises(
        UserError, match=r"other settings:\n  settings: .*\n  share: 1\.0 -> 0\.5\nChoose another --out"
    ):
        fit(model, tiny_corpus / "train", "--clusters", "11", "--share", "0.5")
    assert content(model) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--features", "mfcc", "--run", "x", "--clusters", "4"),
        ("--features", "hidden", "--clusters", "4"),
        ("--run", "x", "--clusters", "4"),
        ("--layer", "4", "--clusters", "4"),
        ("--clusters", "0"),
        ("--clusters", "4", "--centers", "x"),
        ("--clusters", "4", "--share", "1.5"),
        (),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        units.main(["fit", "--root", "r", "--out", "o", *arguments])
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err
