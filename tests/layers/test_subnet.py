from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.layers.subnet import (
    LEARN,
    SubnetConv2d,
    SubnetLinear,
    collapse,
    gains,
    get_masks,
    install,
    put_masks,
    rankings,
    set_masks,
    subnets,
)
from spikeformer_lt.mask import Mask

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD with momentum and decay": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.05
    ),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.05),
}


class Net(nn.Module):
    """Two convolutions, one inside another module, as a stem has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.rest = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.first(x))


def make_net(learn: str = "scores", sparsity: float = 0.5, **options: bool) -> Net:
    net = Net()
    net.first = SubnetConv2d(net.first, learn, **options)
    net.rest[2] = SubnetConv2d(net.rest[2], learn, **options)
    set_masks(net, Mask.from_scores(rankings(net), sparsity, scope="layer"))
    return net


def train(net: Net, optimizer: Optimizer, steps: int = 4, sparsity: float = 0.5) -> None:
    chosen = optimizer([p for p in net.parameters() if p.requires_grad])
    for _ in range(steps):
        set_masks(net, Mask.from_scores(rankings(net), sparsity, scope="layer"))
        chosen.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        chosen.step()


def weights_of(net: Net) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in subnets(net)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("binary", [False, True])
def test_scores_learn_over_weights_that_stay_frozen_to_the_bit(
    optimizer: str, binary: bool
) -> None:
    net = make_net("scores", binary=binary)
    before, ranked = weights_of(net), rankings(net)
    ranked = {name: score.clone() for name, score in ranked.items()}
    train(net, OPTIMIZERS[optimizer])
    for name, layer in subnets(net):
        assert torch.equal(layer.weight.view(torch.int32), before[name].view(torch.int32))
        assert layer.weight.grad is None
        assert not torch.equal(layer.ranking(), ranked[name])


def test_removed_weights_may_return() -> None:
    net = make_net("scores")
    first = get_masks(net)
    train(net, OPTIMIZERS["AdamW"])
    last = get_masks(net)
    assert last.removed == first.removed
    returned = sum(int((last[name] & ~first[name]).sum()) for name in first)
    assert returned > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_latent_weights_learn_even_where_they_are_removed(optimizer: str) -> None:
    net = make_net("weights")
    before, removed = weights_of(net), {name: ~mask for name, mask in get_masks(net).items()}
    train(net, OPTIMIZERS[optimizer], steps=1)
    for name, layer in subnets(net):
        assert layer.scores is None
        assert (layer.weight != before[name])[removed[name]].all()
        assert torch.equal(layer.effective_weight() != 0, layer.mask)


@pytest.mark.parametrize("learn", LEARN)
def test_what_learns_is_what_was_asked_for(learn: str) -> None:
    layer = SubnetConv2d(nn.Conv2d(3, 4, 3, bias=False), learn)
    assert layer.weight.requires_grad is (learn != "scores")
    assert (layer.scores is not None) is (learn != "weights")
    ranked = layer.weight if layer.scores is None else layer.scores
    assert torch.equal(layer.ranking(), ranked.detach().abs())
    assert not layer.ranking().requires_grad


def test_the_weight_is_shared_with_the_convolution_that_was_taken_over() -> None:
    conv = nn.Conv2d(3, 4, 3, bias=False)
    layer = SubnetConv2d(conv, "weights")
    assert layer.weight is conv.weight
    assert layer.mask.all(), "a new layer keeps everything"


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.5, 0.98])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.fault(49)
def test_masks_hold_the_exact_count_even_where_all_scores_are_equal(
    sparsity: float, scope: str
) -> None:
    net = make_net("scores")
    for _, layer in subnets(net):
        nn.init.constant_(layer.scores, 0.25)
    set_masks(net, Mask.from_scores(rankings(net), sparsity, scope=scope))
    removed = {name: int((~layer.mask).sum()) for name, layer in subnets(net)}
    sizes = {name: layer.mask.numel() for name, layer in subnets(net)}
    if scope == "layer":
        assert removed == {name: round(sparsity * size) for name, size in sizes.items()}
    assert sum(removed.values()) == pytest.approx(sparsity * sum(sizes.values()), abs=1)
    for _, layer in subnets(net):  # ties keep the lower index
        flat = layer.mask.flatten()
        assert flat[: int(flat.sum())].all()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("per_filter", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsing_changes_no_bit_of_the_output(
    binary: bool, per_filter: bool, dtype: torch.dtype
) -> None:
    net = make_net("both", binary=binary, per_filter=per_filter).to(dtype).eval()
    x = torch.randn(4, 3, 8, 8, dtype=dtype)
    mask, before = get_masks(net), net(x)
    effective = {name: layer.effective_weight() for name, layer in subnets(net)}
    assert collapse(net) is net
    assert not dict(subnets(net))
    assert torch.equal(net(x), before)
    for name, weight in net.state_dict().items():
        if name not in mask:
            continue
        assert torch.equal(weight, effective[name])
        gone = weight[~mask[name]]
        assert torch.equal(gone, torch.zeros_like(gone)) and not torch.signbit(gone).any()
        assert int((weight != 0).sum()) == int(mask[name].sum())
    assert type(net.first) is nn.Conv2d and net.first.weight.requires_grad
    assert "first.mask" not in net.state_dict()


def test_collapsing_frees_the_layer_of_its_source() -> None:
    layer = SubnetConv2d(nn.Conv2d(3, 4, 3, bias=False), "weights")
    plain = layer.collapse()
    with torch.no_grad():
        layer.weight.zero_()
    assert plain.weight.abs().sum() > 0


@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 2, "padding": 1},
        {"dilation": 2},
        {"groups": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same"},
    ],
    ids=str,
)
def test_the_geometry_of_the_convolution_is_taken_over(geometry: dict[str, object]) -> None:
    conv = nn.Conv2d(4, 6, 3, bias=False, **geometry)
    x = torch.randn(2, 4, 9, 9)
    layer = SubnetConv2d(conv, "weights", binary=False)
    assert torch.equal(layer(x), conv(x))
    assert torch.equal(layer.collapse()(x), conv(x))


def test_the_forward_is_the_convolution_with_the_written_out_weight() -> None:
    layer = make_net("scores").first
    x = torch.randn(2, 3, 8, 8)
    weight = gains(layer.weight, layer.mask) * layer.weight.sign() * layer.mask
    assert torch.equal(layer(x), F.conv2d(x, weight, padding=1))
    assert set(weight.unique().tolist()) == {-weight.max().item(), 0.0, weight.max().item()}


def test_annealing_narrows_the_gradient_to_the_threshold() -> None:
    net = make_net("scores")
    layer = net.first
    layer.anneal = 4.0
    set_masks(net, get_masks(net))
    kept = layer.ranking()[layer.mask]
    assert layer.threshold == kept.min()
    x = torch.randn(2, 3, 8, 8)
    grads = []
    for layer.anneal in (0.0, 4.0):
        layer.scores.grad = None
        layer(x).square().mean().backward()
        grads.append(layer.scores.grad)
    ratio = grads[1] / grads[0]
    distance = (layer.ranking() - layer.threshold).abs()
    assert (ratio > 0).all() and (ratio <= 1 + 1e-6).all()
    order = distance.flatten().argsort()
    assert ratio.flatten()[order[0]] > 0.99
    assert ratio.flatten()[order[-1]] < 0.5
    assert (ratio.flatten()[order].diff() < 1e-5).all(), "it falls with the distance"


def test_state_and_copies_carry_the_mask_and_the_threshold() -> None:
    net = make_net("both", sparsity=0.7)
    for _, layer in subnets(net):
        layer.anneal = 1.0
    set_masks(net, get_masks(net))
    other = make_net("both", sparsity=0.2)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert get_masks(other) == get_masks(net) == get_masks(copy.deepcopy(net))
    assert other.first.threshold == net.first.threshold > 0
    assert torch.equal(other(x), net(x))


def test_masks_come_back_as_they_were_put_in() -> None:
    net = make_net()
    mask = Mask.random_like(get_masks(net), seed=3)
    assert set(mask) == {"first.weight", "rest.2.weight"}
    set_masks(net, mask)
    assert get_masks(net) == mask


@pytest.mark.fault(14)
def test_a_mask_of_other_layers_or_shapes_changes_nothing_and_is_named() -> None:
    net = make_net()
    before = get_masks(net)
    other = {name: ~kept for name, kept in before.items()}
    with pytest.raises(MaskError, match=r"rest\.2\.weight"):
        set_masks(net, Mask({"first.weight": other["first.weight"]}))
    narrow = Mask({**other, "rest.2.weight": torch.ones(1, 1, 3, 3, dtype=torch.bool)})
    with pytest.raises(MaskError, match=r"rest\.2\.weight.*\[1, 1, 3, 3\].*\[6, 8, 3, 3\]"):
        set_masks(net, narrow)
    assert get_masks(net) == before


def test_what_cannot_be_a_subnet_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"learn='score'.*scores, weights, both"):
        SubnetConv2d(nn.Conv2d(3, 4, 3, bias=False), "score")


@pytest.mark.parametrize("binary", [True, False])
def test_the_bias_of_a_convolution_is_shared_and_stays(binary: bool) -> None:
    conv = nn.Conv2d(3, 4, 3)
    layer = SubnetConv2d(conv, "scores", binary=binary)
    assert layer.bias is conv.bias and not layer.weight.requires_grad
    x = torch.randn(2, 3, 6, 6)
    expected = F.conv2d(x, layer.effective_weight(), conv.bias)
    assert torch.equal(layer(x), expected)
    plain = layer.collapse()
    assert plain.bias is conv.bias and torch.equal(plain(x), expected)


@pytest.mark.parametrize("binary", [True, False])
def test_a_linear_subnet_is_the_map_of_its_effective_weight(binary: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    bias = net[0].bias
    install(net, "0", "scores", binary=binary)
    install(net, "1", "weights", binary=binary)
    set_masks(net, Mask.from_scores(rankings(net), 0.5, scope="layer"))
    assert isinstance(net[0], SubnetLinear) and net[0].bias is bias
    x = torch.randn(5, 6)
    expected = net(x)
    assert list(dict(subnets(net))) == ["0.weight", "1.weight"]
    collapse(net)
    assert type(net[0]) is nn.Linear
    assert torch.equal(net(x), expected)
    assert int((net[0].weight == 0).sum()) == 12


def test_a_layer_of_another_kind_has_no_subnet_form() -> None:
    with pytest.raises(ConfigError, match="no subnet form of ReLU"):
        install(nn.Sequential(nn.ReLU()), "0", "scores", binary=True)


def test_a_layer_under_two_names_is_one_subnet_and_a_shared_weight_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    net, x = Twice(), torch.randn(2, 4, 5, 5)
    install(net, "a", "weights", binary=True)
    net.a.mask[0] = False
    found = net(x)
    assert net.a is net.b and isinstance(net.b, SubnetConv2d)
    collapse(net)
    assert net.a is net.b and type(net.b) is nn.Conv2d
    torch.testing.assert_close(net(x), found)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ConfigError, match="0: 1 has the same weight"):
        install(tied, "0", "weights", binary=True)


def test_lists_follow_a_mask_that_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = SubnetLinear(nn.Linear(8, 8, bias=False), "weights", binary=False)
        for seed in (0, 1):
            torch.manual_seed(seed)
            mask = torch.rand(8, 8) > 0.5
            put_masks({"a": layer}, {"a": mask})
            assert layer.kept().density == float(mask.float().mean())
            layer.mask.copy_(~mask)
            assert layer.kept().density == float((~mask).float().mean())


@pytest.mark.parametrize("learn", LEARN)
def test_what_was_frozen_stays_frozen_and_hooks_stay(learn: str) -> None:
    net, seen = Net(), list[str]()
    net.first.weight.requires_grad_(False)
    net.first.register_forward_hook(lambda *_: seen.append("forward"))
    net.first.register_full_backward_hook(lambda *_: seen.append("backward"))
    for name in ("first", "rest.2"):
        install(net, name, learn, binary=True)
    assert not net.first.weight.requires_grad
    assert net.rest[2].weight.requires_grad == (learn != "scores")
    net(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]
    net.first.register_full_backward_hook(lambda *_: seen.append("later"))
    collapse(net)
    net(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert sorted(seen[2:]) == ["backward", "forward", "later"]
    assert [net.first.weight.requires_grad, net.rest[2].weight.requires_grad] == [False, True]


def test_a_picture_without_a_batch_is_convolved() -> None:
    layer = make_net("weights").first
    x = torch.randn(3, 8, 8)
    assert torch.allclose(layer(x), layer(x[None])[0], atol=1e-6)
