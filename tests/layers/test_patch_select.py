from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.patches import (
    SCORES,
    PatchScore,
    PatchSelect,
    gather_tokens,
    kept_count,
    make_score,
    top_tokens,
)

T, B, D, SIDE, PATCH = 4, 3, 16, 16, 4
N = (SIDE // PATCH) ** 2


class Given(PatchScore):
    """Scores that the test lays down."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, *args: object) -> torch.Tensor:
        return self.scores


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    tokens = (torch.rand(T, B, N, D, generator=g) < 0.4).double()
    current = torch.randn(T, B, N, D, generator=g, dtype=torch.float64)
    images = torch.randn(T, B, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    return tokens, current, images


def make(kind: str, sparsity: float = 0.5, **options: object) -> PatchSelect:
    torch.manual_seed(1)
    return PatchSelect(make_score(kind, D, 5, 4), sparsity, **options).double()


@pytest.mark.parametrize(
    ("tokens", "sparsity", "kept"),
    [(64, 0.314, 44), (64, 0.376, 40), (64, 0.0, 64), (64, 0.999, 1), (1, 0.9, 1), (16, 0.5, 8)],
)
def test_the_published_numbers_of_kept_tokens(tokens: int, sparsity: float, kept: int) -> None:
    assert kept_count(tokens, sparsity) == kept


@given(st.integers(1, 300), st.floats(0, 1, exclude_max=True))
def test_the_kept_count_is_exact_and_never_zero(tokens: int, sparsity: float) -> None:
    kept = kept_count(tokens, sparsity)
    assert 1 <= kept <= tokens
    assert abs((tokens - kept) - sparsity * tokens) <= 0.5 or kept == 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
@pytest.mark.fault(48)
def test_the_best_tokens_stay_whatever_the_ties(levels: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(levels)))
    scores = torch.tensor([levels, levels[::-1]], dtype=torch.float32)
    expected = sorted(range(len(levels)), key=lambda i: (-levels[i], i))[:keep]
    assert top_tokens(scores, keep, "index")[0].tolist() == sorted(expected)
    found = top_tokens(scores, keep)
    assert found.shape == (2, keep) and (found.diff(dim=1) > 0).all()
    best = torch.tensor(sorted(levels, reverse=True)[:keep]).float()
    for row, index in zip(scores, found, strict=True):
        assert torch.equal(row[index].sort(descending=True).values, best)
    assert torch.equal(top_tokens(scores[1:].double(), keep), found[1:])


@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.fault(97)
def test_equal_scores_prefer_no_part_of_the_images(side: int) -> None:
    count, keep = side**2, side**2 // 2
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (4000, count), generator=generator).float()
    kept = torch.zeros(len(scores), count).scatter_(1, top_tokens(scores, keep), 1.0)
    share = kept.mean(0).view(side, side)
    assert (share - 0.5).abs().max() < 0.04, share  # five standard errors
    first = torch.zeros(len(scores), count).scatter_(1, top_tokens(scores, keep, "index"), 1.0)
    assert first.mean(0).view(side, side)[0].mean() > 0.6
    rows = top_tokens(torch.zeros(1, count), keep)[0] // side  # of a blank image, too
    assert abs(float(rows.float().mean()) - (side - 1) / 2) < 0.2 * side


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.314, 0.9])
def test_indices_are_unique_sorted_in_range_and_exact_in_number(
    kind: str, training: bool, sparsity: float
) -> None:
    select = make(kind, sparsity).train(training)
    index, _ = select(*inputs(), T)
    assert index.shape == (B, N - round(sparsity * N))
    assert index.dtype == torch.int64
    assert (index.diff(dim=1) > 0).all()
    assert index.min() >= 0 and index.max() < N
    if sparsity == 0:
        assert torch.equal(index, torch.arange(N).expand(B, -1))


def test_equal_scores_keep_the_first_tokens_where_that_is_asked_for() -> None:
    select = PatchSelect(Given(torch.zeros(B, N)), 0.25, ties="index")
    index, multiplier = select(*inputs(), T)
    assert torch.equal(index, torch.arange(12).expand(B, -1))
    assert multiplier is None
    with pytest.raises(ConfigError, match="patch ties='row' is not one of hash, index"):
        PatchSelect(Given(torch.zeros(B, N)), 0.25, ties="row")


@pytest.mark.fault(97)
def test_a_selector_that_was_never_trained_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for trained in (False, True):
        caplog.clear()
        select = make("attention").eval()
        if trained:
            select.score.block.train()(inputs()[0], T)
        select.eval()(*inputs(), T)
        select(*inputs(), T)
        assert caplog.text.count("was never trained") == (not trained)


def test_the_same_tokens_are_gathered_at_every_step() -> None:
    tokens = inputs()[0]
    index = torch.tensor([[0, 3, 15], [1, 2, 4], [7, 8, 9]])
    out = gather_tokens(tokens, index)
    for t in range(T):
        for b in range(B):
            assert torch.equal(out[t, b], tokens[t, b, index[b]])
    assert torch.equal(gather_tokens(tokens[:1], index), out[:1])


def test_gathering_sends_gradients_to_the_kept_tokens_alone() -> None:
    tokens = inputs()[0].requires_grad_()
    index = torch.tensor([[0, 3, 15], [1, 2, 4], [7, 8, 9]])
    gather_tokens(tokens, index).sum().backward()
    reached = torch.zeros(B, N).scatter_(1, index, 1.0)
    assert torch.equal(tokens.grad, reached[None, :, :, None].expand_as(tokens).double())


@pytest.mark.parametrize("kind", [k for k in SCORES if k != "gumbel"])
def test_selection_passes_no_gradient_unless_it_learns(kind: str) -> None:
    tokens, current, images = (x.requires_grad_() for x in inputs())
    select = make(kind)
    index, multiplier = select(tokens, current, images, T)
    assert multiplier is None and not index.requires_grad
    assert all(p.grad is None for p in select.parameters())


def test_the_predictor_learns_through_a_multiplier_that_is_exactly_one() -> None:
    select = make("gumbel").train()
    for _ in range(50):  # any score, also those whose sigmoid is not a round number
        index, multiplier = select(*inputs(), T)
        assert multiplier.shape == (1, B, N // 2, 1)
        assert torch.equal(multiplier, torch.ones_like(multiplier))
    tokens = inputs()[0]
    kept = gather_tokens(tokens, index)
    assert torch.equal(kept * multiplier, kept), "tokens must stay spikes"
    slope = torch.randn_like(kept)
    (kept * multiplier * slope).sum().backward()
    for name, parameter in select.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_the_multiplier_is_exactly_one_in_single_precision_too() -> None:
    select = make("gumbel").float().train()
    for seed in range(50):
        _, multiplier = select(*(x.float() for x in inputs(seed)), T)
        assert torch.equal(multiplier, torch.ones_like(multiplier))


def test_the_predictors_gradient_raises_the_tokens_that_help() -> None:
    select = make("gumbel", 0.0).train()
    tokens = inputs()[0]
    _, multiplier = select(tokens, *inputs()[1:], T)
    (tokens * multiplier)[:, :, 5].sum().backward()  # token 5 is to shrink
    with torch.no_grad():
        before = torch.sigmoid(select.eval().score(*inputs(), T))[:, 5].mean()
        for p in select.parameters():
            p -= 1e-2 * p.grad
        after = torch.sigmoid(select.score(*inputs(), T))[:, 5].mean()
    assert after < before


def test_evaluation_of_a_learned_score_repeats() -> None:
    select = make("gumbel").eval()
    first, multiplier = select(*inputs(), T)
    assert multiplier is None
    assert torch.equal(select(*inputs(), T)[0], first)
    select.train()
    drawn = {tuple(select(*inputs(), T)[0].flatten().tolist()) for _ in range(5)}
    assert len(drawn) == 5


def test_a_frozen_predictor_makes_no_multiplier() -> None:
    select = make("gumbel").train().requires_grad_(False)
    assert select(*inputs(), T)[1] is None


def test_no_gradient_is_recorded_where_it_is_switched_off() -> None:
    select = make("gumbel").train()
    with torch.no_grad():
        _, multiplier = select(*inputs(), T)
    assert not multiplier.requires_grad


def test_a_trained_selector_stays_as_it_was_trained() -> None:
    """Its BatchNorm must not follow, or be moved by, the batches of the model it serves."""
    select = make("attention")
    wrapped = nn.Sequential(select).train()
    assert select.training and not any(m.training for m in select.score.modules())
    before = copy.deepcopy(select.state_dict())
    tokens, current, images = inputs()
    index, _ = select(tokens, current, images, T)
    assert all(torch.equal(v, before[n]) for n, v in select.state_dict().items())
    for module in select.score.modules():
        if hasattr(module, "reset"):
            module.reset()
    alone, _ = select(tokens[:, :1], current[:, :1], images[:, :1], T)
    assert torch.equal(alone, index[:1]), "in training, too, an image is scored by itself"
    select.score.train()  # its own training asks for this
    assert select.score.block.attn.q.norm.training
    wrapped.train()
    assert not select.score.block.attn.q.norm.training


def test_scores_are_computed_in_full_precision_under_autocast() -> None:
    """256 channels differ by one spike in T*D: bfloat16 would call the rates equal."""
    tokens = torch.zeros(1, 1, 4, 512, dtype=torch.bfloat16)
    for n, count in enumerate((300, 301, 302, 303)):
        tokens[0, 0, n, :count] = 1
    select = PatchSelect(make_score("rate", 512, 5, 4), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        index, _ = select(tokens, tokens, torch.zeros(1, 1, 3, 8, 8), 1)
    assert index.tolist() == [[2, 3]]
    dtypes = []
    learned = PatchSelect(make_score("gumbel", 512, 5, 4), 0.5)
    learned.score.net[0].register_forward_hook(lambda m, args, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        learned(tokens, tokens, torch.zeros(1, 1, 3, 8, 8), 1)
    assert dtypes == [torch.float32]


def test_pixels_of_removed_patches_become_zero_and_no_others() -> None:
    images = inputs()[2]
    index = torch.tensor([[0, 3, 15], [1, 2, 4], [7, 8, 9]])
    masked = make("rate", space="pixel").mask_pixels(images, index, N)
    for b in range(B):
        for n in range(N):
            row, column = divmod(n, SIDE // PATCH)
            window = (
                ...,
                slice(row * PATCH, (row + 1) * PATCH),
                slice(column * PATCH, (column + 1) * PATCH),
            )
            kept = n in index[b]
            expected = images[:, b][window] * kept
            assert torch.equal(masked[:, b][window].abs(), expected.abs())
            assert bool((masked[:, b][window] != 0).any()) is kept


def test_pixels_of_an_oblong_image_find_their_patches() -> None:
    images = torch.ones(1, 1, 1, 8, 16)
    masked = make("rate", space="pixel").mask_pixels(images, torch.tensor([[5]]), 8)
    assert masked.sum() == 16
    assert masked[0, 0, 0, 4:8, 4:8].all()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, 90, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match=r"patch sparsity=.* is outside \[0, 1\)"):
        make("rate", sparsity)


def test_an_unknown_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch space='image' is not one of token, pixel"):
        make("rate", space="image")


@pytest.mark.parametrize("ties", ["hash", "index"])
def test_the_ranking_that_graphs_get_is_the_same(
    ties: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randint(0, 4, (50, 9), generator=torch.Generator().manual_seed(0)).float()
    for keep in range(1, 10):
        wanted = top_tokens(scores, keep, ties)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            assert torch.equal(top_tokens(scores, keep, ties), wanted)
