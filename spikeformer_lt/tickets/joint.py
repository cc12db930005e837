"""Joint tickets: fewer patches and fewer encoder weights, found one inside the other."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.registry import register_search
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import Search, noted
from spikeformer_lt.tickets.configs import JointConfig, MultiSpConfig
from spikeformer_lt.tickets.imp import Imp
from spikeformer_lt.tickets.multisp import MultiSp
from spikeformer_lt.training.phase import Fit


@register_search("joint", JointConfig)
class Joint(Search):
    """Patches are removed first; every round of weight pruning sees the patches that are left.

    The ticket's mask is over the encoder's weights; its provenance has one ledger with the
    sparsity of each level apart, and over all parameters.

    Source: patches: arXiv 2311.12060; weights: as `imp`; both together: arXiv 2311.08806.
    """

    def find(self, model: nn.Module, fit: Fit) -> Ticket:
        """Select patches, then prune the encoder.

        Raises:
            ConfigError: a model without patches.
        """
        if stem_of(model) is None:
            raise ConfigError(
                f"joint needs a model with patches (a ConvPEP); {type(model).__name__} has none: "
                "use imp"
            )
        levels = MultiSp(MultiSpConfig(patches=self.config.patches), self.seed)
        levels.select_patches(model, fit)
        inner = Imp(self.config.imp, self.seed)
        ticket = inner.find(model, fit)
        self.start, self.results = inner.start, levels.results + inner.results
        about = ticket.provenance
        ledger = {
            "patch": self.config.patches.sparsity,
            "weight": about["prunable_sparsity"],
            "total_weight": about["total_sparsity"],
        }
        phases = [asdict(result) for result in levels.results] + about["phases"]
        seconds = sum(phase["seconds"] for phase in phases)
        own = {"search": self.name, "config": asdict(self.config), "ledger": ledger}
        return noted(ticket, **own, phases=phases, search_seconds=seconds)
