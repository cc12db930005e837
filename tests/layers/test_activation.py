"""Stateless activations: values, gradients, shapes."""

from __future__ import annotations

import math

import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.layers.neuron import (
    Activation,
    BatchNorm,
    Heaviside,
    NeuronConfig,
    Relu,
    Sign,
    norm_act,
)

X = torch.tensor([[-2.0, -1.0, -0.25, 0.0, 0.5, 1.0, 1.5, 3.0]], dtype=torch.float64)


def gradient(act: Activation) -> list[float]:
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(act(x).sum(), x)
    return g[0].tolist()


def test_values() -> None:
    assert Heaviside()(X)[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert Heaviside(v_threshold=0.5)(X)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert Sign()(X)[0].tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert Relu()(X)[0].tolist() == [0, 0, 0, 0, 0.5, 1, 1.5, 3]


@pytest.mark.parametrize("act", [Heaviside(), Sign()], ids=["heaviside", "sign"])
def test_values_do_not_depend_on_gradients_being_asked_for(act: Activation) -> None:
    assert torch.equal(act(X.clone().requires_grad_()), act(X))


def test_sign_passes_gradients_within_one() -> None:
    assert gradient(Sign()) == [0, 1, 1, 1, 1, 1, 0, 0]
    assert gradient(Sign(NeuronConfig(surrogate="bireal"))) == [0, 0, 1.5, 2, 1, 0, 0, 0]


def test_heaviside_has_the_derivative_of_its_surrogate() -> None:
    def logistic(x: float) -> float:
        y = 1 / (1 + math.exp(-4 * (x - 1)))
        return 4 * y * (1 - y)

    assert gradient(Heaviside()) == pytest.approx([logistic(x) for x in X[0].tolist()], abs=1e-15)
    arctan = [1 / (1 + (math.pi * (x - 1)) ** 2) for x in X[0].tolist()]
    assert gradient(Heaviside(surrogate="atan")) == pytest.approx(arctan, abs=1e-15)
    window = gradient(Heaviside(v_threshold=0.5, surrogate="hardtanh", alpha=2.0))
    assert window == [0, 0, 0, 2, 2, 2, 0, 0]
    parabola = gradient(Heaviside(v_threshold=0.5, surrogate="bireal", alpha=2.0))
    assert parabola == [0, 0, 0, 0, 4, 0, 0, 0]


@pytest.mark.parametrize("act", [Heaviside(), Sign(), Relu()])
def test_a_static_input_stays_static(act: Activation) -> None:
    assert act(torch.zeros(1, 2, 3), 4).shape == (1, 2, 3)
    assert act(torch.zeros(4, 2, 3), 4).shape == (4, 2, 3)
    assert not act.stateful
    with pytest.raises(DataError, match=f"{type(act).__name__} got a leading axis of size 3"):
        act(torch.zeros(3, 2), 4)


def test_unknown_surrogates_and_infinite_thresholds_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hardtanh'"):
        Heaviside(surrogate="hardtan")
    with pytest.raises(ConfigError, match="v_threshold=inf"):
        Heaviside(v_threshold=math.inf)


@pytest.mark.parametrize("places", [16, 8192])
def test_a_threshold_that_changes_holds_whatever_the_size(places: int) -> None:
    norm, act = BatchNorm(16).eval(), Heaviside()
    x = torch.randn(1, places, 16)
    for threshold, alpha in ((1.0, 4.0), (0.5, 1.0)):
        act.v_threshold, act.alpha = threshold, alpha
        leaf = x.clone().requires_grad_()
        fired = norm_act(norm, act, leaf, 1)
        assert abs(float(fired.detach().mean() - (x >= threshold).float().mean())) < 0.01
        fired.sum().backward()
        by_hand = x.clone().requires_grad_()
        act(by_hand).sum().backward()
        assert torch.allclose(leaf.grad, by_hand.grad, atol=1e-3)
