"""Budgets: which sparsity is tried next, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt import Ticket, create_dataset
from spikeformer_lt.config import given_options
from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.export import export_ticket
from spikeformer_lt.images.loader import sample_loader
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports import energy
from spikeformer_lt.reports.energy import HIGHEST, LEAST, Trial, fit
from spikeformer_lt.reports.ledger import build_ledger
from spikeformer_lt.training.options import BudgetConfig, RunConfig


@given(
    st.sampled_from(["bytes", "sops", "energy"]),
    st.floats(0.02, 0.98), st.floats(0, 0.5), st.floats(0.5, 2), st.floats(0, 0.98),
)  # fmt: skip
def test_a_cost_that_falls_with_the_sparsity_is_met(
    what: str, wanted: float, rest: float, power: float, first: float
) -> None:
    def costs(rate: float) -> float:
        return 1e6 * (rest + (1 - rate) ** power)

    asked: list[float] = []

    def measure(rate: float) -> Trial:
        asked.append(rate)
        return Trial(0.0, costs(rate))

    goal = int(costs(wanted))
    trials = fit(measure, BudgetConfig(**{what: goal}, tries=12), first)
    assert LEAST[what] * goal <= trials[-1].value <= goal
    assert [t.sparsity for t in trials] == asked and len(set(asked)) == len(asked)
    assert all(0 <= rate <= HIGHEST for rate in asked)


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (100, r"budget\.bytes=100 is below the smallest reachable value, 500\.999"),
        (2000, r"budget\.bytes=2000 is above what no sparsity costs, 1500: nothing to remove"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_what_can(goal: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit(lambda rate: Trial(0, 500 + 999 * (1 - rate) + (rate == 0)), BudgetConfig(goal), 0.9)


def test_nothing_above_the_sparsity_that_a_floor_allows_is_tried() -> None:
    """The refusal names the budget; a goal near the floor is met."""
    asked: list[float] = []

    def measure(rate: float) -> Trial:
        asked.append(rate)
        if rate > 0.9894641:
            fault = MaskError("impossible")
            fault.most = 0.9894641
            raise fault
        return Trial(0.0, 1000 * (1 - rate) + 50)

    with pytest.raises(ConfigError, match=r"budget\.bytes=9 is below the smallest .*, 60\.536"):
        fit(measure, BudgetConfig(9), 0.5)
    assert asked[-1] == max(rate for rate in asked if rate < 0.98947) == 0.989464
    assert 60.39 <= fit(measure, BudgetConfig(61), 0.9999)[-1].value <= 61
    fault = MaskError("another fault")
    with pytest.raises(MaskError, match="another fault"):
        fit(lambda rate: (_ for _ in ()).throw(fault), BudgetConfig(9), 0.5)  # type: ignore


def test_a_budget_of_a_network_that_is_silent_at_every_sparsity_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"budget\.energy=5 cannot be met: layers never fire, even"
    ):
        fit(lambda rate: Trial(0, 0.0), BudgetConfig(energy=5), 0.9)
    alive = fit(
        lambda rate: Trial(0, 0.0 if rate > 0.6 else 9 - 9 * rate), BudgetConfig(sops=5), 0.9
    )
    assert [t.value for t in alive[:2]] == [0, 9] and 4.85 <= alive[-1].value <= 5


def test_a_cost_that_jumps_over_the_budget_ends_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"not met in budget\.tries=5 runs: 90 at sparsity 0\.\d"):
        fit(lambda rate: Trial(0, 90 if rate > 0.5 else 120), BudgetConfig(100, tries=5), 0.9)


def test_a_time_need_not_be_used_up() -> None:
    trials = fit(lambda rate: Trial(0, 3 - 2 * rate, (1, 3)), BudgetConfig(ms=1.5), 0.9)
    assert [t.value for t in trials] == [pytest.approx(1.2)]


def test_one_budget_at_a_time() -> None:
    with pytest.raises(
        ConfigError, match=r"budget\.ms=2\.5 is not allowed: 0 beside budget\.bytes"
    ):
        BudgetConfig(bytes=1, ms=2.5)
    with pytest.raises(ConfigError, match=r"budget\.sops=-1"):
        BudgetConfig(sops=-1)


@dataclass(frozen=True)
class Rate:
    sparsity: float = 0.5


@dataclass(frozen=True)
class Options:
    run: RunConfig
    budget: BudgetConfig
    snip: Rate = field(default_factory=Rate)


class Run:
    """Stands for a search: it makes the directory of a run, and its network has 1,000 weights."""

    def __init__(self, stop: int = 0) -> None:
        self.seen, self.stop = list[float](), stop

    def __call__(self, cfg: Options, accept: Any) -> Any:
        rate, folder = cfg.snip.sparsity, Path(cfg.run.out)
        assert cfg.budget == BudgetConfig() and cfg.run.resume == "auto"
        assert "snip.sparsity" in given_options(cfg)
        self.seen.append(rate)
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        if accept(None, None, rate):
            (folder / "report.json").write_text("{}")
        return rate


def test_the_run_that_fits_takes_the_place_and_a_stopped_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(what: str, experiment: Any, model: Any, rate: float) -> Trial:
        return Trial(0.0, 1000 * (1 - rate) ** 1.5 + 20)

    monkeypatch.setattr(energy, "cost", cost)
    out = tmp_path / "run"
    cfg = Options(RunConfig(str(out)), BudgetConfig(bytes=100))
    first, again = Run(stop=3), Run()
    with pytest.raises(KeyboardInterrupt):
        energy.within(cfg, "snip", first)
    assert not out.exists()
    assert energy.within(cfg, "snip", again) == out
    assert again.seen[:3] == first.seen
    about = json.loads((out / "budget.json").read_text())
    assert [t["sparsity"] for t in about["tries"]] == again.seen
    assert about["limit"] == 100 and about["over"] == "snip.sparsity"
    others = {folder.name for folder in (tmp_path / "run.tries").iterdir()}
    assert others == {f"{rate:g}" for rate in again.seen[:-1]}
    assert (out / "report.json").exists()
    with pytest.raises(ConfigError, match=r"run\.out=.* a new directory"):
        energy.within(cfg, "snip", again)
    lost = replace(cfg, run=RunConfig(), budget=BudgetConfig(bytes=1))
    with pytest.raises(ConfigError, match=r"run\.out"):
        energy.within(lost, "snip", again)
    odd = replace(cfg, run=RunConfig(str(tmp_path / "b")), budget=BudgetConfig(1, over="snip.x"))
    with pytest.raises(ConfigError, match=r"budget\.over='snip\.x'"):
        energy.within(odd, "snip", again)


def test_each_cost_is_what_the_ledger_and_the_export_say(lively: Any, tmp_path: Path) -> None:
    splits = create_dataset("digits", image_size=16, limit_train=40, limit_test=8)
    known = {"embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2, "image_size": 16}
    mask = Mask({k: v != 0 for k, v in lively.state_dict().items() if v.ndim == 4})
    ticket = Ticket.of(lively, mask, {"model": {"name": "spikformer_toy", "args": known}})
    settings = SimpleNamespace(model=SimpleNamespace(T=2))
    experiment: Any = SimpleNamespace(data=splits, cfg=settings)
    found = {what: energy.cost(what, experiment, lively, ticket) for what in LEAST}
    ledger = build_ledger(lively, [x for x, _, _ in sample_loader(splits.val, 256)])
    assert found["sops"].value == ledger["sops"] > 0
    assert ledger["energy_pj"] is None or found["energy"].value == ledger["energy_pj"] > 0
    exported = export_ticket(ticket, tmp_path / "export").folder
    assert found["bytes"].value == (exported / "model.safetensors").stat().st_size
    low, high = found["ms"].quartiles or (0, 0)
    assert 0 < low <= found["ms"].value <= high
    with torch.no_grad():
        lively.blocks[0].mlp.fc1.norm.bias.fill_(-100)
    assert energy.cost("energy", experiment, lively, ticket).value == 0, "a layer never fires"
