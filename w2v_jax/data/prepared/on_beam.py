"""Makes shards on Apache Beam: on one machine, or on the workers of Dataflow, Flink or Spark.

The pipeline has one element for each shard that is missing. A worker makes a shard as a process of `prepare` does, so
that the bytes are the same. All workers must see the recordings and the folder of the corpus at the same paths.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from w2v_jax.core.cli import UserError, needing
from w2v_jax.data.prepared.shard_files import SUMMARY, is_finished, write_shard
from w2v_jax.data.prepared.shard_jobs import Run


def on_beam(arguments: Sequence[str]) -> Run:
    """A `Run` on Beam. arguments: those of its pipeline, e.g. --runner=FlinkRunner. Raises UserError without Beam."""
    with needing(
        "--beam needs Apache Beam ({error}), which wants an environment of its own: "
        'pip install "w2v-jax[beam]" (docs/prepare.md)'
    ):
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

    def run(folder: pathlib.Path, numbers: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            shards = pipeline | "shards" >> beam.Create(numbers) | "spread" >> beam.Reshuffle()
            _ = shards | "make" >> beam.Map(_make, str(folder))
        for number in numbers:
            if not is_finished(folder, number):
                raise UserError(
                    f"a worker of Beam has made shard {number}, and it is not in {folder}: all workers must see that "
                    "folder, on a shared disk or a mounted bucket"
                )
            yield number, json.loads((folder / SUMMARY.format(number)).read_text(encoding="utf-8"))

    return run


def _make(number: int, folder: str) -> int:
    """Makes a shard on a worker."""
    write_shard(pathlib.Path(folder), number)
    return number
