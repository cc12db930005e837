"""Events that arrive in pieces are decided on as their whole recording is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError, ExportError
from spikeformer_lt.events.recording import make_events
from spikeformer_lt.export import EventStream, Preprocess, Recordings, compact, predict

WINDOW = 10_000


def prepared(model, **how):
    classes = tuple(f"c{k}" for k in range(model.num_classes))
    how = {"by": "time_window", "window_us": WINDOW, **how}
    size = model.image_size if isinstance(model.image_size, int) else model.image_size[0]
    recordings = Recordings((20, 30), model.T, **how)
    model.preprocess = Preprocess("off,on", size, (0.0, 0.0), (1.0, 1.0), classes, recordings)
    return model


@pytest.fixture
def clips(files):
    """A recording of three clips of three windows, each of which begins with an event."""
    events = files.some_events(4000, 20, 30, 9 * WINDOW, seed=1)
    first = make_events(*(np.full(9, 5) for _ in "xy"), np.ones(9), np.arange(9) * WINDOW)
    events = np.concatenate([events, first])
    return events[np.argsort(events["t_us"], kind="stable")]


@pytest.mark.parametrize("choice", [{"patches": 0.0}, {"patches": 0.4}], ids=str)
@pytest.mark.parametrize("form", ["plain", "compact"])
def test_the_last_decision_of_a_clip_is_that_of_the_recording(choice, form, net, clips) -> None:
    model = prepared(net(in_channels=2, **choice)[0].double())
    run = compact(model) if form == "compact" else model
    span = 3 * WINDOW
    whole = [
        predict(run, clips[clips["t_us"] // span == clip], model.preprocess)[0] for clip in range(3)
    ]
    assert len({float(one.probability) for one in whole}) == 3
    draw = np.random.default_rng(0)
    cuts = (
        np.arange(1, len(clips)), np.sort(draw.integers(0, len(clips), 25)), np.array([1]), [],
    )  # fmt: skip
    for cut in cuts:
        stream = EventStream(run)
        found = [d for piece in np.split(clips, cut) for d in stream.push(piece)]
        found += stream.close()
        assert [d.step for d in found] == [1, 2, 3] * 3
        assert [d.start_us for d in found] == [i * WINDOW for i in range(9)]
        assert sum(d.events for d in found) == len(clips)
        for decision, wanted in zip(found[2::3], whole, strict=True):
            torch.testing.assert_close(
                decision.prediction.probabilities, wanted.probabilities, rtol=0, atol=1e-6
            )
            assert decision.prediction.name == wanted.name
        early = [d.prediction is None for d in found]
        assert early == ([True, True, False] * 3 if choice["patches"] else [False] * 9)


@pytest.mark.parametrize("patches", [0.0, 0.4])
def test_a_clip_that_ends_early_is_decided_on_at_its_end(patches, net, clips) -> None:
    """With a patch selection as the whole recording is, whose frames after the end are empty."""
    model = prepared(net(in_channels=2, patches=patches)[0].double())
    short = clips[clips["t_us"] < 1.5 * WINDOW]
    found = list(EventStream(model).run(short))
    assert [d.step for d in found] == ([1, 2, 3] if patches else [1, 2])
    assert sum(d.events for d in found) == len(short)
    if patches:
        (whole,) = predict(model, short, model.preprocess)
        torch.testing.assert_close(
            found[-1].prediction.probabilities, whole.probabilities, rtol=0, atol=1e-6
        )


def test_a_recording_of_which_most_is_not_seen_is_told(net, clips, caplog) -> None:
    model = prepared(net(in_channels=2, patches=0.0)[0])
    span = 3 * WINDOW
    for end, told in ((span, ""), (1.5 * span, ""), (3 * span, "after its 3 windows")):
        caplog.clear()
        given = clips[clips["t_us"] < end]
        (found,) = predict(model, given, model.preprocess)
        assert (told in caplog.text) if told else not caplog.records
        assert found == predict(model, given[given["t_us"] < span], model.preprocess)[0]


def test_a_file_runs_at_the_pace_of_the_recording(net, clips, files, tmp_path) -> None:
    import time

    model = prepared(net(in_channels=2, patches=0.0)[0], signed=True)
    clips = clips.astype([("x", "i8"), ("y", "i8"), ("p", "i8"), ("t_us", "i8")])
    clips["p"] = 2 * clips["p"] - 1
    np.save(tmp_path / "a.npy", clips)
    begun = time.perf_counter()
    found = list(EventStream(model).run(tmp_path / "a.npy", pace=1.0))
    assert time.perf_counter() - begun >= 0.09 and len(found) == 9
    assert all(0 < d.latency_ms < 5000 for d in found)
    at_once = list(EventStream(model).run(clips))
    camera = list(EventStream(model).run(iter(np.array_split(clips, 7))))
    for other in (at_once, camera):
        assert [d.prediction for d in other] == [d.prediction for d in found]


def test_an_endless_stream_keeps_its_state_and_a_silence_is_frames_of_nothing(net, clips) -> None:
    model = prepared(net(in_channels=2, patches=0.0)[0])
    quiet = clips[(clips["t_us"] < WINDOW) | (clips["t_us"] >= 8 * WINDOW)]
    found = list(EventStream(model).run(quiet))
    assert [d.events > 0 for d in found] == [True, *[False] * 7, True]
    running = EventStream(model, endless=True)
    endless = list(running.run(clips))
    running.push(clips)
    assert len(running._logits) == model.T
    clipped = list(EventStream(model).run(clips))
    assert [d.step for d in endless] == list(range(1, 10))
    same = [a.prediction == b.prediction for a, b in zip(endless, clipped, strict=True)]
    assert same[:3] == [True] * 3 and not all(same)


def test_what_does_not_fit_is_one_line(net, clips, images) -> None:
    model = prepared(net(in_channels=2, patches=0.4)[0])
    with pytest.raises(ConfigError, match="window_us=5000 is not allowed: 10000, which"):
        EventStream(model, 5000)
    with pytest.raises(ConfigError, match="no patch selection, and no halting"):
        EventStream(model, endless=True)
    sure = prepared(net(in_channels=2, patches=0.0)[0])
    sure.set_halting((), 0.9)
    with pytest.raises(ConfigError, match="no patch selection, and no halting"):
        EventStream(sure, endless=True)
    stream = EventStream(model)
    stream.push(clips)
    with pytest.raises(DataError, match="came after one of"):
        stream.push(clips[:5])
    stream.reset()
    stream.push(clips[:5])
    late = clips[-1:].copy()
    late["t_us"] = 10**9
    with pytest.raises(DataError, match=r"windows of 10000 us passed at once.*reset\(\)"):
        stream.push(late)
    with pytest.raises(DataError, match="must be in"):
        stream.push([[99, 1, 1, 10**6]] * np.ones((1, 1), int))
    with pytest.raises(ConfigError, match="window_us=None is not allowed"):
        EventStream(prepared(net(in_channels=2)[0], by="n_time_bins", window_us=None))
    denoised = prepared(net(in_channels=2)[0], transform="Denoise(filter_time=1000)")
    with pytest.raises(ExportError, match="Denoise is of whole recordings"):
        EventStream(denoised).push(clips)
