"""Accuracies that the papers printed: each cell of a table, each point of a figure's curve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

DATA = ("cifar10", "cifar100", "dvs128_gesture", "cifar10_dvs")


@dataclass(frozen=True)
class Cell:
    """One published number, or one point of a figure whose numbers are in a picture only.

    Attributes:
        table: name of its table.
        data: data set, as registered here.
        network: the network, as the paper calls it.
        method: row or curve.
        axis: what `level` is: sparsity, patch sparsity, T or decay.
        level: fraction removed, time steps or decay of the membrane; None for a cell without one.
        accuracy: test accuracy in %; None where the paper prints none.
        against: method of the row that its drop is counted from; "" for rows that are such.
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
    """What a paper says in words of a figure: the largest change between two ends of a curve."""

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


ECCV22_LEVELS = (0.6830, 0.8991, 0.9569, 0.9813)
ECCV22 = """
cifar10 VGG16 IMP 92.66 92.54 92.38 91.81
cifar10 VGG16 IMP+ET 92.49 92.09 91.54 91.10
cifar10 VGG16 EB 91.74 91.05 89.55 84.64
cifar10 VGG16 EB+ET 91.27 90.66 88.95 84.86
cifar10 ResNet-19 IMP 93.47 93.49 93.22 92.43
cifar10 ResNet-19 IMP+ET 93.10 92.72 92.68 91.36
cifar10 ResNet-19 EB 91.00 90.84 89.90 85.22
cifar10 ResNet-19 EB+ET 90.83 91.21 89.65 85.45
cifar100 VGG16 IMP 69.08 68.90 68.00 66.02
cifar100 VGG16 IMP+ET 68.27 67.99 66.51 64.41
cifar100 VGG16 EB 67.35 65.82 61.90 52.11
cifar100 VGG16 EB+ET 67.26 64.18 61.81 52.77
cifar100 ResNet-19 IMP 71.64 71.38 70.45 67.35
cifar100 ResNet-19 IMP+ET 71.06 70.45 69.23 65.49
cifar100 ResNet-19 EB 69.41 65.87 62.18 52.92
cifar100 ResNet-19 EB+ET 68.98 65.76 62.20 51.50
"""
ECCV22_DENSE = {("cifar10", "ResNet-19"): 93.22, ("cifar100", "ResNet-19"): 71.34}

CONNECTIONS = """
ANN            88.10/92.05 68.64/76.74 92.92/94.83 78.65/80.14
BNN            86.75/91.54 67.27/74.42 92.09/93.69 77.94/78.98
BinActBNN      83.84/86.74 58.57/66.60 85.41/89.43 69.21/62.21
SNN            87.71/91.78 67.94/72.37 92.78/93.27 78.41/80.06
BinWSNN        87.57/91.21 66.81/72.93 91.97/93.92 77.49/79.04
ANN-ConnS      87.73/90.87 67.56/75.62 92.43/93.83 77.92/80.02
BNN-ConnS      85.27/91.07 66.73/73.87 91.74/93.11 77.31/78.26
ActBNN-ConnS   81.30/83.96 55.81/62.76 81.53/84.77 63.82/57.41
SNN-ConnS      87.52/91.36 67.22/72.01 92.17/92.88 77.94/79.71
BinWSNN-ConnS  87.76/91.82 66.74/72.73 91.70/93.52 77.01/78.66
"""
DENSE_OF = {
    **{"BNN": "ANN", "BinActBNN": "ANN", "BinWSNN": "SNN"},
    **{"ANN-ConnS": "ANN", "BNN-ConnS": "ANN", "ActBNN-ConnS": "ANN"},
    **{"SNN-ConnS": "SNN", "BinWSNN-ConnS": "SNN"},
    **{"Trans-PatchS": "Transformer", "Spikef-PatchS": "Spikeformer", "Spikef-CPS": "Spikeformer"},
}
TRANSFORMERS = """
Transformer    85.71/87.36 67.37/69.12 94.96/97.12 78.43/80.01
Spikeformer    84.81/87.17 66.54/69.43 94.13/96.99 77.86/79.77
Trans-PatchS   82.04/83.76 64.71/66.22 93.89/96.74 76.61/78.42
Spikef-PatchS  81.75/82.98 62.98/64.86 94.37/96.88 77.14/78.91
Spikef-CPS     81.21/82.44 62.82/64.89 94.50/97.22 77.03/79.02
"""
SWEEPS: dict[str, tuple[float, ...]] = {
    "sparsity": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "T": (1, 2, 4, 6, 8),
    "decay": (0.99, 0.8, 0.6, 0.4, 0.2),
}


def _eccv22() -> Iterator[Cell]:
    table = "eccv22-tab1"
    groups = [(data, network) for data in DATA[:2] for network in ("VGG16", "ResNet-19")]
    printed = {tuple(words[:3]): words[3:] for words in map(str.split, ECCV22.strip().split("\n"))}
    for data, network in groups:
        dense = ECCV22_DENSE.get((data, network))
        yield Cell(table, data, network, "dense", accuracy=dense)
        for method in ("IMP", "IMP+ET", "EB", "EB+ET", "random control"):
            values = printed.get((data, network, method), [None] * 4)
            for level, value in zip(ECCV22_LEVELS, values, strict=True):
                accuracy = None if value is None else float(value)
                yield Cell(table, data, network, method, "sparsity", level, accuracy, "dense")


def _by_size(table: str, text: str, networks: tuple[str, str]) -> Iterator[Cell]:
    """Cells of a table with two networks a column: ``method a/b a/b a/b a/b``."""
    rows = [line.split() for line in text.strip().split("\n")]
    for i, data in enumerate(DATA):
        for j, network in enumerate(networks):
            for method, *pairs in rows:
                value = float(pairs[i].split("/")[j])
                against = DENSE_OF.get(method, "")
                yield Cell(table, data, network, method, accuracy=value, against=against)


def _sweeps(table: str, network: str, dense: str, curves: dict[str, str]) -> Iterator[Cell]:
    yield Cell(table, "cifar10", network, dense)
    for axis, method in curves.items():
        against = dense if "sparsity" in axis else ""
        for level in SWEEPS[axis.removeprefix("patch ")]:
            yield Cell(table, "cifar10", network, method, axis, level, None, against)


P23 = "arXiv 2311.12060"
PICTURE = "The points are in a picture, without numbers: only what the text says of it is compared."
PANELS = "The split of the curves over figures 3 and 4 is by network and may not be the paper's."
TABLES = {
    table.name: table
    for table in (
        Table(
            "eccv22-tab1",
            "Kim et al., ECCV 2022 (arXiv 2207.01382), table 1: tickets of spiking CNNs, T 5",
            tuple(_eccv22()),
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
            tuple(_by_size("2311-tab1", CONNECTIONS, ("VGG-9", "ResNet-19"))),
            ("Drops of binary rows are counted from the full-precision row: ANN, or SNN.",),
        ),
        Table(
            "2311-tab2",
            f"{P23}, table 2: tickets of patches, and of patches and connections, T 4",
            tuple(_by_size("2311-tab2", TRANSFORMERS, ("TINY", "SMALL"))),
            (
                "Patch sparsity is 31.4 % in TINY and 37.6 % in SMALL, connection sparsity of CPS "
                "48.7 and 54.9 %.",
            ),
        ),
        Table(
            "2311-fig3",
            f"{P23}, figures: connection tickets of VGG-9 over sparsity, time steps and decay",
            tuple(
                _sweeps(
                    "2311-fig3",
                    "VGG-9",
                    "SNN",
                    dict.fromkeys(("sparsity", "T", "decay"), "SNN-ConnS"),
                )
            ),
            (PICTURE, PANELS),
            (Effect("VGG-9", "T", 1, 8, 2.3), Effect("VGG-9", "decay", 0.99, 0.2, 2.1)),
        ),
        Table(
            "2311-fig4",
            f"{P23}, figures: patch tickets of TINY over sparsity, time steps and decay",
            tuple(
                _sweeps(
                    "2311-fig4",
                    "TINY",
                    "Spikeformer",
                    dict.fromkeys(("patch sparsity", "T", "decay"), "Spikef-PatchS"),
                )
            ),
            (PICTURE, PANELS),
            (Effect("TINY", "T", 1, 8, 3.8), Effect("TINY", "decay", 0.99, 0.2, 1.3)),
        ),
    )
}
"""Every table by name, in the papers' order."""
