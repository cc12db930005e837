"""The directory of a run: made once, never overwritten, resumed only by the same configuration."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from spikeformer_lt.config import check, flat_values, save_config, to_dict
from spikeformer_lt.config import run_id as name_run
from spikeformer_lt.errors import ConfigError, near, shown
from spikeformer_lt.paths import safe_name, write_atomic
from spikeformer_lt.textfile import read_mapping
from spikeformer_lt.training.environment import describe_environment, environment_changes
from spikeformer_lt.training.jsonfile import dump_json
from spikeformer_lt.training.runchoice import CONFIG, RunChoice, holds_run
from spikeformer_lt.training.runlock import LOCK, take_lock
from spikeformer_lt.training.runlog import RunLog
from spikeformer_lt.training.summary import Summary

__all__ = ["RunDir"]

logger = logging.getLogger(__name__)

ENV = "env.json"
LOG = "log.txt"
WORLD = "world_size"
CHANGED = "changed_on_resume"
TABLES = ("summary", "firing")
"""CSV files of one row an epoch: accuracies and the like, and each spiking layer's rate."""


class RunDir:
    """Handle of a run directory; `open` makes or resumes one.

    Args:
        path: the directory.
        run_id: slug and hash of the configuration.
        resumed: whether an earlier process had begun the run.
        writer: False on all ranks but the first: nothing is written, rows are still counted.
    """

    def __init__(
        self, path: str | Path, run_id: str = "", *, resumed: bool = False, writer: bool = True
    ) -> None:
        self.path, self.run_id = Path(path), run_id or Path(path).name
        self.resumed, self.writer = resumed, writer
        self._tables: dict[str, Summary] = {}
        self._lock: IO[bytes] | None = None
        self._log: RunLog | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Any,
        *,
        slug: str = "run",
        resume: str = "never",
        allow: Sequence[str] = (),
        seed: int | None = None,
        root: str | Path = "runs",
        own: Sequence[str] = ("run",),
    ) -> RunDir:
        """Make a run directory, or go on in one.

        With several processes all of them call this once the process group is there; the first
        decides and writes, the others follow.

        Args:
            path: the directory; empty for a new one under `root`, named after the configuration.
            config: nested frozen dataclass.
            slug: readable part of the run's name.
            resume: "never"; "auto" to go on if the run is there and to begin if it is not; or the
                path of a run.
            allow: fields or groups that may differ from the run that is resumed; "world_size", too.
            seed: noted in env.json.
            root: parent of the directories that are named here; a name never leads out of it.
            own: fields or groups about the directory itself, which are not compared.

        Raises:
            ConfigError: the directory holds another run or foreign files, is in use, or cannot be
                written; or the configuration differs: each field, old -> new.
        """
        fields = [name for name, _ in flat_values(to_dict(config))]
        for name in (*allow, *own):
            known = name == WORLD or any(f"{field}.".startswith(f"{name}.") for field in fields)
            hint = near(name, [*fields, WORLD])
            check(known, "allow_config_change", name, f"a field of the configuration{hint}")
        run_id = name_run(config, slug, own)
        choice = RunChoice(config, run_id, resume, tuple(allow), tuple(own), Path(root))
        distributed = torch.distributed
        ready = distributed.is_available() and distributed.is_initialized()
        if ready and distributed.get_world_size() > 1:
            run = cls._open_together(choice, str(path), seed)
        else:
            run = cls._begin(choice, str(path), seed, 1)
        return run

    @classmethod
    def _open_together(cls, choice: RunChoice, path: str, seed: int | None) -> RunDir:
        distributed = torch.distributed
        run, answer = None, [""]
        if distributed.get_rank() == 0:
            try:
                run = cls._begin(choice, path, seed, distributed.get_world_size())
                answer = [json.dumps([str(run.path), run.resumed, ""])]
            except ConfigError as fault:
                answer = [json.dumps(["", False, str(fault)])]
        distributed.broadcast_object_list(answer)
        found, resumed, fault_text = json.loads(answer[0])
        if fault_text:
            raise ConfigError(fault_text)
        return run or cls(found, choice.run_id, resumed=resumed, writer=False)

    @classmethod
    def _begin(cls, choice: RunChoice, path: str, seed: int | None, world_size: int) -> RunDir:
        try:
            folder, resumed = choice.choose(path)
            folder.mkdir(parents=True, exist_ok=True)
            lock = take_lock(folder)
        except OSError as fault:
            where = shown(str(fault.filename or path), 300)
            raise ConfigError(
                f"cannot make the run directory {where}: {fault.strerror or fault}; choose another "
                "--run.out"
            ) from None
        run = cls(folder, choice.run_id, resumed=resumed)
        run._lock = lock
        try:
            if holds_run(folder) and not resumed:
                raise ConfigError(f"{shown(path, 300)}: another process has just begun a run there")
            env = describe_environment(seed, world_size)
            changed = run._compare(choice, env) if resumed else []
            if changed or not resumed:
                save_config(choice.config, folder / CONFIG)
            text = dump_json(env, "env", ConfigError, indent=2)
            write_atomic(folder / ENV, f"{text}\n".encode(), ConfigError)
            run._log = RunLog(folder / LOG)
        except BaseException:
            run.close()
            raise
        for line in changed:
            logger.warning("resumed with a change: %s", line)
        return run

    def _compare(self, choice: RunChoice, env: dict[str, Any]) -> list[str]:
        """Refuse a change that is not allowed, note the others in `env`, and return them."""
        path = self.path / ENV
        old = read_mapping(path) if path.exists() else {}
        before = old.pop(CHANGED, [])
        changed = choice.changes(self.path)
        if old.get(WORLD, env[WORLD]) != env[WORLD]:
            changed.append(f"{WORLD}: {old[WORLD]} -> {env[WORLD]}")
        refused = [line for line in changed if not choice.allows(line)]
        if refused:
            fields = " ".join(line.partition(":")[0] for line in refused)
            raise ConfigError(
                f"{shown(str(self.path), 300)} holds a run of another configuration: "
                f"{'; '.join(refused)}; take the old values, or allow the change with "
                f"--run.allow-config-change {fields}"
            )
        drift = environment_changes(old, env) if old else []
        if drift:
            logger.warning("resumed elsewhere: the last bits may differ: %s", "; ".join(drift))
        env[CHANGED] = [*before, *changed, *drift]
        return changed

    def rows(self) -> int:
        """Count the rows of summary.csv."""
        return len(self._table("summary"))

    def append_row(self, row: Mapping[str, object], table: str = "summary") -> None:
        """Add a row to summary.csv, or to another of `TABLES`: column -> number, text or None."""
        if self.writer:
            self._table(table).append(row)

    def truncate(self, rows: int) -> None:
        """Drop the rows after the first `rows`, which a killed run wrote after its checkpoint."""
        for table in TABLES if self.writer else ():
            self._table(table).truncate(rows)

    def write_report(self, report: Mapping[str, Any], name: str = "report.json") -> None:
        """Write a report as JSON, atomically.

        Raises:
            ConfigError: a NaN, an infinity or a value that JSON cannot hold, with its place; or the
                disk refuses.
        """
        text = dump_json(dict(report), "report", ConfigError, indent=2)
        if self.writer:
            write_atomic(self.inside(name), f"{text}\n".encode(), ConfigError)

    def inside(self, *names: str) -> Path:
        """Return a path in this directory, whatever the names hold: each becomes one component."""
        return self.path.joinpath(*(safe_name(name) for name in names))

    def abandon(self) -> None:
        """Take back a run whose start failed, so that it can be started again in the same place.

        Only where this process began it and nothing but the beginning is there; then `close`.
        """
        if self._log is not None:
            self._log.close()
        self._log = None
        began = {CONFIG, ENV, LOG, LOCK}
        if self.writer and not self.resumed and set(os.listdir(self.path)) <= began:
            for name in began:
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Let go of log.txt and of the directory."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.close()
        self._log = self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _table(self, name: str) -> Summary:
        if name not in self._tables:
            self._tables[name] = Summary(self.path / f"{name}.csv")
        return self._tables[name]
