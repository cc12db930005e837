from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.events.frame import EventOptions, Framing
from spikeformer_lt.events.validate import ACTIONS, Policy


def test_options_become_the_framing_they_name():
    assert EventOptions().framing == Framing(16, "n_event_bins")
    options = EventOptions(T=10, by="time_window", window_us=5000, values="binary")
    assert options.framing == Framing(10, "time_window", 5000, "binary")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"T": 0}, "T=0"),
        ({"T": None, "by": "time_window", "window_us": 5}, "T=None"),
        ({"by": "events"}, "by='events'"),
        ({"by": "time_window"}, "window_us=None"),
        ({"bad_events": "ignore"}, "bad_events='ignore'"),
        ({"empty": "zeros"}, "did you mean 'zero'"),
        ({"incomplete": "ok"}, "use error, report"),
        ({"cache": ""}, "cache=''"),
    ],
)
def test_an_impossible_option_is_refused_when_it_is_given(fields, words):
    with pytest.raises(ConfigError, match=words):
        EventOptions(**fields)


def test_bad_events_goes_over_the_sets_own_policy_and_leaves_its_facts():
    own = Policy(order="error", signed_polarity=True, longest_us=5)
    assert EventOptions().policy(own) is own
    dropped = EventOptions(bad_events="drop").policy(own)
    assert {getattr(dropped, fault) for fault in ACTIONS if fault != "span"} == {"drop"}
    assert dropped.span == "count" and dropped.signed_polarity and dropped.longest_us == 5
    counted = EventOptions(bad_events="count").policy()
    for fault, allowed in ACTIONS.items():
        assert getattr(counted, fault) == ("count" if "count" in allowed else "drop")
