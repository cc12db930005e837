"""Networks whose every layer fires: parity between silent networks would prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Run = Callable[[nn.Module], object]


def _awaken(
    model: nn.Module, run: Run, seed: int = 0, centre: float = 0.35, q_k_v: float = 1.1
) -> None:
    """Give every BatchNorm a random affine map and the statistics of `run(model)`.

    Currents then have the mean `centre` and the deviation 1.4 in each layer, against a threshold
    of 1; q, k and v have the mean `q_k_v`, so that their products reach the attention neuron's,
    and currents that are pooled start lower, because the maximum of nine is high.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    training = model.training
    with torch.no_grad():
        for name, norm in norms.items():
            mean = q_k_v if name.endswith(("q.norm", "k.norm", "v.norm")) else centre
            unit = model.get_submodule(name.rpartition(".")[0])
            if getattr(unit, "pool", None) is not None and unit.pool_before_act:
                mean -= 1.2
            drawn = torch.rand(2, norm.num_features, generator=generator)
            norm.weight.copy_(1.2 + 0.4 * drawn[0])
            norm.bias.copy_(mean - 0.15 + 0.3 * drawn[1])
            norm.momentum = 1.0
        run(model.train())
    for name, norm in norms.items():
        norm.momentum = momenta[name]
    model.train(training)


@contextmanager
def _outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the last output of every activation, by name."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: object, out: Tensor) -> None:
            seen[name] = out.detach().clone()

        return keep

    parts = [(n, m) for n, m in model.named_modules() if n.split(".")[-1].endswith("act")]
    hooks = [part.register_forward_hook(watch(name)) for name, part in parts]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture
def awaken() -> Callable[..., None]:
    """Give the function that makes every layer of a network fire."""
    return _awaken


@pytest.fixture
def outputs() -> Callable[[nn.Module], object]:
    """Give the context manager that records what every activation puts out."""
    return _outputs
