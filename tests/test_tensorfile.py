"""Tensors on disk: what was written comes back, and nothing else is accepted."""

from __future__ import annotations

import json
import os
import pickle
import random
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spikeformer_lt.disk import content_kind, read_tensors, write_tensors
from spikeformer_lt.errors import CheckpointError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def small() -> dict[str, Tensor]:
    return {
        "w": torch.arange(6.0).view(2, 3),
        "mask": torch.tensor([True, False]),
        "step": torch.tensor(7),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write_tensors(path, small(), {"epoch": 3, "name": "toy"})
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k].reshape(-1).view(torch.uint8).equal(b[k].reshape(-1).view(torch.uint8))
        for k in a
    )


TENSORS = st.builds(
    lambda dtype, shape, seed: torch.randint(
        0, 100, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.integers(0, 99),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda name: name != "__metadata__"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(NAMES, TENSORS, max_size=4), st.dictionaries(st.text(), JSON, max_size=3))
def test_what_is_written_is_read(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(f"{folder}/x", tensors, metadata)
        found, about = read_tensors(f"{folder}/x")
    assert same(found, tensors)
    assert about == metadata


def test_bits_of_floats_survive(path: Path) -> None:
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    write_tensors(path, {"odd": odd}, {"best": float("-inf")})
    tensors, about = read_tensors(path)
    assert same(tensors, {"odd": odd})
    assert about == {"best": float("-inf")}


def test_strided_shared_and_trained_tensors_are_written_as_they_look(path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    weight = torch.nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))
    given_ = {"a": base, "b": base.t(), "c": base[1], "d": weight, "e": torch.empty(0, 3)}
    write_tensors(path, given_)
    found, about = read_tensors(path)
    assert list(found) == list(given_)
    assert all(torch.equal(found[name], given_[name]) for name in given_)
    assert about == {}
    found["a"].fill_(9)
    assert torch.equal(found["c"], base[1])


def test_files_of_equal_tensors_are_equal(path: Path, tmp_path: Path) -> None:
    write_tensors(tmp_path / "y", small(), {"epoch": 3, "name": "toy"})
    assert (tmp_path / "y").read_bytes() == path.read_bytes()


def test_other_tools_can_read_the_tensors(path: Path) -> None:
    assert torch.equal(safetensors.torch.load_file(path)["w"], small()["w"])


@pytest.mark.fault(8)
def test_every_proper_prefix_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            read_tensors(path)
        assert str(path) in str(caught.value)
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=rf"truncated: {len(data)} bytes expected"):
        read_tensors(path)


def test_added_bytes_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"damaged: .* bytes expected"):
        read_tensors(path)


def test_a_flipped_bit_is_refused_or_changes_nothing(path: Path) -> None:
    data = path.read_bytes()
    expected, about = read_tensors(path)
    generator = random.Random(0)
    refused = 0
    for place in generator.sample(range(8 * len(data)), 500):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found, also = read_tensors(path)
        except CheckpointError:
            refused += 1
            continue
        assert same(found, expected)
        assert also == about
    assert refused > 450


@pytest.mark.fault(9)
def test_a_flipped_bit_in_a_tensor_names_the_tensor(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.rindex(np.float32(5).tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    safetensors.torch.load_file(path)  # which does not notice
    with pytest.raises(CheckpointError, match="damaged: tensor 'w' has sha256"):
        read_tensors(path)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.fault(11)
def test_a_pickle_is_never_run_and_the_converter_is_named(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    for protocol in range(6):
        path = tmp_path / f"{protocol}.pt"
        path.write_bytes(pickle.dumps(Bomb(proof), protocol=protocol))
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            read_tensors(path)
    torch.save({"w": torch.ones(2), "b": Bomb(proof)}, tmp_path / "zip.pt")
    torch.save(OrderedDict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name, kind in (("zip.pt", "zip archive"), ("old.pt", "pickle"), ("2.pt", "pickle")):
        with pytest.raises(CheckpointError, match=rf"{kind}.*recipes/convert.py --source"):
            read_tensors(tmp_path / name)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", r"an empty file \(0 bytes\)"),
        (b"\xff" * 8 + b"{}", "unknown binary data"),
        (b"\xff" * 64, "unknown binary data"),
        (b"  <!DOCTYPE html><html>404", "an HTML or XML page"),
        (b"<html><body>sign in</body></html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"Not found: the file has moved", "a text file"),
        (b"short", "a text file of 5 bytes"),
        (b"\x93NUMPY\x01\x00v\x00", "a NumPy array"),
        (b"\x1f\x8b\x08" + b"\0" * 20, "a gzip archive"),
        (b"ustar".rjust(262, b"\0") + b"\0" * 300, "a tar archive"),
    ],
)
@pytest.mark.fault(10)
def test_a_foreign_file_is_called_by_its_kind(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"not a safetensors file but {kind}"):
        read_tensors(tmp_path / "x")


@given(st.binary(max_size=300))
def test_every_content_has_a_kind_in_printable_words(head: bytes) -> None:
    assert content_kind(head).isprintable()


def test_a_zip_of_tensors_is_no_tensor_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("w", b"1234")
    with pytest.raises(CheckpointError, match="zip archive"):
        read_tensors(tmp_path / "x")


def rewrite(path: Path, old: str, new: str) -> None:
    """Replace text of the header and keep lengths right, as an editor of such files would."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode()
    assert old in header
    changed = header.replace(old, new, 1).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('version\\": 1', 'version\\": 3', "found format v3, supports <= v1; install a newer"),
        ('version\\": 1', 'version\\": 0', "found format v0.*damaged"),
        ('version\\": 1', 'version\\": true', "found format vTrue.*damaged"),
        ("format_version", "fxrmat_version", "found format vNone"),
        ('\\"sha256', '\\"sha255', "no metadata or no checksums"),
        ('"w":{', '"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"w":{', "there twice"),
        ('"w":{', '"v":{', "no matching checksum for tensor 'v'"),
        ("toy", "joy", "metadata and its checksum differ"),
        ('"shape":[2,3]', '"shape":[3,2]', "tensor 'w' has sha256"),
        ('"F32"', '"I32"', "tensor 'w' has sha256"),
        ('"data_offsets"', '"offsets"', "has no data_offsets"),
        ('"F32"', '"F33"', "damaged"),
        ("spikeformer_lt", "other", "did not write"),
        ("{", "[", "not a safetensors file"),
        ('"dtype"', "dtype", "not JSON"),
        ('"w":{', '"w\ud800":{'.encode("utf-8", "replace").decode(), "no matching checksum"),
    ],
)
@pytest.mark.fault(13)
def test_an_edited_header_is_refused(path: Path, old: str, new: str, words: str) -> None:
    rewrite(path, old, new)
    with pytest.raises(CheckpointError, match=words):
        read_tensors(path)


@pytest.mark.fault(10)
def test_an_oversized_or_bottomless_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for length, body in ((100_000_001, b"{}"), (2**63, b"{}"), (10**7, b"{}")):
        path.write_bytes(length.to_bytes(8, "little") + body)
        with pytest.raises(CheckpointError, match=r"not a safetensors file|truncated"):
            read_tensors(path)
    deep = b'{"a":' + b"[" * 200_000
    path.write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_tensors(path)


def test_a_safetensors_file_of_others_is_called_so(tmp_path: Path) -> None:
    safetensors.torch.save_file(small(), tmp_path / "x")
    with pytest.raises(CheckpointError, match="spikeformer_lt did not write"):
        read_tensors(tmp_path / "x")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read '.*none': No such file"):
        read_tensors(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"a": [1]}, {}, "'a' is no dense tensor but list"),
        ({"a": torch.eye(3).to_sparse()}, {}, "'a' is no dense tensor but torch.sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, {}, "'a' has no plain values"),
        ({"__metadata__": torch.ones(1)}, {}, "cannot be the name"),
        ({3: torch.ones(1)}, {}, "3 cannot be the name"),
        ({"\ud800": torch.ones(1)}, {}, "cannot be written"),
        ({}, {"a": object()}, "metadata 'a' is not JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name_and_leaves_no_file(
    tensors: dict[Any, Any], metadata: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=words):
        write_tensors(tmp_path / "x", tensors, metadata)
    assert not list(tmp_path.iterdir())


def test_hostile_tensor_names_come_back_and_stay_on_one_line_of_a_message(path: Path) -> None:
    names = ["a\nb", "../../x", "日本語", "n" * 300, "=cmd()", "\x00", "%s{}"]
    write_tensors(path, {name: torch.ones(2) for name in names})
    assert list(read_tensors(path)[0]) == names
    write_tensors(path, {"a\nb": torch.full((2,), 5.0)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tensor 'a\\nb'") as caught:
        read_tensors(path)
    assert str(caught.value).isprintable()


def test_metadata_is_readable_in_the_header(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    assert json.loads(header["spikeformer_lt"])["metadata"] == {"epoch": 3, "name": "toy"}
