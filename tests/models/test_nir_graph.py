"""models.nir_graph: networks in NIR's files, against NIR's equations and other libraries."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch.nn import functional as F

from spikeformer_lt import adapt, create_model, find
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.export import export_ticket, load_exported

nir = pytest.importorskip("nir", reason="the extra 'nir' is not installed")

T, K = 4, 10
SIDE = {"image_size": 8}


def values(seed: int, *shape: int, low: float = -0.5, high: float = 0.5) -> NDArray[Any]:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def lif(*shape: int, tau: float = 2.0, kind: str = "LIF", **others: Any) -> Any:
    """Neurons with a gain and a threshold of their own each."""
    parts: dict[str, Any] = {"r": values(1, *shape, low=1.0, high=3.0)}
    if kind in ("LIF", "LI"):
        parts |= {"tau": np.full(shape, tau), "v_leak": np.full(shape, -0.25)}
    if kind in ("LIF", "IF"):
        reset = np.full(shape, -0.25 if kind == "LIF" else 0.0)
        parts |= {"v_threshold": values(2, *shape, low=0.5, high=1.5), "v_reset": reset}
    return getattr(nir, kind)(**{**parts, **others})


def chain(*nodes: Any, out: int = K) -> Any:
    names = [f"n{i}" for i in range(len(nodes))]
    every = {"input": nir.Input(nodes[0].input_type), **dict(zip(names, nodes, strict=True))}
    every["output"] = nir.Output({"output": np.array([out])})
    edges = list(pairwise(["input", *names, "output"]))
    return nir.NIRGraph(every, edges, type_check=False)


def conv(seed: int, out: int, inner: int, side: int, groups: int = 1) -> Any:
    weight = values(seed, out, inner // groups, 3, 3)
    return nir.Conv2d((side, side), weight, 1, 1, 1, groups, values(seed + 1, out))


def picture_graph() -> Any:
    """Every node of images that is imported, and a sum of two ways."""
    pool = {name: np.array([n, n]) for name, n in (("kernel_size", 2), ("stride", 2))}
    pool["padding"] = np.array([0, 0])
    nodes = {
        "conv.0": conv(3, 6, 3, 8), "lif.0": lif(6, 8, 8), "sum": nir.SumPool2d(**pool),
        "conv.1": conv(5, 6, 6, 4, groups=2), "if": lif(6, 4, 4, kind="IF"),
        "mean": nir.AvgPool2d(**pool), "flat": nir.Flatten({"input": np.array([6, 2, 2])}, 0, -1),
        "scale": nir.Scale(values(7, 24)), "linear": nir.Linear(values(8, 12, 24)),
        "slow": nir.CubaLIF(
            tau_syn=np.full(12, 3.0), tau_mem=np.full(12, 2.5), r=np.full(12, 2.0),
            v_leak=np.zeros(12), v_threshold=np.full(12, 0.5), w_in=np.full(12, 4.0),
        ),
        "head": nir.Affine(values(9, K, 12), values(10, K)), "out": lif(K, kind="LI"),
    }  # fmt: skip
    names = list(nodes)
    edges = [*pairwise(["input", *names, "output"]), ("lif.0", "skip"), ("skip", "conv.1")]
    nodes["skip"] = nir.AvgPool2d(**pool)
    nodes["input"] = nir.Input({"input": np.array([3, 8, 8])})
    nodes["output"] = nir.Output({"output": np.array([K])})
    return nir.NIRGraph(nodes, edges, type_check=False)


def integrate(graph: Any, x: torch.Tensor, dt: float) -> torch.Tensor:
    """NIR's equations by Euler's steps of dt, on plain voltages in float64; ``[T, B, ...]``."""
    done: dict[str, torch.Tensor] = {}
    left = set(graph.nodes)
    while left:
        froms = {name: [a for a, b in graph.edges if b == name] for name in left}
        name = next(n for n in sorted(left) if all(f in done for f in froms[n]))
        left.remove(name)
        given = torch.stack([done[f] for f in froms[name]]).sum(0) if froms[name] else x
        done[name] = stepped(graph.nodes[name], given, dt)
    return done["output"]


def stepped(node: Any, x: torch.Tensor, dt: float) -> torch.Tensor:
    kind, part = type(node).__name__, {}
    for name, value in vars(node).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            part[name] = torch.from_numpy(value).double()
    if kind in ("Input", "Output"):
        return x
    if kind == "Conv2d":
        made = [F.conv2d(s, part["weight"], part["bias"], 1, 1, 1, node.groups) for s in x]
        return torch.stack(made)
    if kind in ("SumPool2d", "AvgPool2d"):
        mean = torch.stack([F.avg_pool2d(step, 2) for step in x])
        return mean * 4 if kind == "SumPool2d" else mean
    if kind == "Flatten":
        return x.flatten(2)
    if kind == "Scale":
        return x * part["scale"]
    if kind in ("Linear", "Affine"):
        return x @ part["weight"].T + part.get("bias", 0.0)
    current, seen = torch.zeros_like(x[0]), []
    tau = part.get("tau", part.get("tau_mem"))
    v = part.get("v_reset", part.get("v_leak", torch.zeros(1))) + torch.zeros_like(x[0])
    for step in x:
        if "tau_syn" in part:
            current = current + dt / part["tau_syn"] * (part["w_in"] * step - current)
            step = current
        pull = part["r"] * step
        v = v + dt * (pull if tau is None else (part["v_leak"] - v + pull) / tau)
        if kind in ("LI", "I"):
            seen.append(v)
            continue
        fired = v > part["v_threshold"]
        v = torch.where(fired, part["v_reset"], v)
        seen.append(fired.double())
    return torch.stack(seen)


def written(graph: Any, folder: Path) -> str:
    nir.write(str(folder / "a.nir"), graph)
    return str(folder / "a.nir")


@pytest.mark.parametrize("dt", [1.0, 0.5])
def test_a_graph_computes_nirs_equations(dt: float, tmp_path: Path) -> None:
    graph = picture_graph()
    net = create_model("nir", file=written(graph, tmp_path), dt=dt, **SIDE).double()
    x = 2 * torch.rand(3, T, 3, 8, 8, dtype=torch.float64)
    wanted = integrate(graph, x.transpose(0, 1), dt).transpose(0, 1)
    torch.testing.assert_close(net(x), wanted, rtol=1e-6, atol=1e-6)
    rates = [float(s) for s in integrate_rates(graph, x.transpose(0, 1), dt)]
    assert len(rates) == 3 and all(0.02 < rate < 0.95 for rate in rates), rates
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)
    assert not torch.equal(net(x), wanted)


def integrate_rates(graph: Any, x: torch.Tensor, dt: float) -> list[torch.Tensor]:
    """Firing rates of the three layers of neurons."""
    found = []
    for name in ("lif.0", "if", "slow"):
        ends = [(a, b) for a, b in graph.edges if b != "output"] + [(name, "output")]
        cut = nir.NIRGraph(graph.nodes, ends, type_check=False)
        found.append(integrate(cut, x, dt).mean())
    return found


def test_a_network_of_nir_is_found_searched_and_exported(tmp_path: Path) -> None:
    graph = chain(
        conv(3, 8, 3, 16), lif(8, 16, 16), nir.Flatten({"input": np.array([8, 16, 16])}, 0, -1),
        nir.Affine(values(9, K, 2048), values(10, K)),
    )  # fmt: skip
    file = written(graph, tmp_path)
    net = create_model("nir", file=file, image_size=16)
    found = adapt(net, T, images=torch.rand(2, 3, 16, 16)).found
    assert found.kept and (found.T, found.output, found.classes) == (T, "[B, T, K]", K)
    assert found.prunable == {"graph.nodes.n0.weight": 216, "graph.nodes.n3.weight": 20480}
    out = {"out": tmp_path / "run", "options": {"snip.images": 64}}
    ticket = find("snip", net, "digits", sparsity=0.9, **out)
    assert ticket.mask.sparsity == pytest.approx(0.9, abs=1e-3)
    export_ticket(ticket, tmp_path / "packed", model=net)
    again = load_exported(tmp_path / "packed", model=create_model("nir", file=file, image_size=16))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(again(x), net(x))


def test_rows_are_flattened_pictures(tmp_path: Path) -> None:
    graph = chain(
        nir.Affine(values(3, 16, 192), values(4, 16)), lif(16), nir.Linear(values(5, K, 16))
    )
    net = create_model("nir", file=written(graph, tmp_path), **SIDE)
    x = torch.rand(2, 3, 8, 8)
    wanted = integrate(graph, x.flatten(1).double().expand(T, -1, -1), 1.0).float()
    torch.testing.assert_close(net(x).transpose(0, 1), wanted, rtol=1e-4, atol=1e-5)


def test_a_graph_of_spikingjelly_gives_its_logits(tmp_path: Path) -> None:
    pytest.importorskip("nirtorch", reason="spikingjelly writes NIR by nirtorch")
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    torch.manual_seed(0)
    made = {"tau": 2.0, "decay_input": True, "surrogate_function": surrogate.ATan()}
    theirs = torch.nn.Sequential(
        layer.Conv2d(3, 6, 3, padding=1), neuron.LIFNode(**made), layer.AvgPool2d(2, 2),
        layer.Flatten(), layer.Linear(96, K),
    )  # fmt: skip
    dt = 1e-4
    export_to_nir(theirs, torch.rand(1, 3, 8, 8), save_path=tmp_path / "a.nir", dt=dt)
    net = create_model("nir", file=str(tmp_path / "a.nir"), dt=dt, **SIDE)
    x = 4 * torch.rand(T, 2, 3, 8, 8)
    functional.reset_net(theirs)
    wanted = torch.stack([theirs(step) for step in x])
    found = net(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.equal(wanted[0], wanted[-1])


def odd(change: str) -> Any:
    """A graph that is refused, by what is wrong with it."""
    conv_, head = conv(3, 4, 3, 8), nir.Affine(values(9, K, 256), values(10, K))
    flat, last = nir.Flatten({"input": np.array([4, 8, 8])}, 0, -1), K
    fire = lif(4, 8, 8)
    if change == "taus":
        fire = lif(4, 8, 8, tau=values(1, 4, 8, 8, low=2.0, high=3.0))  # type: ignore[arg-type]
    if change == "tau":
        fire = lif(4, 8, 8, tau=1.0)
    if change == "synapse":
        whole = {name: np.ones((4, 8, 8)) for name in ("r", "w_in", "v_threshold")}
        none = {name: np.zeros((4, 8, 8)) for name in ("v_leak", "v_reset")}
        taus = {"tau_syn": np.full((4, 8, 8), 0.3), "tau_mem": np.full((4, 8, 8), 5.0)}
        fire = nir.CubaLIF(**taus, **whole, **none)
    if change == "leak":
        fire = lif(4, 8, 8, v_reset=np.zeros((4, 8, 8)))
    if change == "threshold":
        fire = lif(4, 8, 8, v_threshold=np.full((4, 8, 8), -1.0))
    if change == "neurons":
        fire = lif(4, 4, 4)
    if change == "delay":
        fire = nir.Delay(np.ones((4, 8, 8)))
    if change == "classes":
        head, last = nir.Affine(values(9, 7, 256), values(10, 7)), 7
    graph = chain(conv_, fire, flat, head, out=last)
    if change == "loop":
        graph.edges.append(("n1", "n0"))
    if change == "parts":
        graph = nir.NIRGraph({"stem": graph}, [], type_check=False)
    return graph


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("taus", r"LIF 'n1': tau has 256 values; one for all neurons"),
        ("tau", r"LIF 'n1': tau=1 must be more than a step, dt=1"),
        ("synapse", r"CubaLIF 'n1': tau=0\.3 must be a step at least, dt=1"),
        ("leak", r"LIF 'n1': v_leak and v_reset must be equal"),
        ("threshold", r"LIF 'n1': v_threshold must be above v_reset"),
        ("neurons", r"LIF 'n1': \[4, 4, 4\] neurons for \[4, 8, 8\]"),
        ("delay", r"Delay 'n1': Delay is not imported; Affine"),
        ("classes", r"gives \[7\], the data have 10 classes"),
        ("loop", r"a loop \(.*n1.*\): none is imported"),
        ("parts", r"no way from one input to one output; nir\.part may be stem"),
    ],
)
def test_what_is_not_imported_is_refused_in_one_line(
    change: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^file=.*{said}"):
        create_model("nir", file=written(odd(change), tmp_path), **SIDE)


def test_files_parts_and_sizes_are_checked(tmp_path: Path) -> None:
    file = written(odd("parts"), tmp_path)
    assert create_model("nir", file=file, part="stem", **SIDE)(torch.rand(1, 3, 8, 8)).shape
    with pytest.raises(ConfigError, match=r"^part='sten' .*one of stem"):
        create_model("nir", file=file, part="sten", **SIDE)
    with pytest.raises(ConfigError, match=r"takes \[3, 8, 8\], the data \[3, 16, 16\]"):
        create_model("nir", file=file, part="stem", image_size=16)
    with pytest.raises(ConfigError, match=r"^dt=0.* a length above 0"):
        create_model("nir", file=file, dt=0.0)
    with pytest.raises(ConfigError, match=r"^file=.*a file that exists"):
        create_model("nir", file=str(tmp_path / "b.nir"))
    (tmp_path / "b.nir").write_bytes(b"no HDF5")
    with pytest.raises(ConfigError, match=r"^file=.*cannot be read"):
        create_model("nir", file=str(tmp_path / "b.nir"))


def test_frames_of_another_length_are_refused(tmp_path: Path) -> None:
    net = create_model("nir", file=written(picture_graph(), tmp_path), **SIDE)
    with pytest.raises(ConfigError, match=f"expected T={T} at dimension 1 of frames"):
        net(torch.rand(2, T + 3, 3, 8, 8))
