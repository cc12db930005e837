"""Folders of the hub's form are read and written without any network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spikeformer_lt import load_exported
from spikeformer_lt.errors import ExportError, SpikeformerError
from spikeformer_lt.export import export_ticket
from spikeformer_lt.export.hub import FILES, HubTicket


def test_a_folder_goes_through_the_hubs_methods_unchanged(net, images, tmp_path: Path) -> None:
    model, _, ticket = net()
    export_ticket(ticket, tmp_path / "a")
    found = HubTicket.from_pretrained(tmp_path / "a")
    assert isinstance(found, HubTicket) and not found.training
    x = images(model)
    assert torch.equal(found(x), load_exported(tmp_path / "a")(x))
    found.save_pretrained(tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    again = HubTicket.from_pretrained(str(tmp_path / "b"), local_files_only=True)
    assert torch.equal(again(x), found(x))


@pytest.mark.fault(50)
def test_a_folder_is_saved_whole_over_exports_alone(net, tmp_path: Path) -> None:
    export_ticket(net()[2], tmp_path / "a")
    found = HubTicket.from_pretrained(tmp_path / "a")
    before = {name: (tmp_path / "a" / name).read_bytes() for name in FILES}
    found.save_pretrained(tmp_path / "a")  # its own folder
    assert {name: (tmp_path / "a" / name).read_bytes() for name in FILES} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to("mine")
    for name, words in (("mine", "already holds 'config.json'"), ("link", "is a link")):
        with pytest.raises(ExportError, match=words):
            found.save_pretrained(tmp_path / name)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_a_damaged_or_missing_folder_is_refused(net, tmp_path: Path) -> None:
    export_ticket(net()[2], tmp_path / "a")
    data = (tmp_path / "a" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(SpikeformerError, match="truncated"):
        HubTicket.from_pretrained(tmp_path / "a")
    with pytest.raises(ExportError, match="is no folder here"):
        HubTicket._from_pretrained(model_id="nobody/nothing", local_files_only=True)
