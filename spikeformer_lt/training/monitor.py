"""What is watched during training: NaN and infinity, firing rates, what is removed, progress.

A NaN never reaches the threshold, so a spiking network that is fed one stays silent and its loss
finite, while its gradients, the statistics of its BatchNorms and its membranes are lost already.
The guard therefore does not ask the loss.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import NonFiniteError, listed, shown
from spikeformer_lt.layers.inputs import kept_modes
from spikeformer_lt.layers.neuron import reset_state
from spikeformer_lt.layers.patches import removed_share
from spikeformer_lt.layers.subnet import SubnetConv2d
from spikeformer_lt.mask import Mask
from spikeformer_lt.rng import isolated_rng
from spikeformer_lt.ticket import fit_buffers
from spikeformer_lt.training.ranks import agreed, together

log = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
LISTED = 8  # layers that a warning names before it counts the rest
SAMPLES = 5  # indices of bad samples that a message shows
BAR_S = 1.0  # between two readings of the values beside a bar
ROUNDING = 1e-6  # of a float32 sum over a saturated layer


def count_nonfinite(tensor: Tensor) -> int:
    """Count the NaNs and infinities; 0 for integers and booleans."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return tensor.numel() - int(torch.isfinite(tensor.detach()).sum())


class NonFiniteGuard:
    """Stops (policy "stop"), or skips a step ("skip"), when something must be finite and is not.

    A step calls `keep_buffers`, for each batch `check_batch`, then `check_step`; where that returns
    True, `restore_buffers` and no optimizer step. `limit` skipped steps in a row are one too many.
    `agree` says whether any rank has a fault, whose own it gets.
    """

    def __init__(
        self, policy: str = "stop", limit: int = 10, agree: Callable[[bool], bool] | None = None
    ) -> None:
        check(policy in POLICIES, "nonfinite", policy, f"one of {', '.join(POLICIES)}")
        check(limit >= 1, "skip_limit", limit, "an integer >= 1")
        self.policy, self.limit = policy, limit
        self.skipped, self.in_a_row = 0, 0  # steps skipped so far, and since the last good one
        self._batch_fault, self._together = "", together()
        self._agree = agree or (lambda fault: bool(agreed(fault)[0]))
        self._batches: list[tuple[Tensor, Any]] = []
        self._sound: Tensor | None = None  # of the steps that were not read yet

    def check_batch(self, images: Tensor, indices: Iterable[int] | Tensor) -> bool:
        """Look at a batch [B, ...] before the forward; `indices` are its places in the data set.

        Returns True if the step will be skipped, as `check_step` will say, too. Policy "stop"
        raises a NonFiniteError with the samples and the count of bad values. On an accelerator
        nothing waits: `check_step` looks at all batches of the step.
        """
        if images.device.type != "cpu":
            self._batches.append((images.detach(), indices))
            return False
        if not self._look_at(images, indices):
            return False
        # With several ranks all must stop at the same place: check_step asks them.
        if self.policy == "stop" and not self._together:
            fault, self._batch_fault = self._batch_fault, ""
            raise _error(fault)
        return True

    def _look_at(self, images: Tensor, indices: Iterable[int] | Tensor) -> bool:
        if (count := count_nonfinite(images)) == 0:
            return False
        bad = (~torch.isfinite(images.detach().flatten(1))).any(1).tolist()
        rows = [int(index) for index, odd in zip(indices, bad, strict=True) if odd]
        self._batch_fault = (
            f"{count} of {images.numel()} input values in {len(rows)} of {len(images)} images "
            f"(samples of the data set: {listed(map(str, rows), SAMPLES)})"
        )
        return True

    def check_step(
        self, grad_norm: Tensor | float, logits: Tensor, model: nn.Module, read: bool = True
    ) -> bool:
        """Look at gradients, logits [B, ...], buffers and membranes; one synchronisation, or none.

        `grad_norm` is the total norm before clipping, which would spread what is not finite. True
        says that this step must be skipped. A NonFiniteError names the bad tensors: policy "stop",
        or `limit` skipped steps in a row. Without `read` a fault is kept for the next call with it.
        """
        norm = torch.as_tensor(grad_norm, device=logits.device).detach()
        sound = _all_finite(norm, logits, model)
        for images, _ in self._batches:
            if images.is_floating_point():
                sound = sound & torch.isfinite(images).all()
        self._sound = sound if self._sound is None else self._sound & sound
        batches, self._batches = self._batches, []
        if not read:
            return False
        sound, self._sound = self._sound, None
        fault, self._batch_fault = self._batch_fault, ""
        if not fault and not bool(sound):
            for images, indices in batches:
                self._look_at(images, indices)
            fault, self._batch_fault = self._batch_fault, ""
            fault = fault or _step_fault(norm, model, logits)
        # Ranks that part ways would wait for each other forever.
        if self._agree(bool(fault)) and not fault:
            fault = "a tensor of another rank, whose log names it"
        if not fault:
            self.in_a_row = 0
            return False
        if self.policy == "stop":
            raise _error(fault)
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise NonFiniteError(
                f"{self.in_a_row} steps in a row were skipped, the limit; the last one for "
                f"NaN or infinity in {fault}; the last good checkpoint is untouched; lower the "
                "learning rate or look at the data"
            )
        log.warning("skipped a step (%d in a row): NaN or infinity in %s", self.in_a_row, fault)
        return True

    def check_buffers(self, model: nn.Module) -> None:
        """Refuse a model with parameters or buffers that are not finite, by a NonFiniteError."""
        fault = _faults({"parameter": model.named_parameters(), "buffer": model.named_buffers()})
        if fault:
            raise _error(fault)

    def keep_buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """Copy the buffers, which a forward in train mode changes, under policy "skip"."""
        buffers = model.named_buffers() if self.policy == "skip" else ()
        return {name: value.detach().clone() for name, value in buffers}

    @torch.no_grad()
    def restore_buffers(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Put back what `keep_buffers` copied; buffers of the same shape stay the same objects."""
        fit_buffers(model, kept)
        own = dict(model.named_buffers())
        for name, value in kept.items():
            own[name].copy_(value)

    def state(self) -> dict[str, int]:
        """Counters for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Take over the counters of `state`."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])


def _all_finite(norm: Tensor, logits: Tensor, model: nn.Module) -> Tensor:
    """Whether a step is sound, as one number on its device, so that it is waited for once."""
    watched = [value.detach() for _, value in (*_float_buffers(model), *_membranes(model))]
    rest = nn.utils.get_total_norm(watched)
    probe = torch.isfinite(logits.detach()).all() & torch.isfinite(norm)
    return probe & torch.isfinite(rest.to(logits.device))


def _step_fault(norm: Tensor, model: nn.Module, logits: Tensor) -> str:
    parameters = dict(model.named_parameters())
    grads = [(name, p.grad) for name, p in parameters.items() if p.grad is not None]
    fault = _faults({
        "parameter": parameters.items(), "logits": [("[B, T, K]", logits)], "gradient of": grads,
        "buffer": _float_buffers(model), "membrane of": _membranes(model),
    })  # fmt: skip
    if not fault and not bool(torch.isfinite(norm)):
        fault = "the norm of the gradients, which overflowed though each of them is finite"
    return fault


def _faults(kinds: Mapping[str, Iterable[tuple[str, Tensor]]]) -> str:
    """The first tensor of each kind that is not finite, in words."""
    found = []
    for kind, named in kinds.items():
        for name, value in named:
            if count := count_nonfinite(value):
                found.append(f"{kind} {shown(name)} ({count} of {value.numel()} values)")
                break
    return ", ".join(found)


def _error(fault: str) -> NonFiniteError:
    return NonFiniteError(
        f"NaN or infinity in {fault}; the last good checkpoint is untouched; look at the data, "
        "lower the learning rate in a new run, or set nonfinite to skip"
    )


def _float_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, b) for name, b in model.named_buffers() if b.is_floating_point())


def _membranes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Voltages `v` that foreign neurons carry as attributes, which `named_buffers` does not see."""
    for name, module in model.named_modules():
        v = getattr(module, "v", None)
        if isinstance(v, Tensor) and v.is_floating_point() and "v" not in module._buffers:
            yield name, v


def spiking_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose output is spikes and that lie in no other such module, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if getattr(module, "spiking", False):
            parents = (name[:at] for at, letter in enumerate(name) if letter == ".")
            if "" not in found and not any(parent in found for parent in parents):
                found[name] = module
    return found


class FiringWatch(ExitStack):
    """Sums the spikes of each of the `spiking_layers` of a network that is in no wrapper.

    Only forwards while it is in train mode count, unless `always`, so that a validation amid an
    epoch leaves no trace. On a GPU nothing waits for the device before a rate is asked for. `close`
    takes the hooks off; rates can still be read.
    """

    def __init__(self, model: nn.Module, always: bool = False) -> None:
        super().__init__()
        self._model, self._always = model, always
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        for name, module in spiking_layers(model).items():
            hook = partial(self._count, name)
            # Who computes a layer by a fused kernel may call this with the output alone.
            hook.observes_output = True  # type: ignore[attr-defined]
            self.callback(module.register_forward_hook(hook).remove)

    @torch.no_grad()
    def _count(self, name: str, module: nn.Module, inputs: object, output: Any) -> None:
        if not (self._always or self._model.training):
            return
        output = output[0] if isinstance(output, tuple) else output  # snntorch's (spikes, voltage)
        # float32 even for bfloat16 spikes, whose sum would stall at 256.
        spikes = output.detach().sum(dtype=torch.promote_types(output.dtype, torch.float32))
        total = self._sums.get(name)
        self._sums[name] = spikes.double() if total is None else total.to(spikes.device) + spikes
        self._counts[name] = self._counts.get(name, 0) + output.numel()

    def rates(self) -> dict[str, float]:
        """Mean firing rate, in [0, 1], of each layer that has run since the last `reset`."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def mean_rate(self) -> float:
        """Spikes over all layers per neuron and step; 0.0 if no layer has run."""
        count = sum(self._counts.values())
        return sum(map(float, self._sums.values())) / count if count else 0.0

    def warn(self, epoch: int) -> tuple[list[str], list[str]]:
        """Log a warning that names dead (rate 0) and saturated (rate 1) layers, and return both."""
        rates = self.rates()
        dead = [name for name, rate in rates.items() if rate == 0.0]
        full = [name for name, rate in rates.items() if rate >= 1.0 - ROUNDING]
        parts = []
        for what, of in (("never fired", dead), ("fired at every step", full)):
            parts += [f"{len(of)} {what}: {listed(of, LISTED)}"] * bool(of)
        if parts:
            log.warning(
                "epoch %d: of %d spiking layers, %s; no information passes there: look at the "
                "input's scale, the threshold or the learning rate",
                epoch + 1, len(rates), "; ".join(parts),
            )  # fmt: skip
        return dead, full

    def reset(self) -> None:
        """Forget all counts, at the start of an epoch."""
        self._sums.clear()
        self._counts.clear()

    def state(self) -> dict[str, list[float]]:
        """Sum and count of each layer, for a checkpoint amid an epoch."""
        return {name: [float(total), self._counts[name]] for name, total in self._sums.items()}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Go on from what `state` returned."""
        self.reset()
        for name, (total, count) in state.items():
            self._sums[name] = torch.tensor(total, dtype=torch.float64)
            self._counts[name] = int(count)


def merged(states: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Spikes and counts of several `FiringWatch.state`, layer by layer together."""
    found: dict[str, list[float]] = {}
    for state in states:
        for name, (total, count) in state.items():
            known = found.setdefault(name, [0.0, 0])
            found[name] = [known[0] + total, known[1] + count]
    return found


@dataclass(eq=False)
class EpochProgress(AbstractContextManager["EpochProgress"]):
    """Shows steps, images/s, ETA of the whole run, loss, sparsity and mean firing rate.

    `steps` and `rest` are optimizer steps of this epoch and of the run after it; only one rank
    shows anything; plain lines are `every_s` seconds apart or more.
    """

    title: str
    steps: int
    rest: int
    images_per_step: int
    show: bool = True
    every_s: float = 30.0

    def __post_init__(self) -> None:
        self.done, self.bar = 0, None
        self.start = self.last_line = time.monotonic()
        if self.show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.steps, desc=self.title, unit="step", leave=False)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    @property
    def images_per_s(self) -> float:
        """Mean throughput of this epoch."""
        return self.done * self.images_per_step / max(1e-9, time.monotonic() - self.start)

    def step(self, values: Callable[[], Mapping[str, float]]) -> None:
        """Count one optimizer step; `values` are asked for when they are printed."""
        self.done += 1
        if not self.show:
            return
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(1)
        if now - self.last_line < (self.every_s if self.bar is None else BAR_S):
            return
        self.last_line = now
        shown = {key: f"{value:.4g}" for key, value in values().items()}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            return
        left = (self.steps - self.done + self.rest) * (now - self.start) / self.done
        text = "  ".join(f"{key} {value}" for key, value in shown.items())
        log.info(
            "%s  [%d/%d]  %s  %.0f images/s  ETA %s",
            self.title, self.done, self.steps, text, self.images_per_s, clock(left),
        )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What a step of a phase will need, scaled from a probe batch; without workspaces.

    `saved_mb` are the tensors kept for the backward pass, `weights_mb` parameters, gradients and
    two optimizer moments; the seconds are of forward and backward.
    """

    saved_mb: float
    weights_mb: float
    seconds_per_step: float


def estimate_step(model: nn.Module, images: Tensor, batch_size: int) -> Estimate:
    """Measure a training step on images ``[b, ...]``, b >= 2, and scale it to a batch.

    The model, which has no gradients yet, and the random streams are left as they were.
    """
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    seen: dict[int, int] = {}

    def wait() -> None:
        if images.is_cuda:
            torch.cuda.synchronize()

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with isolated_rng(0), kept_modes(model):
            model.train()
            model(images).float().mean().backward()  # warm-up: kernels compile here
            wait()
            start = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                out = model(images).float().mean()
            out.backward()
            wait()
            seconds = time.perf_counter() - start
    finally:
        model.zero_grad(set_to_none=True)
        fit_buffers(model, buffers)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        reset_state(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = sum(size for pointer, size in seen.items() if pointer not in weights)
    scale, numel = batch_size / len(images), sum(p.numel() for p in model.parameters())
    return Estimate(saved * scale / 1e6, 4 * 4 * numel / 1e6, seconds * scale)


def removed(model: nn.Module, masks: Sequence[Mask] = ()) -> dict[str, float]:
    """What a model in training has removed now: sparsity of weights and of patches.

    Its convolutions count, or else the weights that `masks` remove, and have.
    """
    total, kept = sum(m.total for m in masks), sum(m.total - m.removed for m in masks)
    for conv in (module for module in model.modules() if not masks):
        if isinstance(conv, nn.Conv2d):
            weights = conv.mask if isinstance(conv, SubnetConv2d) else conv.weight
            total, kept = total + weights.numel(), kept + int(weights.count_nonzero())
    tokens = int(getattr(model, "num_tokens", 0))
    gone = removed_share(model, lambda m: m.kept(tokens) / tokens) if tokens else 0.0
    return {"weight_sparsity": 1 - kept / total if total else 0.0, "patch_sparsity": gone}


def epoch_line(
    row: Mapping[str, Any], epochs: int, images_per_s: float, left_s: float, run_s: float = 0.0,
    weights: str = "convolutions' weights",
) -> str:  # fmt: skip
    """One line for the end of an epoch, from its row; with the seconds left of phase and run.

    `weights` are those of which a fraction is removed: see `removed`.
    """
    val = "-" if row["val_accuracy"] is None else f"{row['val_accuracy']:.2f} %"
    return (
        f"{row['phase']} epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
        f"train {row['train_accuracy']:.2f} %  val {val}  rate {row['firing_rate']:.3f}  "
        f"removed: {weights} {100 * row['weight_sparsity']:.1f} % "
        f"patches {100 * row['patch_sparsity']:.1f} %  {images_per_s:.0f} images/s  "
        f"ETA {clock(left_s)}" + (f", run {clock(run_s)}" if run_s > left_s else "")
    )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def start_trackers(accelerator: Any, names: Sequence[str], folder: Path) -> None:
    """Let an accelerator report to trackers by name, under the run's; a ConfigError if it cannot.

    Those that write files have them in ``track`` of the run directory.
    """
    from accelerate.tracking import filter_trackers
    from accelerate.utils import LoggerType

    known = [tracker.value for tracker in LoggerType if tracker.value != "all"]
    for name in names:
        rule = f"a tracker of the installed accelerate: {', '.join(known)}"
        check(name in known, "train.track", name, rule)
    accelerator.project_configuration.set_directories(str(folder / "track"))
    ready = [str(getattr(one, "value", one)) for one in filter_trackers([*names], folder)]
    missing = [name for name in names if name not in ready]
    rule = f"a tracker that is installed: pip install {' '.join(missing)}"
    check(not missing, "train.track", ", ".join(missing), rule)
    accelerator.log_with = ready
    accelerator.init_trackers(folder.name)
