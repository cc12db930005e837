"""SynFlow: flow is conserved, no layer vanishes, no data is seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.units import LinearUnit
from spikeformer_lt.tickets import PruneConfig, Synflow, SynflowConfig
from spikeformer_lt.tickets.one_shot import flow, positive_twin


class Chain(nn.Module):
    """Two spiking layers and a head, without biases: a chain of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = LinearUnit(6, 9, bias=False), LinearUnit(9, 4, bias=False)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1).unsqueeze(0)
        return self.head(self.b(self.a(rows, 1), 1)).transpose(0, 1)


def test_the_flow_is_the_product_of_absolute_matrices_and_conserved():
    torch.manual_seed(0)
    model = Chain()
    twin = positive_twin(model)
    weights = PruneConfig().weights(twin)
    scores = flow(twin, weights, torch.ones(1, 6, dtype=torch.float64))
    a, b, c = (w.detach().double().abs() for w in PruneConfig().weights(model).values())
    total = (c @ b @ a).sum()
    left, right = c.sum(0) @ b, torch.ones(6).double()
    expected = left[:, None] * a * right[None] / total
    torch.testing.assert_close(scores["a.linear.weight"], expected, rtol=1e-4, atol=0)
    for score in scores.values():
        assert float(score.sum()) == pytest.approx(1, rel=1e-9)


def test_no_layer_vanishes_where_one_ranking_would_empty_one():
    torch.manual_seed(0)
    model = Chain()
    with torch.no_grad():
        model.a.linear.weight.mul_(1e-3)
    batch = lambda count: (torch.rand(count, 6), None)  # noqa: E731
    mask = Synflow(SynflowConfig(0.9, rounds=100), batch=batch).find(model, None).mask
    assert all(bool(kept.any()) for kept in mask.values())
    assert mask.removed == round(0.9 * mask.total)


def test_no_data_is_seen_and_the_model_is_not_changed(make):
    masks = []
    for seed in (1, 2):
        model = make()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        torch.manual_seed(seed)
        search = Synflow(
            SynflowConfig(0.5, rounds=3), batch=lambda n: (torch.randn(n, 3, 16, 16), None)
        )
        ticket = search.find(model, None)
        masks.append(ticket.mask)
        assert all(torch.equal(v, before[k]) for k, v in search.start.items())
    assert masks[0] == masks[1]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, nn.RMSNorm])
def test_every_norm_is_the_identity(norm):
    """An instance's own mean would take an input of ones away."""
    torch.manual_seed(0)
    made = norm([8, 8, 8]) if norm is nn.RMSNorm else norm(8)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), made, nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 2)
    )
    plain = nn.Sequential(net[0], nn.Identity(), *net[2:])
    batch = lambda n: (torch.randn(n, 3, 8, 8), None)  # noqa: E731
    masks = [Synflow(SynflowConfig(0.7, rounds=3), batch=batch).find(one, None).mask
             for one in (net, plain)]  # fmt: skip
    assert masks[0] == masks[1]


def test_no_rounds_are_refused():
    with pytest.raises(ConfigError, match="rounds"):
        SynflowConfig(rounds=0)
