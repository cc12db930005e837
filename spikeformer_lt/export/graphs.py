"""The compact network as a graph for other runtimes: torch.export (.pt2), ONNX, NIR."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformer_lt.errors import ExportError, shown
from spikeformer_lt.export.compact import CompactModel
from spikeformer_lt.export.verify import fixed_batch
from spikeformer_lt.layers.patch_scores import Random

__all__ = ["to_onnx", "to_pt2", "write"]

INTEGERS = ".int8.onnx"
LARGEST_BATCH = 65_536
GAP = 1e-4  # of the logits' scale in float32: rounding alone; a flipped spike shows as more


def to_pt2(model: CompactModel, path: str | Path) -> float:
    """Write a ``torch.export`` program with a dynamic batch, and run it back.

    Args:
        model: a compact network on the CPU.
        path: the file, ``.pt2``; `torch.export.load` reads it.

    Returns:
        Largest difference of the program's logits on two batch sizes.

    Raises:
        ExportError: what cannot be traced, or a program that gives other logits.
    """
    with _staged(path) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about torch
        torch.export.save(_program(model), stage)
        program = torch.export.load(stage).module()
        return _compare(model, lambda x: program(x))


def to_onnx(model: CompactModel, path: str | Path, integers: bool = False) -> float:
    """Write an ONNX graph with a dynamic batch, input "input" and output "logits"; run it back.

    Args:
        model: a compact network on the CPU, float32.
        path: the file, ``.onnx``.
        integers: binary convolutions of spikes as ConvInteger, int8 weights summed in int32.

    Returns:
        Largest difference of onnxruntime's logits on two batch sizes.

    Raises:
        ExportError: onnx, onnxscript or onnxruntime is missing; what cannot be traced; a graph that
            gives other logits.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    with _staged(path) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about torch
        with _quiet():
            try:
                made: Any = torch.onnx.export(
                    _program(model), dynamo=True, input_names=["input"], output_names=["logits"],
                    verbose=False,
                )  # fmt: skip
            except ExportError:
                raise
            except Exception as fault:
                raise ExportError(f"no ONNX graph: {shown(str(fault), 300)}") from fault
        proto = made.model_proto
        if integers:
            from spikeformer_lt.export.onnx_integers import use_integers

            use_integers(proto, model)
        stage.write_bytes(proto.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(stage, options, providers=["CPUExecutionProvider"])
        return _compare(
            model, lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
        )


def write(model: CompactModel, path: str | Path) -> str:
    """Write the graph that the file's ending asks for, and say what it is.

    Endings are .pt2, .onnx, .int8.onnx (binary convolutions in integers) and .nir.
    """
    kind = Path(path).suffix
    if Path(path).name.endswith(INTEGERS):
        gap = to_onnx(model, path, integers=True)
        return f"ONNX graph in integers, dynamic batch, logits within {gap:.3g}"
    if kind == ".pt2":
        return f"torch.export program, logits within {to_pt2(model, path):.3g}"
    if kind == ".onnx":
        return f"ONNX graph, dynamic batch, logits within {to_onnx(model, path):.3g}"
    if kind == ".nir":
        from spikeformer_lt.export.nir_graph import to_nir

        with _staged(path) as stage:
            left = to_nir(model, stage)
        return "NIR; left out: " + "; ".join(f"{name}: {why}" for name, why in left.items())
    raise ExportError(f"{shown(str(path))}: a graph ends in .pt2, .onnx, {INTEGERS} or .nir")


def _program(model: CompactModel) -> Any:
    net = copy.deepcopy(model.net)
    patch = getattr(net, "patch", None)
    if patch is not None and isinstance(patch.score, Random):
        raise ExportError(
            "the random patch score hashes the bits of an image, for which graphs have no "
            "operation; it is a control, not for deployment"
        )
    # 0 and 1 would be taken for constants.
    x = fixed_batch(net, 3).to(next(net.buffers()).dtype)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    except Exception as fault:
        raise ExportError(f"{type(net).__name__} is no graph: {shown(str(fault), 300)}") from fault


def _compare(model: CompactModel, run: Any) -> float:
    gap = 0.0
    x = fixed_batch(model.net, 4).to(next(model.net.buffers()).dtype)
    with torch.no_grad():
        for part in (x, x[:1].contiguous()):
            found: Tensor = run(part)
            wanted = model(part)
            if found.shape != wanted.shape:
                raise ExportError(f"the graph gives {list(found.shape)}, not {list(wanted.shape)}")
            gap = max(gap, float((found - wanted).abs().max()))
            scale = max(1.0, float(wanted.abs().max()))
    if not gap <= (1e-9 if x.dtype == torch.float64 else GAP) * scale:
        same = bool((found.mean(1).argmax(1) == wanted.mean(1).argmax(1)).all())
        if x.dtype == torch.float64 or not same:
            raise ExportError(f"the graph's logits differ by {gap:g}; nothing is written")
        logging.getLogger(__name__).warning(
            "the graph's logits differ by %g: rounding flipped spikes; the classes are the same",
            gap,
        )
    return gap


def _need(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} is not installed; install it with: "
            "pip install 'spikeformer_lt[onnx,nir]'"
        )


@contextmanager
def _staged(path: str | Path) -> Iterator[Path]:
    """A name beside `path` whose file takes its place at the end, or vanishes."""
    path = Path(path)
    stage = path.with_name(f".{path.stem[:80]}.tmp-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield stage
        os.replace(stage, path)
    except OSError as fault:
        raise ExportError(f"cannot write {shown(str(path), 300)}: {fault}") from fault
    finally:
        stage.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
