"""`evaluate` from end to end on a tiny recogniser."""

from __future__ import annotations

import json
import shutil
import weakref

import numpy as np
import pytest
from commands import assert_only_the_damaged_is_named, read_lines, with_a_damaged_file

from w2v_jax import evaluate
from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.decoding.ngram_lm import read_arpa


def test_evaluation_writes_what_jiwer_counts(ctc_run, heard, tmp_path, capsys):
    jiwer = pytest.importorskip("jiwer")
    assert evaluate.main(["--run", str(ctc_run), "--root", str(heard), "--out", str(tmp_path)]) == 0
    lines = read_lines(tmp_path / "hypotheses.jsonl")
    index = open_source("folder", heard).index
    assert [line["id"] for line in lines] == index.ids.tolist()
    assert [line["reference"] for line in lines] == index.transcripts.tolist()
    pairs = [line["reference"] for line in lines], [line["hypothesis"] for line in lines]
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["wer"] == pytest.approx(jiwer.wer(*pairs)) and scores["cer"] == pytest.approx(jiwer.cer(*pairs))
    assert f"{scores['wer']:.2%}" in capsys.readouterr().out
    assert (tmp_path / "alignments.txt").read_text(encoding="utf-8").count("REF:") == len(index)


def test_tuning_keeps_the_best_pair_and_all_that_were_tried(ctc_run, heard, arpa, tmp_path):
    flags = ["--run", str(ctc_run), "--root", str(heard), "--out", str(tmp_path), "--lm", str(arpa), "--beam", "3"]
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
def test_scoring_holds_the_log_probabilities_of_few_recordings_at_once(
    ctc_run, heard, arpa, tmp_path, monkeypatch, tune
):
    made, alive = [], []

    def watched(recognizer, source, **law):
        for row, frames in misheard(recognizer, source):
            made.append(weakref.ref(frames))
            yield row, frames
            del frames
            alive.append(sum(each() is not None for each in made))

    monkeypatch.setattr(evaluate, "log_probs", watched)
    flags = ["--run", str(ctc_run), "--root", str(heard), "--lm", str(arpa), "--beam", "2", "--out", str(tmp_path)]
    assert evaluate.main([*flags, "--tune", tune]) == 0
    assert len(alive) > 4 and max(alive) <= 2
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".jsonl", ".txt")]


def test_flashlight_gives_what_the_own_search_gives(ctc_run, heard, arpa, tmp_path, monkeypatch):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed (extra `decode`)")
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("\n".join(f"{word} spelling" for word in sorted(read_arpa(arpa).words)), encoding="utf-8")
    flags = ["--run", str(ctc_run), "--root", str(heard), "--lm", str(arpa), "--lexicon", str(lexicon), "--beam", "200"]
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


def test_recordings_without_a_transcript_are_left_out_of_the_rates(ctc_run, heard, tmp_path, capsys):
    some = tmp_path / "some"
    shutil.copytree(heard, some)
    texts = min(some.rglob("*.trans.txt"))
    first, *rest = texts.read_text(encoding="utf-8").splitlines(keepends=True)
    texts.write_text("".join(rest), encoding="utf-8")
    heard_id, silent = first.split()[0], "/".join(texts.parts[-3:-1] + (first.split()[0],))  # without text, the path
    scores, lines = [], []
    for root in (heard, some):
        assert evaluate.main(["--run", str(ctc_run), "--root", str(root), "--out", str(tmp_path / "out")]) == 0
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


def test_recordings_that_cannot_be_listed_are_counted_and_named(ctc_run, heard, tmp_path, capsys):
    some = with_a_damaged_file(heard, tmp_path / "some")
    assert evaluate.main(["--run", str(ctc_run), "--root", str(some), "--out", str(tmp_path / "out")]) == 0
    assert_only_the_damaged_is_named(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["not_listed"] == 1
    last = read_lines(tmp_path / "out" / "hypotheses.jsonl")[-1]
    assert last["skipped"] and last["path"] == str(some / "damaged.wav") and last["reason"]


def test_nothing_left_to_score_tells_all_of_it(ctc_run, heard, tmp_path):
    shutil.copy(next(heard.rglob("*.flac")), tmp_path / "a.flac")
    (tmp_path / "x.trans.txt").write_bytes(b"a caf\xe9\n")
    with pytest.raises(UserError, match=r"(?s)no recording has a transcript.*skipped.*x\.trans\.txt:1"):
        evaluate.main(["--run", str(ctc_run), "--root", str(tmp_path), "--out", str(tmp_path / "out")])


def test_mistakes_are_named(ctc_run, heard, arpa, tmp_path):
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
        evaluate.main(["--run", str(ctc_run), "--root", str(silent), "--out", str(tmp_path / "out")])
    (tmp_path / "lexicon.txt").write_text("قال\n", encoding="utf-8")
    with pytest.raises(UserError, match="none of its 1 words"):
        evaluate.main(["--run", str(ctc_run), *flags, "--lexicon", str(tmp_path / "lexicon.txt")])
    (tmp_path / "lm.arpa").write_text("hello\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lm.arpa.*ARPA"):
        evaluate.main(["--run", str(ctc_run), *flags, "--lm", str(tmp_path / "lm.arpa")])
