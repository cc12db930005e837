"""The directory of a run: made once, never overwritten, resumed only by the same configuration.

It holds config.json, env.json, log.txt, the tables of one row an epoch, and whatever the run makes.
One living process has it at a time.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gc
import io
import logging
import os
import re
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO, Any

import torch

from spikeformer_lt import disk, runtime
from spikeformer_lt.bundle import sweep
from spikeformer_lt.config import (
    changes,
    check,
    differences,
    flat_values,
    load_config,
    save_config,
    to_dict,
)
from spikeformer_lt.config import run_id as name_run
from spikeformer_lt.errors import ConfigError, DataError, SpikeformerError, name_of, near, shown
from spikeformer_lt.training.ranks import together

PACKAGE = "spikeformer_lt"
CONFIG, ENV, LOG, LOCK = "config.json", "env.json", "log.txt", ".lock"
REPORT = {
    **dict.fromkeys(("run_id", "dataset", "split_sha256", "mask_sha256"), "text"),
    **dict.fromkeys(("seed", "train_count", "test_count", "params", "ledger_samples"), "whole"),
    **dict.fromkeys(("test_accuracy", "val_accuracy", "test_loss", "macs", "sops"), "real"),
    **dict.fromkeys(("sparsity", "firing_rate"), "rates"),
    **dict.fromkeys(("layers", "purity", "ticket", "choices", "versions", "augmentation"), "names"),
    **{"dead_layers": "list", "confusion": "table"},
    **dict.fromkeys(("accuracy_at_t", "test_accuracy_interval"), "reals"),
}  # what a report holds, for whoever reads one
LEFTOVERS = (LOCK, f".{CONFIG}.tmp-")  # what a start that was killed may leave behind
TABLES = ("summary", "firing")  # CSV files of a row an epoch: accuracies; each layer's rate
OWN = ("run", "budget")  # groups about directories, which are no part of a run's identity
TWINS = 10_000  # runs of one configuration under one root
TAKEN = (errno.EACCES, errno.EAGAIN)  # what the system answers about a lock that is held
WORLD, CHANGED, IDENTITY = "world_size", "changed_on_resume", "identity"  # keys of env.json

log = logging.getLogger(__name__)
_HELD: weakref.WeakValueDictionary[Path, RunDir] = weakref.WeakValueDictionary()
_CLAIMING = threading.Lock()


class RunDir(contextlib.AbstractContextManager["RunDir"]):
    """Handle of a run directory; `open` makes or resumes one.

    `resumed` says whether an earlier process had begun the run. Ranks other than the first are no
    `writer`: nothing is written, rows are still counted.
    """

    def __init__(
        self, path: str | Path, run_id: str = "", *, resumed: bool = False, writer: bool = True
    ) -> None:
        self.path, self.run_id = Path(path), run_id or Path(path).name
        self.resumed, self.writer = resumed, writer
        self._tables: dict[str, Summary] = {}
        self._lock: IO[bytes] | None = None
        self._log: RunLog | None = None
        self._changed: Any = None  # a configuration that becomes the run's with what it makes

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Any,
        *,
        slug: str = "run",
        identity: Mapping[str, str] | None = None,
        resume: str = "never",
        allow: Sequence[str] = (),
        seed: int | None = None,
        root: str | Path = "runs",
        log: RunLog | None = None,
    ) -> RunDir:
        """Make a run directory, or go on in one; of all ranks the first decides and writes.

        Args:
            path: the directory; empty for a new one under `root`, named after the run.
            config: nested frozen dataclass.
            slug, identity: readable part of the run's name; what the run is besides `config`.
            resume: "never"; "auto" to go on if the run is there, else begin; or the path of a run.
            allow: fields or groups that may differ from the run that is resumed; "world_size", too.
            seed: noted in env.json.
            root: parent of the directories that are named here; a name never leads out of it.
            log: the run's log, if it was begun before; it becomes this run's.

        Raises:
            ConfigError: the directory holds another run or foreign files, is in use, or cannot be
                written; or the configuration differs: each field, old -> new.
        """
        run_id = name_run(config, slug, [name for name in OWN if hasattr(config, name)], identity)
        choice = RunChoice(config, run_id, resume, tuple(allow), Path(root), identity or {})
        if not together():
            return cls._begin(choice, str(path), seed, 1, log)
        distributed, run, answer = torch.distributed, None, list[Any](["", False, ""])
        if distributed.get_rank() == 0:
            try:
                run = cls._begin(choice, str(path), seed, distributed.get_world_size(), log)
                answer = [str(run.path), run.resumed, ""]
            except ConfigError as fault:
                answer = ["", False, str(fault)]
        distributed.broadcast_object_list(answer)
        found, resumed, refusal = answer
        if refusal:
            raise ConfigError(refusal)
        return run or cls(found, run_id, resumed=resumed, writer=False)

    @classmethod
    def _begin(
        cls, choice: RunChoice, path: str, seed: int | None, world_size: int, log_: RunLog | None
    ) -> RunDir:
        try:
            folder, resumed = choice.choose(path)
            folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder, choice.run_id, resumed=resumed)
            with _CLAIMING:
                if (place := folder.resolve()) in _HELD:
                    gc.collect()  # one that nobody has any more was not closed
                if place in _HELD:
                    raise ConfigError(
                        f"{name_of(folder)} is in use by another run of this process; close that "
                        "one, or choose another run directory"
                    )
                run._lock, _HELD[place] = take_lock(folder), run
        except OSError as fault:
            raise ConfigError(
                f"cannot make the run directory {name_of(fault.filename or path)}: "
                f"{fault.strerror or fault}; choose another --run.out"
            ) from None
        begins = not (resumed or holds_run(folder))
        try:
            sweep(folder)
            if not begins and not resumed:
                raise ConfigError(f"{name_of(path)}: another process has just begun a run there")
            env = runtime.describe_environment(seed, world_size) | {IDENTITY: dict(choice.identity)}
            changed = run._compare(choice, env) if resumed else []
            if changed:
                run._changed = choice.config, env
            else:
                if not resumed:
                    save_config(choice.config, folder / CONFIG)
                run._write_json(ENV, env)
            run._log = log_ or RunLog(None)
            run._log.open(folder / LOG)
        except BaseException:
            (run.abandon if begins else run.close)()
            raise
        for line in changed:
            log.warning("resumed with a change: %s", line)
        return run

    def _compare(self, choice: RunChoice, env: dict[str, Any]) -> list[str]:
        """Refuse a change that is not allowed, note the others in `env`, and return them."""
        old = choice.environment(self.path)
        before, changed = old.pop(CHANGED, None) or [], choice.changes(self.path)
        if old.get(WORLD, env[WORLD]) != env[WORLD]:
            changed.append(f"{WORLD}: {old[WORLD]} -> {env[WORLD]}")
        choice.refuse(self.path, changed)
        elsewhere = {name: value for name, value in env.items() if name != IDENTITY}
        drift = runtime.environment_changes(old, elsewhere) if old else []
        if drift:
            log.warning("resumed elsewhere: the last bits may differ: %s", "; ".join(drift))
        env[CHANGED] = [*before, *changed, *drift]
        return changed

    def rows(self) -> int:
        """Count the rows of summary.csv."""
        return len(self._table("summary"))

    def append_row(self, row: Mapping[str, object], table: str = "summary") -> None:
        """Add a row to one of `TABLES`: column -> number, text or None."""
        if self.writer:
            self._settle()
            self._table(table).append(row)

    def truncate(self, rows: int) -> None:
        """Drop the rows after the first `rows`, which a killed run wrote after its checkpoint."""
        for table in TABLES if self.writer else ():
            self._table(table).truncate(rows)

    def write_report(self, report: Mapping[str, Any], name: str = "report.json") -> None:
        """Write a report as JSON, atomically; a ConfigError names what JSON cannot hold, as NaN."""
        self._settle()
        self._write_json(name, report, "report")

    def abandon(self) -> None:
        """Close; take back a run that this process began, if nothing but the beginning is there.

        An allowed change of configuration under which nothing was made is forgotten, too.
        """
        self._changed = None
        if self._log is not None:
            self._log.close()
        began = {CONFIG, ENV, LOG, LOCK}
        if self.writer and not self.resumed and set(os.listdir(self.path)) <= began:
            for name in began:
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Let go of log.txt and of the directory."""
        self._settle()
        for held in (self._log, self._lock):
            if held is not None:
                held.close()
        self._log = self._lock = None
        for place in [place for place, run in _HELD.items() if run is self]:
            del _HELD[place]

    def speaks(self) -> contextlib.AbstractContextManager[None]:
        """Let what this thread logs inside go to this run's log, of several in the process."""
        return contextlib.nullcontext() if self._log is None else self._log.speaks()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _settle(self) -> None:
        """Make an allowed change of configuration the run's own."""
        if self._changed is not None:
            (config, env), self._changed = self._changed, None
            save_config(config, self.path / CONFIG)
            self._write_json(ENV, env)

    def _write_json(self, name: str, value: Mapping[str, Any], what: str = "env") -> None:
        text = disk.dump_json(dict(value), what, ConfigError, indent=2)
        if self.writer:
            disk.write_atomic(self.path / disk.safe_name(name), f"{text}\n".encode(), ConfigError)

    def _table(self, name: str) -> Summary:
        if name not in self._tables:
            self._tables[name] = Summary(self.path / f"{name}.csv")
        return self._tables[name]


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`: its configuration is the first file it writes."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class RunChoice:
    """Which directory a run goes to, and whether it goes on there; fields as in `RunDir.open`."""

    config: Any
    run_id: str
    resume: str
    allow: Sequence[str]
    root: Path
    identity: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = [name for name, _ in flat_values(to_dict(self.config))] + [WORLD]
        for name in self.allow:
            rule = f"a field of the configuration{near(name, fields)}"
            known = any(_within(field, [name]) for field in fields)
            check(known, "allow_config_change", name, rule)

    def check(self, path: str) -> Path | None:
        """Refuse what `RunDir.open` would, making nothing; give the run that is gone on with."""
        if not path and self.resume in ("never", "auto"):
            return None
        folder, resumed = self.choose(path)
        self.refuse(folder, self.changes(folder) if resumed else [])
        return folder if resumed else None

    def refuse(self, folder: Path, changed: Sequence[str]) -> None:
        """Refuse changes, of a run in a folder, that are not allowed."""
        if refused := [line for line in changed if not _within(line, self.allow)]:
            fields = " ".join(line.partition(":")[0] for line in refused)
            raise ConfigError(
                f"{name_of(folder)} holds a run of another configuration: "
                f"{'; '.join(refused)}; take the old values, or allow the change with "
                f"--run.allow-config-change {fields}"
            )

    def choose(self, path: str) -> tuple[Path, bool]:
        """Give the directory and whether a run goes on there.

        An empty `path` stands for one named after the run, which is made here, for nobody else.

        Raises:
            ConfigError: it holds another run, or something that is no run; nothing to resume.
            OSError: the system refuses.
        """
        if self.resume not in ("never", "auto"):
            return self._resumed_path(path), True
        if path:
            folder = Path(path)
            if not holds_run(folder):
                _refuse_foreign(folder)
            elif self.resume == "never":
                differing = ""
                with contextlib.suppress(ConfigError):
                    if changed := self.changes(folder):
                        differing = f" (a run of another configuration: {'; '.join(changed)})"
                raise ConfigError(
                    f"{name_of(path)} already holds a run, and nothing is ever overwritten"
                    f"{differing}; go on with it by --run.resume auto, or choose another --run.out"
                )
            return folder, holds_run(folder)
        for folder in self._twins() if self.resume == "auto" else ():
            with contextlib.suppress(ConfigError):  # damaged, or of another version
                if not self.changes(folder):
                    return folder, True
        self.root.mkdir(parents=True, exist_ok=True)
        for number in range(1, TWINS):
            folder = self.root / (self.run_id if number == 1 else f"{self.run_id}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()  # the one step that only one of two processes can win
                return folder, False
        raise ConfigError(f"{name_of(self.root)} has {TWINS} runs {self.run_id}; clear it")

    def changes(self, folder: Path) -> list[str]:
        """List where the run in `folder` differs: "field: old -> new", but for the group `run`."""
        hint = "; only a run of the same recipe and search goes on: choose another --run.out"
        old = load_config(type(self.config), folder / CONFIG, hint)
        return [line for line in differences(old, self.config) if not _within(line, OWN)]

    def environment(self, folder: Path) -> dict[str, Any]:
        """What env.json of the run in `folder` says; a ConfigError if that run is another one."""
        kinds = {CHANGED: "list", IDENTITY: "names", WORLD: "whole", "versions": "names"}
        there = (path := folder / ENV).exists()
        old = disk.read_record(path, kinds, ConfigError) if there else {}
        identity = old.pop(IDENTITY, None) or {}
        if another := changes(identity, {**identity, **self.identity}) if identity else []:
            raise ConfigError(
                f"{name_of(folder)} holds another run: {'; '.join(another)}; choose another "
                "--run.out"
            )
        return old

    def _resumed_path(self, path: str) -> Path:
        folder = Path(self.resume)
        if not holds_run(folder):
            hint = near(self.resume, ("never", "auto"))
            raise ConfigError(
                f"resume={name_of(self.resume)} is not allowed: never, auto, or a directory "
                f"that holds a run, which has a {CONFIG}{hint}"
            )
        if path and Path(path).resolve() != folder.resolve():
            raise ConfigError(
                f"resume={name_of(self.resume)} and out={name_of(path)} are two directories; "
                "give one of them"
            )
        return folder

    def _twins(self) -> list[Path]:
        """Runs of this name under the root, newest first."""
        pattern = re.compile(rf"{re.escape(self.run_id)}(?:-(\d{{1,6}}))?")
        names = os.listdir(self.root) if self.root.is_dir() else []
        matches = [m for m in map(pattern.fullmatch, names) if m and holds_run(self.root / m[0])]
        return [self.root / m[0] for m in sorted(matches, key=lambda m: -int(m[1] or 1))]


def _within(line: str, names: Sequence[str]) -> bool:
    """Whether a field, or a line "field: old -> new", is of one of these fields or groups."""
    field = line.partition(":")[0]
    return any(f"{field}.".startswith(f"{name}.") for name in names)


def read_report(path: Path, error: type[SpikeformerError] = DataError) -> dict[str, Any]:
    """Read a ``report.json``; an `error` names a field of another type than we write."""
    return disk.read_record(path, REPORT, error)


def _refuse_foreign(folder: Path) -> None:
    """Refuse a file, a folder of other things, and a place where none can be made."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    rule = f"a path in a folder that can be written, which {name_of(place)} is not"
    sound = place == folder or (place.is_dir() and os.access(place, os.W_OK))
    check(sound, "run.out", str(folder), rule)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{name_of(folder)} is a file, not a directory; choose another --run.out")
    names = sorted(os.listdir(folder)) if folder.exists() else []
    if foreign := [name for name in names if not name.startswith(LEFTOVERS)]:
        raise ConfigError(
            f"{name_of(folder)} is not empty ({shown(foreign[0])}, {len(foreign)} in all) and "
            "holds no run; choose a new or empty --run.out"
        )


def take_lock(folder: Path) -> IO[bytes] | None:
    """Claim a directory until the returned file is closed or this process ends, however it ends.

    Forked loader workers that outlive a killed parent do not hold the lock, and a process never
    locks itself out. A system without such locks lets everybody in. A ConfigError says that a
    living process has the directory; an OSError that it cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    disk.refuse_link(folder / LOCK, ConfigError)
    file = open(folder / LOCK, "a+b")  # noqa: SIM115 - open as long as the lock is held
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        with file:
            file.seek(0)
            owner = shown(file.read(20).decode("ascii", "replace").strip())[1:-1]
        if fault.errno not in TAKEN:
            return None
        raise ConfigError(
            f"{name_of(folder)} is in use by process {owner}; wait for it, stop it, or choose "
            "another run directory"
        ) from None
    with contextlib.suppress(OSError):  # on a full disk nobody is told who has it
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), f"{os.getpid()}\n".encode())
    return file


def in_use(folder: Path) -> bool:
    """Whether another living process has a directory; False where a system has no such locks."""
    # Do not ask for one that this process has: closing the file would give it up.
    try:
        with open(folder / LOCK, "r+b") as file:
            os.lockf(file.fileno(), os.F_TEST, 0)
    except (OSError, AttributeError) as fault:  # no run yet, or taken; no such call on Windows
        return getattr(fault, "errno", None) in TAKEN
    return False


class _Plain(logging.Formatter):
    """Escapes control characters and indents further lines: no message can look like another's."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        lines = record.message.splitlines() or [""]
        safe = (
            "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
            for line in lines
        )
        record.message = "\n    ".join(safe)
        return super().formatMessage(record)


_SPEAKERS: dict[int, list[RunLog]] = {}  # by thread: the last one takes what it logs
_FOUND: list[int] = []  # the level before each handler; taken from the end, the first goes last


class RunLog:
    """Sends messages from INFO up to a file, and to stderr unless the program has its own logging.

    Of several in one process each takes what its own thread logs, or the thread inside `speaks`.

    Args:
        path: the file, appended to; None for a rank that logs nothing.
        early: begin without a file; `open` writes to it what came before.
    """

    def __init__(self, path: Path | None, early: bool = False) -> None:
        self._logger = logging.getLogger(PACKAGE)
        self._handlers: list[logging.Handler] = []
        self._early: MemoryHandler | None = None
        self._thread = threading.get_ident()
        _SPEAKERS.setdefault(self._thread, []).append(self)
        if early:
            self._early = MemoryHandler(10_000, logging.CRITICAL + 1, flushOnClose=False)
            self._add(self._early)
        if path is not None:
            self.open(path)

    def open(self, path: Path) -> None:
        """Go on in a file; a ConfigError if it cannot be written."""
        try:
            file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as fault:
            raise ConfigError(f"cannot write {name_of(path)}: {fault.strerror or fault}") from None
        file.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
        if self._early is not None:
            self._early.setTarget(file)
            self._early.flush()
            self._logger.removeHandler(self._early)
        self._add(file)

    @contextlib.contextmanager
    def speaks(self) -> Iterator[None]:
        """Take what this thread logs inside."""
        speakers = _SPEAKERS.setdefault(threading.get_ident(), [])
        speakers.append(self)
        try:
            yield
        finally:
            speakers.remove(self)

    def _is_mine(self, record: logging.LogRecord) -> bool:
        speakers = _SPEAKERS.get(record.thread or 0)
        return not speakers or speakers[-1] is self

    def _add(self, handler: logging.Handler, level: int = logging.INFO) -> None:
        handler.setLevel(level)
        handler.addFilter(self._is_mine)
        self._logger.addHandler(handler)
        self._handlers.append(handler)
        _FOUND.append(self._logger.level)
        self._logger.setLevel(self._logger.level or min(logging.INFO, runtime.console_level))
        if len(self._handlers) == 1 and not logging.getLogger().handlers:
            console = logging.StreamHandler(sys.stderr)
            console.setFormatter(_Plain("%(message)s"))
            self._add(console, runtime.console_level)

    def close(self) -> None:
        """Leave the logger as it was."""
        if self in _SPEAKERS.get(self._thread, []):
            _SPEAKERS[self._thread].remove(self)
        while self._handlers:
            handler = self._handlers.pop()
            self._logger.removeHandler(handler)
            handler.close()
            self._logger.setLevel(_FOUND.pop())


class Summary:
    """The rows of a CSV file, in the order they were appended, whole on the disk at any moment.

    Columns keep their places. A row that brings a new one gets it at the right end, and the rows
    before it an empty cell there. The file is replaced as a whole, so a kill leaves no half row.
    A file that is there is read; a ConfigError if it is no table of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: list[str] = []
        self._rows: list[list[str]] = []
        try:
            text = path.read_text("utf-8-sig")
            table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigError(f"cannot read {name_of(path)}: {fault}") from None
        except csv.Error as fault:
            raise ConfigError(f"{name_of(path)}: not a CSV table: {fault}; move it away") from None
        self._header, self._rows = table[0] if table else [], table[1:]
        for line, row in enumerate(self._rows, start=2):
            if len(row) > len(self._header) or len(set(self._header)) != len(self._header):
                raise ConfigError(
                    f"{name_of(path)}, row {line}: {len(row)} cells under {len(self._header)} "
                    "columns; repair the file or move it away"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def last(self) -> dict[str, str]:
        """The cells of the last row by column; empty where there is no row."""
        return dict(zip(self._header, self._rows[-1] if self._rows else (), strict=False))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, column -> number, text or None (an empty cell), and write the file."""
        # The repr of a NumPy or torch scalar is no number.
        plain = {k: v.item() if callable(getattr(v, "item", None)) else v for k, v in row.items()}
        cells = {disk.csv_cell(name): disk.csv_cell(value) for name, value in plain.items()}
        self._header += [name for name in cells if name not in self._header]
        self._rows.append([cells.get(name, "") for name in self._header])
        self._write()

    def truncate(self, rows: int) -> None:
        """Keep the first `rows` rows; empty ones take the places of those that were lost."""
        lost = rows - len(self._rows)
        if lost == 0:
            return
        if lost > 0:
            log.warning("%s has lost %d of its %d rows", self.path, lost, rows)
        self._rows = self._rows[:rows] + [[] for _ in range(lost)]
        self._write()

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._header)
        writer.writerows(row + [""] * (len(self._header) - len(row)) for row in self._rows)
        disk.write_atomic(self.path, text.getvalue().encode("utf-8"), ConfigError)
