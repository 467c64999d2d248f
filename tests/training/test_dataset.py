"""The recordings of a run: those that are scored, its alphabet, what is written down of them."""

from __future__ import annotations

import json
import pathlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from commands import ROOT
from ml_collections import ConfigDict

from w2v_jax import train
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.data.corpora import Group
from w2v_jax.data.draws import OFF
from w2v_jax.data.index import WAVE, Form, Row, Skip, TooFew, hash_ids, make_index
from w2v_jax.data.transcripts import Alphabet, Labels
from w2v_jax.training import dataset, workdir
from w2v_jax.training.dataset import (
    Data,
    augmentation,
    check_agreement,
    fingerprints,
    form_of,
    heard,
    micro_batch,
    open_data,
)


def acoustic(corpus, **changes):
    """The tiny recogniser on a corpus; `section__key=value` changes it."""
    overrides = {"data.root": str(corpus), "data.loader": "threads"}
    overrides |= {key.replace("__", "."): str(value) for key, value in changes.items()}
    return configs.load(f"{ROOT / 'configs' / 'acoustic_logmel.py'}:tiny", list(overrides.items()))


def test_recordings_with_transcripts_are_not_cropped_where_the_longest_bucket_is_not_full(tiny_corpus, tmp_path):
    config = acoustic(tiny_corpus, data__bucket_seconds="(8.0, 16.0)", data__unit_seconds=16.0)
    data = open_data(config, 2, 2, path=tmp_path)
    lengths = data.train.index.num_samples
    assert (lengths > 8 * 16_000).sum() == 1, "fewer than the two of a batch"
    for bucket in data.train_plan.buckets:
        assert lengths[bucket.rows].max() <= bucket.length


def test_no_recordings_to_score_are_named_with_the_key(tiny_corpus, tmp_path):
    with pytest.raises(UserError, match=r"data.eval_share=0 gives no recordings"):
        train.run(acoustic(tiny_corpus, data__eval_share=0.0), tmp_path / "run")
    corpus = pathlib.Path(shutil.copytree(tiny_corpus / "dev", tmp_path / "dev"))
    for file in corpus.rglob("*.trans.txt"):
        file.unlink()
    with pytest.raises(UserError, match=r"data.eval_root: none of the \d+ recordings has a transcript"):
        train.run(acoustic(tiny_corpus, data__name="folder", data__eval_root=corpus), tmp_path / "other")


def test_recordings_without_an_alphabet_are_all_listed(tiny_corpus, tmp_path):
    """Those without a transcript, and the file of transcripts that cannot be read, with the line."""
    corpus = pathlib.Path(shutil.copytree(tiny_corpus / "train", tmp_path / "train"))
    first, *others = sorted(corpus.rglob("*.trans.txt"))
    first.write_bytes(b"\xe9t\xe9 hiver\n")
    for file in others:
        file.unlink()
    with pytest.raises(UserError, match=r"(?s)nothing to learn.*x no transcript.*trans\.txt:1.*all of it is in"):
        train.run(acoustic(corpus, data__name="folder"), tmp_path / "run")
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    listed = {skip["path"].split(" ")[0] for skip in skipped if skip["reason"] == "no transcript"}
    assert first.exists() and str(first) in {skip["path"] for skip in skipped}
    assert 0 < len(listed) <= len(set(map(str, corpus.rglob("*.flac"))))


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_mistakes_of_the_recordings_to_score_are_blamed_on_their_key(tiny_corpus, tmp_path, kind):
    folder = tmp_path / "scored"
    if kind != "missing":
        folder.mkdir()
    if kind == "damaged":
        (folder / "a.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"^data\.eval_root: .*scored") as error:
        open_data(acoustic(tiny_corpus, data__name="folder", data__eval_root=folder), 8, 8, path=tmp_path)
    assert "data.root" not in str(error.value)


def test_an_alphabet_that_is_given_is_told_as_one_that_is_made(tiny_corpus, tmp_path, capsys):
    config = acoustic(tiny_corpus)
    open_data(config, 8, 8, path=tmp_path)
    made = capsys.readouterr().out
    (tmp_path / "alphabet.json").rename(tmp_path / "given.json")
    open_data(acoustic(tiny_corpus, data__alphabet=tmp_path / "given.json"), 8, 8, path=tmp_path)
    assert capsys.readouterr().out == made and "most frequent" in made
    (tmp_path / "alphabet.json").unlink()
    with pytest.raises(UserError, match=r"data.casing is 'upper', and 'keep' in the file"):
        open_data(
            acoustic(tiny_corpus, data__alphabet=tmp_path / "given.json", data__casing="upper"), 8, 8, path=tmp_path
        )


def test_an_alphabet_of_a_start_that_failed_gives_way_to_a_corrected_one(tiny_corpus, tmp_path):
    open_data(acoustic(tiny_corpus), 8, 8, path=tmp_path)
    made = json.loads((tmp_path / "alphabet.json").read_text())
    given = tmp_path / "given.json"
    given.write_text(json.dumps(made | {"tokens": [*made["tokens"], "ß"]}))
    data = open_data(acoustic(tiny_corpus, data__alphabet=given), 8, 8, path=tmp_path)
    assert data.train_labels.alphabet.tokens[-1] == "ß", "the workdir has no checkpoint that the old one belongs to"
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    data = open_data(acoustic(tiny_corpus), 8, 8, path=tmp_path)
    assert data.train_labels.alphabet.tokens[-1] == "ß", "now it has"


@pytest.fixture(scope="module")
def letters(tiny_corpus):
    """The config of HuBERT on a corpus whose letters are its units; `section__key=value` changes it."""

    def load(**changes):
        overrides = {"data.root": str(tiny_corpus), "data.loader": "threads"}
        overrides |= {key.replace("__", "."): str(value) for key, value in changes.items()}
        return configs.load(f"{ROOT / 'configs' / 'hubert_base.py'}:tiny", list(overrides.items()))

    return load


def test_units_are_read_for_both_parts_and_told_in_what_a_run_keeps(letters, tiny_corpus, tmp_path):
    data = open_data(letters(), 8, 8, path=tmp_path)
    folder = tiny_corpus.with_name("synthetic-letters")
    assert folder.is_dir(), "the letters of a self-made corpus lie beside it"
    for targets, source in ((data.train_targets, data.train), (data.eval_targets, data.eval)):
        assert len(targets.rows) == len(source.index) > 0
    assert micro_batch(data, 8, 32_000, parts=2)["targets"].shape == (4, 1, 100)
    (kept,) = fingerprints(data)["targets"]
    assert kept.startswith("letters, 1 x 21 clusters, hop 320, ")
    other = open_data(letters(data__train_hours=0.01, data__targets=folder), 4, 4, path=tmp_path)
    assert fingerprints(other)["targets"] != [kept]


def test_a_run_goes_on_with_moved_units_and_with_no_others(letters, tiny_corpus, tmp_path):
    def go_on(**changes):
        config = letters(**changes)
        with workdir.open_workdir(tmp_path / "run", config, active=True):
            workdir.check_data(tmp_path / "run", config, fingerprints(open_data(config, 8, 8, path=tmp_path)))

    go_on()
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    moved = shutil.copytree(tiny_corpus.with_name("synthetic-letters"), tmp_path / "moved")
    go_on(data__targets=moved)
    about = json.loads((moved / "extract.json").read_text())
    (moved / "extract.json").write_text(json.dumps(about | {"model": "another"}))
    with pytest.raises(UserError, match=r"(?s)the data are not those.*targets: .*letters, 1 x 21.*another, 1 x 21"):
        go_on(data__targets=moved)


def test_units_without_recordings_and_speeds_are_refused(letters, tiny_corpus, tmp_path):
    config = letters(data__name="folder", data__hours=0)
    with pytest.raises(UserError, match="data.targets is empty: this method learns to predict units"):
        open_data(config, 8, 8, path=tmp_path)
    with config.unlocked():
        config.data.speeds = (0.9, 1.1)
    with pytest.raises(UserError, match="data.speeds would part the recordings from their data.targets"):
        open_data(config, 8, 8, path=tmp_path)


def test_rows_are_mixed_in_training_alone_and_limits_in_the_wrong_order_are_refused(letters, tmp_path):
    config = letters()
    assert open_data(config, 8, 8, path=tmp_path).train_plan.step(0).mix is None
    with config.unlocked():
        config.data.update(mix_prob=1.0, mix_decibels=(-5.0, 5.0))
    data = open_data(config, 8, 8, path=tmp_path)
    assert (data.train_plan.step(0).mix.others >= 0).all() and data.eval_plan.step(0).mix is None
    with config.unlocked():
        config.data.mix_decibels = (5.0, -5.0)
    with pytest.raises(UserError, match=r"data.mix_decibels=\(5, -5\): needs the lowest and the highest"):
        open_data(config, 8, 8, path=tmp_path)


def test_noise_is_listed_told_and_mixed_in_training_alone(letters, tiny_corpus, tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    for path in sorted((tiny_corpus / "train").rglob("*.flac"))[:2]:
        shutil.copy(path, folder)
    (folder / "bad.wav").write_bytes(b"RIFF")
    usual = dict(
        mix_prob=1.0, mix_decibels=(-5.0, 5.0), noise_prob=1.0, noise_decibels=(0.0, 10.0), noise_name="folder"
    )
    config = letters()
    with config.unlocked():
        config.data.update(usual, noise_root=(str(folder),))
    data = open_data(config, 8, 8, path=tmp_path)
    assert len(data.noise.index) == 2 and [skip.path for skip in data.noise.index.skipped] == [str(folder / "bad.wav")]
    assert set(data.train_plan.step(0).mix.noises) <= {0, 1} and data.eval_plan.step(0).mix is None
    assert fingerprints(data)["noise"] == data.noise.index.fingerprint()
    wrong = {
        r"data.noise_root is given, but data.mix_prob=0 leaves it unused": dict(mix_prob=0.0),
        r"data.noise_root is given, but data.noise_prob=0 leaves it unused": dict(noise_prob=0.0),
        r"data.noise_decibels=\(5, -5\): needs the lowest and the highest": dict(noise_decibels=(5.0, -5.0)),
        r"data.noise_root": dict(noise_root=(str(tmp_path / "nowhere"),)),
        r"data.noise_name='hum' is not a source": dict(noise_name="hum"),
    }
    for message, changes in wrong.items():
        with config.unlocked():
            config.data.update(usual, noise_root=(str(folder),))
            config.data.update(changes)
        with pytest.raises(UserError, match=message):
            open_data(config, 8, 8, path=tmp_path)
    with config.unlocked():
        config.data.update(usual, noise_root=())
    assert open_data(config, 8, 8, path=tmp_path).noise is None


def test_rooms_are_listed_told_and_used_in_training_alone(letters, tiny_corpus, tmp_path):
    folder = tmp_path / "rooms"
    folder.mkdir()
    soundfile.write(folder / "hall.wav", np.exp(-np.arange(900) / 100), 16_000)
    (folder / "bad.wav").write_bytes(b"RIFF")
    usual = dict(rooms_root=(str(folder),), rooms_prob=1.0, telephone_prob=0.5, gain_decibels=(-6.0, 6.0))
    config = letters()
    with config.unlocked():
        config.data.update(usual)
    data = open_data(config, 8, 8, path=tmp_path)
    assert data.rooms.index.ids.tolist() == ["hall"] and [skip.path for skip in data.rooms.index.skipped] == [
        str(folder / "bad.wav")
    ]
    effects = data.train_plan.step(0).effects
    assert (effects.rooms == 0).all() and 0 < effects.telephone.sum() < len(effects.telephone)
    assert data.eval_plan.step(0).effects is None
    assert fingerprints(data)["rooms"] == data.rooms.index.fingerprint()
    wrong = {
        r"data.rooms_root is given, but data.rooms_prob=0 leaves it unused": dict(rooms_prob=0.0),
        r"data.rooms_prob is above 0 without a data.rooms_root": dict(rooms_root=()),
        r"data.rooms_root: '.*nowhere' does not exist": dict(rooms_root=(str(tmp_path / "nowhere"),)),
        r"data.gain_decibels=\(3, -3\): needs the lowest and the highest": dict(gain_decibels=(3.0, -3.0)),
        r"data.mix_part=\(0.5, 1.5\): needs the lowest and the highest, from 0 to 1": dict(mix_part=(0.5, 1.5)),
        r"data.mix_voices=\(0, 2\): needs the lowest and the highest, from 1": dict(mix_voices=(0, 2)),
    }
    for message, changes in wrong.items():
        with config.unlocked():
            config.data.update(usual | dict(mix_part=(0.0, 0.5), mix_voices=(1, 1)) | changes)
        with pytest.raises(UserError, match=message):
            open_data(config, 8, 8, path=tmp_path)


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (dict(mix_prob=0.2), "mix_prob=0"),
        (dict(telephone_prob=1.0), "telephone_prob=0"),
        (dict(speeds=(0.9, 1.1)), "speeds=1,1"),
    ],
)
def test_what_is_done_to_audio_is_refused_for_codes_with_the_flag_that_ends_it(change, back):
    config = acoustic("nowhere")
    with config.unlocked():
        config.data.update(change)
    assert augmentation(config, WAVE, noise=None, rooms=None)
    with pytest.raises(UserError, match=rf"is for audio; the data are codes: --config.data.{back}$"):
        augmentation(config, Form("codes", "int32", hop=160), noise=None, rooms=None)


def mixed(letters, tiny_corpus, tmp_path, **changes):
    """The config of HuBERT on two corpora: the training part and, as a corpus of its own, the other part."""
    text = f'[a]\nname="folder"\nroot="{tiny_corpus}/train"\n[b]\nname="folder"\nroot="{tiny_corpus}/dev"\n'
    (tmp_path / "mix.toml").write_text(text)
    units = tiny_corpus.with_name("synthetic-letters")
    own = dict(data__corpora=tmp_path / "mix.toml", data__targets=units, data__eval_share=0.3)
    return letters(**own | changes)


def test_corpora_are_mixed_in_the_shares_that_a_run_keeps(letters, tiny_corpus, tmp_path):
    open_data(letters(), 8, 8, path=tmp_path)  # makes the letters
    data = open_data(mixed(letters, tiny_corpus, tmp_path, data__corpora_exponents="(0.0,1.0)"), 4, 4, path=tmp_path)
    assert fingerprints(data)["shares"] == {"a": 0.5, "b": 0.5}
    ids = data.train.index.ids.tolist()
    assert {id[:2] for id in ids} == {"a/", "b/"} and len(data.eval.index) and len(set(ids)) == len(ids)
    assert len(data.train_targets.rows) == len(data.train.index)
    row = int(np.flatnonzero(data.train.index.groups == 1)[0])
    own = dict(data__name="folder", data__root=tiny_corpus / "dev", data__targets=f"{tiny_corpus}-letters")
    alone = open_data(letters(**own), 1, 1, path=tmp_path)
    same = alone.train.index.ids.tolist() + alone.eval.index.ids.tolist()
    assert data.train.index.ids[row].removeprefix("b/") in same
    step = data.train_plan.step(0)
    assert np.bincount(data.train.index.groups[step.rows]).tolist() == [len(step.rows) // 2] * 2
    told = heard(data, 100)
    assert list(told) == ["a", "b"] and told["a"]["hours"] == pytest.approx(told["b"]["hours"], rel=0.05)
    assert told["b"]["epochs"] > told["a"]["epochs"] > 1 and told["b"]["rows"] < told["a"]["rows"]
    plain = open_data(letters(), 4, 4, path=tmp_path)
    assert heard(plain, 100) == {} and "shares" not in fingerprints(plain) and plain.mixture is None


def test_a_run_does_not_go_on_with_other_shares(letters, tiny_corpus, tmp_path):
    open_data(letters(), 8, 8, path=tmp_path)
    config = mixed(letters, tiny_corpus, tmp_path)
    workdir.check_data(tmp_path, config, fingerprints(open_data(config, 4, 4, path=tmp_path)))
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    file = tmp_path / "mix.toml"
    file.write_text(file.read_text().replace("root=", "weight=1\nroot="))
    with pytest.raises(UserError, match=r"(?s)the data are not those.*shares.a: .* -> 0.5"):
        workdir.check_data(tmp_path, config, fingerprints(open_data(config, 4, 4, path=tmp_path)))


def test_lengths_join_at_the_updates_of_the_curriculum(letters, tmp_path):
    config = letters(data__bucket_seconds="(1.0,2.0)", data__curriculum="5")
    plan = open_data(config, 2, 2, path=tmp_path).train_plan
    assert {plan.step(step).length for step in range(5)} == {16_000}
    assert max(plan.step(step).length for step in range(5, 60)) == 32_000


def test_only_a_want_of_recordings_is_told_with_those_that_were_left_out():
    data = dict(unit_seconds=1.0, curriculum=(5, 5))
    config = ConfigDict(dict(seed=0, data=data))
    index = make_index([Row("a", "a.wav", 0, 16_000, 16_000)])
    index.skipped.append(Skip("b.wav", "unreadable"))
    train = SimpleNamespace(index=index)
    with pytest.raises(UserError, match="needs rising numbers") as error:
        dataset.open_plan(config, train, 1, lengths=[8_000, 16_000], augment=OFF, mixture=None)
    assert "skipped" not in str(error.value)
    config.data.curriculum = ()
    with pytest.raises(TooFew, match=r"(?s)fewer than one batch.*skipped 1:.*unreadable"):
        dataset.open_plan(config, train, 9, lengths=[8_000, 16_000], augment=OFF, mixture=None)


def test_speakers_of_the_recordings_to_score_are_not_trained_on_by_choice(letters, tiny_corpus, tmp_path):
    data = open_data(letters(data__eval_speakers=True), 4, 4, path=tmp_path)
    train, scored = (set(source.index.speakers.tolist()) for source in (data.train, data.eval))
    assert train and scored and not train & scored
    both = dict(data__name="folder", data__root=tiny_corpus / "train", data__targets=f"{tiny_corpus}-letters")
    config = letters(**both, data__eval_root=tiny_corpus / "train", data__eval_speakers=True)
    with pytest.raises(
        UserError, match=r"data.eval_speakers: \d+ speakers, e.g. '\d+', are in data.root and in data.eval"
    ):
        open_data(config, 4, 4, path=tmp_path)


def spoken_by(*speakers):
    """A source of one recording of each speaker."""
    return SimpleNamespace(
        form=WAVE,
        index=make_index(Row(name, f"{name}.wav", 0, 16_000, 16_000, speaker=name) for name in speakers),
    )


def test_a_speaker_who_is_held_out_in_one_corpus_is_trained_on_in_none(monkeypatch):
    names = sorted((f"s{i}" for i in range(6)), key=lambda name: hash_ids(np.array([name]))[0])
    sources = {"a": spoken_by(*(names[i] for i in (1, 2, 3, 5))), "b": spoken_by(*names[:3])}
    monkeypatch.setattr(dataset, "open_group", lambda group, path: sources[group.label])
    groups = [Group(name, "", SimpleNamespace(), None, None) for name in sources]
    data = SimpleNamespace(name="folder", corpora="", eval_root=(), eval_share=0.01, eval_speakers=True)
    train, scored = dataset.open_sources(SimpleNamespace(data=data), groups)
    assert sorted(scored.index.ids.tolist()) == sorted([f"a/{names[1]}", f"b/{names[0]}", f"b/{names[1]}"])
    assert not set(train.index.speakers.tolist()) & set(scored.index.speakers.tolist())
    assert len(train.index) + len(scored.index) == 7, "all that they say is scored"
    sources["a"] = spoken_by(*names[1:3])
    sources["b"] = spoken_by(names[2], names[3])
    with pytest.raises(UserError, match="data.eval_speakers: each speaker of a is held out there or in another corpus"):
        dataset.open_sources(SimpleNamespace(data=data), groups)


def data_of(form=WAVE, labels=None) -> Data:
    """Data of a form, without rows and plans."""
    source = SimpleNamespace(form=form)
    return Data(source, None, source, None, labels, labels)


def shapes_of(batch) -> dict[str, tuple]:
    return {name: (leaf.shape, np.dtype(leaf.dtype).name) for name, leaf in batch.items()}


def test_a_micro_batch_is_its_part_of_the_rows():
    per_row = dict(num_samples=((4,), "int32"), weight=((4,), "float32"), row=((4,), "int32"))
    found = micro_batch(data_of(), 12, 32_000, parts=3)
    assert shapes_of(found) == per_row | dict(wave=((4, 32_000), "float32"))


def test_a_micro_batch_has_the_form_of_the_data_and_room_for_its_labels():
    form = Form("features", "float32", hop=320, width=24)
    labels = Labels([], 15.0, Alphabet(("<blank>", "|", "a"), "letters"))
    found = shapes_of(micro_batch(data_of(form, labels), 12, 32_000, parts=6))
    assert found["features"] == ((2, 100, 24), "float32")
    assert (found["tokens"], found["num_tokens"]) == (((2, 30), "int32"), ((2,), "int32"))


def test_a_run_says_what_its_data_were_made_of(tmp_path):
    """Audio, where it says nothing: runs on audio write no form."""
    assert form_of(tmp_path) == WAVE
    (tmp_path / "data.json").write_text(json.dumps({"train_rows": 3}))
    assert form_of(tmp_path) == WAVE
    form = Form("codes", "int32", hop=160, made_by="a model")
    (tmp_path / "data.json").write_text(json.dumps({"form": form._asdict()}))
    assert form_of(tmp_path) == form
    (tmp_path / "data.json").write_text('{"form": ')
    with pytest.raises(UserError, match="data.json is not readable"):
        form_of(tmp_path)


def test_processes_that_have_found_other_data_end_with_the_first_difference(monkeypatch):
    prints = {"train_rows": 7, "train_ids": "ab", "targets": ["cd"]}
    check_agreement(prints)
    monkeypatch.setattr(dataset, "gather_from_all", lambda own: [own, own, own | {"train_ids": "ef", "targets": []}])
    with pytest.raises(
        UserError, match=r"process 2 has found other data than process 0 \(train_ids, targets: ef and ab\)"
    ):
        check_agreement(prints)
