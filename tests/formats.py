"""The same recordings in every format that sources read, as their own programs write them."""

import gzip
import io
import json
import tarfile
from typing import NamedTuple

import numpy as np
import soundfile


class Item(NamedTuple):
    """A recording: its id, the content of its file, and what is said in it by whom."""

    id: str
    content: bytes
    text: str = ""
    speaker: str = ""


def content(seconds=0.5, seed=0, rate=16000, channels=1, kind="FLAC"):
    """The bytes of an audio file of noise."""
    wave = 0.1 * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    memory = io.BytesIO()
    soundfile.write(memory, wave, rate, format=kind)
    return memory.getvalue()


def write_files(folder, items):
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(items):
        (folder / "audio" / f"{number}.flac").write_bytes(item.content)


def write_librispeech(folder, items):
    """One folder of files named by their ids, and a list of transcripts: what `folder` reads."""
    place = folder / items[0].speaker / "book"
    place.mkdir(parents=True)
    for item in items:
        (place / f"{item.id}.flac").write_bytes(item.content)
    (place / "book.trans.txt").write_text("".join(f"{item.id} {item.text}\n" for item in items), "utf-8")
    return folder


def write_jsonl(folder, items):
    write_files(folder, items)
    lines = [
        {"audio_filepath": f"audio/{number}.flac", "id": item.id, "text": item.text, "speaker": item.speaker}
        for number, item in enumerate(items)
    ]
    (folder / "manifest.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "manifest.json"


def write_parquet(folder, items, *, compression="none", rows=2, form="struct", name="a.parquet", **more):
    """`form` is "struct" as of Hugging Face, "binary", or "list" of integers as of omnilingual ASR."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    if form == "struct":
        audio = pa.array([{"bytes": item.content, "path": f"{item.id}.flac"} for item in items])
    elif form == "binary":
        audio = pa.array([item.content for item in items])
    else:
        audio = pa.array([np.frombuffer(item.content, np.int8) for item in items], pa.list_(pa.int8()))
    columns = {"id": [i.id for i in items], "text": [i.text for i in items], "speaker_id": [i.speaker for i in items]}
    table = pa.table({"audio": audio, **columns})
    pq.write_table(table, folder / name, compression=compression, row_group_size=rows, **more)
    return folder / name


def add_member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_webdataset(folder, items):
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate((items[:2], items[2:])):
        with tarfile.open(folder / f"s-{number}.tar", "w") as tar:
            for item in shard:
                add_member(tar, f"{item.id}.flac", item.content)
                add_member(tar, f"{item.id}.txt", item.text.encode())
                add_member(tar, f"{item.id}.json", json.dumps({"speaker": item.speaker}).encode())
    return folder


def write_arrayrecord(folder, items, options="group_size:1", name="a.array_record"):
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(folder / name), options)
    for item in items:
        writer.write(example(audio=item.content, id=item.id, text=item.text, speaker=item.speaker))
    writer.close()
    return folder


def example(**features):
    """A serialized tf.train.Example of features of one value each, bytes or text."""

    def field(number, data):
        size, length = [], len(data)
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2, *size, length]) + data

    entries = b""
    for name, value in features.items():
        value = value.encode() if isinstance(value, str) else value
        entries += field(1, field(1, name.encode()) + field(2, field(1, field(1, value))))
    return field(1, entries)


def write_kaldi(folder, items):
    write_files(folder, items)
    tables = {"wav.scp": [f"audio/{number}.flac" for number in range(len(items))]}
    tables |= {"text": [item.text for item in items], "utt2spk": [item.speaker for item in items]}
    for name, values in tables.items():
        lines = [f"{item.id} {value}\n" for item, value in zip(items, values, strict=True)]
        (folder / name).write_text("".join(lines))
    return folder


def write_lhotse(folder, items):
    """Cuts. Their form is that of lhotse 1.33."""
    write_files(folder, items)
    with gzip.open(folder / "cuts.jsonl.gz", "wt") as file:
        for number, item in enumerate(items):
            source = {"type": "file", "channels": [0], "source": f"audio/{number}.flac"}
            recording = {"id": item.id, "sources": [source], "sampling_rate": 16000, "num_samples": 8000}
            recording |= {"duration": 0.5, "channel_ids": [0]}
            said = {"id": item.id, "recording_id": item.id, "start": 0.0, "duration": 0.5, "channel": 0}
            said |= {"text": item.text, "speaker": item.speaker}
            cut = {"id": item.id, "start": 0, "duration": 100.0, "channel": 0, "supervisions": [said]}
            file.write(json.dumps(cut | {"recording": recording, "type": "MonoCut"}) + "\n")
    return folder


WRITERS = {
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
    "arrayrecord": write_arrayrecord,
    "kaldi": write_kaldi,
    "lhotse": write_lhotse,
}
"""What writes the files of a source and returns its root."""
