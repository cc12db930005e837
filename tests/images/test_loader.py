from __future__ import annotations

import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import (
    ArrayImages,
    Augment,
    eval_loader,
    normalize,
    steps_per_epoch,
    train_loader,
)
from spikeformer_lt.images.loader import BatchReader, Shuffled, Workers, sample_loader
from spikeformer_lt.rng import isolated_rng, seed_for

PAPER = Augment.standard("spikformer_cifar")


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def data(random_images):
    return random_images(50, size=16)


@pytest.fixture
def epoch(data):
    return list(train_loader(data, PAPER, 8, seed=1, epoch=2))


def test_a_batch_is_float_images_with_their_labels_and_indices(data, epoch):
    assert len(epoch) == 6  # 50 samples: two are left out
    for images, labels, indices in epoch:
        assert (images.dtype, images.shape) == (torch.float32, (8, 3, 16, 16))
        assert labels.dtype == indices.dtype == torch.int64
        assert torch.equal(labels, data.labels[indices])
    seen = torch.cat([indices for _, _, indices in epoch]).tolist()
    assert len(set(seen)) == 48


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.fault(45)
def test_workers_change_nothing(data, epoch, workers):
    same(epoch, list(train_loader(data, PAPER, 8, seed=1, epoch=2, workers=workers)))
    same(list(eval_loader(data, 8)), list(eval_loader(data, 8, workers=workers)))


@pytest.mark.parametrize("start", [0, 1, 4, 6])
@pytest.mark.fault(6)
def test_a_resumed_epoch_goes_on_as_if_it_had_not_stopped(data, epoch, start):
    loader = train_loader(data, PAPER, 8, seed=1, epoch=2, start_step=start)
    assert len(loader) == 6 - start
    same(list(loader), epoch[start:])


def test_a_second_pass_gives_the_same(data):
    loader = train_loader(data, PAPER, 8, seed=1, epoch=2)
    same(list(loader), list(loader))


@pytest.mark.parametrize("augment", [PAPER, Augment()])
@pytest.mark.fault(41)
def test_ranks_together_see_what_one_process_sees(data, augment):
    whole = list(train_loader(data, augment, 12, seed=1, epoch=2))
    ranks = [
        list(train_loader(data, augment, 4, seed=1, epoch=2, rank=r, world_size=3))
        for r in range(3)
    ]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True))
        for step in zip(*ranks, strict=True)
    ]
    same(joined, whole)


def test_epochs_and_seeds_differ(data):
    def order(seed, epoch):
        loader = train_loader(data, Augment(), 8, seed=seed, epoch=epoch)
        return torch.cat([indices for _, _, indices in loader]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4))
@pytest.mark.fault(38)
def test_evaluation_gives_every_sample_once_over_all_ranks(count, batch_size, world_size):
    from spikeformer_lt.images import ArrayImages

    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    data = ArrayImages("n", images, torch.zeros(count).long(), num_classes=1, mean=[0.5], std=[0.5])
    seen = []
    for rank in range(world_size):
        batches = list(eval_loader(data, batch_size, rank=rank, world_size=world_size))
        mine = [i for _, _, indices in batches for i in indices.tolist()]
        assert mine == list(range(rank, count, world_size))
        assert all(len(indices) == batch_size for _, _, indices in batches[:-1])
        for pixels, _, indices in batches:
            assert torch.equal(pixels, normalize(data.images[indices], [0.5], [0.5]))
        seen += mine
    assert sorted(seen) == list(range(count))


def test_workers_that_are_kept_give_what_new_ones_do(data):
    """Three passes, the second left in its middle, by the same two processes."""
    kept, pids = Workers(), []

    def passed(epoch, own=None):
        return iter(train_loader(data, PAPER, 8, seed=1, epoch=epoch, workers=2, kept=own))

    for epoch in range(3):
        new, old = passed(epoch), passed(epoch, kept)
        same([next(new)] if epoch == 1 else list(new), [next(old)] if epoch == 1 else list(old))
        new.close(), old.close()
        pids.append({child.pid for child in multiprocessing.active_children()})
    assert len(pids[0]) == 2 and pids[0] == pids[1] == pids[2]
    kept.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_begun_ahead_of_its_time_and_gives_the_same(data, workers, monkeypatch):
    """Epochs in order, one left in its middle and one resumed; none is begun behind the last."""
    kept, asked, own = Workers(until=4), set(), Shuffled.__getitem__
    monkeypatch.setattr(Shuffled, "__getitem__", lambda s, i: asked.add(s.epoch) or own(s, i))
    for epoch, start, left in ((0, 0, 0), (1, 0, 4), (2, 1, 0), (3, 0, 0)):
        how = {"seed": 1, "epoch": epoch, "start_step": start}
        new = list(train_loader(data, PAPER, 8, **how))
        asked.clear()
        old = iter(train_loader(data, PAPER, 8, **how, workers=workers, kept=kept))
        same(new[: 6 - left], [next(old) for _ in range(6 - start - left)])
        assert (epoch + 1 in asked) == (workers > 0 and epoch in (0, 2))
        assert epoch + 2 not in asked
    kept.close()


def test_batches_that_fill_no_update_are_left_out_and_keep_no_epoch_waiting(data, monkeypatch):
    """50 samples are 6 batches of 8, and one update of 4."""
    kept, asked, own = Workers(until=2), set(), Shuffled.__getitem__
    monkeypatch.setattr(Shuffled, "__getitem__", lambda s, i: asked.add(s.epoch) or own(s, i))
    for epoch in (0, 1):
        whole = list(train_loader(data, PAPER, 8, seed=1, epoch=epoch))
        assert 1 in asked or epoch == 0  # begun while the first was used
        how = {"seed": 1, "epoch": epoch, "workers": 2, "kept": kept, "accumulate": 4}
        same(whole[:4], list(train_loader(data, PAPER, 8, **how)))
    kept.close()
    for how in ({"accumulate": 8}, {"accumulate": 0}, {"accumulate": 4, "start_step": 5}):
        with pytest.raises(ConfigError, match="an epoch has 6 steps"):
            train_loader(data, PAPER, 8, seed=1, epoch=0, **how)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_streams_do_not_notice(data, workers):
    def streams():
        numpy_state = np.random.get_state()  # noqa: NPY002
        return random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist()

    before = streams()
    for _ in train_loader(data, PAPER, 8, seed=1, epoch=0, workers=workers):
        pass
    for _ in eval_loader(data, 8, workers=workers):
        pass
    assert streams() == before


class Faulty:
    """Reads a data set, and does something else at sample 13."""

    def __init__(self, data, act):
        self.data, self.act = data, act
        self.name, self.labels, self.mean, self.std = data.name, data.labels, data.mean, data.std
        self.read = []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.read.append(index)
        if index == 13:
            self.act()
        return self.data[index]


def fail():
    raise OSError("file photos/13.png is cut")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_fails_stops_the_run_by_its_name(data, workers):
    loader = eval_loader(Faulty(data, fail), 8, workers=workers)
    got = []
    with pytest.raises(DataError) as caught:
        got.extend(loader)
    assert len(got) == 1
    assert str(caught.value) == (
        "made up: cannot read sample 13: OSError: 'file photos/13.png is cut'"
    )


@pytest.mark.fault(42)
def test_a_worker_that_dies_is_an_error_with_its_batch(data):
    loader = eval_loader(Faulty(data, lambda: os._exit(9)), 8, workers=1)
    with pytest.raises(DataError) as caught:
        list(loader)
    # Batch 1 kills it, perhaps before batch 0 has left.
    batch = r"(0 \(samples 0 to 7|1 \(samples 8 to 15) of its order"
    assert re.match(f"made up: a worker died before batch {batch}", str(caught.value))


def test_skipped_steps_are_not_loaded(data, epoch):
    counted = Faulty(data, lambda: None)
    loader = train_loader(counted, PAPER, 8, seed=1, epoch=2, start_step=5)
    counted.read.clear()  # one sample was read for its size
    list(loader)
    assert counted.read == epoch[5][2].tolist()


def test_a_signal_to_the_group_leaves_the_workers_to_the_main_process(data, epoch):
    got = []
    for batch in train_loader(data, PAPER, 8, seed=1, epoch=2, workers=2):
        if not got:  # one worker has given a batch, the other may still be starting
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            for worker in workers:
                subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
                subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
        got.append(batch)
    same(got, epoch)


def test_workers_end_with_an_error_although_its_traceback_is_kept(data):
    with pytest.raises(DataError) as caught:
        list(eval_loader(Faulty(data, fail), 8, workers=2))
    assert caught.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


def test_workers_of_an_abandoned_pass_do_not_keep_the_process_from_ending():
    script = """
import torch
from spikeformer_lt.images import ArrayImages, eval_loader
data = ArrayImages("x", torch.zeros(400, 3, 8, 8, dtype=torch.uint8), torch.zeros(400).long(),
                   num_classes=1, mean=[0] * 3, std=[1] * 3)
kept = iter(eval_loader(data, 2, workers=2))
next(kept)
"""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert time.monotonic() - start < 40


@pytest.mark.fault(38)
def test_a_set_smaller_than_a_global_batch_is_refused_with_both_numbers(data):
    assert steps_per_epoch(data, 25, 2) == 1
    with pytest.raises(DataError, match=r"has 50 samples, less than one global batch of 52 "):
        train_loader(data, PAPER, 26, seed=0, epoch=0, world_size=2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"start_step": 7}, "an epoch has 6 steps"),
        ({"start_step": -1}, "start_step=-1"),
        ({"workers": -1}, "workers=-1"),
        ({"rank": 1}, "rank=1 of world_size=1"),
        ({"world_size": 0}, "world_size=0"),
        ({"augment": Augment(hflip=2.0)}, "hflip=2.0"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(data, options, complaint):
    options = {"augment": PAPER, "batch_size": 8, "seed": 0, "epoch": 0} | options
    with pytest.raises(ConfigError, match=complaint):
        train_loader(data, **options)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"workers": -1}]
)
def test_evaluation_refuses_a_number_out_of_range(data, options):
    with pytest.raises(ConfigError, match="is not allowed"):
        eval_loader(data, **({"batch_size": 8} | options))


KEYS = [(3, 5), (3, 1), (4, 5)]


@pytest.mark.parametrize("name", ["spikformer_cifar", "digits", "crop8_flip", "crop4_flip_cutout"])
def test_each_sample_is_augmented_under_its_own_seed(name, random_images):
    data = random_images(8, size=16)
    transform = Augment.standard(name).build(data.mean, data.std, 16)
    assert transform.shifts_alone == (name in ("digits", "crop8_flip"))
    images, labels, indices = BatchReader(data, transform, seed=7).__getitems__(KEYS)
    for (epoch, index), image in zip(KEYS, images, strict=True):
        with isolated_rng(seed_for(7, "augment", epoch, index)):
            assert torch.equal(image, transform(data.images[index]))
    assert labels.tolist() == [1, 1, 1]
    assert indices.tolist() == [5, 1, 5]
    assert not torch.equal(images[0], images[2])  # another epoch is another draw


def test_without_a_transform_a_batch_is_normalised_whole(random_images):
    data = random_images(8)
    images, _, _ = BatchReader(data, None).__getitems__(KEYS)
    assert torch.equal(images, normalize(data.images[[5, 1, 5]], data.mean, data.std))
    assert images.dtype == torch.float32


class Unhappy:
    """A data set of float frames whose sample 5 cannot be read."""

    name = "photos"
    labels = torch.zeros(8, dtype=torch.int64)
    mean, std = (0.0,), (2.0,)

    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5 and self.fault:
            raise self.fault
        return torch.full((1, 4, 4), float(index)), 0


def test_any_data_set_of_its_form_is_read():
    images, _, _ = BatchReader(Unhappy(), None).__getitems__([(0, 4), (0, 6)])
    assert images[:, 0, 0, 0].tolist() == [2.0, 3.0]


class Panic(BaseException):
    """What a compiled reader throws: not an Exception."""


@pytest.mark.parametrize("fault", [OSError("disk gone\nmore"), Panic("index"), KeyError("x")])
@pytest.mark.parametrize("augment", [None, Augment(hflip=0.5)])
def test_a_sample_that_cannot_be_read_is_named_with_its_fault_in_one_line(fault, augment):
    data = Unhappy(fault)
    transform = augment and augment.build(data.mean, data.std, 4)
    answer = BatchReader(data, transform).__getitems__([(0, 4), (0, 5)])
    assert isinstance(answer, DataError)
    assert str(answer).startswith(f"photos: cannot read sample 5: {type(fault).__name__}: ")
    assert "\n" not in str(answer)


def test_an_augmentation_that_fails_names_the_sample(random_images):
    def burst(image):
        raise ValueError("too small")

    answer = BatchReader(random_images(8), burst).__getitems__(KEYS)
    assert str(answer) == "made up: cannot augment sample 5: ValueError: 'too small'"


def test_an_interrupt_is_not_taken_for_a_bad_sample():
    with pytest.raises(KeyboardInterrupt):
        BatchReader(Unhappy(KeyboardInterrupt()), None).__getitems__([(0, 5)])


@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=8), st.integers(1, 200), st.integers(1, 40)
)
@pytest.mark.fault(71)
def test_a_sample_stands_for_a_sorted_set_in_every_batch(sizes, count, batch):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))  # class by class
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    known = {"num_classes": len(sizes), "mean": (0.5,), "std": (0.5,)}
    data = ArrayImages("sorted", images, labels, **known)
    batches = list(sample_loader(data, count, batch, seed=3))
    same(batches, list(sample_loader(data, count, batch, seed=3)))
    places = torch.cat([indices for _, _, indices in batches])
    assert len(set(places.tolist())) == len(places) == min(count, len(data))
    for taken in (places, *(places[:n] for n in range(1, len(places), 7))):
        found = torch.bincount(labels[taken], minlength=len(sizes))
        wanted = torch.tensor(sizes) * len(taken) / len(data)
        assert float((found - wanted).abs().max()) < 1 + len(sizes) / 2


def test_a_sample_depends_on_its_seed(data):
    drawn = [next(iter(sample_loader(data, 9, 9, seed)))[2].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ConfigError, match="count=0"):
        sample_loader(data, 0)


def test_workers_without_files_for_their_pipes_are_refused(data, monkeypatch):
    monkeypatch.setattr("spikeformer_lt.images.loader.open_files", lambda: 30)
    with pytest.raises(ConfigError, match=r"workers=2 is not allowed: .*raise ulimit -n"):
        eval_loader(data, 8, workers=2)
    assert len(list(eval_loader(data, 25))) == 2


def test_repeats_are_the_same_pictures_each_augmented_anew(random_images):
    data = random_images(24)
    once = Augment(crop_padding=2)
    plain = [places for _, _, places in train_loader(data, once, 4, 1, 0)]
    loader = train_loader(data, replace(once, repeats=3), 6, 1, 0)
    batches = list(loader)
    assert len(batches) == 4 and len(plain) == 6
    for images, _, places in batches:
        assert places.tolist() == [place for place in places[::3].tolist() for _ in range(3)]
        assert not torch.equal(images[0], images[1])
    seen = torch.cat([places[::3] for _, _, places in batches])
    assert seen.tolist() == torch.cat(plain)[:8].tolist()
    ranks = [
        list(train_loader(data, replace(once, repeats=3), 3, 1, 0, rank=r, world_size=2))
        for r in (0, 1)
    ]
    together = [torch.cat([a[0], b[0]]) for a, b in zip(*ranks, strict=True)]
    assert all(torch.equal(a, b[0]) for a, b in zip(together, batches, strict=True))


class Drawing(Unhappy):
    """A data set that draws as it is read."""

    def __getitem__(self, index):
        return torch.rand(1, 4, 4), 0


def test_what_a_data_set_draws_is_of_seed_epoch_and_index():
    transform = Augment(hflip=0.5).build((0.0,), (1.0,), 4)
    reader = BatchReader(Drawing(), transform)
    first, *others = (reader.__getitems__(keys)[0] for keys in (
        [(0, 4), (0, 5)], [(0, 5), (0, 4)], [(1, 4), (1, 5)],
    ))  # fmt: skip
    assert torch.equal(others[0], first.flip(0))
    assert not torch.equal(others[1][0], first[0])
