"""What every search promises, on a transformer and on a CNN, with the real trainer."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt import create_dataset, create_model, create_search, list_searches
from spikeformer_lt.errors import ConfigError, ExportError, Interrupted
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.export import Stream, compact, export_ticket, load_exported, read_ticket
from spikeformer_lt.images.loader import ArrayImages
from spikeformer_lt.images.splits import Splits, make_splits
from spikeformer_lt.layers.kernels import dispatch, sparse
from spikeformer_lt.layers.patches import patches_of, selections
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.layers.subnet import get_masks, subnets
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports import build_ledger
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets import (
    ActivationConfig,
    BipropConfig,
    EarlyBirdConfig,
    EarlyTime,
    EarlyTimeConfig,
    EdgePopupConfig,
    EncoderConfig,
    GraspConfig,
    HaltingConfig,
    ImpConfig,
    JointConfig,
    MagnitudeConfig,
    MultiSp,
    MultiSpConfig,
    NmConfig,
    PatchConfig,
    PruneConfig,
    RandomConfig,
    SnipConfig,
    SparseTrainingConfig,
    SynflowConfig,
    WeightConfig,
    retrain,
)
from spikeformer_lt.tickets.multisp import encoder_weights
from spikeformer_lt.tickets.surgery import in_form
from spikeformer_lt.training.phase import FitResult, Phase

S = 0.7
IMP = ImpConfig(levels=(0.4, S), epochs=2, rewind="1it")
DST = {"sparsity": S, "epochs": 2, "every": 2}
EB = EarlyBirdConfig(sparsity=S, epochs=3, window=2, tolerance=0.5)
CHANNELS = EarlyBirdConfig(kind="channels", sparsity=0.5, epochs=2)
ET = EarlyTimeConfig(epochs=1, images=20)
BIPROP = BipropConfig(sparsity=S, epochs=2)
ENCODER = ImpConfig(levels=(0.4, S), epochs=1, rewind="1it", prune=PruneConfig(inside=("blocks.",)))
MULTISP = MultiSpConfig(
    epochs=2, stem_epochs=1, patches=PatchConfig(0.5), weights=WeightConfig(sparsity=S)
)
ROUNDS = EncoderConfig(S, method="imp", rounds=2, rewind="1it", scope="layer")
CASES: dict[str, tuple[str, Any]] = {
    "random": ("random", RandomConfig(S)),
    "random erk": ("random", RandomConfig(S, "erk")),
    "magnitude": ("magnitude", MagnitudeConfig(S)),
    "magnitude trained": ("magnitude", MagnitudeConfig(S, epochs=1, start="trained")),
    "imp": ("imp", IMP),
    "imp layer": ("imp", replace(IMP, scope="layer", buffers="reset", lr="resume", rewind="1ep")),
    "early_bird": ("early_bird", EB),
    "early_time imp": ("early_time", ET),
    "early_time early_bird": ("early_time", replace(ET, order="code")),
    "early_time edge_popup": ("early_time", ET),
    "edge_popup": ("edge_popup", EdgePopupConfig(sparsity=S, epochs=2)),
    "biprop": ("biprop", BIPROP),
    "biprop global": ("biprop", replace(BIPROP, scope="global", ramp_epochs=1.0)),
    "snip": ("snip", SnipConfig(S, images=8)),
    "grasp": ("grasp", GraspConfig(S, images=8)),
    "synflow": ("synflow", SynflowConfig(S, rounds=5)),
    "set": ("sparse_training", SparseTrainingConfig("set", **DST)),
    "rigl": ("sparse_training", SparseTrainingConfig("rigl", **DST)),
    "granet": ("sparse_training", SparseTrainingConfig("granet", **DST)),
    "nm": ("nm", NmConfig()),
    "early_bird channels": ("early_bird", CHANNELS),
    "joint": ("joint", JointConfig(PatchConfig(0.5), ENCODER)),
    "multisp": ("multisp", MULTISP),
    "multisp halting": ("multisp", replace(MULTISP, halting=HaltingConfig("act", confidence=0.9))),
    "multisp imp": ("multisp", replace(MULTISP, encoder=ROUNDS)),
}
WITH_IMAGES = {"early_bird", "early_time", "snip", "grasp", "synflow"}
PATTERNED = {"nm", "early_bird channels"}  # their sparsity has tests of its own
LAYERED = {
    "imp layer",
    "edge_popup",
    "early_time edge_popup",
    "biprop",
    "multisp",
    "multisp halting",
    "multisp imp",
}  # the same fraction of each layer
TRAINING = {name for name in CASES if name not in
            ("random", "random erk", "magnitude", "snip", "grasp", "synflow", "nm")}  # fmt: skip
OF_LEVELS = {"multisp", "multisp halting", "multisp imp"}
WITH_PATCHES = {"joint", *OF_LEVELS}
NESTED = {"imp", "imp layer", "early_time imp", "joint"}  # what is removed stays removed
REGROWING = {"edge_popup", "early_time edge_popup", "biprop", "biprop global", "set", "rigl",
             "granet", *OF_LEVELS}  # fmt: skip
SEARCH = Path(__file__).with_name("search_fork.py")
Make = Callable[[], nn.Module]


def search_of(case: str, batch: Any = None) -> Any:
    name, config = CASES[case]
    options: dict[str, Any] = {"config": config}
    if name in WITH_IMAGES:
        options["batch"] = batch
    if name == "early_time":
        inner = case.partition(" ")[2]
        options["inner"] = create_search(inner, config=CASES[inner][1])
    return create_search(name, **options)


def fits(case: str, model: nn.Module) -> bool:
    return case not in WITH_PATCHES or stem_of(model) is not None


def found(case: str, model: nn.Module, trainer: Any) -> tuple[Any, Ticket]:
    search = search_of(case, trainer.batch)
    return search, search.find(model, trainer.fit)


@pytest.fixture
def model(make: Make, case: str) -> nn.Module:
    made = make()
    if not fits(case, made):
        pytest.skip("it needs patches; its own tests ask for a clear refusal")
    return made


class Recorder:
    """A fit that notes the masks in force after every optimizer step, where they changed."""

    def __init__(self, fit: Any) -> None:
        self.fit, self.masks = fit, []

    def __call__(self, model: nn.Module, phase: Phase) -> FitResult:
        def note() -> None:
            if phase.after_step is not None:
                phase.after_step()
            masks = [hook.mask for hook in phase.hooks if hook.mask is not None]
            masks += [get_masks(model)] if any(True for _ in subnets(model)) else []
            self.masks += [m for m in masks if not self.masks or m != self.masks[-1]]

        return self.fit(model, replace(phase, after_step=note))


@dataclass(frozen=True)
class Run:
    """A finished search: what it found, the model it left, and the masks on its way."""

    search: Any
    ticket: Ticket
    model: nn.Module
    masks: list[Mask]
    before: dict[str, torch.Tensor]
    modes: tuple[list[bool], list[bool]]


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, str], Run]:
    return {}


@pytest.fixture
def run(case: str, make: Make, model: nn.Module, bench: Any, runs: Any, tmp_path: Path) -> Run:
    """One search of a network: made once, looked at by several tests, changed by none."""
    key = (case, make.known[0])
    if key not in runs:
        model = make()
        trainer = bench.trainer(tmp_path)
        fit, search = Recorder(trainer.fit), search_of(case, trainer.batch)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        ticket = search.find(model, fit)
        after = [module.training for module in model.modules()]
        runs[key] = Run(search, ticket, model, fit.masks, before, (modes, after))
    return runs[key]


def in_turn(cases: Iterable[str], kinds: Sequence[str]) -> list[Any]:
    """Each case with one kind, the kinds in turn; the rest of the product is slow."""
    pairs = []
    for place, case in enumerate(cases):
        chosen = kinds[place % len(kinds)]
        if case in WITH_PATCHES and "spikformer" in kinds:
            chosen = "spikformer"
        pairs += [
            pytest.param(case, kind, marks=() if kind == chosen else pytest.mark.slow)
            for kind in kinds
        ]
    return pairs


def on_one_network(cases: Iterable[str]) -> pytest.MarkDecorator:
    """Each case on one of the three networks, in turn."""
    pairs = in_turn(cases, ("spikformer", "vgg", "foreign"))
    return pytest.mark.parametrize(("case", "make"), pairs, indirect=["make"])


def test_every_registered_search_is_here() -> None:
    assert {name for name, _ in CASES.values()} == set(list_searches())
    assert set(CASES) >= NESTED | REGROWING


def check_ticket(case: str, search: Any, ticket: Ticket, model: nn.Module) -> None:
    """The asked count is gone, to the entry; the weights are those of the rewind state, bit for
    bit; the model holds them."""
    mask = ticket.mask
    if case in LAYERED:
        counts = {name: int((~kept).sum()) for name, kept in mask.items()}
        assert counts == {name: round(S * kept.numel()) for name, kept in mask.items()}
    elif case not in PATTERNED:
        assert mask.removed == round(S * mask.total)
    if case not in PATTERNED | OF_LEVELS:
        assert ticket.provenance["prunable_sparsity"] == mask.sparsity
    assert not any(p.ndim < 2 for n, p in model.named_parameters() if n in mask) or (
        case == "early_bird channels"
    )
    state, start = model.state_dict(), search.start
    assert state.keys() == ticket.tensors.keys() == start.keys()
    for name, value in ticket.tensors.items():
        expected = start[name].clone()
        if name in mask:
            expected[~mask[name]] = 0
        assert torch.equal(value, expected), name
        assert torch.equal(state[name].cpu(), value), name


def check_export(
    ticket: Ticket, name: str, args: dict[str, Any], folder: Path, own: nn.Module | None = None
) -> None:
    """Every tensor and mask comes back from a packed folder bit for bit; the compact network gave
    its logits in float64, or nothing would have been written."""
    known = {**ticket.provenance, "model": {"name": name, "args": args}}
    ticket = replace(ticket, provenance=known)
    done = export_ticket(ticket, folder, model=own)
    assert done.check.reload_gap == 0
    ticket = in_form(ticket, own)
    state = load_exported(folder, plain=True, model=own).state_dict()
    assert state.keys() == ticket.tensors.keys()
    for key, value in ticket.tensors.items():
        assert bits(state[key]) == bits(value), key
    again = read_ticket(folder)
    assert again.mask == ticket.mask and list(again.mask) == list(ticket.mask)
    assert again.provenance == json.loads(json.dumps(known))
    if own is None and known["search"] == "early_bird" and known["config"]["kind"] == "channels":
        scales = [key for key in ticket.mask if key.endswith("norm.weight")]
        gone = sum(int((~ticket.mask[key]).sum()) for key in scales)
        assert sum(load_exported(folder).removed.values()) >= gone > 0, "channels are still there"


def check_lists(folder: Path) -> None:
    """The compact network runs from lists of what the mask kept, with the logits of the dense."""
    plain = load_exported(folder, plain=True).double().eval()
    net = compact(plain)
    x = torch.rand(2, plain.in_channels, *plain.image_size).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_mode", "numba")
        dense, calls, call = net.use_lists("never")(x), [], sparse.Product.__call__
        patch.setattr(sparse.Product, "__call__", lambda *given: calls.append(0) or call(*given))
        listed = net.use_lists("always")(x)
    assert min(len(calls), sum(layer.lists for layer in net.layers)) > 2
    torch.testing.assert_close(listed, dense, rtol=0, atol=1e-9)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """What `torch.equal` does not tell apart: -0.0 and 0.0."""
    return tensor.dtype, tensor.shape, tensor.numpy(force=True).tobytes()


@on_one_network(CASES)
def test_ticket_is_exact_and_starts_from_the_rewind_state(case, make, run, tmp_path):
    """And it goes through files, plain and packed, unchanged."""
    search, ticket = run.search, run.ticket
    check_ticket(case, search, ticket, run.model)
    assert run.model.T == make().T
    assert case in OF_LEVELS or ticket.provenance["trained"] == search.trained
    ticket.save(tmp_path / "ticket")
    assert Ticket.load(tmp_path / "ticket").mask == ticket.mask
    own = make() if make.known[0].startswith("module:") else None
    check_export(ticket, *make.known, tmp_path / "packed", own)
    if own is None:
        check_lists(tmp_path / "packed")


def lost_and_won(older: Mask, newer: Mask) -> tuple[int, int]:
    """Entries that the newer mask removes and that it brings back."""
    lost = sum(int((older[name] & ~newer[name]).sum()) for name in newer)
    return lost, sum(int((~older[name] & newer[name]).sum()) for name in newer)


@on_one_network(CASES)
def test_masks_move_as_the_search_says(case, run):
    check_moves(case, run.masks, run.ticket)


def check_moves(case: str, masks: list[Mask], ticket: Ticket) -> None:
    """Nothing grows again of a nested search; others exchange as many as they drop."""
    if case in NESTED:
        steps = [lost_and_won(*pair) for pair in pairwise([*masks, ticket.mask])]
        assert steps and all(lost > 0 and won == 0 for lost, won in steps)
    elif case in REGROWING:
        steps = [lost_and_won(*pair) for pair in pairwise(masks)]
        assert any(won > 0 for _, won in steps)
        if case not in ("granet", "biprop global", "multisp imp"):  # those prune on
            assert all(lost == won for lost, won in steps)
    else:
        assert masks == []  # the network is dense while it is looked at


TRAINING_OPTIONS = {
    "SGD with momentum": {"optim": "momentum"},
    "AdamW with EMA": {"optim": "adamw", "ema_decay": 0.9},
    "bf16": {"optim": "adamw", "mixed_precision": "bf16"},
}


def trained() -> list[Any]:
    """Each case on one network with one of the options, in turn; the rest is slow."""
    networks = [param for param in in_turn(CASES, ("spikformer", "vgg")) if not param.marks]
    return [
        pytest.param(case, kind, options, marks=marks)
        for place, (case, chosen) in enumerate(param.values for param in networks)
        for kind in ("spikformer", "vgg")
        for turn, options in enumerate(TRAINING_OPTIONS)
        for marks in [() if (kind, turn) == (chosen, place % 3) else pytest.mark.slow]
    ]


@pytest.mark.parametrize(("case", "make", "options"), trained(), indirect=["make"])
def test_nothing_removed_comes_back_in_training(case, options, run, bench, tmp_path):
    model, ticket = deepcopy(run.model), run.ticket
    trainer = bench.trainer(tmp_path / "train", **TRAINING_OPTIONS[options])
    result = retrain(model, ticket, trainer.fit, epochs=2)
    assert result.epochs == 2
    moved = False
    for name, value in model.state_dict().items():
        if name in ticket.mask:
            assert bool((value[~ticket.mask[name]] == 0).all()), name
            moved |= not torch.equal(value, ticket.tensors[name])
    assert moved


@on_one_network(sorted(TRAINING))
def test_a_search_cut_off_anywhere_ends_with_the_same_ticket(
    case, make, model, bench, tmp_path, stop_after
):
    options = {"ema_decay": 0.5, "checkpoint_steps": 2}
    _, whole = found(case, model, bench.trainer(tmp_path / "whole", **options))
    cuts = 0
    for count in (2, 5, 10**6):
        trainer = bench.trainer(tmp_path / "cut", stop=stop_after(count), **options)
        try:
            _, ticket = found(case, make(), trainer)
            break
        except Interrupted:
            cuts += 1
        finally:
            trainer.run.close()
    assert cuts >= 1
    assert ticket.mask.sha256 == whole.mask.sha256
    for name, value in whole.tensors.items():
        assert torch.equal(ticket.tensors[name], value), name


@pytest.mark.parametrize(
    "network",
    ["spikformer", *(pytest.param(n, marks=pytest.mark.slow)
                     for n in ("vgg", "spikingformer", "qkformer"))],
)  # fmt: skip
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case == "early_time imp" else pytest.mark.slow)
        for case in sorted(TRAINING)
    ],
)
def test_a_search_killed_amid_every_round_ends_with_the_same_ticket(case, network, forks, tmp_path):
    """SIGKILL, after the second optimizer step of each phase in turn."""
    if case in WITH_PATCHES and network == "vgg":
        pytest.skip("it needs patches; its own tests ask for a clear refusal")
    check_killed(case, network, forks, tmp_path)


def check_killed(case: str, network: str, forks: Any, tmp_path: Path) -> None:
    """The ticket of a search that is killed in each phase in turn is that of one left alone."""

    def run(name: str, *kill: int) -> int:
        return forks.start(SEARCH, case, network, tmp_path / name, *kill).wait()

    assert run("whole") == 0
    whole = Ticket.load(tmp_path / "whole" / "ticket")
    phases = [p for p in whole.provenance["phases"] if p["epochs"]]
    for number in range(len(phases)):
        assert run("killed", number) == -signal.SIGKILL, number
    assert run("killed") == 0
    ticket = Ticket.load(tmp_path / "killed" / "ticket")
    assert ticket.mask.sha256 == whole.mask.sha256
    for name, value in whole.tensors.items():
        assert torch.equal(ticket.tensors[name], value), name


@on_one_network(CASES)
def test_early_time_wraps_every_search_and_leaves_t_and_buffers(case, model, bench, tmp_path):
    """The search inside begins from the very weights and buffers of before the probe."""
    if case.startswith("early_time"):
        pytest.skip("it is Early-Time already")
    trainer, inner = bench.trainer(tmp_path), search_of(case, bench.trainer(tmp_path / "b").batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find, entered = inner.find, []

    def watched(net: nn.Module, fit: Any) -> Ticket:
        entered.append((net.T, {name: value.clone() for name, value in net.state_dict().items()}))
        return find(net, fit)

    inner.find = watched
    search = EarlyTime(replace(ET, threshold=1.0, order="code"), 0, trainer.batch, inner)
    ticket = search.find(model, trainer.fit)
    ((T, state),) = entered
    assert T == search.T == ticket.provenance["early_time"]["T_early"]
    assert state.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(state[name].cpu(), value), name
    assert model.T == 3 and not model._forward_pre_hooks and not model._forward_hooks
    check_ticket(case, inner, ticket, model)


def grey() -> Splits:
    """28x28 grey images, as Fashion-MNIST has them; noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (110, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(110) % 10
    about = {"num_classes": 10, "mean": (0.5,), "std": (0.3,)}
    parts = {"train": slice(0, 90), "test": slice(90, 110)}
    pool, test = (ArrayImages(n, images[p], labels[p], **about) for n, p in parts.items())
    return make_splits("grey", pool, test)


def events() -> Splits:
    """16x16 event frames of 3 time steps."""
    sizes = {"image_size": 16, "limit_train": 60, "limit_test": 20}
    return create_dataset("moving_digits", **sizes, events=EventOptions(T=3, cache="none"))


SMALL_CNN = {"layers": (8, "M", 12, "M"), "T": 3}
NETWORKS: dict[str, tuple[str, dict[str, Any], Callable[[], Splits] | None]] = {
    "resnet19": (
        "spiking_resnet19",
        {"stem": 8, "widths": (8, 16), "depths": (1, 1), "strides": (2, 2), "hidden": 16,
         "image_size": 16, "T": 3}, None,
    ),
    "vgg9, grey": (
        "spiking_vgg9", {**SMALL_CNN, "hidden": 16, "in_channels": 1, "image_size": 28}, grey,
    ),
    "vgg16, events": (
        "spiking_vgg16", {**SMALL_CNN, "in_channels": 2, "image_size": 16}, events,
    ),
    "spikformer_dvs": (
        "spikformer_dvs_toy",
        {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}, events,
    ),
    "spikingformer": (
        "spikingformer_toy",
        {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}, None,
    ),
    "qkformer": (
        "qkformer_toy",
        {"image_size": 16, "embed_dim": 16, "depths": (1, 1), "num_heads": 2, "T": 3}, None,
    ),
    "bestformer": (
        "bestformer_toy",
        {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}, None,
    ),
    "sdt": (
        "sdt_toy", {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}, None,
    ),
    "sdt2": (
        "sdt2_toy", {"image_size": 16, "widths": (4, 8, 8), "embed_dim": 16, "T": 3}, None,
    ),
    "sdt3": (
        "sdt3_toy", {"image_size": 16, "widths": (4, 8, 8), "embed_dim": 16, "T": 3}, None,
    ),
    "maxformer": (
        "maxformer_toy",
        {"image_size": 16, "embed_dim": 16, "depths": (1, 1), "mixers": (3,), "num_heads": 2,
         "T": 3}, None,
    ),
}  # fmt: skip
SIZES = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}
FAMILIES = ("spikingformer", "qkformer", "sdt", "maxformer", "bestformer", "sdt2", "sdt3")
WITH_STEM = ("spikformer_dvs", "spikingformer", "bestformer", "qkformer", "sdt", "maxformer")


def crossed() -> list[Any]:
    """Every search on every network; by default each search on one of them, in turn."""
    pairs = []
    for place, case in enumerate(CASES):
        for turn, network in enumerate(NETWORKS):
            if case in WITH_PATCHES and network not in WITH_STEM:
                continue
            if case == "multisp halting":
                continue  # all levels together have a test of their own
            if (case, network) == ("early_bird channels", "bestformer"):
                continue  # the signs of a filter depend on the columns of all its channels
            chosen = turn == place % len(NETWORKS) or case in WITH_PATCHES - {"multisp imp"}
            pairs.append(pytest.param(case, network, marks=() if chosen else pytest.mark.slow))
    return pairs


@pytest.fixture(scope="module")
def benches(bench) -> dict[str, Any]:
    kinds = {source: bench if source is None else type(bench)(source())
             for source in {source for *_, source in NETWORKS.values()}}  # fmt: skip
    return {name: kinds[source] for name, (*_, source) in NETWORKS.items()}


def test_no_channel_of_a_bestformer_is_cut_out(bench, tmp_path):
    name, sizes, _ = NETWORKS["bestformer"]
    with pytest.raises(ConfigError, match="no channel of Bestformer .* or in a mean of weights"):
        found("early_bird channels", create_model(name, **sizes), bench.trainer(tmp_path))


@pytest.mark.parametrize(("case", "network"), crossed())
def test_every_search_runs_on_every_family_and_kind_of_input(case, network, benches, tmp_path):
    name, sizes, _ = NETWORKS[network]
    torch.manual_seed(0)
    model, own = create_model(name, **sizes), benches[network]
    trainer = own.trainer(tmp_path / "search")
    fit, search = Recorder(trainer.fit), search_of(case, trainer.batch)
    ticket = search.find(model, fit)
    check_ticket(case, search, ticket, model)
    check_moves(case, fit.masks, ticket)
    assert model.T == 3
    retrain(model, ticket, own.trainer(tmp_path / "train").fit, epochs=1)
    for key, value in model.state_dict().items():
        if key in ticket.mask:
            assert bool((value[~ticket.mask[key]] == 0).all()), key
    trained = Ticket.of(model, ticket.mask, ticket.provenance)
    check_export(trained, name, sizes, tmp_path / "packed")


BINARY, SPARSE = (EncoderConfig(S, binary, scope="layer") for binary in (True, False))
HEAVISIDE = ActivationConfig("heaviside")
LEVELS = {
    "spikformer": (PatchConfig(0.5), ActivationConfig("heaviside", residual="iand"), BINARY),
    "spikingformer": (
        PatchConfig(0.5, score="l2"), HEAVISIDE,
        replace(BINARY, method="imp", rounds=1, rewind="1it"),
    ),
    "bestformer": (PatchConfig(0.5, rescale=True), HEAVISIDE, SPARSE),
    "qkformer": (
        PatchConfig(0.5, score="qk"), ActivationConfig("heaviside", residual="or"), BINARY,
    ),
    "sdt": (PatchConfig(0.5), HEAVISIDE, replace(SPARSE, method="magnitude")),
    "maxformer": (PatchConfig(0.5, score="l2"), HEAVISIDE, replace(BINARY, method="random")),
    "sdt2": (PatchConfig(0.0), HEAVISIDE, BINARY),
    "sdt3": (PatchConfig(0.0), ActivationConfig("ilif"), BINARY),
    "sdt3, stop": (
        PatchConfig(0.5, score="tp", mode="stop"), ActivationConfig("ilif"), SPARSE,
    ),
    "qkformer, sign": (
        PatchConfig(0.5, space="pixel"), ActivationConfig("sign", residual="iand"), SPARSE,
    ),
}  # fmt: skip


def halts_on(case: str) -> bool:
    """Whether level 5 is among the levels of a family: where tokens can leave and run apart."""
    return family(case) not in ("bestformer", "sdt2", "sdt3")


def family(case: str) -> str:
    """The network of a case of LEVELS."""
    return case.partition(",")[0]


def all_levels(case: str, schedule: str = "joint") -> MultiSp:
    """MultiSp with the levels of a family."""
    patches, activation, encoder = LEVELS[case]
    weights = WeightConfig(sparsity=S, first_conv="full")
    levels = {"patches": patches, "weights": weights, "activation": activation, "encoder": encoder}
    levels["halting"] = HaltingConfig("act" if halts_on(case) else "off")
    own = {"schedule": schedule, "epochs": 1, "stem_epochs": 1, "stem": "finetune"}
    return MultiSp(MultiSpConfig(**own, **levels))


@pytest.mark.parametrize(
    ("case", "schedule"),
    [
        ("spikformer", "joint"),
        ("spikingformer", "joint"),
        ("bestformer", "joint"),
        ("qkformer", "sequential"),
        ("sdt", "joint"),
        ("maxformer", "sequential"),
        ("sdt3", "joint"),
        ("sdt3, stop", "joint"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (
            ("spikingformer", "sequential"), ("qkformer", "joint"), ("qkformer, sign", "joint"),
            ("sdt", "sequential"), ("maxformer", "joint"), ("sdt2", "sequential"),
            ("bestformer", "sequential"), ("bestformer", "reverse"), ("sdt2", "reverse"),
        )),
    ],
)  # fmt: skip
def test_all_levels_together_on_the_families(case, schedule, bench, tmp_path):
    """Tokens, weights of every unit of the stem, its activations, all other weights; counted,
    streamed, exported bit for bit."""
    name, sizes, _ = {**NETWORKS, "spikformer": ("spikformer_toy", SIZES, None)}[family(case)]
    patches, _, encoder = LEVELS[case]
    if patches.mode == "stop":  # of the one token of 16 pixels none can
        sizes = {**sizes, "image_size": 32}
        few = {"image_size": 32, "limit_train": 60, "limit_test": 20}
        bench = type(bench)(create_dataset("digits", **few))
    torch.manual_seed(0)
    model = create_model(name, **sizes)
    behind = set(encoder_weights(model))
    search = all_levels(case, schedule)
    ticket = search.find(model, bench.trainer(tmp_path / "search").fit)
    counts = {"qkformer": 6, "maxformer": 6, "sdt2": 25, "sdt3": 25}
    assert len(stem_of(model).units()) == counts.get(family(case), 5)
    assert len(ticket.mask) == len(stem_of(model).units()) + len(behind)
    assert behind < set(ticket.mask) and "head.weight" in behind
    check_ticket("multisp", search, ticket, model)
    images = torch.rand(4, 3, *model.image_size)
    ledger = build_ledger(model, [images])
    stem = [kept for key, kept in ticket.mask.items() if key not in behind]
    removed = sum(int((~kept).sum()) for kept in stem) / sum(kept.numel() for kept in stem)
    if halts_on(case):
        assert 0 <= ledger["sparsity"].pop("halting") < 1
    assert ledger["sparsity"] == {
        "patch": patches.sparsity, "conv_pep_weight": pytest.approx(removed),
        "total_weight": pytest.approx(ticket.mask.removed / sum(
            m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))),
    }  # fmt: skip
    assert ledger["uncounted_layers"] == []
    bits = {key.removesuffix(".weight") for key in behind} & set(ledger["binary_layers"])
    own = len(behind) - 1 if case == "bestformer" else 0  # all but its head
    assert len(bits) == (len(behind) if encoder.binary else own)
    driven = ledger["purity"]["not_spike_driven"]
    inside = {"sdt2": "branches.0.units.0", "sdt3": "branches.1.units.0.attn"}.get(
        family(case), "attn"
    )
    assert (f"blocks.0.{inside}.attention" in driven) is (case not in ("sdt", "bestformer"))
    assert "stem.stages.0.0.attn.attention" not in driven
    check_export(ticket, name, sizes, tmp_path / "packed")
    plain = load_exported(tmp_path / "packed", plain=True).double()
    whole = plain(images.double())
    if patches.mode == "stop":
        with pytest.raises(ExportError, match="tokens stop inside of the stem by scores over the"):
            Stream(plain)
    for net in (plain, compact(plain)) if patches.mode != "stop" else ():
        stream, given = Stream(net), []
        for _ in range(3):
            given.append(stream.push(images.double()))
        assert torch.allclose(torch.cat(given, 1), whole, rtol=0, atol=1e-9)
    assert (patches_of(plain) is None) is (patches.sparsity == 0 or patches.mode == "stop")
    stops = [stop.sparsity for stop in selections(plain)] if patches.mode == "stop" else []
    assert stops == [0.5, 0.5] * (patches.mode == "stop")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["imp", "rigl", "all levels"])
@pytest.mark.parametrize("network", FAMILIES)
def test_a_search_killed_on_any_family_ends_with_the_same_ticket(network, case, forks, tmp_path):
    check_killed(case, network, forks, tmp_path)


@on_one_network(sorted(set(CASES) - TRAINING))
def test_one_shot_searches_leave_buffers_and_modes(case, run):
    before, after = run.modes
    assert before == after
    for name, value in run.model.named_buffers():
        assert torch.equal(value, run.before[name]), name
    assert run.ticket.provenance["phases"] == []
