"""The kernels as operators of torch, for the graphs that `torch.compile` makes.

Each has a fake for shapes, and a gradient that is an operator, too. Eager calls do not pass here:
the dispatcher costs more than a small kernel does. A neuron's constants travel as words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from spikeformer_lt.layers.inputs import NeuronConfig

_SPACE = "spikeformer_lt"


def _kernels(name: str) -> Any:
    """A module of kernels: numba is imported when the first operator runs."""
    return import_module(f"spikeformer_lt.layers.kernels.{name}")


def written(n: NeuronConfig) -> str:
    """The constants as the operators take them."""
    reset = f"{n.tau} {n.v_threshold} {n.v_reset} {n.decay_input}"
    return f"{reset} {n.surrogate} {n.alpha} {n.detach_reset}"


@cache
def _read(words: str) -> NeuronConfig:
    tau, threshold, reset, decays, surrogate, alpha, detached = words.split()
    back, steep = (None if word == "None" else float(word) for word in (reset, alpha))
    flags = decays == "True", detached == "True"
    return NeuronConfig(float(tau), float(threshold), back, flags[0], surrogate, steep, flags[1])


def _operator(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    back: Callable[..., tuple[Any, ...]] | None = None,
) -> Any:
    """Register an operator; ``back(needs, grad, *inputs, *outputs)`` gives the first gradients.

    Only the first output is differentiable.
    """

    def plain(*args: Any) -> Any:
        with torch.no_grad():
            return run(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        values = (*inputs, *outputs)
        ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)))
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in values]
        ctx.count = len(inputs)

    def gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        values = [next(saved) if other is None else other[0] for other in ctx.others]
        assert back is not None
        found = back(ctx.needs_input_grad, grad, *values)
        return (*found, *(None,) * (ctx.count - len(found)))

    made = torch.library.custom_op(
        f"{_SPACE}::{name}", plain, mutates_args=(), schema=schema, device_types="cpu"
    )
    made.register_fake(fake)
    if back is not None:
        made.register_autograd(gradients, setup_context=save)
    return made


def _lif(x: Tensor, v: Tensor | None, T: int, neuron: str) -> Any:
    return _kernels("lif").Work(x, v, T, _read(neuron)).forward()


def _lif_back(grad: Tensor, x: Tensor, v: Tensor | None, neuron: str) -> Any:
    return _kernels("lif").Work(x, v, grad.shape[0], _read(neuron)).backward(grad)[0]


def _after_lif(needs: Any, grad: Tensor, x: Tensor, v: Any, T: int, neuron: str, *_: Any) -> Any:
    return (lif_back(grad, x, v, neuron),)


lif_back = _operator(
    "lif_back",
    "(Tensor grad, Tensor x, Tensor? v, str neuron) -> Tensor",
    _lif_back,
    lambda grad, x, v, neuron: x.new_empty(x.shape),
)
lif = _operator(
    "lif",
    "(Tensor x, Tensor? v, int T, str neuron) -> (Tensor, Tensor)",
    _lif,
    lambda x, v, T, neuron: (x.new_empty((T, *x.shape[1:])), x.new_empty(x.shape[1:])),
    _after_lif,
)


moments = _operator(
    "moments",
    "(Tensor x) -> (Tensor, Tensor)",
    lambda x: _kernels("lif").moments(x),
    lambda x: (x.new_empty(x.shape[-1:]), x.new_empty(x.shape[-1:])),
)


def _norm_lif(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, batch: bool, eps: float,
    v: Any, T: int, neuron: str,
) -> Any:  # fmt: skip
    made = _kernels("lif")
    rows, _ = made.norm_rows(weight, bias, mean, var, eps)
    return made.Work(x, v, T, _read(neuron), rows).forward()


def _norm_lif_back(
    grad: Tensor, x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, batch: bool,
    eps: float, v: Any, neuron: str,
) -> Any:  # fmt: skip
    made = _kernels("lif")
    rows, inverse = made.norm_rows(weight, bias, mean, var, eps)
    work = made.Work(x, v, grad.shape[0], _read(neuron), rows)
    gx, sums = work.backward(grad)
    lines, *own = made.norm_back(x, mean, rows[0], inverse, sums, batch)
    work.centre(gx, lines)
    return (gx, *own)


def _after_norm_lif(
    needs: Any, grad: Tensor, x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor,
    batch: bool, eps: float, v: Any, T: int, neuron: str, *_: Any,
) -> Any:  # fmt: skip
    gx, *own = norm_lif_back(grad, x, weight, bias, mean, var, batch, eps, v, neuron)
    given = zip((weight, bias), own, strict=True)
    return (gx, *(None if value is None else g for value, g in given))


_NORM = "Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, bool batch, float eps"
norm_lif_back = _operator(
    "norm_lif_back",
    f"(Tensor grad, {_NORM}, Tensor? v, str neuron) -> (Tensor, Tensor, Tensor)",
    _norm_lif_back,
    lambda grad, x, *_: (x.new_empty(x.shape), *(x.new_empty(x.shape[-1:]) for _ in "wb")),
)
norm_lif = _operator(
    "norm_lif",
    f"({_NORM}, Tensor? v, int T, str neuron) -> (Tensor, Tensor)",
    _norm_lif,
    lambda x, *rest: (x.new_empty((rest[-2], *x.shape[1:])), x.new_empty(x.shape[1:])),
    _after_norm_lif,
)


attention_back = _operator(
    "attention_back",
    "(Tensor grad, Tensor x, int heads, float scale) -> Tensor",
    lambda grad, x, heads, scale: _kernels("matmul").attended_back(x, grad, heads, scale),
    lambda grad, x, heads, scale: x.new_empty(x.shape),
)
attention = _operator(
    "attention",
    "(Tensor x, int heads, float scale) -> Tensor",
    lambda x, heads, scale: _kernels("matmul").attended(x, heads, scale),
    lambda x, heads, scale: x.new_empty((*x.shape[:3], x.shape[-1])),
    lambda needs, grad, x, heads, scale, *_: (attention_back(grad, x, heads, scale),),
)


def _conv(rows: Tensor, weight: Tensor, turned: bool) -> Any:
    """The convolution; with `turned`, of gradients of its outputs to those of its inputs."""
    made = _kernels("winograd")
    if all(made.suits(rows.shape, weight.shape, rows.element_size())):
        return made.convolve(rows, weight, turned)
    return made.direct(rows, weight.transpose(0, 1).flip(2, 3) if turned else weight).contiguous()


def _conv_weights(grad: Tensor, rows: Tensor, weight: Tensor) -> Any:
    made = _kernels("winograd")
    if all(made.suits(rows.shape, weight.shape, rows.element_size())):
        return made.weights_back(rows, grad, weight)
    maps = (part.flatten(0, 1).permute(0, 3, 1, 2) for part in (rows, grad))
    inputs, outputs = (part.contiguous() for part in maps)
    found = conv2d_weight(inputs, weight.shape, outputs, padding=1)
    return found.contiguous()


def _after_conv(needs: Any, g: Tensor, rows: Tensor, weight: Tensor, turned: bool, _: Any) -> Any:
    gx = conv(g, weight, not turned) if needs[0] else None
    pair = (rows, g) if turned else (g, rows)
    return gx, conv_weights(*pair, weight) if needs[1] else None


conv_weights = _operator(
    "conv_weights",
    "(Tensor grad, Tensor rows, Tensor weight) -> Tensor",
    _conv_weights,
    lambda grad, rows, weight: weight.new_empty(weight.shape),
)
conv = _operator(
    "conv",
    "(Tensor rows, Tensor weight, bool turned) -> Tensor",
    _conv,
    lambda rows, weight, turned: rows.new_empty((*rows.shape[:-1], weight.shape[int(turned)])),
    _after_conv,
)


def _pooled(x: Tensor) -> Any:
    return x.new_empty((*x.shape[:2], *((side + 1) // 2 for side in x.shape[2:4]), x.shape[4]))


pool_back = _operator(
    "pool_back",
    "(Tensor grad, Tensor labels, Tensor x) -> Tensor",
    lambda grad, labels, x: _kernels("lif").max_pool_back(grad, labels, x, None),
    lambda grad, labels, x: x.new_empty(x.shape),
)
pool = _operator(
    "pool",
    "(Tensor x) -> (Tensor, Tensor)",
    lambda x: _kernels("lif").max_pool(x, None),
    lambda x: (_pooled(x), _pooled(x).to(torch.uint8)),
    lambda needs, grad, x, out, labels: (pool_back(grad, labels, x),),
)
