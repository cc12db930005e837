"""Accuracies that the papers printed: each cell of a table, each point of a figure's curve.

The numbers are in one CSV file for each table, beside this file: data set, network, method, axis,
level, accuracy in percent (empty where the paper prints none) and the method that the accuracy
drop is measured against.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

DATA = ("cifar10", "cifar100", "dvs128_gesture", "cifar10_dvs")


@dataclass(frozen=True)
class Cell:
    """One published number, or one point of a figure whose numbers are in a picture only.

    Attributes:
        table: name of its table.
        data: data set, as registered in spikeformer_lt.
        network: the network, as the paper calls it.
        method: row or curve.
        axis: what `level` is: sparsity, patch sparsity, T or decay.
        level: fraction removed, time steps or decay of the membrane; None for a cell without one.
        accuracy: test accuracy in %; None where the paper prints none.
        against: method of the reference row of its drop; "" for the reference rows themselves.
    """

    table: str
    data: str
    network: str
    method: str
    axis: str = "sparsity"
    level: float | None = None
    accuracy: float | None = None
    against: str = ""

    @property
    def name(self) -> str:
        """The row in words, unique in all tables."""
        words = [self.table, self.data, self.network, self.method]
        return " ".join(words if self.level is None else [*words, f"{self.axis} {self.level:g}"])

    @property
    def series(self) -> tuple[str, str, str, str]:
        """What the points of one curve share."""
        return self.data, self.network, self.method, self.axis


@dataclass(frozen=True)
class Effect:
    """A statement of a paper's text about a figure: the largest change between two levels."""

    network: str
    axis: str
    first: float
    last: float
    points: float
    """Percentage points gained at most, over its data sets."""


@dataclass(frozen=True)
class Table:
    """A published table or figure."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()


def read_cells(table: str) -> tuple[Cell, ...]:
    """Read the cells of a table from its CSV file, in the paper's order."""
    with Path(__file__).with_name(f"{table}.csv").open(newline="") as file:
        return tuple(
            Cell(
                *(table, row["data"], row["network"], row["method"], row["axis"]),
                level=float(row["level"]) if row["level"] else None,
                accuracy=float(row["accuracy"]) if row["accuracy"] else None,
                against=row["against"],
            )
            for row in csv.DictReader(file)
        )


P23 = "arXiv 2311.12060"
PICTURE = "The points are in a picture, without numbers: only what the text says of it is compared."
PANELS = "The split of the curves over figures 3 and 4 is by network and may not be the paper's."
TABLES = {
    table.name: table
    for table in (
        Table(
            "eccv22-tab1",
            "Kim et al., ECCV 2022 (arXiv 2207.01382), table 1: tickets of spiking CNNs, T 5",
            read_cells("eccv22-tab1"),
            (
                "Published levels count all parameters: 68.30, 89.91, 95.69 and 98.13 %. Reduced "
                "scales remove 68, 90, 96 and 98 % of the prunable weights.",
                "The accuracy of the dense VGG16 is not in the table: its published drops are "
                "counted from the method's own first level.",
                "The random control is not in the table: as many weights removed by chance.",
                "At full scale the published Cutout of 16 pixels is missing.",
            ),
        ),
        Table(
            "2311-tab1",
            f"{P23}, table 1: connection tickets at half of the weights, T 4, decay 0.99",
            read_cells("2311-tab1"),
            ("Drops of binary rows are counted from the full-precision row: ANN, or SNN.",),
        ),
        Table(
            "2311-tab2",
            f"{P23}, table 2: tickets of patches, and of patches and connections, T 4",
            read_cells("2311-tab2"),
            (
                "Patch sparsity is 31.4 % in TINY and 37.6 % in SMALL, connection sparsity of CPS "
                "48.7 and 54.9 %.",
            ),
        ),
        Table(
            "2311-fig3",
            f"{P23}, figures: connection tickets of VGG-9 over sparsity, time steps and decay",
            read_cells("2311-fig3"),
            (PICTURE, PANELS),
            (Effect("VGG-9", "T", 1, 8, 2.3), Effect("VGG-9", "decay", 0.99, 0.2, 2.1)),
        ),
        Table(
            "2311-fig4",
            f"{P23}, figures: patch tickets of TINY over sparsity, time steps and decay",
            read_cells("2311-fig4"),
            (PICTURE, PANELS),
            (Effect("TINY", "T", 1, 8, 3.8), Effect("TINY", "decay", 0.99, 0.2, 1.3)),
        ),
    )
}
"""Every table by name, in the papers' order."""
