"""SNIP: connection sensitivity, on one batch, leaving no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import Snip, SnipConfig
from spikeformer_lt.tickets.one_shot import loss_gradients


class Plain(nn.Module):
    """A linear classifier with a time axis of one step."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).unsqueeze(1)


def test_the_kept_weights_have_the_largest_product_of_weight_and_gradient():
    torch.manual_seed(0)
    model, x, y = Plain().double(), torch.randn(9, 6).double(), torch.randint(3, (9,))
    search = Snip(SnipConfig(0.5, images=9), batch=lambda count: (x[:count], y[:count]))
    weight = model.head.weight
    (grad,) = torch.autograd.grad(F.cross_entropy(model.head(x), y), [weight])
    score = (grad * weight).abs().detach()
    mask = search.find(model, None).mask
    assert score[mask["head.weight"]].min() > score[~mask["head.weight"]].max()
    assert not mask["unused.weight"].any()  # the loss does not depend on it


def test_gradients_leave_no_trace(make):
    model = make().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    found = loss_gradients(model, weights, images, labels)
    assert found.keys() == weights.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_too_few_images_are_refused():
    with pytest.raises(ConfigError, match="images"):
        SnipConfig(images=1)
