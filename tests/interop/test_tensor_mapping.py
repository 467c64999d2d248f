"""Laws of mapping tensors: layouts invert each other, layers are stacked, and no tensor is skipped silently."""

from __future__ import annotations

import json

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load
from w2v_jax.core.tree import by_path, nest
from w2v_jax.inference.run import open_run
from w2v_jax.interop import tensor_mapping
from w2v_jax.interop.tensor_mapping import (
    LAYOUTS,
    NAMES_SHOWN,
    Imported,
    dense_pairs,
    export_tensors,
    import_tensors,
    norm_pairs,
)

SHAPES = {  # (theirs, ours) of each layout
    "same": ((5,), (5,)),
    "transposed": ((2, 3, 4), (4, 3, 2)),
    "per tap": ((1, 1, 4), (4,)),
    "codebook": ((1, 6, 4), (2, 3, 4)),
    "entries": ((3, 2, 4), (2, 3, 4)),
    "grouped": ((6, 4, 1), (2, 4, 3)),
    "steps": ((5, 4, 1, 3), (3, 5, 4)),
    "per head": ((1, 4, 1, 1), (4,)),
}
PAIRS = [*dense_pairs("head", "proj"), *(p for i in (0, 1) for p in norm_pairs("layers/norm", f"layers.{i}.norm", i))]


def tensors():
    rng = np.random.default_rng(0)
    found = {"proj.weight": rng.normal(size=(2, 3)), "proj.bias": rng.normal(size=2)}
    found |= {f"layers.{i}.norm.{name}": rng.normal(size=4) for i in (0, 1) for name in ("weight", "bias")}
    return {name: x.astype(np.float32) for name, x in found.items()}


@pytest.fixture
def shapes(monkeypatch):
    """The model that PAIRS are of, in the place of a method's."""
    found = {"head/kernel": (3, 2), "head/bias": (2,), "layers/norm/scale": (2, 4), "layers/norm/bias": (2, 4)}
    monkeypatch.setattr(tensor_mapping, "parameter_shapes", lambda config: found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_takes_their_shape_to_ours_and_back(layout):
    theirs, ours = SHAPES[layout]
    to_ours, to_theirs = LAYOUTS[layout]
    given = np.random.default_rng(0).normal(size=theirs)
    assert to_ours(given, ours).shape == ours
    np.testing.assert_array_equal(to_theirs(to_ours(given, ours)), given)


def test_a_grouped_convolution_keeps_the_outputs_of_a_group_together():
    """Output o of group g reads the inputs of group g alone."""
    theirs = np.random.default_rng(0).normal(size=(6, 4, 1))  # 2 groups of 3 outputs
    ours = LAYOUTS["grouped"][0](theirs, (2, 4, 3))
    for group in (0, 1):
        np.testing.assert_array_equal(ours[group], theirs[3 * group : 3 * group + 3, :, 0].T)


def test_layers_are_stacked_and_tensors_come_back_as_they_were(shapes):
    given = tensors()
    params, table = import_tensors(given, PAIRS, None, source="x")
    np.testing.assert_array_equal(params["layers"]["norm"]["scale"][1], given["layers.1.norm.weight"])
    np.testing.assert_array_equal(params["head"]["kernel"], given["proj.weight"].T)
    assert {row[0] for row in table} == given.keys()
    assert ("proj.weight", "head/kernel", (2, 3), "float32") in table
    back = export_tensors(params, PAIRS)
    assert back.keys() == given.keys() and all(x.flags.c_contiguous for x in back.values())
    for name, array in given.items():
        np.testing.assert_array_equal(back[name], array)


def test_every_tensor_that_does_not_fit_is_named_in_one_error(shapes):
    given = tensors() | {"mystery": np.ones(3), "proj.weight": np.ones((2, 4))}
    del given["layers.1.norm.bias"]
    given["proj.bias"][1] = np.inf
    with pytest.raises(UserError) as caught:
        import_tensors(given, PAIRS, None, source="x.pt")
    assert str(caught.value).splitlines() == [
        "x.pt does not match the model; nothing was written:",
        "  missing (1):",
        "    layers.1.norm.bias",
        "  unexpected (1):",
        "    mystery",
        "  of another shape (1):",
        "    proj.weight has shape (2, 4), but the settings require (2, 3)",
        "  with NaN or infinity (1):",
        "    proj.bias",
    ]


def test_long_lists_of_tensors_are_cut(shapes):
    given = tensors() | {f"extra{i:02d}": np.ones(1) for i in range(NAMES_SHOWN + 3)}
    with pytest.raises(UserError, match=r"unexpected \(15\):[\s\S]*extra11\n    and 3 more$"):
        import_tensors(given, PAIRS, None, source="x")


def test_a_parameter_that_the_other_format_lacks_is_named(shapes):
    params, _ = import_tensors(tensors(), PAIRS, None, source="x")
    with pytest.raises(UserError, match=r"no tensor for these parameters:\n    head/bias$"):
        export_tensors(params, dense_pairs("head", "proj", bias=False) + PAIRS[2:])


def test_parameters_of_transformer_layers_have_the_layer_first():
    config = load("configs/w2v2_base.py:tiny")
    shapes = tensor_mapping.parameter_shapes(config)
    width = config.encoder.width
    assert shapes["encoder/transformer/layers/query/kernel"] == (config.encoder.layers, width, width)
    assert shapes["encoder/mask_vector"] == (width,)


def test_a_written_run_opens_and_tells_where_it_comes_from(tmp_path):
    config = load("configs/wav2vec_small.py:tiny")
    shapes = tensor_mapping.parameter_shapes(config)
    params = nest({path: np.full(shape, 0.5, np.float32) for path, shape in shapes.items()})
    table = [("a.weight", "a/kernel", (2, 3), "float16")]
    found = Imported(config, params, None, ["a note"], table)
    tensor_mapping.write_run(tmp_path / "run", found, {"files": {"x.pt": "abc"}})
    run = open_run(tmp_path / "run")
    assert run.step == 0 and by_path(run.params).keys() == shapes.keys()
    assert all((x == 0.5).all() for x in by_path(run.params).values())
    told = json.loads((tmp_path / "run" / "imported.json").read_text())
    row = {"theirs": "a.weight", "ours": "a/kernel", "shape": [2, 3], "dtype": "float16"}
    assert told == {"files": {"x.pt": "abc"}, "notes": ["a note"], "tensors": [row]}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
