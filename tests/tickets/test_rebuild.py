"""Tickets become networks again, or say why they cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from spikeformer_lt import Mask, Ticket, create_model
from spikeformer_lt.errors import CheckpointError, ConfigError, TicketError
from spikeformer_lt.tickets import model_from_ticket, surgery, teacher_of
from spikeformer_lt.training import Phase

ARGS = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}


def ticket_of(net, **provenance) -> Ticket:
    name = "conv_pep.rpe.conv.weight"
    mask = Mask({name: torch.ones_like(net.state_dict()[name], dtype=torch.bool)})
    return Ticket.of(net, mask, provenance)


def test_a_plain_ticket_rebuilds_its_model():
    model = create_model("spikformer_toy", **ARGS).eval()
    ticket = ticket_of(model, model={"name": "spikformer_toy", "args": ARGS})
    images = torch.rand(2, 3, 16, 16)
    again = model_from_ticket(ticket)
    assert not again.training
    assert torch.equal(again(images), model(images))
    assert model_from_ticket(ticket, T=3)(images).shape == (2, 3, 10)


def test_a_ticket_that_names_no_model_is_refused():
    model = create_model("spikformer_toy", **ARGS)
    with pytest.raises(TicketError, match="names no model"):
        model_from_ticket(ticket_of(model))


def test_a_network_that_reads_its_own_tensors_while_it_is_made_is_rebuilt(monkeypatch):
    """As neurons of snntorch do, which the meta device cannot."""

    def made(name, **args):
        model = create_model(name, **args)
        model.rest = float(torch.zeros(1).item())
        return model

    monkeypatch.setattr(surgery, "create_model", made)
    model = create_model("spikformer_toy", **ARGS).eval()
    ticket = ticket_of(model, model={"name": "spikformer_toy", "args": ARGS})
    shapes = surgery.expected_tensors(ticket.provenance, len(ticket.tensors))
    assert all(value.is_meta for value in shapes.values())
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model_from_ticket(ticket)(images), model(images))


def test_weights_of_another_size_are_refused():
    model = create_model("spikformer_toy", **ARGS)
    wrong = {**ARGS, "embed_dim": 32}
    with pytest.raises(TicketError):
        model_from_ticket(ticket_of(model, model={"name": "spikformer_toy", "args": wrong}))


def test_what_a_teacher_alone_says_does_not_depend_on_labels(bench, tmp_path):
    """All of its weight: other labels, same weights."""
    torch.manual_seed(5)
    known = {"name": "spikformer_toy", "args": {**ARGS, "depth": 2}}
    teacher = create_model("spikformer_toy", **known["args"])
    noted = bench.data.preprocess.noted()
    ticket_of(teacher, model=known, **noted).save(tmp_path / "teacher")
    wrong = replace(bench.data.train, labels=9 - bench.data.train.labels)
    ends = []
    for weight, train in ((1.0, bench.data.train), (1.0, wrong), (0.5, wrong)):
        trainer = bench.trainer(tmp_path / str(len(ends)), teacher_weight=weight)
        trainer.data = replace(bench.data, train=train)
        trainer.teacher = teacher_of(str(tmp_path / "teacher"), trainer.data)
        torch.manual_seed(0)
        model = create_model("spikformer_toy", **ARGS)
        trainer.fit(model, Phase("train", 1))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_a_teacher_of_other_classes_or_pictures_is_refused(bench, tmp_path):
    noted = bench.data.preprocess.noted()
    for name, args, prepared in (
        ("classes", {"num_classes": 4}, noted),
        ("size", {}, replace(bench.data.preprocess, mean=(0.1, 0.2, 0.3)).noted()),
    ):
        own = {**ARGS, **args}
        known = {"name": "spikformer_toy", "args": own}
        ticket_of(create_model("spikformer_toy", **own), model=known, **prepared).save(
            tmp_path / name
        )
        with pytest.raises(
            ConfigError, match=r"train\.teacher=.*a network of 10 classes, of samples"
        ):
            teacher_of(str(tmp_path / name), bench.data)
    with pytest.raises(TicketError, match=r"^train\.teacher='.*nowhere': no ticket"):
        teacher_of(str(tmp_path / "nowhere"), bench.data)
    assert teacher_of("", bench.data) is None


def test_a_network_of_timm_teaches_with_weights_of_a_file(bench, tmp_path):
    torch.manual_seed(3)
    shape = bench.data.train[0][0].shape
    net = timm.create_model("test_resnet", num_classes=10, in_chans=shape[0]).eval()
    file = tmp_path / "a.pth"
    torch.save({"state_dict": net.state_dict()}, file)
    taught = teacher_of(f"timm:test_resnet@{file}", bench.data)
    assert not any(p.requires_grad for p in taught.parameters())
    images = bench.data.train[0][0][None].float()
    with torch.no_grad():
        assert torch.equal(taught.eval()(images)[:, 0], net(images))
    trainer = bench.trainer(tmp_path / "run")
    trainer.teacher = taught
    trainer.fit(create_model("spikformer_toy", **ARGS), Phase("train", 1))
    with pytest.raises(ConfigError, match=r"train\.teacher=.*allowed: timm:NAME@FILE"):
        teacher_of("timm:test_resnet", bench.data)
    with pytest.raises(ConfigError, match=r"^train\.teacher=.*(Missing|Unexpected) key"):
        teacher_of(f"timm:test_vit@{file}", bench.data)
    with pytest.raises(CheckpointError, match="nowhere"):
        teacher_of("timm:test_resnet@nowhere.pth", bench.data)
