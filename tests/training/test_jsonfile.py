from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.disk import dump_json
from spikeformer_lt.errors import CheckpointError, ConfigError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value):
    back = json.loads(dump_json(value, "x", ConfigError))
    assert back == value
    assert repr(back) == repr(value), "also the difference of 1, 1.0 and True, and the sign of -0.0"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{"b": float("nan")}]}, r"^report\.a\[0\]\.b is nan; allowed are finite"),
        ({"a": (1, -float("inf"))}, r"^report\.a\[1\] is -inf"),
        ({3: 1}, "has the key 3; keys must be text"),
        ({"a": {1, 2}}, r"report\.a is \{1, 2\} of type set"),
        ({"a": b"x"}, "of type bytes"),
        ({"a": np.int64(3)}, "of type int64.*convert it first"),
        ({"a": Counter()}, r"report\.a is Counter\(\) of type Counter"),
    ],
)
def test_anything_else_is_refused_with_its_place(value, message):
    for error in (CheckpointError, ConfigError):
        with pytest.raises(error, match=message):
            dump_json(value, "report", error)
