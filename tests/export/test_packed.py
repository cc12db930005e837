"""A packed ticket comes back whole, or its fault is named: never a wrong network."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path

import pytest
import torch

from spikeformer_lt import Mask, Ticket
from spikeformer_lt.bundle import _seal, staged
from spikeformer_lt.errors import SpikeformerError, TicketError
from spikeformer_lt.export import export_ticket, load_exported
from spikeformer_lt.export import file as packing
from spikeformer_lt.export.codec import HUFFMAN, PRECISIONS
from spikeformer_lt.export.file import CONFIG, TENSORS, read_packed


@pytest.fixture
def small() -> Ticket:
    kept = torch.rand(6, 5, 3, 3) < 0.4
    half = torch.rand(7, 5) < 0.5
    tensors = {
        "conv_pep.w": torch.where(kept, torch.randn(kept.shape).sign() * 0.25, 0.0),
        "norm.bias": torch.randn(6),
        "norm.weight": 1 + torch.randn(40) / 8,
        "norm.num_batches_tracked": torch.tensor(17),
        "head.w": torch.where(half, torch.randn(7, 5), 0.0),
    }
    return Ticket(Mask({"head.w": half, "conv_pep.w": kept}), tensors, {"run_id": "x", "seed": 3})


def same(a: Ticket, b: Ticket) -> bool:
    return (
        a.mask == b.mask
        and list(a.mask) == list(b.mask)
        and list(a.tensors) == list(b.tensors)
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
        and a.provenance == b.provenance
    )


def test_a_ticket_comes_back_with_its_provenance(
    small: Ticket, write_packed, tmp_path: Path
) -> None:
    write_packed(tmp_path, small, about={"accuracy": 91.5})
    found = read_packed(tmp_path)
    assert {row.values[0] > 0 for row in found.rows} == {True, False}, "flips must meet both forms"
    assert same(found.ticket, small)
    assert found.about == {"accuracy": 91.5} and found.precision == "fp32"
    assert {row.name: row.form for row in found.rows} == {
        "conv_pep.w": "binary",
        "norm.bias": "dense",
        "norm.weight": "dense",
        "norm.num_batches_tracked": "raw",
        "head.w": "sparse",
    }


def test_equal_tickets_make_equal_files(small: Ticket, write_packed, tmp_path: Path) -> None:
    for name in "ab":
        write_packed(tmp_path / name, small)
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_every_prefix_is_refused(name: str, small: Ticket, write_packed, tmp_path: Path) -> None:
    write_packed(tmp_path, small)
    data = (tmp_path / name).read_bytes()
    end = len(data) - (name == CONFIG)  # its last byte is a line break
    for length in range(end):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(SpikeformerError) as caught:
            read_packed(tmp_path)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("flips", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_flipped_bits_are_refused_or_change_nothing(
    flips: int, small: Ticket, write_packed, tmp_path: Path
) -> None:
    write_packed(tmp_path, small)
    data = {name: (tmp_path / name).read_bytes() for name in (CONFIG, TENSORS)}
    places = [(name, bit) for name in data for bit in range(8 * len(data[name]))]
    refused = 0
    for name, place in random.Random(0).sample(places, flips):
        flipped = bytearray(data[name])
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / name).write_bytes(flipped)
        try:
            found = read_packed(tmp_path)
        except SpikeformerError as fault:
            refused += str(tmp_path) in str(fault)
        else:
            assert same(found.ticket, small)
        (tmp_path / name).write_bytes(data[name])
    assert refused > 0.95 * flips
    assert same(read_packed(tmp_path).ticket, small)


def edit(folder: Path, **changes: object) -> None:
    """Change config.json as an editor would, with a fitting seal."""
    body = json.loads((folder / CONFIG).read_text())
    del body["seal"]
    body |= changes
    body["seal"] = _seal(body)
    (folder / CONFIG).write_text(json.dumps(body))


def test_newer_foreign_and_edited_exports_are_refused(
    small: Ticket, write_packed, tmp_path: Path
) -> None:
    write_packed(tmp_path, small)
    text = (tmp_path / CONFIG).read_text()
    edit(tmp_path, format_version=6)
    with pytest.raises(SpikeformerError, match=r"format v6, supports <= v5; install a newer"):
        read_packed(tmp_path)
    for key, value, match in (
        ("format", "other", "not of an export"),
        ("precision", "fp8", "no known precision"),
        ("sha256", {}, "lists no files"),
        ("mask_order", ["head.w"], "other masks"),
        ("provenance", [], "lacks provenance"),
        ("preprocess", {"channels": "RGB"}, "preprocess"),
    ):
        (tmp_path / CONFIG).write_text(text)
        edit(tmp_path, **{key: value})
        with pytest.raises(SpikeformerError, match=match):
            read_packed(tmp_path)
    (tmp_path / CONFIG).write_text(text.replace('"seed":3', '"seed":4'))
    with pytest.raises(SpikeformerError, match="damaged or was edited"):
        read_packed(tmp_path)


def test_the_first_format_is_read_as_it_was_written(
    small: Ticket, write_packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spikeformer_lt.export.file.encode_values", lambda values: None)
    first = dataclasses.replace(packing.EXPORT, version=1)
    monkeypatch.setattr(packing, "EXPORT", first)
    fields = packing.astuple
    monkeypatch.setattr(packing, "astuple", lambda row: fields(row)[:-1])
    write_packed(tmp_path, small)
    monkeypatch.undo()
    assert '"format_version":1' in (tmp_path / CONFIG).read_text()
    assert same(read_packed(tmp_path).ticket, small)


def test_files_of_two_exports_do_not_mix(small: Ticket, write_packed, tmp_path: Path) -> None:
    write_packed(tmp_path / "a", small)
    other = {name: tensor.clone() for name, tensor in small.tensors.items()}
    other["norm.bias"] += 1
    write_packed(tmp_path / "b", Ticket(small.mask, other, {}))
    (tmp_path / "a" / TENSORS).write_bytes((tmp_path / "b" / TENSORS).read_bytes())
    with pytest.raises(SpikeformerError, match="changed since the export was saved"):
        read_packed(tmp_path / "a")
    with staged(tmp_path / "a", packing.EXPORT, overwrite=True) as stage:
        stage.write_tensors(TENSORS, small.tensors, {})
        stage.seal({"precision": "fp32", "provenance": {}, "about": {}})
    with pytest.raises(SpikeformerError, match="not a packed ticket"):
        read_packed(tmp_path / "a")


def test_missing_folders_and_pickles_are_named(small: Ticket, write_packed, tmp_path: Path) -> None:
    with pytest.raises(SpikeformerError, match="no export: there is no such folder"):
        read_packed(tmp_path / "nowhere")
    write_packed(tmp_path / "a", small)
    torch.save({"w": torch.ones(2)}, tmp_path / "a" / TENSORS)
    with pytest.raises(SpikeformerError, match="zip archive"):
        read_packed(tmp_path / "a")
    with pytest.raises(SpikeformerError, match="an export is a folder"):
        read_packed(tmp_path / "a" / TENSORS)


def test_bad_values_are_refused_before_anything_is_written(
    small: Ticket, write_packed, tmp_path: Path
) -> None:
    with pytest.raises(SpikeformerError, match="precision='int4' is not one of fp32, fp16, bf16"):
        write_packed(tmp_path / "a", small, "int4")
    assert not (tmp_path / "a").exists()
    with pytest.raises(SpikeformerError, match="cannot be stored as JSON"):
        write_packed(tmp_path / "a", small, about={"x": object()})


def test_each_file_is_read_once(small: Ticket, write_packed, tmp_path: Path) -> None:
    write_packed(tmp_path, small)
    opened: list[str] | None = []

    def note(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and opened is not None:
            opened.append(Path(str(args[0])).name)

    sys.addaudithook(note)
    read_packed(tmp_path)
    found, opened = opened, None
    assert sorted(name for name in found or [] if name in (CONFIG, TENSORS)) == [CONFIG, TENSORS]


def test_reading_neither_makes_a_network_nor_hashes_twice(
    ticket: Ticket, write_packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"model": {"name": "spikformer_toy", "args": {"embed_dim": 64}}}
    write_packed(tmp_path, Ticket(ticket.mask, ticket.tensors, other))
    with pytest.raises(SpikeformerError, match=f"{tmp_path}.*not of this model"):
        load_exported(tmp_path)
    for place in ("registry.create_model", "tickets.surgery.create_model", "export.file.digest_of"):
        monkeypatch.setattr(f"spikeformer_lt.{place}", None)
    assert same(read_packed(tmp_path).ticket, Ticket(ticket.mask, ticket.tensors, other))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_large_tensors_come_back_from_any_number_of_threads(
    precision: str, write_packed, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    kept = torch.rand(300, 400) < 0.7
    tensors = {
        "dense.w": torch.randn(260, 270) / 50,
        "sparse.w": torch.where(kept, torch.randn(300, 400), 0.0),
        "binary.w": torch.where(kept, torch.randn(300, 400).sign() * 0.5, 0.0),
    }
    tensors = {name: w.to(PRECISIONS[precision]).float() for name, w in tensors.items()}
    large = Ticket(Mask({"sparse.w": kept, "binary.w": kept}), tensors, {"run_id": "x"})
    write_packed(tmp_path, large, precision)
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found = read_packed(tmp_path)
            assert same(found.ticket, Ticket(large.mask, large.tensors, {"run_id": "x"}))
    finally:
        torch.set_num_threads(threads)
    assert [row.values[0] for row in found.rows] == [HUFFMAN, HUFFMAN, 0]
    assert [len(row.digest) for row in found.rows] == [8, 8, 8]


def test_arguments_beside_a_network_are_refused(net, tmp_path: Path) -> None:
    model, _, ticket = net()
    export_ticket(ticket, tmp_path / "out")
    with pytest.raises(TicketError, match="T=8, bananas=3 with a network is not allowed"):
        load_exported(tmp_path / "out", model=model, T=8, bananas=3)
