"""Batch normalisation over the last axis of ``[T|1, ..., C]``, alone or with the activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as nn_module
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, Activation, Heaviside, count_steps


class BatchNorm(_BatchNorm):
    """Batch normalisation of rows: channels are the last axis, every other axis is samples.

    State names are those of ``torch.nn.BatchNorm2d``; it computes in float32 at least.

    Shape: [T|1, ..., C] -> the same.

    Raises:
        DataError: (forward) the last axis is not C; a training batch with one value per channel.
    """

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        """Normalise `x`, which represents `repeats` equal copies of itself along time."""
        y = self._normalise(x if x.dtype == torch.float64 else x.float(), repeats)
        return y.to(x.dtype)

    def _normalise(self, x: Tensor, repeats: int) -> Tensor:
        count = self.check(x)
        if not (self.training or self.running_mean is None):
            assert self.running_mean is not None and self.running_var is not None
            return self._apply_rows(x, self.running_mean, self.running_var, False)
        mean, var = x.new_zeros(2, self.num_features)
        y = self._apply_rows(x, mean, var, True)  # which writes mean and unbiased variance
        self.track(mean, var * ((count - 1) / count), count * repeats)
        return y

    def _apply_rows(self, x: Tensor, mean: Tensor, var: Tensor, batch: bool) -> Tensor:
        channels = x.shape[-1]
        if torch.compiler.is_compiling():  # rows have no strides, so that any batch size fits
            rows = x.reshape(-1, channels)
        else:  # an image [1, C, n, 1] with its channels innermost is torch's fast way
            rows = x.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)
        momentum = 1.0 if batch else 0.0
        y = F.batch_norm(rows, mean, var, self.weight, self.bias, batch, momentum, self.eps)
        return (y if y.dim() == 2 else y.permute(0, 2, 3, 1)).reshape(x.shape)

    def check(self, x: Tensor) -> int:
        """Number of values per channel, refused if they have no statistics."""
        if x.dim() < 2 or x.shape[-1] != self.num_features:
            raise DataError(
                f"BatchNorm got {list(x.shape)}; it must be [T|1, ..., {self.num_features}]"
            )
        count = x.numel() // self.num_features
        if (self.training or self.running_mean is None) and count < 2:
            raise DataError(
                f"BatchNorm got {list(x.shape)} in training: one value per channel has no "
                "variance; use a larger batch, or drop the last partial one"
            )
        return count

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics by a batch of `count` samples with this (biased) variance."""
        if not (self.training and self.track_running_stats) or self.running_mean is None:
            return
        assert self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = self.momentum
        if step is None:
            step = 1.0 / float(self.num_batches_tracked)
        unbiased = var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), step)


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, float64, that a BatchNorm is in eval mode.

    Raises:
        ConfigError: it has no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError("a BatchNorm without running statistics is no fixed affine map")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale.detach(), shift.detach()


def norm_act(
    norm: BatchNorm,
    act: LIF | Activation,
    x: Tensor,
    T: int | None = None,
    repeats: int = 1,
    *,
    need_current: bool = False,
) -> Any:
    """``act(norm(x, repeats), T)``, as one operation where that is faster.

    The fused kernel bypasses both modules, so any hook on them disables it, except forward hooks of
    `act` with an attribute ``observes_output`` set, which are called with the spikes alone.

    Args:
        norm, act: the normalisation and the activation after it.
        x: [T|1, ..., C].
        T: number of time steps that the output of a LIF has; None means ``x.shape[0]``.
        repeats: number of equal copies along time that `x` represents, as in :class:`BatchNorm`.
        need_current: also return the output of `norm`, [T|1, ..., C].

    Returns:
        The activation: [T, ..., C] from a LIF, else [T|1, ..., C]; with `need_current`, a pair.
    """
    if not need_current:
        fused = fused_norm_act(norm, act, x, T, repeats)
        if fused is not None:
            return fused
    current = norm(x, repeats)
    out: Tensor = act(current, T)
    return (out, current) if need_current else out


def fused_norm_act(
    norm: BatchNorm,
    act: Any,
    x: Tensor,
    T: int | None,
    repeats: int,
    pooled: bool = False,
) -> Tensor | None:
    """Spikes by the fused kernel; None if it does not apply.

    With `pooled`, `norm` is followed by a max-pool (3x3, stride 2, padding 1) of [T|1, B, H, W, C].
    """
    if type(norm) is not BatchNorm or hooked(norm, act):
        return None
    time, kind = x.shape[0], type(act)
    steps = count_steps(x, T, kind.__name__)
    v = None
    if kind is LIF and not act.store_v_seq:
        params = act.params()
        v = act.start(x[..., ::2, ::2, :] if pooled else x)
    elif kind is Heaviside:  # every step is the first of a LIF
        params, steps = act.as_lif(), 1
        x = x.flatten(0, 1)[None] if pooled else x[None]
    else:
        return None
    if params is None:
        return None
    count = norm.check(x)
    batch = norm.training or norm.running_mean is None
    mean, var = (None, None) if batch else (norm.running_mean, norm.running_var)
    result = dispatch.norm_lif(
        x, norm.weight, norm.bias, mean, var, norm.eps, v, steps, params, pooled
    )
    if result is None:
        return None
    spikes, last, mean, var = result
    if batch:
        norm.track(mean, var, count * repeats)
    if kind is LIF:
        act.keep(last)
    else:
        spikes = spikes[0].unflatten(0, (time, -1)) if pooled else spikes[0]
    for hook in act._forward_hooks.values():  # observers alone: `hooked` refuses all others
        hook(act, (), spikes)
    return spikes


def hooked(*modules: nn.Module) -> bool:
    """Whether a hook, of one of the modules or a global one, expects to see a module called.

    Forward hooks with an attribute ``observes_output`` set do not count.
    """
    if (
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    ):
        return True
    for module in modules:
        if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return True
        for hook in module._forward_hooks.values():  # generators would double a forward's calls
            if not getattr(hook, "observes_output", False):
                return True
    return False
