from __future__ import annotations

import pytest
import torch

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.patches import SCORES, Gumbel, PatchScore, grid_of, make_score

T, B, D = 4, 3, 16
SIDE, PATCH = 16, 4
N = (SIDE // PATCH) ** 2


def inputs(
    steps: int = T, batch: int = B, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spiking tokens, currents and images of a batch."""
    g = torch.Generator().manual_seed(seed)
    tokens = (torch.rand(steps, batch, N, D, generator=g) < 0.4).double()
    current = torch.randn(steps, batch, N, D, generator=g, dtype=torch.float64)
    images = torch.randn(steps, batch, 3, SIDE, SIDE, generator=g)
    return tokens, current, images


def make(kind: str, awaken=None) -> PatchScore:
    score = make_score(kind, D, num_classes=5, num_heads=4).double()
    if kind == "attention":
        awaken(score, lambda module: module.logits(inputs()[0], T))
    return score.eval()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("steps", [1, T])
def test_every_score_is_one_finite_number_for_each_token(awaken, kind: str, steps: int) -> None:
    scores = make(kind, awaken)(*inputs(steps), T)
    assert scores.shape == (B, N)
    assert scores.isfinite().all()
    assert all(len(row.unique()) > N // 4 for row in scores), "a score must tell tokens apart"


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(awaken, kind: str) -> None:
    score, (tokens, current, images) = make(kind, awaken), inputs()
    whole = score(tokens, current, images, T)
    order = torch.tensor([2, 0, 1])
    permuted = score(tokens[:, order], current[:, order], images[:, order], T)
    assert torch.equal(permuted, whole[order])
    for b in range(B):
        part = slice(b, b + 1)
        alone = score(tokens[:, part], current[:, part], images[:, part], T)
        assert torch.equal(alone[0], whole[b])


@pytest.mark.parametrize("kind", SCORES)
def test_equal_copies_along_time_score_as_the_one_image_they_are(awaken, kind: str) -> None:
    score, once = make(kind, awaken), inputs(1)
    first = score(*once, T)
    copies = score(*(x.expand(T, *x.shape[1:]) for x in once), T)
    assert torch.allclose(copies, first, rtol=0, atol=1e-15)
    assert kind in ("l2", "tp", "gumbel") or torch.equal(copies, first)


def test_rate_is_the_mean_number_of_spikes() -> None:
    tokens, current, images = inputs()
    expected = torch.tensor(
        [[float(tokens[:, b, n].sum()) / (T * D) for n in range(N)] for b in range(B)]
    )
    assert torch.equal(make("rate")(tokens, current, images, T), expected.double())


def test_l2_is_the_length_of_the_current() -> None:
    tokens, current, images = inputs()
    score = make("l2")
    assert score.needs == "current"
    lengths = current.norm(dim=-1).mean(0)
    assert torch.allclose(score(tokens, current, images, T), lengths, rtol=1e-12, atol=0)
    assert torch.equal(score(1 - tokens, current, images, T), score(tokens, current, images, T))


def test_tp_is_temporal_change_plus_spatial_contrast_written_out() -> None:
    tokens, current, images = inputs()
    side = SIDE // PATCH
    temporal, spatial = torch.zeros(2, B, N, dtype=torch.float64)
    for b in range(B):
        mean = tokens[:, b].mean(0)
        for n in range(N):
            level = tokens[:, b, n].mean(-1)
            temporal[b, n] = (level[1:] - level[:-1]).abs().mean()
            row, column = divmod(n, side)
            near = [
                mean[r * side + c]
                for r in range(max(0, row - 1), min(side, row + 2))
                for c in range(max(0, column - 1), min(side, column + 2))
            ]
            around = torch.stack(near).mean(0)
            spatial[b, n] = -(mean[n] @ around) / (mean[n].norm() * around.norm())
    expected = temporal.softmax(1) + spatial.softmax(1)
    out = make("tp")(tokens, current, images, T)
    assert torch.allclose(out, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 2])
def test_tp_of_silent_tokens_or_one_step_is_no_nan(steps: int) -> None:
    tokens, current, images = inputs(steps)
    tokens[:, 0] = 0
    tokens[:, 1, 3] = 0
    assert make("tp")(tokens, current, images, T).isfinite().all()


def test_random_repeats_and_differs_between_images_and_tokens() -> None:
    score, (tokens, current, images) = make("random"), inputs()
    first = score(tokens, current, images, T)
    torch.manual_seed(99)
    assert torch.equal(score(1 - tokens, -current, images, T), first)
    assert first.dtype == torch.float64
    assert len(first.unique()) == B * N
    assert ((first >= 0) & (first < 1)).all()
    orders = {tuple(row.argsort().tolist()) for row in first}
    assert len(orders) == B
    nudged = images.clone()
    nudged[0, 0, 0, 0, 0] = torch.nextafter(nudged[0, 0, 0, 0, 0], torch.tensor(9.0))
    other = score(tokens, current, nudged, T)
    assert not torch.equal(other[0].argsort(), first[0].argsort())
    assert torch.equal(other[1:], first[1:])


@pytest.mark.parametrize("frame", range(T))
def test_random_reads_every_frame_of_a_recording(frame: int) -> None:
    score, (tokens, current, images) = make("random"), inputs()
    changed = images.clone()
    changed[frame, 0, 0, 5, 5] += 1
    one, other = (score(tokens, current, x, T) for x in (images, changed))
    assert not torch.equal(one[0].argsort(), other[0].argsort())
    assert torch.equal(one[1:], other[1:])


def test_random_reads_the_order_of_frames() -> None:
    score, (tokens, current, images) = make("random"), inputs()
    swapped = images[[0, 2, 1, 3]]
    one, other = (score(tokens, current, x, T) for x in (images, swapped))
    assert not torch.equal(one.argsort(1), other.argsort(1))


def test_random_is_fair_to_every_position() -> None:
    images = torch.randn(1, 2000, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    tokens = torch.zeros(1, 2000, N, 1)
    scores = make("random")(tokens, tokens, images, T)
    kept = torch.zeros(2000, N).scatter_(1, scores.topk(N // 2, dim=1).indices, 1.0)
    # Binomial(2000, 1/2) has deviation 22: all of 16 positions within 4 of them.
    assert (kept.sum(0) - 1000).abs().max() < 90
    assert (torch.corrcoef(scores.T) - torch.eye(N)).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_random_takes_every_dtype(dtype: torch.dtype) -> None:
    tokens, current, images = inputs()
    out = make("random")(tokens, current, images.to(dtype), T)
    assert len(out.unique()) == B * N


def test_attention_is_what_the_trained_selector_gives_each_token(awaken) -> None:
    score, (tokens, current, images) = make("attention", awaken), inputs()
    assert score.learned
    received = score(tokens, current, images, T)
    attn = score.block.attn
    q, k = (getattr(attn, n)(tokens, T).unflatten(3, (4, -1)).transpose(2, 3) for n in "qk")
    assert 0.05 < q.mean() < 0.6 and 0.05 < k.mean() < 0.6
    expected = (q @ k.transpose(-2, -1)).sum(-2).mean((0, 2))
    assert torch.equal(received, expected)


def test_the_selector_learns_from_its_own_logits(awaken) -> None:
    score = make("attention", awaken).train()
    logits = score.logits(inputs()[0], T)
    assert logits.shape == (B, T, 5)
    logits.square().sum().backward()
    for name in ("q", "k"):
        assert getattr(score.block.attn, name).linear.weight.grad.abs().sum() > 0


def test_gumbel_noise_is_for_training_only() -> None:
    score, args = Gumbel(D).double(), inputs()
    score.eval()
    assert torch.equal(score(*args, T), score(*args, T))
    logits = score(*args, T)
    score.train()
    assert not torch.equal(score(*args, T), score(*args, T))
    many = torch.stack([score(*args, T) - logits for _ in range(400)]).detach()
    # The Gumbel distribution has mean 0.5772 and deviation 1.2825.
    assert many.mean().item() == pytest.approx(0.5772, abs=0.05)
    assert many.std().item() == pytest.approx(1.2825, abs=0.05)
    assert many.isfinite().all()


def test_an_unknown_score_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'speed' is not one of rate, l2, attention, tp"):
        make_score("speed", D, 10, 4)


def test_only_the_scores_that_need_it_ask_for_currents_or_training() -> None:
    made = {kind: make_score(kind, D, 10, 4) for kind in SCORES}
    wants = {kind: score.needs for kind, score in made.items() if score.needs}
    assert wants == {"l2": "current", "qk": "gates"}
    assert {kind for kind, score in made.items() if score.learned} == {"attention"}
    assert {kind for kind, score in made.items() if list(score.parameters())} == {
        "attention",
        "gumbel",
    }


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [(64, (32, 32), (8, 8)), (64, (128, 128), (8, 8)), (8, (8, 16), (2, 4)), (1, (4, 4), (1, 1))],
)
def test_the_grid_of_square_patches(
    count: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert grid_of(count, torch.Size(size)) == grid
