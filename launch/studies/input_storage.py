"""How fast a training reads the same recordings from each kind of storage, by hours of audio per hour and core.

    python launch/studies/input_storage.py --audio DIR --out runs/storage

DIR is a folder of recordings; those of the first `--hours` are stored once in each of the forms below OUT, as copies.
Then `bench --input-only` reads each of them, in a process of its own. The rates of what is decoded do not depend on the
disk: copies that were just written are in memory, and the rate of reading them is told apart. Measure on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.files import whole_folder
from w2v_jax.profiling.input_stages import NEED

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE = 16_000
CONFIG = ROOT / "configs" / "w2v2_base.py"
Audio = Iterator[tuple[str, np.ndarray]]


class Storage(NamedTuple):
    """A form to store recordings in: the source that reads it, and what writes it into a folder."""

    source: str
    write: Callable[[Audio, pathlib.Path], None]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--audio", required=True, metavar="DIR", help="a folder of recordings")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="where the copies and the results are written")
    add("--hours", type=float, default=1.0, help="hours of audio to store (default 1)")
    add("--runs", type=int, default=5, help="turns of each measurement (default 5)")
    add("--only", nargs="+", choices=STORAGES, default=list(STORAGES), help="these forms alone")
    args = parser.parse_args(argv)
    stored = sum(len(wave) for _, wave in recordings(args.audio, args.hours)) / RATE / 3600
    for name in args.only:
        folder = args.out / name
        if not folder.is_dir():
            with whole_folder(folder) as partial:
                STORAGES[name].write(recordings(args.audio, args.hours), partial)
        result = measured(STORAGES[name].source, folder, args.runs) | {"hours_stored": stored}
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"{name}: {result['hours_per_hour_and_core']:,.0f} hours per hour and core", flush=True)
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.out.glob("*.json"))}
    print("\n".join(table(results)))
    return 0


def recordings(audio: str, hours: float) -> Audio:
    """(id, float32 [T] at 16 kHz) of the first recordings."""
    from w2v_jax.data import open_source

    source, left = open_source("folder", (audio,)), hours * 3600 * RATE
    for row, samples in enumerate(source.index.num_samples.tolist()):
        if left > 0:
            yield f"{row:06d}", source.read(row, 0, samples)
            left -= samples


def measured(source: str, folder: pathlib.Path, runs: int) -> dict[str, Any]:
    """What `bench --input-only --json` prints of a folder, with the bytes that it takes."""
    data = {"name": source, "root": folder, "batch_hours": 8 / 60, "unit_seconds": 30.0, "min_seconds": 0.5}
    data |= {"bucket_seconds": "(3.0,4.0,5.0,6.0,8.0,12.0,15.0)", "device_seconds": 30.0, "eval_share": 0.02}
    flags = [f"--config.data.{key}={value}" for key, value in data.items()]
    command = [sys.executable, "-m", "w2v_jax.bench", f"--config={CONFIG}", "--input-only", "--json", f"--runs={runs}"]
    done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{folder} could not be measured, for the reason above")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return json.loads(done.stdout) | {"bytes_stored": size}


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table, the fastest first."""
    lines = [
        f"| storage | hours per hour and core | cores for {NEED:,} | to soundfile alone | arithmetic | MB per hour |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, result in sorted(results.items(), key=lambda item: -item[1]["hours_per_hour_and_core"]):
        rate = result["hours_per_hour_and_core"]
        stages = ", ".join(f"{stage} {about['share']:.0%}" for stage, about in result["stages"].items())
        beside = f"{result['share_of_bare']:.2f}" if "share_of_bare" in result else ""
        size = result["bytes_stored"] / 1e6 / result["hours_stored"]
        lines.append(f"| {name} | {rate:,.0f} | {NEED / rate:.1f} | {beside} | {stages} | {size:.0f} |")
    return lines


def _files(kind: str, subtype: str | None = None, rate: int = RATE) -> Callable[[Audio, pathlib.Path], None]:
    """What writes a file of a format of libsndfile for each recording."""

    def write(audio: Audio, folder: pathlib.Path) -> None:
        for id, wave in audio:
            (folder / f"{id}.{kind.lower()}").write_bytes(_encoded(wave, kind, subtype, rate=rate))

    return write


def _encoded(wave: np.ndarray, kind: str, subtype: str | None = None, *, rate: int = RATE) -> bytes:
    import soundfile
    import soxr

    memory = io.BytesIO()
    wave = wave if rate == RATE else soxr.resample(wave, RATE, rate)
    soundfile.write(memory, wave.clip(-1, 1), rate, format=kind, subtype=subtype)
    return memory.getvalue()


def _shards(audio: Audio, folder: pathlib.Path) -> None:
    """ArrayRecord of FLAC, as `prepare --shards` makes it."""
    with tempfile.TemporaryDirectory() as scratch:
        _files("FLAC")(audio, pathlib.Path(scratch))
        command = [sys.executable, "-m", "w2v_jax.prepare", "--root", scratch, "--shards", str(folder / "corpus")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _parquet(audio: Audio, folder: pathlib.Path) -> None:
    """FLAC in the layout of Hugging Face's datasets, not compressed a second time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"audio": {"bytes": _encoded(wave, "FLAC"), "path": f"{id}.flac"}} for id, wave in audio]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet", compression="none")


def _tar(audio: Audio, folder: pathlib.Path) -> None:
    """FLAC in a shard of WebDataset."""
    with tarfile.open(folder / "train-00000.tar", "w") as archive:
        for id, wave in audio:
            content = _encoded(wave, "FLAC")
            about = tarfile.TarInfo(f"{id}.flac")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


STORAGES = {
    "flac": Storage("folder", _files("FLAC")),
    "wav": Storage("folder", _files("WAV")),
    "mp3": Storage("folder", _files("MP3")),
    "opus": Storage("folder", _files("OGG", "OPUS")),
    "flac_44_khz": Storage("folder", _files("FLAC", rate=44_100)),
    "arrayrecord": Storage("arrayrecord", _shards),
    "parquet": Storage("parquet", _parquet),
    "webdataset": Storage("webdataset", _tar),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
