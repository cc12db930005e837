"""Data-level tickets: a network trained on whole images chooses the patches of another's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt import create_model, create_search
from spikeformer_lt.errors import ConfigError, Interrupted
from spikeformer_lt.export import Stream, compact, export_ticket, load_exported
from spikeformer_lt.layers.patches import Random, top_tokens
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.reports import build_ledger
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets import (
    EncoderConfig,
    ImpConfig,
    JointConfig,
    MultiSp,
    MultiSpConfig,
    PatchConfig,
    PruneConfig,
    WeightConfig,
    model_from_ticket,
)
from spikeformer_lt.tickets.multisp import encoder_weights

SIZES: dict[str, Any] = {"image_size": 16, "embed_dim": 16, "num_heads": 2, "T": 2}
NETWORKS = {
    "spikformer_toy": {**SIZES, "depth": 1},
    "spikingformer_toy": {**SIZES, "depth": 1},
    "sdt_toy": {**SIZES, "depth": 1},
    "qkformer_toy": {**SIZES, "depths": (1, 1)},
    "maxformer_toy": {**SIZES, "depths": (1, 1), "mixers": (3,)},
}
CHOICES = [
    ("spikformer_toy", "rate"), ("spikformer_toy", "attention"), ("qkformer_toy", "qk"),
    ("spikformer_toy", "random"),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (
        ("spikingformer_toy", "attention"), ("sdt_toy", "l2"), ("maxformer_toy", "tp"),
    )),
]  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, **NETWORKS[name])


def config_of(score: str, **more: Any) -> MultiSpConfig:
    patches = PatchConfig(0.5, score, space="input", selector_epochs=1)
    levels = {"weights": WeightConfig(sparsity=0.7), "encoder": EncoderConfig(0.7, scope="layer")}
    return MultiSpConfig(epochs=1, patches=patches, **{**levels, **more})


class Watched:
    """A fit that notes the weights that each phase begins and ends with."""

    def __init__(self, fit: Any) -> None:
        self.fit, self.seen = fit, {}

    def __call__(self, model: nn.Module, phase: Any) -> Any:
        begun = {key: value.clone() for key, value in model.state_dict().items()}
        result = self.fit(model, phase)
        ended = {key: value.clone() for key, value in model.state_dict().items()}
        self.seen[phase.name] = begun, ended
        return result


def inputs_of(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the stem gets for images, time first, and the index of the tokens that stay."""
    got: list[Any] = []
    hooks = [
        stem_of(model).register_forward_pre_hook(lambda m, args: got.append(args[0])),
        model.patch.register_forward_hook(lambda m, args, out: got.append(out[0])),
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    index, masked = got  # the choice comes first
    return masked, index


@pytest.mark.parametrize(("name", "score"), CHOICES)
def test_a_trained_network_chooses_and_the_tickets_network_starts_anew(
    name: str, score: str, bench: Any, tmp_path: Path
) -> None:
    model, trainer = made(name), bench.trainer(tmp_path)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    fit, search = Watched(trainer.fit), MultiSp(config_of(score))
    ticket = search.find(model, fit)
    trained = score != "random"
    assert list(fit.seen) == (["selector", "joint"] if trained else ["joint"])
    assert search.planned() == 1 + trained
    begun, ended = fit.seen["joint"]
    plain = {key.replace(".sub.weight", ".weight"): value for key, value in begun.items()}
    for key, value in first.items():
        if key in plain:
            assert torch.equal(plain[key], value), key
    chooser = {key: value for key, value in begun.items() if key.startswith("patch.")}
    assert bool(chooser) is trained
    for key, value in chooser.items():
        assert torch.equal(ended[key], value), key  # it stays as it was trained
    if trained:
        _, taught = fit.seen["selector"]
        stem = next(key for key, module in model.named_modules() if module is stem_of(model))
        for key, value in chooser.items():
            own = key.replace("patch.stem", stem).replace("patch.score.block", "blocks.0")
            assert torch.equal(value, taught[own]), key
        assert any(not torch.equal(first[k], v) for k, v in taught.items() if k.startswith(stem))
    assert not any(key.startswith("patch.") for key in ticket.mask)
    assert not any(key.startswith("patch.") for key in encoder_weights(model))

    model.eval()
    images = torch.rand(3, 3, 16, 16)
    masked, index = inputs_of(model, images)
    assert index.shape == (3, model.num_tokens // 2)
    side = 16 // int(model.num_tokens**0.5)
    kept = torch.zeros(3, model.num_tokens).scatter_(1, index, 1.0).view(3, 1, 16 // side, -1)
    wide = kept.repeat_interleave(side, 2).repeat_interleave(side, 3)
    assert torch.equal(masked[0], images * wide)

    ticket.provenance["model"] = {"name": name, "args": NETWORKS[name]}
    again = model_from_ticket(ticket)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    ledger = build_ledger(model, [images])
    assert ledger["sparsity"]["patch"] == 0.5
    counted = [key for key in ledger["layers"] if key.startswith("patch.stem")]
    assert bool(counted) is trained
    done = export_ticket(ticket, tmp_path / "packed")
    assert done.check.reload_gap == 0
    own = load_exported(tmp_path / "packed", plain=True).double()
    with torch.no_grad():
        whole = own(images.double())
        for net in (own, compact(own)):
            assert torch.allclose(net(images.double()), whole, rtol=0, atol=1e-9)
            stream = Stream(net)
            given = [stream.push(images.double()) for _ in range(2)]
            assert torch.allclose(torch.cat(given, 1), whole, rtol=0, atol=1e-9)


def test_the_control_hides_as_many_patches_and_reads_nothing_of_them(
    bench: Any, tmp_path: Path
) -> None:
    model = made("spikformer_toy")
    MultiSp(config_of("random")).find(model, bench.trainer(tmp_path).fit)
    assert isinstance(model.patch.score, Random) and model.patch.stem is None
    images = torch.rand(2, 3, 16, 16)
    _, index = inputs_of(model.eval(), images)
    scores = Random()(torch.zeros(1, 2, 16, 1), torch.zeros(0), images[None], 2)
    assert torch.equal(index, top_tokens(scores, 8))


def test_a_joint_ticket_has_patches_chosen_before_the_stem(bench: Any, tmp_path: Path) -> None:
    model = made("spikformer_toy")
    imp = ImpConfig(levels=(0.5,), epochs=1, rewind="0it", prune=PruneConfig(inside=("blocks.",)))
    patches = config_of("rate").patches
    search = create_search("joint", config=JointConfig(patches, imp))
    ticket = search.find(model, bench.trainer(tmp_path).fit)
    assert ticket.provenance["phases"][0]["phase"] == "selector"
    assert ticket.mask.removed == round(0.5 * ticket.mask.total)
    assert model.patch.space == "input" and model.patch.stem is not None


def test_a_search_that_is_cut_off_amid_its_selector_ends_with_the_same_ticket(
    bench: Any, tmp_path: Path, stop_after: Any
) -> None:
    def find(folder: str, **options: Any) -> Ticket:
        trainer = bench.trainer(tmp_path / folder, checkpoint_steps=1, **options)
        try:
            return MultiSp(config_of("attention")).find(made("spikformer_toy"), trainer.fit)
        finally:
            trainer.run.close()

    whole = find("whole")
    for steps in (2, 2):  # in the selector, and in the network
        with pytest.raises(Interrupted):
            find("cut", stop=stop_after(steps))
    ticket = find("cut")
    assert ticket.mask == whole.mask
    assert all(torch.equal(ticket.tensors[key], value) for key, value in whole.tensors.items())


def test_what_cannot_choose_is_refused_in_one_line() -> None:
    said = "multisp.patches.score='?gumbel.*before the network"
    with pytest.raises(ConfigError, match=said):
        PatchConfig(0.5, "gumbel", space="input")
    with pytest.raises(ConfigError, match="selector_epochs=0 .*at least 1 in space input"):
        PatchConfig(0.5, space="input", selector_epochs=0)
    with pytest.raises(ConfigError, match="space='?input.*token with mode stop"):
        PatchConfig(0.5, mode="stop", space="input")
    with pytest.raises(ConfigError, match="schedule='?sequential.*joint or reverse"):
        config_of("rate", schedule="sequential")
    with pytest.raises(ConfigError, match="first block of a SpikeDriven.* has no q k") as fault:
        MultiSp(config_of("attention")).find(made("sdt_toy"), pytest.fail)
    assert "\n" not in str(fault.value)
    with pytest.raises(ConfigError, match="reads gates of the stem"):
        MultiSp(config_of("qk")).find(made("spikformer_toy"), pytest.fail)
    with pytest.raises(ConfigError, match="needs a model with a stem"):
        MultiSp(config_of("rate")).find(create_model("spiking_vgg_toy"), pytest.fail)
