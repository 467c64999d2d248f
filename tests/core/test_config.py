"""Configs: overrides from the command line, mistakes and their suggestions, runs of older versions."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError

REPOSITORY = pathlib.Path(__file__).parents[2]
BASE = str(REPOSITORY / "configs" / "w2v2_base.py")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("train.steps", "1e3", 1000),
        ("optim.peak", "1", 1.0),
        ("data.normalize", "true", True),
        ("data.name", "jsonl", "jsonl"),
        ("data.root", "/a", ("/a",)),
        ("data.root", "/a,/b", ("/a", "/b")),
        ("data.root", "('/a', '/b')", ("/a", "/b")),
        ("data.bucket_seconds", "(2.0, 4.0)", (2.0, 4.0)),
        ("data.bucket_seconds", "3.0", (3.0,)),
        ("data.bucket_seconds", "4,8", (4.0, 8.0)),
        ("data.bucket_seconds", "[4, 8]", (4.0, 8.0)),
        ("encoder.conv_layers", "((8, 10, 5),)", ((8, 10, 5),)),
        ("encoder.conv_layers", "((8, 10, 5),) * 2", None),
        ("encoder.conv_layers", "8,10,5", None),
        ("encoder.conv_layers", "((1, 2),)", None),
        ("encoder.conv_layers", "((8, 10, 5), (8, 10, 5, 1))", None),
        ("encoder.conv_layers", "((8, 10, 5), 8)", None),
        ("optim.betas", "0.9", None),
        ("optim.betas", "(0.9, 0.98, 0.99)", None),
        ("optim.betas", "0.9,0.99", (0.9, 0.99)),
        ("optim.stages", "()", None),
        ("quantizer.temperature", "(2.0, 0.5)", None),
        ("data.bucket_seconds", "long", None),
        ("data.bucket_seconds", "(4, 'long')", None),
        ("data.bucket_seconds", "(4, 1e999)", None),
        ("optim.peak", "1e999", None),
        ("optim.peak", f"1{'0' * 400}", None),
        ("train.steps", "{[]: 1}", None),
        ("train.steps", "None", None),
        ("optim.rules", "()", ()),
        ("optim.rules", "(('^encoder/', 1, 0.5),)", (("^encoder/", 1.0, 0.5),)),
        ("optim.rules", "('^encoder/', 1, 0.5)", None),
        ("optim.rules", "^encoder/", None),
    ],
)
def test_override_reads_the_text_as_the_type_that_is_there(key, text, value):
    if value is None:
        with pytest.raises(UserError, match=f"--config.{key}=.*needs"):
            configs.load(BASE, [(key, text)])
        return
    config = configs.load(BASE, [(key, text)])
    section, name = key.split(".")
    assert config[section][name] == value and type(config[section][name]) is type(value)


AS_NUMBERS = ["2024", "0777", "1_000", "1e3", "-1", "True", "None", "nan"]
NAMES = [*AS_NUMBERS, "[old]", "(1)", "(copy)", "a b", " a ", "a=b", "it's", "C:\\new", "{}", "#1", "b''", "..."]


@pytest.mark.parametrize("text", NAMES)
def test_a_key_of_text_takes_any_text(text):
    config = configs.load(BASE, [(key, text) for key in ("data.root", "data.language", "init.run", "init.fresh")])
    assert config.data.root == config.init.fresh == (text,) and config.data.language == config.init.run == text


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("", ()),
        ("()", ()),
        ("a,", ("a",)),
        ("2023,2024", ("2023", "2024")),
        ("a b, c", ("a b", "c")),
        ("('a,b',)", ("a,b",)),
        ("'a,b'", ("a,b",)),
        ('["a", "b,c"]', ("a", "b,c")),
        ("'a','b'", ("a", "b")),
        (r"('\d',)", (r"\d",)),
    ],
)
def test_commas_separate_texts_and_quotes_keep_them(text, texts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert configs.load(BASE, [("data.eval_root", text)]).data.eval_root == texts


@pytest.mark.parametrize("text", ["[a, b]", "(2024, 2025)", "('a', 2)", "('a, 'b')"])
def test_texts_in_brackets_need_quotes(text):
    with pytest.raises(UserError, match=r"--config.data.root=.*need quotes; for several, give --config.data.root=\"\("):
        configs.load(BASE, [("data.root", text)])


@pytest.mark.parametrize(("text", "each"), [("(2024,)", ("2024",)), ("['a', 2]", ("a", "2")), ("(a, b)", ("a", "b"))])
def test_texts_in_brackets_are_shown_as_they_are_given(text, each):
    with pytest.raises(UserError) as error:
        configs.load(BASE, [("data.root", text)])
    assert f'for several, give --config.data.root="{each!r}"' in str(error.value)
    assert configs.load(BASE, [("data.root", repr(each))]).data.root == each


@given(st.lists(st.text()))
def test_what_python_writes_is_read_as_it_was(texts):
    for form in (repr(tuple(texts)), repr(texts)):
        assert configs.load(BASE, [("init.fresh", form)]).init.fresh == tuple(texts)


def test_a_path_that_exists_is_one_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [*NAMES, "a,b", "[a, b]", "('a',)", "x, y", "one,two,"]
    for name in names:
        (tmp_path / name).mkdir()
    for name in names:
        for text in (name, str(tmp_path / name)):
            assert configs.load(BASE, [("data.root", text)]).data.root == (text,)
        assert configs.load(BASE, [("data.root", f"~/{name}")]).data.root == (str(tmp_path / name),)
    assert configs.load(BASE, [("init.fresh", "a,b")]).init.fresh == ("a", "b")  # no path
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"exists, and so does each .*\"\('a', 'b'\)\"; for one.*\"\('a,b',\)\""):
        configs.load(BASE, [("data.root", "a,b")])


def test_a_tilde_is_the_home_folder_in_every_path_of_a_config(tmp_path, monkeypatch):
    """Of the command line, of a file, and of a run's config.json, which may be older."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = (REPOSITORY / "configs" / "finetune.py").read_text()
    text = text.replace('init.update(run="runs/demo")', 'init.update(run="~/demo")')
    text = text.replace('root=("data/synthetic/train",)', 'root=("~/a", "b/~")')
    (tmp_path / "mine.py").write_text(text)
    overrides = [("data.eval_root", "~/c,~/d"), ("train.compile_cache", "~"), ("data.alphabet", "~/e.json")]
    config = configs.load("~/mine.py:demo", [*overrides, ("data.remove", "~")])
    home = str(tmp_path)
    assert config.init.run == f"{home}/demo" and config.data.root == (f"{home}/a", "b/~")
    assert config.data.eval_root == (f"{home}/c", f"{home}/d") and config.train.compile_cache == home
    assert config.data.alphabet == f"{home}/e.json" and config.data.remove == "~"
    assert configs.changed_keys(config, configs.from_json(configs.to_json(config).replace(home, "~"))) == []
    assert configs.load(BASE, [("probe.root", "~"), ("probe.test_root", "~/x")]).probe.root == (home,)
    with pytest.raises(UserError, match="there is no user"):
        configs.load(BASE, [("data.root", "~no-such-user/x")])
    (tmp_path / "mine.py").write_text(text.replace('("~/a", "b/~")', "(2024,)"))
    with pytest.raises(UserError, match=r"data.root=\(2024,\): must be text"):
        configs.load("~/mine.py:demo")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.step", "7", "Did you mean 'train.steps'"),
        ("steps", "7", "Did you mean 'train.steps'"),
        ("optim.batch_hours", "7", "Did you mean 'data.batch_hours'"),
        ("train", "7", "is a section"),
        ("train.steps.more", "7", "is a value, not a section"),
        ("train.steps", "7.5", "needs int"),
        ("train.steps", "true", "needs int"),
        ("optim.peak", "high", "needs float"),
        ("data.normalize", "maybe", "needs true or false"),
    ],
)
def test_wrong_overrides_are_answered_with_the_right_key(key, text, message):
    with pytest.raises(UserError, match=message):
        configs.load(BASE, [(key, text)])


@pytest.mark.parametrize("path", ["w2v2_base.py:tiny", "configs/w2v2_base.py:tiny"])
def test_a_config_of_the_project_is_found_from_any_folder_unless_a_file_stands_there(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert configs.load(path) == configs.load(BASE + ":tiny")
    with pytest.raises(UserError, match="does not exist"):
        configs.load(f"elsewhere/{path}")
    own = tmp_path / path.partition(":")[0]
    own.parent.mkdir(exist_ok=True)
    own.write_text("def get_config(variant):\n    raise ValueError('this one is read')\n", encoding="utf-8")
    with pytest.raises(UserError, match="this one is read"):
        configs.load(path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [(BASE + ":huge", "are demo and tiny"), (BASE.replace("base", "bse"), "w2v2_base.py"), ("", "does not exist")],
)
def test_wrong_files_and_variants_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        configs.load(spec)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.workers", -1, "must be at least 0"),
        ("optim.betas", (0.9,), "needs 2 numbers"),
        ("encoder.conv_layers", (), "needs at least one layer"),
        ("encoder.conv_layers", ((8, 10, 5), (8, 0, 2)), "needs whole numbers above 0"),
        ("encoder.context_kernels", (), "needs at least one layer"),
        ("encoder.context_kernels", (2, 2.5), "needs whole numbers above 0"),
        ("loss.steps", 0, "must be above 0"),
        ("loss.offset", -1, "must be at least 0"),
        ("data.mix_voices", (1.5, 3), "needs whole numbers"),
        ("data.curriculum", (2.5, 4), "needs whole numbers"),
        ("data.corpora_exponents", (-1.0, 1.0), "must be between 0 and 1. 1 hears"),
        ("data.corpora_exponents", (1.0, math.nan), "must be between 0 and 1"),
        ("data.corpora_exponents", (1e6, 1.0), "must be between 0 and 1"),
    ],
)
def test_values_that_no_run_can_have_are_named(key, value, message):
    config = configs.load(str(REPOSITORY / "configs" / "wav2vec_small.py"))
    configs.check_config(config)
    with pytest.raises(UserError, match=rf"^{key}=.*: {message}"):
        configs.check_config(configs.changed(config, {key: value}))


@pytest.mark.parametrize("key", ["encoder.mlp", "encoder.pos_kernel", "encoder.pos_groups", "encoder.heads"])
def test_sizes_of_a_transformer_must_be_above_0(key):
    with pytest.raises(UserError, match=rf"^{key}=0: must be above 0"):
        configs.check_config(configs.changed(configs.load(BASE), {key: 0}))


def test_config_is_locked():
    with pytest.raises((AttributeError, KeyError)):
        configs.load(BASE).data.rooot = "x"


def test_json_round_trip_is_equal():
    config = configs.load(BASE)
    assert configs.changed_keys(config, configs.from_json(configs.to_json(config))) == []
    assert json.loads(configs.to_json(config))["train"]["steps"] == 400_000


def test_config_of_an_older_version_means_what_it_meant():
    for name in ("w2v2_base.py", "finetune.py", "bert_codes_base.py"):
        config = configs.load(f"configs/{name}:tiny", [])
        older = json.loads(configs.to_json(config))
        for key in ("pos_layers", "relative_buckets", "relative_distance"):
            older["encoder"].pop(key, None)
        assert configs.changed_keys(config, configs.from_json(json.dumps(older))) == []


@pytest.mark.parametrize(("flag", "stack", "policy"), [(True, "scan", "full"), (False, "unroll", "none")])
def test_flags_of_an_older_version_become_the_words_that_mean_them(flag, stack, policy):
    older = configs.load(BASE).to_dict()
    for key in ("stack", "convolution", "remat_frontend", "remat_layers"):
        del older["encoder"][key]
    older["encoder"] |= dict(scan_layers=flag, remat_frontend=flag, remat_layers=flag)
    flags = [("encoder.stack", stack), ("encoder.remat_frontend", policy), ("encoder.remat_layers", policy)]
    wanted = configs.load(BASE, flags)
    assert configs.changed_keys(wanted, configs.from_json(json.dumps(older))) == []


def test_portable_programs_depend_on_no_platform():
    """Nothing is "auto", and no key is new."""
    for name in ("w2v2_base", "finetune", "cpc", "wav2vec_small", "bert_codes_base", "acoustic_logmel"):
        config = configs.load(f"configs/{name}.py")
        found = configs.portable(config)
        assert configs.flatten(found).keys() == configs.flatten(config).keys()
        assert "auto" not in configs.flatten(found).values()
    found = configs.portable(configs.load(BASE)).encoder
    assert (found.stack, found.convolution, found.remat_frontend, found.remat_layers) == ("scan", "xla", "full", "none")
    assert configs.portable(configs.load("configs/acoustic_logmel.py")).acoustic.stack == "scan"


def test_difference_names_each_changed_key():
    assert configs.changed_keys(configs.load(BASE), configs.load(BASE, [("seed", "2")])) == ["seed: 1 -> 2"]


def test_overrides_are_taken_out_of_the_arguments():
    rest, overrides = configs.split_overrides(["--workdir=w", "--config.a.b=1", "--config.c", "x=y", "--config=f"])
    assert rest == ["--workdir=w", "--config=f"] and overrides == [("a.b", "1"), ("c", "x=y")]
    assert configs.split_overrides(["--config.a.b", "-1", "--config.c="])[1] == [("a.b", "-1"), ("c", "")]


@pytest.mark.parametrize("following", [[], ["--workdir=w"], ["--config.c=1"]])
def test_a_key_without_a_value_is_named(following):
    with pytest.raises(UserError, match=r"--config.a.b needs a value: --config.a.b=VALUE"):
        configs.split_overrides(["--config.a.b", *following])


def test_the_keys_that_all_configs_share_are_asked_for_when_a_config_is_loaded(tmp_path):
    files = sorted((REPOSITORY / "configs").glob("*.py"))
    assert set.intersection(*(set(configs.flatten(configs.load(str(file)))) for file in files)) == configs.COMMON
    text = (REPOSITORY / "configs" / "cpc.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace("eval_share=", "eval_shares="))
    with pytest.raises(UserError, match=r"mine.py lacks config.data.eval_share.*Did you mean 'data.eval_shares'"):
        configs.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "cpc.py",
            "rooms_root=",
            "rooms_rot=",
            r"mine.py: nothing reads config.data.rooms_rot. Did you mean 'data.rooms_",
        ),
        ("cpc.py", "warmup=", "wurmup=3,  warmup=", r"mine.py: nothing reads config.optim.wurmup\."),
        (
            "cpc.py",
            "        negatives=",
            "        negative=",
            r"nothing reads config.loss.negative. Did you mean 'loss.neg",
        ),
        (
            "cpc.py",
            "        negatives=",
            "        # negatives=",
            r"mine.py lacks config.loss.negatives, which cpc needs",
        ),
        (
            "acoustic_logmel.py",
            "frozen=",
            "fruzen=",
            r"nothing reads config.encoder.fruzen. Did you mean 'encoder.frozen'",
        ),
        ("cpc.py", "config.lock()", "config.mine = dict(size=3); config.loss.own = 1; config.lock()", None),
    ],
)
def test_a_file_with_a_key_that_nothing_reads_or_without_one_that_its_method_needs(tmp_path, name, old, new, message):
    text = (REPOSITORY / "configs" / name).read_text()
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        configs.load(str(tmp_path / "mine.py"))


def test_a_copy_with_other_values_is_locked_and_has_no_new_keys():
    config = configs.load(BASE)
    copy = configs.changed(config, {"encoder.layers": 3, "masking.prob": 0.5})
    assert configs.changed_keys(config, copy) == ["encoder.layers: 12 -> 3", "masking.prob: 0.65 -> 0.5"]
    with pytest.raises((AttributeError, KeyError)):
        copy.encoder.layerz = 1
    with pytest.raises(KeyError):
        configs.changed(config, {"acoustic.outputs": 3})
    assert configs.changed_keys(config, configs.changed(config, {"acoustic.outputs": 3}, skip_missing=True)) == []


def test_a_key_that_a_method_lacks_has_the_value_of_what_it_does():
    base, cpc = configs.load(BASE), configs.load(f"{REPOSITORY / 'configs' / 'cpc.py'}")
    assert configs.setting(base, "encoder.layer_drop") == base.encoder.layer_drop > 0
    assert configs.setting(cpc, "encoder.layer_drop") == 0 and configs.setting(cpc, "data.labels") == ""


def test_a_run_carries_the_version_of_its_keys_and_a_newer_one_is_refused():
    config = configs.load(f"{REPOSITORY / 'configs' / 'acoustic_logmel.py'}")
    text = json.loads(configs.run_json(config))
    assert text["version"] == configs.CONFIG_VERSION == max(version for version, *_ in configs.ADDED)
    assert configs.changed_keys(config, configs.from_json(json.dumps(text))) == []
    with pytest.raises(UserError, match="update w2v_jax"):
        configs.from_json(json.dumps(text | {"version": configs.CONFIG_VERSION + 1}))


def test_keys_that_an_older_version_lacks_have_the_values_that_it_meant():
    config = configs.load(f"{REPOSITORY / 'configs' / 'acoustic_logmel.py'}")
    older = config.to_dict()
    for key in ("attention", "positional", "stack"):
        del older["acoustic"][key]
    assert configs.changed_keys(config, configs.from_json(json.dumps(older))) == []


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_a_run_from_before_mixing_and_augmentation_goes_on_as_it_was(path):
    """Its config.json lacks the keys, but for those that WavLM had before."""
    config = configs.load(str(path))
    older = config.to_dict()
    flat = configs.flatten(config)
    for version, key, value, beside in configs.ADDED:
        if version == 8 and beside in flat and flat[key] == value:
            older["data"].pop(key.removeprefix("data."), None)
    assert len(older["data"]) < len(config.data)
    assert configs.changed_keys(config, configs.from_json(json.dumps(older))) == []


def test_a_variant_cannot_add_a_key(tmp_path):
    text = (
        (REPOSITORY / "configs" / "cpc.py")
        .read_text()
        .replace("config.optim.update(peak=", "config.optim.update(peek=")
    )
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=r"mine.py:.*peek"):
        configs.load(f"{tmp_path / 'mine.py'}:tiny")
