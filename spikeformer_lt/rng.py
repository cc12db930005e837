"""Seeds that depend on names only, and a way to draw numbers without disturbing anybody else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import random
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from spikeformer_lt.errors import ConfigError, shown

if TYPE_CHECKING:
    import torch

STREAM = threading.RLock()
"""Held while the global streams of random numbers are seeded and drawn from, by one thread."""


def seed_for(*parts: SupportsIndex | str) -> int:
    """Derive a seed in [0, 2**63) from integers and words: ``seed_for(seed, "augment", epoch, 7)``.

    The same parts give the same seed on every machine and Python; ``1`` and ``"1"`` differ.

    Raises:
        ConfigError: there is no part, or one is neither an integer nor a string.
    """
    if not parts:
        raise ConfigError("seed_for() was given nothing; give it at least one integer or string")
    return int.from_bytes(hashed(*map(_plain, parts))[:8], "big") >> 1


def generator_for(*parts: SupportsIndex | str) -> torch.Generator:
    """Make a CPU generator of its own, seeded by `seed_for`."""
    import torch

    return torch.Generator().manual_seed(seed_for(*parts))


def hashed(*parts: str | int) -> bytes:
    """Return the sha256 of some names and numbers, the order of samples in splits."""
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _plain(part: SupportsIndex | str) -> int | str:
    if isinstance(part, str):
        return part
    if isinstance(part, SupportsIndex) and not isinstance(part, bool):
        with contextlib.suppress(TypeError):  # an array of several numbers
            return operator.index(part)
    raise ConfigError(
        f"seed_for() was given {shown(part)} of type {type(part).__name__}; "
        "allowed are integers and strings; convert it first"
    )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators, and let no other thread seed or draw inside."""
    import torch

    with STREAM:
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators inside, with any integer.

    The three global streams go on after the block as if it had not been. Accelerators keep theirs.
    """
    import torch

    with STREAM, torch.random.fork_rng(devices=[]):
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.default_generator.manual_seed(seed % 2**63)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
