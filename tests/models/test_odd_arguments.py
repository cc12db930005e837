"""Odd arguments of models: built, or refused in one line, before memory is taken."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import SpikeformerError
from spikeformer_lt.layers import SpikingClassifier
from spikeformer_lt.layers.patches import PatchSelect, make_score
from spikeformer_lt.models.bestformer import Bestformer
from spikeformer_lt.models.max_former import MaxFormer
from spikeformer_lt.models.meta_former import ESpikeFormer, MetaSpikeFormer
from spikeformer_lt.models.qkformer import QKFormer
from spikeformer_lt.models.spike_driven import SpikeDrivenTransformer
from spikeformer_lt.models.spikformer import Spikformer
from spikeformer_lt.models.spiking_resnet import SpikingResNet
from spikeformer_lt.models.spiking_transformer import SpikingTransformer
from spikeformer_lt.models.spiking_vgg import SpikingVGG
from spikeformer_lt.models.spikingformer import Spikingformer

MODELS: dict[str, type] = {
    "spikformer_toy": Spikformer,
    "spikingformer_toy": Spikingformer,
    "bestformer_toy": Bestformer,
    "qkformer_toy": QKFormer,
    "sdt_toy": SpikeDrivenTransformer,
    "maxformer_toy": MaxFormer,
    "sdt2_toy": MetaSpikeFormer,
    "sdt3_toy": ESpikeFormer,
    "spiking_vgg_toy": SpikingVGG,
    "spiking_resnet_toy": SpikingResNet,
}
ODD: list[Any] = [
    0, -1, float("nan"), float("inf"), 1e30, 10**20, 10**400, "", "x" * 5000, None, True, [1],
    (1, 2, 3), {}, b"a",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.fault(35)
def test_an_odd_argument_builds_or_is_refused_in_one_line(name: str) -> None:
    bases = (SpikingTransformer, SpikingClassifier) if name == "spikformer_toy" else ()
    kinds = (MODELS[name], *bases)
    fields = {field for kind in kinds for field in inspect.signature(kind).parameters}
    refused = 0
    for field in sorted(fields - {"options"}):
        for value in ODD:
            try:
                with torch.device("meta"):
                    create_model(name, **{field: value})
            except SpikeformerError as error:
                refused += 1
                text = str(error)
                assert "\n" not in text and len(text) < 500 and field.split("_")[0] in text, text
    assert refused > 5 * len(fields)


@pytest.mark.parametrize(
    "options", [{"attn_threshold": 0.0}, {"attn_threshold": -1.0}, {"v_reset": 0.5}]
)
def test_an_attention_that_always_fires_is_told(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    create_model("spikformer_toy", **options)
    (record,) = caplog.records
    assert "the attention fires at every step" in record.getMessage()
    caplog.clear()
    create_model("spikformer_toy", v_reset=0.5, attn_threshold=0.6)
    create_model("sdt3_toy", activation="lif", v_reset=0.5)  # its attention has no threshold
    create_model("spikformer_toy", activation="heaviside", v_reset=0.5, attn_threshold=0.6)
    assert not caplog.records


def test_constants_that_no_neuron_reads_are_told(caplog: pytest.LogCaptureFixture) -> None:
    create_model("sdt3_toy", tau=3.0, surrogate="atan")
    assert "neurons of whole numbers do not read surrogate, tau" in caplog.text
    caplog.clear()
    create_model("sdt3_toy", activation="lif", tau=3.0)
    assert not caplog.records


def test_dvs_mode_of_another_attention_is_told(caplog: pytest.LogCaptureFixture) -> None:
    create_model("sdt_toy", attention="ssa", dvs_mode=True)
    assert "dvs_mode=True erodes sdsa alone: it changes nothing of ssa" in caplog.text


@pytest.mark.parametrize("name", ["sdt_toy", "sdt3_toy"])
def test_rescaling_sums_that_are_not_there_is_told(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = create_model(name)
    rate = make_score("rate", model.embed_dim, 10, 2)
    model.set_stops([PatchSelect(rate, 0.5, rescale=True) for _ in model.encoder_blocks()])
    assert "rescale=True does nothing in block 0: its " in caplog.text
