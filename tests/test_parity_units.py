"""Units of a HuBERT of others are those of its own recipe: fairseq's simple_kmeans, step by step in PyTorch and NumPy.

The model is made by transformers, the k-means by scikit-learn and joblib; both are read from their files.
"""

from __future__ import annotations

import json
import pathlib

import joblib
import numpy as np
import pytest

from w2v_jax import convert, units
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.io.feature_files import read_metadata, read_parts
from w2v_jax.discrete import frame_features

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch, as the extra parity does")
transformers = pytest.importorskip("transformers", reason="compares with transformers, as the extra parity does")

pytestmark = pytest.mark.parity
CHUNK = 1_600_000
"""Samples that the recipe feeds to the model at once (dump_hubert_feature.py)."""
LAYER, CLUSTERS = 2, 30
SMALL = dict(conv_dim=[16] * 7, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32)
SMALL |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
BASE = dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
CASES = {"base": (BASE, False, 48_000), "large": (LARGE, True, 48_000), "whole": (BASE, False, CHUNK)}
"""(kind of model, whether recordings are normalised, samples of a chunk); with short chunks it takes seconds."""


def recorded(folder: pathlib.Path, chunk: int) -> list[str]:
    """Writes noise whose colour and loudness change over time, as 16-bit files; one is longer than two chunks."""
    import soundfile

    rng, samples = np.random.default_rng(0), [37_000, 14_500, int(2.07 * chunk), 45_000]
    for name, count in zip("abcd", samples):
        noise = rng.normal(size=count)
        time = np.arange(len(noise)) / SAMPLE_RATE
        colour = np.sin(2 * np.pi * (200 + 150 * np.sin(7 * time)) * time) * (1 + np.sin(3 * time))
        soundfile.write(folder / f"{name}.wav", 0.1 * noise + 0.2 * colour, SAMPLE_RATE, subtype="PCM_16")
    return list("abcd")


def dumped(model, path, *, normalize: bool, chunk: int) -> np.ndarray:
    """The features [F D] of layer LAYER of a recording, as dump_hubert_feature.py makes them."""
    import soundfile

    x = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
    pieces = []
    with torch.no_grad():
        if normalize:
            x = torch.nn.functional.layer_norm(x, x.shape)
        for start in range(0, x.shape[1], chunk):
            pieces.append(model(x[:, start : start + chunk], output_hidden_states=True).hidden_states[LAYER])
    return torch.cat(pieces, 1)[0].numpy()


def assigned(x: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(unit, squared distance, how much farther the second centre is) of frames, as dump_km_label.py computes them."""
    distance = np.square(x).sum(1, keepdims=True) - 2 * x @ centers.T + np.square(centers).sum(1)
    two = np.sort(distance, axis=1)[:, :2]
    return distance.argmin(1), two[:, 0], two[:, 1] - two[:, 0]


@pytest.mark.parametrize("case", ["base", "large", pytest.param("whole", marks=pytest.mark.slow)])
def test_units_of_a_hubert_are_those_of_its_own_recipe(tmp_path, monkeypatch, case):
    from sklearn.cluster import MiniBatchKMeans

    kind, normalize, chunk = CASES[case]
    assert frame_features.RECIPE_SAMPLES == CHUNK
    monkeypatch.setattr(frame_features, "RECIPE_SAMPLES", chunk)
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    names = recorded(recordings, chunk)
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig(**SMALL, **kind)).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim > 1 and "conv" not in name:
                x.mul_(8)  # else the features of the frames hardly differ
    model.save_pretrained(tmp_path / "hubert")
    (tmp_path / "hubert" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalize}))
    about = dict(normalize=normalize, chunk=chunk)
    features = {name: dumped(model, recordings / f"{name}.wav", **about) for name in names}
    frames = np.concatenate(list(features.values()))
    fitted = MiniBatchKMeans(CLUSTERS, n_init=3, batch_size=1_000, random_state=0).fit(frames)
    joblib.dump(fitted, tmp_path / "km.bin")

    assert convert.main(["--from", str(tmp_path / "hubert"), "--to", str(tmp_path / "run")]) == 0
    common = ["--run", str(tmp_path / "run"), "--root", str(recordings)]
    centers = ["--centers", str(tmp_path / "km.bin"), "--layer", str(LAYER), "--out", str(tmp_path / "model")]
    assert units.main(["fit", *common, *centers]) == 0
    assert units.main(["label", *common, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "units")]) == 0

    about = read_metadata(tmp_path / "units")
    (margin,), parts = about["margin"], read_parts(tmp_path / "units", about)
    found = {u.id: np.array(part.array[u.first : u.first + u.frames, 0]) for part in parts for u in part.utterances}
    sure, distances = [], []
    for name, x in features.items():
        theirs, distance, gap = assigned(x, fitted.cluster_centers_)
        assert len(found[name]) == len(x), "as many frames: one is lost at each cut of the long recording"
        np.testing.assert_array_equal(found[name][gap > margin], theirs[gap > margin], err_msg=name)
        sure.append(gap > margin)
        distances.append(distance)
    assert np.concatenate(sure).mean() > 0.99 and about["unsure"] <= (~np.concatenate(sure)).sum() + 5
    assert about["inertia"][0] == pytest.approx(np.concatenate(distances).mean(), rel=1e-3)
    assert len(set(np.concatenate(list(found.values())))) > CLUSTERS // 2
