"""Searches: ``find(model, fit) -> Ticket``, and what is done with a ticket."""

from typing import TYPE_CHECKING

from spikeformer_lt.runtime import lazy

__all__ = [
    "CONTROLS", "NORMS", "ActivationConfig", "Biprop", "BipropConfig", "EarlyBird",
    "EarlyBirdConfig", "EarlyTime", "EarlyTimeConfig", "EdgePopup", "EdgePopupConfig",
    "EncoderConfig", "Grasp", "GraspConfig", "HaltingConfig", "Imp", "ImpConfig", "Joint",
    "JointConfig", "Magnitude", "MagnitudeConfig", "MultiSp", "MultiSpConfig", "Nm",
    "NmConfig", "OneShotConfig", "PatchConfig", "PruneConfig", "RandomConfig", "RandomTicket",
    "Search", "Snip", "SnipConfig", "SparseTraining", "SparseTrainingConfig", "Synflow",
    "SynflowConfig", "WeightConfig", "apply_surgery", "dead_filters", "estimate_norms",
    "find_after", "find_groups", "magnitudes", "model_from_ticket", "on_encoder", "preset_optim",
    "prunable", "retrain", "set_activation", "set_halting", "set_patches", "shrink", "snapshot",
    "teacher_of", "transfer_ticket", "with_phase", "with_preset",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.tickets.base import (
        Search,
        dead_filters,
        magnitudes,
        prunable,
        retrain,
        snapshot,
        with_phase,
    )
    from spikeformer_lt.tickets.configs import (
        BipropConfig,
        EarlyBirdConfig,
        EarlyTimeConfig,
        EdgePopupConfig,
        GraspConfig,
        ImpConfig,
        JointConfig,
        MagnitudeConfig,
        MultiSpConfig,
        NmConfig,
        OneShotConfig,
        PruneConfig,
        RandomConfig,
        SnipConfig,
        SparseTrainingConfig,
        SynflowConfig,
        on_encoder,
    )
    from spikeformer_lt.tickets.early_bird import EarlyBird, find_groups, shrink
    from spikeformer_lt.tickets.early_time import EarlyTime, find_after
    from spikeformer_lt.tickets.imp import Imp
    from spikeformer_lt.tickets.levels import (
        CONTROLS,
        NORMS,
        ActivationConfig,
        EncoderConfig,
        HaltingConfig,
        PatchConfig,
        WeightConfig,
    )
    from spikeformer_lt.tickets.multisp import Joint, MultiSp
    from spikeformer_lt.tickets.one_shot import Grasp, Magnitude, Nm, RandomTicket, Snip, Synflow
    from spikeformer_lt.tickets.presets import preset_optim, with_preset
    from spikeformer_lt.tickets.scores import Biprop, EdgePopup
    from spikeformer_lt.tickets.sparse_training import SparseTraining
    from spikeformer_lt.tickets.surgery import (
        apply_surgery,
        estimate_norms,
        model_from_ticket,
        set_activation,
        set_halting,
        set_patches,
        teacher_of,
        transfer_ticket,
    )
else:
    __getattr__, __dir__ = lazy(__name__)
