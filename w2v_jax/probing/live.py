"""A probe of a model while it trains."""

from __future__ import annotations

import dataclasses
import pathlib

import flax.linen as nn
import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, changed
from w2v_jax.core.types import PyTree
from w2v_jax.data.index import WAVE, Form
from w2v_jax.inference.encode import check_form
from w2v_jax.inference.run import Run
from w2v_jax.probing.inputs import Input, log_mel_input
from w2v_jax.probing.labels import LabelledPart, open_parts
from w2v_jax.probing.measure import measure
from w2v_jax.training import sharding


class LiveProbe:
    """Measures the context features of a model in training. Labels and the log-mel accuracy are computed once.

    Reads config.probe: root, test_root, label and hours. Every process makes one and calls `measure` at the same steps.
    Process 0 does the work, on one device.
    """

    def __init__(self, config: Config, form: Form):
        settings = config.probe
        config = changed(config, {"encoder.padding_aware": True}, skip_missing=True)
        self.name, self.log_mel_accuracy = f"probe_{settings.label}", {}
        self.parts: tuple[LabelledPart, LabelledPart] | None = None
        self.run = Run(
            config,
            methods.load(config),
            params={},
            extra={},
            step=0,
            digest="",
            path=pathlib.Path("the run"),
            form=form,
        )
        if not settings.root:
            raise UserError("probe.every is set, but probe.root names no recordings; set it to a folder with labels")
        if jax.process_index() == 0:
            self.parts = open_parts(
                config.data.name, settings.root, settings.test_root, what=settings.label, hours=settings.hours
            )
            check_form(self.run, self.parts[0].source)
            if form == WAVE:
                self.log_mel_accuracy = {"probe_log-mel": self._accuracy(log_mel_input())}

    def measure(self, params: PyTree, extra: PyTree, step: int) -> dict[str, float]:
        """{"probe_LABEL": accuracy, "probe_log-mel": accuracy of log-mel features}; empty on processes other than 0."""
        if jax.process_count() > 1:
            params, extra = multihost_utils.process_allgather((params, extra), tiled=True)
        if self.parts is None:
            return {}
        params, extra = jax.device_get((params, extra))
        run = dataclasses.replace(self.run, params=params, extra=extra, step=step)  # shares the compiled functions
        return {self.name: self._accuracy(Input("the run", run, "context"))} | self.log_mel_accuracy

    def _accuracy(self, features: Input) -> float:
        assert self.parts is not None
        mesh = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, (AxisType.Auto,) * 3, devices=jax.local_devices()[:1])
        with jax.set_mesh(mesh), nn.logical_axis_rules(()):
            return measure(features, *self.parts, segments=[1])[0]["accuracy"]
