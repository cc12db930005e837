"""Every command of README, docs and recipes is run, or says here why it cannot be and is parsed.

A page's blocks are run in their order, in a folder of the page's own that holds ``recipes`` and
``docs`` as a checkout does, at the sizes of `SMALLER`. A block that is neither run nor named in
`NOT_RUN` fails.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from spikeformer_lt import cli, config, console, registry, usage
from spikeformer_lt.events import __main__ as events_main

pytestmark = pytest.mark.recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path.relative_to(ROOT).as_posix() for path in (*GUIDES, *RECIPES)]

NOT_RUN = {  # a pattern that a command holds -> why no test can run it
    r"^(make|source|sbatch|pip)\b": "makes an environment, or needs SLURM; CI runs the Makefile",
    r"--data(\.name)? (cifar100?|dvs128_gesture|poker_dvs)\b": "needs a published data set",
    r"--data(\.name)? tonic:\w+": "needs a published data set; tests/datasets/test_tonic.py",
    r"--data\.name (event|image)_folder\b": "needs files of the user; test_multisp_*.py make some",
    r"events check data(/DVSGesture)?( --data dvs128_gesture)?$": "needs a published data set",
    r"--data\.download\b": "needs the network",
    r"--(multi_gpu|nnodes)\b|--nproc_per_node 4": "needs several GPUs or machines",
    r"recipes/multisp_imagenet\.py": "needs ImageNet; test_multisp_imagenet.py makes a small one",
    r"recipes/convert\.py": "needs a published checkpoint; test_convert.py writes one and runs it",
    r"preset (eccv22|cvpr20|iclr21)": "a published schedule, days on a CPU",
    r"--suite (ablation|curves|families|parts|time)|--seeds 0 1|--jobs 2": "many runs; demo is run",
    r"runs/(cifar10|dvs128-objects|gestures-128|poker-dvs)\b": "the full-size runs of docs/results",
    r"recipes/paper_tables\.py": "whole tables, hours; test_paper_tables.py runs rows of them",
    r"--ticket runs/relu": "needs a run of a ReLU CNN; test_transfer_cifar.py makes one",
    r"--precision bf16 --graphs|--graphs pt2,onnx": "extras; tests/export run them where they are",
}
TRAIN = "--train.cpu --train.batch-size 8 --train.optim.lr 0.01 --data.limit-test 40"
IMAGES = "--data.image-size 16 --model.name spikformer_toy --model.embed-dim 16 --model.T 2"
FRAMES = "--data.image-size 16 --model.embed-dim 16 --model.T 2"
STEM = "--multisp.epochs 1 --multisp.stem-epochs 1"
SMALLER = {  # recipe -> options added at the end: sizes always, networks where none is named
    "multisp_cifar": (f"--data.limit-train 64 {TRAIN} {STEM}", IMAGES),
    "multisp_dvs128": (f"--data.limit-train 60 {TRAIN} {STEM}", FRAMES),
    "multisp_cifar10_dvs": (f"--data.limit-train 60 {TRAIN} {STEM}", FRAMES),
    "imp_cifar": (
        f"--data.limit-train 64 {TRAIN} --imp.epochs 1 --imp.rounds 2 --imp.rewind 3it --epochs 1",
        IMAGES,
    ),
    "early_bird_cifar": (
        f"--data.limit-train 64 {TRAIN} --early-bird.epochs 2 --early-bird.sparsity 0.5 --epochs 1",
        IMAGES,
    ),
    "early_time_cifar": (
        f"--data.limit-train 64 {TRAIN} --imp.epochs 1 --imp.rounds 2 --early-bird.epochs 1 "
        "--early-time.epochs 1 --epochs 1",
        IMAGES.replace("--model.T 2", "--model.T 3"),
    ),
    "edge_popup_cifar": (f"--data.limit-train 64 {TRAIN} --edge-popup.epochs 1", IMAGES),
    "biprop_cifar": (f"--data.limit-train 64 {TRAIN} --biprop.epochs 1", IMAGES),
    "sparse_training_cifar": (f"--data.limit-train 64 {TRAIN} --epochs 1 --every 2", IMAGES),
    "transfer_cifar": (f"--data.limit-train 64 {TRAIN} --epochs 1", "--data.image-size 16"),
    "find_ticket": (f"--data.limit-train 64 {TRAIN} --epochs 1", IMAGES),
    "evaluate": ("--cpu", ""),
    "energy_report": ("--images 16", ""),
    "report": ("--images 16", ""),
    "export": ("", ""),
    "multisp_compare": (f"--options='--data.limit-train 64 {TRAIN} {STEM} {IMAGES}'", ""),
    "compare_tickets": (
        f"--searches random --sparsities 0.5 --seeds 0 --options='--data.limit-train 64 {TRAIN} "
        f"{IMAGES}' --search-options 'random=--epochs 1' 'dense=--epochs 1'",
        "",
    ),
}
OWN_SIZES = ("my_images", "dvs128_recordings")  # sets that are small already: no limits
QUICK = ("docs/README.md", "docs/ledger.md", "docs/own_model.md", "docs/own_search.md")
LANGUAGES = {"sh", "bash", "python", ""}  # no language: a picture made of characters
PREPARED = ("runs/x", "runs/dense", "runs/first")  # what docstrings speak of, and no page makes


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a reader is to save it as."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found and self.language == "python" else None

    def commands(self) -> Iterator[str]:
        """Logical lines without comments, quotes kept."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and re.match(r"\w+=", words[0]):
                continue  # a variable, or the assignment of a script
            if words:
                yield shlex.join(as_recipe(words))


def as_recipe(words: list[str]) -> list[str]:
    """A command of the console as the recipe that it is; others of its commands stay."""
    if words[0] != "spikeformer-lt":
        return words
    command, *options = words[1:]
    known = {**console.AS_RECIPE, "find": "find_ticket"}
    if command == "run":
        command, *options = options
        known = {command: command.replace("-", "_")}
    assert command in known, f"a command that no page can run: {words}"
    return ["python", f"recipes/{known[command]}.py", *options]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    text = text.replace("THIS_FOLDER", Path(page).parent.as_posix())  # in a ticket's card
    if page.endswith(".py"):
        told = ast.get_docstring(ast.parse(text)) or ""
        lines = re.findall(r"^(?:accelerate launch|python|torchrun) .+$", told, re.MULTILINE)
        return [Block(page, 1, "sh", "\n".join(lines) + "\n")]
    found = []
    for at in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append(Block(page, text[: at.start()].count("\n") + 1, at[1], at[2]))
    return found


def reason(command: str) -> str | None:
    return next((why for found, why in NOT_RUN.items() if re.search(found, command)), None)


def split(command: str) -> tuple[list[str], str, list[str]]:
    """(launcher, script or -m module, its options)."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        return words[:2], words[2], words[3:]
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    assert at is not None, f"no script in: {command}"
    return words[:at], words[at], words[at + 1 :]


@cache
def config_of(recipe: Path) -> type:
    """The class of a recipe's options."""
    tree = ast.parse(recipe.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    last = [call for call in calls if ast.unparse(call.func) == "run_recipe"][-1]
    name = f"docs_of_{recipe.stem}"
    spec = importlib.util.spec_from_file_location(name, recipe)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, ast.unparse(last.args[1]))


def parse_options(script: str, options: list[str]) -> None:
    """Read the options of a recipe as it would."""
    if Path(script).stem == "find_ticket":
        if "--help" not in options:
            cli.read_find(options)
    else:
        config.parse(config_of(ROOT / script), options)


def check_launcher(words: list[str]) -> None:
    """Let the launcher's own parser read what stands before the script."""
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args([*words[2:], "x.py"])
    elif "torchrun" in words:
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([*words[words.index("torchrun") + 1 :], "x.py"])
    else:
        assert words == ["python"], words


def check_options(command: str) -> None:
    """Read a command as its program would, without running it."""
    first = shlex.split(command)[0]
    if first == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert shlex.split(command)[1] in targets, command
        return
    if first in ("source", "sbatch", "pip"):
        return
    launcher, script, options = split(command)
    if script == "spikeformer_lt.events":
        events_main._parser().parse_args(options)
    elif launcher[:2] == ["python", "-m"]:
        assert script == "spikeformer_lt.doctor", command
    else:
        check_launcher(launcher)
        assert (ROOT / script).is_file(), command
        parse_options(script, options)


def shortened(script: str, options: list[str]) -> list[str]:
    """The options of a command with those that make it small."""
    sizes, network = map(shlex.split, SMALLER[Path(script).stem])
    if any(name in options for name in OWN_SIZES):
        sizes = [w for i, w in enumerate(sizes) if "limit" not in sizes[max(i - 1, 0)] + w]
    if "--help" in options:
        return options
    if "--model.name" in options or "dvs128_recordings" in options:
        network = []
    pairs = [(network[i], network[i + 1]) for i in range(0, len(network), 2)]
    return [*options, *sizes, *(w for pair in pairs if pair[0] not in options for w in pair)]


@pytest.fixture(scope="module")
def prepared(recipes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that the commands of docstrings speak of."""
    home = tmp_path_factory.mktemp("prepared")
    dense = "--multisp.weights.method off --multisp.patches.sparsity 0"
    for name, more in (("x", "--model.v-threshold 0.2"), ("dense", dense)):
        options = shortened("multisp_cifar.py", ["--data.name", "digits", *shlex.split(more)])
        ended = recipes.run("multisp_cifar", *options, "--run.out", home / name)
        assert ended.code == 0, ended.err
    (home / "first").symlink_to(home / "x")
    return home


class Reader:
    """Someone who gives a page's commands in their order."""

    def __init__(self, recipes: Any, folder: Path) -> None:
        self.recipes, self.folder = recipes, folder
        for name in ("recipes", "docs"):
            (folder / name).symlink_to(ROOT / name)

    def do(self, block: Block) -> None:
        if block.language == "python":
            path = self.folder / (block.file or f"block{block.line}.py")
            path.write_text(block.text, "utf-8")
            if block.file is None:
                self.ended(block, self.recipes.run(path, cwd=self.folder))
            return
        for command in block.commands() if block.language == "sh" else ():
            if reason(command) is None:
                self.give(block, command)

    def give(self, block: Block, command: str) -> None:
        launcher, script, options = split(command)
        if launcher[:2] == ["python", "-m"]:
            few = ["--limit-train", "33", "--limit-test", "33"] if options[:1] == ["write"] else []
            argv = ["-m", script, *options, *few]
        elif launcher[0] == "torchrun":
            argv = ["-m", "torch.distributed.run", *launcher[1:], script]
            argv += shortened(script, options)
        else:
            check_launcher(launcher)
            small = shortened(script, options)
            path = self.folder / script
            ended = self.recipes.run(path, *small, cwd=self.folder, fork_jobs=True)
            self.ended(block, ended, command)
            return
        child = self.recipes.forks.start(*argv, cwd=self.folder)
        _, err = child.communicate(1800)
        assert child.returncode == 0, f"{block.page}:{block.line}: {command}\n{err}"

    def ended(self, block: Block, ended: Any, what: str = "block") -> None:
        assert ended.code == 0, f"{block.page}:{block.line}: {what}\n{ended.err[-3000:]}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[] if p in QUICK else [pytest.mark.slow, pytest.mark.timeout(1800)])
        for p in PAGES
    ],
)
def test_a_page_does_what_it_says(
    page: str, recipes: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = blocks(page)
    made = {name for block in found for name in re.findall(r"--run\.out (\S+)", block.text)}
    text = "\n".join(block.text for block in found)
    reader = Reader(recipes, tmp_path)
    (tmp_path / "runs").mkdir()
    for name in PREPARED:
        if name not in made and re.search(rf"{name}\b(?!-)", text):
            home = request.getfixturevalue("prepared")
            (tmp_path / name).symlink_to(home / Path(name).name)
    for block in found:
        reader.do(block)


@pytest.mark.parametrize("page", PAGES)
def test_no_command_escapes(page: str) -> None:
    found = blocks(page)
    odd = [f"{page}:{b.line}: {b.language}" for b in found if b.language not in LANGUAGES]
    assert not odd, f"a language that no test reads: {odd}"
    for block in found:
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec")
        elif block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
            for command in block.commands():
                if "recipes/" in command:
                    assert reason(command), f"{page}:{block.line}: {command}"
                    check_options(command)
        elif block.language == "sh":
            for command in block.commands():
                if reason(command) is not None:
                    check_options(command)
                    continue
                launcher, script, options = split(command)
                if launcher[:2] != ["python", "-m"]:
                    known = Path(script).stem in SMALLER
                    assert known, f"neither run nor in NOT_RUN: {page}:{block.line}: {command}"
                if (ROOT / script).is_file() and "--plugins" not in options:
                    parse_options(script, options)
        else:
            assert not re.search(r"^(python|accelerate|make) ", block.text, re.MULTILINE)
    files = {block.file for block in found} - {None}
    text = "\n".join(b.text for b in found if b.language == "sh")
    assert all(name in text for name in files), f"a file that no command of {page} uses: {files}"


@cache
def option_names() -> set[str]:
    """Every option of every program that the pages speak of."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    names = {"--help", "--debug", *config.LEVELS, *config.SHORT, "--config", "--plugins"}
    names |= {config.PRINT_CONFIG, "--license"}
    classes = [config_of(recipe) for recipe in RECIPES if recipe.stem != "find_ticket"]
    classes += [type(cli.read_find([search])[0]) for search in registry.search_names()]
    for cls in classes:
        for name, kind in usage.options_of(cls):
            group, dot, leaf = name.rpartition(".")
            names |= {f"--{name}", f"--{group}{dot}no_{leaf}" if kind is bool else f"--{name}"}
    for kind, entries in (("dataset", registry._datasets), ("model", registry._models)):
        for name in entries.declared():
            if own := registry.config_class(kind, name):
                names |= {f"--{name}.{field}" for field, _ in usage.options_of(own)}
    events = events_main._parser()._subparsers._group_actions[0].choices
    for parser in (launch_command_parser(), get_args_parser(), *events.values()):
        names |= set(parser._option_string_actions)
    for script in (ROOT / "benchmarks").glob("*.py"):
        names |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', script.read_text("utf-8")))
    return {name.replace("-", "_") for name in names}


OF_PIP = {"__no_deps", "__target", "__extra_index_url", "__torch_backend"}


@pytest.mark.parametrize("page", [p for p in PAGES if p.endswith(".md")])
def test_what_sentences_name_is_there(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    for span in re.findall(r"`([^`\n]+)`", text):
        for option in re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", span):
            name = option.replace("-", "_")
            assert name in option_names() | OF_PIP, f"{page}: no program has {option}: {span}"
        for file in re.findall(r"(?<![\w/.])(?:recipes|benchmarks)/(?!test_)\w+\.py", span):
            assert (ROOT / file).is_file(), f"{page}: {file}"
        if re.match(r"make \w", span):
            check_options(" ".join(span.split()[:2]))


@pytest.mark.parametrize("page", [p for p in PAGES if p.endswith(".md")])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_every_reason_is_still_needed() -> None:
    given = [c for page in PAGES for b in blocks(page) if b.language in ("sh", "bash")
             for c in b.commands()]  # fmt: skip
    assert len(given) > 60
    unused = [found for found in NOT_RUN if not any(re.search(found, c) for c in given)]
    assert not unused


def test_every_guide_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for guide in sorted((ROOT / "docs").glob("*.md")):
        assert guide.name == "README.md" or f"]({guide.name})" in index, guide.name


def test_the_extras_that_pages_name_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(extras["optional-dependencies"])
    for page in PAGES:
        for names in re.findall(r"spikeformer_lt\[([\w,]+)\]", (ROOT / page).read_text("utf-8")):
            assert set(names.split(",")) <= known, page
