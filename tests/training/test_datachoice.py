"""Which data a run meets."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.events.augment import EventAugment
from spikeformer_lt.images.augment import Augment, Mixing
from spikeformer_lt.tickets import MultiSpConfig
from spikeformer_lt.training.experiment import augmentation
from spikeformer_lt.training.options import (
    MOVING,
    DataConfig,
    EventDataConfig,
    ModelConfig,
    RunConfig,
    load_splits,
)
from spikeformer_lt.training.settle import CIFAR10, CIFAR10_DVS, DVS128_GESTURE, settle


@dataclass(frozen=True)
class Recipe:
    """What settle needs."""

    data: EventDataConfig = field(default_factory=EventDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    run: RunConfig = field(default_factory=RunConfig)


@pytest.mark.parametrize(
    ("wanted", "sign"),
    [
        (CIFAR10, "cifar-10-python.tar.gz"),
        (DVS128_GESTURE, "DVSGesture/ibmGestureTrain"),
        (DVS128_GESTURE, "a/b/DvsGesture"),
        (CIFAR10_DVS, "CIFAR10DVS"),
    ],
)
def test_auto_takes_what_is_on_disk_and_else_the_embedded_set_and_says_so(tmp_path, wanted, sign):
    asked = Recipe(data=EventDataConfig(root=str(tmp_path)))
    cfg, notice, taken = settle(asked, wanted, "moving_digits", {"model.T": 8})
    assert (cfg.data.name, cfg.model.T, taken) == ("moving_digits", 8, "model.T=8")
    assert f"{wanted.title} is not under {tmp_path}/" in notice
    (tmp_path / sign).mkdir(parents=True)
    cfg, notice, taken = settle(asked, wanted, "moving_digits", {"model.T": 8})
    assert (cfg.data.name, cfg.model.T, notice, taken) == (wanted.name, 4, "", "")


def test_auto_does_not_take_files_where_their_reader_does_not_look(tmp_path):
    (tmp_path / "below" / "cifar-10-batches-py").mkdir(parents=True)
    asked = Recipe(data=EventDataConfig(root=str(tmp_path)))
    assert settle(asked, CIFAR10, "digits", {})[0].data.name == "digits"
    asked = Recipe(data=EventDataConfig(root=str(tmp_path / "below")))
    assert settle(asked, CIFAR10, "digits", {})[0].data.name == "cifar10"


@dataclass(frozen=True)
class Searching(Recipe):
    """A recipe of MultiSp."""

    multisp: MultiSpConfig = field(default_factory=MultiSpConfig)


def test_an_embedded_set_may_have_values_of_its_own():
    small, given = {"model.T": 8}, {"multisp.epochs": MOVING["moving_gestures"]["multisp.epochs"]}
    assert given != {"multisp.epochs": MultiSpConfig().epochs}
    for name, own in (("moving_digits", {}), ("moving_gestures", given)):
        data = EventDataConfig(name=name)
        cfg, _, taken = settle(Searching(data=data), DVS128_GESTURE, "moving_digits", small)
        wanted = own.get("multisp.epochs", MultiSpConfig().epochs)
        assert (cfg.model.T, cfg.multisp.epochs) == (8, wanted)
        assert ("multisp.epochs=" in taken) == bool(own)
        assert settle(Recipe(data=data), DVS128_GESTURE, "moving_digits", small)[0].model.T == 8


@pytest.mark.fault(84)
def test_an_augmentation_that_changes_labels_is_told(caplog):
    events = load_splits(DataConfig(name="moving_digits", limit_train=20, limit_test=10), 2)
    augmentation(EventDataConfig(), events)
    assert "mirrors" not in caplog.text
    augmentation(EventDataConfig(augment="tet_dvs"), events)
    assert "moving_digits: data.augment=tet_dvs mirrors samples" in caplog.text


def test_recordings_and_images_have_their_own_augmentation():
    events = load_splits(DataConfig(name="moving_digits", limit_train=20, limit_test=10), 2)
    config = EventDataConfig(augment="spikformer_dvs", mixup=0.25)
    assert augmentation(config, events) == (
        EventAugment.standard("spikformer_dvs"),
        Mixing(mixup=0.25, smoothing=0.1, prob=0.5, until=75 / 106),
    )
    assert augmentation(DataConfig(), events) == (EventAugment(roll=2), Mixing())
    images = load_splits(DataConfig(name="digits", limit_train=20, limit_test=10), 2)
    assert augmentation(DataConfig(), images) == (Augment.standard("digits"), Mixing())
    with pytest.raises(ConfigError, match="'spikformer_dvs' is not a preset"):
        augmentation(config, images)
