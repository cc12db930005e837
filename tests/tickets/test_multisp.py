"""MultiSp as a whole: schedules, levels, presets, and the ticket that comes out."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt import create_model, create_search
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.export import export_ticket, load_exported
from spikeformer_lt.layers.patches import SCORES, STOPS, kept_count, patches_of, selections
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.layers.subnet import SubnetConv2d, rankings, subnets
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import (
    ActivationConfig,
    EdgePopupConfig,
    EncoderConfig,
    MultiSp,
    MultiSpConfig,
    PatchConfig,
    WeightConfig,
    model_from_ticket,
    set_patches,
)
from spikeformer_lt.tickets.multisp import LITERAL_SCORES, encoder_weights
from spikeformer_lt.training.monitor import estimate_step
from spikeformer_lt.training.phase import Capture, FitResult, Hooks, Phase, Progress

SIZES = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}


def toy(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    return create_model("spikformer_toy", **{**SIZES, **kwargs})


class Recorder:
    """A fit that makes two real steps an epoch and remembers what it was asked."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    def __call__(self, model: nn.Module, phase: Phase) -> FitResult:
        self.phases.append(phase)
        parameters = [p for p in model.parameters() if p.requires_grad]
        hooks = Hooks(phase.hooks)
        hooks.start(model, 2, phase.epochs)
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        generator = torch.Generator().manual_seed(1)
        for epoch in range(phase.epochs):
            model.train()
            for name, module in model.named_modules():
                if any(name == p or name.startswith(p + ".") for p in phase.frozen):
                    module.eval()
            for step in range(2):
                if phase.before_step is not None:
                    phase.before_step(Progress(epoch, step, 2, phase.epochs))
                images = torch.rand(8, 3, 16, 16, generator=generator) * 4
                labels = torch.randint(10, (8,), generator=generator)
                optimizer.zero_grad()
                F.cross_entropy(model(images).mean(1), labels).backward()
                hooks.after_backward(model, optimizer, Progress(epoch, step, 2, phase.epochs))
                optimizer.step()
                hooks.after_step(model, 2 * epoch + step + 1, None)
        return FitResult(phase.name, 50.0, phase.epochs - 1, phase.epochs, 0.0)


def conv_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith("conv_pep") and v.ndim == 4}


@pytest.mark.parametrize("schedule", ["joint", "sequential", "reverse"])
@pytest.mark.parametrize("method", ["latent", "scores", "both", "magnitude", "random"])
def test_every_schedule_and_method_gives_an_exact_binary_ticket(schedule, method):
    config = MultiSpConfig(
        schedule=schedule,
        epochs=1,
        stem_epochs=1,
        weights=WeightConfig(method=method, sparsity=0.7),
        patches=PatchConfig(sparsity=0.5),
    )
    model, fit = toy(), Recorder()
    ticket = MultiSp(config, seed=3).find(model, fit)
    for name, weight in conv_weights(model).items():
        removed = weight.numel() - int((weight != 0).sum())
        assert removed == round(0.7 * weight.numel()), name
        assert torch.equal(ticket.mask[name], weight != 0)
        if "stages.0" not in name:  # the first convolution stays full precision on images
            assert len(weight.abs().unique()) == 2, name
    assert not any(isinstance(m, SubnetConv2d) for m in model.modules())
    assert model.patch.sparsity == 0.5
    kept = []
    model.patch.register_forward_hook(lambda module, args, output: kept.append(output[0].shape))
    model.eval()(torch.rand(4, 3, 16, 16))
    assert kept == [(4, kept_count(16, 0.5))]


@pytest.mark.parametrize(
    ("score", "mode"),
    [*((score, "remove") for score in SCORES), *((score, "stop") for score in STOPS),
     ("gumbel", "stages")],
)  # fmt: skip
@pytest.mark.fault(50)
def test_a_rebuilt_ticket_computes_the_same_logits(score, mode):
    """Of every selector, where it removes tokens, stops them or lets them leave in stages."""
    patches = PatchConfig(0.5, score, mode, stages=(0,), selector_epochs=1)
    config = MultiSpConfig(
        epochs=1, patches=patches, activation=ActivationConfig("heaviside", "iand")
    )
    name, sizes = "spikformer_toy", SIZES
    if score == "qk":
        name, sizes = "qkformer_toy", {**SIZES, "depths": (1, 1)}
        del sizes["depth"]
    torch.manual_seed(0)
    model = create_model(name, **sizes)
    ticket = MultiSp(config).find(model, Recorder())
    ticket.provenance["model"] = {"name": name, "args": sizes}
    images = torch.rand(4, 3, 16, 16)
    again = model_from_ticket(ticket)
    assert torch.equal(again(images), model.eval()(images))
    assert [part.sparsity for part in selections(again)] == [0.5]


def test_a_search_repeated_gives_the_same_ticket():
    tickets = [MultiSp(MultiSpConfig(epochs=2), seed=5).find(toy(), Recorder()) for _ in range(2)]
    assert tickets[0].mask.sha256 == tickets[1].mask.sha256
    assert all(torch.equal(tickets[0].tensors[k], v) for k, v in tickets[1].tensors.items())


def test_frozen_scores_leave_the_weights_as_they_were():
    model = toy()
    before = {k: v.clone() for k, v in conv_weights(model).items()}
    config = MultiSpConfig(
        schedule="sequential",
        epochs=2,
        stem_epochs=2,
        weights=WeightConfig(method="scores", binary=False),
    )
    ticket = MultiSp(config).find(model, Recorder())
    for name, weight in conv_weights(model).items():
        assert torch.equal(weight, before[name] * ticket.mask[name])


def test_a_frozen_stem_does_not_move_while_the_encoder_trains():
    class Watching(Recorder):
        def __call__(self, model, phase):
            before = {k: v.clone() for k, v in model.state_dict().items() if "conv_pep" in k}
            result = super().__call__(model, phase)
            if phase.name == "sequential":
                after = model.state_dict()
                self.moved = [k for k, v in before.items() if not torch.equal(v, after[k])]
            return result

    fit = Watching()
    model = toy()
    MultiSp(MultiSpConfig(schedule="sequential", epochs=2, stem_epochs=1)).find(model, fit)
    assert [p.name for p in fit.phases] == ["conv_pep", "sequential"]
    assert fit.moved == []
    assert all(p.requires_grad for p in model.conv_pep.parameters()), "ready to train"


def test_the_literal_preset_is_algorithm_1():
    """In its first phase scores and the temporary head train, and nothing else."""
    moved = {}

    class Watching(Recorder):
        def __call__(self, model, phase):
            before = {k: v.detach().clone() for k, v in model.named_parameters()}
            result = super().__call__(model, phase)
            after = dict(model.named_parameters())
            moved[phase.name] = {k for k, v in before.items() if not torch.equal(v, after[k])}
            return result

    search = MultiSp(MultiSpConfig(preset="literal", epochs=1, stem_epochs=2, dense_epochs=9))
    weights = search.config.weights
    assert (weights.method, weights.scope, weights.gain) == ("scores", "global", "layer")
    assert search.config.schedule == "sequential"
    assert search.config.dense_epochs == 0
    model, fit = toy(), Watching()
    ticket = search.find(model, fit)
    assert fit.phases[0].optim == LITERAL_SCORES and LITERAL_SCORES.lr < LITERAL_SCORES.score_lr
    learned = {name for name in moved["conv_pep"] if name.endswith(".scores")}
    assert moved["conv_pep"] - learned == {"head.weight", "head.bias"} and len(learned) == 5
    assert not any(name.startswith("conv_pep") for name in moved["sequential"])
    assert len(model.conv_pep.stages[0].conv.weight.abs().unique()) == 2  # binary and sparse
    assert model.patch.space == "pixel"
    assert len(ticket.provenance["deviations"]) == 5
    assert MultiSp().find(toy(), Recorder()).provenance["deviations"] == []


@pytest.mark.fault(74)
def test_a_measurement_in_pixel_space_moves_nothing_and_trains_the_same_weights():
    """One update of every norm a step, and gradients of the second pass alone."""
    images = torch.rand(4, 3, 16, 16) * 4
    model = toy().train()
    set_patches(model, PatchConfig(0.5, space="pixel"))
    tokens, _ = model.stem_tokens(model.time_first(images))
    assert not tokens.requires_grad
    norms = [m for m in model.conv_pep.modules() if isinstance(m, _BatchNorm)]
    assert all(int(norm.num_batches_tracked) == 0 for norm in norms)
    assert all(bool((norm.running_mean == 0).all()) for norm in norms)
    F.cross_entropy(model(images).mean(1), torch.arange(4)).backward()
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    assert all(p.grad is not None for p in model.conv_pep.parameters())


@pytest.mark.fault(72)
def test_a_ramp_that_no_step_would_end_is_refused():
    ramp = WeightConfig(ramp_epochs=4.0, freeze_mask_at=1.0)
    with pytest.raises(ConfigError, match=r"ramp_epochs=4.0 .* at most 3"):
        MultiSpConfig(epochs=4, weights=ramp)
    with pytest.raises(ConfigError, match=r"ramp_epochs=4.0 .* at most 3"):
        EdgePopupConfig(epochs=4, ramp_epochs=4.0)
    reached = MultiSp(MultiSpConfig(epochs=5, weights=ramp)).find(toy(), Recorder())
    assert {round(s, 2) for s in reached.mask.layer_sparsity().values()} == {0.5}


def test_the_dense_control_is_the_plain_model():
    config = MultiSpConfig(
        epochs=1, patches=PatchConfig(sparsity=0), weights=WeightConfig(method="off")
    )
    model = toy()
    ticket = MultiSp(config).find(model, Recorder())
    assert model.patch is None
    assert ticket.mask.sparsity == 0


def test_a_ramp_reaches_the_budget_and_validation_waits_for_it():
    seen = []

    class Watching(Recorder):
        def __call__(self, model, phase):
            inner = phase.before_step

            def before(progress):
                inner(progress)
                masks = [m.mask for m in model.modules() if isinstance(m, SubnetConv2d)]
                kept = sum(int(m.sum()) for m in masks)
                seen.append(1 - kept / sum(m.numel() for m in masks))

            assert phase.settled_from == 2
            return super().__call__(model, Phase(phase.name, phase.epochs, before_step=before))

    config = MultiSpConfig(epochs=4, weights=WeightConfig(sparsity=0.8, ramp_epochs=2.0))
    MultiSp(config).find(toy(), Watching())
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[4] == pytest.approx(0.8, abs=1e-3)


def test_monotone_masks_only_shrink():
    masks = []

    class Watching(Recorder):
        def __call__(self, model, phase):
            inner = phase.before_step

            def before(progress):
                inner(progress)
                masks.append(
                    {n: m.mask.clone() for n, m in model.named_modules() if hasattr(m, "mask")}
                )

            return super().__call__(model, Phase(phase.name, phase.epochs, before_step=before))

    weights = WeightConfig(sparsity=0.8, ramp_epochs=3.0, monotone=True, method="scores")
    MultiSp(MultiSpConfig(epochs=4, weights=weights)).find(toy(), Watching())
    for earlier, later in pairwise(masks):
        assert all(not (later[n] & ~earlier[n]).any() for n in later)


def test_a_global_budget_keeps_the_floor_of_each_layer():
    class Skewed(Recorder):
        def __call__(self, model, phase):
            with torch.no_grad():  # one layer with hopeless scores would be emptied
                for name, layer in model.named_modules():
                    if isinstance(layer, SubnetConv2d) and "stages.1" in name:
                        layer.weight.mul_(1e-9)
            return super().__call__(model, phase)

    weights = WeightConfig(sparsity=0.9, scope="global", floor=0.05)
    model = toy()
    MultiSp(MultiSpConfig(epochs=1, weights=weights)).find(model, Skewed())
    found = conv_weights(model)
    total = sum(w.numel() for w in found.values())
    assert sum(int((w == 0).sum()) for w in found.values()) == round(0.9 * total)
    assert all(int((w != 0).sum()) >= round(0.05 * w.numel()) for w in found.values())


def test_the_attention_selector_is_trained_on_a_frozen_stem_and_then_frozen():
    fit = Recorder()
    model = toy()
    config = MultiSpConfig(epochs=1, patches=PatchConfig(score="attention", selector_epochs=2))
    MultiSp(config).find(model, fit)
    assert [(p.name, p.epochs) for p in fit.phases] == [("selector", 2), ("joint", 1)]
    assert not any(p.requires_grad for p in model.patch.parameters())
    assert all(p.requires_grad for p in model.conv_pep.parameters())


def test_a_model_without_conv_pep_is_refused():
    with pytest.raises(ConfigError, match="needs a model with a stem"):
        create_search("multisp").find(nn.Linear(2, 2), Recorder())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: WeightConfig(sparsity=1.0), "weights.sparsity"),
        (lambda: WeightConfig(method="topk"), "weights.method"),
        (lambda: PatchConfig(sparsity=-0.1), "patches.sparsity"),
        (lambda: PatchConfig(sparsity=float("nan")), "patches.sparsity"),
        (lambda: ActivationConfig(kind="gelu"), "activation.kind"),
        (lambda: MultiSpConfig(epochs=0), "epochs"),
        (lambda: MultiSpConfig(distill=0.5), "distill"),
    ],
)
@pytest.mark.fault(35)
def test_options_out_of_range_are_refused_by_name(make, field):
    with pytest.raises(ConfigError, match=field):
        make()


def test_rankings_are_named_as_the_weights_of_the_state_dict():
    seen = []

    class Watching(Recorder):
        def __call__(self, model, phase):
            seen.extend(rankings(model))
            return super().__call__(model, phase)

    model = toy()
    MultiSp(MultiSpConfig(epochs=1)).find(model, Watching())
    assert sorted(seen) == sorted(conv_weights(model))


@pytest.mark.parametrize("method", ["latent", "magnitude", "random", "rigl"])
@pytest.mark.parametrize("schedule", ["joint", "sequential", "reverse"])
def test_level_4_makes_the_encoder_sparse_beside_the_stem(schedule, method, tmp_path):
    """Exact counts at both levels, one mask, one export."""
    binary, ramp = method != "rigl", 1.0 if method == "latent" else 0.0
    encoder = EncoderConfig(0.9, binary=binary, method=method, ramp_epochs=ramp, every=1)
    weights, patches = WeightConfig(sparsity=0.7), PatchConfig(sparsity=0.5)
    config = MultiSpConfig(
        schedule=schedule, epochs=2, stem_epochs=1, encoder=encoder, weights=weights,
        patches=patches,
    )  # fmt: skip
    model, fit = toy(), Recorder()
    behind = encoder_weights(model)
    sizes = {name: weight.numel() for name, weight in behind.items()}
    ticket = MultiSp(config, seed=3).find(model, fit)
    gone = {name: int((~kept).sum()) for name, kept in ticket.mask.items()}
    assert sum(gone[name] for name in sizes) == round(0.9 * sum(sizes.values()))
    assert set(gone) - set(sizes) == set(conv_weights(model))
    for name in conv_weights(model):
        assert gone[name] == round(0.7 * ticket.mask[name].numel())
    for name in sizes:
        rows = ticket.tensors[name].abs().flatten(1)
        assert bool(((rows == 0) | (rows == rows.amax(1, keepdim=True))).all()) == binary, name
    known = {**ticket.provenance, "model": {"name": "spikformer_toy", "args": SIZES}}
    done = export_ticket(replace(ticket, provenance=known), tmp_path / "packed")
    assert done.check.reload_gap == 0 and 0 < done.bits[1] < done.bits[0] < 32
    state = load_exported(tmp_path / "packed", plain=True).state_dict()
    assert all(torch.equal(state[name], value) for name, value in ticket.tensors.items())


@pytest.mark.parametrize("method", ["latent", "magnitude", "random", "rigl", "imp"])
def test_level_4_makes_each_layer_as_sparse_where_asked(method):
    """The counts of every layer to the entry; RigL exchanges weights at them."""
    encoder = EncoderConfig(0.7, method=method, scope="layer", every=1, rewind="1it")
    model, fit = toy(), Recorder()
    ticket = MultiSp(MultiSpConfig(epochs=2, encoder=encoder), seed=3).find(model, fit)
    for name, weight in encoder_weights(toy()).items():
        assert int((~ticket.mask[name]).sum()) == round(0.7 * weight.numel()), name
    if method == "rigl":
        [wiring] = [h for p in fit.phases for h in p.hooks]
        assert wiring.mask != Mask.random_like(wiring.mask, 0)


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (
            {"encoder": EncoderConfig(0.999)},
            r"encoder\.sparsity=0\.999 with floor=0\.01 is impossible for all .*: at most 0\.98",
        ),
        (
            {"encoder": EncoderConfig(0.9999, scope="layer", method="rigl")},
            r"encoder\.sparsity=0\.9999 is impossible for layer '.*': at most 0\.99.* lower it",
        ),
        (
            {"weights": WeightConfig(sparsity=0.99, scope="global", floor=0.02)},
            r"weights\.sparsity=0\.99 with floor=0\.02 is impossible for all layers: at most 0\.9",
        ),
        ({"weights": WeightConfig(sparsity=0.999)}, r"weights\.sparsity=0\.999 is impossible for"),
    ],
)
def test_a_sparsity_that_no_layer_can_have_is_refused_before_anything_is_trained(level, said):
    search = MultiSp(MultiSpConfig(epochs=2, **level))
    with pytest.raises(ConfigError, match=rf"multisp\.{said}") as told:
        search.find(toy(), pytest.fail)
    most = math.floor(1e6 * told.value.most) / 1e6
    ((name, config),) = level.items()
    reached = MultiSpConfig(epochs=2, **{name: replace(config, sparsity=most)})
    assert MultiSp(reached).find(toy(), Recorder()).mask.removed > 0


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("schedule", ["joint", "sequential", "reverse"])
def test_level_4_by_rounds_goes_back_and_lets_no_weight_return(schedule, binary):
    """IMP beside levels 1 to 3: exact counts, nested masks, the early point after each round."""
    encoder = EncoderConfig(0.9, binary=binary, method="imp", rounds=3, rewind="1it")
    config = MultiSpConfig(
        schedule=schedule, epochs=2, stem_epochs=1, encoder=encoder, patches=PatchConfig(0.5),
        activation=ActivationConfig("heaviside"),
    )  # fmt: skip
    model, recorder, begun, masks = toy(), Recorder(), [], []
    behind = set(encoder_weights(model))

    def fit(net, phase):
        layers = {n: m for n, m in subnets(net) if n in behind}
        begun.append({n: m.weight.detach().clone() for n, m in layers.items()})
        masks.append({n: m.mask.clone() for n, m in layers.items()})
        return recorder(net, phase)

    search = MultiSp(config, seed=3)
    ticket = search.find(model, fit)
    first = [p.name for p in recorder.phases].index(f"{recorder.phases[-1].name}-0" if schedule
             != "reverse" else "patches-0")  # fmt: skip
    rounds = slice(first, first + 4)
    assert [p.epochs for p in recorder.phases[rounds]] == [2, 2, 2, 2]
    assert len({p.name for p in recorder.phases}) == len(recorder.phases)
    total = sum(p.epochs for p in recorder.phases)
    assert search.planned() == total
    [early] = [h for p in recorder.phases for h in p.hooks if isinstance(h, Capture)]
    for start in begun[rounds][1:]:
        assert all(torch.equal(early.captured[n], weight) for n, weight in start.items())
    size = sum(mask.numel() for mask in masks[first].values())
    for mask, wanted in zip(masks[rounds], (0.0, *encoder.levels), strict=True):
        assert sum(int((~kept).sum()) for kept in mask.values()) == round(wanted * size)
    for before, after in pairwise(masks[rounds]):
        assert not any((after[n] & ~before[n]).any() for n in before), "none returns"
    assert encoder.levels[-1] == 0.9 and len(encoder.levels) == 3
    assert all(torch.equal(ticket.mask[n], kept) for n, kept in masks[rounds][-1].items())
    assert ticket.mask.removed == search._asked(ticket.mask)
    for name in behind:
        assert not ticket.tensors[name][~ticket.mask[name]].any()
        rows = ticket.tensors[name].abs().flatten(1)
        one = ((rows == 0) | (rows == rows.amax(1, keepdim=True))).all()
        assert bool(one) == binary, name


def test_rounds_of_level_4_that_cannot_be_are_refused():
    for wrong, said in (
        ({"rounds": 0}, "encoder.rounds=0 is not allowed"),
        ({"rewind": "soon"}, "multisp.encoder.rewind='soon' is not allowed: write epochs"),
        ({"ramp_epochs": 1.0}, "encoder.method='imp' is not allowed: another with a ramp"),
    ):
        with pytest.raises(ConfigError, match=said):
            EncoderConfig(0.9, method="imp", **wrong)
    late = EncoderConfig(0.9, method="imp", rewind="3ep")
    with pytest.raises(ConfigError, match=r"encoder.rewind='3ep' is not allowed: at most 2ep"):
        MultiSpConfig(epochs=2, encoder=late)
    assert EncoderConfig(0.0, method="imp").levels == ()


def test_level_4_leaves_stem_selector_and_head_alone_where_asked():
    model = toy()
    assert set(encoder_weights(model)) - set(encoder_weights(model, head=False)) == {"head.weight"}
    score = PatchConfig(sparsity=0.5, score="attention", selector_epochs=1)
    config = MultiSpConfig(
        epochs=1, patches=score, weights=WeightConfig(method="off"),
        encoder=EncoderConfig(binary=True, head=False),
    )  # fmt: skip
    ticket = MultiSp(config).find(model, Recorder())
    assert set(ticket.mask) == set(encoder_weights(toy(), head=False)) and ticket.mask.removed == 0
    real = ticket.tensors["head.weight"].abs().unique().numel()
    assert real > ticket.tensors["head.weight"].shape[0]
    with pytest.raises(ConfigError, match=r"multisp\.encoder\.method=.rigl"):
        EncoderConfig(0.9, method="rigl", binary=True)
    with pytest.raises(ConfigError, match=r"multisp\.encoder\.ramp_epochs"):
        MultiSpConfig(epochs=2, encoder=EncoderConfig(0.9, ramp_epochs=2.0))


def test_a_ticket_with_level_4_is_trained_again_under_its_mask(tmp_path):
    """From its start weights, and under the control mask."""
    config = MultiSpConfig(epochs=1, encoder=EncoderConfig(0.9, binary=True))
    found = MultiSp(config, seed=3).find(toy(), Recorder())
    found.save(tmp_path / "ticket")
    masks = []
    for control in ("none", "random"):
        again = MultiSpConfig(epochs=1, ticket=str(tmp_path / "ticket"), control=control)
        made = MultiSp(again, seed=3).find(toy(), Recorder())
        assert made.mask.layer_sparsity() == found.mask.layer_sparsity()
        assert made.provenance["config"]["encoder"]["sparsity"] == 0.9
        masks.append(made.mask)
    assert masks[0] == found.mask != masks[1]


def test_level_4_reaches_the_blocks_inside_a_stem():
    sizes = {"image_size": 16, "embed_dim": 16, "depths": (1, 1), "num_heads": 2, "T": 2}
    model = create_model("qkformer_toy", **sizes)
    found = encoder_weights(model)
    units = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert units and not units & set(found) and "head.weight" in found
    every = {n for n, p in model.named_parameters() if p.ndim > 1}
    assert set(found) == every - units


def test_a_classifier_that_is_not_declared_cannot_be_spared() -> None:
    model = toy()
    model.classifier = model.head
    del model.head
    assert "classifier.weight" in encoder_weights(model)
    with pytest.raises(ConfigError, match="encoder.head=False is not allowed: true where no"):
        encoder_weights(model, head=False)


def test_the_time_of_a_run_is_estimated_of_the_network_that_the_search_made(
    bench, tmp_path, monkeypatch
) -> None:
    seen = []

    def watched(model, images, batch_size):
        masked = any(isinstance(part, SubnetConv2d) for part in model.modules())
        seen.append((stem_of(model).activation, patches_of(model) is not None, masked))
        return estimate_step(model, images, batch_size)

    monkeypatch.setattr("spikeformer_lt.training.trainer.estimate_step", watched)
    config = MultiSpConfig(epochs=1, activation=ActivationConfig(kind="heaviside"))
    MultiSp(config, seed=0).find(toy(), bench.trainer(tmp_path).fit)
    assert set(seen) == {("heaviside", True, True)}
