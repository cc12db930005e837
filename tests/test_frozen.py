"""What commit a177a96 wrote and computed, against today's code.

The files of tests/golden/frozen were made at that commit by tests/golden/freeze.py, which calls the
measuring functions below. Names of the library are imported in the next few lines and nowhere else.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import spikeformer_lt
from spikeformer_lt import Ticket, create_dataset, create_model, create_search, load_exported
from spikeformer_lt.config import parse, to_dict
from spikeformer_lt.events.__main__ import _parser as events_parser
from spikeformer_lt.images.loader import eval_loader

RUN_RECIPE = "spikeformer_lt.config.run_recipe"
"""What the last line of a recipe calls with its main function and its configuration class."""

pytestmark = pytest.mark.golden

ROOT = Path(__file__).resolve().parents[1]
FROZEN = ROOT / "tests" / "golden" / "frozen"
EXACT = 1e-9  # relative, of float64
OTHER_MACHINE = 0.1  # relative distance of weights trained with other roundings
STEPS = 20
RUNS = {"multisp": "multisp_cifar", "imp": "imp_cifar"}
DIGITS = {"image_size": 16, "T": 2, "embed_dim": 16, "v_threshold": 0.2}
MODELS: dict[str, dict[str, Any]] = {
    "spikformer_toy": {
        "model": {"image_size": 16, "attn_scale": 0.25},
        "shift": {"": 0.2, "qkv": 0.8},
    },
    "spikformer_dvs": {
        "model": {"image_size": 48, "T": 3, "embed_dim": 32, "num_heads": 4},
        "shift": {"": 0.2, "qkv": 1.0},
    },
    "spiking_vgg_toy": {"model": {}, "shift": {"": -0.4}},
    "spiking_resnet_toy": {"model": {}, "shift": {"": -0.4}},
}
# Keys of a report that depend on the clock or the machine, and the run id, which changed once.
VARYING = ("seconds", "search_seconds", "versions", "run_id")


@functools.cache
def frozen(name: str) -> Any:
    """Return the content of a JSON file of tests/golden/frozen."""
    return json.loads((FROZEN / f"{name}.json").read_text("utf-8"))


def machine_kind() -> dict[str, Any]:
    """Describe what the last bits of float32 results depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = dict(re.findall(r"^(vendor_id|cpu family|model|model name)\s*: (.*)$", text, re.M))
    return {
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": found,
    }


def same_machine() -> bool:
    return machine_kind() == frozen("about")["machine_kind"]


def sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def hashes(tensors: Any) -> dict[str, list[Any]]:
    """Return dtype, shape and sha256 of each tensor of a mapping."""
    return {n: [str(t.dtype), list(t.shape), sha256(t)] for n, t in tensors.items()}


def uniform(name: str, shape: Any, low: float, high: float) -> Tensor:
    """Return float64 numbers in [low, high) by SplitMix64 of (name, position)."""
    count = max(1, torch.Size(shape).numel())
    x = torch.arange(count) * -7046029254386353131 + zlib.crc32(name.encode()) * 0x10001
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    unit = ((x >> 11) & ((1 << 53) - 1)).double() / 2.0**53
    return (low + (high - low) * unit).view(tuple(shape))


def seeded_state(shapes: dict[str, list[int]], shift: dict[str, float]) -> dict[str, Tensor]:
    """Return weights by name and shape: gains above 1, shifts that let every layer fire."""
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            bound = (3.0 / torch.Size(shape[1:]).numel()) ** 0.5
            state[name] = uniform(name, shape, -bound, bound)
        elif name.endswith("weight"):
            state[name] = uniform(name, shape, 1.2, 1.6)
        elif name.endswith("bias"):
            qkv = bool(re.search(r"\.[qkv]\.", name))
            low = shift.get("qkv", shift[""]) if qkv else shift[""]
            state[name] = uniform(name, shape, low, low + 0.3)
        elif name.endswith("running_var"):
            state[name] = torch.ones(shape, dtype=torch.float64)
        else:
            state[name] = torch.zeros(shape, dtype=torch.float64)
    return state


def seeded_model(name: str, case: dict[str, Any], known: dict[str, Any]) -> nn.Module:
    """Create a float64 model with weights from hashes and the recorded running statistics."""
    model = create_model(name, **case["model"]).double()
    state = seeded_state(known["shapes"], case["shift"])
    state |= {n: torch.tensor(v, dtype=torch.float64) for n, v in known["statistics"].items()}
    model.load_state_dict(state)
    return model


def model_input(model: Any) -> Tensor:
    side = model.image_size
    frames = (model.T,) if model.in_channels == 2 else ()
    return uniform("input", (3, *frames, model.in_channels, *side), 0, 1)


def measure_model(model: Any) -> dict[str, Any]:
    """Logits in eval mode; loss, gradients and buffers of one training step.

    Of each gradient its norm and its scalar products with two tensors made of hashes are kept.
    """
    x = model_input(model)
    with torch.no_grad():
        logits = model.eval()(x)
    loss = nn.functional.cross_entropy(model.train()(x.flip(0)).mean(1), torch.arange(len(x)))
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            along = [uniform(f"{name} {i}", parameter.shape, -1, 1) for i in range(2)]
            products = [float((parameter.grad * direction).sum()) for direction in along]
            gradients[name] = [float(parameter.grad.norm()), *products]
    buffers = {name: float(b.double().norm()) for name, b in model.named_buffers()}
    return {
        "logits": logits.tolist(),
        "loss": loss.item(),
        "gradients": gradients,
        "buffers": buffers,
    }


def measure_losses(shapes: dict[str, list[int]]) -> list[float]:
    """Losses of 20 AdamW steps on digits in float64, batches of 16 in their own order."""
    data = create_dataset("digits", image_size=16, limit_train=64, limit_test=40)
    model = create_model("spikformer_toy", **DIGITS).double().train()
    model.load_state_dict(seeded_state(shapes, {"": 0.0}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    losses: list[float] = []
    while len(losses) < STEPS:
        for images, labels, _ in eval_loader(data.train, 16):
            loss = nn.functional.cross_entropy(model(images.double()).mean(1), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[:STEPS]


@torch.no_grad()
def measure_export(folder: Path) -> dict[str, Any]:
    """float64 logits of an export, as trained and in its compact form."""
    x = uniform("export input", (4, 3, 16, 16), 0, 1)
    plain = load_exported(folder, plain=True).double()
    compact = load_exported(folder).double()
    return {"plain": plain(x).tolist(), "compact": compact(x).tolist()}


def run_recipe(recipe: str, *options: object) -> int:
    """Run a recipe in this process and return its exit status."""
    argv = sys.argv
    sys.argv = [f"recipes/{recipe}.py", *map(str, options)]
    try:
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = argv
    return 0


def with_config_of(path: Path, use: Callable[[type], Any]) -> Any:
    """Return what `use` makes of a program's configuration class; its main is not called."""
    results: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RUN_RECIPE, lambda main, cls, *more: results.append(use(cls)))
        runpy.run_path(str(path), run_name="__main__")
    return results[0]


def flat(tree: Any, where: str = "") -> dict[str, Any]:
    """Return {"group.field": value} of nested dicts."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{where}{key}.") if nested else {f"{where}{key}": value}
    return found


def options_of(cls: type) -> dict[str, Any]:
    return flat(json.loads(json.dumps(to_dict(cls()))))


def search_defaults(name: str) -> dict[str, Any]:
    """Return the options of a search that is created without a configuration."""
    return flat(json.loads(json.dumps(to_dict(create_search(name).config))))


def events_options() -> dict[str, Any]:
    """Options of ``python -m spikeformer_lt.events check`` with their defaults."""
    found = vars(events_parser().parse_args(["check", "DIR"]))
    return {name: value for name, value in found.items() if not callable(value)}


def parse_commands(path: Path, commands: list[list[str]]) -> None:
    """Let a program's configuration class read the options of each command."""

    def read(cls: type) -> None:
        for options in commands:
            parse(cls, options)

    with_config_of(path, read)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_varying(value: Any) -> Any:
    """Return a report without what depends on the clock, the machine or the run id."""
    if isinstance(value, dict):
        return {k: without_varying(v) for k, v in value.items() if k not in VARYING}
    return [without_varying(item) for item in value] if isinstance(value, list) else value


def form(value: Any) -> Any:
    """Return a report's keys and the kinds of its values: numbers, texts, lists."""
    if isinstance(value, dict):
        return {key: form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [form(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def assert_close(found: Any, expected: Any, relative: float, where: str = "") -> None:
    """Compare nested values; numbers to a relative tolerance, all else exactly."""
    if where.endswith(".attention/events"):
        return  # old reports have those of q alone
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, relative, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (left, right) in enumerate(zip(found, expected, strict=True)):
            assert_close(left, right, relative, f"{where}/{i}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=relative, abs=relative), where
    else:
        assert found == expected, where


@pytest.fixture(autouse=True)
def _one_kind_of_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPIKEFORMER_KERNELS", "torch")
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
    torch.set_num_threads(1)
    return


@pytest.mark.parametrize("run", RUNS)
def test_a_ticket_loads_with_the_bits_it_was_saved_with(run: str) -> None:
    for kind, expected in frozen("tickets")[run].items():
        ticket = Ticket.load(FROZEN / run / "finished" / kind)
        assert ticket.mask.sha256 == expected["mask_sha256"]
        assert hashes(ticket.mask) == expected["mask"]
        assert hashes(ticket.tensors) == expected["tensors"]
        assert ticket.provenance == expected["provenance"]


@pytest.mark.parametrize("run", RUNS)
def test_a_ticket_is_saved_again_in_the_same_files(run: str, tmp_path: Path) -> None:
    folder = FROZEN / run / "finished" / "ticket"
    Ticket.load(folder).save(tmp_path / "again")
    for name in ("mask.safetensors", "model.safetensors"):
        saved, old = load_file(tmp_path / "again" / name), load_file(folder / name)
        assert hashes(saved) == hashes(old)
    again, old = (json.loads((place / "ticket.json").read_text()) for place in
                  (tmp_path / "again", folder))  # fmt: skip
    assert again.keys() == old.keys() | {"seal"}


@pytest.mark.parametrize("run", RUNS)
def test_an_interrupted_run_resumes_by_its_config_to_the_same_end(run: str, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(FROZEN / run / "living", home)
    begun = json.loads((home / "config.json").read_text())
    options = ("--config", home / "config.json", "--run.out", home, "--run.resume", "auto")
    assert not (home / "report.json").exists()
    assert run_recipe(RUNS[run], *options) == 0
    resumed = flat(json.loads((home / "config.json").read_text()))
    assert resumed.items() >= {k: v for k, v in flat(begun).items() if "run." not in k}.items()
    finished = FROZEN / run / "finished"
    found = without_varying(json.loads((home / "report.json").read_text()))
    expected = without_varying(json.loads((finished / "report.json").read_text()))
    begun_with = len((FROZEN / run / "living" / "summary.csv").read_text().splitlines()) - 1
    rows, before = (rows_of(f / "summary.csv") for f in (home, finished))
    columns = list(before[0])
    assert len(rows) == len(before) and list(rows[0]) == [*columns, "sops", "weight_bytes"]
    counted = [bool(row.pop("sops")) and bool(row.pop("weight_bytes")) for row in rows]
    assert not any(counted[:begun_with])  # what was written then stays as it was
    assert counted[begun_with:] == [bool(row["val_loss"]) for row in before[begun_with:]]
    assert_close(form(found), form(expected), 0)
    for kind in frozen("tickets")[run]:
        tensors, old = (Ticket.load(f / kind).tensors for f in (home, finished))
        if same_machine():
            assert hashes(tensors) == hashes(old)
            continue
        assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in old.items()}
        gap = sum(float((tensors[n].double() - t.double()).norm()) ** 2 for n, t in old.items())
        size = sum(float(t.double().norm()) ** 2 for t in old.values())
        assert gap <= OTHER_MACHINE**2 * size
    if same_machine():
        # That commit summed the losses of an evaluation in float32.
        losses = [[r.pop("val_loss") for r in table] for table in (rows, before)]
        assert_close(*([float(x or 0) for x in own] for own in losses), 1e-6)
        assert_close(found.pop("test_loss"), expected.pop("test_loss"), 1e-6)
        assert_close(found, expected, 0)
        columns.remove("val_loss")
        assert [{name: row[name] for name in columns} for row in rows] == before


@pytest.mark.parametrize("run", RUNS)
def test_a_finished_run_evaluates_to_what_its_report_says(run: str, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(FROZEN / run / "finished", home)
    out = tmp_path / "found.json"
    assert run_recipe("evaluate", "--run", home, "--cpu", "--out", out) == 0
    found = json.loads(out.read_text())
    report = json.loads((home / "report.json").read_text())
    assert found["accuracy"] == report["test_accuracy"]
    assert found["loss"] == pytest.approx(report["test_loss"], rel=1e-5)
    shared = {k: v for k, v in report.items() if k in found}
    assert {"sparsity", "macs", "sops", "params", "firing_rate", "layers", "purity"} <= set(shared)
    assert_close(found, shared, 1e-9 if same_machine() else 1e-3)


def test_a_finished_run_is_found_finished(tmp_path: Path) -> None:
    run = "imp"
    home = tmp_path / "run"
    shutil.copytree(FROZEN / run / "finished", home)
    rows = (home / "summary.csv").read_text()
    options = ("--config", home / "config.json", "--run.out", home, "--run.resume", home)
    assert run_recipe(RUNS[run], *options) == 0
    assert (home / "summary.csv").read_text() == rows
    for kind, expected in frozen("tickets")[run].items():
        assert hashes(Ticket.load(home / kind).tensors) == expected["tensors"]


@pytest.mark.parametrize("name", sorted(p.name for p in (FROZEN / "exports").glob("*")))
def test_an_old_export_gives_its_logits(name: str) -> None:
    config = json.loads((FROZEN / "exports" / name / "config.json").read_text())
    assert config["format_version"] == int(name[-1])
    known = frozen("exports")[name.replace("format3", "format2")]  # the same tickets
    assert_close(measure_export(FROZEN / "exports" / name), known, EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_in_float64(name: str) -> None:
    known = frozen("models")[name]
    assert all(0.01 < rate < 0.99 for rate in known["firing_rates"].values())
    found = measure_model(seeded_model(name, MODELS[name], known))
    assert found["gradients"].keys() == known["measured"]["gradients"].keys()
    assert_close(found, known["measured"], EXACT)


def test_twenty_steps_have_the_same_losses() -> None:
    known = frozen("losses")
    found = measure_losses(known["shapes"])
    assert known["losses"][0] > 1.2 * known["losses"][-1]
    assert found == pytest.approx(known["losses"], rel=1e-6)


RECIPES = sorted(frozen("options")["recipes"])


def changed(known: dict[str, Any]) -> dict[str, Any]:
    """Defaults that were wrong: the papers' sources clip no gradient."""
    name = "train.optim.clip_grad"
    return {name: 0.0} if known.get("train.optim.warmup_epochs", 0) >= 10 else {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_options_keep_their_defaults_and_commands_parse(recipe: str) -> None:
    commands = [
        shlex.split(item["command"])
        for item in frozen("commands")["commands"]
        if f"recipes/{recipe}.py" in item["command"] and "--plugins" not in item["command"]
    ]
    commands = [words[1 + words.index(f"recipes/{recipe}.py") :] for words in commands]

    def check(cls: type) -> None:
        found, known = options_of(cls), frozen("options")["recipes"][recipe]
        gone = [name for name in known if name not in found]
        assert not gone, "options may be added, and none may vanish"
        assert {name: found[name] for name in known} == known | changed(known)
        for options in commands:
            parse(cls, options)

    with_config_of(ROOT / "recipes" / f"{recipe}.py", check)


@pytest.mark.parametrize("search", sorted(frozen("options")["searches"]))
def test_a_search_without_options_keeps_its_defaults(search: str) -> None:
    assert {
        name: value
        for name, value in search_defaults(search).items()
        if name in frozen("options")["searches"][search]
    } == frozen("options")["searches"][search]


def test_options_of_the_events_program_keep_their_defaults() -> None:
    assert events_options().items() >= frozen("options")["events"].items()


def test_commands_with_plugins_parse(tmp_path: Path) -> None:
    """In a process of its own: plug-ins stay registered as long as a process lives."""
    known = frozen("commands")
    for name, text in known["files"].items():
        (tmp_path / name).write_text(text, "utf-8")
    program: dict[str, list[list[str]]] = {}
    for item in known["commands"]:
        words = shlex.split(item["command"])
        script = next((word for word in words if word.endswith(".py")), "")
        if script in known["files"] or "--plugins" in words:
            path = tmp_path / script if script in known["files"] else ROOT / script
            program.setdefault(str(path), []).append(words[1 + words.index(script) :])
    assert all(name in json.dumps(program) for name in known["files"])
    code = (
        "import importlib.util, json, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('frozen', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "for path, commands in json.loads(sys.argv[1]).items():\n"
        "    module.parse_commands(pathlib.Path(path), commands)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code, json.dumps(program)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_other_commands_of_the_pages_are_those_of_programs_that_are_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    files = frozen("commands")["files"]
    for item in frozen("commands")["commands"]:
        words = shlex.split(item["command"])
        if words[0] == "make":
            assert words[1] in targets, item
        elif words[:3] == ["python", "-m", "spikeformer_lt.events"]:
            events_parser().parse_args(words[3:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("spikeformer_lt"):
            assert importlib.util.find_spec(words[2]) is not None, item
        elif words[0] not in ("source", "sbatch"):
            script = next(word for word in words if word.endswith(".py"))
            assert script in files or (ROOT / script).is_file(), item
            check_launcher(words[: words.index(script)])


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


@pytest.mark.parametrize(
    "item", frozen("old_imports"), ids=lambda item: f"{item['module']}.{item['name']}"
)
def test_an_import_that_was_printed_still_works(item: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module(item["module"])
        assert not item["name"] or getattr(module, item["name"]) is not None


def test_registered_names_and_the_doors_names_are_still_there() -> None:
    known = frozen("public_names")
    assert set(known["modules"]["spikeformer_lt"]) <= set(spikeformer_lt.__all__)
    for kind in ("models", "datasets", "searches"):
        assert set(known[kind]) <= set(getattr(spikeformer_lt, f"list_{kind}")())
