"""Networks that other tools wrote as NIR graphs; training and searches adapt them.

Source of NIR: Pedersen et al. 2024, Nature Communications 15:8122, table 1.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, listed, shown
from spikeformer_lt.layers.inputs import check_steps
from spikeformer_lt.layers.neuron import make_activation
from spikeformer_lt.registry import register_model


@dataclass(frozen=True)
class NirConfig:
    """A network in a file of NIR."""

    file: str = ""
    """The file (HDF5), as nir.write makes it."""
    part: str = ""
    """Graph inside the file; empty: the whole."""
    dt: float = 1.0
    """Length of a time step, in the unit of the file's time constants."""

    def __post_init__(self) -> None:
        check(0 < self.dt < math.inf, "nir.dt", self.dt, "a length above 0")


NO_LEAK = 2.0**60  # a time constant at which a float64 voltage keeps every bit


class Neuron(nn.Module):
    """NIR's LIF or IF: voltages in multiples of the threshold, above the reset.

    ``u' = u + dt / tau (g I - u)`` with ``g = r / (v_threshold - v_reset)``, and without the leak
    ``u' = u + dt g I``; it fires and returns to 0 at ``u' >= 1``. NIR asks for more than the
    threshold, which differs where a voltage meets it exactly.

    Shape: in and out ``[T, B, ...]``, from rest.
    """

    gain: Tensor

    def __init__(self, node: Any, dt: float) -> None:
        super().__init__()
        span, leaks = node.v_threshold - node.v_reset, hasattr(node, "tau")
        if not (span > 0).all():
            raise ConfigError("v_threshold must be above v_reset")
        tau, gain = NO_LEAK, node.r / span
        if leaks:
            if not np.array_equal(node.v_leak, node.v_reset):
                raise ConfigError("v_leak and v_reset must be equal")
            tau = _one(node.tau, "tau") / dt
            if not 1 < tau < NO_LEAK:
                raise ConfigError(f"tau={tau * dt:g} must be more than a step, dt={dt:g}")
        else:
            gain = gain * dt
        self.register_buffer("gain", _tensor(gain), persistent=False)
        self.act = make_activation("lif", tau=tau, decay_input=leaks, surrogate="atan")

    def forward(self, current: Tensor) -> Tensor:
        """Spikes of T steps of currents."""
        if self.gain.ndim and self.gain.shape != current.shape[2:]:
            raise ConfigError(f"{list(self.gain.shape)} neurons for {list(current.shape[2:])}")
        out: Tensor = self.act(current * self.gain)
        return out


class Integrator(nn.Module):
    """NIR's LI or I: ``v' = v + dt / tau (v_leak - v + r I)``, or ``v' = v + dt r I``.

    Shape: currents ``[T, B, ...]`` -> voltages of the same shape, from v_leak, or from 0.
    """

    rate: Tensor
    gain: Tensor
    leak: Tensor

    def __init__(self, node: Any, dt: float) -> None:
        super().__init__()
        leaks = hasattr(node, "tau")
        if leaks and not (np.asarray(node.tau) >= dt).all():
            least = np.min(node.tau)
            raise ConfigError(f"tau={least:g} must be a step at least, dt={dt:g}")
        rate = dt / node.tau if leaks else 0.0 * node.r
        parts = {"rate": rate, "gain": node.r * (rate if leaks else dt)}
        parts["leak"] = node.v_leak if leaks else rate
        for name, value in parts.items():
            self.register_buffer(name, _tensor(value), persistent=False)

    def forward(self, current: Tensor) -> Tensor:
        """Voltages of T steps of currents."""
        voltage, seen = self.leak.expand(current.shape[1:]), []
        for step in current:
            voltage = voltage + (self.rate * (self.leak - voltage) + self.gain * step)
            seen.append(voltage)
        return torch.stack(seen)


class Scale(nn.Module):
    """A product with a factor for each value."""

    factor: Tensor

    def __init__(self, factor: Any) -> None:
        super().__init__()
        self.register_buffer("factor", _tensor(factor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.factor


class NirGraph(nn.Module):
    """Nodes of a graph without loops, as modules under their names; edges that meet are added.

    Shape: ``[T, B, *input]`` -> ``[T, B, *output]``.
    """

    def __init__(self, graph: Any, dt: float) -> None:
        super().__init__()
        self.sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            self.sources[target].append(source)
        doors = [[n for n, node in graph.nodes.items() if _kind(node) == kind] for kind in DOORS]
        if [len(names) for names in doors] != [1, 1] or not self.sources[doors[1][0]]:
            inner = [n for n, node in graph.nodes.items() if _kind(node) == "NIRGraph"]
            parts = f"; nir.part may be {listed(inner)}" if inner else ""
            raise ConfigError(f"no way from one input to one output{parts}")
        try:
            self.order = tuple(TopologicalSorter(self.sources).static_order())
        except CycleError as fault:
            raise ConfigError(f"a loop ({' -> '.join(fault.args[1])}): none is imported") from None
        self.input, self.end = (names[0] for names in doors)
        self.shape = tuple(int(n) for n in graph.nodes[self.input].output_type["output"])
        self.nodes = nn.ModuleDict()
        seen: dict[str, Tensor] = {}
        for name in self.order:
            node = graph.nodes[name]
            with _named(name, node), torch.no_grad():
                if _kind(node) not in DOORS:
                    self.nodes[_plain(name)] = _module(node, dt)
                seen[name] = self._value(name, seen, torch.zeros(1, 1, *self.shape))
        self.out = tuple(seen[self.end].shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """Run all nodes over all steps."""
        done: dict[str, Tensor] = {}
        for name in self.order:
            done[name] = self._value(name, done, x)
        return done[self.end]

    def _value(self, name: str, done: dict[str, Tensor], x: Tensor) -> Tensor:
        """What a node gives for `x`, from the values of those before it."""
        if name == self.input:
            return x
        first, *others = (done[source] for source in self.sources[name])
        given = sum(others, first)
        if name == self.end:
            return given
        module = self.nodes[_plain(name)]
        steps = isinstance(module, Neuron | Integrator | NirGraph | nn.Sequential)
        out: Tensor = module(given if steps else given.flatten(0, 1))
        return out if steps else out.unflatten(0, given.shape[:2])


class NirNetwork(nn.Module):
    """A graph that classifies.

    Shape: images ``[B, C, H, W]``, the same at each of T steps, or frames ``[B, T, C, H, W]`` ->
    logits ``[B, T, K]``; pictures are flattened where the graph takes rows.
    """

    def __init__(
        self, graph: NirGraph, T: int, num_classes: int, pictures: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.graph, self.T, self.num_classes = graph, T, num_classes
        self.in_channels, self.image_size = pictures[0], pictures[1:]
        self.flat = graph.shape == (math.prod(pictures),)
        if not self.flat and graph.shape != pictures:
            raise ConfigError(f"takes {list(graph.shape)}, the data {list(pictures)}")
        if graph.out != (num_classes,):
            raise ConfigError(f"gives {list(graph.out)}, the data have {num_classes} classes")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each step."""
        check_steps(x, self.T)
        steps = x.expand(self.T, *x.shape) if x.ndim == 4 else x.transpose(0, 1)
        out: Tensor = self.graph(steps.flatten(2) if self.flat else steps)
        return out.transpose(0, 1)


DOORS = ("Input", "Output")


def _kind(node: Any) -> str:
    return type(node).__name__


@contextmanager
def _named(name: str, node: Any) -> Iterator[None]:
    """Let a fault name the node that it is of."""
    try:
        yield
    except (ConfigError, RuntimeError, ValueError, AttributeError, TypeError) as fault:
        said = str(fault).partition("\n")[0]
        raise ConfigError(f"{_kind(node)} {shown(name)}: {said}") from fault


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _tensor(values: Any) -> Tensor:
    """A float32 tensor, of one number where all are equal."""
    values = np.asarray(values, np.float32)
    same = values.size and (values == values.flat[0]).all()
    return torch.tensor(values.flat[0] if same else values, dtype=torch.float32)


def _one(values: Any, name: str) -> float:
    found = np.unique(values)
    if len(found) != 1:
        raise ConfigError(f"{name} has {len(found)} values; one for all neurons is imported")
    return float(found[0])


def _pair(value: Any) -> Any:
    """An option of a convolution or a pool: a word, a number or numbers."""
    if isinstance(value, str):
        return value
    return tuple(int(n) for n in np.ravel(value))


def _weighted(layer: nn.Module, node: Any) -> nn.Module:
    layer.weight = nn.Parameter(torch.tensor(node.weight, dtype=torch.float32))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.tensor(node.bias, dtype=torch.float32))
    return layer


def _linear(node: Any, dt: float) -> nn.Module:
    if node.weight.ndim != 2:
        raise ConfigError(f"a weight of shape {list(node.weight.shape)} is no matrix")
    out, inner = node.weight.shape
    return _weighted(nn.Linear(inner, out, bias=hasattr(node, "bias")), node)


def _conv(node: Any, dt: float) -> nn.Module:
    out, inner, *kernel = node.weight.shape
    made = (nn.Conv1d, nn.Conv2d)[len(kernel) - 1]
    sizes: Any = {name: _pair(getattr(node, name)) for name in ("stride", "padding", "dilation")}
    groups = int(_one(node.groups, "groups"))
    return _weighted(made(inner * groups, out, tuple(kernel), groups=groups, **sizes), node)


def _pool(node: Any, dt: float) -> nn.Module:
    kernel, stride, padding = (_pair(v) for v in (node.kernel_size, node.stride, node.padding))
    summed: Any = {"divisor_override": 1} if _kind(node) == "SumPool2d" else {}
    return nn.AvgPool2d(kernel, stride, padding, **summed)


def _flatten(node: Any, dt: float) -> nn.Module:
    return nn.Flatten(*(axis + 1 if axis >= 0 else axis for axis in (node.start_dim, node.end_dim)))


def _current_based(node: Any, dt: float) -> nn.Module:
    """``I' = I + dt / tau_syn (w_in S - I)``, whose new value the neuron takes in the same step."""
    synapse = {"tau": node.tau_syn, "r": node.w_in, "v_leak": 0.0 * node.w_in}
    return nn.Sequential(
        Integrator(SimpleNamespace(**synapse), dt),
        Neuron(SimpleNamespace(**{**vars(node), "tau": node.tau_mem}), dt),
    )


MAKERS: dict[str, Callable[[Any, float], nn.Module]] = {
    **dict.fromkeys(("Affine", "Linear"), _linear),
    **dict.fromkeys(("Conv1d", "Conv2d"), _conv),
    **dict.fromkeys(("AvgPool2d", "SumPool2d"), _pool),
    **dict.fromkeys(("LIF", "IF"), Neuron),
    **dict.fromkeys(("LI", "I"), Integrator),
    "CubaLIF": _current_based,
    "Flatten": _flatten,
    "Scale": lambda node, dt: Scale(node.scale),
    "NIRGraph": NirGraph,
}


def _module(node: Any, dt: float) -> nn.Module:
    maker = MAKERS.get(_kind(node))
    if maker is None:
        raise ConfigError(f"{_kind(node)} is not imported; {listed(MAKERS)} are")
    return maker(node, dt)


@register_model("nir", NirConfig)
def nir_network(
    config: NirConfig,
    num_classes: int = 10,
    T: int = 4,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Module:
    """A network in a file of NIR, stepped T times; pictures are flattened where it takes rows."""
    if importlib.util.find_spec("nir") is None:
        raise ConfigError("nir is not installed; pip install 'spikeformer_lt[nir]'")
    import nir

    check(Path(config.file).is_file(), "nir.file", config.file, "a file that exists")
    what = f"nir.file={shown(config.file)}"
    try:
        graph = nir.read(config.file, type_check=False)  # each node is run as it is made
    except Exception as fault:
        said = str(fault).partition("\n")[0]
        raise ConfigError(f"{what} cannot be read: {shown(said, 200)}") from fault
    for name in filter(None, config.part.split("/")):
        graphs = {n: node for n, node in graph.nodes.items() if _kind(node) == "NIRGraph"}
        check(name in graphs, "nir.part", name, f"one of {listed(graphs) or 'none'}")
        graph = graphs[name]
    pictures = (in_channels, *np.broadcast_to(image_size, 2).tolist())
    try:
        return NirNetwork(NirGraph(graph, config.dt), T, num_classes, pictures)
    except ConfigError as fault:
        raise ConfigError(f"{what}: {fault}") from None
