"""A ticket is used by what it carries: pixels and recordings go in, classes come out."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spikeformer_lt import Ticket, create_dataset, create_model, load_exported
from spikeformer_lt.config import to_dict
from spikeformer_lt.errors import DataError, ExportError
from spikeformer_lt.events import EventOptions
from spikeformer_lt.events.recording import EVENTS
from spikeformer_lt.export import (
    CompactModel,
    HubTicket,
    Stream,
    export_ticket,
    predict,
    read_ticket,
    to_input,
    to_pt2,
    write_graph,
)
from spikeformer_lt.export.graphs import _graph_of
from spikeformer_lt.preprocess import Preprocess, Recordings

SHIPPED = Path(__file__).resolve().parents[2] / "docs" / "results" / "digits-ticket"
PRETRAINED = SHIPPED.parents[2] / "spikeformer_lt" / "pretrained"
ZOO = SHIPPED.parent / "zoo"
NAMES = tuple(f"class {number}" for number in range(10))
PIXELS = Preprocess("RGB", 16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), NAMES)
HOW = Recordings((16, 16), 3)
EVENTS_IN = Preprocess("off,on", 16, (0.0, 0.0), (1.0, 1.0), NAMES, HOW)


@pytest.fixture(scope="module")
def digits():
    return create_dataset("digits", image_size=16).test


@pytest.fixture(scope="module")
def shipped():
    return load_exported(SHIPPED)


def right(found: list[Any], labels: torch.Tensor) -> float:
    hits = sum(one.label == int(label) for one, label in zip(found, labels, strict=True))
    return round(100 * hits / len(labels), 2)


@pytest.mark.fault(60)
def test_the_shipped_ticket_gives_the_accuracy_of_its_card(shipped, digits) -> None:
    said = json.loads((SHIPPED / "config.json").read_text())
    assert said["format_version"] == 3 and said["preprocess"]["image_size"] == 16
    found = shipped.predict(digits.images)
    assert right(found, digits.labels) == said["about"]["test_accuracy_of_this_file"] == 96.94
    assert f"| test accuracy of this file | {96.94} |" in (SHIPPED / "README.md").read_text()
    first = found[0]
    assert first.name == str(first.label) and first.probabilities.shape == (10,)
    assert first.probability == float(first.probabilities.max())
    assert float(first.probabilities.sum()) == pytest.approx(1, abs=1e-5)
    assert repr(first).startswith("Prediction(label=") and "tensor" not in repr(first)


@pytest.mark.parametrize("folder", sorted(PRETRAINED.iterdir()), ids=lambda path: path.name)
def test_every_ticket_of_the_zoo_loads_by_its_name_and_stands_on_its_page(
    folder: Path, digits
) -> None:
    card = json.loads((folder / "config.json").read_text())
    said, own = card["about"], card["provenance"]["model"]["name"]
    assert folder.name.partition(".")[0] == own and "/root" not in json.dumps(card)
    share = said.get("test_accuracy_of_this_file", said["test_accuracy"])
    if card["provenance"]["dataset"] == "digits":  # the others: recipes/test_evaluate.py
        found = right(load_exported(folder).predict(digits.images), digits.labels)
        assert found == pytest.approx(share, abs=100 / len(digits.labels))
    net = create_model(own, pretrained=folder.name)
    weights = [w for w in net.parameters() if w.ndim > 1]
    gone = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert not net.training and gone == pytest.approx(said["sparsity"]["total_weight"], abs=0.005)
    row = next(
        line for line in (ZOO / "README.md").read_text().splitlines() if f"`{folder.name}`" in line
    )
    assert f" {share:.2f} [" in row and f" {100 * said['sparsity']['total_weight']:.1f} %" in row


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 20e6


def test_every_form_of_a_picture_gives_the_same_classes(shipped, digits, tmp_path: Path) -> None:
    images = digits.images[:6]
    last = images.permute(0, 2, 3, 1).contiguous()
    pictures = [Image.fromarray(image.numpy()) for image in last]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    wanted = shipped.predict(images)
    forms: list[Any] = [images.numpy(), last, last.numpy(), pictures, list(images)]
    forms += [[p.convert("L") for p in pictures], sorted(tmp_path.iterdir())]
    forms += [[str(tmp_path / f"{number}.png") for number in range(6)]]
    for form in forms:
        assert shipped.predict(form) == wanted
    for one in (images[0], last[0].numpy(), pictures[0], tmp_path / "0.png"):
        assert shipped.predict(one) == wanted[:1]
    fixed = images.numpy()[::-1]
    fixed.flags.writeable = False
    assert shipped.predict(fixed) == wanted[::-1]
    wide = pictures[0].resize((40, 30))
    assert len(shipped.predict([wide, pictures[0]])) == 2, "pictures are scaled, arrays are not"


@pytest.mark.fault(60)
def test_the_module_that_becomes_a_graph_takes_the_same_pixels(shipped, digits) -> None:
    graph, x = _graph_of(shipped, 4)
    assert x.dtype == torch.uint8 and x.shape == (4, 3, 16, 16)
    with torch.no_grad():
        labels = graph(digits.images).mean(1).argmax(1)
    assert labels.tolist() == [one.label for one in shipped.predict(digits.images)]
    frames = CompactModel(shipped.net, None, EVENTS_IN)
    assert _graph_of(frames, 1)[0] is shipped.net, "frames are counts: nothing to fold"


@pytest.mark.slow
@pytest.mark.fault(60)
def test_a_program_takes_the_same_pixels(shipped, digits, tmp_path: Path) -> None:
    assert to_pt2(shipped, tmp_path / "a.pt2") <= 1e-4
    told = {"preprocess": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=told).module()
    assert json.loads(told["preprocess"]) == to_dict(shipped.preprocess)
    labels = program(digits.images).mean(1).argmax(1)
    assert float((labels == digits.labels).double().mean()) == pytest.approx(0.9694, abs=5e-5)
    with pytest.raises(Exception, match="."):
        program(digits.images.float())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.onnx", "a.int8.onnx"])
def test_an_onnx_file_takes_the_same_pixels(name: str, shipped, digits, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    write_graph(shipped, tmp_path / name)
    session = runtime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    told = session.get_modelmeta().custom_metadata_map["preprocess"]
    assert json.loads(told) == to_dict(shipped.preprocess)
    (found,) = session.run(None, {"input": digits.images.numpy()})
    hits = found.mean(1).argmax(1) == digits.labels.numpy()
    assert float(hits.mean()) == pytest.approx(0.9694, abs=5e-5)


def prepared(ticket: Ticket, how: Preprocess) -> Ticket:
    return dataclasses.replace(ticket, provenance={**ticket.provenance, **how.noted()})


def test_everything_that_is_made_of_a_ticket_carries_it(net, tmp_path: Path) -> None:
    ticket = prepared(net()[2], PIXELS)
    ticket.save(tmp_path / "ticket")
    export_ticket(read_ticket(tmp_path / "ticket"), tmp_path / "out")
    assert read_ticket(tmp_path / "out").provenance == ticket.provenance
    fast = load_exported(tmp_path / "out")
    plain = load_exported(tmp_path / "out", plain=True)
    hub = HubTicket.from_pretrained(str(tmp_path / "out"))
    hub.save_pretrained(tmp_path / "copy")
    again = load_exported(tmp_path / "copy")
    assert {id(one.preprocess == PIXELS) for one in (fast, plain, hub, again)} == {id(True)}
    x = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    wanted = fast.predict(x)
    assert hub.predict(x) == again.predict(x) == predict(fast, x) == wanted
    assert plain.predict(x) == copy.deepcopy(plain).predict(x) == predict(plain, x)
    assert [one.label for one in plain.predict(x)] == [one.label for one in wanted]
    assert all(one.name == f"class {one.label}" for one in wanted)
    with pytest.raises(ExportError, match=r"training mode cannot predict; call \.eval\(\) first"):
        predict(plain.train(), x)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "x = np.zeros((1, 16, 16, 3), np.uint8)" in card
        and "RGB pictures of 16 x 16 pixels" in card
    )


def test_a_stream_takes_pixels_and_slices_of_events(net, cnn) -> None:
    model, _, _ = net(patches=0.0)
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    plain, own = Stream(model), Stream(model)
    model.preprocess = PIXELS
    assert torch.equal(own.push(x), plain.push(to_input(x, PIXELS)))
    moving = cnn("resnet of events")
    moving.preprocess = EVENTS_IN
    plain, own = Stream(moving), Stream(moving)
    rng = np.random.default_rng(0)
    for count in (50, 0, 70):
        part = events(count, rng)
        counts = torch.zeros(1, 2, 16, 16)
        for event in part:
            counts[0, event["p"], event["y"], event["x"]] += 1
        assert torch.equal(own.push(part), plain.push(counts))


def test_an_artefact_without_it_says_so_and_takes_one(net, tmp_path: Path) -> None:
    ticket = net()[2]
    done = export_ticket(ticket, tmp_path / "out")
    assert "NOTICE: this ticket lacks its preprocess" in done.summary()
    told = (
        r"bits each in the file \(masks and values coded\), bound [\d.]+ \(masks at their entropy"
    )
    assert re.search(told, done.summary()) and "bits that evaluate tells" in done.summary()
    fast, x = load_exported(tmp_path / "out"), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ExportError, match=r"saved without its preprocess .* predict\(x, prep") as e:
        fast.predict(x)
    assert "\n" not in str(e.value)
    found = fast.predict(x, preprocess=PIXELS)
    export_ticket(ticket, tmp_path / "with", preprocess=PIXELS)
    assert load_exported(tmp_path / "with").predict(x) == found
    few = dataclasses.replace(PIXELS, classes=("a", "b"))
    with pytest.raises(ExportError, match="10 classes, its preprocess names 2"):
        fast.predict(x, preprocess=few)
    with pytest.raises(ExportError, match="10 classes, its preprocess names 2"):
        export_ticket(ticket, tmp_path / "few", preprocess=few)
    assert not (tmp_path / "few").exists()
    with pytest.raises(ExportError, match=r"is of \[2, 16, 16\] channels, rows and columns, the"):
        fast.predict(x, preprocess=EVENTS_IN)


WRONG: list[tuple[Any, str]] = [
    (torch.full((2, 3, 16, 16), 0.5), "pixels are float32; predict takes uint8"),
    (np.zeros((2, 16, 16, 3)), "pixels are float64"),
    (np.array([["a"]]), "pixels are <U1"),
    (torch.zeros(2, 3, 16, 17, dtype=torch.uint8), r"pixels are \[2, 3, 16, 17\]; needed are"),
    (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"needed are \[B, 16, 16, 3\]"),
    (torch.zeros(16, 16, dtype=torch.uint8), r"pixels are \[16, 16\]"),
    (torch.zeros(0, 3, 16, 16, dtype=torch.uint8), r"pixels are \[0, 3, 16, 16\]"),
    ([], "no sample was given"),
    (None, "NoneType is no picture"),
    (7, "int is no picture"),
    ("nowhere.png", "nowhere.png' is no file of a picture"),
    (Path(__file__), "is no picture but a text file"),
    (Image.new("I;16", (16, 16)), "has more than 8 bits a pixel, mode I;16"),
    (Path(__file__).parent, "is no file of a picture"),
]


@pytest.mark.parametrize(("x", "match"), WRONG, ids=lambda value: str(value)[:20])
def test_what_is_no_picture_is_refused_in_one_line(x: Any, match: str, shipped) -> None:
    with pytest.raises(DataError, match=match) as caught:
        shipped.predict(x)
    assert "\n" not in str(caught.value)


def events(count: int, rng: np.random.Generator, side: int = 16) -> np.ndarray:
    made = np.zeros(count, EVENTS)
    for name, top in (("x", side), ("y", side), ("p", 2)):
        made[name] = rng.integers(0, top, count)
    made["t_us"] = np.sort(rng.integers(0, 300_000, count))
    return made


@pytest.mark.fault(60)
@pytest.mark.parametrize("ticks", [1, 1000])
def test_an_event_ticket_takes_raw_recordings(ticks: int, cnn, tmp_path: Path) -> None:
    model = cnn("resnet of events")
    how = dataclasses.replace(HOW, by="n_time_bins", microseconds_per_tick=ticks)
    model.preprocess = dataclasses.replace(EVENTS_IN, recordings=how)
    made = events(4000, np.random.default_rng(1))
    made["t_us"] = made["t_us"] // ticks * ticks
    wanted = predict(model, to_input(made, model.preprocess))
    table = np.stack([made[name].astype(np.int64) for name in ("x", "y", "p", "t_us")], 1)
    columns = {name: made[name] for name in ("x", "y", "p", "t_us")}
    table_on_disk = table.copy()
    table_on_disk[:, 3] //= ticks
    np.save(tmp_path / "a.npy", table_on_disk)
    for form in (made, table, columns, tmp_path / "a.npy", str(tmp_path / "a.npy")):
        assert predict(model, form) == wanted
    assert predict(model, [made, tmp_path / "a.npy"]) == wanted * 2
    frames = to_input(made, model.preprocess)
    assert frames.shape == (1, 3, 2, 16, 16) and frames.sum() == 4000
    edges = np.searchsorted(
        made["t_us"], made["t_us"][0] + np.arange(1, 3) * (np.ptp(made["t_us"]) // 3)
    )
    assert frames[0].sum((1, 2, 3)).tolist() == np.diff([0, *edges, 4000]).tolist()


def test_recordings_become_the_frames_that_training_saw(tmp_path: Path) -> None:
    data = create_dataset("moving_digits", image_size=16)
    how = data.preprocess
    assert how is not None and how.recordings is not None
    assert how.recordings.T == 16 and how.classes == tuple("0123456789")
    for index in (0, 3):
        recording, _ = data.test.events(index)
        assert torch.equal(to_input(recording, how)[0], data.test[index][0])


def test_counts_are_binary_where_the_network_read_binary_frames() -> None:
    data = create_dataset(
        "moving_digits", image_size=16, events=EventOptions(T=16, values="binary")
    )
    assert data.preprocess is not None
    counts = np.full((2, 16, 2, 16, 16), 3.0)
    assert to_input(counts, data.preprocess).max() == 1.0


EVENT_FAULTS: list[tuple[Any, str]] = [
    (np.zeros(0, EVENTS), "recording has no event"),
    (np.array([(99, 0, 0, 1)], EVENTS), "x"),
    (
        torch.full((2, 4, 2, 16, 16), 0.5),
        r"frames are float32 \[2, 4, 2, 16, 16\]; needed are counts",
    ),
    (torch.full((1, 3, 2, 16, 16), float("nan")), "finite and 0 or more"),
    (torch.full((1, 3, 2, 16, 16), -1.0), "finite and 0 or more"),
    ("nowhere.npy", "is no file of a recording"),
    (7, "recording: events are int"),
]


@pytest.mark.parametrize(("x", "match"), EVENT_FAULTS, ids=lambda value: str(value)[:20])
def test_what_is_no_recording_is_refused_in_one_line(x: Any, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        to_input(x, EVENTS_IN)
    assert "\n" not in str(caught.value)


def test_more_steps_cut_a_recording_into_more_frames(net, tmp_path: Path) -> None:
    ticket = prepared(net(in_channels=2, score="rate")[2], EVENTS_IN)
    export_ticket(ticket, tmp_path / "out")
    made = events(500, np.random.default_rng(2))
    longer = load_exported(tmp_path / "out", T=5)
    five = dataclasses.replace(EVENTS_IN, recordings=dataclasses.replace(HOW, T=5))
    assert longer.predict(made) == longer.predict(to_input(made, five))
