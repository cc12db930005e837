"""What a benchmark times is what it says: layers that fire, equal settings, options that count."""

from __future__ import annotations

import argparse
import contextlib
import sys

import busy
import dat_readers
import latency
import multisp_step
import pytest
import sparsity_clock
import torch


def firing(net, x):
    """The least firing rate of a network's neurons in evaluation."""
    rates = []
    for name, module in net.named_modules():
        if name.split(".")[-1] in ("act", "attn_act"):
            module.register_forward_hook(lambda m, a, out: rates.append(float(out.mean())))
    with torch.no_grad():
        net.eval()(x)
    return min(rates)


@pytest.mark.parametrize("name", multisp_step.variants([0.5]))
def test_a_network_fires_in_evaluation_as_in_training(name):
    sizes = dict.fromkeys(("embed_dim", "depth", "num_heads", "T"))
    args = argparse.Namespace(model="spikformer_toy", patch_sparsity=0.314, **sizes)
    model = multisp_step.build(args, **multisp_step.variants([0.5])[name])
    assert firing(model, torch.rand(4, model.in_channels, *model.image_size)) > 0.05


def test_the_network_of_the_latency_fires(monkeypatch):
    monkeypatch.setattr(latency, "compact", lambda model: model)
    assert firing(latency.network("heaviside", 0.9), torch.randn(1, 3, 32, 32)) > 0.02


def test_the_peer_keeps_nothing_for_gradients_either():
    assert not sparsity_clock.spikingjelly()(torch.randn(1, 3, 32, 32)).requires_grad


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--part layers --residuals add", "--part layers does not read --residuals"),
        ("--part step --batches 1", "--part step does not read --batches"),
        ("--peer --model spiking_vgg16", "--peer is a Spikformer-4-384"),
        ("--peer --residuals iand", "--peer is a Spikformer-4-384"),
    ],
)
def test_an_option_that_is_not_read_is_refused(options, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sparsity_clock.py", *options.split()])
    with pytest.raises(SystemExit):
        sparsity_clock.main()
    assert told in capsys.readouterr().err


def test_rows_that_differ_in_their_columns_are_written(monkeypatch, tmp_path):
    rows = [{"what": "iand", "ratio": 1.0}, {"what": "add", "ratio": 2.0, "peer_ratio": 4.0}]
    monkeypatch.setattr(sparsity_clock, "whole", lambda args: rows)
    monkeypatch.setattr(sparsity_clock, "draw", lambda rows, path: None)
    monkeypatch.setattr(sys, "argv", ["sparsity_clock.py", "--out", str(tmp_path)])
    sparsity_clock.main()
    written = (tmp_path / "sparsity_clock.csv").read_text().split()
    assert written == ["what,ratio,peer_ratio", "iand,1.0,", "add,2.0,4.0"]


@pytest.mark.parametrize("order", ["0 1", "1 0"])
def test_ratios_are_to_the_fastest_run_alone(order, monkeypatch, capsys):
    beside = [0]

    @contextlib.contextmanager
    def neighbours(count):
        beside.append(count)
        yield

    took = {(0, 1): 20.0, (0, 2): 10.0, (1, 1): 30.0, (1, 2): 40.0}
    monkeypatch.setattr(busy, "neighbours", neighbours)
    monkeypatch.setattr(busy, "run", lambda threads, epochs: (took[beside[-1], threads], 1.0))
    monkeypatch.setattr(sys, "argv", ["busy.py", "--threads", "1", "2", "--busy", *order.split()])
    busy.main()
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    ratios = {(int(row[0]), int(row[4][0])): row[-1] for row in found if row and row[-1][-1] == "x"}
    assert ratios == {(0, 1): "2.00x", (0, 2): "1.00x", (1, 1): "3.00x", (1, 2): "4.00x"}


@pytest.mark.parametrize("form", ["evt2", "evt3"])
def test_a_recording_has_its_times_in_every_form(form, tmp_path):
    pytest.importorskip("expelliarmus")
    path = tmp_path / "a.dat"
    dat_readers.write(path, 20_000, form)
    found = dat_readers.reader("ours", form)(path.with_suffix(".raw"))
    assert (found == dat_readers.reader("ours", "dat")(path)).all()
