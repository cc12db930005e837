"""The audit names every tensor that is not made of spikes."""

from __future__ import annotations

import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.reports.ledger import count_operations

SIZES = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}


def audited(**kwargs):
    torch.manual_seed(0)
    model = create_model("spikformer_toy", **SIZES, **kwargs)
    for module in model.modules():
        if type(module).__name__ == "BatchNorm":
            nn.init.constant_(module.bias, 1.0)
    for _ in range(40):  # BatchNorm statistics of real activity
        model.train()(torch.rand(8, 3, 16, 16))
    return count_operations(model, [torch.rand(4, 3, 16, 16)], model.T).purity()


def test_add_residuals_make_integers_and_iand_keeps_tokens_binary():
    assert audited()["impure"]["blocks.0.attn.q.linear"] == "integers"
    for residual in ("iand", "or"):
        assert "blocks.0.attn.q.linear" not in audited(residual=residual)["impure"]


def test_the_image_enters_the_first_convolution_as_real_numbers():
    impure = audited(residual="iand")["impure"]
    assert impure["conv_pep.stages.0.conv"] == "real"
    assert "conv_pep.stages.1.conv" not in impure


def test_sign_activations_are_called_by_name():
    assert audited(activation="sign")["impure"]["conv_pep.stages.1.conv"] == "{-1,0,1}"


def test_relu_is_not_spiking():
    assert audited(activation="relu")["impure"]["conv_pep.stages.1.conv"] == "real"
