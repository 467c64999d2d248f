"""Is a corpus of many files, of which one in a hundred is broken, prepared to the end, and does the report name those?

    python launch/studies/prepare_broken.py --out runs/broken --files 50000

Makes the files (once): short recordings of several formats and rates, an hour-long and a ten-millisecond one, and every
kind of broken file. Then runs `prepare --shards` on them, and compares what it reports with what was broken.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import soundfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPLATES = 24
BROKEN_IN = 100
"""One file in so many is broken."""
BROKEN = "broken.json"
RATE = 16_000


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="where files and corpus are made")
    add("--files", type=int, default=50_000, help="how many files (default 50,000)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes of prepare (default: all cores)")
    args = parser.parse_args(argv)
    if not (args.out / BROKEN).exists():
        broken = make(args.out / "audio", args.files)
        (args.out / BROKEN).write_text(json.dumps(broken))
    broken = json.loads((args.out / BROKEN).read_text())
    command = [sys.executable, "-m", "w2v_jax.prepare", "--root", str(args.out / "audio")]
    command += ["--shards", str(args.out / "corpus"), "--workers", str(args.workers), "--max-bad", "0.02"]
    code = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL).returncode
    if code:
        return code
    report = json.loads((args.out / "corpus" / "report.json").read_text())
    reported = {os.path.relpath(skip["path"], args.out / "audio"): skip["reason"] for skip in report["skipped"]}
    for line in table(broken, reported):
        print(line)
    missing, more = broken.keys() - reported.keys(), reported.keys() - broken.keys()
    print(f"{args.files:,} files, {len(broken):,} broken, {len(reported):,} reported, {report['records']:,} stored")
    for name, paths in (("broken, and not reported", missing), ("reported, and not broken", more)):
        if paths:
            print(f"{name}: {sorted(paths)[:10]}")
    return 1 if missing or more or report["records"] != args.files - len(broken) else 0


def table(broken: dict[str, str], reported: dict[str, str]) -> list[str]:
    """For each kind of broken file, how many there are, how many are reported, and a reason."""
    lines = ["| kind | files | reported | a reason |", "| --- | --- | --- | --- |"]
    for kind, count in sorted(collections.Counter(broken.values()).items()):
        reasons = [reported[path] for path, of in broken.items() if of == kind and path in reported]
        lines.append(f"| {kind} | {count} | {len(reasons)} | {reasons[0] if reasons else ''} |")
    return lines


def make(folder: pathlib.Path, count: int) -> dict[str, str]:
    """Makes so many files below a folder. Returns the path, below the folder, and the kind of each broken one."""
    contents, broken, kinds = templates(), {}, list(KINDS)
    for number in range(count):
        place = folder / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        if number % BROKEN_IN:
            suffix, content = contents[number % TEMPLATES]
            (place / f"{number:06d}{suffix}").write_bytes(content)
            continue
        kind = kinds[number // BROKEN_IN % len(kinds)]
        path = KINDS[kind](place / f"{number:06d}")
        broken[os.path.relpath(path, folder)] = kind
    long = np.tile(_wave(10, 1), 360)
    soundfile.write(folder / "000" / f"{1:06d}{contents[1][0]}", long, RATE, format=_format(contents[1][0]))
    soundfile.write(folder / "000" / f"{2:06d}{contents[2][0]}", long[:160], RATE, format=_format(contents[2][0]))
    os.symlink(folder, folder / "000" / "loop", target_is_directory=True)
    broken["000/loop"] = "a folder that links to one above it"
    return broken


def templates() -> list[tuple[str, bytes]]:
    """(ending, content) of short recordings of several formats, rates and channel counts."""
    kinds = [(".flac", 16000, 1), (".wav", 8000, 1), (".flac", 44100, 2), (".wav", 16000, 1), (".ogg", 16000, 1)]
    return [_template(number, *kinds[number % len(kinds)]) for number in range(TEMPLATES)]


def _template(seed: int, suffix: str, rate: int, channels: int) -> tuple[str, bytes]:
    wave = np.stack([_wave(0.2 + 0.01 * seed, seed + 100 * channel, rate) for channel in range(channels)], axis=1)
    return suffix, encoded(wave, rate, _format(suffix))


def encoded(wave: np.ndarray, rate: int = RATE, kind: str = "FLAC", subtype: str | None = None) -> bytes:
    """The content of a file of audio."""
    memory = io.BytesIO()
    soundfile.write(memory, wave, rate, format=kind, subtype=subtype)
    return memory.getvalue()


def _format(suffix: str) -> str:
    return suffix[1:].upper()


def _wave(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))


# Every kind of broken file: a function that makes one and returns its path


def _file(suffix: str, content: Callable[[], bytes]) -> Callable[[pathlib.Path], pathlib.Path]:
    def make_file(stem: pathlib.Path) -> pathlib.Path:
        path = stem.with_suffix(suffix)
        path.write_bytes(content())
        return path

    return make_file


def _flac() -> bytes:
    return encoded(_wave(0.5, 5))


def _middle(content: bytes, change: Callable[[bytearray], None]) -> bytes:
    middle = bytearray(content)
    change(middle)
    return bytes(middle)


def _zeros(content: bytearray) -> None:
    half = len(content) // 2
    content[half : half + 600] = bytes(600)


def _flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 16


def _zip() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("a.flac", _flac())
    return memory.getvalue()


def _tar() -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        info = tarfile.TarInfo("a.flac")
        info.size = len(content := _flac())
        archive.addfile(info, io.BytesIO(content))
    return memory.getvalue()


def _linked(target: str) -> Callable[[pathlib.Path], pathlib.Path]:
    def make_link(stem: pathlib.Path) -> pathlib.Path:
        path = stem.with_suffix(".wav")
        os.symlink(target or path.name, path)
        return path

    return make_link


def _pipe(stem: pathlib.Path) -> pathlib.Path:
    os.mkfifo(path := stem.with_suffix(".wav"))
    return path


def _oddly_named(stem: pathlib.Path) -> pathlib.Path:
    path = os.fsencode(stem) + b"-\xff.flac"
    with open(path, "wb") as file:
        file.write(_flac())
    return pathlib.Path(path.decode("utf-8", "replace"))  # as it is reported


def _floats(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], bytes]:
    return lambda: encoded(change(_wave(0.3, 6)).astype(np.float32), kind="WAV", subtype="FLOAT")


KINDS: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "nothing in it": _file(".flac", bytes),
    "a text": _file(".flac", lambda: b"not audio\n" * 30),
    "FLAC that was cut": _file(".flac", lambda: _flac()[:4000]),
    "FLAC with zeros in the middle": _file(".flac", lambda: _middle(_flac(), _zeros)),
    "FLAC with a flipped bit": _file(".flac", lambda: _middle(_flac(), _flip)),
    "WAV that was cut": _file(".wav", lambda: encoded(_wave(0.5, 5), kind="WAV")[:6000]),
    "the first bytes of WAV": _file(".wav", lambda: b"RIFF"),
    "WAV without samples": _file(".wav", lambda: encoded(np.zeros(0), kind="WAV")),
    "WAV at 100 Hz": _file(".wav", lambda: encoded(_wave(0.5, 5), 100, "WAV")),
    "samples that are no numbers": _file(".wav", _floats(lambda wave: np.where(wave > 0.2, np.nan, wave))),
    "floats on the scale of integers": _file(".wav", _floats(lambda wave: 30000 * wave)),
    "channels that cancel": _file(".wav", lambda: encoded(np.outer(_wave(0.3, 7), (1, -1)), kind="WAV")),
    "a zip archive": _file(".wav", _zip),
    "a tar archive": _file(".flac", _tar),
    "a link to nothing": _linked("nowhere.wav"),
    "a link to itself": _linked(""),
    "a pipe": _pipe,
    "a name that is not UTF-8": _oddly_named,
    "a video": _file(".mp4", lambda: b"\0\0\0\x18ftypmp42" + bytes(500)),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
