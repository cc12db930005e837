"""The published numbers, typed once more, and what holds for all of them."""

from __future__ import annotations

import pytest
from papers.tables import DATA, TABLES, Cell


def printed(table: str, data: str, network: str, method: str) -> list[float | None]:
    return [
        cell.accuracy
        for cell in TABLES[table].cells
        if (cell.data, cell.network, cell.method) == (data, network, method)
    ]


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        (("cifar10", "VGG16", "IMP"), [92.66, 92.54, 92.38, 91.81]),
        (("cifar10", "VGG16", "EB+ET"), [91.27, 90.66, 88.95, 84.86]),
        (("cifar10", "ResNet-19", "EB"), [91.00, 90.84, 89.90, 85.22]),
        (("cifar100", "VGG16", "IMP+ET"), [68.27, 67.99, 66.51, 64.41]),
        (("cifar100", "ResNet-19", "IMP"), [71.64, 71.38, 70.45, 67.35]),
        (("cifar100", "ResNet-19", "EB+ET"), [68.98, 65.76, 62.20, 51.50]),
        (("cifar10", "ResNet-19", "dense"), [93.22]),
        (("cifar100", "ResNet-19", "dense"), [71.34]),
        (("cifar10", "VGG16", "dense"), [None]),
        (("cifar10", "VGG16", "random control"), [None] * 4),
    ],
)
def test_eccv22_table_1(row: tuple[str, str, str], numbers: list[float]) -> None:
    assert printed("eccv22-tab1", *row) == numbers


@pytest.mark.parametrize(
    ("data", "network", "column"),
    [
        ("cifar10", "VGG-9", "88.10 86.75 83.84 87.71 87.57 87.73 85.27 81.30 87.52 87.76"),
        ("cifar100", "ResNet-19", "76.74 74.42 66.60 72.37 72.93 75.62 73.87 62.76 72.01 72.73"),
        ("cifar10_dvs", "VGG-9", "78.65 77.94 69.21 78.41 77.49 77.92 77.31 63.82 77.94 77.01"),
    ],
)
def test_connection_tickets(data: str, network: str, column: str) -> None:
    found = [c for c in TABLES["2311-tab1"].cells if (c.data, c.network) == (data, network)]
    assert " ".join(f"{c.accuracy:.2f}" for c in found) == column


@pytest.mark.parametrize(
    ("data", "network", "column"),
    [
        ("cifar10", "TINY", [85.71, 84.81, 82.04, 81.75, 81.21]),
        ("cifar100", "SMALL", [69.12, 69.43, 66.22, 64.86, 64.89]),
        ("dvs128_gesture", "TINY", [94.96, 94.13, 93.89, 94.37, 94.50]),
        ("cifar10_dvs", "SMALL", [80.01, 79.77, 78.42, 78.91, 79.02]),
    ],
)
def test_patch_tickets(data: str, network: str, column: list[float]) -> None:
    found = [c for c in TABLES["2311-tab2"].cells if (c.data, c.network) == (data, network)]
    assert [c.accuracy for c in found] == column


def test_figures_have_points_and_no_invented_numbers() -> None:
    sweeps = {"2311-fig3": "sparsity", "2311-fig4": "patch sparsity"}
    for name, removed in sweeps.items():
        levels: dict[str, list[float]] = {}
        for cell in TABLES[name].cells:
            assert cell.accuracy is None
            if cell.level is not None:
                levels.setdefault(cell.axis, []).append(cell.level)
        assert levels[removed] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
        assert levels["T"] == [1, 2, 4, 6, 8]
        assert levels["decay"] == [0.99, 0.8, 0.6, 0.4, 0.2]
    said = {(e.network, e.axis): e.points for t in TABLES.values() for e in t.effects}
    assert said == {
        **{("VGG-9", "T"): 2.3, ("VGG-9", "decay"): 2.1},
        **{("TINY", "T"): 3.8, ("TINY", "decay"): 1.3},
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_whole(name: str) -> None:
    cells = TABLES[name].cells
    assert len({cell.name for cell in cells}) == len(cells)
    known = {(cell.data, cell.network, cell.method) for cell in cells}
    for cell in cells:
        assert cell.table == name and cell.data in DATA
        assert not cell.against or (cell.data, cell.network, cell.against) in known
        assert cell.accuracy is None or 50 < cell.accuracy < 100
    sizes = {"eccv22-tab1": 84, "2311-tab1": 80, "2311-tab2": 40, "2311-fig3": 18, "2311-fig4": 18}
    assert len(cells) == sizes[name]


def test_a_row_is_named_by_all_that_tells_it_apart() -> None:
    cell = Cell("t", "cifar10", "VGG-9", "IMP", "sparsity", 0.5)
    assert cell.name == "t cifar10 VGG-9 IMP sparsity 0.5"
    assert cell.series == ("cifar10", "VGG-9", "IMP", "sparsity")
