"""Every kind of tensor comes back as it was, or is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import CheckpointError, ExportError
from spikeformer_lt.export.file import Reader, Row, Writer, _row


def through(writer: Writer) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    found = Reader(writer.streams()).get(writer.rows)
    return {row.name: pair for row, pair in zip(writer.rows, found, strict=True)}


@given(st.data())
def test_any_masked_tensor_comes_back(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    kept = torch.rand(shape) < data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    kind = data.draw(st.sampled_from(["real", "layer", "filter"]))
    value = torch.randn(shape)
    if kind != "real":
        value = value.sign() * (
            0.7 if kind == "layer" else torch.rand([shape[0]] + [1] * (len(shape) - 1))
        )
    value = torch.where(kept, value, 0.0)
    writer = Writer()
    writer.add("masked", value, kept)
    writer.add("plain", value, None)
    found = through(writer)
    assert torch.equal(found["masked"][0], value) and torch.equal(found["masked"][1], kept)
    assert torch.equal(found["plain"][0], value) and found["plain"][1] is None


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(7),
        torch.tensor(0.5),
        torch.empty(0),
        torch.empty(0, 3),
        torch.empty(0, dtype=torch.int64),
        torch.empty(2, 0, dtype=torch.bool),
        torch.tensor([True, False]),
        torch.randn(3).half(),
        torch.randn(2, 2).bfloat16(),
        torch.arange(4, dtype=torch.int32),
        torch.tensor([-0.0, 0.0, 1e-45]),
    ],
    ids=lambda value: f"{value.dtype}-{list(value.shape)}",
)
def test_odd_tensors_come_back_bit_for_bit(value: torch.Tensor) -> None:
    writer = Writer()
    writer.add("x", value, None)
    found = through(writer)["x"][0]
    assert found.dtype == value.dtype and found.shape == value.shape
    assert (
        found.numpy(force=True).tobytes() == value.numpy(force=True).tobytes()
        if (value.dtype != torch.bfloat16)
        else torch.equal(found, value)
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_narrow_precision_rounds_values_and_keeps_gains(precision: str) -> None:
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    kept = torch.rand(8, 8) < 0.5
    binary = torch.where(kept, torch.randn(8, 8).sign() * 0.123456789, 0.0)
    dense = torch.randn(8)
    writer = Writer(precision)
    writer.add("binary", binary, kept)
    writer.add("dense", dense, None)
    found = through(writer)
    assert torch.equal(found["binary"][0], binary)
    assert torch.equal(found["dense"][0], dense.to(kind).float())


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(ExportError, match="'w' is float64"):
        Writer().add("w", torch.ones(2).double(), None)
    for kind in (torch.complex64, torch.uint16):
        with pytest.raises(ExportError, match=f"'w' is {kind}; allowed: .*bfloat16"):
            Writer().add("w", torch.ones(2).to(kind), None)
    with pytest.raises(ExportError, match="'w' reaches 1e\\+06, more than fp16"):
        Writer("fp16").add("w", torch.tensor([1e6, 2.0]), None)


def test_a_structured_mask_costs_next_to_nothing() -> None:
    kept = torch.ones(64, 64, 3, 3, dtype=torch.bool)
    kept[::2] = False
    writer = Writer()
    writer.add("w", torch.where(kept, torch.randn(kept.shape), 0.0), kept)
    assert writer.rows[0].mask[0] == "out" and writer.rows[0].mask[1] < 150
    assert through(writer)["w"][1].equal(kept)


ODD = {
    "no such form": {"form": "odd"},
    "no such dtype": {"dtype": "float31"},
    "no such code": {"mask": ("odd", 3)},
    "a longer mask": {"mask": ("bits", 9)},
    "gains of another layer": {"gains": 3},
    "negative bytes": {"mask": ("one", -1)},
    "values where there are none": {"form": "dense", "values": (0, 0)},
    "coded values of no depth": {"form": "dense", "values": (40, 8)},
    "too few coded values": {"form": "dense", "values": (9, 8)},
}


@pytest.mark.parametrize("name", ODD)
def test_a_row_that_does_not_fit_is_refused_by_name(name: str) -> None:
    kept = torch.rand(8, 8) < 0.5
    writer = Writer()
    writer.add("w", torch.where(kept, torch.randn(8, 8).sign(), 0.0), kept)
    good = writer.rows[0]
    row = {**{f: getattr(good, f) for f in Row.__dataclass_fields__}, **ODD[name]}
    with pytest.raises(CheckpointError, match="^damaged: tensor 'w': "):
        Reader(writer.streams()).get([_row(json.loads(json.dumps(list(row.values()))))])


def test_streams_with_more_than_their_rows_are_refused() -> None:
    writer = Writer()
    writer.add("w", torch.ones(1), None)
    writer.add("v", torch.ones(1), None)
    with pytest.raises(CheckpointError, match="stream values has 1 entries too many"):
        Reader(writer.streams()).get(writer.rows[:1])
