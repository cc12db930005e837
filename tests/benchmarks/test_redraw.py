"""Every committed picture says its data, seeds and bars, and is what its tables draw today."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
import redraw
from matplotlib.figure import Figure
from PIL import Image

from spikeformer_lt.registry import descriptions

PICTURES = dict(redraw.pictures())
SEEDS = re.compile(r"\b[1-9]\d* seeds?\b|\bseed \d+\b")


def words_of(path):
    """What is written in a picture: the texts of an SVG, or the Description that a PNG carries."""
    if path.suffix == ".svg":
        root = ElementTree.parse(path).getroot()
        return "\n".join(node.text for node in root.iter() if node.tag.endswith("text"))
    with Image.open(path) as picture:
        return picture.text.get("Description", "")


@pytest.fixture
def saved(monkeypatch):
    """Figures that were saved; they are not rendered, which takes most of the time."""
    found = []

    def save(figure, file, metadata):
        found.append(figure)
        Image.new("1", (1, 1)).save(file, "PNG")
        said.append(metadata["Description"])

    said = []
    monkeypatch.setattr(Figure, "savefig", save)
    return found, said


@pytest.mark.parametrize("path", PICTURES, ids=lambda p: str(p.relative_to(redraw.RESULTS)))
def test_a_picture_says_data_seeds_and_bars_and_is_not_stale(path, saved, tmp_path):
    words = words_of(path)
    assert SEEDS.search(words) and re.search(r"\bbars\b", words), words
    report = path.with_name("report.json")
    named = {"simulated_gestures", "no data set", *descriptions("dataset")}
    if report.is_file():
        known = json.loads(report.read_text())
        assert re.search(rf"\b{known['dataset']}, .*seed {known['seed']};", words), words
    assert any(re.search(rf"\b{name}\b", words) for name in named), words
    PICTURES[path](path, tmp_path)
    drawn = words_of(tmp_path / path.name) if path.suffix == ".svg" else saved[1][0]
    assert drawn == words, "run python benchmarks/redraw.py"


def test_ours_on_digits_is_not_called_cifar(saved, tmp_path):
    for path in PICTURES:
        if path.parent.name == "paper-tables" and "-digits" in path.name:
            PICTURES[path](path, tmp_path)
    titles = [axes.get_title() for figure in saved[0] for axes in figure.axes if axes.get_title()]
    assert len(titles) > 20
    for title in titles:
        printed, ours = title.splitlines()
        assert printed.startswith(("open: ", "ours alone: ")) and "cifar" not in ours
        assert "cifar" not in printed or "as published" in printed


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PICTURES if p.suffix == ".png"], ids=lambda p: p.stem)
def test_words_of_a_picture_fit_in_it_and_lie_apart(path, tmp_path, monkeypatch):
    save = Figure.savefig

    def look(figure, *how, **more):
        save(figure, *how, **more)
        titles = [axes.title for axes in figure.axes]
        labels = [a.label for axes in figure.axes for a in (axes.xaxis, axes.yaxis)]
        boxes = [(text.get_text(), text.get_window_extent())
                 for text in (*figure.texts, *titles, *labels) if text.get_text()]  # fmt: skip
        wide, tall = figure.bbox.width + 2, figure.bbox.height + 2
        assert len(boxes) > 2
        for i, (text, box) in enumerate(boxes):
            assert -2 < box.x0 < box.x1 < wide and -2 < box.y0 < box.y1 < tall, text
            assert not [other for other, its in boxes[i + 1 :] if box.overlaps(its)], text

    monkeypatch.setattr(Figure, "savefig", look)
    PICTURES[path](path, tmp_path)


def test_a_word_of_no_picture_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["redraw.py", "scaling", "curvse"])
    with pytest.raises(SystemExit):
        redraw.main()
    assert "no picture has curvse in its path" in capsys.readouterr().err
