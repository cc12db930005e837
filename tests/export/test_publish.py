"""An export appears verified and complete, or not at all."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spikeformer_lt
from spikeformer_lt import Mask, Ticket, bundle, create_model, list_models, load_exported
from spikeformer_lt.errors import ExportError, SpikeformerError, TicketError
from spikeformer_lt.export import api as publishing
from spikeformer_lt.export import export_ticket, read_ticket
from spikeformer_lt.export.file import Writer
from spikeformer_lt.tickets.surgery import in_form, model_from_ticket

CHOICES = [
    {},
    {"activation": "heaviside", "residual": "or"},
    {"activation": "sign", "score": "l2"},
    {"activation": "relu", "patches": 0.0},
    {"in_channels": 2, "score": "attention"},
    {"sparsity": 0.9, "score": "tp", "pool_before_act": True},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_an_export_loads_by_itself_and_repeats_its_source(
    choice: dict[str, object], net, images, tmp_path: Path
) -> None:
    model, _, ticket = net(**choice)
    done = export_ticket(ticket, tmp_path / "out", about={"test_accuracy": 12.5})
    assert done.check.reload_gap == 0 and done.check.compact_gap_float64 <= 1e-9
    x = images(model)
    plain = load_exported(tmp_path / "out", plain=True)
    with torch.no_grad():
        wanted = model(x)
    assert torch.equal(plain(x), wanted)
    state = plain.state_dict()
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    fast = load_exported(tmp_path / "out")
    assert not fast.training and fast(x).shape == wanted.shape
    assert "| test accuracy, % | 12.5 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", [n for n in list_models() if n != "nir"])  # that needs a file
def test_every_model_of_the_registry_can_be_exported(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        size = sum(p.numel() for p in create_model(name).parameters())
    if size > 200_000:
        pytest.skip("its small sisters are exported")
    model = create_model(name).eval()
    weights = {n: t for n, t in model.state_dict().items() if t.ndim > 1}
    mask = Mask.from_scores({n: torch.rand(t.shape) for n, t in weights.items()}, 0.8)
    ticket = Ticket.of(model, mask, {"model": {"name": name, "args": {}}})
    export_ticket(ticket, tmp_path / "out")
    found = load_exported(tmp_path / "out", plain=True).state_dict()
    wanted = in_form(ticket).tensors  # a BESTformer's as signs
    assert all(torch.equal(found[n], tensor) for n, tensor in wanted.items())


def test_a_residual_network_can_be_exported(tmp_path: Path) -> None:
    args = {"stem": 8, "widths": (8, 16), "depths": (1, 1), "strides": (1, 2), "hidden": 12}
    args |= {"image_size": 8, "T": 2}
    model = create_model("spiking_resnet19", **args).eval()
    scores = {n: t.abs() for n, t in model.state_dict().items() if t.ndim > 1}
    known = {"model": {"name": "spiking_resnet19", "args": args}}
    ticket = Ticket.of(model, Mask.from_scores(scores, 0.6), known)
    export_ticket(ticket, tmp_path / "out")
    found = load_exported(tmp_path / "out", plain=True).state_dict()
    wanted = in_form(ticket).tensors  # a BESTformer's as signs
    assert all(torch.equal(found[n], tensor) for n, tensor in wanted.items())


ALONE = """
import sys
import torch
from spikeformer_lt import load_exported

def watch(event, args):
    if event in ("pickle.find_class", "socket.connect"):
        sys.exit(f"{event} {args}")

sys.addaudithook(watch)
x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
for plain in (True, False):
    with torch.no_grad():
        print(load_exported("moved", plain=plain)(x).double().numpy().tobytes().hex())
"""


def test_a_folder_is_all_that_another_process_needs(
    net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved, with nothing else around it; nothing is unpickled, and no network is asked."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # numba pickles its own cache
    monkeypatch.setenv("SPIKEFORMER_KERNELS", "torch")  # of the other process
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
    _, _, ticket = net(patches=0.0)
    out = tmp_path / "first" / "out"
    export_ticket(ticket, out)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = [load_exported(out, plain=plain)(x) for plain in (True, False)]
    (tmp_path / "place").mkdir()
    out.rename(tmp_path / "place" / "moved")
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE], cwd=tmp_path / "place",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line, logits in zip(done.stdout.split(), wanted, strict=True):
        found = torch.frombuffer(bytearray.fromhex(line), dtype=torch.float64)
        torch.testing.assert_close(found.view(logits.shape), logits.double(), rtol=0, atol=1e-6)


def test_overrides_reach_the_model(ticket: Ticket, tmp_path: Path) -> None:
    export_ticket(ticket, tmp_path / "out")
    assert load_exported(tmp_path / "out", T=5)(torch.rand(1, 3, 16, 16)).shape == (1, 5, 10)


def nothing_is_left(folder: Path) -> bool:
    return not list(folder.iterdir())


def test_a_wrong_reload_writes_nothing(
    ticket: Ticket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Writer.add

    def spoiled(self, name, tensor, kept):
        add(self, name, tensor + 1 if name == "head.bias" else tensor, kept)

    monkeypatch.setattr(Writer, "add", spoiled)
    with pytest.raises(ExportError, match="'head.bias' was not stored as it is"):
        export_ticket(ticket, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_a_wrong_compact_form_writes_nothing(
    ticket: Ticket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = publishing.compact

    def wrong(model):
        made = right(model)
        made.net.head.bias = torch.nn.Parameter(made.net.head.bias + 1e-6)
        return made

    monkeypatch.setattr(publishing, "compact", wrong)
    with pytest.raises(ExportError, match="the compact network differs"):
        export_ticket(ticket, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_a_full_disk_leaves_nothing(
    ticket: Ticket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle.os, "replace", full)
    with pytest.raises(ExportError, match="No space left on device; .* bytes free"):
        export_ticket(ticket, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_foreign_folders_are_never_replaced(ticket: Ticket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        export_ticket(ticket, tmp_path / "file")
    (tmp_path / "out").mkdir()
    export_ticket(ticket, tmp_path / "out")  # an empty folder is free
    with pytest.raises(ExportError, match=r"already holds 'README.md'; .*overwrite=True"):
        export_ticket(ticket, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="already holds"):
        export_ticket(ticket, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "notes.txt").unlink()
    done = export_ticket(ticket, tmp_path / "out", overwrite=True, precision="bf16")
    assert done.folder == tmp_path / "out" and len(list(tmp_path.iterdir())) == 2


def test_tickets_without_a_model_or_of_another_are_refused(ticket: Ticket, tmp_path: Path) -> None:
    with pytest.raises(TicketError, match="names no model"):
        export_ticket(Ticket(ticket.mask, ticket.tensors, {}), tmp_path / "out")
    other = {**ticket.provenance, "model": {"name": "spikformer_toy", "args": {}}}
    with pytest.raises(SpikeformerError, match="not of this model"):
        export_ticket(dataclasses.replace(ticket, provenance=other), tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_a_ticket_is_read_from_its_own_folder_and_from_an_export(
    ticket: Ticket, tmp_path: Path
) -> None:
    ticket.save(tmp_path / "ticket")
    export_ticket(ticket, tmp_path / "out")
    for folder in (tmp_path / "ticket", tmp_path / "out"):
        read = read_ticket(folder)
        assert read.mask == ticket.mask and read.provenance == ticket.provenance
        assert all(torch.equal(read.tensors[name], t) for name, t in ticket.tensors.items())
    with pytest.raises(TicketError, match="lost"):
        read_ticket(tmp_path / "lost")


def test_the_package_offers_the_loader() -> None:
    assert spikeformer_lt.load_exported.__wrapped__ is publishing.load_exported
    assert model_from_ticket.__module__.startswith("spikeformer_lt.tickets")
