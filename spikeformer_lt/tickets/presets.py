"""Published settings by name: optimizers, options of the whole run, and what still deviates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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


def resolved(config: Any) -> Any:
    """The configuration with what its preset fixes, in PRESETS of its class."""
    return _changed(config, getattr(config, "PRESETS", {}).get(getattr(config, "preset", ""), {}))


def _changed(config: Any, values: Mapping[str, Any]) -> Any:
    deep = {k: _changed(getattr(config, k), v) for k, v in values.items() if isinstance(v, dict)}
    return replace(config, **{**values, **deep}) if values else config


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


def after(cfg: Any, chosen: Sequence[Any], trained: bool) -> tuple[int, OptimConfig | None]:
    """Epochs and optimizer of the training from the ticket of a search; 0 if that ends trained.

    `cfg` is a recipe's configuration, `chosen` the search and its own, with those of one inside.
    """
    epochs = getattr(cfg, "epochs", getattr(chosen[1], "epochs", 0))
    inside = [config for _, config in chosen[2:]]
    return (0, None) if trained else retraining(chosen[1], epochs, *inside)


def start_step(config: Any, inner: Any = None) -> Step:
    """Point of training at which a search (around `inner`) takes the start weights of tickets."""
    config = config if inner is None else inner
    config = getattr(config, "imp", config)
    config = resolved(config)
    if getattr(config, "control", "none") == "fresh":
        return Step()
    if getattr(config, "start", "init") == "trained":
        return Step(config.epochs)
    return getattr(config, "rewind_step", Step())


def lr_entry(config: Any, inner: Any = None) -> Step:
    """Where the training from a search's ticket enters its learning-rate schedule."""
    own = config if inner is None else inner
    resumed = getattr(getattr(own, "imp", own), "lr", "restart") == "resume"
    return start_step(config, inner) if resumed else Step()


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
    if preset not in getattr(config, "PRESETS", {}):
        return
    epochs, optim = getattr(cfg, "epochs", 0), None
    if not chosen[2:]:  # else those of the search inside
        epochs, optim = retraining(config, epochs)
    ours: dict[str, Any] = {search: to_dict(config), "train": {"optim": to_dict(cfg.train.optim)}}
    runs: dict[str, Any] = {
        search: to_dict(resolved(config)),
        "train": {"optim": to_dict(optim or OptimConfig())},
    }
    if optim is None:
        del ours["train"]
    if hasattr(cfg, "epochs"):
        ours["epochs"], runs["epochs"] = cfg.epochs, epochs
    fixed = dict(flat_values(runs))
    for name, value in flat_values(ours):
        rule = f"preset {preset} fixes it at {shown(fixed[name])}; leave one of the two out"
        asked = name in named or (cfg.run.quick and name.endswith("epochs"))
        check(not asked or value == fixed[name], name, value, rule)


PAPER = OptimConfig(
    lr=5e-4, weight_decay=0.06, min_lr=1e-5, warmup_epochs=20, warmup_lr=1e-5, clip_grad=0.0,
    of_epochs=300,
)  # fmt: skip
"""The papers' optimizer for CIFAR."""
PAPER_EVENTS = OptimConfig(
    lr=1e-3, weight_decay=0.06, min_lr=1e-5, warmup_epochs=10, warmup_lr=1e-5, cooldown_epochs=10,
    clip_grad=0.0, of_epochs=202,
)  # fmt: skip
"""The papers' optimizer for event data."""
IMAGES_SMALL = {
    "model.name": "spikformer_digits",
    "data.image_size": 16,
    "train.batch_size": 16,
    "train.optim": OptimConfig(lr=5e-3, weight_decay=0.01, min_lr=1e-4, warmup_epochs=1),
}
"""Values for the embedded digits, where the user names none."""
EVENTS_SMALL = {
    "model.name": "spikformer_dvs_toy", "model.T": 8, "model.num_heads": None,
    "train.optim": IMAGES_SMALL["train.optim"], "multisp.epochs": 20, "multisp.stem_epochs": 6,
}  # fmt: skip
"""Values for the embedded moving digits, where the user names none."""
FULL_SIZE: dict[str, dict[str, Any]] = {
    "biprop": {"epochs": 100}, "edge_popup": {"epochs": 100},
    "early_bird": {"epochs": 300}, "sparse_training": {"epochs": 300},
    "imp": {"epochs": 300, "rewind": "20ep"}, "multisp": {"epochs": 300, "stem_epochs": 100},
}  # fmt: skip
"""Options of searches on CIFAR-10 that differ from their own defaults."""
ON_DIGITS: dict[str, dict[str, Any]] = {
    "biprop": {"epochs": 12}, "edge_popup": {"epochs": 12}, "early_bird": {"epochs": 8},
    "imp": {"epochs": 8, "rounds": 4, "rewind": "1ep"},
    "multisp": {"epochs": 12, "stem_epochs": 6}, "sparse_training": {"epochs": 12, "every": 20},
}  # fmt: skip
"""The same on the embedded digits."""

_W, _P, _A = "--multisp.weights.", "--multisp.patches.", "--multisp.activation."
_H = "--multisp.halting."
_NO_WEIGHTS, _NO_PATCHES = f"{_W}method off", f"{_P}sparsity 0"
_DENSE = f"{_NO_WEIGHTS} {_NO_PATCHES}"
_TWO_PHASES = "--multisp.stem-epochs {h} --multisp.epochs {r}"
_FROM_DENSE = "--multisp.dense-epochs {h} --multisp.epochs {r}"
_HARD = f"{_W}sparsity 0.95 {_P}sparsity 0.65"
_E = "--multisp.encoder."
_ALL = f"{_W}sparsity 0.9 {_E}sparsity 0.91 {_E}scope layer"
MULTISP_SUITES: dict[str, dict[str, str]] = {
    "demo": {
        "dense": _DENSE,
        "MultiSp": "",
        "random control": f"{_W}method random {_P}score random",
    },
    "ablation": {
        "dense": _DENSE,
        "level 1 only (patches)": _NO_WEIGHTS,
        "level 2 only (weights)": _NO_PATCHES,
        **{f"level 3 only: {kind}": f"{_DENSE} {_A}kind {kind}" for kind in ("heaviside", "sign")},
        "level 3 only: relu (reference)": f"{_DENSE} {_A}kind relu",
        "all levels (default)": "",
        **{f"all levels, {kind}": f"{_A}kind {kind}" for kind in ("heaviside", "sign")},
        "all levels, iand residual": f"{_A}residual iand",
        "all levels, random patches": f"{_P}score random",
        "all levels, random mask": f"{_W}method random",
        **{way: f"--multisp.schedule {way} {_TWO_PHASES}" for way in ("sequential", "reverse")},
        "literal Algorithm 1": f"--multisp.preset literal {_TWO_PHASES}",
    },
    "parts": {
        "latent (default)": _HARD,
        "frozen scores": f"{_HARD} {_W}method scores",
        "scores over latent": f"{_HARD} {_W}method both",
        "annealed scores over latent": f"{_HARD} {_W}method both {_W}anneal 4",
        "magnitude, fixed": f"{_HARD} {_W}method magnitude",
        "per-filter gains": f"{_HARD} {_W}gain filter",
        "global budget": f"{_HARD} {_W}scope global {_W}floor 0.02",
        "from dense weights": f"{_HARD} {_FROM_DENSE}",
        "from dense, distilled": f"{_HARD} {_FROM_DENSE} --multisp.distill 0.5",
    },
    "curves": {
        "dense": _DENSE,
        **{f"weights {s}": f"{_W}sparsity {s}" for s in (0.5, 0.8, 0.9, 0.95, 0.98)},
        **{f"random mask {s}": f"{_W}sparsity {s} {_W}method random" for s in (0.5, 0.9, 0.95)},
        **{f"patches {s}": f"{_P}sparsity {s}" for s in (0.314, 0.5, 0.65, 0.8)},
        **{f"random patches {s}": f"{_P}sparsity {s} {_P}score random" for s in (0.314, 0.65, 0.8)},
    },
    "halting": {
        "dense": _DENSE,
        **{
            f"level 5 only, ponder {p}": f"{_DENSE} {_H}kind act {_H}ponder {p}"
            for p in (0.1, 0.3, 1)
        },
        "level 5 only, images": f"{_DENSE} {_H}confidence 0.9",
        "all levels, ponder 0.3": f"{_H}kind act {_H}ponder 0.3",
    },
    "families": {
        "dense": _DENSE,
        "all levels 0.9": _ALL,
        "all levels random 0.9": f"{_ALL} {_W}method random {_E}method random {_P}score random",
        "MultiSp": "",
        "MultiSp, 1 bit encoder": f"{_E}binary",
        "dense, random attention": f"{_DENSE} --model.attention random",
    },
}
MULTISP_SUITES["time"] = MULTISP_SUITES["demo"] | {  # of recordings
    "MultiSp, time shuffled": "--data.shuffle-time",
    "dense, time shuffled": f"{_DENSE} --data.shuffle-time",
}
"""By suite and variant: the options that a comparison of MultiSp runs with."""
