"""How each published row is run: recipe and options, at published scale and at two reduced ones."""

from __future__ import annotations

from papers.tables import Cell

SCALES = ("digits", "cifar10-subset", "full")
BINARY = "no recipe trains all weights of a binary CNN"
NO_ANN = "no recipe has a transformer without spikes"

PRUNABLE = {0.6830: (0.6836, 4), 0.8991: (0.8999, 8), 0.9569: (0.9578, 11), 0.9813: (0.9822, 14)}
"""Level of all parameters -> of the prunable weights, and rounds of 25 % that lead there."""
NEAR = {0.6830: 0.68, 0.8991: 0.9, 0.9569: 0.96, 0.9813: 0.98}

SUBSET = (
    "--data.name cifar10 --data.limit-train 5000 --data.augment none --data.mixup 0 "
    "--data.smoothing 0.1 --train.batch-size 50 --train.optim.lr 3e-3 "
    "--train.optim.weight-decay 0.02 --train.optim.min-lr 1e-5 --train.optim.warmup-epochs 1"
)
DIGITS = "--data.name digits --train.batch-size 32"
MOVING = (
    "--data.name moving_digits --data.augment moving_digits --train.batch-size 32 "
    "--train.optim.lr 5e-3 --train.optim.weight-decay 0.01 --train.optim.min-lr 1e-4 "
    "--train.optim.warmup-epochs 1"
)
SGD = (
    "--train.optim.opt momentum --train.optim.lr 0.3 --train.optim.weight-decay 5e-4 "
    "--train.optim.min-lr 0 --train.optim.warmup-epochs 0 --train.optim.clip-grad 0 "
    "--train.optim.decay-vectors --train.loss tet"
)
ADAM = (
    "--train.optim.opt adam --train.optim.lr 1e-3 --train.optim.score-lr 0.1 "
    "--train.optim.weight-decay 0 --train.optim.min-lr 0 --train.optim.warmup-epochs 0"
)
CNNS = {"VGG16": "spiking_vgg16", "VGG-9": "spiking_vgg9", "ResNet-19": "spiking_resnet19"}
TOYS = {"VGG16": "spiking_vgg_toy", "VGG-9": "spiking_vgg_toy", "ResNet-19": "spiking_resnet_toy"}
WIDTHS = {"TINY": (192, 3, 64, 32), "SMALL": (384, 6, 96, 48)}
"""Published width and heads, the width on the CIFAR-10 subset and that on digits."""
PATCHES = {"TINY": 0.314, "SMALL": 0.376}
STEM = {"TINY": 0.487, "SMALL": 0.549}


def command_of(cell: Cell, scale: str) -> tuple[str, ...] | str:
    """The recipe and its options that run a row, without data root, seed and run directory.

    Returns:
        Recipe file and options; or in words why there is none at this scale.
    """
    if scale == "cifar10-subset" and cell.data != "cifar10":
        return f"{cell.data} is not part of a CIFAR-10 subset"
    if cell.table == "eccv22-tab1":
        line = _eccv22(cell, scale)
    elif cell.network in CNNS:
        line = _connections(cell, scale)
    else:
        line = _transformers(cell, scale)
    return line if line in (BINARY, NO_ANN) else tuple(line.split())


def _eccv22(cell: Cell, scale: str) -> str:
    method, full = cell.method, scale == "full"
    level, rounds = PRUNABLE.get(cell.level or 0.0, (0.0, 0))
    if not full:
        level = NEAR.get(cell.level or 0.0, 0.0)
    epochs = "--epochs 300" if full else "--epochs 8"
    imp = f"--imp.sparsity {level} --imp.epochs 8 --imp.fraction 0.5 --imp.rewind 1ep {epochs}"
    bird = f"--early-bird.sparsity {level} --early-bird.epochs 8 {epochs}"
    early = "early_time_cifar.py --search"
    if full:
        imp = (
            f"--imp.rounds {rounds} --imp.fraction 0.25 --imp.epochs 300 --imp.round-epochs 280 "
            "--imp.rewind 21ep --imp.buffers keep --epochs 280"
        )
        bird = f"--early-bird.preset eccv22 --early-bird.sparsity {level} {epochs}"
        early = "early_time_cifar.py --early-time.preset eccv22 --search"
    own = {
        "dense": f"sparse_training_cifar.py --method random --sparsity 0 {epochs}",
        "random control": f"sparse_training_cifar.py --method random --sparsity {level} {epochs}",
        "IMP": f"imp_cifar.py {imp}",
        "IMP+ET": f"{early} imp {imp}",
        "EB": f"early_bird_cifar.py {bird}",
        "EB+ET": f"{early} early_bird {bird}",
    }[method]
    augment = "crop4_flip_cutout" if cell.data.startswith("cifar") else "crop4_flip"
    published = f"--data.name {cell.data} --data.augment {augment} --data.mixup 0 "
    published += f"--data.smoothing 0 --train.batch-size 128 {SGD}"
    data = {"digits": DIGITS, "cifar10-subset": SUBSET, "full": published}[scale]
    return f"{own} {data} --model.name {(CNNS if full else TOYS)[cell.network]} --model.T 5"


def _connections(cell: Cell, scale: str) -> str:
    method, full = cell.method, scale == "full"
    if method in ("BNN", "BinActBNN", "BinWSNN"):
        return BINARY
    sparsity = cell.level if cell.axis == "sparsity" and cell.level is not None else 0.5
    name = "biprop" if method in ("BNN-ConnS", "ActBNN-ConnS", "BinWSNN-ConnS") else "edge-popup"
    epochs = 300 if full else 8
    own = f"{name.replace('-', '_')}_cifar.py --{name}.sparsity {sparsity} --{name}.init kaiming "
    own += f"--{name}.epochs {epochs}" + (f" --{name}.no-learn-norm" if full else "")
    if not method.endswith("ConnS"):
        own = f"sparse_training_cifar.py --method random --sparsity 0 --epochs {300 if full else 8}"
    model = f"--model.name {(CNNS if full else TOYS)[cell.network]}"
    return f"{own} {_data(cell, scale)} {model} {_neuron(cell)}"


def _transformers(cell: Cell, scale: str) -> str:
    if cell.method.startswith("Trans"):
        return NO_ANN
    dense, connections = cell.method == "Spikeformer", cell.method == "Spikef-CPS"
    patches = 0.0 if dense else PATCHES[cell.network]
    if cell.axis == "patch sparsity" and cell.level is not None:
        patches = cell.level
    full, events = scale == "full", _events(cell)
    stem, epochs = (100, 300) if full else (4, 4 if connections else 8)
    own = f"--multisp.epochs {epochs} --multisp.patches.sparsity {patches} "
    if connections:
        own += f"--multisp.preset literal --multisp.weights.sparsity {STEM[cell.network]} "
        own += f"--multisp.stem-epochs {stem}"
    else:
        own += "--multisp.weights.method off"
    width, heads, subset, digits = WIDTHS[cell.network]
    model = f"--model.name spikformer_{cell.network.lower()}"
    if full and events:
        model = f"--model.name spikformer_dvs --model.embed-dim {width} --model.depth 12 "
        model += f"--model.num-heads {heads}"
    elif scale == "cifar10-subset":
        model = f"--model.name spikformer_cifar --model.embed-dim {subset} --model.depth 2 "
        model += "--model.num-heads 4"
    elif scale == "digits":
        kind = "dvs_toy" if events else "digits"
        model = f"--model.name spikformer_{kind} --model.embed-dim {digits}"
    recipe = "multisp_cifar"
    if events:
        recipe = "multisp_cifar10_dvs" if full and cell.data == "cifar10_dvs" else "multisp_dvs128"
    return f"{recipe}.py {own} {_data(cell, scale)} {model} {_neuron(cell)}"


def _data(cell: Cell, scale: str) -> str:
    if scale == "cifar10-subset":
        return SUBSET
    if scale == "digits":
        small = " --data.image-size 16" if cell.network in CNNS else ""
        return MOVING + small if _events(cell) else DIGITS
    plain = "--data.augment crop4_flip --data.mixup 0 --data.smoothing 0 --train.batch-size 128"
    if _events(cell):
        plain = "--data.augment none --data.mixup 0 --data.smoothing 0 --train.batch-size 16"
    return f"--data.name {cell.data} {plain} {ADAM}"


def _neuron(cell: Cell) -> str:
    """Time steps and neuron: a LIF with the paper's decay is one of tau = 1 / (1 - decay)."""
    kind = {"ANN": "relu", "ANN-ConnS": "relu", "BNN-ConnS": "relu", "ActBNN-ConnS": "sign"}
    steps = cell.level if cell.axis == "T" and cell.level is not None else 4
    if cell.method in kind:
        return f"--model.T {4 if _events(cell) else 1} --model.neuron {kind[cell.method]}"
    decay = cell.level if cell.axis == "decay" and cell.level is not None else 0.99
    return f"--model.T {steps:g} --model.tau {1 / (1 - decay):.10g} --model.decay-input False"


def _events(cell: Cell) -> bool:
    return cell.data in ("dvs128_gesture", "cifar10_dvs")
