"""Archives: honest ones come out as they went in, the others leave nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import tarfile

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.published import extract_tar

CAPS = {"max_bytes": 1_000_000, "max_members": 20}


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def pack(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            if content is not None:
                info.size = len(content)
            tar.addfile(info, None if content is None else io.BytesIO(content))
    return path


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_files_and_folders_come_out_as_they_went_in(tmp_path, mode):
    big = os.urandom(300_000)
    members = [
        (member("set", tarfile.DIRTYPE), None),
        (member("set/one"), b"1"),
        (member("./set/deep/er/two"), big),
        (member("empty"), b""),
    ]
    archive = pack(tmp_path / "a.tar", members, mode)
    out = tmp_path / "out"
    files = extract_tar(archive, out, **CAPS)
    assert [str(file.relative_to(out)) for file in files] == ["set/one", "set/deep/er/two", "empty"]
    assert (out / "set/deep/er/two").read_bytes() == big
    assert everything_in(out) == [
        "empty", "set", "set/deep", "set/deep/er", "set/deep/er/two", "set/one"
    ]  # fmt: skip


def test_modes_of_the_archive_are_not_applied(tmp_path):
    info = member("run.sh")
    info.mode = 0o6777
    extract_tar(pack(tmp_path / "a.tar", [(info, b"x")]), tmp_path / "out", **CAPS)
    assert (tmp_path / "out/run.sh").stat().st_mode & 0o7111 == 0


def test_unpacking_over_a_half_unpacked_folder_completes_it(tmp_path):
    (tmp_path / "out/set").mkdir(parents=True)
    (tmp_path / "out/set/one").write_bytes(b"hal")
    members = [(member("set/one"), b"half"), (member("set/two"), b"2")]
    extract_tar(pack(tmp_path / "a.tar", members), tmp_path / "out", **CAPS)
    assert (tmp_path / "out/set/one").read_bytes() == b"half"
    assert (tmp_path / "out/set/two").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("bad", "content"),
    [
        (member("../evil"), b"x"),
        (member("set/../../evil"), b"x"),
        (member("/evil-of-a-test"), b"x"),
        (member("..\\evil"), b"x"),
        (member("C:evil"), b"x"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), None),
        (member("hard", tarfile.LNKTYPE, "good"), None),
        (member("fifo", tarfile.FIFOTYPE), None),
        (member("null", tarfile.CHRTYPE), None),
        (member("good"), b"again"),
        (member("GOOD"), b"in another case"),
        (member("big"), b"x" * 1_000_001),
        (member("../folder", tarfile.DIRTYPE), None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_bad_member_is_named_and_nothing_is_unpacked(tmp_path, bad, content):
    archive = pack(tmp_path / "a.tar", [(member("good"), b"good"), (bad, content)])
    with pytest.raises(DataError) as caught:
        extract_tar(archive, tmp_path / "out", **CAPS)
    assert repr(bad.name) in str(caught.value)
    assert everything_in(tmp_path) == ["a.tar", "out"]


def test_too_many_members_are_refused(tmp_path):
    archive = pack(tmp_path / "a.tar", [(member(f"f{i}"), b"") for i in range(21)])
    with pytest.raises(DataError, match="'f20' is one more than the 20 allowed"):
        extract_tar(archive, tmp_path / "out", **CAPS)
    assert everything_in(tmp_path / "out") == []


def test_a_bomb_is_stopped_by_the_bytes_it_unpacks_to(tmp_path):
    archive = tmp_path / "bomb.tar.gz"
    with gzip.open(archive, "wb", compresslevel=9) as file:
        info = member("x" * 300)  # a long name: its header's content is read before the member
        info.size = 0
        header = info.tobuf(tarfile.GNU_FORMAT)
        pax = tarfile.TarInfo("pax")
        pax.type, pax.size = tarfile.XHDTYPE, 500_000_000
        file.write(pax.tobuf() + b"\0" * 50_000_000 + header)
    with pytest.raises(DataError, match="unpacks to more than"):
        extract_tar(archive, tmp_path / "out", **CAPS)
    assert everything_in(tmp_path / "out") == []


def test_every_cut_of_an_archive_is_refused_or_gives_whole_files(tmp_path):
    content = os.urandom(3000)
    whole = pack(tmp_path / "a.tar", [(member("one"), content), (member("two"), content)])
    data = whole.read_bytes()
    refused = 0
    for cut in range(0, len(data), 97):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        out = tmp_path / f"out{cut}"
        try:
            files = extract_tar(tmp_path / "cut.tar", out, **CAPS)
        except DataError:
            refused += 1
            assert everything_in(out) == []
        else:
            assert all(file.read_bytes() == content for file in files)
    assert refused > 0.9 * len(range(0, len(data), 97))


@pytest.mark.parametrize("junk", [b"", b"<html>no</html>", b"\x1f\x8bxx", os.urandom(2000)])
def test_what_is_no_archive_is_refused_by_name(tmp_path, junk):
    (tmp_path / "junk.tar").write_bytes(junk)
    with pytest.raises(DataError, match=r"junk\.tar"):
        extract_tar(tmp_path / "junk.tar", tmp_path / "out", **CAPS)


def test_a_missing_archive_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"none\.tar"):
        extract_tar(tmp_path / "none.tar", tmp_path / "out", **CAPS)
