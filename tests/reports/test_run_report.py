"""The report of a run holds what was promised, measured on the split that was asked for."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from spikeformer_lt import create_dataset, create_model
from spikeformer_lt.reports.run_page import LEDGER_IMAGES, describe


def test_describe_evaluates_the_split_and_measures_its_first_images():
    data = create_dataset("digits", image_size=16, limit_train=64, limit_test=40)
    torch.manual_seed(0)
    model = create_model("spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2, T=2)
    forwards = []
    model.register_forward_hook(lambda module, x, y: forwards.append(len(x[0])))
    metrics, ledger = describe(model, data, "test", Accelerator(cpu=True))
    assert forwards == [40, 40]  # the evaluation and one counting pass
    assert metrics.count == len(data.test)
    assert ledger["ledger_samples"] == min(LEDGER_IMAGES, len(data.test))
    assert {"sparsity", "macs", "sops", "firing_rate", "purity", "params"} <= set(ledger)
