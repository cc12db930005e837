"""What a command names: tickets, files and registered names, checked before anything is loaded."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikeformer_lt import runtime
from spikeformer_lt.bundle import recover
from spikeformer_lt.errors import ConfigError, name_of, near, shown
from spikeformer_lt.registry import descriptions

SHIPPED = Path(__file__).parent / "pretrained"
"""Exports that come with this package, by the name of their model, or MODEL.NAME."""
PACKED = ("config.json", "model.safetensors")  # of an export
RULES = {
    "finished": "a run directory, a ticket folder or an export: {} DIR",
    "ticket": "a run directory or a ticket folder: {} DIR",
    "file": "a file: {} FILE",
    "new": "a new folder: {} DIR",
}
"""Kind of what an option names -> what it must be."""
KINDS = {
    "run": "finished", "runs": "finished", "ticket": "ticket", "source": "file", "out": "new",
}  # fmt: skip
"""Option that a recipe may need -> kind of what it names."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def shipped(name: str | Path) -> Path | None:
    """Folder of an export that comes with us, unless the path of that name exists."""
    found, alone = SHIPPED / name, len(Path(name).parts) == 1
    return found if alone and found.is_dir() and not Path(name).exists() else None


def check_needs(cfg: Any, needs: Sequence[str], dry: bool) -> None:
    """Raise a ConfigError unless what a recipe needs is named and there.

    Args:
        cfg: its configuration.
        needs: the options, of `KINDS`.
        dry: whether nothing comes after this, so that folders are looked into, and the names of
            data set and model are looked up.
    """
    for name in needs:
        value, kind = getattr(cfg, name), KINDS[name]
        if not value:
            rule = RULES[kind].format(f"--{name}")
            raise ConfigError(f"--{name} is missing: {rule}{' ...' * (value == ())}")
        for one in (value if isinstance(value, tuple) else (value,)) if kind != "new" else ():
            if kind == "file":
                check_file(name, one)
            else:
                check_ticket(name, one, kind, dry)
    for kind, option in (("dataset", "data"), ("model", "model")) if dry else ():
        value = getattr(cfg, option, "")
        inside = "" if isinstance(value, str) else ".name"
        check_known(f"{option}{inside}", kind, value if isinstance(value, str) else value.name)


def check_ticket(option: str, name: str, kind: str = "finished", dry: bool = True) -> None:
    """Raise a ConfigError unless a folder, or what comes with us, has that name.

    With `dry` its files are looked for, too. Nothing is opened.
    """
    place = (shipped(name) if kind == "finished" else None) or Path(name).expanduser()
    if not place.exists() and not dry:
        recover(place)  # of an export that was stopped while it was replaced
    if not place.exists():
        known = sorted(path.name for path in SHIPPED.iterdir()) if kind == "finished" else []
        rule = f"name {RULES[kind].partition(':')[0]}"
        rule += f", or what comes with us: {', '.join(known)}" if known else ""
        raise ConfigError(
            f"{option}={name_of(name)}: there is no such folder{near(name, known) or ';'} {rule}"
        )
    inner = next((place / own for own in ("trained", "ticket") if (place / own).is_dir()), place)
    there = (inner / "ticket.json").is_file() or (kind == "finished" and _packed(inner))
    if dry and not there:
        what = "is a file" if place.is_file() else "holds no ticket"
        raise ConfigError(f"{option}={name_of(name)} {what}: name {RULES[kind].partition(':')[0]}")


def _packed(place: Path) -> bool:
    return all((place / file).is_file() for file in PACKED)


def check_export(option: str, name: str) -> None:
    """Raise a ConfigError unless the files of an export are in a folder."""
    if not _packed(Path(name).expanduser()):
        what = "holds no export" if Path(name).expanduser().is_dir() else "is not there"
        rule = "a folder that spikeformer-lt export wrote"
        raise ConfigError(f"{option}={name_of(name)} {what}: name {rule}")


def check_file(option: str, name: str) -> None:
    """Raise a ConfigError unless a file, or a folder of files, has that name."""
    if not Path(name).expanduser().exists():
        raise ConfigError(f"{option}={name_of(name)}: there is no such file")


def check_repository(option: str, name: str) -> None:
    """Raise a ConfigError unless a name of the hub is OWNER/NAME."""
    if not REPOSITORY.fullmatch(name):
        rule = "OWNER/NAME, in letters, digits, '-', '_' and '.'"
        raise ConfigError(f"{option}={shown(name)} is not allowed: {rule}")


def check_known(option: str, kind: str, name: str) -> None:
    """Raise a ConfigError unless a "dataset" or "model" has that name; auto and "" pass."""
    known = descriptions(kind)
    if name not in ("", "auto") and name.partition(":")[0] not in known:
        hint = near(name, known) or f"; see spikeformer-lt ls {kind}s;"
        own = "one of your own needs its file, --plugins FILE.py"
        raise ConfigError(f"{option}={shown(name)} is not known{hint} {own}")


def refuse_options(variant: str, command: Sequence[str], flag: str) -> None:
    """Refuse now what the recipe of a run would refuse of its options when its turn comes.

    `command` is the recipe's file and its options; `flag` makes it stop after them.
    """
    argv, program, said = sys.argv, runtime.program, io.StringIO()
    sys.argv, runtime.program = [*command, flag], ""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            text = said.getvalue().strip().removeprefix("error: ")
            raise ConfigError(f"{variant}: {text}") from None
    finally:
        sys.argv, runtime.program = argv, program
