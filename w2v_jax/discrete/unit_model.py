"""A k-means model of speech units in a folder: its centres, and what they are centres of.

MODEL/centers.npy   [G V E] float32: G codebooks of V centres; each reads its own E of the G * E features, in order
MODEL/units.json    features (mfcc, hidden, context, local), layer, and method, digest and step of the run; hop and
                    field of a frame; settings of the fit; inertia per frame [G], counts [G V] and entropy [G] of units;
                    "complete", which is true once the fit has ended
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import whole_file, write_whole
from w2v_jax.data.code_vocabulary import entropy_of
from w2v_jax.discrete.frame_features import FrameFeatures, layer_features, mfcc_features
from w2v_jax.inference.run import Run

ABOUT, CENTERS = "units.json", "centers.npy"
SURE_GAP = 1e-4
"""The gap between the two nearest distances, as a share of the inertia per frame, above which a unit is sure.

Batches and padding changed gaps by less than 1e-5 of it (measured on CPU, on MFCC and on layers of small models).
"""
IDENTITY = ("features", "layer", "method", "run", "step")


@dataclasses.dataclass(frozen=True, eq=False)
class UnitModel:
    """centers [G V E], and `about`, the content of units.json."""

    centers: np.ndarray
    about: dict[str, Any]

    __repr__ = short_repr

    @property
    def groups(self) -> int:
        return self.centers.shape[0]

    @property
    def codes(self) -> int:
        return self.centers.shape[1]

    @property
    def width(self) -> int:
        return self.centers.shape[0] * self.centers.shape[2]

    @property
    def digest(self) -> str:
        """16 hex digits that name the centres and the features that they are centres of."""
        identity = json.dumps({key: self.about[key] for key in IDENTITY}, sort_keys=True)
        content = identity.encode() + repr(self.centers.shape).encode() + np.ascontiguousarray(self.centers).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def inertia_per_frame(self) -> float:
        """The mean squared distance of the frames of the fit, summed over codebooks."""
        return float(sum(self.about["inertia"]))

    @property
    def margin(self) -> list[float]:
        """The gaps [G] between the two nearest distances above which a unit is the same alone and in any batch."""
        return [SURE_GAP * inertia for inertia in self.about["inertia"]]

    def features(self, run: Run | None = None, *, cut: str = "recipe") -> FrameFeatures:
        """The features that the model reads. Raises UserError unless `run` is the one that it was fitted to."""
        about = self.about
        if about["features"] == "mfcc":
            if run is not None:
                raise UserError(f"the model reads MFCC and needs no run; leave --run {run.path} out")
            return mfcc_features()
        made_of = f"{about['features']} {'' if about['layer'] is None else about['layer']}".strip()
        if run is None:
            raise UserError(
                f"the model reads {made_of} of a run of {about['method']} (step {about['step']}, {about['run']}): "
                "name it by --run RUN"
            )
        if run.digest != about["run"]:
            raise UserError(
                f"the model was fitted to {made_of} of other parameters ({about['method']}, step {about['step']}, "
                f"{about['run']}) than those of {run.path} ({run.config.method}, step {run.step}, {run.digest})"
            )
        return layer_features(run, about["layer"], key=about["features"], cut=cut)

    def save(self, folder: pathlib.Path) -> None:
        """Writes centers.npy and then units.json, each whole or not at all."""
        with whole_file(folder / CENTERS) as partial, open(partial, "wb") as file:
            np.save(file, np.ascontiguousarray(self.centers, np.float32))
        write_whole(folder / ABOUT, json.dumps(self.about | {"digest": self.digest}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: pathlib.Path) -> UnitModel:
        """The model in a folder. Raises UserError where there is none, or where it is unfinished or damaged."""
        about = read_about(folder)
        if about is None:
            raise UserError(f"{folder} holds no k-means model, as python -m w2v_jax.units fit makes it: no {ABOUT}")
        if not about.get("complete"):
            raise UserError(f"{folder}: the fit is not finished; give its command again, it goes on from there")
        try:
            model = cls(np.load(folder / CENTERS), about)
            is_whole = model.centers.ndim == 3 and model.digest == about["digest"]
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{folder / CENTERS} is missing or damaged ({error}); fit the model again") from None
        if not is_whole:
            raise UserError(f"{folder}: {CENTERS} is not what {ABOUT} describes; fit the model again")
        return model


def read_about(folder: pathlib.Path) -> dict[str, Any] | None:
    """The content of units.json, also of an unfinished model; None where there is no such file. Raises UserError."""
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ABOUT} is not readable ({error}); fit the model again") from None


def usage(counts: np.ndarray) -> dict[str, Any]:
    """How evenly units are used, from counts [G V]: clusters in use [G], entropy in nats [G], perplexity [G]."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy, in_use = entropy_of(share, axis=1), (counts > 0).sum(axis=1)
    return dict(in_use=in_use.tolist(), entropy=entropy.tolist(), perplexity=np.exp(entropy).tolist())
