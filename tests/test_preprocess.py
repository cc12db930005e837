"""What a ticket says of its samples comes back as it was, or is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt import create_dataset
from spikeformer_lt.config import from_dict, to_dict
from spikeformer_lt.errors import ConfigError, SpikeformerError
from spikeformer_lt.preprocess import Preprocess, Recordings
from spikeformer_lt.splits import Splits

NAMES = tuple(f"class {number}" for number in range(10))
PIXELS = Preprocess("RGB", 16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), NAMES)
HOW = Recordings((16, 16), 3)
EVENTS_IN = Preprocess("off,on", 16, (0.0, 0.0), (1.0, 1.0), NAMES, HOW)


names = st.lists(st.text(max_size=5), min_size=1, max_size=4).map(tuple)
numbers = st.floats(-10, 10, allow_nan=False)


@given(st.sampled_from([("RGB", 3), ("grey", 1)]), st.data(), names)
def test_it_comes_back_from_json(kind: tuple[str, int], data: st.DataObject, classes: Any) -> None:
    mean = tuple(data.draw(numbers) for _ in range(kind[1]))
    std = tuple(data.draw(st.floats(1e-3, 10)) for _ in range(kind[1]))
    made = Preprocess(kind[0], data.draw(st.integers(1, 4096)), mean, std, classes)
    assert from_dict(Preprocess, json.loads(json.dumps(to_dict(made)))) == made
    assert Preprocess.known(json.loads(json.dumps(made.noted()))) == made


ODD: list[dict[str, Any]] = [
    *({"channels": value} for value in ("BGR", 3, None, ["RGB"])),
    *({"image_size": value} for value in (0, -1, 10**20, 1.5, "16", None)),
    *({"mean": value} for value in ([0.0], "000", [0.0, 0.0, float("inf")], [0.0] * 4, None)),
    *({"std": value} for value in ([0.0] * 3, [1.0, 1.0, -1.0], [1.0, 1.0, float("nan")])),
    *({"classes": value} for value in ([], "abc", [1, 2], None)),
    *({"recordings": value} for value in (to_dict(HOW), 7)),
    {"other": 1},
]
ODD_RECORDINGS: list[dict[str, Any]] = [
    *({"T": value} for value in (0, 10**9, 1.5)),
    *({"sensor": value} for value in ([0, 5], [5], [10**9, 4])),
    *({"by": "x"}, {"window_us": 5}, {"values": "x"}, {"microseconds_per_tick": 0}, {"new": 1}),
]
ODD += [
    {**to_dict(EVENTS_IN), "recordings": {**to_dict(HOW), **change}} for change in ODD_RECORDINGS
]


@pytest.mark.fault(60)
@pytest.mark.parametrize("change", ODD, ids=str)
def test_an_odd_one_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(SpikeformerError, match="preprocess"):
        Preprocess.known({"preprocess": {**to_dict(PIXELS), **change}})


def test_another_data_set_is_refused_by_the_field_that_differs() -> None:
    ours = create_dataset("digits", image_size=16).preprocess
    assert ours is not None
    ours.refuse_other(ours, "x", "digits")
    for change in ({"mean": (0.1, 0.2, 0.3)}, {"image_size": 32}, {"classes": tuple("abcdefghij")}):
        other = dataclasses.replace(ours, **change)  # type: ignore[arg-type]
        allowed = "classes" in change  # our names are numbers: nothing is known of them
        if allowed:
            ours.refuse_other(other, "x", "digits")
            continue
        with pytest.raises(ConfigError, match=f"x was made for samples with {next(iter(change))}="):
            ours.refuse_other(other, "x", "digits")
    for change in ({"by": "n_time_bins"}, {"values": "binary"}):
        other = dataclasses.replace(EVENTS_IN, recordings=dataclasses.replace(HOW, **change))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"recordings.{next(iter(change))}="):
            EVENTS_IN.refuse_other(other, "x", "set")
    EVENTS_IN.refuse_other(
        dataclasses.replace(EVENTS_IN, recordings=dataclasses.replace(HOW, T=9)), "x", "set"
    )


class Words:
    """A part of somebody's data set: what splits ask of it, and names that may be no text."""

    name, labels, mean, std = "words", None, (0.5,), (0.2,)

    def __init__(self, classes: Any) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise IndexError


@pytest.mark.parametrize(
    ("classes", "names"),
    [(["a", "b"], ("a", "b")), ([3, 7], ("3", "7")), ((), ("0", "1")), (["a"], ("0", "1"))],
)
def test_splits_of_pictures_say_how_they_are_prepared(classes: Any, names: Any) -> None:
    part: Any = Words(classes)
    parts = {"train": part, "val": part, "test": part}
    about: dict[str, Any] = {"num_classes": 2, "image_size": 8, "split_sha256": ""}
    mean, std = np.array([0.5], np.float32), [0.25]
    numbers: dict[str, Any] = {"mean": mean, "std": std, **about, **parts}
    made = Splits("words", in_channels=1, kind="static", **numbers)
    assert made.preprocess == Preprocess("grey", 8, (0.5,), (0.25,), names)
    assert Preprocess.known(made.preprocess.noted()) == made.preprocess
    for other in ({"in_channels": 2, "kind": "static"}, {"in_channels": 1, "kind": "events"}):
        assert Splits("words", **other, **numbers).preprocess is None  # type: ignore[arg-type]
