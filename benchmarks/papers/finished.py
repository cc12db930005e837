"""Finished runs that are what a published row asks for: by their configuration, and whole."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shlex
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from spikeformer_lt.cli import planned
from spikeformer_lt.config import differences, given_options, load_config, parse, run_id
from spikeformer_lt.disk import read_mapping
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.registry import search_names
from spikeformer_lt.reports.comparison import outcome_of
from spikeformer_lt.reports.statistics import Outcome
from spikeformer_lt.tickets.presets import PUBLISHED
from spikeformer_lt.training.options import EventDataConfig
from spikeformer_lt.training.run import OWN, read_report
from spikeformer_lt.training.settle import CIFAR10, settle, with_published

NOT_COMPARED = (
    *(*OWN, "data.root", "data.download", "data.cache", "train.workers", "train.threads"),
    *("train.cpu", "train.tensorboard", "train.track", "train.timeout_s"),
)
"""Where a run reads and writes, and what its numbers do not depend on."""


@dataclass(frozen=True)
class Run:
    """A finished run, checked against itself and against what was asked for."""

    folder: Path
    report: dict[str, Any]
    config: dict[str, Any]
    env: dict[str, Any]
    epochs: int
    """Epochs of all its phases together."""

    @property
    def accuracy(self) -> float:
        """Test accuracy, in %."""
        return float(self.report["test_accuracy"])

    @property
    def outcome(self) -> Outcome:
        """Test result, with the predictions that were saved beside the report."""
        found = outcome_of(self.report, self.folder)
        assert found is not None  # `read_run` takes no report without accuracy and count
        return found

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.report["seed"])


@cache
def load_recipe(path: Path) -> ModuleType:
    """Import a recipe from its file, without running it.

    Raises:
        DataError: there is no such file.
    """
    name = f"_recipe_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise DataError(f"there is no recipe {path.name} in {path.parent}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their annotations there
    spec.loader.exec_module(module)
    return module


def recipe_class(path: Path) -> type:
    """The configuration class of a recipe: what its ``main`` takes."""
    cls: type = typing.get_type_hints(load_recipe(path).main)["cfg"]
    return cls


def expected_config(path: Path, options: Sequence[str]) -> Any:
    """The configuration that a recipe run with these options would save.

    Args:
        path: of the recipe.
        options: of its command line; they must name the data set.

    Raises:
        ConfigError: the recipe refuses them.
    """
    return _expected(path, tuple(options))


@cache
def _expected(path: Path, options: tuple[str, ...]) -> Any:
    cfg: Any = parse(recipe_class(path), options, prog=path.name)
    fallback = "moving_digits" if isinstance(cfg.data, EventDataConfig) else "digits"
    settled, _, _ = settle(cfg, CIFAR10, fallback, load_recipe(path).SMALL)
    for group in (field.name for field in dataclasses.fields(cfg)):
        preset = getattr(getattr(cfg, group), "preset", "default")
        settled, _ = with_published(settled, PUBLISHED.get(preset, {}), given_options(cfg))
    return settled


def planned_epochs(path: Path, options: Sequence[str]) -> int:
    """Most epochs that a recipe trains with these options, which must name the data set."""
    cfg, recipe = expected_config(path, options), load_recipe(path)
    own = [field.name for field in dataclasses.fields(cfg) if field.name in search_names()]
    return planned(cfg, getattr(recipe, "choose", None) or own[0])


def read_run(folder: Path, path: Path, wanted: Any) -> Run | str:
    """Read a finished run if it is the one that is wanted.

    Its report must name the run and the seed of its own configuration, and its accuracy must be
    that of its confusion matrix, so that a number changed by hand does not pass.

    Args:
        folder: the run directory.
        path: the recipe that must have made it.
        wanted: `expected_config` of that recipe and the row's options.

    Returns:
        The run; or in words why its number is not taken.
    """
    report_file = folder / "report.json"
    if not report_file.is_file():
        return "not finished" if folder.is_dir() else "not run"
    try:
        config = load_config(type(wanted), folder / "config.json")
        report, env = read_report(report_file), read_mapping(folder / "env.json")
    except (ConfigError, DataError, OSError) as fault:
        return f"cannot be read: {fault}"
    made_by = Path(shlex.split(str(env.get("command", "")) or "?")[0]).stem
    if made_by != path.stem:
        return f"was made by {made_by}, not by {path.stem}"
    other = [line for line in differences(config, wanted) if not _is_own(line)]
    if other:
        return f"is of another configuration: {'; '.join(other)}"
    fault_found = _fault(report, config, _identity(folder, report, config))
    if fault_found:
        return f"its report is not to be trusted: {fault_found}"
    table = folder / "summary.csv"
    epochs = len(table.read_text().splitlines()) - 1 if table.is_file() else 0
    return Run(folder, report, dataclasses.asdict(config), env, epochs)


def _is_own(line: str) -> bool:
    field = line.partition(":")[0]
    return any(f"{field}.".startswith(f"{name}.") for name in NOT_COMPARED)


def _identity(folder: Path, report: dict[str, Any], config: Any) -> dict[str, str] | None:
    """What a run was besides its configuration, by its ticket; None for a run without one."""
    about = folder / "ticket" / "ticket.json"
    if not about.is_file():
        return None
    known = read_mapping(about)["provenance"]
    search = "transfer" if "transfer" in known else str(known["search"])
    search = f"early_time {search}" if "early_time" in known else search
    split = str(report.get("split_sha256"))
    return {"recipe": type(config).__name__, "search": search, "split": split}


def _fault(report: dict[str, Any], config: Any, identity: dict[str, str] | None) -> str:
    """What in a report contradicts its configuration or itself."""
    slug = f"{config.model.name}-{config.data.name}"
    own = {
        "run_id": run_id(config, slug, [n for n in OWN if hasattr(config, n)], identity),
        "seed": config.train.seed,
        "dataset": config.data.name,
    }
    for name, value in own.items():
        if report.get(name) != value:
            return f"{name} is {report.get(name)!r}, its configuration's is {value!r}"
    try:
        confusion = [[int(n) for n in row] for row in report["confusion"]]
        accuracy, count = float(report["test_accuracy"]), int(report["test_count"])
        last = float(report["accuracy_at_t"][-1])
    except (KeyError, IndexError, TypeError, ValueError) as fault:
        return f"no test accuracy with its confusion matrix ({fault!r})"
    right = sum(row[i] for i, row in enumerate(confusion))
    total = sum(map(sum, confusion))
    if not total or total != count or not math.isclose(100 * right / total, accuracy, abs_tol=1e-4):
        return f"its accuracy is {accuracy}, its confusion matrix says {right} of {total} right"
    if not math.isclose(last, accuracy, abs_tol=1e-4):
        return f"its accuracy is {accuracy}, at the last time step {last}"
    return ""
