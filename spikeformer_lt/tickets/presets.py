"""Published settings by name: optimizers, options of the whole run, and what still deviates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from spikeformer_lt.config import check, flat_values, to_dict
from spikeformer_lt.errors import shown
from spikeformer_lt.training.options import OptimConfig, Step

ECCV22 = OptimConfig(
    opt="momentum", lr=0.3, weight_decay=5e-4, momentum=0.9, min_lr=0.0, clip_grad=0.0,
    decay_vectors=True,
)  # fmt: skip
"""SGD at 0.3, cosine to 0, batch 128: Kim et al., ECCV 2022 (arXiv 2207.01382), section 4.1."""
EDGE_POPUP = OptimConfig(
    opt="momentum", lr=0.1, score_lr=0.1, weight_decay=1e-4, momentum=0.9, min_lr=0.0, clip_grad=0.0
)
"""SGD at 0.1, cosine to 0, 100 epochs: arXiv 1911.13299 on CIFAR-10, and arXiv 2103.09377."""
PRESETS = {"eccv22": ECCV22, **dict.fromkeys(("cvpr20", "iclr21", "iclr21-global"), EDGE_POPUP)}


ON_CIFAR = {"cifar10": "crop4_flip_cutout", "cifar100": "crop4_flip_cutout"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "eccv22": {"train.loss": "tet", "data.augment": {**ON_CIFAR, "svhn": "crop4_flip"}},
    "literal": {"model.tau": 100.0, "model.decay_input": False},
}
"""Options of the whole run that a preset stands for, where the user names none; by data set."""
_HELD_OUT = "10 % of the training images are validation and choose the weights, not the test set"
DEVIATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cvpr20", "iclr21", "iclr21-global"), (_HELD_OUT,)),
    "eccv22": (
        _HELD_OUT,
        "time steps are those of the run (published: 5)",
        "float32 (published: mixed precision)",
    ),
    "literal": (
        "the mask is the top of the scores anew at every step: line 10 as printed, M <- M * Proj, "
        "could not change a mask that has its size",
        "weights are binary by their sign, as the text says; Algorithm 1 prints alpha * M * w",
        "the temporary head is trained beside the scores at 1e-3, for which no rate is printed",
        "patches are ranked by the firing rate of their embedding: the sorting is not defined",
        "BatchNorm's running statistics follow the data; scale and shift stay as drawn",
    ),
}
"""What a preset still does in another way than its source: a report lists it."""


def with_preset(config: Any, preset: str) -> Any:
    """The configuration with a preset by name; "default" leaves it as it is."""
    return config if preset == "default" else replace(config, preset=preset)


def preset_optim(preset: str) -> OptimConfig | None:
    """Optimizer of a preset; None leaves the run's own."""
    return PRESETS.get(preset)


def published(config: Any, inner: Any = None) -> dict[str, Any]:
    """Options of the whole run that the preset (of `inner` if given) stands for."""
    config = getattr(config, "imp", config) if inner is None else inner  # of a joint search
    return PUBLISHED.get(getattr(config, "preset", "default"), {})


def retraining(config: Any, epochs: int, inner: Any = None) -> tuple[int, OptimConfig | None]:
    """Epochs and optimizer of the training from a ticket, by the preset (of `inner` if given).

    `epochs` are those of the network that is tested: what its start weights were trained for is
    part of them. A preset has its own number, as published.
    """
    config = getattr(config, "imp", config)  # of a joint search
    preset = getattr(config if inner is None else inner, "preset", "default")
    published = getattr(config, "published_epochs", epochs)
    left = max(1, epochs - start_step(config, inner).epochs)
    return left if preset == "default" else published, preset_optim(preset)


def start_step(config: Any, inner: Any = None) -> Step:
    """Point of training at which a search (around `inner`) takes the start weights of tickets."""
    config = config if inner is None else inner
    config = getattr(config, "imp", config)
    config = config.resolved() if hasattr(config, "resolved") else config
    if getattr(config, "control", "none") == "fresh":
        return Step()
    if getattr(config, "start", "init") == "trained":
        return Step(config.epochs)
    return getattr(config, "rewind_step", Step())


def refuse_overruled(cfg: Any, named: Collection[str], chosen: Sequence[Any]) -> None:
    """Refuse an option that a preset overrules, by a ConfigError.

    Args:
        cfg: the configuration in force.
        named: options that the user named.
        chosen: the search and its configuration, and of a search around another that one's pair.
    """
    for inner in chosen[2:]:
        refuse_overruled(cfg, named, inner)
    search, config = chosen[:2]
    if hasattr(config, "imp"):  # a joint search
        search, config = "imp", config.imp
    preset = getattr(config, "preset", "default")
    if preset == "default" or not hasattr(config, "resolved"):
        return
    epochs, optim = retraining(config, getattr(cfg, "epochs", 0))
    ours: dict[str, Any] = {search: to_dict(config), "train": {"optim": to_dict(cfg.train.optim)}}
    runs: dict[str, Any] = {
        search: to_dict(config.resolved()),
        "train": {"optim": to_dict(optim or OptimConfig())},
    }
    if optim is None:
        del ours["train"]
    if hasattr(cfg, "epochs"):
        ours["epochs"], runs["epochs"] = cfg.epochs, epochs
    fixed = dict(flat_values(runs))
    for name, value in flat_values(ours):
        rule = f"preset {preset} fixes it at {shown(fixed[name])}; leave one of the two out"
        check(name not in named or value == fixed[name], name, value, rule)
