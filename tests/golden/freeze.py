"""Make tests/golden/frozen: what commit a177a96 writes and computes.

python tests/golden/freeze.py OLD

OLD is a checkout of commit 036bb49, the last one that wrote packed format 1. This script was run at
a177a96 and imports modules by the paths they had there; at other commits it is here to be read. The
measuring functions are those of tests/test_frozen.py, so that both do the same.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based.neuron import LIFNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import spikeformer_lt
from spikeformer_lt import Ticket, create_model
from spikeformer_lt.export import export_ticket
from spikeformer_lt.training.phase_run import PhaseRun

ROOT = Path(__file__).resolve().parents[2]
FROZEN = ROOT / "tests" / "golden" / "frozen"
_spec = importlib.util.spec_from_file_location("test_frozen", ROOT / "tests" / "test_frozen.py")
assert _spec is not None and _spec.loader is not None
measured = importlib.util.module_from_spec(_spec)

SHARED = shlex.split(
    "--data.name digits --data.limit-train 128 --data.limit-test 40 --data.image-size 16 "
    "--data.mixup 0.1 --model.name spikformer_toy --model.embed-dim 16 --model.T 2 "
    "--model.v-threshold 0.2 --train.batch-size 8 --train.optim.lr 0.01 --train.cpu "
    "--train.threads 1"
)
OPTIONS = {  # run -> its own options, and the step after which it is interrupted
    "multisp": (
        "--train.ema-decay 0.9 --multisp.schedule sequential --multisp.stem finetune "
        "--multisp.dense-epochs 2 --multisp.stem-epochs 3 --multisp.epochs 4 --multisp.distill 0.2 "
        "--multisp.weights.method both --multisp.patches.score gumbel",
        124,
    ),
    "imp": ("--imp.epochs 3 --imp.rounds 2 --imp.rewind 4it --epochs 2", 88),
}
DROPPED = (".lock", "plots", "log.txt")


def write(name: str, content: Any) -> None:
    text = json.dumps(content, indent=1)
    (FROZEN / f"{name}.json").write_text(text + "\n")


def interrupted_after(steps: int) -> Any:
    """Send SIGTERM to this process after so many training steps; returns what undoes it."""
    inner, calls = PhaseRun._step, 0

    @functools.wraps(inner)
    def step(self: PhaseRun, batches: Any) -> float:
        nonlocal calls
        calls += 1
        loss = inner(self, batches)
        if calls == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    PhaseRun._step = step  # type: ignore[method-assign]
    return lambda: setattr(PhaseRun, "_step", inner)


def keep_run(source: Path, target: Path) -> None:
    """Copy a run directory without pictures, log, and the checkpoint before the last."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*DROPPED))
    environment = target / "env.json"
    environment.write_text(environment.read_text().replace(f"{ROOT}/", ""))
    newest = (target / "last" / "LATEST").read_text().strip()
    for folder in (target / "last").glob("ckpt-*"):
        if folder.name != newest:
            shutil.rmtree(folder)


def make_runs() -> None:
    tickets: dict[str, Any] = {}
    for run, (options, steps) in OPTIONS.items():
        argv = [*SHARED, *shlex.split(options)]
        assert measured.run_recipe(measured.RUNS[run], *argv, "--run.out", f"{run}-whole") == 0
        undo = interrupted_after(steps)
        code = measured.run_recipe(measured.RUNS[run], *argv, "--run.out", f"{run}-living")
        undo()
        assert code == 128 + signal.SIGTERM, code
        keep_run(Path(f"{run}-whole"), FROZEN / run / "finished")
        shutil.rmtree(FROZEN / run / "finished" / "last")
        keep_run(Path(f"{run}-living"), FROZEN / run / "living")
        report = json.loads((FROZEN / run / "finished" / "report.json").read_text())
        print(run, report["test_accuracy"], report["dead_layers"], report["sparsity"])
        tickets[run] = {}
        for kind in ("ticket", "trained"):
            folder = FROZEN / run / "finished" / kind
            if folder.is_dir():
                ticket = Ticket.load(folder)
                tickets[run][kind] = {
                    "mask_sha256": ticket.mask.sha256,
                    "mask": measured.hashes(ticket.mask),
                    "tensors": measured.hashes(ticket.tensors),
                    "provenance": ticket.provenance,
                }
    write("tickets", tickets)


def make_exports(old: Path) -> None:
    """Format 1 by the old checkout in a process of its own, format 2 by this one."""
    code = (
        "import sys; from spikeformer_lt import Ticket;"
        "from spikeformer_lt.export import export_ticket;"
        "export_ticket(Ticket.load(sys.argv[1]), sys.argv[2], precision=sys.argv[3])"
    )
    kinds = {"multisp": "ticket", "imp": "trained"}
    for run, precision in (("multisp", "fp32"), ("imp", "fp32"), ("imp", "bf16")):
        source = FROZEN / run / "finished" / kinds[run]
        target = FROZEN / "exports"
        argv = [str(source), str(target / f"{run}-{precision}-format1"), precision]
        env = {**os.environ, "PYTHONPATH": str(old)}
        subprocess.run([sys.executable, "-c", code, *argv], env=env, cwd=old, check=True)
        export_ticket(
            Ticket.load(source), target / f"{run}-{precision}-format2", precision=precision
        )
    folders = sorted((FROZEN / "exports").iterdir())
    write("exports", {folder.name: measured.measure_export(folder) for folder in folders})


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def record_rates(model: nn.Module) -> dict[str, float]:
    """Return a dict that the next forward fills: firing rate of each layer."""
    rates: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, LIFNode):
            module.register_forward_hook(
                lambda m, args, out, name=name: rates.update({name: out.mean().item()})
            )
    return rates


def make_models() -> None:
    content = {}
    for name, case in measured.MODELS.items():
        known: dict[str, Any] = {
            "shapes": shapes_of(create_model(name, **case["model"])),
            "statistics": {},
        }
        model = measured.seeded_model(name, case, known)
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(measured.model_input(model))  # one batch sets the running statistics
        known["statistics"] = {
            key: value.tolist()
            for key, value in model.state_dict().items()
            if key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        }
        model = measured.seeded_model(name, case, known)
        rates = record_rates(model)
        with torch.no_grad():
            model.eval()(measured.model_input(model))
        print(name, {key: round(rate, 3) for key, rate in rates.items()})
        assert all(0.01 < rate < 0.99 for rate in rates.values())
        known["firing_rates"] = rates
        known["measured"] = measured.measure_model(measured.seeded_model(name, case, known))
        content[name] = known
    write("models", content)
    shapes = shapes_of(create_model("spikformer_toy", **measured.DIGITS))
    write("losses", {"shapes": shapes, "losses": measured.measure_losses(shapes)})


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(page: Path) -> list[tuple[str, str]]:
    text = page.read_text("utf-8").replace("THIS_FOLDER", page.parent.relative_to(ROOT).as_posix())
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[str]:
    """Logical lines without comments and assignments."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and not re.match(r"\w+=", words[0]):
            found.append(shlex.join(words))
    return found


def make_commands() -> None:
    commands, files = [], {}
    for page in pages():
        name = page.relative_to(ROOT).as_posix()
        for language, text in code_blocks(page):
            saved_as = re.match(r"# (\w+\.py)\n", text)
            if language == "python" and saved_as:
                files[saved_as[1]] = text
            lines = command_lines(text) if language in ("sh", "bash") else []
            if language == "bash":
                lines = [line for line in lines if "recipes/" in line]
            commands += [{"page": name, "command": line} for line in lines]
    for recipe in sorted((ROOT / "recipes").glob("*.py")):
        told = ast.get_docstring(ast.parse(recipe.read_text("utf-8"))) or ""
        lines = re.findall(r"^(?:accelerate launch|python|torchrun) .+$", told, re.MULTILINE)
        name = recipe.relative_to(ROOT).as_posix()
        commands += [{"page": name, "command": c} for c in command_lines("\n".join(lines))]
    write("commands", {"commands": commands, "files": files})


def make_options() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    found = {r.stem: measured.with_config_of(r, measured.options_of) for r in recipes}
    searches = {s: measured.search_defaults(s) for s in spikeformer_lt.list_searches()}
    events = measured.events_options()
    write("options", {"recipes": found, "searches": searches, "events": events})


def make_old_imports() -> None:
    """Each name that a code block imports by a path below the package, and paths in sentences."""
    found = set()
    for page in pages():
        for language, text in code_blocks(page):
            if language != "python":
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "spikeformer_lt"
                ):
                    found |= {(node.module, alias.name) for alias in node.names}
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                    found |= {(n, "") for n in names if n.startswith("spikeformer_lt")}
        for path in re.findall(r"\b(spikeformer_lt(?:\.\w+)+)", page.read_text("utf-8")):
            parent, _, name = path.rpartition(".")
            if importlib.util.find_spec(parent) and name[:1].isupper():
                found.add((parent, name))
    write("old_imports", [{"module": m, "name": n} for m, n in sorted(found)])


def public_names(tree: ast.Module) -> list[str]:
    """Names of ``__all__`` where there is one, else what a module defines without underscore."""
    listed: list[str] = []
    defined = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.append(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else targets
        for target in targets:
            if not isinstance(target, ast.Name):
                continue
            if target.id == "__all__":
                values = ast.walk(node.value) if node.value else []
                listed += [v.value for v in values if isinstance(v, ast.Constant)]
            else:
                defined.append(target.id)
    return sorted(set(listed or [name for name in defined if not name.startswith("_")]))


def make_public_names() -> None:
    modules = {}
    for folder in ("spikeformer_lt", "models", "datasets"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "spikeformer_lt" else ("spikeformer_lt", *parts)
            name = ".".join(part for part in parts if part != "__init__")
            modules[name] = public_names(ast.parse(path.read_text("utf-8")))
    modules["spikeformer_lt"] = sorted(spikeformer_lt.__all__)
    kinds = ("models", "datasets", "searches")
    listed = {kind: getattr(spikeformer_lt, f"list_{kind}")() for kind in kinds}
    write("public_names", {**listed, "modules": modules})


def main(old: Path) -> None:
    """Write every file anew; README.md stays."""
    for name in ("multisp", "imp", "exports"):
        shutil.rmtree(FROZEN / name, ignore_errors=True)
    os.environ["SPIKEFORMER_KERNELS"] = "torch"
    torch.set_num_threads(1)
    for name in ("options", "commands", "old_imports"):  # the test file reads these on import
        if not (FROZEN / f"{name}.json").exists():
            write(name, {"recipes": {}, "searches": {}} if name == "options" else [])
    assert _spec is not None and _spec.loader is not None
    _spec.loader.exec_module(measured)
    write("about", {"commit": "a177a96", "machine_kind": measured.machine_kind()})
    make_options()
    make_commands()
    make_old_imports()
    make_public_names()
    make_models()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_runs()
    os.chdir(ROOT)
    make_exports(old)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
