"""The report of a run: ``report.json`` when it ends, and ``report.html`` from its files."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import flat_values, to_dict
from spikeformer_lt.disk import is_numbers, read_mapping, read_record, safe_name
from spikeformer_lt.errors import ConfigError, DataError, name_of, shown
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.layers.subnet import effective_weight
from spikeformer_lt.reports import plots
from spikeformer_lt.reports.energy import Energy, energy_tables, layer_table, write_energy
from spikeformer_lt.reports.finished import FinishedRun
from spikeformer_lt.reports.ledger import (
    build_ledger,
    count_operations,
    ledger_batches,
    stem_layers,
)
from spikeformer_lt.reports.page import write_page
from spikeformer_lt.reports.probe import Probe, early_exit, keep_frequency, recording
from spikeformer_lt.reports.statistics import Interval, accuracy_interval, wilson
from spikeformer_lt.runtime import command_line, describe_environment
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.evaluate import PREDICTIONS, Metrics, evaluate, read_predictions
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import Step
from spikeformer_lt.training.ranks import digest
from spikeformer_lt.training.run import read_report

log = logging.getLogger(__name__)
SHOWN_IMAGES = 8
ABOUT_TICKET = (
    "search", "trained", "control", "deviations", "prunable_sparsity", "total_sparsity",
    "search_seconds",
)  # fmt: skip
FACTS = {
    "test accuracy (%)": ("test_accuracy", 1.0, "{:.2f}"),
    "test inputs": ("test_count", 1.0, "{:.0f}"),
    "validation accuracy (%)": ("val_accuracy", 1.0, "{:.2f}"),
    "epochs trained": ("epochs_trained", 1.0, "{:.1f}"),
    "patches removed (%)": ("sparsity.patch", 100.0, "{:.1f}"),
    "(token, step) halted (%)": ("sparsity.halting", 100.0, "{:.1f}"),
    "time steps": ("steps", 1.0, "{:.2f}"),
    "ConvPEP weights removed (%)": ("sparsity.conv_pep_weight", 100.0, "{:.1f}"),
    "prunable weights removed (%)": ("ticket.prunable_sparsity", 100.0, "{:.1f}"),
    "all weights removed (%)": ("sparsity.total_weight", 100.0, "{:.1f}"),
    "bits per ConvPEP weight": ("conv_pep_bits_per_weight", 1.0, "{:.2f}"),
    "parameters": ("params", 1.0, "{:,.0f}"),
    "MACs per input, all weights": ("macs", 1.0, "{:,.0f}"),
    "MACs per input, the papers' count": ("macs_dense", 1.0, "{:,.0f}"),
    "MACs per input, of real values": ("macs_nonspiking", 1.0, "{:,.0f}"),
    "SOPs per input": ("sops", 1.0, "{:,.0f}"),
}
"""Row of the ledger's table -> key of report.json, factor and format."""
READ = {"{0,1}": "1 bit", "{-1,0,1}": "signs", "integers": "integers", "real": "32 bits"}
"""Kind of values that enter a layer -> what a card says of it."""
SETTINGS = {"confidence", "decay_input", "keep", "rescale", "rescale_to", "salt", "scale", "space",
            "sparsity", "tau", "ties", "v_reset", "v_threshold"}  # fmt: skip
"""Attributes of modules that change what a network puts out, and are no tensors."""


def number_at(report: Mapping[str, Any] | None, path: str) -> float | None:
    """Number of a report at a dotted path; None if it was not measured."""
    value: Any = report
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is not None and type(value) not in (int, float):
        raise DataError(f"a report says {path}={shown(value)}, which is no number; restore it")
    return None if value is None else float(value)


def made_by(runs: Mapping[Path, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Head of a page: by what command, code and machine runs were made, when, and how long it took.

    `runs` are folders with their reports; what neither ``env.json`` nor a report says is left out.
    """
    kinds = {"versions": "names", "gpus": "list", "threads": "whole", "git_commit": "text"}
    found: dict[str, list[str]] = {}

    def say(name: str, *words: Any) -> None:
        if words and all(words):
            found.setdefault(name, []).append(", ".join(map(str, words)))

    if len(runs) > 1:
        say("command", command_line())
    for path, report in runs.items():
        place = path / "env.json"
        env = read_record(place, kinds, DataError) if place.is_file() else {}
        if len(runs) == 1:
            say("command", env.get("command"))
        clean = "with changes" if env.get("git_clean") is False else "clean"
        say("commit", (env.get("git_commit") or "")[:12], clean)
        say("hardware", env.get("cpu"), *(env.get("gpus") or []), f"{env.get('threads')} thread(s)")
        versions = env.get("versions") or report.get("versions") or {}
        say("versions", *(f"{name} {number}" for name, number in versions.items() if number))
        say("date", str(env.get("date") or "")[:10])
        say("seeds", f"{report.get('seed', '')}")
    seconds = sum(number_at(report, "seconds") or 0.0 for report in runs.values())
    if seconds:
        say("training", f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h")
    return [(name, "; ".join(dict.fromkeys(words))) for name, words in found.items()]


def samples_told(data: object, count: int | None, seeds: Collection[object]) -> str:
    """What a picture's numbers are of: the set, its training samples if known, and seeds."""
    samples = "" if count is None else f", {count:,} training samples"
    known = [seed for seed in seeds if seed is not None]
    number = f"seed {known[0]}" if len(known) == 1 else f"{len(known) or 'unknown'} seeds"
    return f"{data}{samples}, {number}"


def fact(report: Mapping[str, Any] | None, path: str, scale: float, form: str) -> str:
    """One number of a report as text, or a dash if it was not measured."""
    value = number_at(report, path)
    return "-" if value is None else form.format(scale * value)


def interval_of(report: Mapping[str, Any] | None) -> str:
    """95 % interval of a report's test accuracy, or a dash if it was not measured."""
    accuracy, count = (number_at(report, name) for name in ("test_accuracy", "test_count"))
    return "-" if accuracy is None or not count else accuracy_interval([accuracy], int(count)).ends


def removed_words(report: Mapping[str, Any]) -> str:
    """The sparsities that a report or a ledger knows, in words."""
    sets = {"total_weight": "all weights", "conv_pep_weight": "ConvPEP weights", "patch": "patches",
            "halting": "(token, step)"}  # fmt: skip
    shares = [(fact(report, f"sparsity.{key}", 100, "{:.1f}"), what) for key, what in sets.items()]
    return ", ".join(f"{share} % of {what}" for share, what in shares if share != "-")


def card(folder: Path, packed: int | None = None) -> list[tuple[str, str]]:
    """What a finished run reached and cost, as pairs of a name and words.

    `packed` is the size of its network as an export, in bytes.
    """
    report = read_report(folder / "report.json")
    accuracy = [fact(report, *FACTS[f"test {name}"]) for name in ("accuracy (%)", "inputs")]
    cost = f"{fact(report, 'sops', 1, '{:,.0f}')} per input"
    dense = dense_beside(folder, report)
    if dense is not None and (of_dense := number_at(read_report(dense), "sops")):
        share = fact(report, "sops", 100 / of_dense, "{:.1f}")
        cost += f", {share} % of the {of_dense:,.0f} of the dense run {dense.parent}"
    numel = int(number_at(report, "params") or 0)
    rows = [
        ("test accuracy", "{} % of {}, 95 % interval ".format(*accuracy) + interval_of(report)),
        ("removed", removed_words(report)),
        ("activations", activation_words(report)),
        ("parameters", f"{numel:,} ({4 * numel:,} bytes in float32)"),
        ("packed", "" if packed is None else f"{packed:,} bytes as an export"),
        ("synaptic operations", cost),
        ("no energy headline", str(report["energy_note"]) if report.get("dead_layers") else ""),
    ]
    return [row for row in rows if row[1]]


def activation_words(report: Mapping[str, Any]) -> str:
    """How often neurons fire and what layers read, of the layers that a report knows, in words."""
    rates, layers = report.get("firing_rate"), report.get("layers")
    known = [rate for rate in rates.values() if rate is not None] if isinstance(rates, dict) else []
    rate = f"{100 * sum(known) / len(known):.1f} %" if known else ""
    parts = [f"{rate} of a layer's neurons fire a step (mean of layers)"] if known else []
    if isinstance(layers, dict) and layers:
        inputs = [str(layer.get("input")) for layer in layers.values()]
        shares = ((READ[kind], inputs.count(kind)) for kind in READ if kind in inputs)
        read = ", ".join(f"{what} ({number})" for what, number in shares)
        parts += [f"inputs of {len(inputs)} layers: {read}"] if read else []
    return "; ".join(parts)


def dense_beside(folder: Path, report: Mapping[str, Any]) -> Path | None:
    """The report of a run beside this one, of its network and split, that removed nothing."""
    model = read_mapping(folder / "config.json").get("model")
    for path in sorted(folder.resolve().parent.glob("*/report.json")):
        with contextlib.suppress(DataError, ConfigError):
            other, known = read_report(path), read_mapping(path.with_name("config.json"))
            same = (other["split_sha256"], known["model"]) == (report["split_sha256"], model)
            # Networks of a user's own have the name of their class, whatever it was built with.
            own = ":" in str((model or {}).get("name", ""))
            same = same and not (own and set(other["layers"]) != set(report["layers"]))
            if same and path.parent != folder.resolve() and is_dense(path.parent, other):
                return path
    return None


def is_dense(folder: Path, report: Mapping[str, Any]) -> bool:
    """Whether a run removed and changed nothing: neither weights, patches nor its activation."""
    config = read_mapping(folder / "config.json") if (folder / "config.json").is_file() else {}
    own = (one.get("activation") for one in config.values() if isinstance(one, dict))
    kinds = {one.get("kind", "lif") for one in own if isinstance(one, dict)}
    changed = kinds - {"lif"} or report.get("binary_layers")
    return not changed and not any((report.get("sparsity") or {}).values())


def by_search(runs: Sequence[FinishedRun]) -> tuple[plots.Curves, list[float]]:
    """Curves of the runs with a report: search -> (all weights removed, accuracies), by sparsity.

    A control is a series of its own, and so is each network and data set. Accuracies of one point
    are of runs that differ in their seed alone. Those of the dense runs come beside them.
    """
    found: dict[tuple[str, str], dict[tuple[float, str], list[float]]] = {}
    dense: list[float] = []
    for run in runs:
        removed = number_at(run.report, "sparsity.total_weight")
        accuracy = number_at(run.report, "test_accuracy")
        if run.report is None or removed is None or accuracy is None:
            continue
        if is_dense(run.path, run.report):
            dense.append(accuracy)
            continue
        known = run.ticket.provenance
        config = {name: known.get(name) or {} for name in ("config", "options")}
        others = {k: v for k, v in flat_values(config) if k.rpartition(".")[2] != "seed"}
        network = repr((known.get("model"), known.get("split_sha256")))
        points = found.setdefault((_series(known, run.name), network), {})
        points.setdefault((round(removed, 4), repr(sorted(others.items()))), []).append(accuracy)
    names = [name for name, _ in found]
    curves = {}
    for at, ((name, _), points) in enumerate(found.items()):
        before = names[:at].count(name)
        told = f"{name} ({before + 1})" if before else name
        curves[told] = sorted((x, values) for (x, _), values in points.items())
    return curves, dense


def _series(known: Mapping[str, Any], name: str) -> str:
    """What a ticket's search is called, with its control."""
    search, config = str(known.get("search", name)), known.get("config") or {}
    values = [known.get("control"), (config.get("weights") or {}).get("method")]
    drawn = next((str(v) for v in values if v in ("random", "shuffle", "fresh")), "")
    return f"{search}-{drawn}" if drawn and drawn not in search else search


def describe(
    model: nn.Module,
    data: Splits,
    split: str,
    accelerator: Any,
    batch_size: int = 256,
    saved: Metrics | None = None,
    workers: int = 0,
) -> tuple[Metrics, dict[str, Any]]:
    """Evaluate one split and build the ledger on a sample of it, classes in proportion."""
    dataset = getattr(data, split)
    metrics = saved or evaluate(
        model, dataset, data, accelerator, batch_size=batch_size, workers=workers
    )
    return metrics, build_ledger(model, ledger_batches(dataset, accelerator.device))


def save_predictions(
    path: str | Path, metrics: Metrics, model: nn.Module, data: Splits, split: str, run_id: str
) -> None:
    """Save the predictions of an evaluation with the data, split, run and weights they are of.

    Raises:
        CheckpointError: another file than predictions has this name, or the disk refuses.
    """
    classes = getattr(getattr(data, split), "classes", None)
    facts = _read_by(model, data, split) | {
        "run_id": run_id,
        "classes": list(classes) if classes else None,
        "loss": metrics.loss,
        "top5": metrics.top5,
        "accuracy_at_t": list(metrics.accuracy_at_t),
    }
    metrics.predictions.save(path, facts)


def saved_metrics(path: Path, model: nn.Module, data: Splits, split: str) -> Metrics | None:
    """The evaluation that `save_predictions` saved; None if it is of another network or data.

    Raises:
        CheckpointError: the file holds no predictions, or is damaged.
    """
    if not path.is_file():
        return None
    found, facts = read_predictions(path)
    own = _read_by(model, data, split)
    facts.setdefault("settings", own["settings"])  # files of before 0.2 do not say them
    if any(facts.get(name) != fact for name, fact in own.items()):
        return None
    count, classes = len(found.label), data.num_classes
    cells = torch.bincount(found.label * classes + found.predicted, minlength=classes**2)
    return Metrics(
        accuracy=found.accuracy, loss=facts["loss"], count=count,
        correct=int((found.predicted == found.label).sum()), top5=facts["top5"],
        accuracy_at_t=tuple(facts["accuracy_at_t"]), confusion=cells.view(classes, classes),
        predictions=found,
    )  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """Result of a network on one split; its ``accuracy`` is in percent."""

    data: str
    split: str
    metrics: Metrics
    interval: Interval
    """95 % interval of the accuracy (Wilson)."""
    ledger: dict[str, Any] = field(repr=False)
    source: Path | None
    """File of the first reading, whose predictions these are; None if they were made now."""

    @property
    def accuracy(self) -> float:
        """In percent."""
        return self.metrics.accuracy

    def __repr__(self) -> str:
        return f"{self.data} {self.split}: {self.accuracy:.2f} % of {self.metrics.count}, 95 % " + (
            f"interval {self.interval.ends}" + ", saved at the first reading" * bool(self.source)
        )


def evaluation(
    run: FinishedRun, split: str, accelerator: Any, batch_size: int, places: Sequence[Path] = ()
) -> Evaluation:
    """Evaluate an opened run, or take its predictions from `places` if they are the same."""
    model, splits = run.model.to(accelerator.device), run.splits
    known = ((place, saved_metrics(place, model, splits, split)) for place in places)
    source, saved = next((pair for pair in known if pair[1]), (None, None))
    metrics, ledger = describe(model, splits, split, accelerator, batch_size, saved)
    interval = wilson(metrics.correct, metrics.count)
    return Evaluation(splits.name, split, metrics, interval, ledger, source)


def _read_by(model: Any, data: Splits, split: str) -> dict[str, Any]:
    """What an evaluation is of: it need not be made again while this is the same."""
    options = getattr(getattr(data, split), "options", None)
    known = [(name, key, float(value) if type(value) is int else value)
             for name, module in model.named_modules()
             for key, value in vars(module).items() if key in SETTINGS]  # fmt: skip
    return {
        "dataset": data.name,
        "split": split,
        "split_sha256": data.split_sha256,
        "weights_sha256": digest(model.state_dict()),
        "T": getattr(model, "T", None),
        "settings": hashlib.sha256(repr(sorted(known, key=repr)).encode()).hexdigest(),
        "time_shuffled": getattr(options, "shuffle_time", False) or None,
    }


def epochs_trained(provenance: Mapping[str, Any], steps_per_epoch: int) -> float | None:
    """Epochs of training that the tested weights went through; None without phases.

    Of a network trained from a ticket: those of its start weights and of the last phase. A search
    that ends trained counts all its phases; the probe of Early-Time is undone before the search.
    """
    before = sum(p["epochs"] for p in provenance.get("before", []))
    phases = [p for p in provenance.get("phases", []) if p["phase"] != "early_time"]
    if not phases:
        return None
    if provenance.get("trained") is False:
        start = Step.parse(provenance.get("start_step", "0it")).iterations(steps_per_epoch)
        return float(before + phases[-1]["epochs"] + start / steps_per_epoch)
    return float(before + sum(phase["epochs"] for phase in phases))


def write_report(experiment: Experiment, model: nn.Module, ticket: Ticket | None) -> dict[str, Any]:
    """Evaluate the finished network on the test set, once; write predictions and ``report.json``.

    If the ticket holds start weights, the network trained from it is saved as ``trained``.
    ``test_accuracy_interval`` is Wilson's, of 95 %.
    """
    trainer, run, known = experiment.trainer, experiment.run, ticket.provenance if ticket else {}
    place, augment = run.path / PREDICTIONS, to_dict(trainer.augment)
    saved = saved_metrics(place, model, experiment.data, "test")  # by a run that was killed here
    train, parts = experiment.cfg.train, (model, experiment.data, "test", trainer.accelerator)
    metrics, ledger = describe(*parts, train.eval_batch_size, saved, train.workers)
    interval = wilson(metrics.correct, metrics.count)
    batch = train.batch_size * train.accumulate * trainer.world
    phases, about = known.get("phases", []), {name: known.get(name) for name in ABOUT_TICKET}
    more = {"ledger": known.get("ledger"), "before": known.get("before")}
    more |= {"T_search": known.get("early_time", {}).get("T_early")}
    about |= {name: value for name, value in more.items() if value is not None}
    report: dict[str, Any] = {
        "run_id": run.run_id,
        "seed": experiment.cfg.train.seed,
        "dataset": experiment.data.name,
        "split_sha256": experiment.data.split_sha256,
        "train_count": len(experiment.data.train),
        "test_accuracy": metrics.accuracy,
        "test_accuracy_interval": [interval.low, interval.high],
        "test_count": metrics.count,
        "test_loss": metrics.loss,
        "top5": metrics.top5,
        "accuracy_at_t": list(metrics.accuracy_at_t),
        "confusion": metrics.confusion.tolist(),
        "val_accuracy": phases[-1]["val_accuracy"] if phases else None,
        "best_on_test": phases[-1].get("best_on_test") if phases else None,
        "preprocess": to_dict(how) if (how := experiment.data.preprocess) else None,
        "seconds": sum(phase["seconds"] for phase in (*known.get("before", []), *phases)),
        "epochs_trained": epochs_trained(known, max(1, len(experiment.data.train) // batch)),
        "choices": known.get("config", {}),
        "augmentation": {
            "samples": augment,
            "batches": to_dict(trainer.mixing),
            "can_change_label": ["hflip"]
            * bool(augment.get("hflip") and experiment.data.mirror_changes_label),
        },
        **ledger,
        "ticket": about if ticket else {},
        "mask_sha256": ticket.mask.sha256 if ticket else None,
        "versions": describe_environment()["versions"],
    }
    if trainer.main:
        if ticket is not None and known.get("trained") is False:
            trained = Ticket.of(model, ticket.mask, {**known, "trained": True})
            trained.save(run.path / "trained", overwrite=True)
        save_predictions(place, metrics, model, experiment.data, "test", run.run_id)
        run.write_report(report)
        told = samples_told(report["dataset"], report["train_count"], [report["seed"]])
        plots.plot_training(run.path / "summary.csv", run.path / "plots", told)
        log.info("test %.2f %% %s of %d images", metrics.accuracy, interval.ends, metrics.count)
        log.info("removed: %s", removed_words(report))
        if report["dead_layers"]:
            log.warning("no energy headline: %s", report["energy_note"])
        log.info("report: %s", run.path / "report.json")
    return report


def draw_run(run: FinishedRun, folder: Path, images: int = 256) -> tuple[list[Path], Energy]:
    """Draw what can be drawn of a run, from its files and one pass over `images` test inputs.

    Returns:
        The pictures in `folder`, each with a CSV beside it, and the energy ledger.
    """
    pairs = list(run.labelled("test", images))
    labels = torch.cat([y for _, y in pairs])
    with recording(run.model) as probe:
        counted = count_operations(run.model, [x for x, _ in pairs], run.model.T)
    energy, report, logits = Energy.of(counted), run.report or {}, torch.cat(counted.logits)
    summary, firing = run.path / "summary.csv", run.path / "firing.csv"
    drawn: list[Path | None] = []
    if summary.exists():
        told = samples_told(
            run.splits.name, len(run.splits.train), [run.ticket.provenance.get("seed")]
        )
        drawn.append(plots.plot_training(summary, folder, told))
        drawn.append(plots.plot_epoch_rates(folder / "epoch-rates.png", summary))
        if firing.exists():
            drawn.append(plots.plot_layer_epochs(folder / "layer-epoch-rates.png", firing))
    here = (logits.cumsum(1).argmax(2) == labels[:, None]).double().mean(0) * 100
    at_t = {run.name: report.get("accuracy_at_t") or here.tolist()}
    drawn.append(plots.plot_anytime(folder / "anytime.png", at_t, len(labels)))
    exits = early_exit(logits, labels)
    drawn.append(plots.plot_early_exit(folder / "early-exit.png", exits, len(labels)))
    if report.get("confusion"):
        drawn.append(plots.plot_confusion(folder / "confusion.png", report["confusion"]))
    drawn += _patches(run, folder, probe, labels.tolist(), counted.kept_tokens)
    drawn += _spikes(report, folder, probe)
    for file, name in _kernels(run).items():
        weight = effective_weight(run.model.get_submodule(name))
        drawn.append(plots.plot_kernels(folder / file, weight, name))
    if distances := run.ticket.provenance.get("mask_distances"):
        rows = enumerate(distances) if isinstance(distances, list) else [(0, None)]
        if not all(is_numbers(row) and len(row) <= i for i, row in rows):
            raise DataError(f"{name_of(run.path)}: the ticket's mask_distances are damaged")
        found, epochs = plots.banded(distances), [str(i + 1) for i in range(len(distances))]
        path = folder / "mask-distances.png"
        drawn.append(plots.plot_distances(path, found, epochs, "epoch of the search"))
    if not energy.dead:
        drawn.append(plots.plot_energy(folder / "energy-bars.png", {run.name: energy}))
    return [path for path in drawn if path is not None], energy


def _patches(
    run: FinishedRun, folder: Path, probe: Probe, labels: list[int], kept: list[Tensor]
) -> Iterator[Path]:
    if probe.grid is None:
        return
    x, path = probe.inputs[:SHOWN_IMAGES], folder / "kept-patches.png"
    names = [f"class {label}" for label in labels[: len(x)]]
    if x.ndim == 4:
        pixels = plots.show_images(x, run.splits.mean, run.splits.std)
    else:
        pixels = plots.show_frames(x.sum(1))
        own = None if probe.kept is None else probe.kept[0]
        clip = plots.plot_kept_clip(folder / "kept-clip.png", x[0], own, probe.grid)
        yield from (clip, clip.with_suffix(".gif"))
    yield plots.plot_kept_images(path, pixels, probe.kept, probe.grid, names)
    if kept:
        often = keep_frequency(kept, probe.grid)
        yield plots.plot_keep_frequency(folder / "keep-frequency.png", often, sum(map(len, kept)))


def _spikes(report: Mapping[str, Any], folder: Path, probe: Probe) -> Iterator[Path]:
    if probe.spikes:
        yield plots.plot_raster(folder / "raster.png", probe.spikes)
        here = {name: float(spikes.float().mean()) for name, spikes in probe.spikes.items()}
        known = report.get("firing_rate") or {}
        rates = {name: rate for name, rate in known.items() if rate is not None} or here
        yield plots.plot_layer_rates(folder / "layer-rates.png", rates)
    for name, recorded in probe.membrane.items():
        yield plots.plot_membrane(folder / "membrane.png", *recorded, name, probe.neurons[name])


def _kernels(run: FinishedRun) -> dict[str, str]:
    """Picture -> convolution of the stem, or of a network without one."""
    stem = stem_layers(run.model)
    return {f"kernels-{safe_name(name)}.png": name for name, module in run.model.named_modules()
            if isinstance(module, nn.Conv2d) and (not stem or module in stem)}  # fmt: skip


def write_run_page(run: FinishedRun, out: Path, images: int = 256) -> Path:
    """Draw a run's pictures into ``plots/`` below `out` and write its page, ``report.html``."""
    pictures, energy = draw_run(run, out / "plots", images)
    write_energy(out / "energy", {run.name: energy})
    report, known = run.report or {}, run.ticket.provenance
    ledger = [[name, fact(report, *how)] for name, how in FACTS.items()]
    ledger.insert(1, ["95 % interval", interval_of(report)])
    ledger += [["data set", run.splits.name], ["split", run.splits.split_sha256[:12]]]
    ledger += [["seed", known.get("seed", "-")], ["search", known.get("search", "-")]]
    return write_page(
        out / "report.html", "run.html", pictures,
        title=f"{run.name}: {report.get('run_id', run.path.name)}",
        facts=dict(ledger), made=made_by({run.path: report}),
        notices=notices_of(run.name, run, energy), dataset=run.splits.name, ledger=ledger,
        report={name: report.get(name) for name in ("accuracy_at_t", "firing_rate")},
        samples=energy.samples, stem=bool(stem_layers(run.model)),
        kernels={file: f"Signs of the kernels of {name}." for file, name in _kernels(run).items()},
        energy=energy_tables({run.name: energy}), layers=layer_table(energy),
    )  # fmt: skip


def notices_of(name: str, run: FinishedRun, energy: Energy) -> list[str]:
    """What a reader must know of a run before its numbers."""
    notices = {
        "a ticket without report.json; accuracies are not known": run.report is None,
        "a ticket with its start weights; spikes, patches and energy are those of a network "
        "that is not trained": run.untrained,
        "measured on another split than its own": not run.own_split,
        "trained on mirrored samples, some of which are of another class": bool(
            (run.report or {}).get("augmentation", {}).get("can_change_label")
        ),
        f"energy {energy.refusal()}": bool(energy.dead),
    }
    return [f"{name}: {words}." for words, holds in notices.items() if holds]
