"""Networks of others under this package's contract, and checkpoints of others as plain tensors.

torch, torchvision, timm, spikingjelly and snntorch write their networks in several ways: with a
time axis or without, stepped from outside or from inside, with states that the caller resets. A
training script wraps its weights: in a dict beside epoch and optimizer, under a prefix of
DistributedDataParallel, torch.compile or Lightning, and scalars lie beside the tensors.
"""

from __future__ import annotations

import argparse
import copy
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spikeformer_lt.errors import CheckpointError, ConfigError, counted, listed, name_of, shown
from spikeformer_lt.layers.inputs import SpikingClassifier, check_steps, check_values, kept_modes
from spikeformer_lt.layers.neuron import foreign_neurons, reset_state
from spikeformer_lt.rng import isolated_rng

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights a search may remove."""
SIDES = (32, 224, 28, 64, 16, 128, 299)
"""Sides of square images that a probe tries where nobody says the size, in pixels."""
_TURNS = threading.RLock()  # of forwards whose states lie on modules
STEPS = 4  # of a network that is stepped from outside, where no T is given
STATEFUL = "equal batches give other outputs: it keeps a state; give it a method reset()"
FEEDING = {
    "images": "one call with [B, C, H, W]",
    "folded": "one call with [B * T, C, H, W]: each frame by itself",
    "steps": "T calls with [B, C, H, W], one a step",
    "time first": "one call with [T, B, C, H, W]",
    "batch first": "one call with [B, T, C, H, W]",
}


@dataclass(frozen=True, repr=False)
class Found:
    """What a probe found in a network; print it to read it.

    Its class; how it is fed, a key of `FEEDING`; its time steps, 1 without a time axis; the axes of
    its output, [B, K], [T, B, K] or [B, T, K]; channels, rows and columns of its input; classes;
    spiking neurons of other libraries by name; sizes of the weights that searches may remove, and
    of other matrices; whether its own method ``reset`` is called before each batch.
    """

    network: str
    feeding: str
    T: int
    output: str
    input: tuple[int, ...]
    classes: int
    neurons: dict[str, str]
    prunable: dict[str, int]
    others: dict[str, int]
    resets: bool = False

    @property
    def kept(self) -> bool:
        """Whether the network keeps our contract by itself: nothing has to be adapted."""
        plain = self.feeding in ("images", "batch first") and not self.neurons
        return plain and self.output == "[B, T, K]"

    def __repr__(self) -> str:
        name = self.network.rpartition(".")[2]
        sizes = f"{list(self.input)} -> {self.classes} classes"
        weights = counted(len(self.prunable), "prunable weight")
        neurons = counted(len(self.neurons), "spiking neuron")
        return f"Found({name}: {sizes}, T {self.T}, {self.feeding}; {weights}, {neurons})"

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(self.neurons.values()).items())
        time = f"{self.T} steps" if self.T > 1 else "no time axis: T 1"
        rows = {
            "input": f"{list(self.input)} channels, rows, columns; {FEEDING[self.feeding]}",
            "time": f"{time}; {'states are reset at each batch' if kinds else 'no states'}",
            "output": f"{self.output}, K = {self.classes}",
            "neurons": kinds or "none of spikingjelly or snntorch",
            "prunable": f"{len(self.prunable)} weights, {sum(self.prunable.values()):,} values",
            "not prunable": f"{len(self.others)} matrices, {sum(self.others.values()):,} values",
        }
        return "\n".join([self.network, *(f"  {name:13}{text}" for name, text in rows.items())])


class Adapted(nn.Module):
    """A network of another library with this package's contract.

    It has the very parameters, buffers and children of the network, under their own names: masks
    and weights fit both. States of neurons are cleared before and after each forward; threads that
    share such networks take turns.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``; T is 1 for
    images without a time axis.

    Args:
        network: what is adapted.
        found: how, as `adapt` found it.
        output: which of several outputs is taken.
    """

    def __init__(self, network: nn.Module, found: Found, output: int = 0) -> None:
        super().__init__()
        self.__dict__["network"] = network  # no child: the names stay those of the network
        for name in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[name] = network.__dict__[name]
        self.found, self.output, self.T = found, output, found.T
        self.num_classes, self.in_channels = found.classes, found.input[0]
        self.image_size = found.input[1:]
        self.training = network.training
        for name in found.neurons:
            neuron: Any = self.get_submodule(name)
            neuron.spiking, neuron.stepwise = True, getattr(neuron, "step_mode", "s") == "s"

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch, from states at rest; in eval mode its values are checked."""
        network: nn.Module = self.__dict__["network"]
        if x.ndim not in (4, 5):
            raise ConfigError(
                f"input shape {list(x.shape)} is neither images [B, C, H, W] nor frames "
                "[B, T, C, H, W]"
            )
        check_steps(x, self.T)
        if not self.training:
            check_values(x)
        network.training = self.training
        kept = self.found.neurons or self.found.resets
        turn: AbstractContextManager[Any] = _TURNS if kept else nullcontext()
        with turn:
            rest(network, self.found.resets)
            try:
                given = _feed(network, self.found.feeding, x, self.T, self.output)
            finally:
                reset_state(network)
        if self.found.feeding == "folded":
            given = given.unflatten(0, (len(x), -1))
        if self.found.output == "[T, B, K]":
            return given.transpose(0, 1)
        return given if given.ndim == 3 else given.unsqueeze(1)

    def train(self, mode: bool = True) -> Self:
        """As the network does it: some keep a part in eval mode."""
        self.__dict__["network"].train(mode)
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapted:
        reset_state(self)
        made = Adapted(copy.deepcopy(self.__dict__["network"], memo), self.found, self.output)
        shared = {"network", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"}
        rest = {name: value for name, value in self.__dict__.items() if name not in shared}
        made.__dict__.update(copy.deepcopy(rest, memo))
        return made

    def __repr__(self) -> str:
        return f"Adapted{repr(self.found).removeprefix('Found')}"

    def _get_name(self) -> str:
        return type(self.__dict__["network"]).__name__


def adapt(
    network: nn.Module, T: int | None = None, *, images: Tensor | None = None, output: int = 0
) -> Adapted:
    """Give a network of torch, torchvision, timm, spikingjelly or snntorch this package's contract.

    One batch is run in eval mode, several ways, until one makes sense; the network stays as it was.
    ``print(adapt(network).found)`` says what was found.

    Args:
        network: maps images, or a sequence of them, to logits. States of spikingjelly's and
            snntorch's neurons are reset at each batch, others by the network's own ``reset()``.
        T: time steps; None takes the network's own, or 4 where the caller makes the steps.
        images: some images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` as it will get them; None
            tries usual sizes, with the channels of the first layer.
        output: which of several outputs has the logits, such as 0 of snntorch's (spikes, membrane).

    Raises:
        ConfigError: no way to feed it gives logits; its steps are not `T`; it holds a state that
            nobody resets; its weights are computed from others or not made yet.

    Source: step modes and resets of spikingjelly 2 and snntorch 1, as documented.
    """
    if isinstance(network, Adapted):
        return network
    refuse_unfit(network)
    batches = [images] if images is not None else list(_usual(network))
    reasons: list[str] = []
    for batch in batches:
        if (found := _probe(network, T, batch, output, reasons)) is not None:
            return Adapted(network, found, output)
    tried = "; ".join(dict.fromkeys(reasons))
    hint = "give images=, a batch as it gets them" if images is None else "see docs/own_network.md"
    raise ConfigError(f"{type(network).__name__} cannot be adapted: {tried}; {hint}")


def at_door(network: nn.Module, T: int, images: Callable[[], Tensor]) -> nn.Module:
    """A network as training and searches take it: ours and those alike as they are, or adapted."""
    if isinstance(network, SpikingClassifier):
        network.mean_over_time = False  # one of timm.create_model
    if isinstance(network, SpikingClassifier | Adapted):
        return network
    adapted = adapt(network, T, images=images())
    return network if adapted.found.kept else adapted


def rest(network: nn.Module, own: bool = False) -> None:
    """Clear the states of neurons, and by the network's `own` method ``reset`` those it keeps."""
    reset_state(network)
    if own:
        network.reset()  # type: ignore[operator]


def refuse_unfit(network: nn.Module) -> None:
    """Refuse what no batch can help, by a ConfigError."""
    name = type(network).__name__
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network={shown(network)} is not allowed: a torch.nn.Module")
    if name in ("OptimizedModule", "DataParallel", "DistributedDataParallel"):
        raise ConfigError(f"{name} cannot be adapted: give the network inside of it")
    if isinstance(network, PRUNABLE):
        raise ConfigError(f"{name} cannot be adapted: a single layer; put it into nn.Sequential")
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        raise ConfigError(f"{name} cannot be adapted: lazy layers; run one batch through it first")
    for path, weight in network.named_parameters():
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise ConfigError(f"{name} cannot be adapted: {path} has NaN or infinite values")
    for path, module in network.named_modules():
        if isinstance(module, PRUNABLE) and "weight" not in module._parameters:
            raise ConfigError(
                f"{name} cannot be adapted: {path}.weight is computed from other tensors; take its "
                "mask by Mask.from_module, and make it plain by torch.nn.utils.prune.remove or "
                "parametrize.remove_parametrizations"
            )


def _usual(network: nn.Module) -> Iterator[Tensor]:
    """Images of the size that a network says, else of usual sizes."""
    layers = (module for module in network.modules() if isinstance(module, PRUNABLE))
    first = next(layers, None)
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    said = getattr(network, "default_cfg", None)  # timm's
    if isinstance(said, dict) and len(said.get("input_size", ())) == 3:
        yield torch.zeros(2, *said["input_size"])
    for side in SIDES:
        yield torch.zeros(2, channels, side, side)


def _probe(
    network: nn.Module,
    T: int | None,
    images: Tensor,
    output: int,
    reasons: list[str],
    rows: int = 0,
) -> Found | None:
    """Feed a batch in each way that fits the neurons; None, and `reasons`, if none fits."""
    frames, neurons = images.ndim == 5, foreign_neurons(network)
    steps = images.shape[1] if frames else T or STEPS
    if frames and T not in (None, steps):
        raise ConfigError(f"T={T} is not allowed: the frames have {steps} steps")
    again, rows = bool(rows), rows or (2 if steps != 2 else 3)  # no axis may pass for another
    like = next(network.parameters(), torch.empty(0))
    batch = images[torch.arange(rows) % len(images)].to(like.device, like.dtype)
    for feeding in _ways(list(neurons.values()), frames):
        with _watched(network, neurons) as calls:

            def run(own: bool, feeding: str = feeding) -> Tensor:
                rest(network, own)
                with isolated_rng(0):
                    return _feed(network, feeding, batch, steps, output)

            try:
                given = run(False)
                said, own = calls.check(feeding, given, rows, steps, T), False
                if not said and not torch.equal(given, run(False)):
                    own = callable(getattr(network, "reset", None))
                    given, said = run(own), "" if torch.equal(run(own), run(own)) else STATEFUL
            except ConfigError:
                raise
            except Exception as fault:
                line = next(iter(str(fault).splitlines()), "")
                reasons.append(f"{feeding}: {type(fault).__name__}: {shown(line, 160)[1:-1]}")
                continue
        if said:
            reasons.append(f"{feeding}: {said}")
            continue
        if given.ndim == 3 and calls.steps == rows and not again:
            return _probe(network, T, images, output, reasons, rows + 1)
        every = dict(network.named_parameters())
        pruned = [f"{n}.weight" for n, m in network.named_modules() if isinstance(m, PRUNABLE)]
        sizes = {name: p.numel() for name, p in every.items() if p.ndim > 1}
        kind = f"{type(network).__module__}.{type(network).__qualname__}"
        return Found(
            kind, feeding, calls.steps, calls.output, tuple(images.shape[-3:]), given.shape[-1],
            {name: type(module).__name__ for name, module in neurons.items()},
            {name: n for name, n in sizes.items() if name in pruned},
            {name: n for name, n in sizes.items() if name not in pruned}, own,
        )  # fmt: skip
    return None


def _ways(neurons: Sequence[nn.Module], frames: bool) -> tuple[str, ...]:
    """Ways to feed a network, the likeliest first."""
    if any(getattr(neuron, "step_mode", "s") == "m" for neuron in neurons):
        return ("time first", "batch first", *(() if frames else ("images",)))
    if neurons:
        return ("batch first", "time first", "steps") if frames else ("images", "steps")
    return ("batch first", "folded") if frames else ("images",)


def _feed(network: nn.Module, feeding: str, x: Tensor, T: int, output: int) -> Tensor:
    """What a network gives for images or frames: of one call, or of T calls, stacked."""
    if feeding in ("images", "folded"):
        return _logits(network(x if feeding == "images" else x.flatten(0, 1)), output)
    steps = x.transpose(0, 1) if x.ndim == 5 else x.expand(T, *x.shape)
    if feeding == "steps":
        return torch.stack([_logits(network(step), output) for step in steps])
    if feeding == "batch first":
        steps = steps.transpose(0, 1)
    return _logits(network(steps.contiguous()), output)


def _logits(given: Any, output: int) -> Tensor:
    """The tensor in what a network returned."""
    given = getattr(given, "logits", given)
    if isinstance(given, tuple | list):
        given = given[min(output, len(given) - 1)]
    if not isinstance(given, Tensor):
        raise ConfigError(f"the network gives {type(given).__name__}, not logits [B, K]")
    return given


class _Calls:
    """How often each neuron was called by one feeding, and with what first axis."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.first: dict[str, int] = {}
        self.steps, self.output = 1, ""

    def check(self, feeding: str, given: Tensor, rows: int, steps: int, T: int | None) -> str:
        """Why a feeding makes no sense, or nothing; sets `steps` and `output`."""
        timed, inside = feeding not in ("images", "folded"), set(self.first.values())
        once = min(self.count.values(), default=0)
        if inside:  # multi-step neurons, whose first axis must be time
            own = inside.pop() if len(inside) == 1 else 0
            if own == rows or own == 0 or (timed and own != steps):
                return f"neurons take {own or 'several sizes'} for the number of steps"
        elif self.count:
            own = once
            if timed and feeding != "steps" and own != steps:
                return f"neurons make {own} steps of {steps}"
            if feeding == "images" and own == 1 and given.ndim == 2:
                return "one call is one step"
        else:
            own = steps if timed else 1
        if feeding == "images" and self.count and T not in (None, own):
            raise ConfigError(
                f"T={T} is not allowed: the network makes {own} steps in each call; give T={own}"
            )
        batch = rows * steps if feeding == "folded" else rows
        if feeding == "images" and not self.count and given.ndim == 3:
            own = 1 if given.shape[1] == 1 else T or steps
        self.steps = steps if feeding == "folded" else own
        known = {(batch,): "[B, K]", (own, rows): "[T, B, K]", (rows, own): "[B, T, K]"}
        self.output = known.get(tuple(given.shape[:-1]), "")
        fits = self.output and given.is_floating_point()
        return "" if fits else f"the output is {list(given.shape)} for B = {rows}, T = {own}"


@contextmanager
def _watched(network: nn.Module, neurons: dict[str, nn.Module]) -> Iterator[_Calls]:
    """Run a network in eval mode, its neurons watched, and put everything back."""
    calls, own = _Calls(), [(m, *item) for m in network.modules() for item in m._buffers.items()]
    buffers = [(module, name, b, b.clone()) for module, name, b in own if b is not None]

    def watch(name: str, multi: bool) -> Any:
        def count(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls.count[name] += 1
            if multi and args and isinstance(args[0], Tensor):
                calls.first.setdefault(name, len(args[0]))

        return count

    with ExitStack() as stack, torch.no_grad(), kept_modes(network):
        for name, neuron in neurons.items():
            multi = getattr(neuron, "step_mode", "s") == "m"
            stack.callback(neuron.register_forward_pre_hook(watch(name, multi)).remove)
        try:
            network.eval()
            yield calls
        finally:
            reset_state(network)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)


WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""Entries that hold the weights of a training checkpoint, in the order in which they are taken."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""The same for averaged weights."""
_PREFIX = re.compile(r"^(?:(?:module|model|net|network)\.)+")
_WRAPPED = re.compile(  # torch.compile, FSDP, recomputation, Fabric, Opacus: of any module inside
    r"(?<![^.])_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module|module)\."
)
_TRAINING = re.compile(r"optim|sched|scaler|callbacks|loops")  # entries about the training
_PROFILER = re.compile(r"(?:.*\.)?total_(?:ops|params)")  # thop's counters
_SCALARS = (int, float, complex, str, bytes, bool, type(None), np.generic)


def read_foreign(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth``, ``.pth.tar``, ``.ckpt`` or ``.safetensors`` file.

    A pickle is read by torch's weights-only reader, which builds tensors and plain containers
    and calls nothing that the file names. Names lose the prefixes of wrappers; scalars beside the
    tensors are left out.

    Args:
        path: the file: weights, or a training checkpoint that has them in an entry of its own.
        ema: take the averaged weights of a training checkpoint.

    Raises:
        CheckpointError: the file holds code, something else than weights, several sets of them, or
            numbers that are not finite.
    """
    where = name_of(path)
    table = _table(_load(Path(path), where), where, ema)
    tensors: dict[str, Tensor] = {}
    for name, value in table.items():
        if isinstance(value, _SCALARS) or _PROFILER.fullmatch(str(name)):
            continue
        dense = isinstance(value, Tensor) and value.layout is torch.strided
        if not dense or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f"{where}: {shown(name)} is no dense tensor but {type(value).__name__}; allowed: "
                f"a state_dict, or a dict with one, such as {', '.join(WEIGHTS[:4])}"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{where}: tensor {shown(name)} has NaN or infinite values")
        plain = _PREFIX.sub("", _WRAPPED.sub("", str(name)))
        if plain in tensors:
            raise CheckpointError(f"{where}: {shown(plain)} is there twice, with another prefix")
        tensors[plain] = value.detach()
    return _without_common_prefix(tensors)


def _table(content: object, where: str, ema: bool) -> Mapping[Any, Any]:
    """The table of weights in the content of a file."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: no table of tensors but {type(content).__name__}")
    found = dict(_tables(content))
    averaged = [name for name in found if name.rpartition("/")[2] in AVERAGED]
    plain = [name for name in found if name not in averaged]
    if ema and not averaged:
        raise CheckpointError(f"{where}: no averaged weights ({AVERAGED[0]}) in it; drop --ema")
    names = averaged if ema else plain or averaged
    known = [name for word in WEIGHTS for name in names if name.rpartition("/")[2] == word]
    chosen = (known or names)[:1] if known or len(names) == 1 or ema else names
    if len(chosen) > 1:
        raise CheckpointError(
            f"{where}: several tables of tensors ({listed(map(shown, chosen))}); give a file of "
            "the weights alone"
        )
    if not chosen and not any(isinstance(value, Tensor) for value in content.values()):
        odd = next((name for name, v in content.items() if not isinstance(v, _SCALARS)), None)
        said = f"; {shown(odd)} is no dense tensor" if odd is not None else ""
        raise CheckpointError(f"{where}: no table of tensors but {type(content).__name__}{said}")
    return found[chosen[0]] if chosen else content


def _tables(content: Mapping[Any, Any], at: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Tables of tensors inside a mapping, by their place."""
    for name, value in content.items():
        if not isinstance(value, Mapping) or _TRAINING.search(str(name)):
            continue
        place = f"{at}/{name}" if at else str(name)
        if any(isinstance(one, Tensor) for one in value.values()):
            yield place, value
        elif depth > 1:
            yield from _tables(value, place, depth - 1)


def _without_common_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the one module that all of them are in, as a wrapper of any name adds."""
    firsts = {name.partition(".")[0] for name in tensors}
    shorter = {name.partition(".")[2]: value for name, value in tensors.items()}
    if len(firsts) > 1 or not any("." in name for name in shorter):
        return tensors
    return _without_common_prefix(shorter)


def _load(path: Path, where: str) -> object:
    try:
        if not path.is_file() and path.exists():
            kind = "a directory" if path.is_dir() else "no regular file"
            raise CheckpointError(f"cannot read {where}: it is {kind}; give the file itself")
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as fault:
        raise CheckpointError(f"cannot read {where}: {fault.strerror or fault}") from None
    try:
        if head[8:9] == b"{":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:
        named = re.search(r"GLOBAL ([\w.]+)", str(fault))
        what = f"it asks for {named[1]}, which is code" if named else "it is damaged, or no weights"
        raise CheckpointError(
            f"{where}: refused, and nothing in it was run: {what}; give a file of tensors only"
        ) from fault


def _harmless() -> list[Any]:
    """What training scripts store beside weights: options, paths, numbers and arrays of NumPy."""
    scalar = np.float64(0).__reduce__()[0]  # makes a number of a dtype and its bytes
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"}
    named = [(f"numpy.{core}.multiarray.{name}", make) for core in ("core", "_core")
             for name, make in (("scalar", scalar), ("_reconstruct", _no_values))]  # fmt: skip
    named += [(f"pathlib{part}.{kind}Path", PurePosixPath) for part in ("", "._local")
              for kind in ("Posix", "PurePosix", "Windows", "PureWindows")]  # fmt: skip
    return [argparse.Namespace, np.dtype, np.ndarray, *kinds, *((m, name) for name, m in named)]


def _no_values(*_: object) -> NDArray[np.uint8]:
    """An array whose values follow in the file; its size is that of the values."""
    return np.empty(0, np.uint8)
