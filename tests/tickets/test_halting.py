"""Level 5 of MultiSp: learned with the others, kept in tickets, exported, refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError, ExportError
from spikeformer_lt.export import export_ticket, load_exported, to_pt2
from spikeformer_lt.layers.halting import halts
from spikeformer_lt.reports.ledger import build_ledger
from spikeformer_lt.tickets import (
    HaltingConfig,
    MultiSp,
    MultiSpConfig,
    PatchConfig,
    WeightConfig,
    model_from_ticket,
    set_halting,
)

NAME = "spikformer_toy"
SIZES: dict[str, Any] = {"image_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "T": 3}
START = {1.0, float(torch.tensor(-math.log(11)))}  # gain and bias of 2 blocks and 3 steps
OFF = {"weights": WeightConfig(method="off"), "patches": PatchConfig(0.0)}


def found(bench: Any, folder: Any, patches: Any = None, **halting: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = create_model(NAME, **SIZES)
    levels = OFF if patches is None else {**OFF, "patches": patches}
    config = MultiSpConfig(epochs=1, halting=HaltingConfig(**halting), **levels)
    ticket = MultiSp(config).find(model, bench.trainer(folder).fit)
    about = {**ticket.provenance, "model": {"name": NAME, "args": SIZES}}
    return replace(ticket, provenance=about), model


def test_a_price_makes_tokens_halt_sooner(bench, tmp_path) -> None:
    """It raises the scores in the training of the other levels; without level 5 there are none."""
    learned = []
    for ponder in (0.0, 20.0):
        ticket, _ = found(bench, tmp_path / str(ponder), kind="act", ponder=ponder)
        own = {key: float(v) for key, v in ticket.tensors.items() if ".halt." in key}
        assert len(own) == 4 and not START & set(own.values())
        learned.append(own)
    assert all(dear > cheap for cheap, dear in zip(*(own.values() for own in learned), strict=True))
    model = create_model(NAME, **SIZES)
    names = set(model.state_dict())
    set_halting(model, HaltingConfig())
    assert not halts(model) and set(model.state_dict()) == names


@pytest.mark.parametrize(
    "patches", [None, PatchConfig(0.5, "attention", space="input", selector_epochs=1)]
)
def test_an_export_halts_as_the_network_that_was_trained(patches, bench, tmp_path) -> None:
    options = {"kind": "act", "eps": 0.7, "confidence": 0.12}
    ticket, model = found(bench, tmp_path / "search", patches, **options)
    done = export_ticket(ticket, tmp_path / "packed")
    assert done.check.reload_gap == 0 and done.check.compact_gap_float64 < 1e-9
    plain = load_exported(tmp_path / "packed", plain=True)
    images = torch.rand(4, 3, 16, 16)
    assert 0.1 < build_ledger(model, [images])["sparsity"]["halting"] < 0.9
    assert plain.confidence == 0.12 and halts(plain)
    with torch.no_grad():
        assert torch.equal(plain(images), model.eval()(images))
        assert torch.equal(model_from_ticket(ticket)(images), model(images))
    small = load_exported(tmp_path / "packed")
    for refused in (lambda: small.graphed(images), lambda: to_pt2(small, tmp_path / "x.pt2")):
        with pytest.raises(ExportError, match="tokens or images of this network halt"):
            refused()


def test_a_ticket_halts_again_from_its_start(bench, tmp_path) -> None:
    """`--multisp.ticket` takes level 5 from the ticket, and its neurons from where they began."""
    ticket, _ = found(bench, tmp_path / "first", kind="act", ponder=20.0)
    ticket.save(tmp_path / "kept")
    torch.manual_seed(0)
    again = create_model(NAME, **SIZES)
    seen: list[Any] = []

    def fit(model: nn.Module, phase: Any) -> Any:
        seen.append({k: v.clone() for k, v in model.state_dict().items() if ".halt." in k})
        return bench.trainer(tmp_path / "again").fit(model, phase)

    config = MultiSpConfig(epochs=1, ticket=str(tmp_path / "kept"), **OFF)
    redone = MultiSp(config).find(again, fit)
    assert redone.provenance["config"]["halting"] == ticket.provenance["config"]["halting"]
    assert [{float(value) for value in start.values()} for start in seen] == [START]


def test_what_cannot_halt_is_refused() -> None:
    act = HaltingConfig("act")
    for wrong, said in (
        ({"mode": "stop"}, r"halting\.kind='act' .*off with patches\.mode stop or stages"),
        ({"mode": "stages", "score": "gumbel"}, r"halting\.kind='act'"),
        ({"rescale": True}, r"halting\.kind='act' .*or patches\.rescale"),
    ):
        with pytest.raises(ConfigError, match=said):
            MultiSpConfig(halting=act, patches=PatchConfig(0.5, **wrong))
    MultiSpConfig(halting=act, patches=PatchConfig(0.0, mode="stop"))
    with pytest.raises(ConfigError, match=r"halting\.confidence=0\.9"):
        MultiSpConfig(halting=HaltingConfig(confidence=0.9), patches=PatchConfig(0.5, mode="stop"))
    with pytest.raises(ConfigError, match=r"multisp\.epochs=0"):
        MultiSpConfig(epochs=0, dense_epochs=1, halting=act, **OFF)
    MultiSpConfig(epochs=0, dense_epochs=1, halting=HaltingConfig(confidence=0.9), **OFF)
    for field, wrong in (
        ("kind", "pondernet"),
        ("eps", 1.0),
        ("ponder", -1.0),
        ("confidence", 1.0),
    ):
        with pytest.raises(ConfigError, match=rf"multisp\.halting\.{field}"):
            HaltingConfig(**{field: wrong})
    search = MultiSp(MultiSpConfig(halting=act, **OFF))
    with pytest.raises(ConfigError, match="neurons between pairs of tokens"):
        search.check(create_model("bestformer_toy"))
