"""DVS128 Gesture: 29 people make 11 gestures before a DVS128 camera, and sets of the same form.

Source: A. Amir et al., "A Low Power, Fully Event-Based Gesture Recognition System", CVPR 2017. Read
are the original (AEDAT 3.1 with labels in csv files; 1,176 and 288 stretches) and tonic's form (one
npy file a person, light and gesture, times in ms; 1,077 and 264 files: where a gesture was made
twice it has one file). Both keep people 1-23 for training and 24-29 for the test.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

from spikeformer_lt.errors import DataError, name_of
from spikeformer_lt.events import EventDataOptions, FileReader, Sample, Sensor, Source, event_splits
from spikeformer_lt.events.formats import read_trials
from spikeformer_lt.events.simulate import SIMULATED
from spikeformer_lt.events.split import check_counts, cut, find_folder, scan
from spikeformer_lt.published import Archive, provide
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import Splits, takes

CLASSES = (
    *("hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise"),
    *("right_arm_counter_clockwise", "left_arm_clockwise", "left_arm_counter_clockwise"),
    *("arm_roll", "air_drums", "air_guitar", "other_gestures"),
)
NPY_COUNTS = {"train": 1077, "test": 264}
TRIAL_COUNTS = {"train": 1176, "test": 288}
_NPY_FOLDERS = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}
_NPY_NAME = re.compile(r"(?:.+/)?user(\d+)_[^/]+/(\d{1,3})\.(?i:npy)")
NPY_ARCHIVES = tuple(
    Archive(
        *(f"{_NPY_FOLDERS[part]}.tar.gz", 0, md5),
        url=f"https://api.figshare.com/v2/file/download/{number}",
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
    *("DvsGesture.tar.gz", 0, "8a5c71fb11e24e5ca5b11866ca6c00a1"),
    page="https://research.ibm.com/interactive/dvsgesture/",
    unpacked=20_000_000_000,
    members=1000,
)


@register_dataset
@takes(EventDataOptions)
def dvs128_gesture(options: EventDataOptions) -> Splits:
    """DVS128 Gesture: 11 gestures, 128 x 128 pixels, the official split by people.

    Validation is whole people of the training part. A mirrored right hand is a left one: nothing is
    mirrored unless ``--data.augment spikformer_dvs`` or ``tet_dvs`` asks for it. `root` holds
    tonic's ``ibmGestureTrain`` and ``ibmGestureTest`` or their archives (3.5 GB, which are
    fetched), or the original ``DvsGesture`` or its archive. Files of `simulated_gestures` are
    taken, too, under that name.
    """
    original = (Path(options.root) / ORIGINAL.name).is_file()
    archives = (ORIGINAL,) if original else NPY_ARCHIVES

    found = functools.partial(_find, options.root)
    home = provide("dvs128_gesture", options.root, options.download, found, archives=archives)
    return _gestures(*home, options)


@register_dataset
@takes(EventDataOptions)
def simulated_gestures(options: EventDataOptions) -> Splits:
    """Simulated gestures in files, as ``python -m spikeformer_lt.events write`` makes them.

    `root` holds what it wrote, in either form of DVS128 Gesture. Nothing was recorded: results are
    no results on DVS128 Gesture.
    """
    found = _find(options.root)
    if found is None or not (found[0] / SIMULATED).is_file():
        where = name_of(Path(options.root).absolute())
        made = "python -m spikeformer_lt.events write DIR"
        raise DataError(f"{where} holds no simulated gestures; write them: {made}")
    return _gestures(*found, options)


def _find(root: str) -> tuple[Path, str] | None:
    """Return the folder of the set and the form of its files, if it is there."""
    npy, trials = _npy_home(root), find_folder(root, ("DvsGesture",))
    if npy is not None:
        return npy, "npy"
    return None if trials is None else (trials, "aedat31")


def _gestures(home: Path, form: str, options: EventDataOptions) -> Splits:
    counts = NPY_COUNTS if form == "npy" else TRIAL_COUNTS
    parts = _npy_parts(home) if form == "npy" else read_trials(home, len(CLASSES))
    simulated = (home / SIMULATED).is_file()
    name = "simulated_gestures" if simulated else "dvs128_gesture"
    for part, samples in parts.items() if not simulated else ():
        told = f"{name} {part}"
        check_counts(told, samples, CLASSES, counts[part], options.events.incomplete)
    reader = FileReader(home, form, microseconds_per_tick=1000)
    return _splits(name, CLASSES, parts, reader, options)


@register_dataset
@takes(EventDataOptions)
def dvs128_recordings(options: EventDataOptions) -> Splits:
    """Own recordings of a DVS128 in the form that tonic gives DVS128 Gesture, of any classes.

    Files are ``ibmGestureTrain/user<number>_<light>/<class>.npy`` and the same in
    ``ibmGestureTest``: [N, 4] of x, y, polarity and time in ms (or as `events.unit` and
    `events.columns` say). Classes are numbers from 0; each has a training file, and the test may
    lack some. Results on such a set are not results on DVS128 Gesture. `root` holds the two
    folders, at most three levels down; validation is whole people.
    """
    home = _npy_home(options.root)
    if home is None:
        raise DataError(
            f"{name_of(Path(options.root).absolute())} does not hold the folders "
            f"{' and '.join(_NPY_FOLDERS.values())} with user<number>_<light>/<class>.npy"
        )
    parts = _npy_parts(home)
    found = {sample.label for sample in parts["train"]}
    classes = tuple(str(label) for label in range(max(found, default=-1) + 1))
    lacking = sorted(set(range(len(classes))) - found)
    if lacking or not found:
        raise DataError(f"{name_of(home)} has no training file of class {lacking[:10] or 0}")
    reader = FileReader(home, "npy", microseconds_per_tick=1000)
    return _splits("dvs128_recordings", classes, parts, reader, options)


def _npy_home(root: str) -> Path | None:
    """Return the folder that holds tonic's two, if both are there."""
    found = [find_folder(root, (name,)) for name in _NPY_FOLDERS.values()]
    homes = {folder.parent for folder in found if folder is not None}
    return homes.pop() if None not in found and len(homes) == 1 else None


def _npy_parts(home: Path) -> dict[str, list[Sample]]:
    parts: dict[str, list[Sample]] = {part: [] for part in _NPY_FOLDERS}
    for part, folder in _NPY_FOLDERS.items():
        for path in scan(home / folder, (".npy",)):
            named = _NPY_NAME.fullmatch(path)
            if named is None:
                raise DataError(
                    f"{name_of(home / folder / path)} is not named "
                    "user<number>_<light>/<class>.npy: move it out of the set"
                )
            person = f"{int(named[1]):02d}"
            parts[part].append(Sample(f"{folder}/{path}", label=int(named[2]), group=person))
    return parts


def _splits(
    name: str, classes: tuple[str, ...], parts: dict[str, list[Sample]], reader: FileReader,
    options: EventDataOptions,
) -> Splits:  # fmt: skip
    split = cut(name, classes, parts["train"], parts["test"], options.val_fraction, groups=True)
    source = Source(reader, Sensor(128, 128), root=reader.root)
    splits = event_splits(split, source, options, augment="wide_dvs")
    return replace(splits, mirror_changes_label=True)
