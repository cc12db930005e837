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
    assert spec["alt"] == "</script>: 90.0 to 80.0."
    assert spec["least"] == 100  # one of 20 images is a twentieth of the axis
    assert '<noscript><img alt="Seen' in text


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
