"""Joint tickets: patches and encoder weights, one ledger."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.export import export_ticket, load_exported
from spikeformer_lt.layers.patches import kept_count
from spikeformer_lt.tickets import (
    ImpConfig,
    Joint,
    JointConfig,
    PatchConfig,
    PruneConfig,
    model_from_ticket,
    on_encoder,
)

SIZES = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}
IMP = ImpConfig(levels=(0.5, 0.8), epochs=1, rewind="1it", prune=PruneConfig(inside=("blocks.",)))


@pytest.mark.parametrize("score", ["rate", "gumbel", "attention"])
def test_both_levels_are_in_force_and_in_one_ledger(bench, tmp_path, score):
    torch.manual_seed(0)
    model = create_model("spikformer_toy", **SIZES)
    seen = []
    trainer = bench.trainer(tmp_path)

    def fit(net, phase):
        if phase.name.startswith("imp"):
            note = lambda module, args, output: seen.append(output[0].shape[1])  # noqa: E731
            handle = net.patch.register_forward_hook(note)
            net.eval()(torch.rand(2, 3, 16, 16))
            handle.remove()
        return trainer.fit(net, phase)

    config = JointConfig(PatchConfig(0.5, score=score, selector_epochs=1), IMP)
    ticket = Joint(config).find(model, fit)
    assert seen == [kept_count(16, 0.5)] * 2
    assert all(name.startswith("blocks.") for name in ticket.mask)
    ledger = ticket.provenance["ledger"]
    assert ledger["patch"] == 0.5
    assert ledger["weight"] == ticket.mask.sparsity == pytest.approx(0.8, abs=1e-3)
    zeros = ticket.mask.removed / sum(p.numel() for p in model.parameters())
    assert ledger["total_weight"] == zeros
    ticket.provenance["model"] = {"name": "spikformer_toy", "args": SIZES}
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(model_from_ticket(ticket)(images), model.eval()(images))


def test_pruning_goes_to_the_encoder_unless_other_layers_are_named():
    assert on_encoder(ImpConfig(rounds=2)).prune == PruneConfig(inside=("blocks.",), head=False)
    own = ImpConfig(prune=PruneConfig(inside=("conv_pep.", "blocks.")))
    assert on_encoder(own) == own


def test_a_model_without_patches_is_refused():
    with pytest.raises(ConfigError, match="needs a model with patches"):
        Joint().find(nn.Linear(2, 2), None)


def test_selectors_in_stages_learn_beside_the_pruning(bench, tmp_path):
    """SparseSpikformer: their weights train, and no mask covers them."""
    torch.manual_seed(0)
    model, sizes = create_model("spikformer_toy", **SIZES), []
    trainer = bench.trainer(tmp_path)

    def fit(net, phase):
        sizes.append({k: v.clone() for k, v in net.state_dict().items() if ".select." in k})
        return trainer.fit(net, phase)

    patches = PatchConfig(0.5, "gumbel", "stages", stages=(0,))
    ticket = Joint(JointConfig(patches, IMP)).find(model, fit)
    assert len(sizes[0]) == 4 and not any(".select." in name for name in ticket.mask)
    moved = [name for name, first in sizes[0].items() if not torch.equal(first, sizes[1][name])]
    assert len(moved) == 4, "the round began from the rewind step"
    assert ticket.provenance["ledger"]["patch"] == 0.5
    ticket.provenance["model"] = {"name": "spikformer_toy", "args": SIZES}
    done = export_ticket(ticket, tmp_path / "packed")
    assert done.check.reload_gap == 0
    images, plain = torch.rand(4, 3, 16, 16), load_exported(tmp_path / "packed", plain=True)
    seen = []
    plain.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[2]))
    assert torch.equal(plain(images), model.eval()(images)) and seen == [8]
