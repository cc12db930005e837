"""The training loop: options, phases, checkpoints, run directories."""

from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy

if TYPE_CHECKING:
    from spikeformer_lt.training.evaluate import PREDICTIONS as PREDICTIONS
    from spikeformer_lt.training.evaluate import Metrics as Metrics
    from spikeformer_lt.training.evaluate import Predictions as Predictions
    from spikeformer_lt.training.evaluate import read_predictions as read_predictions
    from spikeformer_lt.training.experiment import Experiment as Experiment
    from spikeformer_lt.training.jobs import Job as Job
    from spikeformer_lt.training.jobs import run_jobs as run_jobs
    from spikeformer_lt.training.options import DataConfig as DataConfig
    from spikeformer_lt.training.options import EventDataConfig as EventDataConfig
    from spikeformer_lt.training.options import ModelConfig as ModelConfig
    from spikeformer_lt.training.options import OptimConfig as OptimConfig
    from spikeformer_lt.training.options import RunConfig as RunConfig
    from spikeformer_lt.training.options import TrainConfig as TrainConfig
    from spikeformer_lt.training.options import load_splits as load_splits
    from spikeformer_lt.training.phase import Capture as Capture
    from spikeformer_lt.training.phase import Fit as Fit
    from spikeformer_lt.training.phase import FitResult as FitResult
    from spikeformer_lt.training.phase import Hook as Hook
    from spikeformer_lt.training.phase import Masked as Masked
    from spikeformer_lt.training.phase import Phase as Phase
    from spikeformer_lt.training.phase import Progress as Progress
    from spikeformer_lt.training.phase import Rewired as Rewired
    from spikeformer_lt.training.run import RunDir as RunDir
    from spikeformer_lt.training.trainer import Trainer as Trainer
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
