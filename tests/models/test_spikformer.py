from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import ConfigError, SpikeformerError
from spikeformer_lt.layers.neuron import make_lif
from spikeformer_lt.layers.patches import SCORES, Gumbel, PatchScore, PatchSelect, make_score
from spikeformer_lt.layers.stems import ACTIVATIONS, RESIDUALS
from spikeformer_lt.layers.subnet import SubnetConv2d, rankings, set_masks
from spikeformer_lt.mask import Mask
from spikeformer_lt.models.spikformer import Spikformer
from spikeformer_lt.registry import create_model, list_models

SMALL = {"image_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
T, B, K, N = 4, 3, 10, 16
OWN = [kind for kind in SCORES if kind != "qk"]  # that one asks for token attention


def pictures(batch: int = B, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, 16, 16, generator=generator, dtype=torch.float64)


def frames(batch: int = B, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, T, 3, 16, 16, generator=generator, dtype=torch.float64)


@pytest.fixture
def make(awaken):
    """Give a function that builds a small float64 Spikformer in which every layer fires."""

    def build(x: torch.Tensor | None = None, centre: float = 0.35, **options) -> Spikformer:
        torch.manual_seed(3)
        model = Spikformer(**{**SMALL, "attn_scale": 0.25, **options}).double()
        images = pictures() if x is None else x
        # A stem that is the same at every step makes products that are, too, and so add up.
        q_k_v = 0.8 if model.conv_pep.activation == "lif" and model.num_tokens < 64 else 0.55
        awaken(model, lambda m: m(images), centre=centre, q_k_v=q_k_v)
        return model.eval()

    return build


def assert_every_layer_fires(seen: dict[str, torch.Tensor], layers: int = 5 + 2 * 7) -> None:
    assert len(seen) == layers
    for name, values in seen.items():
        assert 0.05 < values.mean() < 0.6, f"{name}: {values.mean():.3f}"


# -- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "parameters", "conv_pep"),
    [
        ("spikformer_cifar", {}, 9_324_730, 2_199_312),
        ("spikformer_cifar", {"num_classes": 100}, 9_359_380, 2_199_312),
        ("spikformer_cifar_4_256", {}, 4_155_178, 977_760),
        ("spikformer_cifar_2_384", {}, 5_765_050, 2_199_312),
        ("spikformer_dvs", {}, 2_566_666, 977_472),
    ],
)
def test_the_published_parameter_counts(
    name: str, options: dict[str, int], parameters: int, conv_pep: int
) -> None:
    """Published totals less the LayerNorms and the position table that no forward reads."""
    with torch.device("meta"):
        model = create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    convs = [m.weight.numel() for m in model.conv_pep.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 5 and sum(convs) == conv_pep


def test_the_small_models_are_small() -> None:
    for name in ("spikformer_toy", "spikformer_digits"):
        model = create_model(name)
        prunable = sum(p.numel() for p in model.parameters() if p.ndim > 1)
        assert prunable < (50_000 if name == "spikformer_toy" else 150_000)


@pytest.mark.parametrize("name", [n for n in list_models() if n.startswith("spikformer")])
def test_every_registered_size_can_be_built_and_says_what_it_is(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7, T=2)
    assert model.head.out_features == 7 and model.T == 2
    assert len(model.blocks) >= 2 and model.num_tokens in (16, 64, 196)


# -- the door ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, T])
@pytest.mark.parametrize("batch", [1, B])
def test_images_and_frames_give_logits_batch_first(make, steps: int, batch: int) -> None:
    model = make(T=steps)
    logits = model(pictures(batch))
    assert logits.shape == (batch, steps, K)
    assert not torch.equal(logits, model(pictures(batch, seed=1)))
    assert model(frames(batch)[:, :steps]).shape == (batch, steps, K)


def test_an_oblong_image_has_oblong_tokens() -> None:
    model = Spikformer(**{**SMALL, "image_size": (8, 16)}).double().eval()
    assert model.num_tokens == 8
    assert model(torch.rand(2, 3, 8, 16).double()).shape == (2, T, K)


BAD_INPUTS = {
    "grey": (torch.rand(B, 1, 16, 16), r"\[3, 1, 16, 16\].*\[B, 3, 16, 16\]"),
    "RGBA": (torch.rand(B, 4, 16, 16), r"\[3, 4, 16, 16\].*\[B, 3, 16, 16\]"),
    "channels last": (torch.rand(B, 16, 16, 3), r"\[3, 16, 16, 3\].*\[B, 3, 16, 16\]"),
    "too large": (torch.rand(B, 3, 32, 32), r"\[3, 3, 32, 32\].*\[B, 3, 16, 16\]"),
    "one pixel": (torch.rand(B, 3, 1, 1), r"\[3, 3, 1, 1\].*frames \[B, T=4, 3, 16, 16\]"),
    "no batch": (torch.rand(3, 16, 16), r"\[3, 16, 16\].*\[B, 3, 16, 16\]"),
    "another axis": (torch.rand(1, B, T, 3, 16, 16), r"neither images .* nor frames"),
    "another T": (torch.rand(B, 2, 3, 16, 16), "expected T=4 at dimension 1.*got 2"),
    "time first": (torch.rand(T, 2, 3, 16, 16), "expected T=4 at dimension 1.*got 2"),
    "bytes": (torch.zeros(B, 3, 16, 16, dtype=torch.uint8), "uint8 is not floating point"),
    "integers": (torch.zeros(B, 3, 16, 16, dtype=torch.int64), "int64 is not floating point"),
    "double": (torch.rand(B, 3, 16, 16).double(), "float64 is not the model's torch.float32"),
    "half": (torch.rand(B, 3, 16, 16).half(), "float16 is not the model's torch.float32"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
@pytest.mark.fault(36, 37)
def test_an_input_of_another_kind_is_refused_by_name(name: str) -> None:
    x, message = BAD_INPUTS[name]
    model = Spikformer(T=T, **SMALL).eval()
    with pytest.raises(ConfigError, match=message):
        model(x)


def test_mixed_precision_takes_its_own_inputs() -> None:
    model = Spikformer(T=2, **SMALL).eval()
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert model(torch.rand(2, 3, 16, 16, dtype=dtype)).shape == (2, 2, K)
        with pytest.raises(ConfigError, match="float64"):
            model(torch.rand(2, 3, 16, 16, dtype=torch.float64))


BAD_SIZES = [
    {"T": 0}, {"T": -1}, {"T": 2.5}, {"num_classes": -1}, {"depth": 0}, {"in_channels": 0},
    {"embed_dim": 0}, {"embed_dim": 36}, {"num_heads": 0}, {"num_heads": 3}, {"mlp_ratio": 0.0},
    {"image_size": 18}, {"image_size": (16, 2)}, {"image_size": (16, 16, 16)}, {"pools": (True,)},
    {"activation": "spike"}, {"residual": "xor"}, {"surrogate": "step"}, {"tau": 1.0},
    {"v_threshold": float("nan")},
]  # fmt: skip


@pytest.mark.parametrize("option", BAD_SIZES, ids=str)
@pytest.mark.fault(35)
def test_a_size_that_cannot_be_built_is_refused_by_name(option: dict[str, Any]) -> None:
    ((field, value),) = option.items()
    with pytest.raises(SpikeformerError) as caught:
        Spikformer(**{**SMALL, **option})
    said = str(caught.value).replace(" size ", "_size ")
    values = {"mlp_ratio": "", "image_size": "", "pools": "True"}
    assert field in said and values.get(field, str(value)) in said


def test_an_unknown_keyword_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"num_head.*did you mean 'num_heads'"):
        create_model("spikformer_toy", num_head=4)


# -- state ---------------------------------------------------------------------------------


def test_two_forwards_are_equal_whatever_ran_in_between(make) -> None:
    model = make()
    first = model(pictures())
    assert torch.equal(model(pictures()), first)
    model.conv_pep(pictures()[None], T)
    assert torch.equal(model(pictures()), first)


@pytest.mark.parametrize(
    "where", ["conv_pep.stages.2", "blocks.0.attn", "blocks.1.mlp.fc2", "head"]
)
@pytest.mark.fault(39)
def test_an_exception_inside_leaves_no_state(make, where: str) -> None:
    model = make()
    first = model(pictures())

    def fail(*args: object) -> None:
        raise RuntimeError("cut")

    handle = model.get_submodule(where).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="cut"):
        model(pictures())
    handle.remove()
    assert torch.equal(model(pictures()), first)


@pytest.mark.fault(40)
def test_a_neuron_that_was_swapped_in_later_is_reset_like_the_others(make) -> None:
    model = make()
    first = model(pictures())
    model.blocks[0].attn.attn_act = make_lif(v_threshold=0.5)
    model.conv_pep.set_activation("lif")
    assert torch.equal(model(pictures()), first)
    assert torch.equal(model(pictures()), first)


def test_a_model_can_be_copied_after_a_forward_and_backward(make) -> None:
    model = make().train()
    model.set_patch(PatchSelect(Gumbel(32).double(), 0.25))
    model(pictures()).sum().backward()
    other = copy.deepcopy(model).eval()
    model.eval()
    assert torch.equal(other(pictures()), model(pictures()))
    with torch.no_grad():
        other.head.weight += 1
    assert not torch.equal(other(pictures()), model(pictures()))


def test_batch_sizes_may_change_from_call_to_call(make) -> None:
    model = make()
    whole = model(pictures(4))
    for size in (1, 2, 4):
        assert torch.allclose(model(pictures(4)[:size]), whole[:size], rtol=0, atol=1e-12)


# -- one image, one answer -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, *OWN])
@pytest.mark.parametrize("space", ["token", "pixel"])
def test_a_permutation_of_the_batch_permutes_the_logits(make, kind: str | None, space: str) -> None:
    model = make()
    if kind is not None:
        torch.manual_seed(5)
        score = make_score(kind, 32, K, 4).double()
        model.set_patch(PatchSelect(score, 0.314, space=space).eval())
    order = torch.tensor([2, 0, 1])
    kept: list[torch.Tensor] = []
    if kind is not None:
        model.patch.register_forward_hook(lambda m, args, out: kept.append(out[0]))
    logits = model(pictures())
    permuted = model(pictures()[order])
    assert torch.allclose(permuted, logits[order], rtol=0, atol=1e-12)
    if kind is not None:
        assert torch.equal(kept[1], kept[0][order])
    assert logits.std(0).min() > 0, "images must differ"


def test_frames_that_repeat_one_image_are_that_image(make) -> None:
    model = make()
    images = pictures()
    repeated = images.unsqueeze(1).expand(-1, T, -1, -1, -1)
    assert torch.allclose(model(repeated), model(images), rtol=0, atol=1e-9)


def test_the_logits_at_a_step_do_not_know_later_frames(make) -> None:
    model, x = make(frames()), frames()
    changed = x.clone()
    changed[:, 2:] = frames(seed=1)[:, 2:]
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).any(2).all()


# -- compute once --------------------------------------------------------------------------


def run(
    model: Spikformer, x: torch.Tensor, outputs, start: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict, dict, dict]:
    """Logits, activations, gradients and buffers of one step from `start`."""
    model.load_state_dict(start)
    model.zero_grad()
    torch.manual_seed(11)  # noise of a learned patch score
    with outputs(model) as seen:
        logits = model(x)
    nn.functional.cross_entropy(logits.mean(1), torch.arange(len(x)) % K).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return logits.detach(), seen, grads, buffers


def assert_equal_runs(one: tuple, other: tuple, spikes: bool = True) -> None:
    assert torch.allclose(one[0], other[0], rtol=0, atol=1e-9)
    for name, value in one[1].items():
        static = value.expand(T, *value.shape[1:])
        if spikes:
            assert torch.equal(static, other[1][name].expand_as(static)), name
        else:
            assert torch.allclose(static, other[1][name].expand_as(static), rtol=0, atol=1e-9)
    assert one[2].keys() == other[2].keys()
    for part in (2, 3):
        for name, value in one[part].items():
            assert torch.allclose(value, other[part][name], rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("training", [False, True])
def test_computing_a_static_image_once_is_an_identity(
    make, outputs, activation: str, residual: str, training: bool
) -> None:
    """Spikes exactly, logits, gradients, running mean and variance to 1e-9, in float64."""
    centre = -0.25 if activation == "sign" else 0.45
    model = make(centre=centre, activation=activation, residual=residual).train(training)
    start = copy.deepcopy(model.state_dict())
    runs = []
    for once in (True, False):
        model.compute_once = once
        runs.append(run(model, pictures(seed=7), outputs, start))
    blocks = {name: v for name, v in runs[0][1].items() if name.startswith("blocks")}
    assert_every_layer_fires(blocks, layers=14)
    stem = {name: v for name, v in runs[0][1].items() if name not in blocks}
    for name, values in stem.items():
        assert 0.05 < (values > 0).double().mean() < 0.8, name
        assert len(values) == (T if activation == "lif" else 1), name
    assert all(len(v) == T for n, v in runs[1][1].items() if n in stem)
    assert_equal_runs(runs[0], runs[1], spikes=activation != "relu")
    moved = [n for n, v in runs[0][3].items() if not torch.equal(v, start[n])]
    assert any("running_var" in name for name in moved) is training
    silent = [n for n, g in runs[0][2].items() if g.abs().sum() == 0]
    # A bias before a BatchNorm in training has no effect; everything else must learn.
    assert all(name.endswith("linear.bias") for name in silent)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("space", ["token", "pixel"])
@pytest.mark.parametrize("activation", ["lif", "heaviside"])
def test_computing_once_is_an_identity_with_removed_patches(
    make, outputs, kind: str, space: str, activation: str
) -> None:
    model = make(activation=activation)
    torch.manual_seed(5)
    score = make_score(kind, 32, K, 4).double()
    model.set_patch(PatchSelect(score, 0.314, space=space, rescale=True))
    model.train()
    start = copy.deepcopy(model.state_dict())
    runs, chosen = [], []
    model.patch.register_forward_hook(lambda m, args, out: chosen.append(out[0]))
    for once in (True, False):
        model.compute_once = once
        runs.append(run(model, pictures(seed=7), outputs, start))
    assert torch.equal(chosen[0], chosen[-1])
    assert chosen[0].shape == (B, 11)
    assert_equal_runs(*runs)


def test_computing_once_is_an_identity_for_a_binary_subnetwork(make, outputs) -> None:
    model = make(activation="heaviside", residual="or")
    for _, unit in model.conv_pep.units():
        unit.conv = SubnetConv2d(unit.conv, "both")
    set_masks(model, Mask.from_scores(rankings(model), 0.5, scope="layer"))
    model.train()
    start = copy.deepcopy(model.state_dict())
    runs = []
    for once in (True, False):
        model.compute_once = once
        runs.append(run(model, pictures(seed=7), outputs, start))
    assert_equal_runs(*runs)
    assert all(f"conv_pep.stages.{i}.conv.scores" in runs[0][2] for i in range(4))


def test_frames_are_never_computed_once() -> None:
    for once in (True, False):
        model = Spikformer(compute_once=once, T=T, **SMALL)
        assert model.time_first(frames().float()).shape == (T, B, 3, 16, 16)
        assert len(model.time_first(pictures().float())) == (1 if once else T)


# -- patches -------------------------------------------------------------------------------


class Chosen(PatchScore):
    """Keeps the tokens that the test names."""

    def __init__(self, index: torch.Tensor) -> None:
        super().__init__()
        self.index = index

    def forward(self, tokens: torch.Tensor, *args: object) -> torch.Tensor:
        return torch.zeros(tokens.shape[1:3]).scatter_(1, self.index, 1.0)


class Only(nn.Module):
    """A stem that hands on given tokens: a model built of nothing but them."""

    stride = 4

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(
        self, images: torch.Tensor, T: int, need: str = ""
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tokens, self.tokens


INDEX = torch.tensor([[0, 2, 3, 8, 9, 15], [1, 4, 5, 6, 7, 12], [0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize("training", [False, True])
def test_the_encoder_on_gathered_tokens_is_that_of_a_model_made_of_them(
    make, outputs, training: bool
) -> None:
    model = make(attn_scale=0.6)  # fewer keys give smaller sums
    model.set_patch(PatchSelect(Chosen(INDEX), 10 / 16))
    model.train(training)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        tokens = model.conv_pep(pictures()[None], T)[0]
    kept: list[torch.Tensor] = []
    model.patch.register_forward_hook(lambda m, args, out: kept.append(out[0]))
    ours = run(model, pictures(), outputs, start)
    assert kept and all(torch.equal(index, INDEX) for index in kept)

    kept = torch.stack([tokens[:, b, INDEX[b]] for b in range(B)], dim=1)
    naive = copy.deepcopy(model)
    naive.patch, naive.conv_pep = None, Only(kept)
    rest = {name: value for name, value in start.items() if not name.startswith("conv_pep")}
    theirs = run(naive, pictures(), outputs, rest)
    assert torch.allclose(ours[0], theirs[0], rtol=0, atol=1e-12)
    encoder = {name: v for name, v in ours[1].items() if name.startswith("blocks")}
    assert_every_layer_fires(encoder, layers=14)
    assert all(torch.equal(v, theirs[1][name]) for name, v in encoder.items())
    assert all(v.shape[2] == 6 for v in encoder.values()), "nothing runs on removed patches"
    for part in (2, 3):
        for name, value in theirs[part].items():
            assert torch.allclose(value, ours[part][name], rtol=1e-9, atol=1e-12), name


def test_each_image_keeps_its_own_tokens_as_if_it_were_alone(make) -> None:
    model = make()
    model.set_patch(PatchSelect(Chosen(INDEX), 10 / 16).eval())
    whole = model(pictures())
    for b in range(B):
        model.patch.score.index = INDEX[b : b + 1]
        alone = model(pictures()[b : b + 1])
        assert torch.allclose(alone[0], whole[b], rtol=0, atol=1e-12)


def test_tokens_of_removed_patches_do_not_reach_the_logits(make) -> None:
    model = make()
    model.set_patch(PatchSelect(Chosen(INDEX), 10 / 16).eval())
    before = model(pictures())

    def overwrite(kept: bool):
        def hook(module: nn.Module, args: object, out: tuple) -> tuple:
            chosen = torch.zeros(B, N, dtype=torch.bool).scatter_(1, INDEX, True)
            noise = (torch.rand_like(out[0]) < 0.5).double()
            return torch.where((chosen == kept)[None, :, :, None], noise, out[0]), out[1]

        return model.conv_pep.register_forward_hook(hook)

    handle = overwrite(kept=False)
    assert torch.equal(model(pictures()), before)
    handle.remove()
    overwrite(kept=True)
    assert not torch.allclose(model(pictures()), before, atol=1e-3)


def test_gradients_of_removed_tokens_are_exactly_zero(make) -> None:
    model = make()
    model.set_patch(PatchSelect(Chosen(INDEX), 10 / 16))
    held = []

    def keep(module: nn.Module, args: object, out: tuple) -> None:
        out[0].retain_grad()
        held.append(out[0])

    model.conv_pep.register_forward_hook(keep)
    model(pictures()).square().sum().backward()
    chosen = torch.zeros(B, N, dtype=torch.bool).scatter_(1, INDEX, True)
    reached = held[0].grad.abs().sum((0, 3)) > 0
    assert torch.equal(reached, chosen)


def test_removing_nothing_changes_nothing(make) -> None:
    model = make()
    dense = model(pictures())
    for kind in ("rate", "random"):
        model.set_patch(PatchSelect(make_score(kind, 32, K, 4), 0.0, rescale=True).eval())
        assert torch.equal(model(pictures()), dense)


def test_rescaling_multiplies_attention_by_the_share_of_keys_and_ends_with_the_patches(
    make,
) -> None:
    model = make()
    dense = model(pictures())
    gains = []
    attn = model.blocks[0].attn
    attn.register_forward_hook(lambda m, x, out: gains.append(m.scale_for(x[0]) / m.scale))
    for rescale in (False, True):
        model.set_patch(PatchSelect(Chosen(INDEX), 10 / 16, rescale=rescale).eval())
        model(pictures())
    model.patch = None
    assert torch.equal(model(pictures()), dense)
    assert gains == [1.0, 16 / 6, 1.0]


def test_pixel_space_embeds_the_image_again_without_its_removed_patches(make) -> None:
    model = make()
    model.set_patch(PatchSelect(Chosen(INDEX), 10 / 16, space="pixel").eval())
    logits = model(pictures())
    masked = model.patch.mask_pixels(pictures()[None], INDEX, N)[0]
    assert not torch.equal(masked, pictures())
    model.patch.space = "token"
    assert torch.equal(model(masked), logits)
    assert not torch.equal(model(pictures()), logits)


@pytest.mark.parametrize("space", ["token", "pixel"])
def test_a_learned_score_is_trained_by_the_loss_of_the_model(make, space: str) -> None:
    model = make()
    model.set_patch(PatchSelect(Gumbel(32).double(), 0.314, space=space))
    model.train()
    loss = nn.functional.cross_entropy(model(pictures()).mean(1), torch.arange(B))
    loss.backward()
    for name, p in model.patch.named_parameters():
        assert p.grad.abs().sum() > 0, name
    model.eval()
    assert torch.equal(model(pictures()), model(pictures()))


def test_the_trained_selector_is_a_bystander(make, awaken) -> None:
    model = make()
    score = make_score("attention", 32, K, 4).double()
    score.requires_grad_(False)
    model.set_patch(PatchSelect(score, 0.314))
    model.train()
    before = copy.deepcopy(score.state_dict())
    model(pictures()).sum().backward()
    assert all(torch.equal(v, before[n]) for n, v in score.state_dict().items())
    assert all(p.grad is None for p in score.parameters())


# -- the same network by other means -------------------------------------------------------


def spikingjelly_twin(ours: Spikformer) -> nn.Module:
    """spikingjelly 2.0's own Spikformer with the weights of `ours`."""
    from spikingjelly.activation_based.model.spikformer import Spikformer as Theirs

    theirs = Theirs(
        T=ours.T,
        in_channels=3,
        img_size_h=ours.image_size[0],
        img_size_w=ours.image_size[1],
        patch_size=4,
        num_classes=ours.num_classes,
        embed_dims=ours.embed_dim,
        num_heads=ours.num_heads,
        mlp_ratio=2.0,
        depths=len(ours.blocks),
    ).double()
    source = ours.state_dict()
    target: dict[str, torch.Tensor] = {}

    def copy_norm(name: str, *norms: str) -> None:
        for key in ("weight", "bias", "running_mean", "running_var"):
            target[f"{name}.{key}"] = torch.cat([source[f"{norm}.{key}"] for norm in norms])
        target[f"{name}.num_batches_tracked"] = source[f"{norms[0]}.num_batches_tracked"]

    def copy_unit(name: str, *units: str, stem: bool = False) -> None:
        kind = "conv" if stem else "linear"
        weight = torch.cat([source[f"{unit}.{kind}.weight"] for unit in units])
        target[f"{name}.0.weight"] = weight if stem else weight.unsqueeze(2)
        copy_norm(f"{name}.1", *(f"{unit}.norm" for unit in units))

    for i in range(4):
        copy_unit(f"patch_embed.stages.{i}.conv_bn.block", f"conv_pep.stages.{i}", stem=True)
    copy_unit("patch_embed.positional_encoding.conv_bn.block", "conv_pep.rpe", stem=True)
    for i in range(len(ours.blocks)):
        attn = f"blocks.{i}.attn"
        copy_unit(f"{attn}.qkv_conv_bn", f"{attn}.q", f"{attn}.k", f"{attn}.v")
        copy_unit(f"{attn}.proj_conv_bn", f"{attn}.proj")
        for layer in ("fc1", "fc2"):
            copy_unit(f"blocks.{i}.mlp.{layer}", f"blocks.{i}.mlp.{layer}")
    target |= {name: value for name, value in source.items() if name.startswith("head.")}
    theirs.load_state_dict(target)
    return theirs


@pytest.mark.parametrize("training", [False, True])
def test_spikingjellys_own_spikformer_gives_the_same_logits(make, outputs, training: bool) -> None:
    from spikingjelly.activation_based import functional

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    sizes = {"image_size": 32, "embed_dim": 64, "attn_scale": 0.125}
    ours = make(x, pool_before_act=True, linear_bias=False, **sizes).train(training)
    theirs = spikingjelly_twin(ours).train(training)
    with outputs(ours) as seen:
        logits = ours(x)
    assert_every_layer_fires(seen)
    expected = theirs(x).transpose(0, 1)
    functional.reset_net(theirs)
    assert logits.std() > 0
    assert torch.allclose(logits, expected, rtol=0, atol=1e-9)

    for model, out in ((ours, logits), (theirs, expected)):
        model.zero_grad()
        nn.functional.cross_entropy(out.mean(1), torch.arange(2)).backward()
    pairs = [
        (ours.conv_pep.stages[i].conv, theirs.patch_embed.stages[i].conv_bn.block[0])
        for i in range(4)
    ]
    for i, block in enumerate(ours.blocks):
        pairs += [(block.mlp.fc1.linear, theirs.blocks[i].mlp.fc1[0])]
        pairs += [(block.attn.proj.linear, theirs.blocks[i].attn.proj_conv_bn[0])]
    for mine, other in pairs:
        grad = other.weight.grad.view_as(mine.weight)
        assert grad.abs().sum() > 0
        assert torch.allclose(mine.weight.grad, grad, rtol=1e-9, atol=1e-12)
    bn = theirs.patch_embed.stages[1].conv_bn.block[1]
    assert torch.allclose(ours.conv_pep.stages[1].norm.running_var, bn.running_var, rtol=1e-9)


def test_single_precision_stays_near_double(make, outputs) -> None:
    """A threshold turns rounding into spikes, so the rate of mismatches is what counts."""
    model, x = make(), pictures(8)
    with outputs(model) as double:
        model(x)
    single = copy.deepcopy(model).float()
    with outputs(single) as other:
        single(x.float())
    for name, values in double.items():
        mismatch = (values != other[name].double()).double().mean()
        assert mismatch <= 1e-3, f"{name}: {mismatch:.2e}"
