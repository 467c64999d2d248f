"""Laws of several corpora in one run: what the file may say, and that each row stays that of its own source."""

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.batch_plan import Groups, train_plan
from w2v_jax.data.corpora import join_sources, mix_of, open_group, read_corpora
from w2v_jax.data.index import WAVE, Form, Row, TooFew, make_index, subset
from w2v_jax.data.io.arrays import Arrays
from w2v_jax.data.pipeline import batches

DATA = dict(
    name="folder", root=("elsewhere",), eval_root=("held",), min_seconds=0.1, workers=1, language="en", split=""
)
TWO = """
[read]  # one language
name = "jsonl"
root = "read.jsonl"
min_seconds = 2

[many]
name = "folder"
languages = { de = "many/de", pl = ["many/pl", "more/pl"] }
targets = "units"
"""


def read(tmp_path, text):
    (tmp_path / "mix.toml").write_text(text)
    return read_corpora(tmp_path / "mix.toml", DATA)


def test_each_corpus_and_language_is_a_group_with_its_own_data_section(tmp_path):
    groups = read(tmp_path, TWO)
    assert [group.label for group in groups] == ["read", "many/de", "many/pl"]
    sections = [group.section for group in groups]
    assert [section.name for section in sections] == ["jsonl", "folder", "folder"]
    assert [section.root for section in sections] == [("read.jsonl",), ("many/de",), ("many/pl", "more/pl")]
    assert [section.min_seconds for section in sections] == [2, 0.1, 0.1]
    assert [section.language for section in sections] == ["en", "de", "pl"]
    assert not hasattr(sections[0], "targets") and sections[1].targets == ("units",)
    assert all(section.eval_root == () and section.workers == 1 for section in sections)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no corpus"),
        ("[a\n", r" is no TOML: .*line 1"),
        ('name = "folder"', "'name' stands outside of a table"),
        ('["a/b"]\nname="folder"\nroot="x"', r"\[a/b\]: the name of a corpus"),
        ('[a]\nname="folder"', "needs a name, and either root or languages"),
        ('[a]\nroot="x"', "needs a name"),
        ('[a]\nname="folder"\nroot="x"\nlanguages={de="y"}', "either root or languages"),
        ('[a]\nname="folder"\nroots="x"', "'roots' is not a key.*Did you mean 'root'"),
        ('[a]\nname="folder"\nroot=[1]', r"root=\[1\] must be a path or a list of them"),
        ('[a]\nname="folder"\nlanguages={"d/e"="x"}', "the name of a language.*'d/e'"),
        ('[a]\nname="folder"\nlanguages={de=1}', "must be a table of roots by language"),
        ('[a]\nname="folder"\nlanguages="nowhere"', "languages='nowhere' is no folder with one folder for each"),
        ('[a]\nname="folder"\nroot="x"\nhours="2"', "hours='2' must be a number"),
        ('[a]\nname="folder"\nroot="x"\nweight=0', "a weight is a number above 0, and not 0"),
        ('[a]\nname="folder"\nroot="x"\nweight=nan', "a weight is a number above 0"),
        ('[a]\nname="folder"\nroot="x"\nweight=1\n[b]\nname="folder"\nroot="x"', r"\[b\] has no weight"),
        ('[a]\nname="folder"\nlanguages={de="x",pl="y"}\nlanguage_weights={de=1}', "language_weights has de, and"),
    ],
)
def test_mistakes_are_named_with_file_corpus_and_key(tmp_path, text, message):
    with pytest.raises(UserError, match=f"(?s)^data.corpora: .*mix.toml.*{message}"):
        read(tmp_path, text)


def test_a_folder_of_languages_has_one_group_for_each_folder(tmp_path):
    for name in ("language=pl", "language=de", ".cache"):
        (tmp_path / "omni" / name).mkdir(parents=True)
    (tmp_path / "omni" / "readme.txt").write_text("no language")
    groups = read(tmp_path, f'[omni]\nname="parquet"\nlanguages="{tmp_path}/omni"')
    assert [group.label for group in groups] == ["omni/de", "omni/pl"]
    assert groups[0].section.root == (f"{tmp_path}/omni/language=de",)


def test_two_folders_of_one_language_are_refused(tmp_path):
    for name in ("language=de", "de"):
        (tmp_path / "omni" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"mix.toml: \[omni\]: .*'de' and 'language=de' are both 'de'"):
        read(tmp_path, f'[omni]\nname="parquet"\nlanguages="{tmp_path}/omni"')


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.toml cannot be read: No such file"):
        read_corpora(tmp_path / "none.toml", DATA)
    (tmp_path / "b.toml").write_bytes(b"[a]\nname='\xff'")
    with pytest.raises(UserError, match="b.toml is no TOML"):
        read_corpora(tmp_path / "b.toml", DATA)


def test_mistakes_of_a_source_are_blamed_on_its_corpus(tmp_path):
    (missing,) = read(tmp_path, '[a]\nname="folder"\nroot="nowhere"')
    with pytest.raises(UserError, match=r"mix.toml: \[a\] root: 'nowhere' does not exist"):
        open_group(missing, tmp_path / "mix.toml")
    (unknown,) = read(tmp_path, '[a]\nname="foldre"\nroot="nowhere"')
    with pytest.raises(UserError, match=r"\[a\] name='foldre' is not a source.*Did you mean 'folder'"):
        open_group(unknown, tmp_path / "mix.toml")


def test_advice_on_a_corpus_is_in_the_keys_of_its_file(tmp_path, audio):
    audio(tmp_path / "short" / "a.wav", 0.5)
    (short,) = read(tmp_path, f'[a]\nname="folder"\nroot="{tmp_path}/short"\nmin_seconds=2')
    with pytest.raises(UserError, match=r"shorter than min_seconds=2 \(.*lower it with min_seconds=0.50") as error:
        open_group(short, tmp_path / "mix.toml")
    assert "--config" not in str(error.value)


def test_rows_of_all_corpora_are_read_as_their_own_source_reads_them(tmp_path, audio):
    for number, folder in enumerate(("read", "many/de", "many/pl")):
        for i in range(2 + number):
            audio(
                tmp_path / folder / f"{i}.wav",
                0.5 + 0.1 * i,
                rate=(16_000, 8_000, 44_100)[number],
                seed=10 * number + i,
            )
    (tmp_path / "read" / "bad.wav").write_bytes(b"RIFF")
    text = f'[read]\nname="folder"\nroot="{tmp_path}/read"\n'
    text += f'[many]\nname="folder"\nlanguages={{de="{tmp_path}/many/de", pl="{tmp_path}/many/pl"}}'
    groups = read(tmp_path, text)
    sources = [open_group(group, "mix.toml") for group in groups]
    both = join_sources([subset(sources[0], np.array([1])), *sources[1:]], groups)
    index = both.index
    expected = ["read/1", *(f"many/de/{i}" for i in range(3)), *(f"many/pl/{i}" for i in range(4))]
    assert index.ids.tolist() == expected and index.groups.tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    assert [skip.path for skip in index.skipped] == [f"{tmp_path}/read/bad.wav"]
    for row, id in enumerate(expected):
        place, _, name = id.rpartition("/")
        alone = open_source("folder", tmp_path / place)
        np.testing.assert_array_equal(
            both.read(row, 100, 3_000), alone.read(alone.index.ids.tolist().index(name), 100, 3_000)
        )


def test_hosts_together_read_the_mixture_that_one_host_would_and_from_any_step(tmp_path):
    """Two corpora in equal shares, the second one ten times smaller; samples say which row they are of."""
    rng = np.random.default_rng(0)
    sources = [Arrays([rng.normal(size=800).astype(np.float32) for _ in range(n)], 16_000) for n in (60, 6)]
    groups = read(tmp_path, '[a]\nname="folder"\nroot="x"\n[b]\nname="folder"\nroot="y"')
    source = join_sources(sources, groups)
    shares = Groups(source.index.groups, np.array([0.5, 0.5]))
    plan = train_plan(source.index.num_samples, seed=0, bucket_samples=[800], units=4, unit_seconds=0.15, groups=shares)
    whole = list(batches(source, plan, stop=9, loader="threads"))
    for batch, info in whole:
        assert [id[:2] for id in info.ids].count("b/") == len(info.ids) // 2
        for wave, id in zip(batch["wave"], info.ids, strict=True):
            label, _, name = id.partition("/")
            np.testing.assert_array_equal(wave, sources["ab".index(label)].waves[int(name)])
    parts = [list(batches(source, plan, start=4, stop=9, units=units, loader="threads")) for units in ((0, 2), (3, 1))]
    for (batch, _), *hosts in zip(whole[4:], *parts, strict=True):
        for host, _ in hosts:
            np.testing.assert_array_equal(host["wave"], batch["wave"][host["row"]])


def made(count, form=WAVE, seconds=1.0):
    class Made:
        index = make_index(Row(f"{i}", f"{i}.wav", 0, int(16_000 * seconds), 16_000) for i in range(count))

    Made.form = form
    return Made()


def test_corpora_of_different_forms_are_refused(tmp_path):
    groups = read(tmp_path, TWO)
    sources = [made(1), made(1), made(1, Form("codes", "int32", 320))]
    with pytest.raises(UserError, match=r"\[many\] and \[read\] were not made alike"):
        join_sources(sources, groups)


def test_shares_follow_the_hours_that_are_heard_and_the_weights(tmp_path):
    groups = read(tmp_path, TWO)
    index = join_sources([made(10, seconds=40.0), made(40), made(10)], groups).index
    mixture = mix_of(index, groups, exponents=(1.0, 1.0), longest=5.0)
    np.testing.assert_allclose(mixture.shares, [0.5, 0.4, 0.1])
    assert mixture.rows.tolist() == [10, 40, 10]
    assert mixture.by_label() == {"read": 0.5, "many/de": 0.4, "many/pl": 0.1}
    seconds, epochs = np.array([3600.0, 7200.0, 7200.0]), np.array([1.0, 2.0, 4.0])
    found = mixture.heard(seconds, epochs, shares=mixture.shares, languages=False)
    assert found["many"] == dict(rows=50, share=pytest.approx(0.5), hours=4.0, epochs=pytest.approx(2.4))
    each = mixture.heard(seconds, epochs, shares=np.array([0.5, 0.375, 0.125]), languages=True)
    assert {name: about["share"] for name, about in each.items()} == {"read": 0.5, "many/de": 0.375, "many/pl": 0.125}
    weighted = read(tmp_path, TWO.replace('root = "read.jsonl"', 'root = "r"\nweight = 1') + "weight = 3")
    np.testing.assert_allclose(mix_of(index, weighted, exponents=(1.0, 0.0), longest=5.0).shares, [1 / 4, 3 / 8, 3 / 8])


def test_shares_that_cannot_be_kept_are_named(tmp_path):
    index = join_sources([made(10), made(40), made(10)], groups := read(tmp_path, TWO)).index
    mixture = mix_of(index, groups, exponents=(1.0, 1.0), longest=5.0)
    assert mixture.missed(mixture.shares * [0.99, 1.01, 1.0]) == ""
    assert mixture.missed(mixture.shares * [1.0, 0.9, 3.0]) == "many/de 60 %, not 66.7 %, many/pl 50 %, not 16.7 %"


def test_a_corpus_without_a_recording_is_named(tmp_path):
    groups = read(tmp_path, TWO)
    index = join_sources([made(1), made(2), made(1)], groups).index.select(np.array([0, 3]))
    with pytest.raises(TooFew, match="no recording of many/de is left to train on"):
        mix_of(index, groups, exponents=(1.0, 1.0), longest=5.0)
