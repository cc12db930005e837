"""What every spiking CNN promises, on a small VGG and a small ResNet in which all layers fire."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, Relu
from spikeformer_lt.layers.units import ConvLayer
from spikeformer_lt.mask import Mask
from spikeformer_lt.models.spiking_cnn import SpikingCNN, halved
from spikeformer_lt.models.spiking_resnet import SpikingResNet
from spikeformer_lt.models.spiking_vgg import SpikingVGG
from spikeformer_lt.registry import create_model, list_models
from spikeformer_lt.reports.ledger import build_ledger, count_operations
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.surgery import model_from_ticket
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import DataConfig, ModelConfig, RunConfig, TrainConfig
from spikeformer_lt.training.phase import Phase

T, B, K, SIDE = 4, 3, 10, 8
SMALL = {
    "vgg": (SpikingVGG, {"layers": (6, "M", 8, "M", 12), "hidden": 10}),
    "resnet": (
        SpikingResNet,
        {"stem": 4, "widths": (6, 8), "depths": (2, 1), "strides": (2, 1), "hidden_norm": True},
    ),
}
NAMES = sorted(SMALL)


def pictures(seed: int = 0, side: int = SIDE, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, channels, side, side, generator=generator, dtype=torch.float64)


def frames(seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (B, T, channels, SIDE, SIDE)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def make(awaken):
    """Give a function that builds a small float64 CNN in which every layer fires."""

    def build(name: str, **options) -> SpikingCNN:
        torch.manual_seed(3)
        kind, sizes = SMALL[name]
        model = kind(K, T, image_size=SIDE, **{**sizes, **options}).double()
        if model.in_channels == 3:
            awaken(model, lambda m: m(pictures()))
        return model.eval()

    return build


@pytest.mark.parametrize("name", NAMES)
def test_images_and_frames_give_logits_of_every_step(make, outputs, name: str) -> None:
    model = make(name)
    with outputs(model) as seen:
        logits = model(pictures())
    assert len(seen) == {"vgg": 4, "resnet": 8}[name]
    assert all(0.02 < spikes.mean() < 0.98 for spikes in seen.values())
    assert logits.shape == (B, T, K)
    assert not torch.equal(logits, model(pictures(seed=1)))
    assert model(frames()).shape == (B, T, K)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (2, 9), (3, 32)])
def test_grey_images_event_frames_and_odd_sizes_fit(name: str, channels: int, side: int) -> None:
    kind, sizes = SMALL[name]
    model = kind(K, 2, in_channels=channels, image_size=side, **sizes).eval()
    assert model(torch.rand(2, channels, side, side)).shape == (2, 2, K)
    assert model(torch.rand(2, 2, channels, side, side)).shape == (2, 2, K)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_steps_at_run_time_are_the_first_steps(make, name: str) -> None:
    model = make(name)
    whole = model(pictures())
    assert not torch.equal(whole[:, 0], whole[:, 1])
    for steps in (1, 2, 3):
        model.T = steps
        torch.testing.assert_close(model(pictures()), whole[:, :steps], rtol=0, atol=1e-12)
        with pytest.raises(ConfigError, match=f"expected T={steps}"):
            model(frames())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("neuron", ["lif", "relu"])
@pytest.mark.parametrize("training", [False, True])
def test_a_static_image_is_the_same_as_its_frames(make, name, neuron, training) -> None:
    model = make(name, neuron=neuron).train(training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    once = model(pictures())
    moved = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.compute_once = False
    torch.testing.assert_close(model(pictures()), once, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.state_dict(), moved, rtol=0, atol=1e-10)
    model.load_state_dict(state)
    repeated = pictures()[:, None].expand(-1, T, -1, -1, -1)
    torch.testing.assert_close(model(repeated), once, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_the_fused_and_the_plain_way_agree(make, monkeypatch, name: str, training: bool) -> None:
    first = make(name).train(training)
    models = {"numba": first, "torch": copy.deepcopy(first)}
    taken: list[bool] = []
    kernel = dispatch.norm_lif

    def watched(*args: object) -> object:
        result = kernel(*args)
        taken.append(result is not None)
        return result

    monkeypatch.setattr(dispatch, "norm_lif", watched)
    logits = []
    for kind, model in models.items():
        monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", kind)
        logits.append(model(frames()))
        logits[-1].square().sum().backward()
    units = {"vgg": 4, "resnet": 5}[name]  # with a norm of their own; block ends add first
    assert taken == [True] * units + [False] * units
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-10)
    states = [model.state_dict() for model in models.values()]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-12)
    grads = [{k: p.grad for k, p in m.named_parameters()} for m in models.values()]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_no_state_is_carried_from_one_forward_to_the_next(make, name: str) -> None:
    model = make(name)
    first = model(pictures())
    model.features(pictures()[None].permute(0, 1, 3, 4, 2))
    assert torch.equal(model(pictures()), first)

    def fail(*args: object) -> None:
        raise RuntimeError("cut")

    handle = model.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="cut"):
        model(pictures())
    handle.remove()
    assert torch.equal(model(pictures()), first)


@pytest.mark.parametrize("name", NAMES)
def test_the_relu_network_has_the_same_names_and_the_same_logits_at_every_step(make, name) -> None:
    spiking, plain = make(name), make(name, neuron="relu")
    assert not any(isinstance(module, LIF) for module in plain.modules())
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in spiking.state_dict().items()
    }
    logits = plain(pictures())
    assert all(torch.equal(logits[:, t], logits[:, 0]) for t in range(T))
    by_frame = plain(frames())
    plain.T = 1
    one = torch.stack([plain(frames()[:, t])[:, 0] for t in range(T)], 1)
    torch.testing.assert_close(by_frame, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_neurons_are_swapped_in_place_and_back(make, name: str) -> None:
    model, plain = make(name), make(name, neuron="relu")
    spiking = model(pictures())
    plain.load_state_dict(model.state_dict())
    model.set_neuron("relu")
    assert torch.equal(model(pictures()), plain(pictures()))
    with pytest.raises(ConfigError, match="'lof'.*did you mean 'lif'"):
        model.set_neuron("lof")
    assert torch.equal(model(pictures()), plain(pictures()))
    model.set_neuron("lif")
    assert torch.equal(model(pictures()), spiking)


def test_a_ticket_of_the_relu_network_is_one_of_the_spiking_network() -> None:
    torch.manual_seed(0)
    args = {"neuron": "relu", "T": 1, "image_size": SIDE}
    plain = create_model("spiking_vgg_toy", **args)
    kept = {
        f"{key}.weight": torch.rand_like(module.weight) > 0.7
        for key, module in plain.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    ticket = Ticket.of(plain, Mask(kept), {"model": {"name": "spiking_vgg_toy", "args": args}})
    model = model_from_ticket(ticket, neuron="lif", T=T)
    assert model.T == T and sum(isinstance(m, LIF) for m in model.modules()) == 4
    own = plain.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, own[key] * kept[key] if key in kept else own[key]), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("neuron", ["lif", "relu"])
def test_every_parameter_is_reached_by_the_loss(make, name: str, neuron: str) -> None:
    model = make(name, neuron=neuron).train()
    model(frames()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), key


def test_a_float32_network_learns_under_bfloat16() -> None:
    model = create_model("spiking_vgg_toy", image_size=SIDE)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(B, 3, SIDE, SIDE)).float().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"T": 0}, "T=0"),
        ({"T": True}, "T=True"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"in_channels": 1.5}, "in_channels=1.5"),
        ({"image_size": (8, 8, 8)}, r"image_size=\(8, 8, 8\)"),
        ({"image_size": 0}, "image_size=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"neuron": "rely"}, "'rely'.*did you mean 'relu'"),
        ({"tau": 1.0}, "tau=1.0"),
        ({"surrogate": "step"}, "surrogate='step'"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(name: str, option, message: str) -> None:
    kind, sizes = SMALL[name]
    with pytest.raises(ConfigError, match=message):
        kind(**{**sizes, **option})


@pytest.mark.parametrize("name", NAMES)
def test_an_input_of_another_kind_is_refused(make, name: str) -> None:
    model = make(name)
    with pytest.raises(ConfigError, match=r"\[3, 1, 8, 8\] is neither images \[B, 3, 8, 8\]"):
        model(pictures(channels=1))
    with pytest.raises(ConfigError, match="float32 is not the model's"):
        model(pictures().float())


def test_a_stride_of_two_rounds_up() -> None:
    for side in range(1, 20):
        maps = torch.rand(1, 2, side, 3)
        layer = ConvLayer(2, 4, stride=2)
        assert tuple(layer.conv(maps).shape[2:]) == halved((side, 3))
        assert tuple(nn.MaxPool2d(2, ceil_mode=True)(maps).shape[2:]) == halved((side, 3))


# -- with the rest of the package --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_counts_the_operations_that_are_done(make, name: str) -> None:
    model = make(name)
    with torch.no_grad():
        model.head.weight[:5] = 0
    inputs: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for key, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, x, y, key=key: (
                    inputs.update({key: x[0]}) or sizes.update({key: y.numel()})
                )
            )
    model(pictures())
    ledger = build_ledger(model, [pictures()])
    assert set(ledger["layers"]) == set(inputs)
    for key, counted in ledger["layers"].items():
        weight = model.get_submodule(key).weight
        assert counted["macs"] == sizes[key] * weight[0].numel() / B
    first = next(iter(inputs))
    assert ledger["layers"][first]["macs_t_fold"] == T * ledger["layers"][first]["macs"]
    # Every input spike of the last layer meets the classes whose weights are left.
    spikes = float(inputs["head"].sum()) * (K - 5) / B
    assert ledger["layers"]["head"]["sops"] == pytest.approx(spikes)
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    total = sum(weight.numel() for weight in weights)
    assert ledger["sparsity"] == {
        "patch": 0.0,
        "conv_pep_weight": None,
        "total_weight": pytest.approx(5 * model.head.in_features / total),
    }
    assert ledger["conv_pep_bits_per_weight"] is None
    assert 32 * (1 - ledger["sparsity"]["total_weight"]) < ledger["bits_per_weight"] < 32
    assert ledger["energy_pj"] > 0 and len(ledger["firing_rate"]) == {"vgg": 4, "resnet": 8}[name]


def test_only_averages_and_the_image_are_no_spikes(make) -> None:
    def audit(model):
        return count_operations(model, [pictures()], model.T).purity()

    assert audit(make("vgg", hidden=None, pooled=2)) == {
        "impure": {"layers.0.conv": "real"},
        "pure_after_first": True,
        "not_spike_driven": {},
    }
    impure = audit(make("resnet"))["impure"]
    assert impure == {"stem.conv": "real", "hidden.linear": "real"}


@dataclass(frozen=True)
class Recipe:
    """A small recipe."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            name="digits", image_size=8, limit_train=48, limit_test=40, augment="none"
        )
    )
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="spiking_vgg_toy", T=2))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(cpu=True, batch_size=16))
    run: RunConfig = field(default_factory=RunConfig)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(name="spiking_vgg_toy", T=2),
        ModelConfig(name="spiking_vgg_toy", T=2, neuron="relu", tau=2.0),
        ModelConfig(name="spiking_resnet19", T=1),
    ],
    ids=["vgg", "relu", "resnet"],
)
def test_the_trainer_trains_it_by_name(tmp_path, model: ModelConfig) -> None:
    recipe = Recipe(run=RunConfig(out=str(tmp_path / "run")), model=model)
    if model.name == "spiking_resnet19":  # full size: one step, to see that it goes through
        train = TrainConfig(cpu=True, batch_size=45)
        recipe = Recipe(run=recipe.run, model=model, train=train)
    with Experiment(recipe, fallback="digits", small={}) as experiment:
        network = experiment.model()
        assert network.image_size == (8, 8) and network.T == model.T
        before = {key: value.clone() for key, value in network.state_dict().items()}
        experiment.trainer.fit(network, Phase("dense", 1))
        after = network.state_dict()
        assert all(bool(value.isfinite().all()) for value in after.values())
        moved = [key for key in before if not torch.equal(before[key], after[key].cpu())]
        assert {key for key, _ in network.named_parameters()} - set(moved) == set()
        assert experiment.trainer.evaluate(network, "val").count > 0


def test_all_of_them_are_registered() -> None:
    ours = {"spiking_vgg9", "spiking_vgg16", "spiking_vgg_toy"}
    ours |= {"spiking_resnet19", "spiking_resnet_toy"}
    assert ours <= set(list_models())
    with pytest.raises(ConfigError, match="did you mean 'image_size'"):
        create_model("spiking_vgg16", image_sise=32)


def test_layers_of_a_subclass_get_the_network_s_activation_and_keep_their_own_constants() -> None:
    class Own(SpikingCNN):
        def __init__(self, **options: object) -> None:
            super().__init__(image_size=8, **options)
            loud = replace(self.neuron, v_threshold=0.25)
            self.convs = nn.ModuleList(
                [ConvLayer(3, 8, neuron=self.neuron), ConvLayer(8, 8, neuron=loud)]
            )
            self.build_classifier(8, self.image_size, pooled=1, hidden=None, norm=False)

    plain, spiking = Own(neuron="relu"), Own()
    assert [type(layer.act) for layer in plain.convs] == [Relu, Relu]
    assert [layer.act.v_threshold for layer in spiking.convs] == [1.0, 0.25]
