"""DVS128 Gesture: 29 people make 11 gestures before a DVS128 camera, and sets of the same form.

Source: A. Amir et al., "A Low Power, Fully Event-Based Gesture Recognition System", CVPR 2017. Read
are the original (AEDAT 3.1 with labels in csv files; 1,176 and 288 stretches) and tonic's form (one
npy file a person, light and gesture, times in ms; 1,077 and 264 files: where a gesture was made
twice it has one file). Both keep people 1-23 for training and 24-29 for the test.
"""

from __future__ import annotations

import re
from pathlib import Path

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.dataset import Source, split_fields
from spikeformer_lt.events.formats import FileReader, read_trials
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.events.recording import Sensor, name_of
from spikeformer_lt.events.split import (
    Sample,
    Split,
    accept,
    check_counts,
    find_folder,
    hold_out,
    scan,
)
from spikeformer_lt.images.splits import VAL_FRACTION, Splits
from spikeformer_lt.published import Archive, provide
from spikeformer_lt.registry import register_dataset

CLASSES = (
    *("hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise"),
    *("right_arm_counter_clockwise", "left_arm_clockwise", "left_arm_counter_clockwise"),
    *("arm_roll", "air_drums", "air_guitar", "other_gestures"),
)
NPY_COUNTS = {"train": 1077, "test": 264}
TRIAL_COUNTS = {"train": 1176, "test": 288}
_NPY_FOLDERS = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}
_TRIALS_FOLDER = "DvsGesture"
_NPY_NAME = re.compile(r"(?:.+/)?(user\d+)_[^/]+/(\d{1,3})\.npy")
_SENSOR = Sensor(128, 128)
NPY_ARCHIVES = tuple(
    Archive(
        name=f"{_NPY_FOLDERS[part]}.tar.gz",
        url=f"https://api.figshare.com/v2/file/download/{number}",
        md5=md5,
        page=f"https://figshare.com/ndownloader/files/{number}",
        at_most=8_000_000_000,
        unpacked=60_000_000_000,
        members=5000,
        into="DVSGesture",
    )
    for part, number, md5 in (
        ("train", 38022171, "3a8f0d4120a166bac7591f77409cb105"),
        ("test", 38020584, "56070e45dadaa85fff82e0fbfbc06de5"),
    )
)
ORIGINAL = Archive(
    name="DvsGesture.tar.gz",
    url="",
    md5="8a5c71fb11e24e5ca5b11866ca6c00a1",
    page="https://research.ibm.com/interactive/dvsgesture/",
    at_most=8_000_000_000,
    unpacked=20_000_000_000,
    members=1000,
)


@register_dataset
def dvs128_gesture(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
    events: EventOptions | None = None,
) -> Splits:
    """DVS128 Gesture: 11 gestures, 128 x 128 pixels, the official split by people.

    Validation is whole people of the training part, as the test is: nobody is in two parts.

    Args:
        root: folder that holds tonic's ``ibmGestureTrain`` and ``ibmGestureTest`` or their
            archives, or the original ``DvsGesture`` or its archive.
        download: fetch tonic's archives (3.5 GB) if nothing is there.
        image_size: side of a frame in pixels; None is 128.
        val_fraction: least part of the training recordings that is validation.
        limit_train: recordings to train on, classes in proportion; None is all.
        limit_test: recordings to test on, classes in proportion; None is all.
        duplicates: "report" or "refuse" recordings that two parts share.
        events: framing, faults and cache; see `EventOptions`.

    Raises:
        ConfigError: an option out of range.
        DataError: files are missing, damaged or not the published ones.
    """
    options = events or EventOptions()
    archives = NPY_ARCHIVES
    if (Path(root) / ORIGINAL.name).is_file():
        archives = (ORIGINAL,)

    def present() -> bool:
        return _npy_home(root) is not None or find_folder(root, (_TRIALS_FOLDER,)) is not None

    provide("dvs128_gesture", archives, root, download, present)
    home, form = _npy_home(root), "npy"
    if home is not None:
        parts, counts = _npy_parts(home), NPY_COUNTS
    else:
        home, form = find_folder(root, (_TRIALS_FOLDER,)), "aedat31"
        assert home is not None
        parts, counts = read_trials(home, len(CLASSES)), TRIAL_COUNTS
    for part, samples in parts.items():
        fault = check_counts(f"dvs128_gesture {part}", samples, CLASSES, counts[part])
        accept(fault, options.incomplete)
    split = _split("dvs128_gesture", CLASSES, parts, val_fraction)
    return Splits(
        **split_fields(
            split,
            Source(FileReader(home, form, microseconds_per_tick=1000), _SENSOR, root=home),
            options,
            image_size=image_size,
            limit_train=limit_train,
            limit_test=limit_test,
            duplicates=duplicates,
            augment="spikformer_dvs",
        )
    )


@register_dataset
def dvs128_recordings(
    root: str = "data",
    download: bool = False,
    image_size: int | None = None,
    val_fraction: float = VAL_FRACTION,
    limit_train: int | None = None,
    limit_test: int | None = None,
    duplicates: str = "report",
    events: EventOptions | None = None,
) -> Splits:
    """Own recordings of a DVS128 in the form that tonic gives DVS128 Gesture, of any classes.

    Files are ``ibmGestureTrain/user<number>_<light>/<class>.npy`` and the same in
    ``ibmGestureTest``: [N, 4] of x, y, polarity and time in ms. Classes are numbers from 0; each
    has a training file, and the test may lack some. Results on such a set are not results on DVS128
    Gesture.

    Args:
        root: folder that holds the two folders, at most three levels down.
        download: not used; nothing is published.
        image_size: side of a frame in pixels; None is 128.
        val_fraction: least part of the training recordings that is validation, in whole people.
        limit_train: recordings to train on, classes in proportion; None is all.
        limit_test: recordings to test on, classes in proportion; None is all.
        duplicates: "report" or "refuse" recordings that two parts share.
        events: framing, faults and cache; see `EventOptions`.

    Raises:
        ConfigError: an option out of range.
        DataError: the folders are missing, or a file has another name or form.
    """
    del download
    home = _npy_home(root)
    if home is None:
        raise DataError(
            f"{name_of(Path(root).absolute())} does not hold the folders "
            f"{' and '.join(_NPY_FOLDERS.values())} with user<number>_<light>/<class>.npy"
        )
    parts = _npy_parts(home)
    found = {sample.label for sample in parts["train"]}
    classes = tuple(str(label) for label in range(max(found, default=-1) + 1))
    lacking = sorted(set(range(len(classes))) - found)
    if lacking or not found:
        raise DataError(f"{name_of(home)} has no training file of class {lacking[:10] or 0}")
    return Splits(
        **split_fields(
            _split("dvs128_recordings", classes, parts, val_fraction),
            Source(FileReader(home, "npy", microseconds_per_tick=1000), _SENSOR, root=home),
            events or EventOptions(),
            image_size=image_size,
            limit_train=limit_train,
            limit_test=limit_test,
            duplicates=duplicates,
            augment="spikformer_dvs",
        )
    )


def _npy_home(root: str) -> Path | None:
    """Return the folder that holds tonic's two, if both are there."""
    found = [find_folder(root, (name,)) for name in _NPY_FOLDERS.values()]
    homes = {folder.parent for folder in found if folder is not None}
    return homes.pop() if None not in found and len(homes) == 1 else None


def _npy_parts(home: Path) -> dict[str, list[Sample]]:
    parts: dict[str, list[Sample]] = {}
    for part, folder in _NPY_FOLDERS.items():
        parts[part] = []
        for path in scan(home / folder, (".npy",)):
            named = _NPY_NAME.fullmatch(path)
            if named is None:
                raise DataError(
                    f"{name_of(home / folder / path)} is not named "
                    "user<number>_<light>/<class>.npy: move it out of the set"
                )
            parts[part].append(
                Sample(f"{folder}/{path}", label=int(named[2]), group=named[1].removeprefix("user"))
            )
    return parts


def _split(
    name: str, classes: tuple[str, ...], parts: dict[str, list[Sample]], val_fraction: float
) -> Split:
    train, val = hold_out(name, parts["train"], val_fraction, groups=True)
    return Split(name, classes, tuple(train), tuple(val), tuple(parts["test"]))
