"""Images in memory, and batches in a fixed order, a function of (seed, epoch, index).

Each epoch's order and each sample's augmentation have a seed of their own, so that the number of
workers and processes and a resumed start change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spikeformer_lt.config import check
from spikeformer_lt.errors import STOPS, DataError, shown
from spikeformer_lt.images.augment import TrainTransform, normalize
from spikeformer_lt.images.folders import FileImages
from spikeformer_lt.rng import generator_for, hashed, isolated_rng, seed_for
from spikeformer_lt.runtime import open_files
from spikeformer_lt.splits import ImageDataset, described, in_proportion

Batch = tuple[Tensor, Tensor, Tensor]
Transform = Callable[[Tensor], Tensor]
"""One training sample, as its data set gives it, to augmented and normalised float32."""
Key = tuple[int, ...]  # epoch, index and, from its second time in an epoch on, which time


@dataclass(eq=False, repr=False)
class ArrayImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Labelled images in one tensor, as a map-style data set; what does not fit is a DataError."""

    name: str  # what messages call it, e.g. "cifar10 train"
    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N], each in [0, num_classes)
    _: KW_ONLY
    num_classes: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]; loaders normalise with it
    std: tuple[float, ...]  # as `mean`, above 0
    indices: Tensor = None  # type: ignore[assignment]  # int64 [N], in its source; default 0..N-1
    classes: tuple[str, ...] = ()  # names by class number; default the numbers

    __repr__ = described

    def __post_init__(self) -> None:
        name, images, labels = self.name, self.images, self.labels
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            given = str(images.dtype) if torch.is_tensor(images) else type(images).__name__
            raise DataError(f"{name}: images are {given}; allowed is uint8, 0 to 255: convert them")
        count, channels = (*images.shape, 0, 0)[:2]
        if images.ndim != 4 or not images.numel() or channels not in (1, 3):
            raise DataError(
                f"{name}: images have the shape {list(images.shape)}; needed is [N, C, H, W] with "
                f"nothing empty and 3 channels (RGB) or 1 (grey), not {channels} channels: images "
                "first, then channels; drop alpha, or move channels there"
            )
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
            tensor = torch.is_tensor(labels)
            given = f"{labels.dtype} {list(labels.shape)}" if tensor else type(labels).__name__
            raise DataError(f"{name}: labels are {given}; needed is int64 [{count}]")
        if len(labels) != count:
            raise DataError(f"{name}: {len(labels)} labels for {count} images; one each is needed")
        wrong = torch.nonzero((labels < 0) | (labels >= self.num_classes)).flatten().tolist()
        if wrong:
            raise DataError(
                f"{name}: label {int(labels[wrong[0]])} at index {wrong[0]} is outside "
                f"[0, {self.num_classes}); {len(wrong)} labels are"
            )
        self.mean, self.std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        if {len(self.mean), len(self.std)} != {channels} or min(self.std) <= 0:
            raise DataError(
                f"{name}: mean {self.mean} and std {self.std} do not fit images of {channels} "
                "channels; one number a channel is needed, each std above 0"
            )
        self.classes = tuple(self.classes) or tuple(map(str, range(self.num_classes)))
        if len(self.classes) != self.num_classes:
            raise DataError(
                f"{name}: {len(self.classes)} names of classes for {self.num_classes} classes"
            )
        if self.indices is None:
            self.indices = torch.arange(count)
        if self.indices.shape != self.labels.shape or self.indices.dtype != torch.int64:
            raise DataError(f"{name}: indices must be int64 [{count}], one for each image")
        self.images, self.labels = self.images.contiguous(), self.labels.contiguous()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image `index` as uint8 [C, H, W], and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, no number {index}")
        return self.images[index], int(self.labels[index])

    def take(self, positions: Tensor, name: str | None = None) -> ArrayImages:
        """Return the images at `positions` (int64 [n]) as a data set of their own."""
        parts = {part: getattr(self, part)[positions] for part in ("images", "labels", "indices")}
        return replace(self, name=name or self.name, **parts)

    @cached_property
    def digests(self) -> list[bytes]:
        """A hash of the pixels of each image, in order."""
        rows = self.images.flatten(1).numpy()
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


class Augmentation(Protocol):
    """What happens to training samples: `images.Augment`, or `events.EventAugment`."""

    def check(self) -> None:
        """Refuse values out of range."""

    def is_identity(self) -> bool:
        """Whether nothing random is on."""

    def build(self, mean: Sequence[float], std: Sequence[float], image_size: int) -> Transform:
        """Make the transform of one sample."""


def _seed_all(seed: int) -> None:
    """Seed the three global generators that an augmentation may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm draws from it)
    torch.default_generator.manual_seed(seed)


@dataclass(eq=False, repr=False)
class BatchReader:
    """Reads whole batches by their keys, in the main process or in a worker."""

    dataset: ImageDataset
    transform: Transform | None  # augments and normalises one image, or None to normalise only
    seed: int = 0  # of the run; with epoch and index it seeds the augmentation of a sample

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | DataError:
        """Return the batch of `keys`, or what went wrong with it, to be raised where it is read."""
        places = torch.tensor([key[1] for key in keys], dtype=torch.int64)
        try:
            if self.transform is not None:
                images = self._augmented(keys, self.transform)
            elif isinstance(self.dataset, ArrayImages):
                images = self.dataset.images[places]
            else:
                images = torch.stack([self._read(int(place)) for place in places])
        except DataError as fault:
            return DataError(str(fault))
        if self.transform is None:
            images = normalize(images, self.dataset.mean, self.dataset.std)
        return images, self.dataset.labels[places], places

    def _augmented(self, keys: Sequence[Key], transform: Transform) -> Tensor:
        images = []
        seeds = [seed_for(self.seed, "augment", *key) for key in keys]
        whole = isinstance(transform, TrainTransform) and transform.shifts_alone
        if whole and isinstance(self.dataset, ArrayImages):
            taken = self.dataset.images[[key[1] for key in keys]]
            return cast(TrainTransform, transform).shifted(taken, seeds)
        # Saving the three global states costs more than an augmentation: once a batch is enough.
        with isolated_rng(0):
            for key, seed in zip(keys, seeds, strict=True):
                index = key[1]
                if not isinstance(self.dataset, ArrayImages | FileImages):
                    _seed_all(seed)  # theirs may draw as it is read
                image = self._read(index, getattr(transform, "opens", False))
                _seed_all(seed)
                try:
                    images.append(transform(image))
                except Exception as fault:
                    raise self._fault("augment", index, fault) from fault
        return torch.stack(images)

    def _read(self, index: int, opened: bool = False) -> Any:
        try:
            if opened and isinstance(self.dataset, FileImages):
                return self.dataset.opened(index)
            return self.dataset[index][0]
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as fault:  # a panic of a compiled reader is not an Exception
            raise self._fault("read", index, fault) from fault

    def _fault(self, act: str, index: int, fault: BaseException) -> DataError:
        return DataError(
            f"{self.dataset.name}: cannot {act} sample {index}: {type(fault).__name__}: "
            f"{shown(str(fault), 300)}"
        )


@dataclass(frozen=True)
class Shuffled(Sequence[Sequence[Key]]):
    """The batches of a rank in an epoch, each made when it is asked for; see `train_loader`."""

    samples: int
    batch_size: int
    seed: int
    epoch: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    repeats: int = 1  # times that a drawn sample comes
    accumulate: int = 1  # batches of one update; those that fill none are left out

    def __len__(self) -> int:
        """Return the number of batches from the first step on."""
        whole = self.samples // (self.batch_size * self.world_size * self.accumulate)
        return whole * self.accumulate - self.start_step

    def __getitem__(self, step: Any) -> Any:
        """Return the keys of a batch."""
        whole = range(self.start_step, self.start_step + len(self))[step] * self.world_size
        first = (whole + self.rank) * self.batch_size
        places = torch.arange(first, first + self.batch_size)
        drawn = self._order[places // self.repeats].tolist()
        pairs = zip(drawn, (places % self.repeats).tolist(), strict=True)
        return [(self.epoch, i, turn) if turn else (self.epoch, i) for i, turn in pairs]

    @cached_property
    def _order(self) -> Tensor:
        return torch.randperm(self.samples, generator=generator_for(self.seed, "order", self.epoch))


@dataclass
class Passes:
    """The batches of a pass, and of the epochs after it up to `until`."""

    until: int
    batches: Sequence[Sequence[Key]] = ()

    def __iter__(self) -> Iterator[Sequence[Key]]:
        """Yield them one after another."""
        batches: Sequence[Sequence[Key]] | None = self.batches
        while batches is not None:
            yield from batches
            batches = self.after(batches)

    def after(self, batches: Sequence[Sequence[Key]]) -> Shuffled | None:
        """Return the epoch after one; None where none follows."""
        if isinstance(batches, Shuffled) and batches.epoch + 1 < self.until:
            return replace(batches, epoch=batches.epoch + 1, start_step=0)
        return None


class Workers:
    """Processes that load, kept from one pass over a data set to the next.

    Of `until` epochs that follow one another each is begun before the one before it is used up.
    """

    def __init__(self, until: int = 0) -> None:
        self._passes = Passes(until)
        self._next: Shuffled | None = None  # what comes when those that are left were taken
        self._left = 0
        self._loader: DataLoader[Batch] | None = None
        self._waiting: Iterator[Batch | DataError] = iter(())

    def load(
        self, reader: BatchReader, batches: Sequence[Sequence[Key]], count: int, pin_memory: bool
    ) -> None:
        """Begin a pass, by the processes of the one before and their reader."""
        if self._loader is None:
            # A generator of its own: by default a DataLoader draws from the global stream.
            self._loader = DataLoader(
                cast("Dataset[Batch]", reader),
                batch_sampler=cast("list[list[int]]", self._passes),
                num_workers=count,
                collate_fn=_as_it_is,
                pin_memory=pin_memory,
                worker_init_fn=_leave_signals_to_main if count else None,
                generator=torch.Generator(),
                persistent_workers=count > 0,
            )
        if self._left or batches != self._next:
            self._passes.batches = batches
            with _stop_signals_held(count > 0):
                self._waiting = iter(self._loader)
        self._left, self._next = len(batches), self._passes.after(batches)

    def take(self) -> Batch | DataError:
        """Return the next batch of the pass."""
        self._left -= 1
        return next(self._waiting)

    def close(self) -> None:
        """End the processes: left to itself that waits for the garbage collector."""
        waiting = cast("Any", self._loader)._iterator if self._loader is not None else None
        self._loader, self._next, self._waiting = None, None, iter(())
        if waiting is not None:
            waiting._shutdown_workers()


@dataclass(eq=False, repr=False)
class Loader:
    """Batches of one pass: (images float32 [B, C, H, W], labels int64 [B], indices int64 [B]).

    Each iteration gives the same. A sample that cannot be read (it is named) and the death of a
    worker are a DataError.
    """

    _reader: BatchReader
    _batches: Sequence[Sequence[Key]]
    _workers: int
    _pin_memory: bool
    _kept: Workers | None = None

    def __post_init__(self) -> None:
        check(self._workers >= 0, "workers", self._workers, "0 (none) or more processes")
        need, most = 24 + (24 if self._kept else 12) * self._workers, open_files()
        rule = f"a worker holds about 12 of the {most} files that may be open: raise ulimit -n"
        check(self._workers == 0 or need <= most, "workers", self._workers, rule)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order."""
        own = self._kept or Workers()
        try:
            own.load(self._reader, self._batches, self._workers, self._pin_memory)
            for step in range(len(self)):
                yield self._next(own, step)
        except DataError:  # a worker may be dead
            own.close()
            raise
        finally:
            if own is not self._kept:
                own.close()

    def _next(self, own: Workers, step: int) -> Batch:
        try:
            batch = own.take()
        except RuntimeError as fault:
            if not self._workers:
                raise
            keys = self._batches[step]
            raise DataError(
                f"{self._reader.dataset.name}: a worker died before batch {step} (samples "
                f"{keys[0][1]} to {keys[-1][1]} of its order) was ready: {shown(str(fault), 300)}; "
                "with workers=0 the fault shows where it happens"
            ) from fault
        if isinstance(batch, DataError):
            raise batch
        return batch


def _as_it_is(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def _stop_signals_held(really: bool) -> Iterator[None]:
    """Hold stop signals while workers start; they inherit it, so no moment lies between.

    A signal to the whole group is for the main process: it saves and stops, and a worker heeds no
    SIGTERM but its parent's.
    """
    if not (really and hasattr(signal, "sigwaitinfo")):  # Linux
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _leave_signals_to_main(worker: int) -> None:
    del worker
    for signum in STOPS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_on_word_of, args=(os.getppid(),), daemon=True).start()


def _end_on_word_of(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid not in (parent, os.getpid()):
        pass
    os._exit(0)


def steps_per_epoch(dataset: ImageDataset, batch_size: int, world_size: int = 1) -> int:
    """Return the number of whole global batches, `batch_size` in each process, in a data set."""
    check(batch_size >= 1, "batch_size", batch_size, "1 or more")
    check(world_size >= 1, "world_size", world_size, "1 or more")
    together = batch_size * world_size
    if len(dataset) < together:
        raise DataError(
            f"{dataset.name} has {len(dataset)} samples, less than one global batch of {together} "
            f"(batch_size={batch_size} in {world_size} processes): no step would be made; use a "
            "smaller batch_size or more samples"
        )
    return len(dataset) // together


def train_loader(
    dataset: ImageDataset,
    augment: Augmentation,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    *,
    pin_memory: bool = False,
    kept: Workers | None = None,
    accumulate: int = 1,
) -> Loader:
    """Return the training batches of one epoch, counted from 0, shuffled and augmented.

    The batches of all ranks at one step, put together in rank order, are the batch that a single
    process with ``batch_size * world_size`` would get. Samples that fill no global batch are left
    out of this epoch.

    Args:
        batch_size: samples a process takes in one step.
        start_step: steps to skip, without loading them.
        workers: processes that load; 0 loads in this one.
        pin_memory: put batches into page-locked memory, for a GPU.
        kept: processes that passes with the same data, augmentation and seed take one after
            another; without, each pass starts its own.
        accumulate: batches of one update; those at the end that fill none are left out.

    Raises:
        ConfigError: a number out of range, or as `Augment.check`.
        DataError: `dataset` is smaller than one global batch.
    """
    steps = steps_per_epoch(dataset, batch_size, world_size)
    _check_rank(rank, world_size)
    told = f"an epoch has {steps} steps"
    check(1 <= accumulate <= steps, "accumulate", accumulate, told)
    check(0 <= start_step <= steps // accumulate * accumulate, "start_step", start_step, told)
    augment.check()
    transform = None
    if not augment.is_identity():
        # Built here, not in the workers: each of them would import timm anew.
        transform = augment.build(dataset.mean, dataset.std, dataset[0][0].shape[-1])
    repeats: int = getattr(augment, "repeats", 1)
    batches = Shuffled(
        len(dataset), batch_size, seed, epoch, start_step, rank, world_size, repeats, accumulate
    )
    return Loader(BatchReader(dataset, transform, seed), batches, workers, pin_memory, kept)


def eval_loader(
    dataset: ImageDataset,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    *,
    pin_memory: bool = False,
    kept: Workers | None = None,
) -> Loader:
    """Return every sample exactly once over all ranks, in order, normalised and else unchanged.

    Rank r gets samples r, r + world_size, ...; nothing is padded, so ranks may differ by one
    sample, and the last batch may be short. The arguments are those of `train_loader`.
    """
    check(batch_size >= 1, "batch_size", batch_size, "1 or more")
    _check_rank(rank, world_size)
    mine = [(0, index) for index in range(rank, len(dataset), world_size)]
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    return Loader(BatchReader(dataset, None), batches, workers, pin_memory, kept)


def sample_loader(dataset: ImageDataset, count: int, batch_size: int = 64, seed: int = 0) -> Loader:
    """Return `count` samples that stand for the set, or all, drawn by hash, normalised.

    The classes are in proportion, in every batch too, however the set is sorted.
    """
    check(count >= 1, "count", count, "1 or more")
    order = partial(hashed, dataset.name, seed)
    chosen = in_proportion(dataset.labels.tolist(), count, order)
    batches = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
    keys = [[(0, index) for index in batch] for batch in batches]
    return Loader(BatchReader(dataset, None), keys, 0, False)


def _check_rank(rank: int, world_size: int) -> None:
    check(0 <= rank < world_size, f"rank={rank} of world_size", world_size, "0 to size - 1")
