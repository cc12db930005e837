"""Energy bars: each network by layer group, counted and by the papers' formula."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

from spikeformer_lt.reports.energy import Energy, LayerEnergy
from spikeformer_lt.reports.energy_costs import HOROWITZ, Costs
from spikeformer_lt.reports.plots import COLOURS, figure
from spikeformer_lt.reports.tables import write_csv

GROUPS = ("first layer", "ConvPEP", "convolutions", "attention", "linear maps", "head")


def group_of(row: LayerEnergy, first: bool) -> str:
    """Which bar a layer belongs to."""
    if first:
        return "first layer"
    if row.name.startswith("conv_pep"):
        return "ConvPEP"
    if row.name == "head":
        return "head"
    kinds = {"attention": "attention", "convolution": "convolutions", "linear": "linear maps"}
    return kinds[row.operation]


def energy_by_group(energy: Energy, costs: Costs) -> dict[str, tuple[float, float]]:
    """Group -> (counted, formula) energy in pJ, of the groups there are; they sum to the whole."""
    found: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(energy.layers):
        name = group_of(row, i == 0)
        counted, formula = found.get(name, (0.0, 0.0))
        found[name] = (
            counted + costs.energy_pj(row.macs, row.acs),
            formula + costs.energy_pj(row.formula_macs, row.formula_acs),
        )
    return {name: found[name] for name in GROUPS if name in found}


def plot_energy(path: Path, networks: Mapping[str, Energy], costs: Costs = HOROWITZ) -> None:
    """Stacked bars, uJ a sample; a network with a dead layer gets a label instead of a bar."""
    many = len(networks) > 4
    made, axes = figure(2.6 + (1.05 if many else 1.7) * len(networks), 4.0)
    rows: list[list[object]] = []
    ticks: list[str] = []
    labelled: set[str] = set()
    for at, (name, energy) in enumerate(networks.items()):
        label = "\n".join(wrap(name.replace("_", " "), 12 if many else 18))
        ticks += ["c.", "f."] if many else ["counted", "formula"]
        axes.annotate(
            label, (2 * at + 0.5, 0), (0, -24), textcoords="offset points", ha="center", va="top",
            fontsize=8, annotation_clip=False,
        )  # fmt: skip
        if energy.dead:
            axes.annotate(
                "refused:\ndead layers", (2 * at + 0.5, 0), ha="center", va="bottom", fontsize=9
            )
            continue
        base = [0.0, 0.0]
        for group, values in energy_by_group(energy, costs).items():
            colour = COLOURS[GROUPS.index(group)]
            for kind, pj in enumerate(values):
                shown = group if group not in labelled else None
                labelled.add(group)
                axes.bar(
                    2 * at + kind, pj / 1e6, bottom=base[kind], color=colour, label=shown,
                    width=0.8, hatch="//" if kind else None, edgecolor="white", linewidth=0.5,
                )  # fmt: skip
                base[kind] += pj / 1e6
                rows.append([name, ("counted", "formula")[kind], group, pj / 1e6])
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set_ylabel(f"energy per sample (uJ, estimate, {costs.name})")
    if many:
        axes.set_title("c.: counted; f. (hatched): the papers' formula", fontsize=8)
    axes.grid(axis="x", visible=False)
    if labelled:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
    write_csv(path.with_suffix(".csv"), ["network", "kind", "group", "energy_uj"], rows)
