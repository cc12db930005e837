"""Networks of other libraries: what a probe finds, what is refused, what stays as it was."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import spiking_vgg
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import spikeformer_lt as lt
from spikeformer_lt.adapted import Adapted, adapt, at_door
from spikeformer_lt.errors import ConfigError, DataError, MaskError, TicketError
from spikeformer_lt.export import export_ticket, load_exported
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports import build_ledger, run_probe
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets import RandomConfig

T, K = 3, 5
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
FRAMES = torch.rand(4, T, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, K),
    )  # fmt: skip


def jelly(mode: str = "m") -> nn.Module:
    net = nn.Sequential(
        layer.Conv2d(3, 4, 3, padding=1), layer.BatchNorm2d(4),
        neuron.LIFNode(surrogate_function=surrogate.ATan()), layer.Flatten(),
        layer.Linear(256, K), neuron.IFNode(surrogate_function=surrogate.ATan(), v_threshold=0.3),
    )  # fmt: skip
    functional.set_step_mode(net, mode)
    return net


class Around(nn.Module):
    """What users write around a network: their own layout and loop."""

    def __init__(self, net: nn.Module, way: str) -> None:
        super().__init__()
        self.body, self.way = net, way

    def forward(self, x: Tensor) -> Any:
        if self.way == "repeats":  # its own copies of an image, time first
            return self.body(x.expand(T, *x.shape))
        if self.way == "averages":
            return self.body(x.expand(T, *x.shape)).mean(0)
        if self.way == "turns":  # batch first at its door
            return self.body(x.transpose(0, 1)).transpose(0, 1)
        if self.way == "loops":
            return torch.stack([self.body(x) for _ in range(T)], 1)
        if self.way == "once":
            return self.body(x).unsqueeze(1)
        if self.way == "pair":
            return self.body(x), None
        if self.way == "table":
            return {"out": self.body(x)}
        return self.body(x)


class Remembers(nn.Module):
    """A state of its own, which ``reset`` clears where it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.v = dense(), 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.v = self.v + self.body(x).detach()
        return self.v + self.body(x)


class Forgets(Remembers):
    def reset(self) -> None:
        self.v = 0.0


WAYS: dict[str, tuple[Callable[[], nn.Module], str, int, str]] = {
    "a network without time": (dense, "images", 1, "[B, K]"),
    "multi-step": (jelly, "time first", T, "[T, B, K]"),
    "single-step": (lambda: jelly("s"), "steps", T, "[T, B, K]"),
    "copies inside": (lambda: Around(jelly(), "repeats"), "images", T, "[T, B, K]"),
    "mean inside": (lambda: Around(jelly(), "averages"), "images", T, "[B, K]"),
    "batch first": (lambda: Around(jelly(), "turns"), "batch first", T, "[B, T, K]"),
    "a loop inside": (lambda: Around(jelly("s"), "loops"), "images", T, "[B, T, K]"),
    "several outputs": (lambda: Around(dense(), "pair"), "images", 1, "[B, K]"),
    "a reset of its own": (Forgets, "images", 1, "[B, K]"),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_probe_finds_how_to_feed_a_network_and_leaves_it_alone(name: str) -> None:
    make, feeding, steps, output = WAYS[name]
    torch.manual_seed(0)
    net = make()
    before = copy.deepcopy(net.state_dict())
    adapted = adapt(net, T, images=IMAGES)
    found = adapted.found
    assert (found.feeding, found.T, found.output, found.classes) == (feeding, steps, output, K)
    assert len(found.prunable) == 2 and not found.others and found.network in str(found)
    assert net.training and adapted.training
    state = net.state_dict()
    assert list(adapted.state_dict()) == list(before) == list(state)
    assert all(torch.equal(state[key], value) for key, value in before.items())
    logits, rows = adapted.eval()(IMAGES), 1 if output == "[B, K]" else steps
    assert not net.training and list(logits.shape) == [4, rows, K]
    assert torch.equal(adapted(IMAGES), logits)  # from rest, whatever came before
    assert torch.equal(copy.deepcopy(adapted)(IMAGES), logits)


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("given", [True, False])
def test_a_loop_of_few_steps_is_not_taken_for_the_batch(steps: int, given: bool) -> None:
    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = jelly("s")

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.body(x) for _ in range(steps)])  # [T, B, K]

    torch.manual_seed(0)
    net = adapt(Loops(), steps if given else None, images=IMAGES).eval()
    assert net.found.output == "[T, B, K]" and steps == net.T
    two = net(IMAGES[:2])
    assert two.shape == (2, steps, K)
    assert torch.equal(two[:1], net(IMAGES[:1]))


def test_frames_of_another_length_are_refused() -> None:
    net = adapt(jelly(), images=FRAMES)
    with pytest.raises(ConfigError, match=f"expected T={T} at dimension 1 of frames"):
        net(torch.cat([FRAMES, FRAMES], 1))


def test_the_forms_of_one_network_are_one_network() -> None:
    """Multi-step, single-step and a loop by hand give the same numbers, for images and frames."""
    torch.manual_seed(0)
    many, one = jelly(), jelly("s")
    one.load_state_dict(many.state_dict())
    for x in (IMAGES, FRAMES):
        hand = copy.deepcopy(one).eval()
        steps = x.transpose(0, 1) if x.ndim == 5 else [x] * T
        wanted = torch.stack([hand(step) for step in steps], 1)
        for net in (many, one):
            assert torch.allclose(adapt(net, T, images=x).eval()(x), wanted, atol=1e-6)
    frame_wise = adapt(dense(), images=FRAMES).eval()
    assert frame_wise.found.feeding == "folded"
    first = frame_wise.__dict__["network"](FRAMES[:, 1])
    assert torch.allclose(frame_wise(FRAMES)[:, 1], first, atol=1e-6)


def test_weights_and_masks_are_those_of_the_users_network() -> None:
    net = jelly()
    adapted = adapt(net, T, images=IMAGES)
    assert (
        adapted.get_submodule("0") is net[0] and adapted.get_parameter("0.weight") is net[0].weight
    )
    mask = Mask.from_scores({"0.weight": net[0].weight.detach().abs()}, 0.5)
    mask.apply_(adapted)
    functional.reset_net(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(2):  # their own loop
        optimizer.zero_grad()
        net(IMAGES.expand(T, *IMAGES.shape)).mean().backward()
        optimizer.step()
        functional.reset_net(net)
        mask.apply_(net)
    assert bool((adapted.get_parameter("0.weight")[~mask["0.weight"]] == 0).all())
    setattr(adapted, "1", nn.Identity())  # surgery reaches it, too
    assert isinstance(net[1], nn.Identity)


def normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(3, 4, 3))


def poisoned() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    nn.init.constant_(layer.weight, float("nan"))
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a single layer": (lambda: nn.Linear(3, 4), "a single layer"),
    "a wrapper": (lambda: nn.DataParallel(dense()), "give the network inside of it"),
    "lazy layers": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(K)), "run one batch"),
    "no numbers": (lambda: nn.Sequential(poisoned(), nn.ReLU()), "0.weight has NaN or infinite"),
    "computed weights": (lambda: nn.Sequential(normed(), nn.ReLU()), "0.weight is computed from"),
    "no logits": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), r"is \[2, 4, 6, 6\] for B"),
    "another size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, K)), "images: RuntimeError"),
    "a table": (lambda: Around(dense(), "table"), "gives dict, not logits"),
    "other steps": (lambda: Around(jelly(), "repeats"), "makes 3 steps in each call; give T=3"),
    "a state": (Remembers, "it keeps a state; give it a method reset"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adapted_is_refused_in_one_line(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said) as fault:
        adapt(make(), 4, images=IMAGES)
    assert "\n" not in str(fault.value)


def test_the_door_gives_the_function_once_the_room_was_imported() -> None:
    assert inspect.unwrap(lt.adapt) is adapt and callable(lt.find)


@pytest.mark.parametrize("name", ["single-step", "multi-step", "a reset of its own"])
def test_threads_that_share_a_network_with_states_get_the_bits_of_one(name: str) -> None:
    make, _, steps, _ = WAYS[name]
    torch.manual_seed(0)
    adapted = adapt(make(), steps, images=IMAGES).eval()
    inputs = [torch.rand(1 + i % 3, 3, 8, 8) * 6 for i in range(6)]
    with torch.no_grad():
        wanted = [adapted(x) for x in inputs]
    assert float(torch.cat(wanted).std()) > 0

    def wrong(i: int) -> int:
        with torch.no_grad():
            return sum(not torch.equal(adapted(inputs[i]), wanted[i]) for _ in range(40))

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(wrong, range(6))) == 0


@pytest.mark.fault(95)
@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), 1e30])
def test_a_value_that_no_image_has_is_refused_at_inference(bad: float) -> None:
    adapted, images = adapt(jelly(), T, images=IMAGES).eval(), IMAGES.clone()
    images[2, 1, 3, 4] = bad
    with pytest.raises(DataError, match=r"at \[2, 1, 3, 4\]"):
        adapted(images)
    assert adapted.train()(images).shape == (4, T, K)


def test_sizes_are_tried_where_nobody_says_them() -> None:
    assert adapt(nn.Sequential(nn.Flatten(), nn.Linear(3 * 28**2, K))).image_size == (28, 28)
    said = dense()
    said.default_cfg = {"input_size": (3, 8, 8)}  # as timm's networks do
    assert adapt(said).found.input == (3, 8, 8)
    with pytest.raises(ConfigError, match="give images="):
        adapt(nn.Sequential(nn.Flatten(), nn.Linear(7, K)))


def test_what_keeps_the_contract_is_left_as_it_is() -> None:
    ours, never = lt.create_model("spikformer_toy"), pytest.fail
    assert at_door(ours, 4, lambda: never("no batch is needed")) is ours
    turned = Around(dense(), "loops")
    assert at_door(turned, T, lambda: IMAGES) is turned
    once = Around(dense(), "once")  # without time, and with our axes
    assert at_door(once, T, lambda: IMAGES) is once
    made = at_door(jelly(), T, lambda: IMAGES)
    assert isinstance(made, Adapted) and at_door(made, T, lambda: IMAGES) is made


def test_the_ledger_counts_every_step_of_every_form() -> None:
    torch.manual_seed(0)
    many, one = jelly(), jelly("s")
    one.load_state_dict(many.state_dict())
    first, second = (build_ledger(adapt(net, T, images=IMAGES), [IMAGES]) for net in (many, one))
    assert first["macs"] == T * (64 * 4 * 27 + 256 * K) == second["macs"] == second["macs_dense"]
    assert first["sops"] == second["sops"] > 0
    assert first["firing_rate"] == pytest.approx(second["firing_rate"]) and first["firing_rate"]
    shown = [run_probe(adapt(net, T, images=IMAGES), IMAGES).spikes for net in (many, one)]
    for name, spikes in shown[0].items():
        assert float((spikes != shown[1][name]).double().mean()) < 1e-2
    assert {name: len(spikes) for name, spikes in shown[0].items()} == {"2": T, "5": T}
    without = build_ledger(adapt(dense(), images=IMAGES), [IMAGES])
    assert without["macs"] == 64 * 4 * 27 + 256 * K and without["firing_rate"] == {}


def test_masks_of_torch_prune_come_and_go() -> None:
    net = dense()
    with pytest.raises(MaskError, match="no mask of torch"):
        Mask.from_module(net)
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_structured(net[4], "weight", 0.4, dim=0)
    mask = Mask.from_module(net)
    assert list(mask) == ["0.weight", "4.weight"] and mask["4.weight"].any(1).sum() == 3
    with pytest.raises(ConfigError, match=r"0\.weight is computed.*Mask\.from_module"):
        adapt(net, images=IMAGES)
    for module in (net[0], net[4]):
        prune.remove(module, "weight")
    mask.check(adapt(net, images=IMAGES))
    fresh = dense()
    mask.to_prune(fresh)
    assert Mask.from_module(fresh) == mask
    assert not fresh[0].weight[~mask["0.weight"]].any()
    with pytest.raises(MaskError, match="is not in the model"):
        mask.to_prune(jelly()[:1])


def test_masks_and_weights_are_exported_and_come_back_into_a_network(tmp_path: Path) -> None:
    net = jelly()
    adapted = adapt(net, T, images=IMAGES)
    ticket = lt.create_search("random", config=RandomConfig(0.5)).find(adapted, pytest.fail)
    sizes = {"image_size": 8, "T": T, "num_classes": K}
    about = {**ticket.provenance, "model": {"name": "module:Sequential", "args": sizes}}
    ticket = Ticket(ticket.mask, ticket.tensors, about)
    with pytest.raises(TicketError, match=r"'Sequential', no registered model: give the network"):
        export_ticket(ticket, tmp_path / "packed")
    done = export_ticket(ticket, tmp_path / "packed", model=jelly())
    assert done.check.reload_gap == 0
    again = load_exported(tmp_path / "packed", model=jelly())
    assert torch.equal(again(IMAGES), adapted.eval()(IMAGES))
    with pytest.raises(TicketError, match="not of this model"):
        load_exported(tmp_path / "packed", model=nn.Sequential(nn.Flatten(), nn.Linear(192, K)))


def test_a_search_runs_in_a_network_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on where it was, in the same network alone."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))
    start = copy.deepcopy(net)
    options = {"snip.images": 16, "train.cpu": True, "data.limit-train": 60, "data.limit-test": 20}
    how: dict[str, Any] = {"sparsity": 0.9, "options": options, "out": str(tmp_path / "run")}
    ticket = lt.find("snip", net, "digits", **how)
    assert ticket.mask.removed == round(0.9 * ticket.mask.total)
    assert all(torch.equal(v, ticket.tensors[k]) for k, v in net.state_dict().items())
    assert Ticket.load(tmp_path / "run" / "ticket").mask == ticket.mask
    again = lt.find("snip", start, "digits", resume="auto", **how)
    assert again.mask == ticket.mask
    with pytest.raises(ConfigError, match="another"):
        lt.find("snip", net, "digits", resume="auto", **how)
    with pytest.raises(ConfigError, match=r"10 outputs for digits, not 5"):
        lt.find("snip", dense(), "digits", options={**options, "data.image-size": 8})


def of_jelly() -> nn.Module:
    net = spiking_vgg.spiking_vgg11(
        spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.ATan(), num_classes=K
    )
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg", "timm", "timm vit", "torchvision"])
def test_networks_of_the_libraries_themselves(name: str) -> None:
    make = {
        "vgg": of_jelly,
        "timm": lambda: lt.create_model("timm", name="resnet10t", num_classes=K),
        "timm vit": lambda: lt.create_model("timm", name="vit_tiny_patch16_224", num_classes=K),
        "torchvision": lambda: lt.create_model("torchvision", name="mobilenet_v3_small"),
    }[name]
    net = make()
    adapted = adapt(net, 2, images=torch.rand(2, 3, 32, 32))
    assert (2 if name == "vgg" else 1) == adapted.found.T
    assert adapted.train()(torch.rand(2, 3, 32, 32)).shape[0] == 2


@pytest.mark.skipif(not importlib.util.find_spec("snntorch"), reason="needs snntorch")
@pytest.mark.parametrize("hidden", [True, False])
def test_networks_of_snntorch(hidden: bool) -> None:
    """Stepped from outside with hidden states, and with a loop of its own."""
    import snntorch as snn

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, K)
            self.first, self.last = snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b, out = self.first.reset_mem(), self.last.reset_mem(), []
            for _ in range(T):
                spikes, a = self.first(self.conv(x), a)
                spikes, b = self.last(self.fc(spikes.flatten(1)), b)
                out.append((spikes, b))
            return tuple(torch.stack(part) for part in zip(*out, strict=True))

    body = [nn.Conv2d(3, 4, 3, padding=1), snn.Leaky(beta=0.5, init_hidden=True), nn.Flatten()]
    last = [nn.Linear(256, K), snn.Leaky(beta=0.5, init_hidden=True, output=True)]
    net = nn.Sequential(*body, *last) if hidden else Own()
    adapted = adapt(net, T, images=IMAGES)
    assert adapted.found.feeding == ("steps" if hidden else "images")
    assert adapted.found.output == "[T, B, K]" and adapted.found.T == T
    logits = adapted(IMAGES)
    logits.sum().backward()
    assert torch.allclose(adapted(IMAGES[:2]), logits[:2])  # hidden states follow the batch
    assert set(build_ledger(adapted, [IMAGES])["firing_rate"]) == set(adapted.found.neurons)
    membranes = adapt(net, T, images=IMAGES, output=1)
    assert not torch.equal(membranes(IMAGES), logits)
