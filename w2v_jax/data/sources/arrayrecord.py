"""ArrayRecord files, each record a serialized tf.train.Example: the bytes of an audio file, and its texts.

Features: `audio` (the content of a FLAC, WAV, ... file), and if you like `id`, `text` and `speaker`, or other names of
`archives/texts.py`. TensorFlow Datasets writes the same records where its audio feature has lazy_decode=True, so that
one file serves both. Write with the option group_size:1, so that one record is read without its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

from w2v_jax.data.archives.array_record import audio_of, check_copies, open_records, parsed
from w2v_jax.data.archives.shards import Archive, archives, read_ahead
from w2v_jax.data.archives.texts import as_text, role_names
from w2v_jax.data.index import ReadError, Skip, root_entries
from w2v_jax.data.io.address import ARRAY_RECORD, numbered
from w2v_jax.data.io.audio import AudioFiles
from w2v_jax.data.io.listing import Candidate, list_parts
from w2v_jax.data.kept.listings import FileStates


def make(data, root) -> AudioFiles:
    """The source of all records that `root` names. Uses data.min_seconds and data.workers. Raises UserError."""
    skipped: list[Skip] = []
    states: FileStates = {}
    files = archives(root, ARRAY_RECORD, skipped, what=".array_record", states=states)
    check_copies([file.path for file in files])
    parts = [read_ahead(files, _candidates, skipped, workers=data.workers)]
    return list_parts(data, parts, kind="arrayrecord", where=root_entries(root), skipped=skipped, states=states)


def _candidates(file: Archive, skipped: list[Skip]) -> Iterator[Candidate]:
    try:
        records = open_records(file.path)
    except ReadError as error:
        skipped.append(Skip(file.path, str(error)))
        return
    if not len(records):
        skipped.append(Skip(file.path, "empty file"))
    for number in range(len(records)):
        path = numbered(file.path, number)
        try:
            example = parsed(records[number])
            audio_of(example)
        except ReadError as error:
            skipped.append(Skip(path, str(error)))
            continue
        names = role_names(example)
        id, speaker, text = (as_text(example.get(names.get(role, ""))) for role in ("id", "speaker", "transcript"))
        yield Candidate(id or f"{file.name}:{number}", path, speaker=speaker, transcript=text)
