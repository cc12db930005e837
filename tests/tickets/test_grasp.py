"""GraSP: the product with the Hessian, and what is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import Grasp, GraspConfig
from spikeformer_lt.tickets.one_shot import hessian_gradient, loss_gradients


class Smooth(nn.Module):
    """A network with a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(x))).unsqueeze(1)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = Smooth().double()
    return model, torch.randn(9, 6).double(), torch.randint(3, (9,))


def exact(model, weights, x, y) -> dict[str, torch.Tensor]:
    loss = F.cross_entropy(model(x).mean(1), y)
    grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    length = sum((g * g.detach()).sum() for g in grads)
    return dict(zip(weights, torch.autograd.grad(length, list(weights.values())), strict=True))


def test_the_difference_is_the_hessian_times_the_gradient(problem):
    model, x, y = problem
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    before = {n: p.detach().clone() for n, p in weights.items()}
    found = hessian_gradient(weights, lambda: loss_gradients(model, weights, x, y), 1e-4)
    for name, value in exact(model, weights, x, y).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)
        assert torch.equal(weights[name], before[name])


def test_the_largest_products_stay(problem):
    model, x, y = problem
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    products = exact(model, weights, x, y)
    score = {n: (weights[n].detach() * products[n]) for n in weights}
    search = Grasp(GraspConfig(0.5, images=9, step=1e-4), batch=lambda count: (x, y))
    mask = search.find(model, None).mask
    low = min(float(score[n][kept].min()) for n, kept in mask.items())
    assert low > max(float(score[n][~kept].max()) for n, kept in mask.items())


def test_no_gradient_gives_no_product():
    weights = {"w": nn.Parameter(torch.ones(3))}
    assert not hessian_gradient(weights, lambda: {"w": torch.zeros(3)}, 0.1)["w"].any()


def test_a_step_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="step"):
        GraspConfig(step=0.0)
