"""The other side of the bench computes what fairseq does: its golden losses, and ours from the same draws."""

from __future__ import annotations

import numpy as np
import pytest
from test_golden_wav2vec import FILES, Case

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load
from w2v_jax.profiling import torch_models
from w2v_jax.profiling.random_batch import random_batch

pytestmark = pytest.mark.parity
SAME = [path for path in FILES if "cross" not in path.stem]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")


@pytest.mark.parametrize("path", SAME, ids=lambda path: path.stem)
def test_formulation_in_torch_gives_the_golden_loss(torch, path, monkeypatch):
    case = Case(path, "auto")
    config, gumbel = case.config, case.arrays.get("in/gumbel_noise")
    config.method = "vq_wav2vec" if case.quantizes else "wav2vec"
    if case.quantizes:
        config.loss.diversity_weight = 0.0
    model, loss = torch_models.wav2vec(torch, config)
    params = {k.removeprefix("param/"): v for k, v in case.arrays.items() if k.startswith("param/")}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {name: array.shape for name, array in params.items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})

    def recorded(logits, tau, hard):
        soft = ((logits + torch.from_numpy(gumbel)) / float(case.tau)).softmax(-1)
        return torch.nn.functional.one_hot(soft.argmax(-1), logits.shape[-1]).float()

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", recorded)
    index = torch.from_numpy(case.distractors.transpose(0, 2, 1).copy()).long()
    found, _ = loss({"wave": torch.from_numpy(case.arrays["in/source"])}, index)
    expected = case.arrays["out/loss_sum" if gumbel is None else "log/loss_0"] / case.arrays["out/sample_size"]
    assert found.item() == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["cpc", "wav2vec_large", "vq_wav2vec", "vq_wav2vec:kmeans", "bert_codes_base"])
def test_both_sides_have_as_many_parameters_in_the_published_sizes(torch, name):
    import jax

    from w2v_jax import methods
    from w2v_jax.training import sharding

    stem, _, variant = name.partition(":")
    config = load(f"configs/{stem}.py:{variant}".rstrip(":"), [("data.unit_seconds", "2.56")])
    build = {"cpc": torch_models.cpc, "bert_codes": torch_models.bert}.get(config.method, torch_models.wav2vec)
    with torch.device("meta"):
        theirs = {name: p.numel() for name, p in build(torch, config)[0].named_parameters()}
    batch = random_batch(config, 2, 20_480)
    params, _ = jax.eval_shape(lambda: methods.load(config).init(jax.random.key(0), batch))
    ours = sum(x.size for x in jax.tree.leaves(sharding.bare(params)))
    if config.method == "bert_codes":  # positions from 1 on, and types of sentences
        ours += 2 * config.encoder.width
    assert sum(theirs.values()) == ours


def test_what_the_reference_lacks_is_refused(torch):
    for name, flag in (("cpc.py", "loss.negatives_from=others"), ("wav2vec_large.py", "loss.cross_negatives=3")):
        key, _, value = flag.partition("=")
        config = load(f"configs/{name}:tiny", [(key, value)])
        build = torch_models.cpc if config.method == "cpc" else torch_models.wav2vec
        with pytest.raises(UserError, match="PyTorch side"):
            build(torch, config)
    config = load("configs/wav2vec_large.py:tiny")
    _, loss = torch_models.wav2vec(torch, config)
    with pytest.raises(UserError, match="no frame"):
        loss({"wave": torch.from_numpy(np.zeros((1, 500), np.float32))})
