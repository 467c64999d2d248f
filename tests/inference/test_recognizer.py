"""`evaluate`, `transcribe` and `ngram` from end to end on a tiny recogniser."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import weakref

import numpy as np
import pytest

from w2v_jax import evaluate, ngram, transcribe
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import subset
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet, build_alphabet
from w2v_jax.decoding.beam_search import Search, greedy
from w2v_jax.decoding.ngram_lm import build_ngram, read_arpa, write_arpa
from w2v_jax.inference import encode, recognizer


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run("acoustic_logmel.py:tiny")


@pytest.fixture(scope="module")
def heard(tiny_corpus):
    return tiny_corpus / "train"


@pytest.fixture(scope="module")
def arpa(run, tiny_corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("lm") / "lm.arpa.gz"
    assert ngram.main(["--root", str(tiny_corpus / "train"), "--run", str(run), "--out", str(out)]) == 0
    return out


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_language_model_knows_the_words_of_the_transcripts(arpa, run, tiny_corpus, tmp_path):
    texts = open_source("folder", tiny_corpus / "train").index.transcripts.tolist()
    assert read_arpa(arpa).words == {word for text in texts for word in text.split()}
    flags = ["--root", str(tiny_corpus / "train"), "--run", str(run), "--unit", "token"]
    assert ngram.main([*flags, "--out", str(tmp_path / "letters.arpa")]) == 0
    assert read_arpa(tmp_path / "letters.arpa").words <= set(Alphabet.load(run / ALPHABET_FILE).tokens)
    (tmp_path / "text.txt").write_text("Ein Satz\nnoch ein Satz\n", encoding="utf-8")
    flags = ["--text", str(tmp_path / "text.txt"), "--casing", "lower", "--order", "2"]
    assert ngram.main([*flags, "--out", str(tmp_path / "text.arpa")]) == 0
    assert read_arpa(tmp_path / "text.arpa").words == {"ein", "satz", "noch"}
    for wrong, word in (([], "nothing to learn"), (["--text", "x", "--unit", "token"], "needs the alphabet")):
        with pytest.raises(UserError, match=word):
            ngram.main([*wrong, "--out", str(tmp_path / "no.arpa")])


def test_language_models_learn_no_empty_sentences(tmp_path, capsys):
    """Recordings without a transcript are left out, counted and named, as are lines of text without words."""
    texts = ["the cat sat", "", "the dog", " ", "\ufeff", "\u200b", "-"]
    lines = [{"audio_filepath": f"a{i}.wav", "frames": 9, "rate": 16_000, "text": t} for i, t in enumerate(texts)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "text.txt").write_text("\ufeffthe cat sat\n\n \u3000\nthe dog\n-\n", encoding="utf-8")
    (tmp_path / "run").mkdir()
    alphabet, *counts = build_alphabet(texts, "letters", "keep", remove="-", min_count=1)
    alphabet.save(tmp_path / "run" / ALPHABET_FILE, *counts)
    expected = build_ngram([["the", "cat", "sat"], ["the", "dog"]], 3)
    reports = []
    for flags, named in (
        (["--source", "jsonl", "--root", "m.jsonl"], "5 of 7, which have no words: a1, a3, a4, a5, a6"),
        (["--text", "text.txt"], "3 of 5, which have no words: text.txt:2, text.txt:3, text.txt:5"),
    ):
        flags = [str(tmp_path / flag) if "." in flag else flag for flag in flags]
        assert ngram.main([*flags, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "lm.arpa")]) == 0
        report = capsys.readouterr().out.replace(f"{tmp_path}/", "")
        assert named in report and "2 sentences, 5 words, 4 different" in report
        assert read_arpa(tmp_path / "lm.arpa").grams.keys() == expected.grams.keys()
        reports.append(next(line for line in report.split("\n") if "perplexity" in line))
    assert reports[0] == reports[1]
    with pytest.raises(UserError, match=r"(?s)no word to build.*1 x no words\n +a1"):
        (tmp_path / "m.jsonl").write_text(json.dumps(lines[1]) + "\n")
        ngram.main(["--source", "jsonl", "--root", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "lm.arpa")])


def test_word_lists_are_read_as_text(tmp_path):
    alphabet = build_alphabet(["abe dog"], "letters", "keep", remove="", min_count=1)[0]
    (tmp_path / "words.txt").write_text("\ufeffabe\tsp e l t\r\n\ndog\u2028x\n", encoding="utf-8")
    assert recognizer.read_lexicon(str(tmp_path / "words.txt"), alphabet) == {"abe", "dog"}
    (tmp_path / "words.txt").write_bytes("abe\n".encode("utf-16"))
    with pytest.raises(UserError, match="--lexicon .*words.txt:1: is UTF-16"):
        recognizer.read_lexicon(str(tmp_path / "words.txt"), alphabet)


def test_evaluation_writes_what_jiwer_counts(run, heard, tmp_path, capsys):
    jiwer = pytest.importorskip("jiwer")
    assert evaluate.main(["--run", str(run), "--root", str(heard), "--out", str(tmp_path)]) == 0
    lines = read_lines(tmp_path / "hypotheses.jsonl")
    index = open_source("folder", heard).index
    assert [line["id"] for line in lines] == index.ids.tolist()
    assert [line["reference"] for line in lines] == index.transcripts.tolist()
    pairs = [line["reference"] for line in lines], [line["hypothesis"] for line in lines]
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["wer"] == pytest.approx(jiwer.wer(*pairs)) and scores["cer"] == pytest.approx(jiwer.cer(*pairs))
    assert f"{scores['wer']:.2%}" in capsys.readouterr().out
    assert (tmp_path / "alignments.txt").read_text(encoding="utf-8").count("REF:") == len(index)


def test_tuning_keeps_the_best_pair_and_all_that_were_tried(run, heard, arpa, tmp_path):
    flags = ["--run", str(run), "--root", str(heard), "--out", str(tmp_path), "--lm", str(arpa), "--beam", "3"]
    assert evaluate.main([*flags, "--tune", "3", "--n-best", "2"]) == 0
    tried = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert len(tried) == 3 and scores["wer"] == min(entry["wer"] for entry in tried)
    assert len(read_lines(tmp_path / "hypotheses.jsonl")[0]["n_best"]) == 2
    with pytest.raises(UserError, match="needs a language model"):
        evaluate.main([*flags[:6], "--tune", "3"])
    with pytest.raises(UserError, match="--tune=-1"):
        evaluate.main([*flags, "--tune", "-1"])


def misheard(recognizer, source, **law):
    """What a good model says of the transcripts, with noise, in place of `log_probs`."""
    alphabet, rng = recognizer.alphabet, np.random.default_rng(0)
    for row, text in enumerate(source.index.transcripts.tolist()):
        ids = np.stack([alphabet.encode(text)[0]] * 2 + [np.zeros(len(text), int)], 1).ravel()  # a, a, blank
        logits = rng.normal(size=(len(ids), len(alphabet))) * 1.5 + 4.5 * np.eye(len(alphabet))[ids]
        yield row, (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("tune", ["0", "2"])
def test_scoring_holds_the_log_probabilities_of_few_recordings_at_once(run, heard, arpa, tmp_path, monkeypatch, tune):
    made, alive = [], []

    def watched(recognizer, source, **law):
        for row, frames in misheard(recognizer, source):
            made.append(weakref.ref(frames))
            yield row, frames
            del frames
            alive.append(sum(each() is not None for each in made))

    monkeypatch.setattr(evaluate, "log_probs", watched)
    flags = ["--run", str(run), "--root", str(heard), "--lm", str(arpa), "--beam", "2", "--out", str(tmp_path)]
    assert evaluate.main([*flags, "--tune", tune]) == 0
    assert len(alive) > 4 and max(alive) <= 2
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".jsonl", ".txt")]


def test_flashlight_gives_what_the_own_search_gives(run, heard, arpa, tmp_path, monkeypatch):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed (extra `decode`)")
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("\n".join(f"{word} spelling" for word in sorted(read_arpa(arpa).words)), encoding="utf-8")
    flags = ["--run", str(run), "--root", str(heard), "--lm", str(arpa), "--lexicon", str(lexicon), "--beam", "200"]
    monkeypatch.setattr(evaluate, "log_probs", misheard)
    texts, scores = [], []
    for kind in ("own", "flashlight"):
        assert evaluate.main([*flags, "--merge", "max", "--decoder", kind, "--out", str(tmp_path / kind)]) == 0
        lines = read_lines(tmp_path / kind / "hypotheses.jsonl")
        texts.append([(line["id"], line["hypothesis"]) for line in lines])
        scores.append([line["n_best"][0]["score"] for line in lines])
        about = json.loads((tmp_path / kind / "scores.json").read_text(encoding="utf-8"))["decoder"]
        assert (about["kind"], about["merge"]) == (kind, "max")
    assert texts[0] == texts[1] and all(text for _, text in texts[0])
    np.testing.assert_allclose(*scores, atol=0.02)


def test_what_the_arguments_say_reaches_the_search(run, arpa):
    parser = argparse.ArgumentParser()
    recognizer.add_arguments(parser)
    alphabet = Alphabet.load(run / ALPHABET_FILE)
    search_of = lambda *flags: recognizer.search_of(parser.parse_args(["--run", str(run), *flags]), alphabet)
    said = dict(
        beam=7, lm_weight=1.5, word_score=0.5, unknown_score=-3.0, threshold=9.0, tokens=5, merge="max", n_best=2
    )
    flags = [part for key, value in said.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    search = search_of("--lm", str(arpa), *flags)
    assert {key: getattr(search, key) for key in said} == said and search.lm == read_arpa(arpa)
    assert search_of() is None
    assert search_of("--merge", "max") == Search(merge="max", word_score=0.0)
    assert search_of("--lm", str(arpa)) == Search(lm=search.lm)


def test_each_symbol_is_a_word_for_the_search_also_one_that_is_a_bar(tmp_path):
    alphabet = Alphabet(("<blank>", "|", "AH", "K"), "symbols")
    write_arpa(tmp_path / "lm.arpa", build_ngram([alphabet.split("AH | K")], 2))
    (tmp_path / "lexicon.txt").write_text("AH\n|\n")
    parser = argparse.ArgumentParser()
    recognizer.add_arguments(parser)
    flags = ["--run", "x", "--lm", str(tmp_path / "lm.arpa"), "--lexicon", str(tmp_path / "lexicon.txt")]
    search = recognizer.search_of(parser.parse_args(flags), alphabet)
    assert search is not None and search.boundary == "" and search.lexicon == {"AH", "|"}
    frames = np.log(np.eye(4)[[2, 0, 1, 2]] * 0.97 + 0.01)
    (best,) = recognizer.decoder_of(search, alphabet)(frames)
    assert alphabet.decode(best.ids) == "AH | AH" and best.words == 3


def test_lexicon_holds_words_that_the_tokens_can_write(tmp_path):
    (tmp_path / "lexicon.txt").write_text("chat\ncat\nhat\n")
    alphabet = Alphabet(("<blank>", "|", "ch", "a", "t"), "letters")
    assert recognizer.read_lexicon(str(tmp_path / "lexicon.txt"), alphabet) == {"chat"}


def test_decoder_says_what_it_cannot_do_before_anything_is_encoded(run, heard, arpa, tmp_path, monkeypatch):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed (extra `decode`)")
    monkeypatch.setattr(recognizer, "encode", lambda *args, **law: pytest.fail("encoded"))
    (tmp_path / "words.txt").write_text("\n".join(read_arpa(arpa).words), encoding="utf-8")
    words = ["--lexicon", str(tmp_path / "words.txt")]
    flags = ["--root", str(heard), "--run", str(run), "--unit", "token"]
    ngram.main([*flags, "--out", str(tmp_path / "letters.arpa")])
    letters = ["--lm", str(tmp_path / "letters.arpa"), "--lm-unit", "token"]
    ngram.main([*flags[:4], "--order", "1", "--out", str(tmp_path / "one.arpa")])
    flashlight = ["--decoder", "flashlight"]
    for wrong, word in (
        (["--beam", "-1"], "beam=-1"),
        (["--beam", "5", "--tokens", "0"], "tokens=0"),
        (["--lm-weight", "1", "--beam", "5"], "--lm-weight needs a language model"),
        (flashlight, "--beam N"),
        ([*flashlight, *letters], "--word-score 0"),
        ([*flashlight, "--beam", "5", "--word-score", "1"], "--word-score 0"),
        ([*flashlight, *words, "--lm", str(tmp_path / "one.arpa")], "one.arpa: KenLM"),
    ):
        for command in (
            lambda *more: evaluate.main(["--run", str(run), "--root", str(heard), "--out", str(tmp_path), *more]),
            lambda *more: transcribe.main(["--run", str(run), *more, str(heard)]),
        ):
            with pytest.raises(UserError, match=word):
                command(*wrong)
    with pytest.raises(UserError, match="flashlight has with --lexicon only"):
        more = [*flashlight, *letters, "--word-score", "0", "--tune", "2"]
        evaluate.main(["--run", str(run), "--root", str(heard), "--out", str(tmp_path), *more])


def test_recordings_without_a_transcript_are_left_out_of_the_rates(run, heard, tmp_path, capsys):
    some = tmp_path / "some"
    shutil.copytree(heard, some)
    texts = min(some.rglob("*.trans.txt"))
    first, *rest = texts.read_text(encoding="utf-8").splitlines(keepends=True)
    texts.write_text("".join(rest), encoding="utf-8")
    heard_id, silent = first.split()[0], "/".join(texts.parts[-3:-1] + (first.split()[0],))  # without text, the path
    scores, lines = [], []
    for root in (heard, some):
        assert evaluate.main(["--run", str(run), "--root", str(root), "--out", str(tmp_path / "out")]) == 0
        scores.append(json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8")))
        lines.append({line["id"]: line for line in read_lines(tmp_path / "out" / "hypotheses.jsonl")})
    assert scores[1]["recordings"] == scores[0]["recordings"] - 1
    assert scores[1]["words"]["units"] == scores[0]["words"]["units"] - lines[0][heard_id]["words"]
    assert scores[1]["wer"] == pytest.approx(
        sum(line["word_errors"] for key, line in lines[0].items() if key != heard_id) / scores[1]["words"]["units"]
    )
    assert scores[0]["without_transcript"] == [] and scores[1]["without_transcript"] == [silent]
    assert lines[1][silent]["skipped"] and lines[1][silent]["reason"] == "no transcript"
    assert f"skipped 1 recordings: {silent}" in capsys.readouterr().out


def test_recordings_that_cannot_be_listed_are_counted_and_named(run, heard, tmp_path, capsys):
    """By evaluate and by ngram. Files of other kinds are no recordings."""
    some = pathlib.Path(shutil.copytree(heard, tmp_path / "some"))
    (some / "damaged.wav").write_bytes(b"nothing")
    (some / "notes.txt").write_text("no audio")
    flags = ["--run", str(run), "--root", str(some), "--out"]
    for command, out in ((evaluate, tmp_path / "out"), (ngram, tmp_path / "lm.arpa")):
        assert command.main([*flags, str(out)]) == 0
        report = capsys.readouterr().out
        assert "skipped 1:\n  1 x " in report and "damaged.wav" in report and "notes" not in report
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["not_listed"] == 1
    last = read_lines(tmp_path / "out" / "hypotheses.jsonl")[-1]
    assert last["skipped"] and last["path"] == str(some / "damaged.wav") and last["reason"]


def test_nothing_left_to_score_or_to_learn_tells_all_of_it(run, heard, tmp_path):
    shutil.copy(next(heard.rglob("*.flac")), tmp_path / "a.flac")
    (tmp_path / "x.trans.txt").write_bytes(b"a caf\xe9\n")
    flags = ["--run", str(run), "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    for command, message in ((evaluate, "no recording has a transcript"), (ngram, "no word to build")):
        with pytest.raises(UserError, match=rf"(?s){message}.*skipped.*x\.trans\.txt:1"):
            command.main(flags)


def test_recordings_transcribed_together_are_those_transcribed_one_by_one(run, heard):
    opened, source = recognizer.open_recognizer(run), open_source("folder", heard)
    together = dict(recognizer.log_probs(opened, source))
    assert len(together) == len(source.index) > 4
    for row in range(4):
        alone = dict(recognizer.log_probs(opened, subset(source, np.array([row]))))[0]
        np.testing.assert_allclose(together[row], alone, atol=1e-4)
        assert greedy(together[row]) == greedy(alone)
        np.testing.assert_allclose(np.exp(alone).sum(axis=1), 1, atol=1e-5)


def test_own_files_are_transcribed_and_bad_ones_named(run, heard, tmp_path, capsys):
    flac = sorted(heard.rglob("*.flac"))
    folder = tmp_path / "talks"
    folder.mkdir()
    shutil.copy(flac[0], folder / "one.flac")
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    out = tmp_path / "text.jsonl"
    assert transcribe.main(["--run", str(run), "--out", str(out), str(folder), str(flac[1])]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and "broken.wav" in said.err and "2 recordings" in said.err
    lines = read_lines(out)
    assert {line["path"] for line in lines} == {str(folder / "one.flac"), str(flac[1])}
    assert f"{lines[0]['path']}\t{lines[0]['text']}" in said.out
    with pytest.raises(UserError, match="does not exist"):
        transcribe.main(["--run", str(run), str(tmp_path / "none.wav")])


def test_transcribe_lists_folders_as_training_does(tmp_path):
    """It follows links, takes no folder and no resource file for audio, and names what it cannot enter."""
    import soundfile

    for place in ("root/a.wav", "elsewhere/b.wav", "root/x.wav/c.wav"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / place, np.linspace(-0.5, 0.5, 16000), 16000)
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "._a.wav").write_bytes(b"\0\5\x16\7")
    (root / "notes.txt").write_text("notes")
    (root / "x.trans.txt").write_bytes("b \u00c8\n".encode("latin-1"))
    (root / "self").symlink_to(root / "self")
    source, failed = transcribe.open_files([root, root / "a.wav"])
    names = [str(path).removeprefix(f"{root}/") for path in source.index.paths]
    assert names == ["a.wav", "link/b.wav", "x.wav/c.wav", "a.wav"]
    assert [(skip.path, skip.kind) for skip in failed] == [(str(root / "self"), "unreadable directory entry")]


def test_long_recording_is_cut_into_pieces_of_bounded_length(run, tmp_path, capsys, monkeypatch):
    import soundfile

    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "long.wav", rng.normal(size=16_000 * 100).astype(np.float32) * 0.1, 16_000)
    lengths, pieces = [], encode.Pieces
    spy = lambda *args, **options: lengths.append(made := pieces(*args, **options)) or made
    monkeypatch.setattr(encode, "Pieces", spy)
    flags = ["--run", str(run), "--max-seconds", "8", "--margin-seconds", "1", str(tmp_path / "long.wav")]
    assert transcribe.main(flags) == 0
    assert lengths[0].index.num_samples.max() <= 8.1 * 16_000 and len(lengths[0].rows) > 15


def test_mistakes_are_named(run, heard, arpa, tmp_path):
    flags = ["--root", str(heard), "--out", str(tmp_path / "out")]
    (tmp_path / "config.json").write_text("{}")  # of a run that writes no text
    for path, word in (
        (tmp_path, "writes no text"),
        (heard, "not the folder of a run"),
        (tmp_path / "no", "not exist"),
    ):
        with pytest.raises(UserError, match=word):
            evaluate.main(["--run", str(path), *flags])
    silent = tmp_path / "silent"
    silent.mkdir()
    shutil.copy(next(heard.rglob("*.flac")), silent / "a.flac")
    with pytest.raises(UserError, match="no recording has a transcript"):
        evaluate.main(["--run", str(run), "--root", str(silent), "--out", str(tmp_path / "out")])
    (tmp_path / "lexicon.txt").write_text("قال\n", encoding="utf-8")
    with pytest.raises(UserError, match="none of its 1 words"):
        evaluate.main(["--run", str(run), *flags, "--lexicon", str(tmp_path / "lexicon.txt")])
    (tmp_path / "lm.arpa").write_text("hello\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lm.arpa.*ARPA"):
        evaluate.main(["--run", str(run), *flags, "--lm", str(tmp_path / "lm.arpa")])
