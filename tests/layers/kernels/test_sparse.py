"""Products of bits with lists are those of numbers with weights, and their neurons are LIFs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import bits, matmul, sparse
from spikeformer_lt.layers.kernels.reference import lif_loop

SOFT = NeuronConfig(tau=4 / 3, v_reset=None, decay_input=False)
HARD = NeuronConfig(v_reset=-0.2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.manual_seed(0)


def counts(most: int, *shape: int) -> Tensor:
    return torch.randint(0, most + 1, shape).double()


def kept(*shape: int) -> Tensor:
    """Weights of which a third is left, and one output has none."""
    weight = torch.randn(*shape).double() * (torch.rand(*shape) < 0.3)
    weight[1] = 0
    return weight


@pytest.mark.parametrize(("T", "n", "channels", "most"), [(4, 70, 40, 1), (16, 20, 48, 9)])
def test_bits_stand_for_the_numbers_they_are_made_of(
    T: int, n: int, channels: int, most: int
) -> None:
    x, spikes = counts(most, T, 2, n, channels), counts(1, T, 2, n, channels)
    made, own = bits.Bits.of(x, most), bits.Bits.of(spikes)
    assert torch.equal(made.dense(), x)
    assert torch.equal((made + own).dense(), x + spikes)
    assert torch.equal((bits.Bits.of(spikes[:1]) + own).dense(), spikes[:1] + spikes)
    assert torch.equal((own * (1 - own)).dense(), spikes * 0)
    assert torch.equal(made.tiled(1).dense(), x) and torch.equal(made.mean(2), x.mean(2))
    assert torch.equal(F.linear(made, torch.eye(channels).double()), x)


@pytest.mark.parametrize(("T", "most", "neuron"), [(4, 1, HARD), (3, 5, SOFT)])
def test_a_linear_map_of_lists_and_its_neurons(T: int, most: int, neuron: NeuronConfig) -> None:
    x, weight, bias = counts(most, T, 1, 70, 40), kept(21, 40) / most, torch.randn(21).double() / 3
    current, made = x @ weight.t() + bias, bits.Bits.of(x, most)
    found = sparse.Product.of(weight, bias, None)(made, T)
    torch.testing.assert_close(found, current, rtol=0, atol=1e-13)
    product = sparse.Product.of(weight, bias, bits.Neurons.of(neuron))
    spikes = lif_loop(current, None, T, neuron)[0]
    assert torch.equal(product(made, T).dense(), spikes) and 0 < spikes.mean() < 1
    static = lif_loop(current[:1], None, 4, neuron)[0]
    assert torch.equal(product(bits.Bits.of(x[:1], most), 4).dense(), static)


def test_binary_weights_are_signs_and_one_gain() -> None:
    weight = kept(6, 10).sign() * torch.rand(6, 1).double()
    product = sparse.Product.of(weight, torch.zeros(6).double(), None)
    assert set(product.value) == {-1.0, 1.0} and product.gain[0] == weight[0].abs().max()
    assert product.lists.index.size == (weight != 0).sum()


@pytest.mark.parametrize(("T", "side", "C"), [(4, (8, 8), 16), (4, (7, 9), 5), (4, (16, 32), 3)])
def test_a_convolution_of_lists_and_a_pool_of_bits(T: int, side: tuple[int, int], C: int) -> None:
    x, weight, bias = counts(1, T, 3, *side, C), kept(16, C, 3, 3), torch.randn(16).double() / 3
    maps = x.flatten(0, 1).permute(0, 3, 1, 2)
    rows = F.conv2d(maps, weight, bias, padding=1).permute(0, 2, 3, 1).unflatten(0, (T, 3))
    wanted, made, p = lif_loop(rows, None, T, HARD)[0], bits.Bits.of(x), bits.Neurons.of(HARD)
    assert torch.equal(sparse.Product.of(weight, bias, p)(made, T).dense(), wanted)
    assert torch.equal(bits.fires(rows, T, p).dense(), wanted)
    pooled = F.max_pool2d(maps, 3, 2, 1).permute(0, 2, 3, 1).unflatten(0, (T, 3))
    found = bits.pool(made)
    assert (found is None) == (side == (7, 9))
    assert found is None or torch.equal(found.dense(), pooled)


def test_attention_of_bits() -> None:
    x, p = (torch.rand(4, 2, 64, 3, 32) < 0.2).double(), NeuronConfig(v_threshold=0.5)
    wanted = lif_loop(matmul.attend(x, 2, 0.125), None, 4, p)[0]
    neurons = bits.Neurons.of(p)
    found = matmul.attend_bits(bits.Bits.of(x.flatten(3)), 2, 0.125, neurons)
    assert found is not None and torch.equal(found.dense(), wanted) and 0 < wanted.mean() < 1
    assert matmul.attend_bits(bits.Bits.of(x[:, :, :44].flatten(3)), 2, 0.125, neurons) is None
