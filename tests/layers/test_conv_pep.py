from __future__ import annotations

import pytest
import torch

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.neuron import LIF, Activation, NeuronConfig
from spikeformer_lt.layers.stems import ACTIVATIONS, RESIDUALS, ConvPEP

T, B = 3, 2
VALUES = {
    ("lif", "add"): {0, 1, 2},
    ("heaviside", "add"): {0, 1, 2},
    ("sign", "add"): {-2, 0, 2},
    ("lif", "iand"): {0, 1},
    ("lif", "or"): {0, 1},
    ("heaviside", "iand"): {0, 1},
    ("heaviside", "or"): {0, 1},
    ("sign", "iand"): {-1, 1},
    ("sign", "or"): {-1, 1},
}


def pictures(steps: int = 1, side: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(steps, B, channels, side, side, dtype=torch.float64)


@pytest.fixture
def make(awaken):
    """Give a function that builds a ConvPEP of width 32 in which every layer fires."""

    def build(images: torch.Tensor, centre: float = 0.35, **options: object) -> ConvPEP:
        pep = ConvPEP(images.shape[2], 32, **options).double()
        awaken(pep, lambda module: module(images, T), centre=centre)
        return pep.eval()

    return build


def conv_weights(pep: ConvPEP) -> list[int]:
    return [unit.conv.weight.numel() for _, unit in pep.units()]


def test_the_published_weight_counts() -> None:
    assert conv_weights(ConvPEP(3, 384)) == [1_296, 41_472, 165_888, 663_552, 1_327_104]
    totals = {
        (3, 384): 2_199_312,
        (3, 256): 977_760,
        (2, 256): 977_472,
        (3, 512): 3_909_312,
        (3, 768): 8_794_656,
    }
    for (channels, dim), total in totals.items():
        with torch.device("meta"):
            pep = ConvPEP(channels, dim)
        assert sum(conv_weights(pep)) == total
        norms = sum(p.numel() for p in pep.parameters()) - total
        assert norms == 2 * (dim // 8 + dim // 4 + dim // 2 + 2 * dim)


@pytest.mark.parametrize(
    ("channels", "dim", "side", "pools", "millions"),
    [
        (3, 384, 32, (0, 0, 1, 1), [1.33, 42.47, 169.87, 169.87, 84.93]),
        (2, 256, 128, (1, 1, 1, 1), [9.44, 75.50, 75.50, 75.50, 37.75]),
    ],
)
def test_the_published_map_sizes_and_operations_per_step(
    channels: int, dim: int, side: int, pools: tuple[int, ...], millions: list[float]
) -> None:
    pep = ConvPEP(channels, dim, pools=[bool(p) for p in pools]).eval()
    macs: list[int] = []
    for _, unit in pep.units():
        unit.conv.register_forward_hook(
            lambda m, args, out: macs.append(m.weight.numel() * out[0, 0].numel())
        )
    with torch.no_grad():
        tokens, _ = pep(torch.rand(1, 1, channels, side, side), 1)
    assert tokens.shape == (1, 1, 64, dim)
    assert [round(m / 1e6, 2) for m in macs] == millions


@pytest.mark.parametrize(("activation", "residual"), VALUES)
@pytest.mark.parametrize("pool_before_act", [False, True])
def test_every_value_is_one_of_the_few_that_the_level_allows(
    make, outputs, activation: str, residual: str, pool_before_act: bool
) -> None:
    images = pictures()
    centre = -0.45 if activation == "sign" else 0.35  # its threshold is 0, not 1
    options = {"residual": residual, "pool_before_act": pool_before_act}
    pep = make(images, centre, activation=activation, **options)
    inputs: list[torch.Tensor] = []
    for _, unit in pep.units()[1:]:
        unit.conv.register_forward_hook(lambda m, args, out: inputs.append(args[0]))
    with outputs(pep) as seen:
        tokens, _ = pep(images, T)
    binary = {-1, 1} if activation == "sign" else {0, 1}
    assert len(seen) == 5 and len(inputs) == 4
    for name, values in seen.items():
        assert set(values.unique().tolist()) == binary, name
        assert 0.05 < (values > 0).double().mean() < 0.8, name
    for values in inputs:  # also after the max-pools
        assert set(values.unique().tolist()) == binary
    assert set(tokens.unique().tolist()) == VALUES[activation, residual]


def test_the_residual_rules_are_the_boolean_ones(make, outputs) -> None:
    images = pictures()
    table = {}
    for activation in ("heaviside", "sign"):
        for residual in RESIDUALS:
            torch.manual_seed(1)
            pep = make(images, activation=activation, residual=residual)
            before = []
            pep.rpe.conv.register_forward_hook(lambda m, args, out, b=before: b.append(args[0]))
            with outputs(pep) as seen:
                tokens, _ = pep(images, T)
            x = before[0].permute(0, 2, 3, 1).reshape(tokens.shape) > 0
            p = seen["rpe.act"].reshape(tokens.shape) > 0
            table[activation, residual] = (tokens, x, p)
            assert {(True, True), (True, False), (False, True)} <= set(
                zip(x.flatten().tolist(), p.flatten().tolist(), strict=True)
            )
    for activation in ("heaviside", "sign"):
        low = -1.0 if activation == "sign" else 0.0
        tokens, x, p = table[activation, "iand"]
        assert torch.equal(tokens, torch.where(x & ~p, 1.0, low).double())
        tokens, x, p = table[activation, "or"]
        assert torch.equal(tokens, torch.where(x | p, 1.0, low).double())
        tokens, x, p = table[activation, "add"]
        parts = [torch.where(bits, 1.0, low).double() for bits in (x, p)]
        assert torch.equal(tokens, parts[0] + parts[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("training", [False, True])
def test_computing_a_static_image_once_changes_nothing(
    make, outputs, activation: str, residual: str, training: bool
) -> None:
    """Spikes, tokens, currents, gradients and running statistics, in float64."""
    images, others = pictures(), pictures()
    pep = make(others, activation=activation, residual=residual).train(training)
    start = {name: value.clone() for name, value in pep.state_dict().items()}
    results = []
    for steps in (1, T):
        pep.load_state_dict(start)
        x = images.clone().requires_grad_()
        with outputs(pep) as seen:
            tokens, current = pep(x.expand(steps, -1, -1, -1, -1), T, need="current")
        assert tokens.shape[0] == (1 if steps == 1 and activation != "lif" else T)
        total = tokens.expand(T, -1, -1, -1)
        (total * torch.linspace(0.5, 1.5, total[0].numel()).view_as(total[0])).sum().backward()
        grads = {name: p.grad.clone() for name, p in pep.named_parameters()}
        for parameter in pep.parameters():
            parameter.grad = None
        state = {name: value.clone() for name, value in pep.state_dict().items()}
        seen = {name: value.expand(T, *value.shape[1:]) for name, value in seen.items()}
        current = current.expand(T, -1, -1, -1)
        results.append((total, seen, current, {**grads, "input": x.grad}, state))
    once, naive = results
    if activation in ("lif", "heaviside"):
        for name, values in once[1].items():
            assert 0.05 < values.mean() < 0.7, name
    if activation != "relu":
        assert torch.equal(once[0], naive[0])
        assert all(torch.equal(value, naive[1][name]) for name, value in once[1].items())
    assert torch.allclose(once[0], naive[0], rtol=0, atol=1e-9)
    assert torch.allclose(once[2], naive[2], rtol=0, atol=1e-9)
    for name, value in once[3].items():
        assert value.abs().sum() > 0, name
        assert torch.allclose(value, naive[3][name], rtol=1e-9, atol=1e-9), name
    for name, value in once[4].items():
        assert torch.allclose(value, naive[4][name], rtol=1e-9, atol=1e-12), name
    moved = [name for name, value in once[4].items() if not torch.equal(value, start[name])]
    assert any("running_var" in name for name in moved) is training


def test_the_copies_count_in_the_unbiased_variance() -> None:
    pep = ConvPEP(3, 8, activation="heaviside").double()
    images = pictures(side=4)
    pep(images, T)
    rows = torch.nn.functional.conv2d(images[0], pep.stages[0].conv.weight, padding=1)
    copies = rows.unsqueeze(0).expand(T, -1, -1, -1, -1).transpose(0, 2).flatten(1)
    expected = 0.9 + 0.1 * copies.var(1, unbiased=True)
    assert torch.allclose(pep.stages[0].norm.running_var, expected, rtol=1e-12, atol=0)


def test_how_often_each_convolution_runs() -> None:
    def batches(activation: str) -> list[int]:
        pep, sizes = ConvPEP(3, 32, activation=activation), []
        for _, unit in pep.units():
            unit.conv.register_forward_hook(lambda m, args, out: sizes.append(len(args[0]) // B))
        pep(pictures().float(), T)
        return sizes

    assert batches("lif") == [1, T, T, T, T]
    assert batches("heaviside") == [1, 1, 1, 1, 1]


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(make) -> None:
    frames = pictures(T)
    pep = make(frames)
    tokens, current = pep(frames, T, need="current")
    alone, current_alone = pep(frames[:, 1:], T, need="current")
    assert torch.equal(alone, tokens[:, 1:])
    assert torch.allclose(current_alone, current[:, 1:], rtol=0, atol=1e-12)


def test_the_order_of_tokens_is_row_by_row(make) -> None:
    """A change in the top right corner reaches the tokens of that corner and no far one."""
    images = pictures(side=64)
    pep = make(images, activation="relu")
    changed = images.clone()
    changed[..., 0, -1] += 1.0
    difference = (pep(images, T)[0] - pep(changed, T)[0]).abs().sum((0, 1, 3)).view(16, 16)
    rows, columns = difference.nonzero(as_tuple=True)
    assert difference[0, -1] > 0
    assert rows.max() < 8 and columns.min() > 7


def test_swapping_the_activation_keeps_weights_and_options() -> None:
    pep = ConvPEP(3, 32, neuron=NeuronConfig(v_threshold=0.7, tau=1.5, surrogate="atan"))
    before = {name: value.clone() for name, value in pep.state_dict().items()}
    for kind in ("heaviside", "sign", "relu", "lif"):
        pep.set_activation(kind, "or")
        assert (pep.activation, pep.residual) == (kind, "or")
        assert all(isinstance(u.act, LIF if kind == "lif" else Activation) for _, u in pep.units())
        pep(pictures().float(), T)
    assert pep.state_dict().keys() == before.keys()
    acts = [unit.act for _, unit in pep.units()]
    assert {(act.v_threshold, act.tau) for act in acts} == {(0.7, 1.5)}
    assert len({id(act) for act in acts}) == 5
    pep.set_activation("sign")
    assert pep.residual == "or"


def test_what_cannot_be_built_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="embed_dim=36 must be a multiple of 8"):
        ConvPEP(3, 36)
    with pytest.raises(ConfigError, match="activation='spike' is not one of lif, heaviside"):
        ConvPEP(3, 32, activation="spike")
    with pytest.raises(ConfigError, match="residual='xor' is not one of add, iand, or"):
        ConvPEP(3, 32, residual="xor")
    for pools in ((True,), (True,) * 5):
        with pytest.raises(ConfigError, match=r"pools=.* 4 stages"):
            ConvPEP(3, 32, pools=pools)
    pep = ConvPEP(3, 32)
    with pytest.raises(ConfigError, match="activation='spike'"):
        pep.set_activation("spike")
    with pytest.raises(ConfigError, match="residual='xor'"):
        pep.set_activation("lif", "xor")
    assert pep.activation == "lif"


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 2), (0, 4), (33, 33)])
def test_a_size_that_the_pools_do_not_divide_is_refused(height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{height}x{width} .* stride 4"):
        ConvPEP(3, 32).check_size(height, width)
