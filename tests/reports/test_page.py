"""A page that needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.page import markdown_table, write_csv, write_page

PNG = b"\x89PNG\r\n\x1a\n"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write(folder, pictures=(), **content):
    """Write the page of a comparison with hostile values in every place."""
    usual = {
        "title": "<b>&</b>",
        "notices": ["<script>alert(1)</script>"],
        "datasets": ["digits"],
        "table": (["a<", "b"], [["<x>", 1], ["y", 2]]),
        "curves": {"curve.png": 'a "picture"'},
        "differ": "",
        "against": (["variant", "verdict"], []),
        "differences": "",
        "columns_say": "",
        "conclusion": "a < b",
        "made": [("command", "python <x>")],
        "count": None,
    }
    return write_page(folder / "report.html", "variants.html", pictures, **{**usual, **content})


def test_a_page_is_whole_escaped_and_loads_nothing(tmp_path):
    (tmp_path / "curve.png").write_bytes(PNG)
    text = write(tmp_path / "new", [tmp_path / "curve.png"]).read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = [tag for tag, _ in tags.seen]
    assert not {"link", "b", "x"} & set(names) and "alert(1)</script" not in text
    assert "embedded test bed" in text and names.count("p") == 4
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = "style-src 'unsafe-inline'"
    assert f"default-src 'none'; img-src data:; {style}; script-src 'sha256-{allowed}'" in text
    (image,) = [attrs for tag, attrs in tags.seen if tag == "img"]
    assert image["src"].startswith("data:image/png;base64,iVBOR") and image["alt"] == 'a "picture"'
    links = [attrs["href"] for tag, attrs in tags.seen if tag == "a"]
    ids = [attrs["id"] for tag, attrs in tags.seen if tag == "h2"]
    assert links == ["#s1", "#s2"] and ids == ["s1", "s2"]
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)


def test_what_was_not_drawn_has_no_heading(tmp_path):
    text = write(tmp_path, differ="other layers").read_text()
    assert re.findall(r"<h2[^>]*>([^<]*)", text) == ["Table", "Masks"]
    assert "No distances: other layers" in text and "<img" not in text


def test_numbers_beside_a_picture_become_a_chart_with_words_and_the_picture_without_script(
    tmp_path,
):
    (tmp_path / "curve-x.png").write_bytes(PNG)
    rows = [["</script>", 0.5, 90.0, "nan", 2], ["</script>", 0.9, 80.0, 1.5, 2]]
    write_csv(tmp_path / "curve-x.csv", ["series", "x", "mean", "sd", "runs"], rows)
    text = write(
        tmp_path, [tmp_path / "curve-x.png"], curves={"curve-x.png": "Seen"}, count=20
    ).read_text()
    (spec,) = [
        json.loads(x) for x in re.findall(r'<script type="application/json">(.*?)</script>', text)
    ]
    assert spec["rows"] == [["</script>", 0.5, 90.0, "", 2.0], ["</script>", 0.9, 80.0, 1.5, 2.0]]
    assert spec["alt"] == (
        "Test accuracy (%) against x removed (fraction): </script> 90 at 0.5, 80 at 0.9."
    )
    assert spec["least"] == 100  # one of 20 images is a twentieth of the axis
    assert '<noscript><img alt="Seen' in text


SUMMARY = [
    ["train_accuracy", "stem", 1, 22.34375], ["train_accuracy", "whole", 3, 51.328125],
    ["val_accuracy", "stem", 1, 38.62068965517241], ["val_accuracy", "stem", 2, 67.58620689655173],
    ["val_accuracy", "whole", 3, 66.1],
    ["train_loss", "stem", 1, 2.3], ["train_loss", "whole", 3, 1.0],
]  # fmt: skip
SEEN = {
    "training.png": (
        ["quantity", "phase", "epoch_of_run", "value"], SUMMARY,
        "Accuracy (%) against epoch (all phases): train accuracy 22.34 at 1 (phase stem), 51.33 at "
        "3 (phase whole); validation accuracy 38.62 at 1 (phase stem), 66.1 at 3 (phase whole), "
        "highest 67.59 at 2 (phase stem).",
    ),
    "curves.png": (
        ["series", "x", "mean", "sd", "runs"],
        [["imp", 0.5, 88.123456, 1, 3], ["imp", 0.9, 80, 2, 3], ["dense", "", 90.04999, "", ""]],
        "Test accuracy (%) against all weights removed (fraction): imp 88.12 at 0.5, 80 at 0.9; "
        "dense "
        "90.05 throughout.",
    ),
    "epoch-rates.png": (
        ["quantity", "phase", "epoch", "value"],
        [["firing_rate", "stem", 1, 0.21234567], ["firing_rate", "stem", 2, 0.1],
         ["sops", "stem", 1, 12345678.9], ["sops", "stem", 2, 2000.4]],
        "Fraction against epoch (all phases): firing rate 0.2123 at 1, 0.1 at 2.",
    ),
    "layer-epoch-rates.png": (
        ["layer", "phase", "epoch", "firing_rate"],
        [["stem.0", "stem", 1, 0.35123456], ["stem.0", "stem", 2, 0.2], ["head", "stem", 1, 0]],
        "Spikes per neuron and step: largest 0.3512 (layer stem.0, phase stem, epoch 1), "
        "smallest 0 "
        "(layer head, phase stem, epoch 1).",
    ),
    "anytime.png": (
        ["network", "t", "accuracy"],
        [["a", 1, 50], ["a", 2, 70.123456], ["b", 1, 40], ["b", 2, 30]],
        "Accuracy (%) against time steps used: a 50 at 1, 70.12 at 2; b 40 at 1, 30 at 2.",
    ),
    "early-exit.png": (
        ["confidence", "mean_steps", "accuracy"], [[0.5, 1.2, 80.123456], [0.99, 3.9, 88]],
        "Accuracy (%) against mean time steps used: 80.12 at 1.2 (confidence 0.5), 88 at 3.9 "
        "(confidence 0.99).",
    ),
    "confusion.png": (
        ["true", "0", "1", "2"], [[0, 9, 1, 0], [1, 3, 5, 2], [2, 0, 0, 0]],
        "14 of 20 right. Right by class, %: largest 90 (class 0), smallest 50 (class 1). Most "
        "often "
        "taken for another: class 1 for 0, 3 times.",
    ),
    "keep-frequency.png": (
        ["row", "column", "kept_fraction"], [[0, 0, 0.123456], [0, 1, 1], [1, 0, 0.5], [1, 1, 0.5]],
        "Fraction of inputs that keep it: largest 1 (row 0, column 1), smallest 0.1235 (row 0, "
        "column "
        "0).",
    ),
    "layer-rates.png": (
        ["layer", "firing_rate"], [*([f"block.{i}", i / 9] for i in range(9))],
        "9 bars; firing rate (spikes per neuron and step): largest 0.8889 (block.8), smallest 0 "
        "(block.0). 1 of 9 are dead: block.0.",
    ),
    "energy-bars.png": (
        ["network", "kind", "group", "energy_uj"],
        [["a", "counted", "stem", 1.23456], ["a", "counted", "head", 1],
         ["a", "formula", "stem", 4]],
        "Energy per sample (uJ, estimate): a counted 2.235; a formula 4.",
    ),
    "masks.png": (
        ["mask", "a", "b", "c"], [["a", 0, 0.1, 0.2], ["b", 0.1, 0, ""], ["c", 0.2, "", 0]],
        "Fraction of entries that differ: largest 0.2 (c and a), smallest 0.1 (b and a).",
    ),
    "mask-distances.png": (
        ["mask", "1", "2"], [["1", 0, 0.25], ["2", 0.25, 0]],
        "Fraction of entries that differ: 0.25 in each of 1.",
    ),
    "kept-patches.png": (
        ["image", "label", "kept_tokens"], [[0, "3", "1 2 3"], [1, "4", "7"]],
        "2 inputs; patches kept in each: 1 to 3.",
    ),
    "kept-clip.png": (
        ["t", "off_events", "on_events"], [[1, 10, 5], [2, 100, 23], [3, 0, 1]],
        "Events in 3 steps: largest 123 (step 2), smallest 1 (step 3).",
    ),
    "raster.png": (
        ["layer", "t", "neuron"], [["stem", 1, 4], ["stem", 2, 4], ["head", 1, 0]],
        "Spikes drawn: largest 2 (stem), smallest 1 (head).",
    ),
    "membrane.png": (
        ["neuron", "t", "membrane", "spike"], [[3, 1, -0.123456, 0], [3, 2, 0.9, 1], [5, 1, 0, 0]],
        "Membranes from -0.1235 to 0.9; spikes: neuron 3 1, neuron 5 0.",
    ),
    "kernels-stem.png": (
        ["filter", "plus", "zero", "minus"], [[0, 1, 7, 1], [1, 0, 9, 0]],
        "5.556 % +, 88.89 % 0, 5.556 % -; 1 of 2 filters are empty.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_a_picture_says_what_is_seen_in_it(name, tmp_path):
    """Titles, not names of code; four digits; of a map its ends and their places."""
    header, rows, told = SEEN[name]
    (tmp_path / name).write_bytes(PNG)
    write_csv((tmp_path / name).with_suffix(".csv"), header, rows)
    text = write(tmp_path, [tmp_path / name], curves={name: "Seen."}, count=20).read_text()
    charts = re.findall(r'<script type="application/json">(.*?)</script>', text)
    if charts:
        assert json.loads(charts[0])["alt"] == told
    tags = Tags()
    tags.feed(text)
    image = next(attrs for tag, attrs in tags.seen if tag == "img")
    assert image["alt"].endswith(f". {told}")
    assert not re.search(r"\d\.\d{5}|\w_\w", image["alt"])


def test_accuracy_against_cost_says_the_ends(tmp_path):
    table = (
        ["variant", "test accuracy %", "SOPs (M)"],
        [["dense", "90.05 +- 1", "7"], ["x", "80.1", "5"]],
    )
    (chart, *_) = re.findall(
        r'<script type="application/json">(.*?)</script>', write(tmp_path, table=table).read_text()
    )
    told = "Test accuracy %: largest 90.05 (dense), smallest 80.1 (x)."
    assert json.loads(chart)["alt"] == told


def test_other_files_and_missing_pictures_are_refused(tmp_path):
    for name, words in (("curve.svg", "no picture"), ("curve.png", "cannot be read")):
        with pytest.raises(DataError, match=words):
            write(tmp_path, [tmp_path / name], curves={name: "x"})
    assert not (tmp_path / "report.html").exists()


def test_a_markdown_table_is_aligned_and_escaped():
    text = markdown_table(["name", "x"], [["a|b", "1"], ["long name", "22"]])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "a\\|b" in lines[2]
    assert set(lines[1]) == {"|", "-"}


def test_a_formula_in_a_cell_is_defused(tmp_path):
    write_csv(tmp_path / "t.csv", ["a", "b"], [["=cmd()", 1.5], ["x,y", -2]])
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["a", "b"], ["'=cmd()", "1.5"], ["x,y", "-2"]]
