"""Laws of indices of faiss: their centres as faiss has them, written here byte by byte as faiss writes them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.interop.centers_file import read_centers

RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(5, 3)).astype(np.float32)
TURN = np.linalg.qr(RNG.normal(size=(4, 3)))[0].T.astype(np.float32)  # [3 4], rows orthonormal


def header(kind: str, width: int, count: int, *, trained: bool = True, metric: int = 1) -> bytes:
    return kind.encode() + struct.pack("<iqqq?i", width, count, 1 << 20, 1 << 20, trained, metric)


def vector(x: np.ndarray) -> bytes:
    return struct.pack("<Q", x.size) + x.tobytes()


def flat(centers: np.ndarray, **about) -> bytes:
    return header("IxF2", *centers.shape[::-1], **about) + vector(centers)


def inverted(quantizer: bytes, *, lists: int = 5, width: int = 3, kind: str = "IwFl") -> bytes:
    """An inverted file without a vector: what follows its quantizer is not read."""
    return header(kind, width, 0) + struct.pack("<QQ", lists, 1) + quantizer + b"lists, as they are"


def graph(centers: np.ndarray) -> bytes:
    """An HNSW graph whose links are made up."""
    arrays = [np.zeros(2), *(np.zeros(n, np.int32) for n in (3, 5)), np.zeros(6, np.int64), np.zeros(7, np.int32)]
    return (
        header("IHNf", *centers.shape[::-1])
        + b"".join(map(vector, arrays))
        + struct.pack("<5i", *[0] * 5)
        + flat(centers)
    )


def turned(inside: bytes, matrix: np.ndarray = TURN, bias: np.ndarray | None = None) -> bytes:
    narrow, wide = matrix.shape
    about = (
        b"LTra" + struct.pack("<?", bias is not None) + vector(matrix) + vector(np.zeros(0) if bias is None else bias)
    )
    return header("IxPT", wide, 0) + struct.pack("<i", 1) + about + struct.pack("<ii?", wide, narrow, True) + inside


def read(tmp_path, content: bytes) -> np.ndarray:
    (tmp_path / "km.index").write_bytes(content)
    return read_centers(tmp_path / "km.index")


@pytest.mark.parametrize("content", [flat(CENTERS), inverted(flat(CENTERS)), inverted(graph(CENTERS), kind="IwPQ")])
def test_centres_are_the_vectors_of_a_flat_index_or_those_of_a_quantizer(tmp_path, content):
    found = read(tmp_path, content)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, CENTERS)


@pytest.mark.parametrize("bias", [None, np.array([1.0, -2.0, 0.5], np.float32)])
def test_a_transform_is_taken_back_so_that_the_nearest_centre_stays_the_nearest(tmp_path, bias):
    found = read(tmp_path, turned(inverted(graph(CENTERS), kind="IwPf"), bias=bias))
    x = RNG.normal(size=(500, 4)).astype(np.float32)
    inside = x @ TURN.T + (0 if bias is None else bias)
    theirs = np.square(inside[:, None] - CENTERS).sum(axis=-1)
    ours = np.square(x[:, None] - found).sum(axis=-1)
    np.testing.assert_array_equal(ours.argmin(axis=1), theirs.argmin(axis=1))
    np.testing.assert_allclose(ours - ours.min(axis=1)[:, None], theirs - theirs.min(axis=1)[:, None], atol=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("IxPq", 3, 5), "of the kind IxPq; centres are read from IndexFlatL2"),
        (header("IxFI", 3, 5, metric=0), "whose metric is 0; units are those of the nearest centre"),
        (flat(CENTERS, metric=0), "whose metric is 0"),
        (flat(CENTERS, trained=False), "5 vectors of 3 numbers that was never trained"),
        (header("IxF2", 3, 5) + vector(CENTERS[:4]), "5 vectors of 3 numbers have 12: the file is damaged"),
        (flat(CENTERS)[:-1], "truncated"),
        (header("IxF2", 3, 1 << 40) + struct.pack("<Q", 3 << 40), "truncated"),
        (inverted(flat(CENTERS), lists=6), r"centres \[5, 3\] where \[6, 3\] are due"),
        (inverted(flat(CENTERS), width=4), r"where \[5, 4\] are due"),
        (turned(flat(CENTERS), 2 * TURN), "is no rotation"),
        (turned(flat(CENTERS), TURN[:2]), "are due: the file is damaged"),
        (header("IxPT", 3, 0) + struct.pack("<i", 1) + b"Pcam", "a transform of the kind Pcam"),
        (flat(np.zeros((0, 3), np.float32)), "not an array of"),
        (flat(CENTERS * np.float32(np.nan)), "not finite"),
    ],
)
def test_other_and_damaged_indices_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"km\.index: .*{message}"):
        read(tmp_path, content)


@pytest.mark.parity
def test_files_of_faiss_are_read_as_faiss_reads_them(tmp_path):
    """Byte by byte as above; and the units that faiss itself finds, of the kinds that HuBERTs were released with."""
    faiss = pytest.importorskip("faiss", reason="compares with faiss: pip install faiss-cpu, as the extra parity does")
    faiss.omp_set_num_threads(1)  # more of them wait for each other
    x = RNG.normal(size=(1_000, 16)).astype(np.float32)
    index = faiss.IndexFlatL2(3)
    index.add(CENTERS)
    faiss.write_index(index, str(tmp_path / "km.index"))
    assert (tmp_path / "km.index").read_bytes() == flat(CENTERS)

    fit = faiss.Kmeans(16, 20, niter=3, seed=1)
    fit.train(x)
    faiss.write_index(fit.index, str(tmp_path / "km.index"))
    np.testing.assert_array_equal(read_centers(tmp_path / "km.index"), fit.centroids)
    for name in (
        "IVF20,Flat",
        "IVF20_HNSW8,PQ4x4fs",
        "OPQ4_8,IVF20_HNSW8,PQ4x4fsr",
        "OPQ4_8,IVF20,PQ4",
        "RR8,IVF20,SQ8",
    ):
        index = faiss.index_factory(16, name)
        index.train(x)
        index.add(x)
        faiss.write_index(index, str(tmp_path / "km.index"))
        found = read_centers(tmp_path / "km.index")
        inside = faiss.downcast_index(index)
        inner = x
        if isinstance(inside, faiss.IndexPreTransform):
            inner, inside = inside.chain.at(0).apply(x), faiss.extract_index_ivf(inside)
        quantizer = faiss.downcast_index(inside.quantizer)
        if isinstance(quantizer, faiss.IndexHNSW):
            quantizer.hnsw.efSearch = 64  # so that its search is exact
        _, units = quantizer.search(inner, 1)
        distance = np.square(x[:, None] - found).sum(axis=-1)
        assert found.shape == (20, 16) and (distance.argmin(axis=1) == units[:, 0]).mean() > 0.995, name
