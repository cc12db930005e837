from __future__ import annotations

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.recording import Clock, opened, read_comments, read_exactly


def test_a_missing_an_empty_and_a_wrong_kind_of_path_are_named(tmp_path):
    (tmp_path / "empty.bin").touch()
    for path, words in (
        (tmp_path / "gone.bin", "No such file"),
        (tmp_path / "empty.bin", "is empty"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(DataError, match=words) as caught, opened(path):
            pass
        assert str(path) in str(caught.value)


def test_an_error_while_reading_is_the_files_too(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot read .*a\.bin"), opened(path):
        raise OSError(5, "Input/output error")


def test_a_file_gives_its_size_and_says_where_it_breaks_off(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    with opened(path) as (file, size):
        assert size == 10
        assert read_exactly(file, 6, path, "a packet") == b"012345"
        with pytest.raises(DataError, match="a packet at byte 6 needs 6 bytes, 4 are left"):
            read_exactly(file, 6, path, "a packet")


def header(tmp_path, content, version="2."):
    path = tmp_path / "a.aedat"
    path.write_bytes(content)
    with opened(path) as (file, _):
        lines = read_comments(file, path, version)
        return lines, file.read()


def test_a_header_ends_at_the_first_byte_that_is_no_comment(tmp_path):
    lines, rest = header(tmp_path, b"#!AER-DAT2.0\r\n# one\r\n\x00\x01#\n")
    assert lines == ["#!AER-DAT2.0", "# one"] and rest == b"\x00\x01#\n"


@pytest.mark.parametrize("mark", [b"#!END-HEADER\r\n", b"# End of ASCII Header\r\n"])
def test_an_announced_end_holds_even_if_the_data_begin_like_a_comment(tmp_path, mark):
    lines, rest = header(tmp_path, b"#!AER-DAT2.0\r\n" + mark + b"#\x01\x02\x03")
    assert len(lines) == 2 and rest == b"#\x01\x02\x03"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>no such file</html>", "an HTML or XML page"),
        (b"#!AER-DAT3.1\r\n", "AEDAT of version '3.1'"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x00\x01\x02\x03", "unknown binary data"),
        (b"#!AER-DAT2.0\r\n# no end", "breaks off in its header"),
        (b"#!AER-DAT2.0\r\n#" + b"a" * 2_000_000, "breaks off in its header"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        header(tmp_path, content)
    assert "a.aedat" in str(caught.value)


def test_a_clock_that_starts_again_goes_on():
    true = np.array([2**32 - 20, 2**32 - 5, 2**32 + 1, 2**32 - 2, 2**32 + 9, 2**33 + 3], np.int64)
    # The fourth event is out of order around the restart; the last comes after another one.
    clock = np.array([*true[:5], true[4] + 2**31 - 1, true[5]], np.int64)
    wrapped = (clock % 2**32).astype(np.uint32)
    for cuts in ([], [3], [1, 2, 3, 4, 5, 6], [0, 0, 6]):
        one = Clock()
        pieces = [one.times(piece) for piece in np.split(wrapped, cuts)]
        assert np.array_equal(np.concatenate(pieces), clock)
