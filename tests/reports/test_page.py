"""A page that needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.page import Page

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


def read(page):
    tags = Tags()
    tags.feed(page.render())
    assert tags.open == []
    return tags.seen


def test_a_page_is_whole_escaped_and_without_script_or_address(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    page = Page("<b>&</b>")
    page.section("One & two")
    page.text("<script>alert(1)</script>", notice=True)
    page.table(["a<", "b"], [["<x>", 1]])
    page.image(tmp_path / "p.png", 'a "picture"')
    seen = read(page)
    assert "script" not in {tag for tag, _ in seen} and "link" not in {tag for tag, _ in seen}
    sources = [attrs["src"] for tag, attrs in seen if tag == "img"]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,iVBOR")
    assert all(attrs["alt"] for tag, attrs in seen if tag == "img")
    links = [attrs["href"] for tag, attrs in seen if tag == "a"]
    assert links == ["#s1"] and any(attrs.get("id") == "s1" for _, attrs in seen)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page.render())
    page.write(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text() == page.render()


def test_other_files_and_missing_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="no picture"):
        Page("x").image(tmp_path / "a.svg", "x")
    with pytest.raises(DataError, match="cannot be read"):
        Page("x").image(tmp_path / "a.png", "x")
