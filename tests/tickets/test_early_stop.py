"""Early stop as level 1 of MultiSp: found, kept, counted and exported on every architecture."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.export import export_ticket, load_exported
from spikeformer_lt.layers.patches import selections
from spikeformer_lt.reports.ledger import build_ledger
from spikeformer_lt.tickets import (
    ActivationConfig,
    EncoderConfig,
    MultiSp,
    MultiSpConfig,
    PatchConfig,
    WeightConfig,
    model_from_ticket,
)

OFF = WeightConfig(method="off")


SIZES: dict[str, Any] = {"image_size": 16, "embed_dim": 16, "num_heads": 2, "T": 3}


@pytest.mark.parametrize(
    ("name", "kind", "blocks"),
    [("qkformer_toy", "tp", (0.25, 0.5, 0.5)), ("sdt_toy", "tp-code", (0.25, 0.5))],
)
def test_all_levels_together_with_tokens_that_stop(name, kind, blocks, bench, tmp_path) -> None:
    patches = PatchConfig(0.5, kind, "stop", blocks)
    levels = {"weights": WeightConfig(sparsity=0.6), "activation": ActivationConfig("heaviside"),
              "encoder": EncoderConfig(0.5), "patches": patches}  # fmt: skip
    torch.manual_seed(0)
    model = create_model(name, **SIZES)
    search = MultiSp(MultiSpConfig(epochs=1, **levels))
    ticket = search.find(model, bench.trainer(tmp_path / "search").fit)
    assert ticket.mask.removed == search._asked(ticket.mask)
    removed = build_ledger(model, [torch.rand(4, 3, 16, 16)])["sparsity"]["patch"]
    assert removed == pytest.approx(patches.removed)
    about = {**ticket.provenance, "model": {"name": name, "args": SIZES}}
    done = export_ticket(replace(ticket, provenance=about), tmp_path / "packed")
    assert done.check.reload_gap == 0 and done.check.compact_gap_float64 < 1e-9
    plain = load_exported(tmp_path / "packed", plain=True)
    for key, value in ticket.tensors.items():
        assert torch.equal(plain.state_dict()[key], value), key
    assert [stop.sparsity for stop in selections(plain)] == list(blocks)


def test_level_1_alone_needs_no_training_of_its_own(bench, tmp_path) -> None:
    """The ticket is the dense network, to the bit, and tokens stop in it."""
    trainer, seen = bench.trainer(tmp_path), list[Any]()
    model = create_model("spikformer_toy", depth=1, **SIZES)

    def fit(net: Any, phase: Any) -> Any:
        result = trainer.fit(net, phase)
        seen.append((phase.name, copy.deepcopy(net.state_dict())))
        return result

    patches = PatchConfig(0.5, "tp", "stop")
    own = MultiSpConfig(dense_epochs=1, epochs=0, patches=patches, weights=OFF)
    ticket = MultiSp(own).find(model, fit)
    [(name, dense)] = seen
    assert name == "dense" and dense.keys() == ticket.tensors.keys()
    for key, value in ticket.tensors.items():
        assert torch.equal(value, dense[key]), key
    known = {"name": "spikformer_toy", "args": {**SIZES, "depth": 1}}
    about = {**ticket.provenance, "model": known}
    again = model_from_ticket(replace(ticket, provenance=about))
    assert [stop.sparsity for stop in selections(again)] == [0.5]
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(images), model.eval()(images))


@pytest.mark.parametrize(
    "wrong",
    [{}, {"weights": OFF}, {"dense_epochs": 1}, {"dense_epochs": 1, "weights": OFF,
     "encoder": EncoderConfig(0.5)}, {"dense_epochs": 1, "weights": OFF,
     "patches": PatchConfig(score="gumbel")}],
)  # fmt: skip
def test_no_epochs_are_for_level_1_alone(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"multisp\.epochs=0"):
        MultiSpConfig(epochs=0, **wrong)


def test_shares_are_as_many_as_the_blocks() -> None:
    search = MultiSp(MultiSpConfig(patches=PatchConfig(0.5, "tp", "stop", (0.5, 0.5))))
    with pytest.raises(ConfigError, match=r"patches\.blocks=.* 1 fractions, one for each block"):
        search.check(create_model("spikformer_toy", depth=1, **SIZES))
