"""The console script ``spikeformer-lt``: what is there, recipes, searches, and finished runs.

Every command that a recipe does is that recipe with its options; the rest is here. Nothing imports
torch before it is known what is asked.
"""

from __future__ import annotations

import csv
import importlib
import json
import logging
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from spikeformer_lt import named, runtime
from spikeformer_lt.cli import RECIPES, FindAtSparsity, find_command
from spikeformer_lt.config import (
    ASSIGNED,
    DRY_RUN,
    DRY_RUN_ENDED,
    PRINT_CONFIG,
    check,
    check_fields,
    exit_after,
    option_names,
    parse,
    split_plugins,
)
from spikeformer_lt.disk import read_mapping
from spikeformer_lt.errors import (
    ConfigError,
    SpikeformerError,
    check_license,
    near,
    shown,
)
from spikeformer_lt.registry import config_class, descriptions, search_names, use_plugins
from spikeformer_lt.usage import introduction, table

C = TypeVar("C")
INTRO = """\
Lottery tickets in spiking transformers: find, train, measure, export.

  {prog} evaluate --run spikformer_digits                             a ticket that comes along
  {prog} run multisp_cifar --data.name digits --run.out runs/first    a MultiSp ticket; no download
  {prog} evaluate --run runs/first                                    accuracy with its interval
  {prog} export --run runs/first --out ticket                         a folder that loads by itself
  {prog} predict ticket PICTURE.png
"""
HIDDEN = "complete"  # for the script of `completion`
PLAIN = ("run", "ls", "cp", "completion")  # commands of words alone
WORKING = ("run", "find", "cp", "compare", "export", "report", "convert", "reproduce", "push")
"""Commands that do more than print, but for these options:"""
PRINTING = {"--help", "-h", PRINT_CONFIG, DRY_RUN}
ACCURACIES = ("published %", "ours % (data set)")
MODELS = Path(__file__).parent / "models"
KINDS = ("models", "datasets", "searches", "recipes")
AS_RECIPE = {
    "compare": "compare_tickets", "evaluate": "evaluate", "export": "export", "report": "report",
    "energy": "energy_report", "convert": "convert", "reproduce": "paper_tables",
}  # fmt: skip
"""Command -> the recipe that it is."""
FIRST = {
    "evaluate": ("--run", "DIR"), "export": ("--run", "DIR"), "report": ("--runs", "DIR ..."),
    "energy": ("--runs", "DIR ..."), "reproduce": ("--table", "TABLE ..."),
}  # fmt: skip
"""Command -> the option that words before all options are, and what they are."""
WITHOUT_TABLE = ("--table", "--config", "--print-config", "--help", "-h")
"""Options with which `reproduce` needs no table before them."""


@dataclass(frozen=True)
class Predict:
    """Classify pictures or recordings with a run, a ticket or an export.

    spikeformer-lt predict ticket PICTURE.png
    spikeformer-lt predict spikformer_digits *.png --top 3 --json    # a ticket that comes along
    """

    top: int = 1
    """Classes shown for each file."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_fields(self, top=1)


@dataclass(frozen=True)
class Bench:
    """Time a run, a ticket or an export in its compact form, on this machine.

    spikeformer-lt bench ticket --batch-sizes 1 8 64
    """

    batch_sizes: tuple[int, ...] = (1, 32)
    """Samples of a call."""
    calls: int = 31
    """Calls of which the median is taken, after three that are not counted."""

    def __post_init__(self) -> None:
        check_fields(self, calls="[1, 100000]")
        sound = self.batch_sizes and all(1 <= size <= 65_536 for size in self.batch_sizes)
        check(bool(sound), "batch_sizes", self.batch_sizes, "1 to 65536")


@dataclass(frozen=True)
class Push:
    """Publish an export on the Hugging Face hub, without paths of this machine.

    spikeformer-lt push ticket OWNER/NAME --private --license mit    # after: hf auth login
    """

    private: bool = False
    """Let the owner alone see it."""
    license: str = ""
    """Licence of the weights, in the hub's words, such as mit; empty keeps what the card says."""

    def __post_init__(self) -> None:
        check_license(self.license)


@dataclass(frozen=True)
class Watch:
    """Show state, epoch and accuracy of every run below some folders; runs without one.

    spikeformer-lt watch runs --every 10
    """

    every: float = 0
    """Seconds between two looks; 0 looks once."""

    def __post_init__(self) -> None:
        check(0 <= self.every <= 86_400, "every", self.every, "0 or seconds up to a day")


def main(argv: Sequence[str] | None = None, prog: str = "spikeformer-lt") -> NoReturn:
    """Run the console and exit, as `config.run_recipe` does."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = given[0] if given else "--help"
    runtime.only_prints = command not in WORKING or bool(PRINTING & {*given})

    def act() -> None:
        if command in ("--help", "-h", "help"):
            print(INTRO.format(prog=prog))
            print(table([*_summaries()], "  "))
            print(f"\n{prog} COMMAND --help lists the options of a command.")
        elif command == "--version":
            from spikeformer_lt.runtime import installed_version

            print(installed_version("spikeformer_lt") or "a source tree that was not installed")
        elif command in AS_RECIPE:
            options = (i for i, t in enumerate(given) if i and (t[:1] == "-" or ASSIGNED.match(t)))
            at = next(options, len(given))
            option, runtime.words = FIRST.get(command, ("", ""))
            first = [option] * (at > 1 and option != "")
            if command == "reproduce" and not first and not {*WITHOUT_TABLE} & {*given}:
                raise ConfigError(f"name a table, as in {prog} reproduce 2311-tab1; --help has all")
            runtime.needs = ("table",) if command == "reproduce" else ()
            _run_recipe(AS_RECIPE[command], [*first, *given[1:]], f"{prog} {command}")
        elif command in COMMANDS:
            does, words = COMMANDS[command]
            asked = given[1:2] if command == "run" else given[1:]
            if {"--help", "-h"} & {*asked} and command in PLAIN:
                print(f"usage: {prog} {command} {words}\n\n{introduction(getdoc(does) or '')}")
            else:
                does(given[1:], f"{prog} {command}")
        else:
            known = sorted({*COMMANDS, *AS_RECIPE} - {HIDDEN})
            hint = near(command, known) or f"; allowed: {', '.join(known)}"
            raise ConfigError(f"unknown command {shown(command)}{hint}")

    def act_and_flush() -> None:
        try:
            act()
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, a closed pipe is told in one way

    exit_after(act_and_flush, given)


def _summaries() -> Iterator[tuple[str, str]]:
    for name, (command, words) in COMMANDS.items():
        if name != HIDDEN:
            yield f"{name} {words}", (command.__doc__ or "").splitlines()[0]
    for name, recipe in AS_RECIPE.items():
        words = FIRST.get(name, ("", ""))[1]
        yield f"{name} {words}".strip(), _first_line(RECIPES / f"{recipe}.py")


def _first_line(recipe: Path) -> str:
    """What a recipe says of itself, read without running it."""
    return recipe.read_text("utf-8").partition("\n")[0].strip('"')


def _recipes() -> dict[str, Path]:
    return {path.stem: path for path in sorted(RECIPES.glob("*.py"))}


def _recipe(argv: Sequence[str]) -> Path:
    """The recipe that the first word names; a ConfigError for another."""
    known = _recipes()
    name = argv[0].removesuffix(".py").replace("-", "_") if argv else ""
    if name not in known:
        hint = near(name, known) or ";" if argv else ";"
        given = f"unknown recipe {shown(argv[0])}{hint}" if argv else "name one:"
        raise ConfigError(f"{given} the recipes are {', '.join(known)}; your own is a FILE.py")
    return known[name]


def run(argv: Sequence[str], prog: str) -> None:
    """Run a recipe of the package, or a file of your own.

    spikeformer-lt run multisp_cifar --data.name digits --quick
    spikeformer-lt run multisp_cifar --help    # the options of a recipe
    spikeformer-lt ls recipes                  # its names
    spikeformer-lt run mine.py --quick         # yours, of spikeformer-lt cp
    """
    own = Path(argv[0]) if argv and argv[0].endswith(".py") else None
    if own is not None and own.is_file():
        sys.argv = list(argv)
        runpy.run_path(str(own), run_name="__main__")
        return
    if own is not None and own.stem.replace("-", "_") not in (known := _recipes()):
        hint = near(own.stem, known) or "; spikeformer-lt ls recipes lists them"
        raise ConfigError(f"there is no file {shown(argv[0])}, and no recipe of that name{hint}")
    _run_recipe(_recipe(argv).stem, argv[1:], f"{prog} {argv[0]}")


def _run_recipe(name: str, argv: Sequence[str], prog: str) -> None:
    sys.argv, runtime.program = [prog, *argv], prog  # the first word becomes a file's name
    try:
        runpy.run_module(f"spikeformer_lt.recipes.{name}", run_name="__main__", alter_sys=True)
    finally:
        runtime.program, runtime.words, runtime.needs = "", "", ()


def find(argv: Sequence[str], prog: str) -> None:
    """Find a ticket with any search, train it, test it once."""
    find_command(argv, prog)


def copy(argv: Sequence[str], prog: str) -> None:
    """Copy a recipe, to be changed and run.

    spikeformer-lt cp multisp_cifar mine.py
    spikeformer-lt run mine.py --data.name digits --quick
    """
    if len(argv) != 2:
        raise ConfigError(f"{prog} takes a recipe and a new file: {prog} RECIPE FILE.py")
    source, target = _recipe(argv), Path(argv[1])
    check(target.suffix == ".py", "FILE", argv[1], "a Python file, FILE.py")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text("utf-8"))
    except FileExistsError:
        raise ConfigError(f"{shown(argv[1])} is there already; name a new file") from None
    print(f"wrote {target}; run it: spikeformer-lt run {target}")


def ls(argv: Sequence[str], prog: str) -> None:
    """List what is there.

    spikeformer-lt ls models                       # sizes, published accuracies and ours
    spikeformer-lt ls searches --plugins FILE.py   # with those of a plug-in
    """
    rest, plugins = split_plugins(argv)
    use_plugins(plugins)
    if len(rest) != 1 or rest[0] not in KINDS:
        hint = near(rest[0], KINDS) if rest else ""
        raise ConfigError(f"{prog} takes one of {', '.join(KINDS)}{hint}")
    print(table(_list_models() if rest[0] == "models" else _described(rest[0])))


def _described(kind: str) -> list[tuple[str, ...]]:
    """Names of recipes, searches or data sets, each with the first line of what it says."""
    if kind == "recipes":
        return [("recipe", "does"), *((n, _first_line(path)) for n, path in _recipes().items())]
    if kind == "searches":
        docs = [(n, getdoc(config_class("search", n)) or "A plug-in's.") for n in search_names()]
    else:
        docs = [*descriptions("dataset").items()]
    return [(kind, "is"), *((name, doc.partition("\n")[0]) for name, doc in docs)]


def _list_models() -> list[tuple[str, ...]]:
    known = {kind: _accuracies(kind) for kind in ACCURACIES}
    with (MODELS / "sizes.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    sizes = {row[0]: row for row in rows}
    table: list[tuple[str, ...]] = [(*head, *ACCURACIES, "is")]
    for name, about in descriptions("model").items():
        reached = (known[kind].get(name, "") for kind in ACCURACIES)
        table.append((*(sizes.get(name) or size_of(name)), *reached, about))
    return table


def size_of(name: str) -> tuple[str, str, str, str]:
    """Name, parameters, T and shape of an input of a model; "?" for what it does not say."""
    import torch

    from spikeformer_lt.registry import create_model

    try:
        with torch.device("meta"):
            net: Any = create_model(name, num_classes=10)
    except Exception:  # one with keywords of its own, or that a plug-in wrote for its own data
        return name, "?", "?", "?"
    side, channels = getattr(net, "image_size", None), getattr(net, "in_channels", None)
    size = "x".join(map(str, side)) if isinstance(side, tuple) else side
    shape = f"{channels}x{size}" if channels and size else "?"
    return name, f"{sum(p.numel() for p in net.parameters()):,}", str(getattr(net, "T", "?")), shape


def _accuracies(kind: str) -> dict[str, str]:
    """Model -> data sets and test accuracies in percent, as published or of what we ship."""
    if kind == ACCURACIES[0]:
        with (MODELS / "published.csv").open(newline="", encoding="utf-8") as file:
            found = [(r["model"], r["data"], r["test accuracy %"]) for r in csv.DictReader(file)]
    else:
        places = sorted(MODELS.parent.glob("pretrained/*/config.json"))
        known = [(json.loads(p.read_text("utf-8")), p.parent.name) for p in places]
        abouts = [(card["provenance"], name, card["about"]) for card, name in known]
        cards = [(p, name, about.get("test_accuracy_of_this_file", about["test_accuracy"]))
                 for p, name, about in abouts]  # fmt: skip
        found = [(p["model"]["name"], f"{n} ({p['dataset']})", f"{v:.2f}") for p, n, v in cards]
    told: dict[str, str] = {}
    for name, data, value in found:
        told[name] = f"{told[name]}, {data} {value}" if name in told else f"{data} {value}"
    return told


def _read(
    cls: type[C], argv: Sequence[str], prog: str, check_words: Callable[[list[str], bool], None]
) -> tuple[list[str], C]:
    """The words before the first option, checked, and the options; a dry run ends here."""
    at = next((i for i, token in enumerate(argv) if token.startswith("-")), len(argv))
    takes = COMMANDS[prog.split()[-1]][1]
    try:
        cfg = parse(cls, argv[at:], prog, takes)
    except ConfigError as fault:
        raise ConfigError(f"{fault}{f'; {takes} comes before the options' * (not at)}") from None
    words = list(argv[:at])
    check_words(words, DRY_RUN in argv)
    if DRY_RUN in argv:
        print(DRY_RUN_ENDED, end="")
        sys.exit(0)
    return words, cfg


def _network(folder: str) -> Any:
    """The compact network of an export, a ticket or a run, ready to predict."""
    from spikeformer_lt.export import compact, read_ticket, shipped
    from spikeformer_lt.ticket import finished_folder
    from spikeformer_lt.tickets import model_from_ticket

    ticket = read_ticket(finished_folder(shipped(folder) or folder))
    if ticket.provenance.get("trained") is False:
        sys.stderr.write("NOTICE: this ticket holds its start weights, to be trained again\n")
    return compact(model_from_ticket(ticket))


def predict(argv: Sequence[str], prog: str) -> None:
    """Classify pictures or recordings with a run, a ticket or an export."""

    def check_words(words: list[str], dry: bool) -> None:
        if len(words) < 2:
            form = f"{prog} DIR FILE [FILE ...]"
            raise ConfigError(f"{prog} takes a ticket's folder and files: {form}")
        named.check_ticket("DIR", words[0], dry=dry)
        for word in words[1:]:
            named.check_file("FILE", word)

    words, cfg = _read(Predict, argv, prog, check_words)
    logging.basicConfig(level=max(runtime.console_level, logging.WARNING), format="%(message)s")
    net = _network(words[0])
    found = net.predict([Path(word) for word in words[1:]])
    rows: list[tuple[str, ...]] = [("file", "probability", "class")]
    records = []
    for file, one in zip(words[1:], found, strict=True):
        order = one.probabilities.argsort(descending=True, stable=True)[: cfg.top].tolist()
        names = [net.preprocess.classes[label] for label in order]
        shares = [float(one.probabilities[label]) for label in order]
        rows += [(file, f"{p:.4f}", n) for n, p in zip(names, shares, strict=True)]
        kept = zip(order, names, shares, strict=True)
        classes = [{"label": k, "name": n, "probability": p} for k, n, p in kept]
        records.append({"file": file, "classes": classes})
    print(json.dumps(records, indent=2) if cfg.json else table(rows))


def bench(argv: Sequence[str], prog: str) -> None:
    """Time a run, a ticket or an export in its compact form, on this machine."""

    def check_words(words: list[str], dry: bool) -> None:
        if len(words) != 1:
            form = f"{prog} DIR"
            raise ConfigError(f"{prog} takes one folder of a run, a ticket or an export: {form}")
        named.check_ticket("DIR", words[0], dry=dry)

    words, cfg = _read(Bench, argv, prog, check_words)

    import torch

    from spikeformer_lt.export.api import fixed_batch
    from spikeformer_lt.runtime import describe_environment

    net = _network(words[0])
    rows: list[tuple[str, ...]] = [("batch", "ms a call", "fastest", "slowest", "samples/s")]
    for size in cfg.batch_sizes:
        images = fixed_batch(net.net, size)
        for _ in range(3):
            net(images)
        spans = []
        for _ in range(cfg.calls):
            start = time.perf_counter()
            net(images)
            spans.append((time.perf_counter() - start) * 1e3)
        middle = statistics.median(spans)
        ends = (f"{middle:.2f}", f"{min(spans):.2f}", f"{max(spans):.2f}")
        rows.append((str(size), *ends, f"{size / middle * 1e3:.0f}"))
    where = f"{describe_environment()['cpu']}, {torch.get_num_threads()} thread(s)"
    print(f"{where}, median of {cfg.calls} calls")
    print(table(rows))


def push(argv: Sequence[str], prog: str) -> None:
    """Publish an export on the Hugging Face hub, under the login of huggingface_hub."""

    def check_words(words: list[str], dry: bool) -> None:
        if len(words) != 2:
            raise ConfigError(f"{prog} takes an export's folder and a name: {prog} DIR OWNER/NAME")
        named.check_repository("NAME", words[1])
        if dry:
            named.check_export("DIR", words[0])

    words, cfg = _read(Push, argv, prog, check_words)

    from spikeformer_lt.export import push as publish

    print(publish(words[0], words[1], private=cfg.private, license=cfg.license))


def watch(argv: Sequence[str], prog: str) -> None:
    """Show the state of the runs in some folders."""

    def check_words(words: list[str], dry: bool) -> None:
        for word in words or ["runs"]:
            check(Path(word).is_dir(), "FOLDER", word, "a folder of runs")

    words, cfg = _read(Watch, argv, prog, check_words)
    places = [Path(word) for word in words or ["runs"]]
    while True:
        print(table([("run", "state", "epoch", "accuracy %"), *_states(places)]), flush=True)
        if not cfg.every:
            return
        time.sleep(cfg.every)
        print()


def _states(places: Iterable[Path]) -> Iterator[tuple[str, str, str, str]]:
    """Name, state, epoch and accuracy of every run below some folders."""
    from spikeformer_lt.training.run import CONFIG, Summary, in_use, read_report

    for place in places:
        for folder in sorted(path.parent for path in place.rglob(CONFIG) if _of_run(path)):
            name = str(folder.relative_to(place)) if folder != place else folder.name
            state = "running" if in_use(folder) else "stopped"
            epoch = accuracy = ""
            try:
                if (folder / "report.json").is_file():
                    state, report = "done", read_report(folder / "report.json")
                    accuracy = f"test {report.get('test_accuracy', float('nan')):.2f}"
                elif (folder / "summary.csv").is_file():
                    last = Summary(folder / "summary.csv").last()
                    epoch = last.get("epoch", "")
                    value = last.get("val_accuracy")
                    accuracy = f"val {float(value):.2f}" if value else ""
            except (SpikeformerError, TypeError, ValueError):  # the others are shown all the same
                state = "damaged"
            yield name, state, epoch, accuracy


def _of_run(config: Path) -> bool:
    """Whether a configuration is that of a run: exports and converted models have others."""
    try:
        return "run" in read_mapping(config)
    except SpikeformerError:  # a damaged one
        others = ("model.safetensors", "ticket.json")
        return not any(config.with_name(name).is_file() for name in others)


def events(argv: Sequence[str], prog: str) -> None:
    """Report counts, rates and faults of recordings."""
    from spikeformer_lt.events.__main__ import main as check_events

    sys.exit(check_events(argv or ["--help"], prog))


def doctor(argv: Sequence[str], prog: str) -> None:
    """Look at this installation, its data and its processes; say what to mend."""
    from spikeformer_lt.doctor import main as examine

    sys.exit(examine(argv, prog))


SCRIPT = """\
_spikeformer_lt() {
  local IFS=$'\\n'
  COMPREPLY=( $(spikeformer-lt complete "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null) )
}
complete -o default -F _spikeformer_lt spikeformer-lt
"""


def completion(argv: Sequence[str], prog: str) -> None:
    """Print the script that completes words in a shell.

    A line of ~/.bashrc (~/.zshrc with zsh) is: eval "$(spikeformer-lt completion bash)"

    spikeformer-lt completion bash
    """
    if list(argv) not in (["bash"], ["zsh"]):
        raise ConfigError(f'{prog} takes bash or zsh: eval "$({prog} bash)" in ~/.bashrc')
    if argv[0] == "zsh":
        print("autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit")
    print(SCRIPT, end="")


def complete(argv: Sequence[str], prog: str) -> None:
    """Print what the last of some words may become, one a line."""
    *before, last = argv or [""]
    print("\n".join(word for word in sorted(_next(before)) if word.startswith(last)))


def _next(before: Sequence[str]) -> set[str]:
    """The words that may follow the words of a command line."""
    if not before:
        return {*COMMANDS, *AS_RECIPE} - {HIDDEN}
    first, *rest = before
    if first == "find" and rest:
        return _options_of_search(rest[0].replace("-", "_"))
    if first in AS_RECIPE or (first == "run" and rest):
        name = AS_RECIPE.get(first) or rest[0].replace("-", "_")
        return _options_of_recipe(name) if name in _recipes() else set()
    if first in OPTIONS and rest:
        return _flags(option_names(OPTIONS[first]))
    words: dict[str, Iterable[str]] = {
        "find": search_names(), "run": _recipes(), "cp": _recipes(), "ls": KINDS,
        "completion": ("bash", "zsh"), "events": ("check", "write"),
    }  # fmt: skip
    return set(words.get(first, ())) if not rest else set()


def _options_of_search(name: str) -> set[str]:
    kind = config_class("search", name)
    own = {f"{name}.{field}" for field in option_names(kind)} if kind else set()
    return _flags({*option_names(FindAtSparsity), *own} - {f"{name}.sparsity"})


def _options_of_recipe(name: str) -> set[str]:
    module = importlib.import_module(f"spikeformer_lt.recipes.{name}")
    kinds = [k for k in vars(module).values() if getattr(k, "__module__", "") == module.__name__]
    return _flags({n for kind in kinds if is_dataclass(kind) for n in option_names(kind)})


def _flags(names: Iterable[str]) -> set[str]:
    own, always = {*names}, {"config", "help", "dry-run", "print-config", "quiet", "verbose"}
    quick = {"quick"} if "run.quick" in own else set()
    return {f"--{name.replace('_', '-')}" for name in own | always | quick}


OPTIONS: dict[str, type] = {"predict": Predict, "bench": Bench, "push": Push, "watch": Watch}
Command = Callable[[Sequence[str], str], None]
COMMANDS: dict[str, tuple[Command, str]] = {
    "run": (run, "RECIPE|FILE.py"), "find": (find, "SEARCH"), "predict": (predict, "DIR FILE ..."),
    "bench": (bench, "DIR"), "push": (push, "DIR OWNER/NAME"),
    "watch": (watch, "[FOLDER ...]"), "ls": (ls, "|".join(KINDS)),
    "cp": (copy, "RECIPE FILE.py"), "events": (events, "check|write DIR"), "doctor": (doctor, ""),
    "completion": (completion, "bash|zsh"), HIDDEN: (complete, "WORD ..."),
}  # fmt: skip
"""Command -> what it does, and the words that it takes before its options."""
