"""One living process a run directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

from spikeformer_lt.errors import ConfigError, shown

__all__ = ["in_use", "take_lock"]

LOCK = ".lock"


def take_lock(folder: Path) -> IO[bytes] | None:
    """Claim a directory until the returned file is closed or this process ends, however it ends.

    The lock is the process's own: forked loader workers that outlive a killed parent do not hold
    it, and a process never locks itself out. A system without such locks lets everybody in.

    Raises:
        ConfigError: a living process has the directory.
        OSError: the directory cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = open(folder / LOCK, "a+b")  # noqa: SIM115 - open as long as the lock is held
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        file.seek(0)
        owner = file.read(20).decode("ascii", "replace").strip()
        file.close()
        if fault.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(
                f"{shown(str(folder), 300)} is in use by process {shown(owner)[1:-1]}; wait "
                "for it, stop it, or choose another run directory"
            ) from None
        return None
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    file.flush()
    return file


def in_use(folder: Path) -> bool:
    """Whether another living process has a directory; False where a system has no such locks.

    Do not ask for a directory that this process has: closing the file would give it up.
    """
    try:
        with open(folder / LOCK, "r+b") as file:
            os.lockf(file.fileno(), os.F_TEST, 0)
    except (FileNotFoundError, AttributeError):  # no run yet; Windows
        return False
    except OSError as fault:
        return fault.errno in (errno.EACCES, errno.EAGAIN)
    return False
