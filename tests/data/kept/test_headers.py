"""Laws of headers: what was measured is found again for a file of the same size and time, and damage loses no more."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_jax.data.kept.headers import Headers, Measured

MEASURED = [Measured(f"/data/{i}.wav", 100 + i, 10**18 + i, frames=16_000 * i, rate=16_000) for i in range(20)]


def found(headers):
    return [one for one in MEASURED if headers.find(*one[:3]) == one]


def test_what_was_measured_is_found_for_the_same_size_and_time_alone(tmp_path):
    Headers().add(tmp_path / "h", MEASURED[:10])
    headers = Headers(tmp_path / "h")
    headers.add(tmp_path / "h", MEASURED[10:15])
    headers.add(tmp_path / "h", [])
    again = Headers(tmp_path / "h")
    assert found(again) == MEASURED[:15] and len(again) == 15
    path, size, modified, *_ = MEASURED[3]
    assert again.find(path, size + 1, modified) is None and again.find(path, size, modified - 1) is None
    assert Headers().find(*MEASURED[0][:3]) is None and Headers(tmp_path / "none").find(*MEASURED[0][:3]) is None


def test_the_last_of_two_records_counts(tmp_path):
    changed = MEASURED[0]._replace(size=7, frames=7)
    Headers().add(tmp_path / "h", [MEASURED[0]])
    Headers(tmp_path / "h").add(tmp_path / "h", [changed])
    assert Headers(tmp_path / "h").find(*changed[:3]) == changed and not found(Headers(tmp_path / "h"))


@given(st.integers(0, 3 * (8 + 4 * 40) - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_blocks_before_damage_are_found_and_later_ones_are_written_over_it(tmp_path_factory, place, is_cut):
    file = tmp_path_factory.getbasetemp() / "headers"
    file.unlink(missing_ok=True)
    headers = Headers()
    for start in (0, 4, 8):
        headers.add(file, MEASURED[start : start + 4])
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content[:place] if is_cut else content)
    intact = MEASURED[: 4 * (place // (8 + 4 * 40))]
    damaged = Headers(file)
    assert found(damaged) == intact
    damaged.add(file, MEASURED[12:14])
    assert found(Headers(file)) == [*intact, *MEASURED[12:14]]


def test_a_file_in_another_folder_starts_anew(tmp_path):
    Headers().add(tmp_path / "a", MEASURED[:4])
    Headers(tmp_path / "a").add(tmp_path / "b", MEASURED[4:6])
    assert found(Headers(tmp_path / "b")) == MEASURED[4:6]
    with pytest.raises(OSError):
        Headers().add(tmp_path / "none" / "h", MEASURED[:1])


def test_headers_of_another_mark_are_not_found_and_are_written_over(tmp_path):
    Headers(mark=b"one").add(tmp_path / "h", MEASURED[:4])
    other = Headers(tmp_path / "h", mark=b"two")
    assert not len(other)
    other.add(tmp_path / "h", MEASURED[4:6])
    other.add(tmp_path / "h", MEASURED[6:7])
    assert found(Headers(tmp_path / "h", mark=b"two")) == MEASURED[4:7]
    assert not len(Headers(tmp_path / "h", mark=b"one"))
