"""Halting (level 5): each token of each image runs as many blocks and time steps as it needs.

In training all of them are computed, under masks that carry gradients; in evaluation what has
halted is left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.attention import (
    SpikeDrivenAttention,
    SpikingSelfAttention,
    TokenAttention,
)
from spikeformer_lt.layers.kernels.reference import spike
from spikeformer_lt.layers.neuron import NeuronState, carried, carry
from spikeformer_lt.layers.patches import kept_count, penalise
from spikeformer_lt.layers.recompute import call


class HaltingNeuron(nn.Module):
    """Stops the tokens before a block whose scores add up to a threshold, without leak or reset.

    The score of a token x that comes to block l at step t is ``h = sigmoid(gain x_0 + bias)`` of
    its first channel, and ``H_l[t]`` the sum of its scores at the blocks up to l and the steps up
    to t. It runs where ``H_l[t] < 1 - eps``: a token that has halted stays so in all later blocks
    of the step, and in this block at all later steps.

    Args:
        eps: what is left out of a whole 1, below 1.
        weight: of the share of tokens and steps that run, among :func:`patches.penalties`.
        places: blocks times steps; the scores of a token of zeros begin as half of a whole over
            all of them.

    Source: adaptive computation time, Graves, arXiv 1603.08983; of tokens by their first channel,
    A-ViT, arXiv 2112.07658; summed over blocks and steps, AT-SNN, arXiv 2408.12293. Differs: gain
    and bias are learned, for each block; a token keeps the value with which it halts, instead of a
    mean of all its values by scores; its count has the derivative of the neurons' sigmoid.
    """

    def __init__(self, eps: float = 0.01, weight: float = 0.0, places: int = 8) -> None:
        super().__init__()
        check(eps < 1, "halting.eps", eps, "below 1")
        self.eps, self.weight, self.places = eps, weight, places
        self.gain, self.bias = (nn.Parameter(torch.empty(1)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start where few tokens halt."""
        nn.init.ones_(self.gain)
        nn.init.constant_(self.bias, -math.log(2 * self.places - 1))

    def forward(self, tokens: Tensor, T: int, total: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (1 where a token runs, else 0; the sums H), ``[T, B, N]``.

        Args:
            tokens: that come to the block, ``[T|1, B, N, D]``.
            T: steps.
            total: H of the block before; None before the first one.
        """
        scores = torch.sigmoid(self.gain * tokens[..., 0].to(self.gain.dtype) + self.bias)
        state, sums = carried(), list[Tensor]()
        own = None if state is None else state.voltages.get(self)
        for t in range(T):
            now = scores[t % len(scores)]
            own = now if own is None else own + now
            sums.append(own)
        if state is not None:
            state.voltages[self] = sums[-1].detach()
        found = torch.stack(sums) if total is None else total + torch.stack(sums)
        return 1 - spike(found - (1 - self.eps), "sigmoid", 4.0), found


def check_halting(model: Any, act: bool, confidence: float) -> None:
    """Refuse what cannot halt: see `SpikingTransformer.set_halting`."""
    name = type(model).__name__
    if act and (why := getattr(model, "keeps_tokens", "")):
        raise ConfigError(
            f"{name} {why} reads the neighbours of every token, so that none can halt"
        )
    kinds = SpikingSelfAttention | TokenAttention | SpikeDrivenAttention
    for block in model.blocks if act else ():
        if not isinstance(block.attn, kinds):
            raise ConfigError(
                f"{name} has neurons between pairs of tokens, so that none can halt by itself"
            )
        if block.attn.rescale_to:
            raise ConfigError("tokens halt in attention sums that are not rescaled")
    inside: list[Any] = model.encoder_blocks()
    if any(getattr(block, way, None) is not None for block in inside for way in ("stop", "select")):
        raise ConfigError("tokens and images halt where no others stop or leave before blocks")
    known = model.num_classes > 0
    check(known or not confidence, "halting.confidence", confidence, "0 without classes")


def halts(model: Any) -> bool:
    """Whether tokens or images of a model halt, in evaluation."""
    own = getattr(model, "confidence", 0.0) > 0
    return own or any(isinstance(module, HaltingNeuron) for module in model.modules())


def tokens_before_blocks(model: Any) -> int:
    """Tokens of each image that come to the blocks."""
    count: int = model.num_tokens
    return count if model.patch is None else kept_count(count, model.patch.sparsity)


def run_halting(blocks: Sequence[Any], tokens: Tensor, T: int) -> Tensor:
    """Tokens ``[T, B, N, D]`` behind blocks with a :class:`HaltingNeuron` as their ``halt``.

    In training, or where gradients are asked for, all tokens run: those that have halted keep
    their values and are no keys of others, and only the statistics of batch norms see them. Else
    they are left out, step by step. Both give the same values.
    """
    if not (blocks[0].training or tokens.requires_grad):
        stepped: Tensor = _stepwise(blocks, tokens, T)
        return stepped
    total = None
    for block in blocks:
        running, total = block.halt(tokens, T, total)
        penalise(block.halt.weight * running.mean())
        ran = call(block, tokens, T, running)
        halted, before = running.detach().unsqueeze(-1) == 0, tokens.to(ran.dtype)
        way = (running - running.detach()).unsqueeze(-1)  # of the gradient; exactly 0
        tokens = torch.where(halted, before, ran) + way * (ran - before).detach()
    return tokens


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _stepwise(blocks: Sequence[Any], tokens: Tensor, T: int) -> Tensor:
    state = carried() or NeuronState()
    steps = []
    with carry(state):
        for t in range(T):
            now, total = tokens[t % len(tokens)][None], None
            for block in blocks:
                running, total = block.halt(now, 1, total)
                now = _run(block, now, running[0] > 0, state)
            steps.append(now)
    return torch.cat(steps)


def _run(block: Any, tokens: Tensor, running: Tensor, state: NeuronState) -> Tensor:
    """One step of a block on the tokens that run, ``[B, N]``, and on their neurons alone.

    Images of which as many run are computed together.
    """
    out, counts = tokens.clone(), running.sum(1)
    parts = [m for m in block.modules() if m is not block.halt and m in state.voltages]
    known = {m: state.voltages[m].clone() for m in parts}
    begun = list(known)  # the others are at rest for each of the groups
    shared = block.attn.attn_act if block.attn.pools else None  # its neurons are of no token
    for count in counts.unique().tolist():
        if not count:
            continue
        images = (counts == count).nonzero()
        place = images, running[images[:, 0]].nonzero()[:, 1].view(-1, count)
        at = place, images[:, 0]
        inner = NeuronState({m: known[m][at[m is shared]] for m in begun})
        with carry(inner):
            out[0][place] = call(block, tokens[0][place][None], 1)[0].to(out.dtype)
        for m, v in inner.voltages.items():
            if m not in known:
                sizes = running.shape[:1] + v.shape[1:2] if m is shared else running.shape
                known[m] = v.new_zeros(*sizes, *v.shape[2:])
            known[m][at[m is shared]] = v
    state.voltages.update(known)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def until_sure(model: Any, images: Tensor) -> Tensor:
    """Logits ``[T, B, K]``; an image runs until its class has ``model.confidence``.

    That is the probability by the mean logits so far, which stand for those of all later steps, so
    that the mean of all is that of the steps that ran. Where no tokens are chosen over the whole
    clip, the stem runs no longer than that, too.

    Source: DT-SNN, arXiv 2305.17346, and SEENN-I, arXiv 2304.01230, by the confidence.
    """
    step, state = copy.copy(model), NeuronState()
    step.T = 1
    once = len(images) == 1 and model.stem.activation != "lif"
    whole = once or model.patch is not None
    feed = model.embed(images) if whole else images
    left = torch.arange(images.shape[1], device=images.device)
    logits = images.new_zeros(model.T, len(left), model.num_classes)
    for t in range(model.T):
        now = feed[t % len(feed)][None, left]
        with carry(state):
            found = (step.classify_chosen(now) if whole else step.classify(now))[0]
        logits[t, left] = found.to(logits.dtype)
        mean = logits[: t + 1, left].mean(0)
        sure = mean.softmax(1).amax(1) >= model.confidence
        logits[t + 1 :, left[sure]] = mean[sure]
        left = left[~sure]
        state = NeuronState({m: v[~sure] for m, v in state.voltages.items()})
        if not len(left):
            break
    return logits
