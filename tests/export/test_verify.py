"""What an export is compared on, and what counts as a difference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.api import fixed_batch, spike_mismatch, verify
from spikeformer_lt.export.file import read_packed


def test_the_batch_is_fixed_and_fits_the_door() -> None:
    args = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
    still = create_model("spikformer_toy", **args)
    moving = create_model("spikformer_toy", **args, in_channels=2)
    assert fixed_batch(still).shape == (4, 3, 16, 16)
    assert fixed_batch(moving).shape == (4, 2, 2, 16, 16)
    assert torch.equal(fixed_batch(moving), fixed_batch(moving))
    assert bool((fixed_batch(moving) == fixed_batch(moving).round()).all())
    with pytest.raises(ExportError, match="Linear does not say its in_channels"):
        fixed_batch(torch.nn.Linear(2, 2))


def test_a_true_export_passes_and_another_ticket_does_not(
    net, write_packed, tmp_path: Path
) -> None:
    _, _, ticket = net()
    write_packed(tmp_path / "a", ticket)
    packed = read_packed(tmp_path / "a")
    check = verify(ticket, packed)
    assert (
        packed.precision == "fp32"
        and check.stem == "conv_pep"
        and check.reload_gap == 0
        and check.same_class == 1
    )
    assert check.logit_scale > 0.01
    _, _, other = net(sparsity=0.7)
    with pytest.raises(ExportError, match="masks or names differ"):
        verify(other, packed)
    bias = {**ticket.tensors, "head.bias": ticket.tensors["head.bias"] + 1e-3}
    with pytest.raises(ExportError, match=r"'head\.bias' was not stored"):
        verify(dataclasses.replace(ticket, tensors=bias), packed)


def test_a_narrow_precision_passes_and_says_its_gap(net, write_packed, tmp_path: Path) -> None:
    _, _, ticket = net()
    write_packed(tmp_path, ticket, "bf16")
    check = verify(ticket, read_packed(tmp_path))
    assert check.reload_gap > 0 and check.compact_gap_float64 <= 1e-9


def test_the_spike_mismatch_is_0_in_float64_and_sees_a_change(net, images) -> None:
    model, _, _ = net(sparsity=0.3)
    x = images(model).double()
    rates = spike_mismatch(model.double(), x)
    assert len(rates) == 5 + 5 and max(rates.values()) == 0
    from spikeformer_lt.export import api as module

    right = module.compact

    def shifted(net):
        made = right(net)
        made.net.blocks[0].mlp.fc1.synapse.bias += 0.3
        return made

    module.compact = shifted
    try:
        assert spike_mismatch(model, x)["blocks.0.mlp.fc1.act"] > 0.01
    finally:
        module.compact = right
