"""Runs from Python: the same files as the console, typed, and errors that speak of arguments."""

from __future__ import annotations

import importlib.util
import inspect
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spikeformer_lt as lt
from spikeformer_lt import registry
from spikeformer_lt.cli import show_card
from spikeformer_lt.errors import (
    ConfigError,
    DataError,
    ExportError,
    SpikeformerError,
    TicketError,
)
from spikeformer_lt.export import EventStream, Stream
from spikeformer_lt.layers.patches import PatchSelect, Random

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"data.limit-train": 64, "data.limit-test": 40, "data.image-size": 16, "train.cpu": True}
PICTURES = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a user's script has run."""
    folder = tmp_path_factory.mktemp("user")
    spec = importlib.util.spec_from_file_location("user_script", ROOT / "tests" / "user_script.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    accuracy = script.main(folder)
    assert accuracy == json.loads((folder / "multisp" / "report.json").read_text())["test_accuracy"]
    return folder


def test_a_run_knows_its_files(home: Path) -> None:
    run = lt.Run(home / "multisp")
    assert run.report["run_id"] in (home / "multisp" / "log.txt").read_text()
    assert run.config["multisp"]["epochs"] == 1 and run.config["model"]["T"] == 2
    assert run.ticket.mask == run.start.mask and run.ticket.provenance["fingerprint"]
    assert repr(run) == f"Run({str(run.folder)!r}: test {run.report['test_accuracy']:.2f} %, " + (
        f"{100 * run.report['sparsity']['total_weight']:.1f} % removed)"
    )
    card = dict(run.card)
    assert f"{run.report['test_accuracy']:.2f} % of 40, 95 % interval [" in card["test accuracy"]
    assert f"of the dense run {(home / 'dense').resolve()}" in card["synaptic operations"]
    rates = list(run.report["firing_rate"].values())
    fired, _, read = card["activations"].partition("; inputs of ")
    share = f"{100 * sum(rates) / len(rates):.1f} %"
    assert fired == f"{share} of a layer's neurons fire a step (mean of layers)"
    kinds = [layer["input"] for layer in run.report["layers"].values()]
    assert read.startswith(f"{len(kinds)} layers: 1 bit ({kinds.count('{0,1}')}), ")
    assert read.endswith(f"32 bits ({kinds.count('real')})")
    packed = sum((home / "packed" / f).stat().st_size for f in ("config.json", "model.safetensors"))
    assert abs(int(card["packed"].split()[0].replace(",", "")) - packed) < 500  # less its `about`
    page = run._repr_html_()
    assert page.count("<td>") == 2 * len(card) and card["packed"] in page
    assert "<thead>" not in page and "<thead>" in run.compare(home / "dense")._repr_html_()


def test_the_card_at_the_end_is_coloured_on_a_terminal_alone(
    home: Path, terminal: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal() as told:
        show_card(home / "multisp")
    assert f"\x1b[1m{home / 'multisp'}:\x1b[0m\n" in told[0] and "\x1b[1mnext:\x1b[0m" in told[0]
    show_card(home / "multisp")
    plain = capsys.readouterr().out
    assert re.sub(r"\x1b\[\d+m", "", told[0]) == plain and "\x1b" not in plain
    assert re.search(r"test accuracy +\S+ % of 40, 95 % interval \[", plain)
    assert plain.partition("next:\n")[2].count("  spikeformer-lt ") == 3
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal() as told:
        show_card(home / "multisp")
    assert told[0] == plain


def test_a_second_reading_of_the_test_set_says_so(home: Path) -> None:
    run = lt.Run(home / "multisp")
    first, anew, val = run.evaluate(), run.evaluate(again=True), run.evaluate("val")
    assert first.source == home / "multisp" / "predictions.safetensors" and anew.source is None
    assert torch.equal(first.metrics.predictions.logits, anew.metrics.predictions.logits)
    assert "saved at the first reading" in repr(first) and repr(anew) in repr(first)
    assert val.source is None and val.interval.low <= val.accuracy <= val.interval.high
    with pytest.raises(ConfigError, match=r"split='tset' is not allowed: train, val or test"):
        run.evaluate("tset")
    run.net.set_patch(PatchSelect(Random(), 0.75))  # another network, of the same weights
    other = run.evaluate()
    assert other.source is None and other.ledger["sparsity"]["patch"] == 0.75


def test_what_the_top_level_returns_has_a_short_repr(home: Path, tmp_path: Path) -> None:
    """One or two lines of facts: no address, no tensor, no tree of modules."""
    run = lt.Run(home / "multisp")
    shape, events = (
        torch.zeros(2, 3, 16, 16),
        lt.from_pretrained("spikformer_dvs_toy.moving_gestures"),
    )
    adapted, read = (
        lt.adapt(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), images=shape),
        run.evaluate(),
    )
    digits, one = lt.create_dataset("digits"), lt.predict(run.net, PICTURES)[0]
    recorded = lt.create_dataset("moving_digits", limit_train=20, limit_test=10)
    told: list[tuple[Any, str]] = [
        (run, "% removed)"),
        (run.ticket, "Ticket(spikformer_toy of digits by multisp, weights: "),
        (lt.Run(home / "dense").start, "by random, start weights: "),
        (run.ticket.mask, "layers, "),
        (run.compare(home / "dense"), " points)"),
        (read, " % of 40, 95 % interval ["),
        (read.metrics, "Metrics("),
        (read.metrics.predictions, "Predictions("),
        (run.export(tmp_path / "packed"), "x smaller than float32, verified)"),
        (lt.load_exported(home / "packed"), "CompactModel(Spikformer, T 2, classes 10, "),
        (lt.from_pretrained(home / "packed"), "HubTicket(Spikformer, T 2, classes 10, "),
        (one, f"Prediction(label={one.label}, "),
        (digits, f"Splits(digits: {len(digits.train):,} train, "),
        (digits.train, "ArrayImages(digits train: "),
        (digits.preprocess, "; 10 classes)"),
        (recorded, " 10 test; 10 classes, frames of events 2 x "),
        (recorded.test, ": 10 samples)"),
        (recorded.preprocess, " camera, "),
        (adapted, "Adapted(Sequential: [3, 16, 16] -> 10 classes, T 1, "),
        (adapted.found, "Found(Sequential: "),
        (Stream(run.net), "0 of 2 frames"),
        (EventStream(events, 50_000), "EventStream(Spikformer: windows of 50000 us, clips of "),
        (lt.create_search("imp"), "Imp(imp, seed 0)"),
        (lt.check_model(run.net), ", 0 missing)"),
    ]
    for value, words in told:
        text = repr(value)
        assert words in text, text
        assert len(text) <= 240 and text.count("\n") <= 1, text
        assert not re.search(r" at 0x|tensor\(|\(0\): ", text), text


def test_an_export_predicts_as_its_run(home: Path) -> None:
    run = lt.Run(home / "multisp")
    nets = [run, lt.load_exported(home / "packed"), lt.from_pretrained(home / "packed")]
    assert len({tuple(p.label for p in net.predict(PICTURES)) for net in nets}) == 1
    assert lt.predict(run.net, PICTURES) == run.predict(PICTURES)


def test_runs_are_compared_by_sample(home: Path) -> None:
    found = lt.compare(home / "dense", lt.Run(home / "multisp"))
    assert found.header == ["quantity", "dense", "multisp"]
    (row,) = found.differences[1]
    points = [lt.Run(home / name).report["test_accuracy"] for name in ("multisp", "dense")]
    assert row[:3] == ["multisp", "dense", "1"] and row[3] == f"{points[0] - points[1]:+.2f}"
    assert repr(found) == f"Comparison(test accuracy against dense: multisp {row[3]} points)"
    assert str(found).count("| multisp") == 2 and "<caption>test accuracy" in found._repr_html_()
    with pytest.raises(ConfigError, match="two or more, each once"):
        lt.compare(home / "dense", home / "dense")
    with pytest.raises(ConfigError, match=r"folder='.*packed' is not allowed: a finished run"):
        lt.Run(home / "packed")


def test_a_network_of_the_users_own_ends_trained_and_is_asked_again(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    start = net[1].weight.detach().clone()
    run = lt.train("random", net, "digits", sparsity=0.5, epochs=1, out=tmp_path / "run",
                   options=SMALL)  # fmt: skip
    assert int((net[1].weight == 0).sum()) == 3840 and not torch.equal(net[1].weight, start)
    assert run.evaluate(again=True).accuracy == run.report["test_accuracy"]
    assert run.export(tmp_path / "packed").folder == tmp_path / "packed"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"model module:Sequential: .* M parameters, T 1\n", log), log
    assert "no time axis: T 1; no states" in log
    with pytest.raises(ConfigError, match="already holds a run|holds a run"):
        lt.train("random", net, "digits", sparsity=0.5, out=tmp_path / "run", options=SMALL)


@pytest.mark.parametrize(
    ("search", "how", "told"),
    [
        (
            "snpi",
            {},
            r"unknown search 'snpi'; did you mean 'snip'\?.*use_plugins\(\[\"FILE.py\"\]\)",
        ),
        (
            "imp",
            {"options": {"imp.sparsity": 0.5}},
            r'options\["imp.sparsity"\] is written sparsity',
        ),
        ("imp", {"sparsity": 3}, "sparsity=3.0 is not allowed"),
        ("multisp", {"sparsity": 0.5}, r'give options\["multisp.patches.sparsity"\]'),
        ("snip", {"options": {"snip.imags": 3}}, r'did you mean options\["snip.images"\]\?$'),
        ("snip", {"T": 0}, "T=0 is not allowed"),
        (
            "imp",
            {"quick": True, "options": {"imp.preset": "eccv22"}},
            r'options\["imp.epochs"\]=2 is not allowed: preset eccv22 fixes it at 300',
        ),
        (3, {}, r"search=3 is not allowed: a name of list_searches\(\)"),
        ("snip", {"model": 3}, "model=3 is not allowed: .* a torch.nn.Module"),
        ("snip", {"T": "many"}, "T='many' is not allowed: an integer"),
        ("snip", {"data": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ("snip", {"model": "nope"}, "unknown model 'nope'"),
        ("snip", {"epochs": 3}, "epochs=3 is not allowed: None: snip trains nothing"),
        (
            "snip",
            {"T": 2, "options": {"model.T": 4}},
            r"options=\['model.T'\] is not allowed: without what is an argument",
        ),
        ("snip", {"options": {"run.dry-run": True}}, r'options\["run.dry_run"\]=True is not'),
    ],
)
def test_an_error_speaks_of_arguments(
    search: Any, how: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": "spikformer_toy", "data": "digits", **how}
    given["options"] = {**SMALL, **given.get("options", {})}
    with pytest.raises(ConfigError, match=told) as caught:
        lt.find(search, **given)
    assert "--" not in str(caught.value)
    assert not any(tmp_path.iterdir())


OWN = r"one of your own needs its file, use_plugins\(\[\"FILE.py\"\]\)$"


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda: lt.create_model("spikformer_cfar"), rf"see list_models\(\); {OWN}"),
        (lambda: lt.create_dataset("digts"), rf"'digits'\? see list_datasets\(\); {OWN}"),
        (lambda: lt.create_search("snpi"), rf"see list_searches\(\); {OWN}"),
        (lambda: lt.train("snip", data="digts", options=SMALL), rf"list_datasets\(\); {OWN}"),
        (lambda: lt.create_dataset("digits", val_fraction=3), "^fraction=3 is not allowed"),
        (lambda: lt.create_dataset("cifar10", root="none"), 'download=True; .* name="digits" or'),
        (lambda: lt.use_plugins(["mine.py"]), "^files='.*mine.py' is not allowed: a Python file"),
        (lambda: lt.compare(["a", "b"]), r"^runs=\[\['a', 'b'\]\] is .*: compare\(\"runs/a\", "),
        (lambda: lt.compare("a", "b"), "^folder='a' is not allowed: a finished run"),
        (lambda: lt.Run(3), "^folder=3 is not allowed: the path of one run"),
        (lambda: lt.predict("exported/a", PICTURES), r"^model='exported/a' .*load_exported\("),
        (lambda: lt.predict(nn.Linear(2, 2).eval(), PICTURES), r"preprocess=create_dataset\(NAME"),
        (lambda: lt.load_exported(3), "^folder=3 is not allowed: the path of one folder"),
        (lambda: lt.Ticket.load(3), "^folder=3 is not allowed: the path of one folder"),
        (lambda: lt.from_pretrained(3), "^place=3 is not allowed: a folder, or OWNER/NAME"),
        (lambda: lt.adapt(nn.Linear(2, 2)), "a single layer; put it into nn.Sequential"),
        (lambda: lt.Mask(3), "^kept=3 is not allowed: tensors by the name of their layer"),
        (lambda: lt.Mask.from_scores(3, 0.5), "^scores=3 is not allowed: tensors by the name"),
    ],
)  # fmt: skip
def test_each_function_speaks_of_its_arguments(
    act: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpikeformerError, match=told) as caught:
        act()
    assert not re.search(r"--[a-z]|spikeformer-lt", str(caught.value))


def test_a_run_speaks_of_its_arguments(home: Path) -> None:
    run = lt.Run(home / "multisp")
    (home / "used").mkdir(exist_ok=True)
    (home / "used" / "file").write_text("")
    with pytest.raises(ExportError, match="used.*") as caught:
        run.export(home / "used")
    with pytest.raises(DataError, match="is no picture") as odd:
        run.predict(3)
    assert not re.search(r"--[a-z]|spikeformer-lt", f"{caught.value} {odd.value}")


def test_the_console_speaks_of_its_options(tmp_path: Path) -> None:
    for words, told in (
        ("--data.name digts", "; did you mean 'digits'? see spikeformer-lt ls datasets; "),
        ("--data.name digits --model.name toy", "see spikeformer-lt ls models; "),
    ):
        line = [sys.executable, "-m", "spikeformer_lt", "run", "multisp_cifar", *words.split()]
        said = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert said.returncode == 2 and told in said.stderr, said.stderr
        assert said.stderr.endswith("one of your own needs its file, --plugins FILE.py\n")


def test_a_public_function_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(lt.create_dataset)) is lt.create_dataset
    assert lt.create_model.__doc__ == registry.create_model.__doc__
    assert inspect.signature(lt.create_model) == inspect.signature(registry.create_model)


@pytest.mark.parametrize("function", [lt.find, lt.train])
def test_no_epochs_are_not_the_default(function: Any, tmp_path: Path) -> None:
    """0 is falsy, and it is a number that the user gave."""
    with pytest.raises(ConfigError, match="epochs.*=0 is not allowed"):
        function("multisp", "spikformer_toy", "digits", epochs=0, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_are_those_of_the_search_inside(tmp_path: Path) -> None:
    """Early-Time wraps any search: the argument reaches the one that options name."""
    inside = {"early-time.search": "early_bird", "early-time.epochs": 1, "early-time.images": 8}
    folder = tmp_path / "run"
    lt.train("early_time", "spikformer_toy", "digits", T=2, epochs=1, sparsity=0.5, out=folder,
             options={**inside, **SMALL})  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["early_bird"]["epochs"] == 1


def test_what_is_no_mapping_no_network_and_no_name_is_told() -> None:
    options: Any = ["epochs"]
    with pytest.raises(ConfigError, match=r"options=\['epochs'\] is not allowed: values by the"):
        lt.find("snip", "spikformer_toy", "digits", options=options)
    number: Any = 3
    with pytest.raises(ConfigError, match=r"network=3 is not allowed: a torch.nn.Module"):
        lt.adapt(number)
    with pytest.raises(ExportError, match="no folder here; did you mean 'spikformer_digits'"):
        lt.from_pretrained("spikfomer_digits")
    with pytest.raises(ExportError, match="'no/where' is no folder here, and the hub did not give"):
        lt.from_pretrained("no/where", local_files_only=True)


def test_weights_that_come_with_the_package_are_those_of_the_results() -> None:
    net = lt.create_model("spikformer_digits", pretrained=True)
    fast = lt.from_pretrained("spikformer_digits")
    plain = lt.load_exported(ROOT / "docs" / "results" / "digits-ticket", plain=True)
    x = torch.rand(2, 3, 16, 16)
    assert not net.training and torch.equal(net(x), plain(x)) and torch.equal(net(x), fast(x))
    shorter = lt.create_model("spikformer_digits", pretrained=True, T=2)
    assert shorter(x).shape == (2, 2, 10)
    with pytest.raises(
        ConfigError,
        match=r"pretrained=True is not .* what comes along is spikformer_cifar\.dense, "
        r"spikformer_cifar\.multisp_1bit, spikformer_digits,",
    ):
        lt.create_model("spikformer_cifar", pretrained=True)
    with pytest.raises(
        TicketError, match="weights of 'spikformer_digits', not of 'spikformer_toy'"
    ):
        lt.create_model("spikformer_toy", pretrained=ROOT / "docs" / "results" / "digits-ticket")
    with pytest.raises(ConfigError, match="unknown model 'spikfomer_digits'; did you mean"):
        lt.create_model("spikfomer_digits", pretrained=True)


@pytest.mark.slow
def test_a_users_script_is_typed(tmp_path: Path) -> None:
    line = ["--strict", "--python-version", "3.11", str(ROOT / "tests" / "user_script.py")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--config-file", "", "--follow-imports", "normal",
         "--ignore-missing-imports", *line, "--cache-dir", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    assert "user_script" not in done.stdout, done.stdout
    assert done.stdout.splitlines()[-1].startswith(("Success: ", "Found ")), done.stdout


def test_the_import_loads_no_torch_and_is_short() -> None:
    line = "import time; t = time.process_time(); import spikeformer_lt, sys; " + (
        "print(time.process_time() - t, 'torch' in sys.modules)"
    )
    spans = []
    for _ in range(3):
        said = subprocess.run([sys.executable, "-P", "-c", line], capture_output=True, text=True)
        seconds, torch_too = said.stdout.split()
        spans.append(float(seconds))
        assert torch_too == "False"
    assert min(spans) < 0.3
