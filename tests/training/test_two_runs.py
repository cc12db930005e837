"""Runs in one process: one after the other, and side by side in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets.configs import MultiSpConfig
from spikeformer_lt.tickets.levels import PatchConfig, WeightConfig
from spikeformer_lt.tickets.multisp import MultiSp
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import DataConfig, ModelConfig, RunConfig, TrainConfig

TRAIN = TrainConfig(batch_size=16, cpu=True)
NOISY = MultiSpConfig(
    epochs=1, patches=PatchConfig(score="gumbel"), weights=WeightConfig(method="both")
)


@dataclass(frozen=True)
class Config:
    """A small recipe."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig("digits", image_size=16, limit_train=48, limit_test=40)
    )
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("spikformer_toy", T=2, embed_dim=16, num_heads=2)
    )
    train: TrainConfig = TRAIN
    run: RunConfig = field(default_factory=RunConfig)


def experiment(folder: Path, **groups) -> Experiment:
    config = Config(run=RunConfig(str(folder)), **groups)
    return Experiment(config, fallback="digits", small={}, search="multisp")


def trained(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    with experiment(folder, train=replace(TRAIN, seed=seed)) as one:
        ticket = MultiSp(NOISY, seed).find(one.model(), one.trainer.fit)
        return one.save_ticket(ticket).tensors


@pytest.mark.fault(63)
def test_runs_side_by_side_give_the_bits_that_they_give_alone(tmp_path):
    seeds = (0, 1)
    alone = [trained(tmp_path / f"alone-{seed}", seed) for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        folders = [tmp_path / f"beside-{seed}" for seed in seeds]
        beside = list(pool.map(trained, folders, seeds))
    for seed, one, other in zip(seeds, alone, beside, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        rows, log = [], []
        for kind in ("alone", "beside"):
            folder = tmp_path / f"{kind}-{seed}"
            rows.append((folder / "summary.csv").read_bytes())
            text = (folder / "log.txt").read_text()
            log.append([text.count("*****"), text.count("joint epoch 1/1  loss")])
        assert rows[0] == rows[1]
        assert log == [[2, 1], [2, 1]], "each log has its own run"


@pytest.mark.fault(63)
def test_one_thread_may_alternate_between_two_runs(tmp_path):
    with experiment(tmp_path / "a") as first, experiment(tmp_path / "b") as second:
        models = first.model(), second.model()
        for one, model in zip((first, second), models, strict=True):
            MultiSp(NOISY, 0).find(model, one.trainer.fit)
    for name in ("a", "b"):
        assert (tmp_path / name / "log.txt").read_text().count("joint epoch 1/1  loss") == 1


@pytest.mark.fault(63)
def test_a_directory_is_one_runs_in_this_process_too(tmp_path):
    with experiment(tmp_path / "a") as first:
        again = experiment(tmp_path / "a")
        again.cfg = replace(first.cfg, run=RunConfig(str(tmp_path / "a"), "auto"))
        with pytest.raises(ConfigError, match="in use by another run of this process"), again:
            pass
    with again:
        assert again.run.resumed


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_bf16_on_a_processor_without_amx_is_told(tmp_path, monkeypatch, amx: bool, precision: str):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    with experiment(tmp_path, train=replace(TRAIN, mixed_precision=precision)) as one:
        one.model()
    told = "mixed_precision=bf16 was measured slower" in (tmp_path / "log.txt").read_text()
    assert told == (precision == "bf16" and not amx)


@pytest.mark.fault(63)
def test_a_run_leaves_threads_and_precision_to_the_next(tmp_path):
    before = torch.get_num_threads()
    half = replace(TRAIN, mixed_precision="bf16", threads=1)
    with experiment(tmp_path / "a", train=half) as first:
        assert first.accelerator.mixed_precision == "bf16"
        with (
            pytest.raises(ConfigError, match="another run of this process has other values"),
            experiment(tmp_path / "b"),
        ):
            pass
    with experiment(tmp_path / "b") as second:
        assert second.accelerator.mixed_precision == "no"
    assert torch.get_num_threads() == before
    assert not (tmp_path / "b" / "last").exists()
