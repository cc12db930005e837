"""Train a ticket that was found elsewhere: on another data set, with another T, or without spikes.

accelerate launch recipes/transfer_cifar.py --ticket runs/x    # on CIFAR-10 under ./data
accelerate launch recipes/transfer_cifar.py --ticket runs/x --data.name cifar100 --fresh head
accelerate launch recipes/transfer_cifar.py --ticket runs/relu --model.neuron lif --norm estimate

The network is the ticket's own, but for the model options that are given. Where CIFAR-10 is not on
disk and no data set is named, the embedded digits are used instead, with a notice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from spikeformer_lt.cli import SMALL, ImageRecipe
from spikeformer_lt.config import adapted, check, check_fields, given_options, run_recipe
from spikeformer_lt.errors import TicketError
from spikeformer_lt.tickets import NORMS
from spikeformer_lt.training import ModelConfig

if TYPE_CHECKING:
    from spikeformer_lt import Ticket

ON_DIGITS = {name: SMALL[name] for name in ("train.batch_size", "train.optim")} | {"epochs": 8}


@dataclass(frozen=True)
class TransferCifar(ImageRecipe):
    """Transfer of a ticket to RGB images."""

    ticket: str = ""
    """A run directory, whose ticket is taken as it was before training, or a ticket folder."""
    norm: str = "keep"
    """BatchNorm's statistics: keep the ticket's, reset them, or estimate them on training images,
    as other neurons need."""
    norm_images: int = 512
    """Training images that statistics are estimated on."""
    fresh: tuple[str, ...] = ()
    """Layers that keep this run's own start weights and no mask, such as head for other classes."""
    epochs: int = 300
    """Epochs of training from the ticket."""

    def __post_init__(self) -> None:
        check_fields(self, norm=NORMS, norm_images=2)


def network(ticket: Ticket, cfg: TransferCifar) -> ModelConfig:
    """The ticket's own network, with what the user named."""
    known = ticket.provenance.get("model")
    if not isinstance(known, dict):
        raise TicketError("the ticket's provenance names no model; tickets that recipes save do")
    given, args = given_options(cfg), known.get("args", {})
    own: dict[str, Any] = {"name": known["name"]}
    own |= {f.name: args[f.name] for f in fields(ModelConfig) if f.name in args}
    return replace(cfg.model, **{k: v for k, v in own.items() if f"model.{k}" not in given})


def main(cfg: TransferCifar) -> None:
    """Move the ticket into the new network, train it, test once, write the report."""
    rule = "a run directory or a ticket folder: --ticket DIR"
    check(bool(cfg.ticket), "ticket", cfg.ticket, rule)

    from spikeformer_lt import Ticket
    from spikeformer_lt.reports import write_report
    from spikeformer_lt.ticket import start_folder
    from spikeformer_lt.tickets import apply_surgery, retrain, transfer_ticket, with_phase
    from spikeformer_lt.training import Experiment

    found = Ticket.load(start_folder(cfg.ticket))
    cfg = adapted(cfg, model=network(found, cfg))
    with Experiment(cfg, fallback="digits", small=ON_DIGITS, search="transfer") as experiment:
        model, trainer = experiment.model(), experiment.trainer
        apply_surgery(model, found)
        known, args = found.provenance["model"].get("args", {}), experiment.model_args()
        images = trainer.batch(cfg.norm_images)[0] if cfg.norm == "estimate" else None
        model.to(trainer.accelerator.device)
        moved = transfer_ticket(
            found,
            model,
            norm=cfg.norm,
            batches=None if images is None else images.split(cfg.train.batch_size),
            fresh=cfg.fresh,
            **{name: value for name, value in args.items() if known.get(name) != value},
        )
        start = Ticket(moved.mask, moved.tensors, {**moved.provenance, "trained": False})
        ticket = experiment.save_ticket(start)
        result = retrain(model, ticket, trainer.fit, experiment.cfg.epochs)
        write_report(experiment, model, with_phase(ticket, result))


if __name__ == "__main__":
    run_recipe(main, TransferCifar)
