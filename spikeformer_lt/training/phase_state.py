"""Where a phase is, into and out of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from spikeformer_lt.training.checkpoint import Checkpoint, CheckpointStore
from spikeformer_lt.training.optimizer_state import flatten_optimizer, restore_optimizer
from spikeformer_lt.training.weights import load_weights

if TYPE_CHECKING:
    from spikeformer_lt.training.phase_run import PhaseRun


@dataclass
class Position:
    """Everything a checkpoint holds besides tensors."""

    epoch: int = 0
    step: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = -1
    best_on_test: float = -1.0
    rows: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    correct: float = 0.0
    seen: int = 0


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict, detached."""
    return {name: value.detach() for name, value in model.state_dict().items()}


def save_position(run: PhaseRun, store: CheckpointStore) -> None:
    """Publish a checkpoint whose number grows through all phases of the run."""
    moments, opt_state = flatten_optimizer(run.optimizer.state_dict())
    tensors = {"model": state_of(run.model), "optimizer": moments}
    if run.ema is not None:
        tensors["ema"] = run.ema.tensors()
    if run.best is not None:
        tensors["best"] = run.best
    if own := run.hooks.tensors():
        tensors["hooks"] = own
    state = {
        "phase": run.phase.name,
        "position": asdict(run.at),
        "optimizer": opt_state,
        "firing": run.watch.state(),
        "guard": run.guard.state(),
        "hooks": run.hooks.state(),
    }
    latest = store.latest_number()
    store.save(0 if latest is None else latest + 1, tensors, state)


def restore_position(run: PhaseRun, found: Checkpoint) -> None:
    """Put a phase back to where a checkpoint left it, to the bit.

    Raises:
        CheckpointError: the checkpoint belongs to another model or optimizer.
    """
    load_weights(run.model, found.tensors["model"], str(found.path))
    restore_optimizer(run.optimizer, found.tensors["optimizer"], found.state["optimizer"])
    if run.ema is not None:
        run.ema.load(found.tensors["ema"])
    run.best = found.tensors.get("best")
    run.at = Position(**found.state["position"])
    run.watch.load_state(found.state["firing"])
    run.guard.load_state(found.state["guard"])
    run.hooks.load(found.tensors.get("hooks", {}), found.state.get("hooks", []))
