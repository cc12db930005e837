"""Products by lists of the kept weights are the dense ones, in float64 to rounding."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numba
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.kernels import dispatch, jit, maps, simd, sparse, winograd
from spikeformer_lt.layers.kernels.bits import Bits
from spikeformer_lt.layers.kernels.lists import Lists
from spikeformer_lt.layers.subnet import SubnetConv2d, SubnetLinear
from spikeformer_lt.layers.units import conv_rows, linear_rows
from spikeformer_lt.models.bestformer import BalancedConv2d, BalancedLinear


@pytest.fixture(autouse=True)
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every kernel, and lists for every product."""
    monkeypatch.setattr(dispatch, "_mode", "numba")
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "always")


def case(shape: tuple[int, ...], made: int, most: float, kept: float = 0.3) -> list[torch.Tensor]:
    """Inputs (integers up to `most`, or real below 0), weight, bias, mask and gradient."""
    torch.manual_seed(0)
    x = torch.randn(shape).double() if most < 0 else torch.randint(0, int(most) + 1, shape).double()
    wide = (3, 3) if len(shape) == 5 else ()
    mask = torch.rand(made, shape[-1], *wide) < kept
    mask[1] = False
    weight = torch.randn(mask.shape).double() * mask
    leaves = [x, weight, torch.randn(made).double()]
    return [*(v.requires_grad_() for v in leaves), mask, torch.randn(*shape[:-1], made).double()]


def dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return winograd.direct(x, weight) + bias if weight.dim() == 4 else F.linear(x, weight, bias)


def by_lists(x, weight, bias, mask, kept=None):
    own = bias if weight.dim() == 2 else None
    out = dispatch.sparse(x, weight, own, kept or dispatch.Kept(mask), F.linear)
    assert out is not None
    return out if weight.dim() == 2 else out + bias


@pytest.mark.parametrize("shape", [(48, 32), (64, 640), (16, 48, 3, 3), (32, 128, 1, 1)])
@pytest.mark.parametrize("density", [0.0, 0.04, 0.5, 1.0])
def test_lists_hold_the_kept_weights_in_order(shape: tuple[int, ...], density: float) -> None:
    """An entry's place leads to its weight, and all kept ones are listed once, by both sides."""
    torch.manual_seed(1)
    mask = torch.rand(shape) < density
    mask[3:5] = False
    lists = Lists.of(mask)
    wide, taps = shape[1], math.prod(shape[2:])
    for o, own in enumerate(mask.view(shape[0], wide, taps)):
        part = slice(lists.start[o], lists.start[o + 1])
        tap, channel = np.divmod(lists.index[part].astype(int), wide)
        assert np.all(np.diff(lists.index[part].astype(int)) > 0)
        np.testing.assert_array_equal(lists.place[part], (o * wide + channel) * taps + tap)
        assert part.stop - part.start == int(own.sum()) == int(own[channel, tap].sum())
    if len(shape) == 2:
        turned, other = lists.turned(), Lists.of(mask.t())
        np.testing.assert_array_equal(turned.start, other.start)
        np.testing.assert_array_equal(turned.index, other.index)
        o, i = np.divmod(turned.place, wide)
        np.testing.assert_array_equal(o, turned.index)
        np.testing.assert_array_equal(i, np.repeat(np.arange(wide), np.diff(turned.start)))


@pytest.mark.parametrize("density", [0.0, 0.04, 0.5, 1.0])
def test_lists_by_inputs_of_maps_say_where_each_tap_reads(density: float) -> None:
    torch.manual_seed(1)
    mask = torch.rand(48, 32, 3, 3) < density
    tile = maps.Tile(5, 2)
    lists, wanted = maps.by_inputs(Lists.of(mask), *tile.places), mask.movedim(1, 0).nonzero()
    own = np.repeat(np.arange(32), np.diff(lists.start))
    o, at = np.divmod(lists.index.astype(int), tile.plane)
    row, column = np.divmod(at, tile.pitch)
    found = np.stack([own, o, 2 - row, 2 - column], 1)
    assert sorted(map(tuple, found)) == sorted(map(tuple, wanted.tolist()))
    np.testing.assert_array_equal(
        lists.place, np.ravel_multi_index((found[:, 1], own, *found[:, 2:].T), mask.shape)
    )


# Whole maps, several and the last ones fewer; some rows, and fewer; rows of half a register.
@pytest.mark.parametrize("size", [(7, 8, 8), (3, 16, 16), (2, 32, 32), (2, 9, 24), (1, 3, 40),
                                  (5, 2, 8), (2, 5, 56), (1, 3, 256)])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inputs_gradient_of_a_sparse_convolution(
    size: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mask = torch.rand(32, 144, 3, 3) < 0.2  # two blocks of channels, and a part
    mask[:, 5] = False
    weight, g = torch.randn(mask.shape, dtype=dtype) * mask, torch.randn(*size, 32, dtype=dtype)
    if simd.BYTES < 64 and size[2] > 64:
        assert maps.Tile.of(g.shape) is None
        return
    tile = maps.Tile.of(g.shape)
    assert tile is not None
    lists = maps.by_inputs(Lists.of(mask), *tile.places)
    monkeypatch.setattr(jit, "_PER_THREAD", 1)
    wanted = F.conv_transpose2d(g.movedim(-1, 1), weight, padding=1).movedim(1, -1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found = maps.inputs_back(g, tile, lists, weight)
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e2 * torch.finfo(dtype).eps)
    finally:
        torch.set_num_threads(threads)


def test_lists_by_inputs_need_a_shift_for_each_tap() -> None:
    with pytest.raises(AssertionError):
        Lists.of(torch.ones(16, 16, 3, 3) > 0).turned()


def test_a_tile_says_what_it_holds_of_maps() -> None:
    """24 rows of 24 columns are three strips of 10; nothing is gained beyond a cache."""
    whole, ragged = maps.Tile.of((4, 16, 16, 64)), maps.Tile.of((4, 24, 24, 64))
    assert whole is not None and whole.filled == 1.0
    if simd.BYTES == 64:
        assert ragged is not None and ragged.filled == pytest.approx(
            24 * 24 / (3 * 240)
        )  # of 10 rows
        assert whole.fits(768) and not whole.fits(1024)


def test_a_kernel_leaves_numba_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = numba.get_num_threads(), torch.get_num_threads()
    monkeypatch.setattr(jit, "_PER_THREAD", 1)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            Lists.of(torch.ones(64, 64) > 0)
            assert numba.get_num_threads() == before
            numba.set_num_threads(1)  # another number than the kernel's
            Lists.of(torch.ones(64, 64) > 0)
            assert numba.get_num_threads() == 1
            numba.set_num_threads(before)
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(before)


@pytest.mark.parametrize("shape", [(2, 8, 12, 16), (2, 1, 16, 16), (2, 8, 264, 16)])
def test_other_maps_have_no_tile(shape: tuple[int, ...]) -> None:
    assert maps.Tile.of(shape) is None


# Rows of 528 and 2064 numbers take tiles half as wide, with AVX-512 and with AVX2.
@pytest.mark.parametrize(
    "shape", [(1, 300, 32), (4, 3, 64, 16), (2, 2, 7, 9, 16), (1, 3, 16, 8, 32), (1, 129, 528),
              (1, 129, 2064)],
)  # fmt: skip
@pytest.mark.parametrize("most", [1, 3, 9, -1])
def test_output_and_gradients(shape: tuple[int, ...], most: int) -> None:
    x, weight, bias, mask, g = case(shape, 48, most)
    if shape[3:4] == (9,) and most not in (1, 3):  # taps move bits, of at most two digits
        assert dispatch.sparse(x, weight, None, dispatch.Kept(mask), F.linear) is None
        return
    expected = dense(x, weight, bias)
    wanted = torch.autograd.grad(expected, (x, weight, bias), g)
    out = by_lists(x, weight, bias, mask)
    found = torch.autograd.grad(out, (x, weight, bias), g)
    if len(shape) < 5 or most in (1, 3):
        wanted = wanted[0], wanted[1] * mask, wanted[2]
    for a, b in zip((out, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.detach().abs().max()))


@pytest.mark.parametrize("chosen", [*itertools.product((False, True), repeat=3)])
@pytest.mark.parametrize("shape", [(1, 300, 32), (2, 2, 8, 8, 16)])
def test_each_product_goes_by_lists_or_densely(
    shape: tuple[int, ...], chosen: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of spikes are numbers to a weights' gradient where two planes of bits cost more."""
    monkeypatch.setattr(sparse, "ways", lambda *given: chosen)
    seen: list[object] = []

    def see(x, lists, grad, back=sparse.weights_back):
        seen.append(type(x))
        return back(x, lists, grad)

    monkeypatch.setattr(sparse, "weights_back", see)
    for most, cheap in ((1, True), (3, True), (3, False)):
        gains = {"weights": 1.0, "numbers": 2.0 if cheap else 0.5}
        monkeypatch.setattr(dispatch, "list_gain", lambda *given, own=gains: own[given[3]])
        x, weight, bias, mask, g = case(shape, 48, most)
        expected = dense(x, weight, bias)
        gx, gw, gb = torch.autograd.grad(expected, (x, weight, bias), g)
        if not any(chosen):
            assert dispatch.sparse(x, weight, None, dispatch.Kept(mask), F.linear) is None
            continue
        out = by_lists(x, weight, bias, mask)
        found = torch.autograd.grad(out, (x, weight, bias), g)
        kept = gw * mask if chosen[2] else gw
        for a, b in zip((out, *found), (expected, gx, kept, gb), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.detach().abs().max()))
    numbers = torch.Tensor if len(shape) == 3 else Bits
    assert seen == [Bits, numbers, Bits] * chosen[2]


@pytest.mark.parametrize(
    ("shape", "most"), [((4, 3, 300, 16), 1), ((4, 3, 300, 16), 3), ((1, 600, 32), -1),
    ((2, 2, 16, 8, 16), 1)],
)  # fmt: skip
def test_threads_share_the_work(
    shape: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "_PER_THREAD", 1)
    threads = torch.get_num_threads()
    x, weight, bias, mask, g = case(shape, 48, most)
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = by_lists(x, weight, bias, mask)
            found.append((out, *torch.autograd.grad(out, (x, weight, bias), g)))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-12 * float(one.detach().abs().max()))


def test_inputs_that_are_no_longer_spikes_are_multiplied_as_they_are() -> None:
    x, weight, bias, mask, _ = case((1, 600, 32), 16, 1)
    kept = dispatch.Kept(mask)
    for values in (x, x * 2, x + 0.5, x):
        out = by_lists(values, weight, bias, mask, kept)
        torch.testing.assert_close(out, F.linear(values, weight, bias))
    with torch.no_grad():
        x[0, 599, 31] = float("nan")
    assert by_lists(x, weight, bias, mask, kept)[0, 599].isnan().any()


@pytest.mark.parametrize("shape", [(1, 64, 16), (1, 2, 8, 8, 16)])
def test_gradients_can_be_differentiated_again(shape: tuple[int, ...]) -> None:
    x, weight, bias, mask, g = case(shape, 16, 1)
    first = []
    for run in (lambda: dense(x, weight, bias), lambda: by_lists(x, weight, bias, mask)):
        gx, gw = torch.autograd.grad(run().pow(3), (x, weight), g, create_graph=True)
        first.append(torch.autograd.grad((gw * mask).pow(2).sum() + gx.pow(2).sum(), x)[0])
    torch.testing.assert_close(first[1], first[0])


def test_weights_of_several_units_are_listed_together() -> None:
    x, weight, bias, mask, _ = case((1, 70, 16), 32, 1)
    halves = [dispatch.Kept(part) for part in mask.chunk(2)]
    both = halves[0].beside(halves[1:])
    assert halves[0].beside(halves[1:]) is both
    out = by_lists(x, weight, bias, mask, both)
    torch.testing.assert_close(out, F.linear(x, weight, bias))


def test_never_leaves_the_product_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, mask, _ = case((1, 64, 16), 16, 1)
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "never")
    assert dispatch.sparse(x, weight, bias, dispatch.Kept(mask), F.linear) is None


@pytest.mark.parametrize("processor", ["avx512", "zen4", "zen5", "avx2", ""])
def test_choice_follows_density_columns_and_planes(
    processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "auto")
    monkeypatch.setattr(simd, "PROCESSOR", processor)
    linear, conv = (384, 384), (192, 96, 3, 3)
    if not processor:
        assert not any(sparse.ways(linear, 8192, 0.05, 1))
        return
    assert all(sparse.ways(linear, 8192, 0.05, 1))
    tile = maps.Tile.of((2, 16, 16, 192))
    assert sparse.ways(conv, 8192, 0.05, 1) == (True, False, True)
    assert sparse.ways(conv, 8192, 0.05, 1, tile) == (True, True, True)
    assert sparse.ways(conv, 8192, 0.05, 0, tile) == (False, True, False)
    assert not any(sparse.ways(conv, 8192, 0.05, 0))
    for shape in (linear, conv):
        assert not any(sparse.ways(shape, 8192, 0.9, 1, tile))
        assert not any(sparse.ways(shape, 64, 0.05, 1, tile))
    density = 0.5 if processor == "zen4" else 0.3
    gained = [sum(sparse.ways(linear, 8192, density, planes)) for planes in (1, 2, 0)]
    assert gained == sorted(gained, reverse=True) and gained[0] > gained[-1]


def test_sums_of_spikes_go_by_numbers_where_planes_cost_more(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "auto")
    gains = {"forward": 0.5, "weights": 0.5, "numbers": 2.0}
    monkeypatch.setattr(dispatch, "list_gain", lambda *given: gains[given[3]])
    assert sparse.ways((384, 384), 8192, 0.2, 2) == (False, True, True)
    assert sparse.ways((384, 384), 8192, 0.2, 1) == (False, True, False)


def test_one_odd_value_does_not_end_lists(monkeypatch) -> None:
    x, weight, _, mask, _ = case((1, 2, 8, 12, 32), 48, 1)
    kept, odd = dispatch.Kept(mask), x.detach().clone()
    odd[0, 1, 3, 3, 7] = 4.0
    found = []
    for values in (x, odd, x):
        out = dispatch.sparse(values, weight, None, kept, F.linear)
        found.append(out is not None)
        if out is not None:
            wanted = winograd.direct(values, weight)
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    assert found == [True, False, True]


@pytest.mark.parametrize("shape", [(3, 40, 32), (1, 2, 8, 8, 32)])
def test_a_step_is_that_of_its_batch_whatever_came_before(shape, monkeypatch) -> None:
    """So that a resumed run, whose process saw other batches, has the bits of one that was not."""
    monkeypatch.setattr(dispatch, "sparse_mode", lambda: "always")
    torch.manual_seed(0)
    weight = torch.randn(48, 32, *([3, 3] if len(shape) == 5 else []))
    mask = torch.rand(weight.shape) < 0.3
    batches = [torch.randint(0, n, shape) for n in (2, 4, 6)]
    batches[1][0, 0], batches[2][:2] = 0, 1  # few of their values are beyond one digit
    known = dispatch.Kept(mask)

    def step(values, kept):
        x, own = values.float().requires_grad_(), (weight * mask).requires_grad_()
        out = dispatch.sparse(x, own, None, kept, F.linear)
        out.square().sum().backward()
        return out.detach(), x.grad, own.grad

    for values in [*batches, *batches[::-1]]:
        for found, fresh in zip(
            step(values, known), step(values, dispatch.Kept(mask)), strict=True
        ):
            assert torch.equal(found, fresh)


def test_kept_weights_nest() -> None:
    weight = torch.nn.Parameter(torch.ones(16, 16))
    outer, inner = (dispatch.Kept(torch.rand(16, 16) < 0.5) for _ in range(2))
    with dispatch.kept_weights({weight: outer}):
        with dispatch.kept_weights({weight: inner}):
            assert weight.kept is inner
        assert weight.kept is outer
    assert not hasattr(weight, "kept")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_subnet_makes_its_lists_anew(copied, monkeypatch) -> None:
    torch.manual_seed(0)
    layer = SubnetConv2d(torch.nn.Conv2d(16, 32, 3, padding=1, bias=False).double(), "weights")
    x = torch.randint(0, 2, (1, 2, 8, 8, 16)).double()
    masks = [torch.rand(layer.mask.shape) < 0.3 for _ in range(3)]
    for mask in masks[:2]:
        layer.mask.copy_(mask)
        conv_rows(x, layer)
    other = copied(layer)
    other.mask.copy_(masks[2])
    wanted = winograd.direct(x, other.effective_weight())
    torch.testing.assert_close(conv_rows(x, other), wanted, rtol=0, atol=1e-12)


def test_linear_subnets_train_by_lists(monkeypatch) -> None:
    torch.manual_seed(0)
    layer, calls = SubnetLinear(torch.nn.Linear(32, 48).double(), "weights"), []
    layer.mask.copy_(torch.rand(layer.mask.shape) < 0.3)
    x = torch.randint(0, 2, (4, 2, 20, 32)).double().requires_grad_()
    product = sparse.product
    monkeypatch.setattr(sparse, "product", lambda *a: calls.append(product(*a)) or calls[-1])
    out, g = linear_rows(x, layer), torch.randn(4, 2, 20, 48).double()
    found = torch.autograd.grad(out, (x, layer.weight, layer.bias), g)
    expected = layer(x)
    wanted = torch.autograd.grad(expected, (x, layer.weight, layer.bias), g)
    assert calls and calls[0] is not None
    assert layer.kept().chosen == (True, True, False), "the weights' gradient is dense"
    for a, b in zip((out, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.detach().abs().max()))
    assert bool((found[1][~layer.mask] != 0).all())


@pytest.mark.parametrize("conv", [False, True])
def test_layers_that_run_on_a_form_of_their_weight_train_by_lists(conv, monkeypatch) -> None:
    """Bestformer's balanced signs, under the mask of a phase; one kept weight is 0, as grown."""
    shape = (2, 2, 8, 8, 16) if conv else (4, 2, 20, 16)
    x, weight, _, mask, g = case(shape, 48, 1)
    plain = torch.nn.Conv2d(16, 48, 3, padding=1, bias=False) if conv else torch.nn.Linear(16, 48)
    layer = (BalancedConv2d if conv else BalancedLinear)(plain.double())
    weight.detach()[tuple(mask.nonzero()[0])] = 0
    layer.weight = torch.nn.Parameter(weight.detach())
    kept, found = dispatch.Kept(mask), []
    for how in ("never", "always"):
        monkeypatch.setattr(dispatch, "sparse_mode", lambda how=how: how)
        with dispatch.kept_weights({layer.weight: kept}):
            out = conv_rows(x, layer) if conv else linear_rows(x, layer)
            gx, gw = torch.autograd.grad(out, (x, layer.weight), g)
        found.append((out, gx, gw * mask))
    assert all(kept.chosen)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.detach().abs().max()))


def test_a_subclass_with_a_forward_of_its_own_is_called() -> None:
    class Bounded(SubnetLinear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).tanh()

    layer = Bounded(torch.nn.Linear(32, 48).double(), "weights")
    x = torch.randint(0, 2, (4, 2, 20, 32)).double()
    torch.testing.assert_close(linear_rows(x, layer), layer(x))


@pytest.mark.parametrize("name", ["sparse", "event"])
def test_an_unknown_word_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    variable = {"sparse": "SPIKEFORMER_SPARSE", "event": "SPIKEFORMER_EVENTS"}[name]
    monkeypatch.setenv(variable, "sometimes")
    with pytest.raises(ConfigError, match=f"{variable}='sometimes'.*auto, always or never"):
        getattr(dispatch, f"{name}_mode").__wrapped__()


def test_a_subnet_by_lists_gives_removed_weights_their_gradients(monkeypatch) -> None:
    x, _, _, mask, g = case((2, 2, 7, 8, 16), 48, 1)
    layer = torch.nn.Conv2d(16, 48, 3, padding=1, bias=False).double()
    conv, products = SubnetConv2d(layer, "weights"), []
    monkeypatch.setattr(
        sparse, "product", lambda *a, f=sparse.product: products.append(f(*a)) or products[-1]
    )
    for own in (mask, ~mask):
        conv.mask.copy_(own)
        found = []
        for how in ("never", "always"):
            monkeypatch.setattr(dispatch, "sparse_mode", lambda how=how: how)
            out = conv_rows(x, conv)
            found.append((out, *torch.autograd.grad(out, (x, conv.weight), g)))
        assert bool((found[1][2][~own] != 0).all())
        assert conv.kept().chosen == (True, True, False), "the weights' gradient is dense"
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.detach().abs().max()))
    assert len(products) == 2 and all(out is not None for out in products)
