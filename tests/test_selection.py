"""The exact choice of lowest scores, against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import MaskError
from spikeformer_lt.mask import _over_threshold, keep_largest, select

FEW = st.sampled_from([0.0, -0.0, 1.0, 2.0, float("inf"), float("-inf")])


@given(st.lists(FEW | st.floats(-3, 3, width=32), min_size=1, max_size=40), st.data())
def test_the_partition_agrees_with_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    scores = torch.tensor(values)
    removed = data.draw(st.integers(0, len(values)))
    # Lowest score first, and of equal ones the highest index first.
    order = sorted(range(len(values)), key=lambda i: (scores[i], -i))
    expected = torch.ones(len(values), dtype=torch.bool)
    expected[order[:removed]] = False
    assert torch.equal(keep_largest(scores, len(values) - removed), expected)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data())
def test_within_and_floor_agree_with_a_greedy_removal(
    sizes: list[int], data: st.DataObject
) -> None:
    total = sum(sizes)
    scores = {
        f"l{i}": torch.tensor(
            data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=torch.float32
        )
        for i, n in enumerate(sizes)
    }
    within = {
        name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))))
        for name, s in scores.items()
    }
    floor = data.draw(st.sampled_from([0.0, 0.1, 0.25, 0.5]))
    sparsity = data.draw(st.integers(0, 19)) / 20
    target = round(sparsity * total)

    kept = {name: flags.tolist() for name, flags in within.items()}
    gone = sum(flags.count(False) for flags in kept.values())
    least = {n: min(np.ceil(floor * len(k) - 1e-9), k.count(True)) for n, k in kept.items()}
    ranked = sorted(
        (float(score), -position, -index, name)
        for position, name in enumerate(scores)
        for index, score in enumerate(scores[name])
    )
    possible = gone <= target
    for _, _, index, name in ranked if possible else []:
        if gone < target and kept[name][-index] and kept[name].count(True) > least[name]:
            kept[name][-index] = False
            gone += 1
    if possible and gone == target:
        found = select(scores, sparsity, "global", within, floor)
        assert {name: flags.tolist() for name, flags in found.items()} == kept
    else:
        with pytest.raises(MaskError, match=r"already removed|impossible"):
            select(scores, sparsity, "global", within, floor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_every_real_type_is_ranked_without_rounding(dtype: torch.dtype) -> None:
    scores = torch.tensor([3, 1, 2, 0], dtype=dtype)
    if dtype is torch.float64:
        scores = 1 + scores * 2.0**-50
    kept = select({"a": scores}, 0.5, "global", None, 0.0)["a"]
    assert kept.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 is outside \[0, 1\); to keep everything use 0.0"),
        ({"sparsity": -0.1}, "sparsity=-0.1 is outside"),
        ({"sparsity": float("nan")}, "sparsity=nan is outside"),
        ({"sparsity": "90"}, "sparsity='90' is outside"),
        ({"sparsity": True}, "sparsity=True is outside"),
        ({"floor": 1.1}, r"floor=1.1 is outside \[0, 1\]"),
        ({"scope": "layers"}, "scope='layers' is not allowed; did you mean 'layer'"),
        ({"scores": {}}, "scores are empty"),
        ({"scores": {"a": torch.ones(0)}}, "layer 'a': scores must be a real tensor"),
        ({"scores": {"a": torch.ones(2, dtype=torch.complex64)}}, "real tensor"),
        ({"scores": {"a": [1.0]}}, "real tensor"),
        ({"floor": 0.8, "sparsity": 0.5}, "at most 0.2 can be removed"),
    ],
)
def test_a_wrong_argument_is_refused(change: dict[str, object], words: str) -> None:
    given_: dict[str, object] = {"scores": {"a": torch.ones(10)}, "sparsity": 0.5}
    given_ |= {"scope": "global", "within": None, "floor": 0.0} | change
    with pytest.raises(MaskError, match=words):
        select(**given_)  # type: ignore[arg-type]


@given(st.lists(FEW, min_size=2, max_size=60), st.data())
def test_the_threshold_of_a_device_agrees_with_the_partition(
    values: list[float], data: st.DataObject
) -> None:
    """The branch for accelerators, run where the tests are."""
    scores = torch.tensor(values)
    count = data.draw(st.integers(0, len(values) - 1))
    assert torch.equal(_over_threshold(scores, count), keep_largest(scores, count))


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_mask_from_given_scores_is_the_same_on_a_gpu(scope: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (64, 32, 3, 3), "b": (100, 70), "c": (5,)}
    drawn = {n: torch.randint(0, 50, s, generator=generator) / 7 for n, s in shapes.items()}
    first = select(drawn, 0.3, scope, None, 0.0)
    for within, floor in ((None, 0.0), (None, 0.2), (first, 0.0), (first, 0.1)):
        here = select(drawn, 0.7, scope, within, floor)
        there = select({n: s.cuda() for n, s in drawn.items()}, 0.7, scope, within, floor)
        assert all(there[n].is_cuda and torch.equal(there[n].cpu(), here[n]) for n in here)
