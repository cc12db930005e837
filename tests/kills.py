"""Kills at every operation that changes the disk; for tests that run in a process of their own."""

from __future__ import annotations

import builtins
import os
import sys


class Killed(BaseException):
    """Ends work inside this process; nothing that changes the disk works after it."""


class Bomb:
    """Ends work at the n-th operation that changes the disk, and lets none happen after it.

    Args:
        real: end the process, as a kill does; else raise, which is the same to the disk and faster.
    """

    CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link")

    def __init__(self) -> None:
        self.fuse: int | None = None
        self.real = False
        self.open = builtins.open
        sys.addaudithook(self.hear)
        builtins.open = self.opened  # type: ignore[assignment]
        # A kill, unlike a power cut, spares what the system holds; an fsync is only counted.
        os.fsync = lambda handle: self.tick()

    def tick(self) -> bool:
        if self.fuse is None:
            return False
        self.fuse -= 1
        if self.fuse >= 0:
            return False
        if self.real:
            os._exit(9)
        raise Killed

    def hear(self, event: str, arguments: tuple) -> None:
        if event in self.CHANGING or (event == "open" and arguments[2] & os.O_CREAT):
            self.tick()

    def opened(self, path, mode="r", *rest, **more):
        file = self.open(path, mode, *rest, **more)
        if "r" in mode or self.fuse is None:
            return file

        def torn(data):
            half = len(data) // 2
            write(data[:half])
            flush()
            self.tick()
            return half + write(data[half:])

        write, flush = file.write, file.flush
        return Handle(file, torn)

    def survives(self, work, fuse: int, real: bool) -> bool:
        """Whether `work` is done before operation number `fuse`."""
        if real:

            def child() -> None:
                self.fuse, self.real = fuse, True
                work()

            status = os.waitstatus_to_exitcode(os.waitpid(forked(child), 0)[1])
            assert status in (0, 9), status
            return status == 0
        self.fuse = fuse
        try:
            work()
        except Killed:
            return False
        finally:
            self.fuse = None
        return True


class Handle:
    """A file whose writes can tear."""

    def __init__(self, file, write) -> None:
        self.file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self.file, name)

    def writelines(self, parts):
        for part in parts:
            self.write(part)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def forked(work) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as fault:
            print(f"child: {fault!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid
