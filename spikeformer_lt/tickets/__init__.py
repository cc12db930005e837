"""Searches: ``find(model, fit) -> Ticket``, and what is done with a ticket."""

from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy

if TYPE_CHECKING:
    from spikeformer_lt.tickets.at_init import Grasp as Grasp
    from spikeformer_lt.tickets.at_init import Snip as Snip
    from spikeformer_lt.tickets.at_init import Synflow as Synflow
    from spikeformer_lt.tickets.base import Search as Search
    from spikeformer_lt.tickets.base import dead_filters as dead_filters
    from spikeformer_lt.tickets.base import magnitudes as magnitudes
    from spikeformer_lt.tickets.base import prunable as prunable
    from spikeformer_lt.tickets.base import retrain as retrain
    from spikeformer_lt.tickets.base import snapshot as snapshot
    from spikeformer_lt.tickets.base import with_phase as with_phase
    from spikeformer_lt.tickets.configs import NORMS as NORMS
    from spikeformer_lt.tickets.configs import ActivationConfig as ActivationConfig
    from spikeformer_lt.tickets.configs import BipropConfig as BipropConfig
    from spikeformer_lt.tickets.configs import EarlyBirdConfig as EarlyBirdConfig
    from spikeformer_lt.tickets.configs import EarlyTimeConfig as EarlyTimeConfig
    from spikeformer_lt.tickets.configs import EdgePopupConfig as EdgePopupConfig
    from spikeformer_lt.tickets.configs import GraspConfig as GraspConfig
    from spikeformer_lt.tickets.configs import ImpConfig as ImpConfig
    from spikeformer_lt.tickets.configs import JointConfig as JointConfig
    from spikeformer_lt.tickets.configs import MagnitudeConfig as MagnitudeConfig
    from spikeformer_lt.tickets.configs import MultiSpConfig as MultiSpConfig
    from spikeformer_lt.tickets.configs import NmConfig as NmConfig
    from spikeformer_lt.tickets.configs import OneShotConfig as OneShotConfig
    from spikeformer_lt.tickets.configs import PatchConfig as PatchConfig
    from spikeformer_lt.tickets.configs import PruneConfig as PruneConfig
    from spikeformer_lt.tickets.configs import RandomConfig as RandomConfig
    from spikeformer_lt.tickets.configs import SnipConfig as SnipConfig
    from spikeformer_lt.tickets.configs import SparseTrainingConfig as SparseTrainingConfig
    from spikeformer_lt.tickets.configs import SynflowConfig as SynflowConfig
    from spikeformer_lt.tickets.configs import WeightConfig as WeightConfig
    from spikeformer_lt.tickets.configs import on_encoder as on_encoder
    from spikeformer_lt.tickets.configs import preset_optim as preset_optim
    from spikeformer_lt.tickets.configs import with_preset as with_preset
    from spikeformer_lt.tickets.early_bird import EarlyBird as EarlyBird
    from spikeformer_lt.tickets.early_bird import find_groups as find_groups
    from spikeformer_lt.tickets.early_bird import shrink as shrink
    from spikeformer_lt.tickets.early_time import EarlyTime as EarlyTime
    from spikeformer_lt.tickets.imp import Imp as Imp
    from spikeformer_lt.tickets.joint import Joint as Joint
    from spikeformer_lt.tickets.multisp import MultiSp as MultiSp
    from spikeformer_lt.tickets.one_shot import Magnitude as Magnitude
    from spikeformer_lt.tickets.one_shot import Nm as Nm
    from spikeformer_lt.tickets.one_shot import RandomTicket as RandomTicket
    from spikeformer_lt.tickets.scores import Biprop as Biprop
    from spikeformer_lt.tickets.scores import EdgePopup as EdgePopup
    from spikeformer_lt.tickets.sparse_training import SparseTraining as SparseTraining
    from spikeformer_lt.tickets.surgery import apply_surgery as apply_surgery
    from spikeformer_lt.tickets.surgery import model_from_ticket as model_from_ticket
    from spikeformer_lt.tickets.surgery import set_activation as set_activation
    from spikeformer_lt.tickets.surgery import set_patches as set_patches
    from spikeformer_lt.tickets.transfer import transfer_ticket as transfer_ticket
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
