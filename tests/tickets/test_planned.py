"""What a search says it will train is what it trains."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.registry import create_search
from spikeformer_lt.tickets.configs import (
    EarlyTimeConfig,
    ImpConfig,
    JointConfig,
    MagnitudeConfig,
    MultiSpConfig,
    PatchConfig,
    SnipConfig,
    WeightConfig,
)
from spikeformer_lt.training.phase import FitResult, Phase

ATTENTION = PatchConfig(score="attention", selector_epochs=3)
IMP = ImpConfig(epochs=5, rounds=3, rewind="1ep")
SEARCHES = {
    "imp": IMP,
    "magnitude": MagnitudeConfig(epochs=2),
    "snip": SnipConfig(images=4),
    "joint": JointConfig(ATTENTION, IMP),
    "early_time": EarlyTimeConfig(epochs=2, search="imp", images=4),
    "multisp": MultiSpConfig(epochs=4, dense_epochs=2, patches=ATTENTION),
    "multisp sequential": MultiSpConfig(
        epochs=4, stem_epochs=0, schedule="sequential", stem="finetune"
    ),
    "multisp reverse": MultiSpConfig(epochs=4, stem_epochs=6, schedule="reverse"),
    "multisp off": MultiSpConfig(
        epochs=4, stem_epochs=6, schedule="sequential", weights=WeightConfig(method="off")
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_epochs_planned_are_those_trained(name):
    sizes = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}
    model, trained = create_model("spikformer_toy", **sizes), []

    def fit(model: torch.nn.Module, phase: Phase) -> FitResult:
        trained.append(phase.epochs)
        for hook in phase.hooks:
            hook.start(model, 2, phase.epochs)
            for update in range(1, 2 * phase.epochs + 1):
                hook.after_step(model, update)
        return FitResult(phase.name, 50.0, 1, phase.epochs, 0.0)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(count, 3, 16, 16), torch.arange(count) % 10

    search = create_search(name.split()[0], config=SEARCHES[name], seed=0, batch=batch)
    search.find(model, fit)
    assert search.planned() == sum(trained)
