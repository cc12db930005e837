"""What a network costs: energy estimates, layer by layer, and searches within a budget.

Energies are as counted, and by the papers' formula. Within a budget a search runs again at other
sparsities, until its trained network costs what it may.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import adapted, check
from spikeformer_lt.disk import write_atomic
from spikeformer_lt.errors import ConfigError, DataError, SpikeformerError, name_of
from spikeformer_lt.export.api import export_ticket, load_exported
from spikeformer_lt.export.file import TENSORS
from spikeformer_lt.images.loader import sample_loader
from spikeformer_lt.reports.ledger import AC_PJ, LEDGER_IMAGES, MAC_PJ, Operations, count_operations
from spikeformer_lt.reports.page import Table, markdown_table, write_csv
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.options import BudgetConfig, value_at, with_value
from spikeformer_lt.training.ranks import gathered, on_first

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Costs:
    """Energy of a multiply-accumulate and of an accumulate (a synaptic operation), pJ."""

    name: str
    mac_pj: float
    ac_pj: float
    source: str

    def __post_init__(self) -> None:
        for name, value in (("mac_pj", self.mac_pj), ("ac_pj", self.ac_pj)):
            check(0 <= value < 1e6, f"{self.name}.{name}", value, "picojoules, finite and >= 0")

    def energy_pj(self, macs: float, acs: float) -> float:
        """Energy of these counts of operations, pJ."""
        return self.mac_pj * macs + self.ac_pj * acs


HOROWITZ = Costs("45nm", MAC_PJ, AC_PJ, "32-bit floating point at 45 nm, Horowitz, ISSCC 2014")
SOP_77FJ = Costs(
    "77fJ", MAC_PJ, 0.077,
    "77 fJ a SOP as in Spikformer, ICLR 2023 (it counts SOPs only); a MAC as in the 45nm set",
)  # fmt: skip
INT8 = Costs("int8", 0.23, 0.03, "8-bit integers at 45 nm, Horowitz, ISSCC 2014")
COSTS = {costs.name: costs for costs in (HOROWITZ, SOP_77FJ)}  # the two sets in use in the field
MEMORY_PJ_PER_BYTE = {"SRAM 8 KB": 10 / 8, "SRAM 1 MB": 100 / 8, "DRAM": 1300 / 8}
"""Energy of reading one byte, pJ: 64-bit reads at 45 nm, Horowitz, ISSCC 2014 (DRAM: the lower)."""
INPUT_BITS = {"{0,1}": 1, "{-1,0,1}": 2, "integers": 8, "real": 32}
"""Bits of one input value, by the kind of values that entered."""
GROUPS_OF = {"stem": "ConvPEP", "convolution": "convolutions", "attention": "attention",
             "linear": "linear maps", "head": "head"}  # fmt: skip
GROUPS = ("first layer", *GROUPS_OF.values())
ESTIMATE = (
    "Theoretical estimates from operation counts on real inputs: no device was measured. The leak "
    "and threshold of neurons, biases and data movement are not in the energies; biases and memory "
    "stand apart below."
)


def sensitivity_costs() -> list[Costs]:
    """Both sets, 8-bit integers, and the 45 nm set with each figure halved and doubled."""
    factors = [(m, a) for m in (0.5, 1.0, 2.0) for a in (0.5, 1.0, 2.0) if (m, a) != (1.0, 1.0)]
    varied = [Costs(f"45nm, MAC x{m:g}, AC x{a:g}", MAC_PJ * m, AC_PJ * a, "varied 45nm")
              for m, a in factors]  # fmt: skip
    return [HOROWITZ, SOP_77FJ, INT8, *varied]


@dataclass(frozen=True)
class LayerEnergy:
    """One layer, per sample over all T steps; operations are counts, not energy."""

    name: str
    operation: str  # convolution, linear or attention
    input: str  # values that entered: {0,1}, {-1,0,1}, integers or real
    binary: bool  # whether the weights that are not 0 share one magnitude
    weight_sparsity: float  # fraction of the weights that is 0
    macs_dense: float  # multiply-accumulates as the papers count: all weights, every step
    multiplies: float  # multiply-accumulates that remain: real inputs at real weights, not 0
    sops: float  # accumulates of spikes: each, by its value, at each weight it meets, not 0
    acs: float  # all accumulates: SOPs, and real inputs at binary weights
    bias_acs: float  # one an output for the folded BatchNorm or bias; not in the energies
    rate: float  # mean absolute input: the firing rate, where spikes enter
    formula_macs: float  # MACs of the papers' formula: first layer, dense, one step of an image
    formula_acs: float  # ACs of the papers' formula: T x rate x FLOPs, dense weights, no borders
    weight_bits: float  # storage of the weights: mask entropy, 1 or 32 bits a kept weight, gains
    input_bits: float  # input values, at the bits that their kind needs
    group: str  # one of `GROUPS`


SUMMED = tuple(f.name for f in fields(LayerEnergy)
               if f.type == "float" and f.name not in ("weight_sparsity", "rate"))  # fmt: skip
"""Fields of a layer that add up to those of the network."""


@dataclass(frozen=True)
class Energy:
    """A network's energy ledger: layers that sum to the whole, and why it may be refused."""

    layers: tuple[LayerEnergy, ...]
    samples: int
    T: int
    dead: tuple[str, ...]  # spiking layers that never fired: their network has no headline
    weight_bytes: float = 0.0  # of all weights, also of layers that did not run

    @classmethod
    def of(cls, counted: Operations) -> Energy:
        """Energy ledger of one counting pass; BatchNorm is folded, which leaves ``bias_acs``.

        Raises:
            DataError: a model without a layer that multiplies.

        Source: the formula is Spikformer's (ICLR 2023, section 4), which arXiv 2311.12060 follows.
        """
        if not counted.layers:
            raise DataError("the network has no convolution or linear map to count")
        rows = tuple(_layer(name, counted) for name in counted.layers)
        dead, size = tuple(counted.dead), counted.weight_bytes
        return cls(rows, counted.samples, counted.T, dead, size)

    def total(self, what: str) -> float:
        """Sum of one of the counts over the layers."""
        return float(sum(getattr(layer, what) for layer in self.layers))

    def headline_pj(self, costs: Costs) -> float | None:
        """Energy of the operations of one sample, pJ; None where a layer is dead."""
        if self.dead:
            return None
        return costs.energy_pj(self.total("multiplies"), self.total("acs"))

    def formula_pj(self, costs: Costs) -> float:
        """The papers' estimate for the same network, pJ."""
        return costs.energy_pj(self.total("formula_macs"), self.total("formula_acs"))

    def by_group(self, costs: Costs) -> dict[str, tuple[float, float]]:
        """Group -> (counted, formula) energy, pJ, in the order of `GROUPS`; sums to the whole."""
        found: dict[str, tuple[float, float]] = {}
        for row in sorted(self.layers, key=lambda row: GROUPS.index(row.group)):
            counted, formula = found.get(row.group, (0.0, 0.0))
            formula += costs.energy_pj(row.formula_macs, row.formula_acs)
            found[row.group] = (counted + costs.energy_pj(row.multiplies, row.acs), formula)
        return found

    def refusal(self) -> str:
        """Why there is no headline; empty where there is one."""
        first = ", ".join(self.dead[:3])
        words = f"refused: {len(self.dead)} spiking layers never fired ({first}); a silent network "
        return f"{words}looks cheap and does nothing" if self.dead else ""

    def memory_pj(self) -> dict[str, float]:
        """Energy, pJ, of reading every weight and input once a sample, by kind of memory."""
        read = (self.total("weight_bits") + self.total("input_bits")) / 8
        return {place: read * cost for place, cost in MEMORY_PJ_PER_BYTE.items()}

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON; ``totals`` are the sums of ``layers``."""
        return {
            "per": f"sample, over all T = {self.T} steps, mean of {self.samples} samples",
            "estimate": True,
            "layers": [asdict(layer) for layer in self.layers],
            "totals": {name: self.total(name) for name in SUMMED},
            "energy_pj": {name: self.headline_pj(costs) for name, costs in COSTS.items()},
            "formula_pj": {name: self.formula_pj(costs) for name, costs in COSTS.items()},
            "memory_pj": self.memory_pj(),
            "costs": {costs.name: asdict(costs) for costs in COSTS.values()},
            "dead_layers": list(self.dead),
            "refused": self.refusal(),
        }


def measure_energy(model: nn.Module, batches: Sequence[Tensor], T: int) -> Energy:
    """Energy ledger of a network on real inputs, as `Energy.of`; DataError without any."""
    if not batches:
        raise DataError("no input to measure energy on; give at least one batch")
    return Energy.of(count_operations(model, batches, T))


def _layer(name: str, counted: Operations) -> LayerEnergy:
    n, count, names = counted.samples, counted.layers[name], list(counted.layers)
    weights, first, last = count.weights, name == names[0] or count.image, name == names[-1]
    rate, dense = count.events / count.inputs, count.macs_dense / n
    mean_of_spikes = last and bool(counted.firing_rate)
    multiplied = first or (count.kind == "real" and not mean_of_spikes)
    steps = count.passes / n if first and counted.static else 1
    part = "" if weights is None else weights.part
    return LayerEnergy(
        name=name, operation=count.operation, input=count.kind,
        binary=weights is not None and weights.binary,
        weight_sparsity=0.0 if weights is None else 1 - weights.kept / weights.total,
        macs_dense=dense, multiplies=count.multiplies / n, sops=count.sops / n, acs=count.acs / n,
        bias_acs=0.0 if weights is None else count.macs / n / weights.fan_in, rate=rate,
        formula_macs=dense / steps if multiplied else 0.0,
        formula_acs=0.0 if multiplied else rate * dense,
        weight_bits=0.0 if weights is None else weights.bits,
        input_bits=count.inputs / n * INPUT_BITS[count.kind],
        group=GROUPS[0] if first else GROUPS_OF[part or count.operation],
    )  # fmt: skip


def layer_table(energy: Energy) -> Table:
    """One line a layer, and the sum, which is the whole."""
    header = ["layer", "input", "weights", "layer's weights removed %", "multiplications",
              "ACs", "of them SOPs", "formula MACs", "formula ACs", "ACs / formula"]  # fmt: skip
    rows = []
    for row in energy.layers:
        weights = ["binary" if row.binary else "real", f"{100 * row.weight_sparsity:.1f}"]
        about = ["-", "-"] if row.operation == "attention" else weights
        rows.append([row.name, row.input, *about, *_counts(partial(getattr, row))])
    return header, [*rows, ["all", "", "", "", *_counts(energy.total)]]


def _counts(of: Callable[[str], float]) -> list[str]:
    names = ("multiplies", "acs", "sops", "formula_macs", "formula_acs")
    ratio = f"{of('acs') / of('formula_acs'):.3f}" if of("formula_acs") else "-"
    return [*(f"{of(name):,.0f}" for name in names), ratio]


def headline_table(networks: Mapping[str, Energy]) -> Table:
    """Each network's energy by both sets of constants, counted and by the formula."""
    header = ["network", *(f"{kind}, {n} (uJ)" for n in COSTS for kind in ("counted", "formula"))]
    rows = []
    for name, energy in networks.items():
        pairs = [(energy.headline_pj(c), energy.formula_pj(c)) for c in COSTS.values()]
        values = [None if energy.dead else value for pair in pairs for value in pair]
        rows.append([name, *map(microjoules, values)])
    return header, rows


def microjoules(pj: float | None) -> str:
    """An energy in uJ as text; None is one that is refused."""
    return "refused (dead)" if pj is None else f"{pj / 1e6:.4f}"


def sensitivity(networks: Mapping[str, Energy]) -> list[tuple[Costs, dict[str, float | None]]]:
    """Energy of each network, pJ, for each set of constants."""
    return [(costs, {name: energy.headline_pj(costs) for name, energy in networks.items()})
            for costs in sensitivity_costs()]  # fmt: skip


def sensitivity_table(networks: Mapping[str, Energy]) -> Table:
    """Energies by constants and, for each network after the first, its ratio to the first."""
    first, *others = networks
    header = ["constants", "MAC pJ", "AC pJ", *(f"{n} (uJ)" for n in networks)]
    header += [f"{n} / {first}" for n in others]
    rows = []
    for costs, found in sensitivity(networks):
        row = [costs.name, f"{costs.mac_pj:g}", f"{costs.ac_pj:g}"]
        base, values = found[first], [found[name] for name in others]
        ratios = ["-" if v is None or not base else f"{v / base:.3f}" for v in values]
        rows.append([*row, *map(microjoules, found.values()), *ratios])
    return header, rows


def memory_table(networks: Mapping[str, Energy]) -> Table:
    """Bytes of weights and inputs, each read once a sample, and what that costs."""
    header = ["network", "weights (B)", "inputs (B)", "bias ACs"]
    header += [f"{place} (uJ)" for place in MEMORY_PJ_PER_BYTE]
    rows = []
    for name, energy in networks.items():
        counts = [energy.weight_bytes, energy.total("input_bits") / 8]
        row = [name, *(f"{v:,.0f}" for v in (*counts, energy.total("bias_acs")))]
        rows.append([*row, *map(microjoules, energy.memory_pj().values())])
    return header, rows


def energy_tables(networks: Mapping[str, Energy]) -> dict[str, Any]:
    """Tables and constants of the energies, for the templates of pages."""
    return {"estimate": ESTIMATE, "costs": list(COSTS.values()), "memory": memory_table(networks),
            "headline": headline_table(networks),
            "sensitivity": sensitivity_table(networks)}  # fmt: skip


def energy_markdown(networks: Mapping[str, Energy]) -> str:
    """The whole report in Markdown."""
    parts = ["# Energy, per sample", ESTIMATE, "## Operations"]
    parts.append(markdown_table(*headline_table(networks)))
    parts += [f"- {name}: {e.refusal()}" for name, e in networks.items() if e.dead]
    parts += [f"`{costs.name}`: {costs.source}." for costs in COSTS.values()]
    parts += ["## Sensitivity to the constants", markdown_table(*sensitivity_table(networks))]
    parts += ["## Memory, apart", markdown_table(*memory_table(networks))]
    for name, energy in networks.items():
        parts += [f"## Layers of {name}", markdown_table(*layer_table(energy))]
    return "\n\n".join(parts) + "\n"


def write_energy(folder: Path, networks: Mapping[str, Energy]) -> dict[str, Any]:
    """Write ``energy.json``, which is returned, ``energy.csv`` and ``energy.md`` into `folder`.

    The first network is what the others are divided by. DataError if there is none.
    """
    if not networks:
        raise DataError("no network to report the energy of")
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "networks": {name: energy.as_json() for name, energy in networks.items()},
        "sensitivity_pj": {costs.name: pj for costs, pj in sensitivity(networks)},
    }
    write_atomic(folder / "energy.json", (json.dumps(found, indent=2) + "\n").encode(), DataError)
    columns = [f.name for f in fields(LayerEnergy)]
    rows = [[name, *(getattr(row, column) for column in columns)]
            for name, energy in networks.items() for row in energy.layers]  # fmt: skip
    write_csv(folder / "energy.csv", ["network", *columns], rows)
    write_atomic(folder / "energy.md", energy_markdown(networks).encode(), DataError)
    return found


LEAST = {"bytes": 0.99, "sops": 0.97, "energy": 0.97, "ms": 0.0}
"""Share of a budget that must be used."""
HIGHEST = 0.999  # sparsity beyond which nothing is tried
CALLS = 31


@dataclass(frozen=True)
class Trial:
    """One run of the search: its sparsity, what its network costs, and the quartiles of times."""

    sparsity: float
    value: float
    quartiles: tuple[float, float] | None = None


def cost(what: str, experiment: Any, model: nn.Module, ticket: Ticket) -> Trial:
    """What a trained network costs: bytes, SOPs, pJ of a sample, or ms of a call.

    Bytes are those of the tensor file of its export; SOPs and pJ of a sample over all T, on the
    hashed validation sample, 0 for an energy where a layer never fires; ms the median of 31 calls
    of the export on one validation sample, on this machine with the threads of the run.
    """
    val = experiment.data.val
    if what in ("sops", "energy"):
        device = next(model.parameters()).device
        some = [x.to(device) for x, _, _ in sample_loader(val, LEDGER_IMAGES)]
        counted = count_operations(model, some, experiment.cfg.model.T)
        macs, acs = counted.per_sample("multiplies"), counted.per_sample("acs")
        energy = 0.0 if counted.dead else MAC_PJ * macs + AC_PJ * acs
        return Trial(0.0, counted.per_sample("sops") if what == "sops" else energy)
    trained = Ticket.of(model, ticket.mask, {**ticket.provenance, "trained": True})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "export"
        export_ticket(trained, folder)
        if what == "bytes":
            return Trial(0.0, float((folder / TENSORS).stat().st_size))
        net, sample, times = load_exported(folder), next(iter(sample_loader(val, 1)))[0], []
        for call in range(3 + CALLS):
            begun = time.perf_counter()
            net(sample)
            times += [1e3 * (time.perf_counter() - begun)] * (call >= 3)
    low, middle, high = statistics.quantiles(times)
    return Trial(0.0, middle, (low, high))


def following(trials: list[Trial], budget: float, least: float, highest: float = HIGHEST) -> float:
    """The sparsity to try next, on a line through what is known; a ConfigError out of reach.

    None above `highest` is possible.
    """
    goal, order = budget * (1 + max(least, 0.9)) / 2, sorted(trials, key=lambda t: t.sparsity)
    under = next((t for t in order if t.value <= budget), None)
    above = [t for t in order if under is None or t.sparsity < under.sparsity]
    over = above[-1] if above else None
    if over is not None and over.sparsity >= highest:
        raise ConfigError(f"is below the smallest reachable value, {over.value:.6g}")
    if under is not None and under.sparsity <= 0:
        silent = "cannot be met: layers never fire, even with nothing removed"
        known = f"is above what no sparsity costs, {under.value:.6g}: nothing to remove"
        raise ConfigError(known if under.value else silent)
    if under is not None and under.value == 0 and over is None:
        return 0.0  # silent: does it fire at all?
    if over is not None and under is not None:
        share = (over.value - goal) / max(over.value - under.value, 1e-12)
        return over.sparsity + min(max(share, 0.05), 0.95) * (under.sparsity - over.sparsity)
    last = trials[-1]
    near = min(trials[:-1], key=lambda t: abs(t.value - last.value), default=Trial(1.0, 0.0))
    slope = (near.value - last.value) / ((near.sparsity - last.sparsity) or 1e-6)
    rate = last.sparsity + (goal - last.value) / slope if slope < 0 else last.sparsity
    if over is not None:
        return min(max(rate, over.sparsity + 0.1 * (1 - over.sparsity)), highest)
    return max(min(rate, last.sparsity - 0.1 * last.sparsity), 0.0)


def fit(measure: Callable[[float], Trial], budget: BudgetConfig, first: float) -> list[Trial]:
    """Try sparsities from `first` on until one costs what the budget says; the last one does.

    A sparsity that `measure` refuses with the largest possible one is tried there. A ConfigError
    for what cannot be reached, with the smallest value, or was not in `tries` runs.
    """
    what, goal = budget.asked
    trials, highest, rate = list[Trial](), HIGHEST, min(max(first, 0.0), HIGHEST)
    while len(trials) < budget.tries:
        try:
            trials.append(replace(measure(rate), sparsity=rate))
        except SpikeformerError as fault:
            most = rate if fault.most is None else math.floor(1e6 * fault.most) / 1e6
            if most >= rate:
                raise
            highest = rate = most
            continue
        value = trials[-1].value
        if LEAST[what] * goal <= value <= goal:
            return trials
        try:
            rate = round(following(trials, goal, LEAST[what], highest), 6)
        except ConfigError as fault:
            raise ConfigError(f"budget.{what}={goal:g} {fault}") from None
    near = min(trials, key=lambda t: abs(t.value - goal))
    raise ConfigError(
        f"budget.{what}={goal:g} was not met in budget.tries={budget.tries} runs: {near.value:.6g} "
        f"at sparsity {near.sparsity:g} is nearest"
    )


RATES = {"multisp": "encoder.sparsity", "joint": "imp.sparsity"}


def within(
    cfg: Any, search: str, run: Callable[..., Any], show: Callable[[Path], None] | None = None
) -> Path | None:
    """Run a search at one sparsity after another, each in OUT.tries/, and keep the one that fits.

    Args:
        cfg: a recipe's configuration, whose ``budget`` asks for something.
        search: whose sparsity is changed where ``budget.over`` names no other option.
        show: called with the run's directory at the end, by the first process.
        run: ``run(cfg, accept=...)`` searches, trains and reports unless `accept` says no; the
            test set is read after that alone.

    Returns:
        ``run.out``, to which the run that fits is moved; ``budget.json`` there lists all tries.
        None after a dry run.
    """
    budget, out = cfg.budget, Path(cfg.run.out)
    usual = f"{search}.{RATES.get(search, 'sparsity')}"
    usual = usual if value_at(cfg, usual) is not None else "sparsity"  # of a recipe itself
    path, (what, goal) = budget.over or usual, budget.asked
    option = path.replace("-", "_")
    now, group = value_at(cfg, option), option.partition(".")[0]
    rule = "the option of a sparsity" + ("" if budget.over else f", as {search} has none of one")
    check(isinstance(now, float), "budget.over", budget.over, rule)
    check(bool(cfg.run.out), "run.out", "", "a directory, with a budget")
    check(not out.exists(), "run.out", str(out), "a new directory, with a budget")
    if cfg.run.dry_run:
        return run(adapted(cfg, budget=BudgetConfig()))  # type: ignore[no-any-return]
    tries = out.with_name(f"{out.name}.tries")

    def measure(rate: float) -> Trial:
        place, answers = tries / f"{rate:g}", list[Trial]()

        def accept(experiment: Any, model: nn.Module, ticket: Ticket) -> bool:
            own: list[Trial] = []
            on_first(lambda: own.append(cost(what, experiment, model, ticket)))
            answers.append(gathered(own[0] if own else None)[0])
            log.info("budget.%s %g: %g at --%s %g", what, goal, answers[0].value, path, rate)
            return bool(LEAST[what] * goal <= answers[0].value <= goal)

        one = replace(cfg.run, out=str(place), resume="auto")
        changed = {group: getattr(with_value(cfg, option, rate), group)}
        tried = adapted(cfg, option, run=one, budget=BudgetConfig(), **changed)
        try:
            run(tried, accept=accept)
        except ConfigError as fault:
            if fault.most is not None:
                raise
            rule = f"at --{path} {rate:g}, which the budget asks for: {fault}"
            raise ConfigError(rule) from fault
        return answers[0]

    trials = fit(measure, budget, now or 0.9)
    about = {"budget": what, "limit": goal, "over": path, "tries": [asdict(t) for t in trials],
             "threads": torch.get_num_threads()}  # fmt: skip

    def publish() -> None:
        place = tries / f"{trials[-1].sparsity:g}"
        write_atomic(
            place / "budget.json", f"{json.dumps(about, indent=2)}\n".encode(), ConfigError
        )
        try:
            os.rename(place, out)
        except OSError as fault:
            raise ConfigError(f"cannot move {name_of(place)} to {name_of(out)}: {fault}") from None

    on_first(publish)
    if show is not None:
        on_first(lambda: show(out))
    return out
