"""Frames that arrive one by one give the logits of the whole clip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import ConfigError, DataError, ExportError
from spikeformer_lt.export.inference import compact
from spikeformer_lt.export.streaming import Stream

CHOICES = [
    {"patches": 0.0},
    {"patches": 0.0, "activation": "heaviside"},
    {"patches": 0.4},
    {"patches": 0.4, "score": "l2"},
    {"patches": 0.4, "score": "tp"},
    {"patches": 0.4, "score": "random"},
    {"patches": 0.4, "score": "attention"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("form", ["plain", "compact"])
def test_streamed_logits_are_those_of_the_whole_clip(choice, form, net, images) -> None:
    model, _, _ = net(in_channels=2, **choice)
    model.double()
    run = compact(model) if form == "compact" else model
    clip = images(model).double()
    with torch.no_grad():
        whole = run(clip)
    stream = Stream(run)
    for _ in range(2):  # the second clip begins where the first one did
        parts = [stream.push(clip[:, t]) for t in range(model.T)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
        selects = bool(choice["patches"])
        assert [part.shape[1] for part in parts] == ([0, 0, 3] if selects else [1, 1, 1])
        stream.reset()
    assert whole.std() > 1e-4 and not torch.equal(whole[:, 0], whole[:, 1])


@pytest.mark.parametrize("name", ["vgg of events", "resnet of events"])
@pytest.mark.parametrize("form", ["plain", "compact"])
def test_a_cnn_streams_its_frames(name: str, form: str, cnn, images) -> None:
    model = cnn(name).double()
    run = compact(model) if form == "compact" else model
    clip = images(model).double()
    with torch.no_grad():
        whole = run(clip)
    stream = Stream(run)
    for _ in range(2):
        parts = [stream.push(clip[:, t]) for t in range(model.T)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
        stream.reset()
    assert model.T == 3 and not torch.equal(whole[:, 0], whole[:, 1])


@pytest.mark.parametrize("choice", ["vgg", "resnet", {"patches": 0.0}, {"score": "tp"}], ids=str)
def test_a_network_of_still_images_takes_the_image_of_each_step(choice, net, cnn, images) -> None:
    model = (cnn(choice) if isinstance(choice, str) else net(**choice)[0]).double()
    fast, x = compact(model), images(model).double()
    stream = Stream(fast)
    found = torch.cat([stream.push(x) for _ in range(model.T)], 1)
    torch.testing.assert_close(found, fast(x), rtol=0, atol=1e-12)
    assert found.std() > 1e-4


@pytest.mark.parametrize("choice", ["vgg of events", {"patches": 0.0, "in_channels": 2}], ids=str)
def test_a_stream_goes_on_beyond_the_steps_of_the_training(choice, net, cnn, images) -> None:
    model = (cnn(choice) if isinstance(choice, str) else net(**choice)[0]).double()
    model.T = 7
    clip = images(model).double()
    with torch.no_grad():
        whole = model(clip)
    model.T = 3
    stream = Stream(model)
    found = torch.cat([stream.push(clip[:, t]) for t in range(7)], 1)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


def test_pixel_selection_streams_too(net, images) -> None:
    model, _, _ = net(in_channels=2, patches=0.4)
    model.patch.space = "pixel"
    model.double()
    clip = images(model).double()
    stream = Stream(model)
    found = torch.cat([stream.push(clip[:, t]) for t in range(model.T)], 1)
    with torch.no_grad():
        torch.testing.assert_close(found, model(clip), rtol=0, atol=1e-12)


def test_streams_share_a_network_without_touching_each_other(net, images) -> None:
    model, _, _ = net(in_channels=2, patches=0.0)
    clip = images(model, 4)
    one, two = Stream(model), Stream(model)
    with torch.no_grad():
        whole = model(clip)
    found: list[list[torch.Tensor]] = [[], []]
    for t in range(model.T):
        found[0].append(one.push(clip[:1, t]))
        with torch.no_grad():
            model(clip)
        found[1].append(two.push(clip[1:4, t]))
    torch.testing.assert_close(torch.cat(found[0], 1), whole[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(found[1], 1), whole[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["lif", "heaviside"])
def test_a_batch_that_changes_before_the_last_frame_is_refused(activation, net, images) -> None:
    model, _, _ = net(in_channels=2, patches=0.4, activation=activation)
    stream, clip = Stream(model), images(model)
    stream.push(clip[:, 0])
    with pytest.raises(DataError, match="began with a batch of 3, this frame has 2"):
        stream.push(clip[:2, 1])
    assert [stream.push(clip[:, t]).shape[1] for t in (1, 2)] == [0, 3]
    stream.push(clip[:2, 0])  # another clip


def test_wrong_frames_are_refused_and_the_clip_goes_on(net, images) -> None:
    model, _, _ = net(in_channels=2, patches=0.0)
    clip = images(model)
    stream = Stream(model)
    first = stream.push(clip[:, 0])
    with pytest.raises(DataError, match="began with a batch of 3, this frame has 2"):
        stream.push(clip[:2, 1])
    with pytest.raises(DataError, match="a frame is"):
        stream.push(clip)
    with pytest.raises(ConfigError, match="input shape"):
        stream.push(clip[:, 1, :, :8])
    with pytest.raises(ConfigError, match="dtype"):
        stream.push(clip[:, 1].double())
    found = torch.cat([first, *(stream.push(clip[:, t]) for t in (1, 2))], 1)
    with torch.no_grad():
        torch.testing.assert_close(found, model(clip), rtol=0, atol=1e-5)


def test_what_cannot_stream_is_refused(net) -> None:
    with pytest.raises(ExportError, match="Linear cannot run frame by frame"):
        Stream(nn.Linear(2, 2))
    model, _, _ = net()
    with pytest.raises(ExportError, match="training mode"):
        Stream(model.train())


@pytest.mark.parametrize("patches", [0.0, 0.4])
@pytest.mark.parametrize("confidence", [0.3, 0.6, 0.95])
def test_images_that_are_sure_keep_their_logits(confidence, patches, net, images) -> None:
    """As in a whole clip, where a later frame changes no class of theirs."""
    model, _, _ = net(in_channels=2, patches=patches, T=6)
    model.double()
    clip = images(model, 8).double()
    with torch.no_grad():
        model.head.weight.mul_(80)
        plain = model(clip)
        model.set_halting((), confidence)
        whole = model(clip)
    assert not torch.equal(whole, plain), "no image was sure"
    for given in (model, compact(model)):
        stream = Stream(given)
        for _ in range(2):
            found = torch.cat([stream.push(clip[:, t]) for t in range(model.T)], 1)
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
            stream.reset()
