"""The console: every command, what it refuses, and that it answers before torch is loaded."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from spikeformer_lt import console
from spikeformer_lt.config import flat_values, given_options, to_dict
from spikeformer_lt.export import read_ticket
from spikeformer_lt.tickets import SnipConfig
from spikeformer_lt.usage import ALWAYS

ROOT = Path(__file__).resolve().parents[1]
TICKET = ROOT / "docs" / "results" / "digits-ticket"
COMMANDS = sorted({*console.COMMANDS, *console.AS_RECIPE} - {console.HIDDEN})


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints; its error line where it must fail."""
    with pytest.raises(SystemExit) as stop:
        console.main(words)
    out, err = capsys.readouterr()
    assert (stop.value.code or 0) == code, err
    return err if code else out


def refused(capsys: pytest.CaptureFixture[str], line: str, told: str) -> None:
    """A line ends in one line of error, and leaves nothing in the folder."""
    error = said(capsys, *line.split(), code=2)
    assert told in error and len(error.splitlines()) == 1
    assert not any(Path.cwd().iterdir())


def test_help_names_every_command_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "--help").splitlines()
    for command in COMMANDS:
        assert sum(line.split()[:1] == [command] for line in lines) == 1, command
    assert said(capsys) == "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("find imp --help", ["\x1b[1mbasic options\x1b[0m:", "  \x1b[36m--epochs INT\x1b[0m"]),
        ("find imp --imp.round 3", ["\x1b[31merror:\x1b[0m unknown option"]),
        ("ls searches", ["\x1b[1msearches "]),
        ("events check --help", ["\x1b[1mexamples\x1b[0m:", "\x1b[1moptions\x1b[0m:"]),
        ("doctor --wrong", ["\x1b[31merror:\x1b[0m unrecognized"]),
    ],
)
def test_a_terminal_gets_colour_unless_it_asks_for_none(
    line: str, parts: list[str], terminal: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    texts = []
    for colour in (True, False):
        monkeypatch.delenv("NO_COLOR", raising=False) if colour else monkeypatch.setenv(
            "NO_COLOR", "1"
        )
        with terminal() as told, pytest.raises(SystemExit):
            console.main(line.split())
        texts += told
    monkeypatch.delenv("NO_COLOR")
    coloured, plain = texts
    assert all(part in coloured for part in parts) and "\x1b" not in plain
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain
    listed = plain.partition("options:" if "options:" in plain else "\n")[2]
    assert all(len(row) <= 80 for row in listed.splitlines())
    with pytest.raises(SystemExit):
        console.main(line.split())
    assert "\x1b" not in "".join(capsys.readouterr())


def test_help_and_completion_load_no_torch() -> None:
    words = [
        *("--help", "find --help", "find imp --help", "evaluate --help"),
        *("doctor --help", "events check --help"),
        *("ls searches", "ls datasets", "ls models", "complete find imp --imp."),
    ]
    script = "import sys\nfrom spikeformer_lt import console\n" + "".join(
        f"try: console.main({line.split()})\nexcept SystemExit as end: assert not end.code\n"
        for line in words
    )
    script += "assert 'torch' not in sys.modules, 'torch was loaded'"
    ended = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


HELPS = ["--help", "find imp --help", "run multisp_cifar --help"]


@pytest.mark.parametrize("line", HELPS)
def test_help_takes_few_calls(line: str) -> None:
    """Calls of Python functions, the same on every processor: 130,000 took 0.35 s of one."""
    script = f"""import sys
calls = 0
def count(frame, event, value):
    global calls
    calls += event == "call"
sys.setprofile(count)
from spikeformer_lt import console
try: console.main({line.split()})
except SystemExit: pass
sys.setprofile(None)
print(calls, file=sys.stderr)"""
    command = [sys.executable, "-P", "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 50_000 < int(ended.stderr) < 150_000


@pytest.mark.slow
@pytest.mark.parametrize("line", HELPS)
def test_help_takes_under_half_a_second(line: str) -> None:
    """By the clock, the best of ten."""
    clock = []
    for _ in range(10):
        start = time.monotonic()
        command = [sys.executable, "-P", "-m", "spikeformer_lt", *line.split()]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        clock.append(time.monotonic() - start)
    assert min(clock) < 0.5


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nope", "unknown command 'nope'; allowed: bench, compare,"),
        ("evalute", "unknown command 'evalute'; did you mean 'evaluate'?"),
        ("run nope", "unknown recipe 'nope'; the recipes are biprop_cifar,"),
        ("run no.py", "there is no file 'no.py', and no recipe of that name; spikeformer-lt ls"),
        ("run evalute.py", "no recipe of that name; did you mean 'evaluate'?"),
        ("run multisp_cifar extra", "error: unrecognized options: extra"),
        ("run multisp_cifar --track foo", "error: --track='foo' is not allowed: one of aim,"),
        ("ls modles", "did you mean 'models'?"),
        ("evaluate nodir", "error: --run='nodir': there is no such folder; name a run directory,"),
        ("evaluate spikformer_digit", "no such folder; did you mean 'spikformer_digits'? name"),
        ("evaluate", "error: --run is missing: a run directory, a ticket folder or an export: --"),
        ("report", "error: --runs is missing: a run directory, a ticket folder or an export: --"),
        ("export --run spikformer_digits", "error: --out is missing: a new folder: --out DIR"),
        ("predict spikformer_digits no.png", "error: FILE='no.png': there is no such file"),
        ("push spikformer_digits bad", "error: NAME='bad' is not allowed: OWNER/NAME, in letters"),
        ("compare --data digts", "error: --data='digts' is not known; did you mean 'digits'?"),
        ("ls", "takes one of models, datasets, searches, recipes"),
        ("cp evaluate", "takes a recipe and a new file"),
        ("cp evaluate out.txt", "FILE='out.txt' is not allowed: a Python file"),
        ("predict somewhere", "takes a ticket's folder and files"),
        ("predict --top 3 a b", "DIR FILE ... comes before the options"),
        ("bench somewhere --batch-sizes", "1 to 65536"),
        ("predict a b --top 0", "--top=0 is not allowed: at least 1"),
        ("bench", "takes one folder"),
        ("bench somewhere --batch-sizes 0", "1 to 65536"),
        ("bench somewhere --batch-sizes 1000000000", "1 to 65536"),
        ("bench somewhere --calls 1000000000", "in [1, 100000]"),
        ("reproduce", "name a table, as in spikeformer-lt reproduce 2311-tab1"),
        ("reproduce --scale full", "name a table"),
        ("watch nowhere", "FOLDER='nowhere' is not allowed: a folder of runs"),
        ("watch . --every -1", "0 or seconds up to a day"),
        ("completion fish", "takes bash or zsh"),
    ],
)
def test_a_wrong_line_is_one_error(
    line: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    refused(capsys, line, told)


@pytest.mark.parametrize("command", [*COMMANDS, "events check", "events write"])
def test_help_begins_with_the_commands_words_then_examples_then_options_with_defaults(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = said(capsys, *command.split(), "--help")
    assert text.startswith(f"usage: spikeformer-lt {command}")
    if command in console.OPTIONS or command in console.PLAIN:
        assert console.COMMANDS[command][1] in text.splitlines()[0]
    told, _, rest = text.partition("\nexamples:\n")
    assert not re.search(r"^ +-|^searches", told.partition("\n\n")[2], re.MULTILINE)
    examples = re.match(r"(?:  .+\n)+", rest)
    assert examples is not None
    for line in examples[0].splitlines():
        assert re.match(r"  spikeformer-lt [a-z]+( |$)", line), line
    options = re.findall(r"^  (-[^\n]*(?:\n {10,}\S.*)*)", rest, re.MULTILINE)
    assert options or command in ("find", *console.PLAIN)
    for option in options:
        always = option.startswith(("-h, --help", *ALWAYS))
        assert always or re.search(r"\((default:\s+[^\s)]|required\))", option), option
    assert not re.search(r"\bNone\b|SUPPRESS", text)


@pytest.mark.parametrize("line", ["doctor --dta x", "events check", "events check x --unit min"])
def test_what_a_command_does_not_take_is_one_line(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(capsys, *line.split(), code=2)
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "--help lists what it takes" in error


IN_ORDER = "dry run: options and names are in order; nothing was opened or written"


@pytest.mark.parametrize(
    "line",
    [
        *("predict TICKET picture.png", "bench spikformer_digits", "push TICKET me/b", "watch ."),
        *("evaluate TICKET", "evaluate spikformer_digits", "report --runs TICKET", "energy TICKET"),
        *("export spikformer_digits --out b", "convert --source picture.png --out b"),
    ],
)
def test_a_dry_run_opens_and_publishes_nothing(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ticket's files are empty and the picture is none: nothing reads them."""
    monkeypatch.chdir(tmp_path)
    for file in ("config.json", "model.safetensors", "picture.png"):
        (tmp_path / file).touch()
    words = line.replace("TICKET", str(tmp_path)).split()
    assert said(capsys, *words, "--dry-run").startswith(IN_ORDER)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("predict a b", "DIR='a': there is no such folder"),
        ("predict spikformer_digits b", "FILE='b': there is no such file"),
        ("bench a", "DIR='a': there is no such folder"),
        ("push a me/b", "DIR='a' is not there: name a folder that spikeformer-lt export wrote"),
        ("push . me/b", "DIR='.' holds no export"),
        ("watch nowhere", "FOLDER='nowhere' is not allowed: a folder of runs"),
        ("export --run nodir --out x", "--run='nodir': there is no such folder"),
        ("evaluate .", "--run='.' holds no ticket: name a run directory"),
        ("evaluate spikformer_digits --data.name digts", "--data.name='digts' is not known; did"),
        ("report --runs nodir", "--runs='nodir': there is no such folder"),
        ("energy spikformer_digits nodir", "--runs='nodir': there is no such folder"),
        ("convert --source a --out b", "--source='a': there is no such file"),
        ("export spikformer_digits --out x --data cifr10", "--data='cifr10' is not known; did you"),
        ("run transfer_cifar --ticket a", "--ticket='a': there is no such folder; name a run"),
        ("compare --data digts", "--data='digts' is not known; did you mean 'digits'?"),
        ("compare --searches snp", "--searches='snp' is not allowed"),
        ("compare --options=--model.name=spikfomer", "model.name='spikfomer' is not known"),
    ],
)
def test_a_dry_run_refuses_what_is_not_there(
    line: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    refused(capsys, f"{line} --dry-run", told)


def test_a_dry_comparison_prints_lines_that_a_shell_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--searches", "snip", "--sparsities", "0.9", "--seeds", "0", "--dry-run"]
    lines = said(capsys, "compare", *words, "--out", str(tmp_path / "a b")).splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("dense-seed0", "snip-0.9-seed0"), strict=True):
        program, recipe, *options = shlex.split(line)
        assert program == "python" and Path(recipe).is_file()
        assert options[-2:] == ["--run.out", str(tmp_path / "a b" / "runs" / name)]
    command = [sys.executable, "-P", recipe, *options, "--dry-run", "--train.cpu"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert "options, data, network and memory are in order" in ended.stdout, ended.stderr


def test_a_dry_run_loads_no_network_and_an_export_is_exported_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(capsys, "export", "spikformer_digits", "--out", str(tmp_path / "a"), "--precision", "bf16")
    packed = json.loads((tmp_path / "a" / "config.json").read_text())["about"]
    assert packed["test_accuracy"] == pytest.approx(97.21, abs=0.01)
    script = "import sys\nfrom spikeformer_lt import console\n"
    script += "try: console.main(['predict', *sys.argv[1:], '--dry-run'])\n"
    script += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    words = [sys.executable, "-P", "-c", script, str(tmp_path / "a"), str(tmp_path / "a")]
    assert subprocess.run(words, capture_output=True, text=True).returncode == 0


@pytest.mark.parametrize("line", ["push a me/b", "export --run a --out b"])
def test_a_dry_run_refuses_a_licence_that_is_no_word(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(capsys, *line.split(), "--license", "a b", "--dry-run", code=2)
    assert "license='a b' is not allowed: a word of the hub" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        *((line, 141, "") for line in ("ls models", "--help", "find imp --help", "watch .")),
        *((line, 141, "") for line in ("doctor", "completion bash", "find imp --print-config")),
        ("evaluate spikformer_digits --cpu", 141, ""),
        ("cp evaluate mine.py", 2, "error: the program that read this output has ended\n"),
    ],
)
def test_what_prints_ends_quietly_where_nobody_reads(
    line: str, code: int, told: str, tmp_path: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-P", "-m", "spikeformer_lt", *line.split()]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (code, told)


@pytest.mark.parametrize("line", ["ls models --help", "cp evaluate -h", "completion bash --help"])
def test_help_after_a_word_is_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, *line.split()).startswith(f"usage: spikeformer-lt {line.split()[0]} ")


@pytest.mark.parametrize("kind", console.KINDS)
def test_every_entry_is_listed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    from spikeformer_lt import list_datasets, list_models, list_searches

    known = {"models": list_models, "datasets": list_datasets, "searches": list_searches}
    wanted = known[kind]() if kind in known else [p.stem for p in (ROOT / "recipes").glob("*.py")]
    rows = [line.split()[0] for line in said(capsys, "ls", kind).splitlines()[1:]]
    assert rows == sorted(wanted)


def test_models_are_listed_with_true_sizes_and_accuracies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from spikeformer_lt import list_models

    rows = {line.split()[0]: line for line in said(capsys, "ls", "models").splitlines()}
    assert "9,324,730" in rows["spikformer_cifar"] and "CIFAR-10 95.19" in rows["spikformer_cifar"]
    assert "spikformer_digits (digits) 96.94" in rows["spikformer_digits"]
    assert "  ours % (data set)  " in rows["model"]
    with (ROOT / "models" / "sizes.csv").open(newline="") as file:
        head, *written = map(tuple, csv.reader(file))
    assert head == ("model", "parameters, 10 classes", "T", "input")
    true = [console.size_of(name) for name in list_models()]
    assert written == true, "models/sizes.csv has other rows than the networks that are built"


def test_a_model_of_a_plug_in_is_built_to_be_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In a process of its own, whose registry keeps the name."""
    source = (ROOT / "docs" / "own_model.md").read_text()
    broken = "\n\n@register_model\ndef broken(**keywords):\n    assert False\n"
    (tmp_path / "own.py").write_text(
        source.partition("```python\n")[2].partition("```")[0] + broken
    )
    line = [sys.executable, "-P", "-m", "spikeformer_lt", "ls", "models", "--plugins", "own.py"]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=True)
    name = re.findall(r"^def (\w+)", (tmp_path / "own.py").read_text(), re.MULTILINE)[-2]
    (row,) = [text.split() for text in ended.stdout.splitlines() if text.startswith(f"{name} ")]
    assert int(row[1].replace(",", "")) > 0
    assert "\nbroken  " in ended.stdout


def test_a_copied_recipe_is_the_recipe_and_replaces_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    said(capsys, "cp", "evaluate", str(mine))
    assert mine.read_text() == (ROOT / "recipes" / "evaluate.py").read_text()
    assert "is there already" in said(capsys, "cp", "export", str(mine), code=2)
    mine.write_text(mine.read_text().replace("A run directory, a ticket", "My own, a ticket"))
    assert "My own, a ticket" in said(capsys, "run", str(mine), "--help")


def test_predict_and_bench_take_an_export(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    digits = load_digits()
    files = []
    for number, (image, label) in enumerate(zip(digits.images[:8], digits.target, strict=False)):
        pixels = np.kron(image, np.ones((2, 2))) / 16 * 255
        files.append(tmp_path / f"{number}-{label}.png")
        Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB").save(files[-1])
    words = ["predict", str(TICKET), *map(str, files)]
    rows = json.loads(said(capsys, *words, "--json", "--top", "2"))
    assert [Path(row["file"]) for row in rows] == files
    for row in rows:
        first, second = row["classes"]
        assert 1 >= first["probability"] >= second["probability"] >= 0
        assert first["name"] == str(first["label"])
    right = sum(
        r["classes"][0]["label"] == int(f.stem[-1]) for r, f in zip(rows, files, strict=True)
    )
    assert right >= 6
    ticket, start = read_ticket(TICKET), tmp_path / "start"
    ticket.provenance["trained"] = False
    ticket.save(start)
    with pytest.raises(SystemExit):
        console.main(["predict", str(start), str(files[0])])
    assert "NOTICE: this ticket holds its start weights" in capsys.readouterr().err
    table = said(capsys, *words).splitlines()
    assert [line.split()[-1] for line in table[1:]] == [r["classes"][0]["name"] for r in rows]
    head, columns, *lines = said(
        capsys, "bench", str(TICKET), "--calls", "2", "--batch-sizes", "1", "2"
    ).splitlines()
    assert "thread(s), median of 2 calls" in head and columns.startswith("batch")
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert all(float(cell) > 0 for line in lines for cell in line.split())


def test_words_before_all_options_are_a_folder_or_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = said(capsys, "evaluate", str(TICKET), "--cpu", "--split", "val")
    assert first == said(capsys, "evaluate", "--run", str(TICKET), "--cpu", "--split", "val")
    lines = said(capsys, "reproduce", "2311-fig3", "--dry-run").splitlines()
    assert re.match(r"# \d+ runs to train, \d+ epochs in all .*; about \d+ min, an est", lines[0])
    assert len(lines) == 37 and lines[1].startswith("# 2311-fig3 ")
    assert all(" on digits (published on cifar10" in line for line in lines[1::2])
    text = said(capsys, "reproduce", "--help")
    assert text.startswith("usage: spikeformer-lt reproduce TABLE ... [options]")
    assert "2311-fig3, 2311-fig4. (required)" in " ".join(text.split())
    assert "an export. (required)" in " ".join(said(capsys, "evaluate", "--help").split())
    assert "--table='nope' is not allowed" in said(capsys, "reproduce", "nope", code=2)


def test_watch_tells_runs_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("cut", "done", "odd", "stopped", "new", "null", "text"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"run": {}}')
    shutil.copytree(TICKET, tmp_path / "exported")  # which is no run
    (tmp_path / "done" / "report.json").write_text('{"test_accuracy": 97.5}')
    (tmp_path / "stopped" / "summary.csv").write_text("epoch,val_accuracy\n1,50\n2,61.25\n")
    (tmp_path / "cut" / "report.json").write_text('{"test_acc')
    (tmp_path / "null" / "report.json").write_text('{"test_accuracy": null}')
    (tmp_path / "text" / "report.json").write_text('{"test_accuracy": "x"}')
    (tmp_path / "odd" / "summary.csv").write_text("epoch,val_accuracy\n1,abc\n")
    rows = [line.split() for line in said(capsys, "watch", str(tmp_path)).splitlines()[1:]]
    assert rows == [
        ["cut", "damaged"],
        ["done", "done", "test", "97.50"],
        ["new", "stopped"],
        ["null", "damaged"],
        ["odd", "damaged", "1"],
        ["stopped", "stopped", "2", "val", "61.25"],
        ["text", "damaged"],
    ]


def test_the_printed_configuration_is_one_that_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from spikeformer_lt.cli import read_find

    line = ["snip", "snip.images=64", "--sparsity", "0.9", "--data.name", "digits"]
    text = said(capsys, "find", *line, "--print-config")
    (tmp_path / "options.yaml").write_text(text)
    again, _ = read_find(["snip", "--config", str(tmp_path / "options.yaml")])
    asked, _ = read_find(line)
    assert to_dict(again) == to_dict(asked)
    assert given_options(again) == given_options(asked)  # so that data may replace the others
    named = {"sparsity": 0.9, "data": {"name": "digits"}, "snip": {"images": 64}}
    assert yaml.safe_load(text) == named
    _, marked, rest = text.partition("# Not named")
    others = yaml.safe_load(re.sub("^# ", "", rest.partition("\n")[2], flags=re.MULTILINE))
    there: Any = asked
    assert marked and others["train"]["batch_size"] == there.settled().train.batch_size == 16
    both = {**dict(flat_values(others)), **dict(flat_values(named))}
    assert both == dict(flat_values(to_dict(there.settled()))) | {"sparsity": 0.9}
    assert (
        said(capsys, "find", "snip", "--config", str(tmp_path / "options.yaml"), "--print-config")
        == text
    )
    assert asked.snip == SnipConfig(images=64, sparsity=0.9)


@pytest.mark.parametrize(
    ("line", "data", "shown"),
    [
        ("run multisp_cifar", "digits", {"model.name": "spikformer_digits", "data.name": "auto"}),
        ("run multisp_cifar", "digits", {"train.batch-size": "16", "multisp.epochs": "12"}),
        ("run multisp_cifar", "cifar10", {"train.batch-size": "128", "multisp.epochs": "300"}),
        ("find imp", "digits", {"model.name": "spikformer_digits", "epochs": "8"}),
        ("find imp", "moving_digits", {"model.name": "spikformer_dvs_toy", "model.T": "8"}),
        ("run multisp_dvs128", "moving_gestures", {"multisp.epochs": "60", "model.T": "8"}),
        ("run multisp_imagenet", "digits", {"model.name": "spikformer_digits"}),
        ("run multisp_cifar", "", {"model.name": "spikformer_cifar", "run.out": "a new one .*/"}),
    ],
)
def test_help_shows_the_defaults_of_the_data_set_that_is_named(
    line: str, data: str, shown: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*line.split(), *(["--data.name", data] if data else [])]
    text = " ".join(said(capsys, *words, "--help").split())
    for option, value in shown.items():
        told = re.search(rf" --{option} [A-Z][A-Z]+ .*?\(default: (.*?)\) ", text)
        assert told is not None and re.fullmatch(value, told[1]), (option, told)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_words(shell: str, tmp_path: Path) -> None:
    """The script is run by the shell, with a command of this name on the path."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "spikeformer-lt"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m spikeformer_lt "$@"\n')
    command.chmod(0o755)
    words = "COMP_WORDS=(spikeformer-lt find snip --snip.im); COMP_CWORD=3"
    ask = f'eval "$(spikeformer-lt completion {shell})"; {words}'
    if shell == "bash":
        ask += '; _spikeformer_lt; echo "${COMPREPLY[@]}"'
    else:  # as its completion of bash's functions calls them
        ask += "; (( $+_comps[spikeformer-lt] )) && compgen -F _spikeformer_lt -- --snip.im"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run([shell, "-c", ask], capture_output=True, text=True, env=env)
    assert ended.stdout.split() == ["--snip.images"], ended.stderr
    assert not ended.stderr


def test_an_assigned_option_is_not_taken_for_the_first_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = said(capsys, "evaluate", "data.name=digits", "--run", "nowhere", code=2)
    assert "nowhere" in error and "twice" not in error


def test_completion_offers_what_may_follow(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "complete", "ev").split() == ["evaluate", "events"]
    assert said(capsys, "complete", "ls", "").split() == sorted(console.KINDS)
    assert "multisp_cifar" in said(capsys, "complete", "run", "mul").split()
    assert said(capsys, "complete", "evaluate", "--sp").split() == ["--split"]
    assert "--multisp.patches.sparsity" in said(capsys, "complete", "run", "multisp-cifar", "--mu")
    assert said(capsys, "complete", "push", "DIR", "me/x", "--p") == "--print-config\n--private\n"
    assert said(capsys, "complete", "find", "snip", "--quic").split() == ["--quick"]
    assert said(capsys, "complete", "nope", "x").split() == []
