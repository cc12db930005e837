"""Masks: exact counts, lawful algebra, weights that stay zero."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from spikeformer_lt.disk import write_tensors
from spikeformer_lt.errors import CheckpointError, MaskError
from spikeformer_lt.mask import Mask

SHAPES = st.lists(
    st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
)
SPARSITY = st.floats(0, 1, exclude_max=True)


def make_scores(shapes: list[tuple[int, ...]], seed: int, levels: int) -> dict[str, Tensor]:
    """Scores with many ties when there are few levels."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer{i}.weight": torch.randint(0, levels, shape, generator=generator).float()
        for i, shape in enumerate(shapes)
    }


SCORES = st.builds(make_scores, SHAPES, st.integers(0, 999), st.sampled_from([1, 2, 5, 1000]))


def entries(scores: dict[str, Tensor]) -> int:
    return sum(score.numel() for score in scores.values())


@given(SCORES, SPARSITY)
@pytest.mark.fault(48)
def test_exactly_the_asked_count_is_removed_ties_or_not(
    scores: dict[str, Tensor], sparsity: float
) -> None:
    n = entries(scores)
    mask = Mask.from_scores(scores, sparsity)
    assert mask.removed == round(sparsity * n)
    assert mask.sparsity == round(sparsity * n) / n
    for kept, score in zip(mask.values(), scores.values(), strict=True):
        assert kept.dtype is torch.bool
        assert kept.shape == score.shape


@given(SCORES, SPARSITY)
def test_in_scope_layer_each_layer_has_its_exact_count(
    scores: dict[str, Tensor], sparsity: float
) -> None:
    mask = Mask.from_scores(scores, sparsity, scope="layer")
    expected = {k: round(sparsity * s.numel()) / s.numel() for k, s in scores.items()}
    assert mask.layer_sparsity() == expected


@given(SCORES, SPARSITY)
def test_no_removed_score_is_above_a_kept_one(scores: dict[str, Tensor], sparsity: float) -> None:
    mask = Mask.from_scores(scores, sparsity)
    kept = torch.cat([scores[name][flags] for name, flags in mask.items()])
    removed = torch.cat([scores[name][~flags] for name, flags in mask.items()])
    if len(kept) and len(removed):
        assert kept.min() >= removed.max()


@pytest.mark.fault(48)
def test_of_equal_scores_the_lower_flat_index_stays_layers_in_order() -> None:
    scores = {"b": torch.zeros(2, 2), "a": torch.zeros(4)}
    mask = Mask.from_scores(scores, 0.625)
    assert mask["b"].tolist() == [[True, True], [True, False]]
    assert mask["a"].tolist() == [False] * 4
    assert Mask.from_scores({"b": torch.tensor([0.0, -0.0])}, 0.5)["b"].tolist() == [True, False]


@given(SCORES, SPARSITY)
def test_other_layer_order_gives_the_same_mask_where_no_tie_decides(
    scores: dict[str, Tensor], sparsity: float
) -> None:
    ranks = iter(torch.randperm(entries(scores)).float().tolist())
    distinct = {k: torch.tensor([next(ranks) for _ in range(s.numel())]) for k, s in scores.items()}
    turned = dict(reversed(distinct.items()))
    assert Mask.from_scores(distinct, sparsity) == Mask.from_scores(turned, sparsity)


@given(SCORES, SPARSITY, SPARSITY)
def test_a_mask_within_another_keeps_nothing_that_it_dropped(
    scores: dict[str, Tensor], one: float, two: float
) -> None:
    low, high = sorted((one, two))
    outer = Mask.from_scores({k: s.flip(0) for k, s in scores.items()}, low)
    inner = Mask.from_scores(scores, high, within=outer)
    assert inner.removed == round(high * entries(scores))
    assert not any((inner[name] & ~outer[name]).any() for name in inner)


def test_a_mask_within_a_sparser_one_is_refused_with_the_counts() -> None:
    scores = {"a": torch.rand(10)}
    outer = Mask.from_scores(scores, 0.8)
    with pytest.raises(
        MaskError, match=r"remove 5 of 10 .*already removed 8; ask for at least 0.8"
    ):
        Mask.from_scores(scores, 0.5, within=outer)


@given(SCORES, st.sampled_from([0.1, 0.3, 0.5]))
def test_a_floor_keeps_that_much_of_each_layer(scores: dict[str, Tensor], floor: float) -> None:
    n = entries(scores)
    sparsity = sum(int((1 - floor) * s.numel()) for s in scores.values()) / n
    mask = Mask.from_scores(scores, sparsity, floor=floor)
    assert mask.removed == round(sparsity * n)
    assert all(kept.sum() >= floor * kept.numel() - 1e-6 for kept in mask.values())


def test_a_floor_is_not_raised_by_rounding() -> None:
    assert 0.07 * 100 > 7
    assert Mask.from_scores({"a": torch.rand(100)}, 0.93, floor=0.07).removed == 93


@pytest.mark.fault(49)
def test_a_nan_score_is_refused_with_layer_and_count() -> None:
    with pytest.raises(MaskError, match="layer 'b': 2 of 4 scores are NaN"):
        Mask.from_scores({"a": torch.ones(2), "b": torch.tensor([1, float("nan")] * 2)}, 0.5)


def test_infinite_scores_have_a_rank() -> None:
    scores = {"a": torch.tensor([float("inf"), float("-inf"), 0.0, 1.0])}
    assert Mask.from_scores(scores, 0.25)["a"].tolist() == [True, False, True, True]


def test_strided_scores_are_ranked_by_their_logical_index() -> None:
    scores = torch.arange(12.0).view(3, 4).t()
    plain = Mask.from_scores({"a": scores.contiguous()}, 0.5)
    assert Mask.from_scores({"a": scores}, 0.5) == plain


@given(SCORES, SCORES, SPARSITY)
def test_hamming_is_a_metric(a: dict[str, Tensor], b: dict[str, Tensor], sparsity: float) -> None:
    x = Mask.from_scores(a, sparsity)
    y = Mask.random_like(x, 1)
    z = Mask.random_like(x, 2)
    assert x.hamming(x) == 0
    assert (x.hamming(y) == 0) == (x == y)
    assert x.hamming(y) == y.hamming(x)
    assert x.hamming(z) <= x.hamming(y) + y.hamming(z) + 1e-12
    assert 0 <= x.hamming(y) <= 1


def test_hamming_counts_entries() -> None:
    x = Mask({"a": torch.tensor([True, True]), "b": torch.tensor([True, False])})
    y = Mask({"b": torch.tensor([False, True]), "a": torch.tensor([True, True])})
    assert x.hamming(y) == 0.5
    with pytest.raises(MaskError, match="layer 'b' of the mask is not in the other mask"):
        x.hamming(Mask({"a": x["a"]}))
    with pytest.raises(MaskError, match="layer 'b' of the other mask is not in the mask"):
        Mask({"a": x["a"]}).hamming(x)
    with pytest.raises(MaskError, match=r"shape \[2\], the other mask has \[1, 2\]"):
        x.hamming(Mask({"a": x["a"][None], "b": x["b"]}))


@given(SCORES, SPARSITY, st.integers(0, 9))
def test_a_random_mask_has_the_counts_of_its_model(
    scores: dict[str, Tensor], sparsity: float, seed: int
) -> None:
    mask = Mask.from_scores(scores, sparsity)
    drawn = Mask.random_like(mask, seed)
    assert drawn.layer_sparsity() == mask.layer_sparsity()
    assert drawn == Mask.random_like(mask, seed)


def test_random_masks_differ_by_seed_and_by_layer_and_leave_the_global_stream_alone() -> None:
    half = torch.arange(200) < 100
    mask = Mask({"a": half, "b": half})
    state = torch.get_rng_state()
    one, two = Mask.random_like(mask, 1), Mask.random_like(mask, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert one != two
    assert not torch.equal(one["a"], one["b"])
    assert 0.3 < one.hamming(two) < 0.7
    assert torch.equal(Mask.random_like(Mask({"a": half}), 1)["a"], one["a"])


def make_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    return model.to(memory_format=torch.channels_last)


def prunable(model: nn.Module) -> dict[str, Tensor]:
    return {k: p.detach().abs() for k, p in model.named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.fault(47)
def test_applying_sets_removed_weights_to_plus_zero_and_touches_no_other(
    dtype: torch.dtype,
) -> None:
    model = make_model().to(dtype)
    before = copy.deepcopy(model.state_dict())
    mask = Mask.from_scores(prunable(model), 0.6)
    mask.apply_(model)
    for name, tensor in model.state_dict().items():
        expected = torch.where(mask[name], before[name], 0.0) if name in mask else before[name]
        assert torch.equal(tensor, expected)
    for name, kept in mask.items():
        removed = model.state_dict()[name][~kept]
        assert not torch.signbit(removed).any()
    once = copy.deepcopy(model.state_dict())
    mask.apply_(model)
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


def test_a_removed_weight_that_became_nan_is_zero_again() -> None:
    model = make_model()
    mask = Mask.from_scores(prunable(model), 0.6)
    with torch.no_grad():
        model[3].weight.masked_fill_(~mask["3.weight"], float("nan"))
    mask.apply_(model)
    assert torch.equal(model[3].weight == 0, ~mask["3.weight"])


@pytest.mark.fault(47)
def test_training_with_momentum_and_decay_regrows_nothing() -> None:
    model = nn.Linear(20, 5)
    mask = Mask.from_scores({"weight": model.weight.detach().abs()}, 0.7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        mask.apply_(model)
        assert int((model.weight == 0).sum()) == mask.removed


def test_a_frozen_weight_in_a_buffer_is_masked() -> None:
    model = nn.Module()
    model.register_buffer("weight", torch.ones(4))
    Mask({"weight": torch.tensor([True, False, True, False])}).apply_(model)
    assert model.weight.tolist() == [1, 0, 1, 0]


def test_a_backward_that_needs_the_old_weights_notices_the_change() -> None:
    model = nn.Linear(3, 3)
    inputs = torch.randn(2, 3, requires_grad=True)
    loss = model(inputs).sum()
    Mask({"weight": torch.eye(3) > 0}).apply_(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.fault(14)
def test_a_mask_that_does_not_fit_is_refused_by_layer() -> None:
    model = make_model()
    with pytest.raises(MaskError, match=r"layer '3.weight'.*shape \[4, 11\].*\[4, 12\]"):
        Mask({"3.weight": torch.ones(4, 11)}).apply_(model)
    with pytest.raises(MaskError, match=r"'module.3.weight' .*did you mean '3.weight'"):
        Mask({"module.3.weight": torch.ones(4, 12)}).check(model)
    with pytest.raises(MaskError, match="int64 weights cannot be masked"):
        Mask({"1.num_batches_tracked": torch.tensor(True)}).apply_(model)


@pytest.mark.fault(14)
def test_check_refuses_a_dead_layer_unless_told() -> None:
    model = make_model()
    dead = Mask({"0.weight": torch.zeros(3, 2, 3, 3), "3.weight": torch.ones(4, 12)})
    with pytest.raises(MaskError, match=r"layer '0.weight': all 54 .*pass allow_layer_collapse"):
        dead.check(model)
    dead.check(model, allow_layer_collapse=True)


@pytest.mark.fault(14)
def test_check_refuses_weights_that_are_not_finite() -> None:
    model = make_model()
    mask = Mask.from_scores(prunable(model), 0.5)
    mask.check(model)
    with torch.no_grad():
        model[3].weight[0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(MaskError, match=r"layer '3.weight': 2 of 48 weights are NaN or infinite"):
        mask.check(model)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({}, "at least one layer"),
        ({"a": torch.tensor([0.0, 0.5, 2.0, 1.0])}, "layer 'a': 2 of 4 mask values are neither"),
        ({"a": torch.tensor([float("nan")])}, "1 of 1 mask values"),
        ({"a": torch.ones(0)}, "at least one entry"),
        ({"a": [True]}, "needs a tensor"),
        ({"x\ny": torch.tensor([3])}, r"layer 'x\\ny'"),
    ],
)
@pytest.mark.fault(14)
def test_what_is_no_mask_is_refused(kept: dict[str, Tensor], words: str) -> None:
    with pytest.raises(MaskError, match=words):
        Mask(kept)


def test_zeros_and_ones_of_any_type_are_a_mask_and_are_copied() -> None:
    for dtype in (torch.float32, torch.bool, torch.uint8):
        given_ = torch.tensor([0, 1]).to(dtype)
        mask = Mask({"a": given_})
        given_.fill_(0)
        assert mask["a"].tolist() == [False, True]
    assert mask == Mask({"a": torch.tensor([False, True])})


def test_the_hash_follows_names_shapes_and_entries_only() -> None:
    a, b = torch.tensor([True, False]), torch.tensor([[True], [True]])
    mask = Mask({"a": a, "b": b})
    same = Mask({"b": b, "a": a})
    assert mask == same
    assert hash(mask) == hash(same)
    others = [{"a": ~a, "b": b}, {"a": a, "b": b.view(2)}, {"a": a, "c": b}, {"a": a}]
    assert len({mask, *map(Mask, others)}) == 5
    assert mask != {"a": a, "b": b}


@given(SCORES, SPARSITY)
def test_a_saved_mask_comes_back(scores: dict[str, Tensor], sparsity: float) -> None:
    mask = Mask.from_scores(scores, sparsity)
    with tempfile.TemporaryDirectory() as folder:
        mask.save(f"{folder}/m")
        loaded = Mask.load(f"{folder}/m")
    assert loaded == mask
    assert list(loaded) == list(mask)


def test_a_file_of_something_else_is_no_mask(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", {"a": torch.ones(2)}, {"kind": "ticket weights"})
    with pytest.raises(MaskError, match=r"not a mask .its kind is 'ticket weights'"):
        Mask.load(tmp_path / "w")
    write_tensors(tmp_path / "m", {"a": torch.ones(2)}, {"kind": "mask", "mask_sha256": "0"})
    with pytest.raises(MaskError, match="checksum differs"):
        Mask.load(tmp_path / "m")
    (tmp_path / "p").write_bytes(pickle.dumps({"a": True}))
    with pytest.raises(CheckpointError, match="pickle"):
        Mask.load(tmp_path / "p")


def test_a_mask_can_be_copied_and_sent_to_a_worker() -> None:
    model = make_model()
    mask = Mask.from_scores(prunable(model), 0.5)
    mask.apply_(model)
    assert copy.deepcopy(mask) == mask
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert repr(mask) == "Mask(2 layers, 51 of 102 entries removed)"
    assert repr(Mask({"a": torch.ones(1200)})) == "Mask(1 layer, 0 of 1,200 entries removed)"


def test_only_parameters_and_buffers_are_weights():
    """`prune` leaves a plain tensor under the name of a weight: no mask may take it for one."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    mask = Mask({"0.weight": torch.ones(4, 4) > 0})
    assert mask.weights(model)["0.weight"] is model[0].weight
    prune.identity(model[0], "weight")
    with pytest.raises(MaskError, match="0.weight"):
        mask.apply_(model)
