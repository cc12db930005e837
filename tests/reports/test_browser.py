"""The pages in a browser: nothing overlaps, tables and charts answer, the console is silent.

Without Chromium and chromedriver these tests skip and say so. SPIKEFORMER_SCREENSHOTS names a
folder for pictures of every page, width and theme.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from spikeformer_lt import Ticket
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.comparison import write_comparison, write_comparison_page
from spikeformer_lt.reports.finished import open_run
from spikeformer_lt.reports.run_page import write_run_page
from spikeformer_lt.tickets.surgery import model_from_ticket
from spikeformer_lt.training.jobs import Job

pytestmark = pytest.mark.xdist_group("browser")
WIDTHS, THEMES = (390, 1280, 1920), ("light", "dark")
SPILT = """
const inside = node => node.closest('.wide, nav, noscript, .tip');
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll('main *')].filter(node => {
  const box = node.getBoundingClientRect();
  return box.width && !inside(node) && (box.right > wide + 1 || box.left < -1);
}).map(node => node.outerHTML.slice(0, 100));
"""
OVERLAP = """
const found = [];
for (const group of document.querySelectorAll('main, .figures, .tools, .tiles, header.bar')) {
  const boxes = [...group.children].map(node => [node, node.getBoundingClientRect()])
    .filter(([node, box]) => box.width && box.height && node.className !== 'tip');
  for (const [i, [a, one]] of boxes.entries()) for (const [b, other] of boxes.slice(i + 1))
    if (Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
        && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 1)
      found.push(a.outerHTML.slice(0, 80) + ' / ' + b.outerHTML.slice(0, 80));
}
for (const chart of document.querySelectorAll('figure.chart svg[role=img]')) {
  const texts = [...chart.querySelectorAll('text.tick:not([transform]), text[transform*="-90"]')];
  const ticks = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
  for (const [i, [a, one]] of ticks.entries()) for (const [b, other] of ticks.slice(i + 1))
    if (Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
        && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 3)
      found.push(`${chart.getAttribute('aria-label').slice(0, 40)}: ${a} / ${b}`);
}
return found;
"""
UNUSED = """
const wide = document.querySelector('main h2').getBoundingClientRect();
return [...document.querySelectorAll('.figures')].filter(grid => {
  const ends = [...grid.children].map(node => node.getBoundingClientRect().right);
  return ends.length > 1 && Math.max(...ends) < wide.left + 0.95 * wide.width;
}).map(grid => grid.outerHTML.slice(0, 100));
"""
HIDDEN = """
return [...document.querySelectorAll('tbody th')]
  .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent);
"""
CELLS = """
const rows = [...document.querySelector('tbody').rows].filter(row => !row.hidden);
return rows.map(row => row.cells[arguments[0]].textContent);
"""
SUMMARY = ("phase,epoch,train_accuracy,val_accuracy,train_loss,val_loss,"
           "firing_rate,weight_sparsity,patch_sparsity,sops,weight_bytes\n")  # fmt: skip


def comparison(folder: Path) -> Path:
    """Variants over two seeds and four rates, one of them told apart."""
    jobs = []
    for variant, accuracy, removed in (
        ("dense", 97.0, 0.0),
        *((f"imp {rate}", 96.0 - rate, rate) for rate in (0.5, 0.68, 0.9, 0.98)),
        *((f"random {rate}", 94.0 - 40 * rate, rate) for rate in (0.5, 0.68, 0.9, 0.98)),
    ):
        for seed in (0, 1):
            job = Job(variant, seed, folder / "runs" / f"{variant}-{seed}", ())
            kept = torch.arange(200) >= round(200 * removed)
            Ticket(Mask({"w": kept}), {"w": kept.float()}, {}).save(job.folder / "ticket")
            report = {
                "dataset": "digits", "split_sha256": "s", "seed": seed, "test_count": 359,
                "test_accuracy": accuracy + seed, "accuracy_at_t": [accuracy - 9, accuracy + seed],
                "sparsity": {"patch": 0.0, "conv_pep_weight": removed, "total_weight": removed},
                "sops": 1e6 * (1.01 - removed), "weight_bytes": 4e4 * (1.02 - removed),
                "energy_pj": 1e6, "firing_rate": {"a": 0.1}, "seconds": 61.0,
            }  # fmt: skip
            job.report.write_text(json.dumps(report))
            made = {"command": f"recipes/x.py --seed {seed}", "git_commit": "0123456789abcdef",
                    "git_clean": True, "cpu": "a processor", "threads": 1, "gpus": [],
                    "date": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2"}}  # fmt: skip
            (job.folder / "env.json").write_text(json.dumps(made))
            jobs.append(job)
    write_comparison(folder, jobs, "Ticket searches on digits", "all weights")
    return folder / "report.html"


@pytest.fixture(autouse=True)
def _own_complaints(browser):
    browser.complaints()  # those of the test before


@pytest.fixture(scope="module")
def pages(tmp_path_factory, saved):
    folder = tmp_path_factory.mktemp("pages")
    runs = []
    for name, removed in (("dense", 0.0), ("ticket", 0.9)):
        saved(folder / name)
        report = {
            "run_id": name, "seed": 3, "test_accuracy": 92.5, "test_count": 40, "seconds": 12.0,
            "accuracy_at_t": [70.0, 92.5], "confusion": torch.eye(10).long().mul(8).add(1).tolist(),
            "sparsity": {"patch": removed / 3, "conv_pep_weight": removed, "total_weight": removed},
            "firing_rate": {"conv_pep.stages.0.act": 0.25, "blocks.0.attn.lif": 0.0}, "sops": 1.5e6,
        }  # fmt: skip
        (folder / name / "report.json").write_text(json.dumps(report))
        rows = [
            f"joint,{e},{50 + e},{48 + e},{2 - e / 9},{2 - e / 10},{e / 90},0.1,0.2,{1e6 + e},5e5\n"
            for e in range(9)
        ]
        (folder / name / "summary.csv").write_text(SUMMARY + "".join(rows))
        rates = [f"joint,{e},{e / 50},0.2\n" for e in range(9)]
        firing = "phase,epoch,blocks.0.attn.lif,stem\n" + "".join(rates)
        (folder / name / "firing.csv").write_text(firing)
        runs.append(open_run(folder / name, model_from_ticket))
    return {
        "variants": comparison(folder / "variants"),
        "run": write_run_page(runs[0], folder / "run", images=8),
        "runs": write_comparison_page(runs, folder / "runs", "Two networks", images=8),
    }


@pytest.mark.parametrize("name", ["variants", "run", "runs"])
def test_nothing_spills_or_overlaps_and_the_console_is_silent(browser, pages, name):
    folder = os.environ.get("SPIKEFORMER_SCREENSHOTS")
    for theme in THEMES:
        browser.system(theme)
        for width in WIDTHS:
            browser.size(width)
            browser.open(pages[name])
            time.sleep(0.1)  # the observer of sizes draws again
            where = f"{name} {theme} {width}"
            assert browser.script("return document.documentElement.dataset.theme") == theme
            assert browser.script(SPILT) == [], where
            assert browser.script(OVERLAP) == [], where
            assert browser.script(UNUSED) == [], where
            assert browser.script(HIDDEN) == [], where
            words = browser.script("return document.querySelector('main').innerText")
            assert not re.search(r"undefined|NaN|\[object", words), where
            charts = browser.script(
                "return [...document.querySelectorAll('figure.chart')].map("
                "one => [one.querySelector('svg[role=img]').getAttribute('aria-label'),"
                " one.querySelectorAll('.mark').length])"
            )
            assert len(charts) >= 3 and all(alt and marks for alt, marks in charts), where
            assert browser.complaints() == [], where
            if folder:
                browser.picture(Path(folder) / f"{name}-{width}-{theme}.png")


def test_a_printed_page_fits_the_paper_and_is_light(browser, pages):
    browser.command("Emulation.setEmulatedMedia", media="print",
                    features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
    browser.size(1046)  # A4 across, less its margins
    for page in pages.values():
        browser.open(page)
        time.sleep(0.1)
        width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.script(width) <= 0, page
        paper = "return getComputedStyle(document.body).backgroundColor"
        assert browser.script(paper) == "rgb(255, 255, 255)"
    browser.command("Emulation.setEmulatedMedia", media="")


def test_tables_sort_filter_and_keep_their_first_column(browser, pages):
    browser.system("light")
    browser.size(390)
    browser.open(pages["variants"])
    browser.script("document.querySelectorAll('thead th button')[2].click()")
    found = [float(text.split()[0]) for text in browser.script(CELLS, 2)]
    assert found == sorted(found, reverse=True) and len(found) == 9
    browser.script("document.querySelectorAll('thead th button')[2].click()")
    assert [float(text.split()[0]) for text in browser.script(CELLS, 2)] == sorted(found)
    ordered = "return document.querySelectorAll('thead th')[2].getAttribute('aria-sort')"
    assert browser.script(ordered) == "ascending"
    asked = (
        "const box = document.querySelector('input[type=search]'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('input')); return document.querySelector('output').textContent"
    )
    assert browser.script(asked, "imp 0.9") == "2 of 9 rows"
    assert set(browser.script(CELLS, 0)) == {"imp 0.9", "imp 0.98"}
    assert browser.script(asked, "all weights > 89") == "4 of 9 rows"
    assert browser.script(asked, "") == "9 rows"
    stays = (
        "const wide = document.querySelector('.wide'); wide.scrollLeft = 300;"
        "return [wide.scrollLeft, document.querySelector('tbody th').getBoundingClientRect().left"
        " - wide.getBoundingClientRect().left]"
    )
    scrolled, left = browser.script(stays)
    assert scrolled > 100 and abs(left) <= 2
    assert browser.complaints() == []


def test_the_theme_toggles_and_is_kept(browser, pages):
    browser.system("light")
    browser.size(1280)
    browser.open(pages["variants"])
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.script(colour)
    browser.script("document.getElementById('theme').click()")
    dark = browser.script(colour)
    assert light != dark
    browser.open(pages["run"])
    assert browser.script(colour) == dark
    browser.script("document.getElementById('theme').click(); localStorage.clear()")
    assert browser.script(colour) == light and browser.complaints() == []


def test_a_cost_that_is_not_known_draws_no_mark(browser, pages):
    browser.open(pages["runs"])
    texts = (
        "const chart = document.querySelector('figure.chart');"
        "const pick = chart.querySelector('select');"
        "pick.value = [...pick.options].findIndex(o => o.textContent === 'energy (uJ)');"
        "pick.dispatchEvent(new Event('change'));"
        "return [...chart.querySelectorAll('svg[role=img] text')].map(t => t.textContent)"
    )
    assert browser.script(texts) == ["Nothing is known on this axis."]  # both are silent: refused


PICK = """
const chart = [...document.querySelectorAll('figure.chart')][arguments[0]];
const pick = chart.querySelector('select');
const axes = [...pick.options].map(one => one.textContent);
if (arguments[1]) {
  pick.value = axes.indexOf(arguments[1]);
  pick.dispatchEvent(new Event('change'));
}
const texts = [...chart.querySelectorAll('svg[role=img] text')].map(text => text.textContent);
return [axes, axes[pick.value], chart.querySelectorAll('svg[role=img] .mark').length, texts];
"""


def test_milliseconds_are_an_axis_of_a_comparison_where_they_were_measured(
    browser, saved, tmp_path
):
    reports = {"dense": 97.0, "imp 0.9": 95.0, "snip 0.9": 93.0}
    jobs = [Job(name, 0, tmp_path / name, ()) for name in reports]
    for job, accuracy in zip(jobs, reports.values(), strict=True):
        saved(job.folder)
        report = {"dataset": "digits", "split_sha256": "s", "seed": 0, "test_count": 359,
                  "test_accuracy": accuracy, "firing_rate": {"a": 0.1}, "sops": 1e6,
                  "sparsity": {"total_weight": 0.0 if job.variant == "dense" else 0.9}}  # fmt: skip
        job.report.write_text(json.dumps(report))
    shutil.rmtree(jobs[2].folder / "ticket")  # a report alone: its network cannot be timed
    text = write_comparison(tmp_path, jobs, "Tickets", "all weights")
    assert "Milliseconds are those of the first seed" in text
    with (tmp_path / "comparison.csv").open(newline="") as file:
        cells = {row["variant"]: row["ms per input"].strip("'") for row in csv.DictReader(file)}
    assert cells["snip 0.9"] == "-" and all(float(cells[n]) > 0 for n in ("dense", "imp 0.9"))
    browser.size(1280)
    browser.open(tmp_path / "report.html")
    axes, shown, marks, texts = browser.script(PICK, 1, "")
    assert "ms per input" in axes and {"SOPs (M)", "all weights kept (%)"} <= set(axes)
    assert browser.script(PICK, 0, "")[2] == 3  # all are known on the first axis, SOPs
    axes, shown, marks, texts = browser.script(PICK, 1, "ms per input")
    assert (shown, marks) == ("ms per input", 2) and "ms per input" in texts
    assert browser.complaints() == []


def test_what_is_drawn_as_a_line_alone_has_a_line_in_the_legend_and_pictures_are_dark(
    browser, pages
):
    browser.system("dark")
    browser.open(pages["variants"])
    signs = browser.script("""
        const charts = [...document.querySelectorAll('figure.chart')];
        const chart = charts.find(one => /left or removed/.test(one.textContent));
        const has = (one, what) => one.querySelector(what) !== null;
        return [...chart.querySelectorAll('.legend button')].map(one =>
          [one.textContent, has(one, 'line'), has(one, '.mark')]);
    """)
    assert signs == [["imp", False, True], ["random", False, True], ["dense", True, False]]
    colours = browser.script("""
        return [...document.querySelectorAll('figure.chart')].map(chart => Object.fromEntries(
          [...chart.querySelectorAll('.legend button')].filter(one => one.querySelector('.mark'))
            .map(one => [one.textContent, one.querySelector('.mark').getAttribute('fill')])));
    """)
    known = {}
    for name, colour in (pair for chart in colours for pair in chart.items()):
        assert known.setdefault(name, colour) == colour  # the same in every chart
    browser.open(pages["run"])
    looks = browser.script("""
        return [...document.querySelectorAll('figure > img')].map(one =>
          [one.className, getComputedStyle(one).filter, getComputedStyle(one).backgroundColor]);
    """)
    assert {look[0] for look in looks} == {"drawn", "photo"}
    for kind, how, ground in looks:
        assert ground == "rgba(0, 0, 0, 0)" and ("invert" in how) == (kind == "drawn")
    browser.system("light")


def test_charts_answer_to_the_pointer_the_legend_and_the_choice_of_axis(browser, pages, tmp_path):
    browser.size(1280)
    browser.open(pages["variants"])
    first = "const chart = document.querySelector('figure.chart');"
    marks = first + "return chart.querySelectorAll('svg[role=img] .mark').length"
    assert browser.script(marks) == 9
    shown = first + (
        "const mark = chart.querySelector('svg[role=img] .mark');"
        "mark.dispatchEvent(new PointerEvent('pointerenter'));"
        "const tip = chart.querySelector('.tip'); return tip.hidden ? '' : tip.textContent"
    )
    assert "test accuracy (%): " in browser.script(shown)
    browser.script(first + "chart.querySelectorAll('.legend button')[1].click()")
    assert browser.script(marks) == 5  # the four rates of imp are one entry
    axes = browser.script(
        first + "return [...chart.querySelectorAll('option')].map(o => o.textContent)"
    )
    assert {"SOPs (M)", "weights (kB)", "energy (uJ)", "all weights kept (%)"} == set(axes)
    browser.script(
        first + "const pick = chart.querySelector('select'); pick.value = arguments[0];"
        "pick.dispatchEvent(new Event('change'))", axes.index("all weights kept (%)")
    )  # fmt: skip
    words = (
        first + "return [...chart.querySelectorAll('svg[role=img] text')].map(t => t.textContent)"
    )
    assert "all weights kept (%)" in browser.script(words)
    browser.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.script("document.querySelector('.tools button').click()")
    for _ in range(50):
        time.sleep(0.1)
        if files := list(tmp_path.glob("*.csv")):
            break
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows][:2] == ["dense", "imp 0.5"] and len(rows) == 9
    assert browser.complaints() == []
