"""What one operation costs: the two sets of constants in use, and how results lean on them."""

from __future__ import annotations

from dataclasses import dataclass

from spikeformer_lt.config import check


@dataclass(frozen=True)
class Costs:
    """Energy of one operation, pJ; every figure made from them is an estimate.

    Attributes:
        name: how reports call the set.
        mac_pj: of a multiply-accumulate.
        ac_pj: of an accumulate, that is of a synaptic operation.
        source: where the figures come from.
    """

    name: str
    mac_pj: float
    ac_pj: float
    source: str

    def __post_init__(self) -> None:
        for field in ("mac_pj", "ac_pj"):
            value = getattr(self, field)
            check(0 <= value < 1e6, f"{self.name}.{field}", value, "picojoules, finite and >= 0")

    def energy_pj(self, macs: float, acs: float) -> float:
        """Energy of so many operations, pJ."""
        return self.mac_pj * macs + self.ac_pj * acs


HOROWITZ = Costs("45nm", 4.6, 0.9, "32-bit floating point at 45 nm, Horowitz, ISSCC 2014")
SOP_77FJ = Costs(
    "77fJ",
    4.6,
    0.077,
    "77 fJ a SOP as in Spikformer, ICLR 2023 (it counts SOPs only); a MAC as in the 45nm set",
)
INT8 = Costs("int8", 0.23, 0.03, "8-bit integers at 45 nm, Horowitz, ISSCC 2014")
COSTS = {costs.name: costs for costs in (HOROWITZ, SOP_77FJ)}
"""The two sets in use in the field."""

MEMORY_PJ_PER_BYTE = {"SRAM 8 KB": 10 / 8, "SRAM 1 MB": 100 / 8, "DRAM": 1300 / 8}
"""Energy of reading one byte, pJ: 64-bit reads at 45 nm, Horowitz, ISSCC 2014 (DRAM: the lower)."""


def sensitivity_costs() -> list[Costs]:
    """Both sets, 8-bit integers, and the 45 nm set with each figure halved and doubled."""
    varied = [
        Costs(
            f"45nm, MAC x{m:g}, AC x{a:g}", HOROWITZ.mac_pj * m, HOROWITZ.ac_pj * a, "varied 45nm"
        )
        for m in (0.5, 1.0, 2.0)
        for a in (0.5, 1.0, 2.0)
        if (m, a) != (1.0, 1.0)
    ]
    return [HOROWITZ, SOP_77FJ, INT8, *varied]
