"""Joint tickets: fewer patches and fewer encoder weights, found one inside the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from torch import nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import register_search
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import PruneConfig
from spikeformer_lt.tickets.configs import MultiSpConfig, PatchConfig
from spikeformer_lt.tickets.imp import Imp, ImpConfig
from spikeformer_lt.tickets.multisp import MultiSp
from spikeformer_lt.training.phase import Fit


@dataclass(frozen=True)
class JointConfig:
    """MultiSp's patch level, and iterative magnitude pruning of the encoder under it."""

    patches: PatchConfig = field(default_factory=PatchConfig)
    imp: ImpConfig = field(
        default_factory=lambda: ImpConfig(prune=PruneConfig(inside=("blocks.",), head=False))
    )


def on_encoder(imp: ImpConfig) -> ImpConfig:
    """Pruning of the encoder alone, unless the configuration names layers itself."""
    if imp.prune.inside:
        return imp
    return replace(imp, prune=replace(imp.prune, inside=("blocks.",), head=False))


class Joint:
    """Patches are removed first; every round of weight pruning sees the patches that are left.

    Args:
        config: both levels.
        seed: of the selector and the controls.

    The ticket's mask is over the encoder's weights; its provenance has one ledger with the
    sparsity of each level apart, and over all parameters.

    Source: patches: arXiv 2311.12060; weights: as `imp`; both together: arXiv 2311.08806.
    """

    name = "joint"
    trained = False

    def __init__(self, config: JointConfig | None = None, seed: int = 0) -> None:
        self.config, self.seed = config or JointConfig(), seed
        self.inner = Imp(self.config.imp, seed)

    @property
    def start(self) -> dict[str, object]:
        """State that the ticket's weights are taken from."""
        return dict(self.inner.start)

    def find(self, model: nn.Module, fit: Fit) -> Ticket:
        """Select patches, then prune the encoder.

        Raises:
            ConfigError: a model without patches.
        """
        if not hasattr(model, "conv_pep"):
            raise ConfigError(
                f"joint needs a model with patches (a ConvPEP); {type(model).__name__} has none: "
                "use imp"
            )
        levels = MultiSp(MultiSpConfig(patches=self.config.patches), self.seed)
        levels.select_patches(model, fit)
        ticket = self.inner.find(model, fit)
        about = ticket.provenance
        ledger = {
            "patch": self.config.patches.sparsity,
            "weight": about["prunable_sparsity"],
            "total_weight": about["total_sparsity"],
        }
        phases = [asdict(result) for result in levels.results] + about["phases"]
        found = {**about, "search": "joint", "config": asdict(self.config), "phases": phases}
        found["search_seconds"] = sum(phase["seconds"] for phase in phases)
        return Ticket(ticket.mask, ticket.tensors, {**found, "ledger": ledger})


@register_search
def joint(config: JointConfig | None = None, seed: int = 0) -> Joint:
    """Patches and encoder weights together: MultiSp's patch level with IMP."""
    return Joint(config, seed)
