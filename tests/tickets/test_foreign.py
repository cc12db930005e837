"""Networks of other libraries: found, searched, counted, exported; masks hold in their own loop."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import qkformer, sew_resnet, spikformer, spiking_vgg
from torch import nn
from torch.nn import functional as F
from torchvision import models

from spikeformer_lt import adapt, create_search
from spikeformer_lt.errors import ConfigError, Interrupted, TicketError
from spikeformer_lt.export import export_ticket, load_exported
from spikeformer_lt.reports import build_ledger
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets import (
    EarlyTimeConfig,
    ImpConfig,
    SnipConfig,
    SparseTrainingConfig,
    retrain,
)

T, K, S = 2, 10, 0.8
SEARCHES: dict[str, tuple[str, Any]] = {
    "imp": ("imp", ImpConfig(levels=(0.5, S), epochs=1, rewind="1it")),
    "snip": ("snip", SnipConfig(S, images=8)),
    "rigl": ("sparse_training", SparseTrainingConfig("rigl", sparsity=S, epochs=1, every=2)),
}
LIF = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}


def multi_step(net: nn.Module) -> nn.Module:
    functional.set_step_mode(net, "m")
    return net


def small_vgg() -> nn.Module:
    """With a classifier of the user's, as the library's own has 120 M weights."""
    net = spiking_vgg.SpikingVGG([8, "M", 16, "M"], batch_norm=True, norm_layer=layer.BatchNorm2d,
                                 num_classes=K, **LIF)  # fmt: skip
    net.classifier = layer.Linear(16 * 7 * 7, K)
    return net


def snn_net() -> nn.Module:
    import snntorch as snn

    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), snn.Leaky(0.5, init_hidden=True)]
    last = [nn.Linear(392, K), snn.Leaky(0.5, init_hidden=True, output=True)]
    return nn.Sequential(*layers, nn.Flatten(), *last)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm": (lambda: timm.create_model("test_resnet", num_classes=K), "images"),
    "timm vit": (lambda: timm.create_model("test_vit", num_classes=K, img_size=16), "images"),
    "torchvision": (lambda: models.shufflenet_v2_x0_5(num_classes=K), "images"),
    "spikingjelly vgg": (
        lambda: multi_step(small_vgg()),
        "time first",
    ),
    "spikingjelly sew": (
        lambda: multi_step(
            sew_resnet.SEWResNet(
                sew_resnet.BasicBlock, [1, 1, 1, 1], num_classes=K, cnf="ADD", **LIF
            )
        ),
        "time first",
    ),
    "spikingjelly spikformer": (
        lambda: spikformer.Spikformer(
            T=T, img_size_h=16, img_size_w=16, patch_size=4, num_classes=K, embed_dims=32,
            num_heads=2, depths=1,
        ),
        "time first",
    ),
    "spikingjelly qkformer": (
        lambda: qkformer.QKFormer(
            T=T, num_classes=K, embed_dims=32, num_heads=(1, 1, 2), depths=(1, 1, 1)
        ),
        "time first",
    ),
    "snntorch": (snn_net, "steps"),
}  # fmt: skip
"""Network -> what makes it, and how it is fed."""


def made(name: str) -> nn.Module:
    if name == "snntorch" and not importlib.util.find_spec("snntorch"):
        pytest.skip("needs snntorch")
    torch.manual_seed(0)
    return NETWORKS[name][0]()


def own_step(net: nn.Module, feeding: str, images: torch.Tensor) -> torch.Tensor:
    """Logits ``[B, K]`` as users of the library take them, from states at rest."""
    functional.reset_net(net)
    if feeding == "images":
        return net(images)
    if feeding == "time first":
        logits = net(images.expand(T, *images.shape))
        return logits.mean(0) if logits.ndim == 3 else logits
    for module in net.modules():
        if hasattr(module, "reset_hidden"):
            module.reset_hidden()
    return torch.stack([net(images)[0] for _ in range(T)]).mean(0)


def in_turn() -> list[Any]:
    """Each network with one search, in turn; the rest of the product is slow."""
    return [
        pytest.param(network, search, marks=() if turn == place % 3 else pytest.mark.slow)
        for place, network in enumerate(NETWORKS)
        for turn, search in enumerate(SEARCHES)
    ]


@pytest.mark.parametrize(("network", "search"), in_turn())
def test_a_network_of_a_library_is_found_searched_counted_and_exported(
    network: str, search: str, bench: Any, tmp_path: Path
) -> None:
    feeding, images = NETWORKS[network][1], torch.rand(4, 3, 16, 16)
    net = made(network)
    adapted = adapt(net, None if feeding == "images" else T, images=images)
    found = adapted.found
    assert (found.feeding, found.classes) == (feeding, K)
    weights = {
        f"{n}.weight": m.weight.numel()
        for n, m in net.named_modules()
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)
    }
    assert found.prunable == weights
    spiking = {
        n for n, m in net.named_modules() if hasattr(m, "v_threshold") or "snn" in str(type(m))
    }
    assert set(found.neurons) >= {n for n in spiking if not list(net.get_submodule(n).children())}

    trainer = bench.trainer(tmp_path / "search")
    name, config = SEARCHES[search]
    how = {"batch": trainer.batch} if search == "snip" else {}
    ticket = create_search(name, config=config, **how).find(adapted, trainer.fit)
    mask, total = ticket.mask, sum(weights.values())
    assert mask.total == total and mask.removed == round(S * total)
    trainer.run.close()
    train = bench.trainer(tmp_path / "train")
    retrain(adapted, ticket, train.fit, epochs=1)
    train.run.close()
    state = net.state_dict()
    assert all(not state[key][~kept].any() for key, kept in mask.items())

    optimizer = torch.optim.SGD(net.parameters(), 0.005, momentum=0.9)
    net.train()
    before = {key: value.clone() for key, value in state.items()}
    for _ in range(2):  # the loop of its users, who call `apply_` behind each step
        optimizer.zero_grad()
        F.cross_entropy(own_step(net, feeding, images), torch.arange(4)).backward()
        optimizer.step()
        mask.apply_(net)
    state = net.state_dict()
    assert all(not state[key][~kept].any() for key, kept in mask.items())
    assert any(not torch.equal(state[key], value) for key, value in before.items())

    ledger = build_ledger(adapted.eval(), [images])
    assert not {f"{key}.weight" for key in ledger["uncounted_layers"]} & set(mask)
    assert ledger["sparsity"]["total_weight"] == pytest.approx(mask.removed / total)
    assert ledger["macs"] > 0 and set(ledger["firing_rate"]) <= set(found.neurons)
    sizes = {"image_size": 16, "T": found.T, "num_classes": K}
    about = {**ticket.provenance, "model": {"name": f"module:{found.network}", "args": sizes}}
    functional.reset_net(net)
    trained = Ticket.of(adapted, mask, about)
    done = export_ticket(trained, tmp_path / "packed", model=made(network))
    assert done.check.reload_gap == 0
    again = load_exported(tmp_path / "packed", model=made(network))
    assert torch.equal(again(images), adapted(images))


class Sees(nn.Module):
    """A spiking network that keeps a buffer of the shape of its last batch."""

    def __init__(self, first: tuple[int, ...]) -> None:
        super().__init__()
        lif = neuron.LIFNode(surrogate_function=surrogate.ATan(), v_threshold=0.5, step_mode="m")
        self.conv, self.norm, self.lif = layer.Conv2d(3, 8, 3, 2), layer.BatchNorm2d(8), lif
        self.head = layer.Linear(8 * 49, K)
        self.register_buffer("seen", torch.zeros(first))
        multi_step(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.detach().flatten(2).sum(2)
        return self.head(self.lif(self.norm(self.conv(x))).flatten(2))


OF_BATCHES: dict[str, Any] = {
    **{f"imp {how}": replace(SEARCHES["imp"][1], buffers=how) for how in ("keep", "reset")},
    "imp rewind": SEARCHES["imp"][1],
    "early_time": EarlyTimeConfig(epochs=1, images=8),
    "snip": SEARCHES["snip"][1],
    "sparse_training": SEARCHES["rigl"][1],
}


@pytest.mark.parametrize(
    ("case", "first"), [(case, ((1, 5), (0,))[i % 2]) for i, case in enumerate(OF_BATCHES)]
)
def test_buffers_of_the_shape_of_each_batch_are_searched_resumed_and_trained(
    case: str, first: tuple[int, ...], bench: Any, tmp_path: Path, stop_after: Any
) -> None:
    """Under averaged weights and skipped steps, too."""
    how = {"ema_decay": 0.5, "nonfinite": "skip", "checkpoint_steps": 2, "batch_size": 15}
    found = {}
    for place, counts in (("whole", (10**6,)), ("cut", (2, 5, 10**6))):
        for count in counts:
            torch.manual_seed(0)
            net = adapt(Sees(first), 3, images=torch.rand(4, 3, 16, 16))
            trainer = bench.trainer(tmp_path / place, stop=stop_after(count), **how)
            name, config = case.partition(" ")[0], OF_BATCHES[case]
            own: dict[str, Any] = {"batch": trainer.batch} if name in ("snip", "early_time") else {}
            own |= (
                {"inner": create_search("imp", config=SEARCHES["imp"][1])}
                if (name == "early_time")
                else {}
            )
            try:
                ticket = create_search(name, config=config, **own).find(net, trainer.fit)
                retrain(net, ticket, trainer.fit, 1)
                found[place] = ticket, Ticket.of(net, ticket.mask)
            except Interrupted:
                assert place == "cut"
            finally:
                trainer.run.close()
    for whole, cut in zip(*found.values(), strict=True):
        assert whole.mask == cut.mask and whole.mask.removed == round(S * whole.mask.total)
        assert all(torch.equal(cut.tensors[n], v) for n, v in whole.tensors.items())
    if name != "snip":
        assert len(found["cut"][0].tensors["seen"]) == 3  # that of a batch, not of the start
    other = Sees(first)
    other.conv = layer.Conv2d(3, 9, 3, 2)
    with pytest.raises(TicketError, match=r"not of this model: 'conv\.weight' is \[8, 3, 3, 3\]"):
        ticket.apply_(other)
    other = Sees(first)
    other.norm = layer.BatchNorm2d(9, affine=False)
    with pytest.raises(TicketError, match=r"'norm\.running_mean' is \[8\], the model has \[9\]"):
        ticket.apply_(other)


@pytest.mark.parametrize("network", ["timm", "spikingjelly vgg"])
def test_levels_that_need_a_stem_are_refused_in_one_line(network: str) -> None:
    net = adapt(made(network), images=torch.rand(2, 3, 16, 16))
    for search in ("multisp", "joint"):
        with pytest.raises(
            ConfigError, match=f"needs a model with .*; {net._get_name()} has none"
        ) as fault:
            create_search(search).find(net, pytest.fail)
        assert "\n" not in str(fault.value)
