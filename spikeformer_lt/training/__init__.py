"""The training loop: options, phases, checkpoints, run directories."""

from typing import TYPE_CHECKING

from spikeformer_lt.runtime import lazy

__all__ = [
    "PREDICTIONS", "Capture", "CheckpointStore", "DataConfig", "Ema", "EventDataConfig",
    "Experiment", "FiringWatch", "Fit", "FitResult", "Hook", "Job", "Masked", "Metrics",
    "ModelConfig", "NonFiniteGuard", "OptimConfig", "Phase", "Predictions", "Progress", "Rewired",
    "RunConfig", "RunDir", "Schedule", "TrainConfig", "Trainer", "build_optimizer", "load_splits",
    "process_group", "read_predictions", "run_jobs", "spiking_layers", "submit_jobs",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.training.checkpoint import CheckpointStore
    from spikeformer_lt.training.evaluate import PREDICTIONS, Metrics, Predictions, read_predictions
    from spikeformer_lt.training.experiment import Experiment
    from spikeformer_lt.training.jobs import Job, run_jobs, submit_jobs
    from spikeformer_lt.training.monitor import FiringWatch, NonFiniteGuard, spiking_layers
    from spikeformer_lt.training.optim import Ema, Schedule, build_optimizer
    from spikeformer_lt.training.options import (
        DataConfig,
        EventDataConfig,
        ModelConfig,
        OptimConfig,
        RunConfig,
        TrainConfig,
        load_splits,
    )
    from spikeformer_lt.training.phase import (
        Capture,
        Fit,
        FitResult,
        Hook,
        Masked,
        Phase,
        Progress,
        Rewired,
    )
    from spikeformer_lt.training.ranks import process_group
    from spikeformer_lt.training.run import RunDir
    from spikeformer_lt.training.trainer import Trainer
else:
    __getattr__, __dir__ = lazy(__name__)
