"""Tickets: mask and start weights that belong together, on disk and in a model."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt.bundle import Stage
from spikeformer_lt.disk import sha256_of, write_tensors
from spikeformer_lt.errors import CheckpointError, SpikeformerError, TicketError
from spikeformer_lt.mask import Mask
from spikeformer_lt.ticket import Ticket, finished_folder, start_folder

PROVENANCE = {"search": "imp", "seed": 3, "model": {"name": "toy", "T": 4}, "accuracy": 0.5}


def make_model(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def make_ticket(model: nn.Module) -> Ticket:
    scores = {k: p.detach().abs() for k, p in model.named_parameters() if p.dim() > 1}
    return Ticket.of(model, Mask.from_scores(scores, 0.5), PROVENANCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_ticket(make_model()).save(tmp_path / "ticket")
    return tmp_path / "ticket"


def test_a_ticket_of_a_model_has_all_its_tensors_with_removed_weights_zero() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ticket = make_ticket(model)
    assert list(ticket.tensors) == list(before)
    for name, tensor in ticket.tensors.items():
        kept = ticket.mask[name] if name in ticket.mask else torch.tensor(True)
        assert torch.equal(tensor, torch.where(kept, before[name], torch.zeros_like(tensor)))
    with torch.no_grad():
        model[0].weight.fill_(9)
    assert not (ticket.tensors["0.weight"] == 9).any()


def test_a_weight_that_layers_share_is_masked_under_every_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model["b"].weight = model["a"].weight
    for name in ("a.weight", "b.weight"):
        kept = torch.rand(16, 16) < 0.2
        ticket = Ticket.of(model, Mask({name: kept}), PROVENANCE)
        ticket.apply_(fresh := nn.ModuleDict({k: nn.Linear(16, 16) for k in "ab"}))
        assert torch.equal(fresh["a"].weight != 0, kept) and torch.equal(
            fresh["a"].weight, fresh["b"].weight
        )
    assert int((model["a"].weight == 0).sum()) == 0


def test_a_saved_ticket_comes_back_exactly(tmp_path: Path) -> None:
    ticket = make_ticket(make_model())
    ticket.save(tmp_path / "a" / "b")
    loaded = Ticket.load(tmp_path / "a" / "b")
    assert loaded.mask == ticket.mask
    assert loaded.provenance == PROVENANCE
    assert list(loaded.tensors) == list(ticket.tensors)
    assert all(torch.equal(loaded.tensors[k], t) for k, t in ticket.tensors.items())
    names = sorted(entry.name for entry in (tmp_path / "a" / "b").iterdir())
    assert names == ["mask.safetensors", "model.safetensors", "ticket.json"]
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["b"]


def test_equal_tickets_are_equal_files(folder: Path, tmp_path: Path) -> None:
    Ticket.load(folder).save(tmp_path / "again")
    for entry in folder.iterdir():
        assert (tmp_path / "again" / entry.name).read_bytes() == entry.read_bytes()


def test_applying_gives_the_start_weights_and_the_mask_has_nothing_left_to_do(
    folder: Path,
) -> None:
    ticket, model = Ticket.load(folder), make_model()
    ticket.apply_(model)
    assert all(torch.equal(t, ticket.tensors[k]) for k, t in model.state_dict().items())
    ticket.mask.apply_(model)
    assert all(torch.equal(t, ticket.tensors[k]) for k, t in model.state_dict().items())


@pytest.mark.fault(12)
def test_another_model_is_refused_with_the_first_five_faults_and_left_as_it_was(
    folder: Path,
) -> None:
    model = make_model(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TicketError, match=r"'0.weight' is \[4, 6\], the model has \[5, 6\]") as e:
        Ticket.load(folder).apply_(model)
    assert str(e.value).count("the model has") == 5
    assert "and 2 more" in str(e.value)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_missing_and_unknown_tensors_are_told_apart(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 2, bias=False))
    model.extra = nn.Linear(1, 1, bias=False)
    with pytest.raises(TicketError) as caught:
        Ticket.load(folder).apply_(model)
    assert "'extra.weight' [1, 1] is missing in the ticket" in str(caught.value)
    assert "'1.running_mean' [4] is unknown to the model" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0.weight": torch.ones(4, 6)}, r"'0.weight': \d+ of \d+ removed weights are not 0"),
        ({"0.weight": torch.ones(4, 6).bfloat16()}, r"\d+ of \d+ removed weights are not 0"),
        ({"0.weight": torch.zeros(4, 5)}, r"mask has shape \[4, 6\], the weights \[4, 5\]"),
        ({"0.weight": None}, "'0.weight' of the mask has no weights"),
        ({"1.running_var": torch.full((4,), float("nan"))}, "'1.running_var' has NaN"),
    ],
)
def test_weights_that_do_not_belong_to_the_mask_are_refused(
    change: dict[str, Tensor | None], words: str
) -> None:
    ticket = make_ticket(make_model())
    merged = {**ticket.tensors, **change}
    with pytest.raises(TicketError, match=words):
        Ticket(ticket.mask, {k: t for k, t in merged.items() if t is not None})


@pytest.mark.fault(50)
def test_a_consistent_swap_of_the_mask_is_found_by_the_weights(folder: Path) -> None:
    ticket = Ticket.load(folder)
    other = Mask.random_like(ticket.mask, 1)
    other.save(folder / "mask.safetensors")
    with pytest.raises(TicketError, match=r"mask.safetensors changed since the ticket was saved"):
        Ticket.load(folder)
    about = json.loads((folder / "ticket.json").read_text())
    about["sha256"]["mask.safetensors"] = sha256_of(folder / "mask.safetensors")
    del about["seal"]
    (folder / "ticket.json").write_text(json.dumps(about))
    with pytest.raises(TicketError, match="removed weights are not 0"):
        Ticket.load(folder)


@pytest.mark.fault(9)
def test_what_a_ticket_says_of_its_network_is_sealed(folder: Path) -> None:
    """T, patches and activation are in the manifest alone; older tickets have no seal."""
    place, ticket = folder / "ticket.json", Ticket.load(folder)
    about = json.loads(place.read_text())
    about["provenance"]["changed"] = 5
    place.write_text(json.dumps(about))
    with pytest.raises(TicketError, match=r"ticket.json is damaged or was edited: its checksum"):
        Ticket.load(folder)
    del about["provenance"]["changed"], about["seal"]
    place.write_text(json.dumps(about))
    assert Ticket.load(folder).provenance == ticket.provenance


@pytest.mark.parametrize("name", ["mask.safetensors", "model.safetensors"])
@pytest.mark.fault(9)
def test_a_changed_file_is_refused_by_name(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    generator = random.Random(0)
    for place in generator.sample(range(8 * len(data)), 20):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        (folder / name).write_bytes(flipped)
        with pytest.raises(TicketError, match=f"{name} changed since"):
            Ticket.load(folder)
    for length in (0, 7, len(data) // 2, len(data) - 1):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(TicketError, match=f"{name} changed since"):
            Ticket.load(folder)
    (folder / name).unlink()
    with pytest.raises(TicketError, match=f"cannot read {name}"):
        Ticket.load(folder)


class Bomb:
    """Unpickling it leaves a folder behind."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.fault(11)
def test_a_pickle_in_place_of_the_weights_is_named_and_never_run(folder: Path) -> None:
    proof = folder.parent / "executed"
    weights = folder / "model.safetensors"
    torch.save({"w": Bomb(proof)}, weights)
    with pytest.raises(TicketError, match=r"changed since .* a zip archive .*pickle"):
        Ticket.load(folder)
    about = json.loads((folder / "ticket.json").read_text())
    about["sha256"]["model.safetensors"] = sha256_of(weights)
    del about["seal"]
    (folder / "ticket.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="zip archive"):
        Ticket.load(folder)
    (folder.parent / "old.pt").write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(TicketError, match=r"a ticket is a folder .* this is a pickle"):
        Ticket.load(folder.parent / "old.pt")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "not of a ticket"),
        ('{"format": "other"}', "not of a ticket"),
        ('{"format": "spikeformer_lt.ticket", "format_version": 2}', "found ticket format v2"),
        ('{"format": "spikeformer_lt.ticket", "format_version": 1}', "was edited"),
        ('{"format": 1, "format": 2}', "there twice"),
        ("\udcff", "not UTF-8"),
    ],
)
@pytest.mark.fault(13)
def test_a_bad_ticket_json_is_refused(text: str, words: str, folder: Path) -> None:
    (folder / "ticket.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TicketError, match=words):
        Ticket.load(folder)


def test_a_folder_without_a_ticket_is_named(tmp_path: Path) -> None:
    with pytest.raises(TicketError, match=r"no ticket: ticket.json: No such file"):
        Ticket.load(tmp_path)
    with pytest.raises(TicketError, match=r"none': no ticket: there is no such folder"):
        Ticket.load(tmp_path / "none")


@pytest.mark.fault(50)
def test_a_used_folder_is_left_alone(folder: Path, tmp_path: Path) -> None:
    ticket = Ticket.load(folder)
    with pytest.raises(TicketError, match=r"already holds .*new folder or overwrite=True"):
        ticket.save(folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("precious")
    with pytest.raises(TicketError, match=r"already holds 'log.txt'"):
        ticket.save(tmp_path / "run", overwrite=True)
    with pytest.raises(TicketError, match="is a file"):
        ticket.save(tmp_path / "run" / "log.txt")
    assert (tmp_path / "run" / "log.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    ticket.save(tmp_path / "empty")
    assert Ticket.load(tmp_path / "empty").mask == ticket.mask


def test_overwriting_replaces_a_ticket(folder: Path) -> None:
    other = make_ticket(make_model(3))
    other.save(folder, overwrite=True)
    assert Ticket.load(folder).mask == other.mask
    assert [entry.name for entry in folder.parent.iterdir()] == ["ticket"]


@pytest.mark.parametrize("allowed", [0, 1, 2])
@pytest.mark.fault(50)
def test_a_save_that_fails_leaves_the_old_ticket_and_nothing_else(
    allowed: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Ticket.load(folder).mask
    written, write = [], Stage.write

    def full(stage: Stage, name: str, data: bytes) -> None:
        if len(written) == allowed:
            raise OSError(28, "No space left on device")
        written.append(name)
        write(stage, name, data)

    monkeypatch.setattr(Stage, "write", full)
    with pytest.raises(SpikeformerError, match="No space left"):
        make_ticket(make_model(3)).save(folder, overwrite=True)
    monkeypatch.undo()
    assert len(written) == allowed
    assert Ticket.load(folder).mask == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["ticket"]


def test_a_provenance_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    ticket = make_ticket(make_model())
    odd = Ticket(ticket.mask, ticket.tensors, {"model": object()})
    with pytest.raises(TicketError, match="provenance cannot be stored"):
        odd.save(tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_a_file_of_other_tensors_in_the_place_of_the_mask_is_refused(folder: Path) -> None:
    write_tensors(folder / "mask.safetensors", {"0.weight": torch.ones(4, 6)})
    with pytest.raises(TicketError, match="changed since"):
        Ticket.load(folder)
    shutil.rmtree(folder)
    with pytest.raises(TicketError, match="no ticket"):
        Ticket.load(folder)


def test_a_ticket_of_a_mask_of_another_model_is_refused() -> None:
    mask = make_ticket(make_model(5)).mask
    with pytest.raises(TicketError, match=r"shape \[5, 6\], the weights \[4, 6\]"):
        Ticket.of(make_model(), mask)


def test_a_run_has_a_start_and_an_end(tmp_path: Path) -> None:
    assert start_folder(tmp_path) == finished_folder(tmp_path) == tmp_path
    (tmp_path / "ticket").mkdir()
    assert start_folder(tmp_path) == finished_folder(tmp_path) == tmp_path / "ticket"
    (tmp_path / "trained").mkdir()
    assert start_folder(tmp_path) == tmp_path / "ticket"
    assert finished_folder(tmp_path) == tmp_path / "trained"
