"""Folders of the hub's form are read and written without any network."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt import console, from_pretrained, load_exported
from spikeformer_lt.errors import ConfigError, ExportError, SpikeformerError
from spikeformer_lt.export import export_ticket
from spikeformer_lt.export.hub import FILES, HubTicket


def test_a_folder_goes_through_the_hubs_methods_unchanged(net, images, tmp_path: Path) -> None:
    model, _, ticket = net()
    export_ticket(ticket, tmp_path / "a")
    found = HubTicket.from_pretrained(tmp_path / "a")
    assert isinstance(found, HubTicket) and not found.training
    x = images(model)
    other = load_exported(tmp_path / "a")
    assert torch.equal(found(x), other(x))
    assert found.layers == other.layers and found.describe() == other.describe()
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


def test_options_that_would_do_nothing_are_refused(net, tmp_path: Path) -> None:
    export_ticket(net()[2], tmp_path / "a")
    for options in ({"T": 2}, {"tokn": "x"}):
        (name,) = options
        with pytest.raises(ConfigError, match=f"{name} not allowed: revision, cache_dir, token"):
            from_pretrained(tmp_path / "a", **options)
    found = from_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"license not allowed: .*push_to_hub=True"):
        found.save_pretrained(tmp_path / "b", license="mit")
    (tmp_path / "a" / "README.md").unlink()
    with pytest.raises(ExportError, match=r"a' lacks README\.md: export it again"):
        found.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_damaged_or_missing_folder_is_refused(net, tmp_path: Path) -> None:
    export_ticket(net()[2], tmp_path / "a")
    data = (tmp_path / "a" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(SpikeformerError, match="truncated"):
        HubTicket.from_pretrained(tmp_path / "a")
    with pytest.raises(ExportError, match="is no folder here"):
        HubTicket._from_pretrained(model_id="nobody/nothing", local_files_only=True)


def test_a_ticket_is_pushed_without_paths_and_comes_back_the_same(
    net, images, hub: Any, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    model, _, ticket = net()
    private = {"data": {"root": "/srv/somebody/data"}, "notes": ["~/x/y", "C:\\z\\w", "a/b"]}
    private["names"] = {"classes": ["/m/01yrx", "/m/0bt9lr"]}  # as Open Images has them
    ticket = dataclasses.replace(ticket, provenance={**ticket.provenance, **private})
    about = {"test_accuracy": 91.5, "from": "/srv/me/run"}
    export_ticket(ticket, tmp_path / "a", about=about, license="cc-by-4.0")  # which push replaces
    with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as end:
        console.main(["push", str(tmp_path / "a"), "me/ticket", "--license", "mit"])
    said = "".join(capsys.readouterr()) + caplog.text
    assert not end.value.code and f"{hub.url}/me/ticket/commit/" in said
    assert "Bearer hf_secretsecretsecret" in hub.tokens and "hf_secret" not in said
    assert set(hub.files) == {"README.md", "config.json", "kept.svg", "model.safetensors"}
    assert hub.files["model.safetensors"] == (tmp_path / "a" / "model.safetensors").read_bytes()
    known = json.loads(hub.files["config.json"])
    assert known["provenance"]["data"] == {"root": "data"}
    assert known["provenance"]["names"] == private["names"]
    assert known["provenance"]["notes"] == ["y", "w", "a/b"] and known["about"]["from"] == "run"
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: spikeformer_lt\n")
    assert card.count("license:") == 1 and "\nLicence of the weights: mit.\n" in card
    assert 'from_pretrained("me/ticket")' in card and "/srv" not in card
    x = images(model)
    assert torch.equal(from_pretrained("me/ticket")(x), load_exported(tmp_path / "a")(x))


def test_a_refusal_of_the_hub_is_one_line_without_the_token(
    net, hub: Any, tmp_path: Path, capsys: Any
) -> None:
    export_ticket(net()[2], tmp_path / "a")
    hub.refuses = True
    for words, told in (
        (["push", str(tmp_path / "a"), "me/ticket"], "the hub refuses 'me/ticket': "),
        (["push", str(tmp_path / "a"), "no such/na me"], "NAME='no such/na me' is not allowed"),
        (["push", str(tmp_path / "a"), "bad"], "NAME='bad' is not allowed: OWNER/NAME"),
        (["push", str(tmp_path), "me/ticket"], "; push takes a folder that export wrote"),
        (["push", str(tmp_path / "a"), "me/ticket", "--license", "a b"], "license='a b' is not"),
        (["push", str(tmp_path / "a")], "takes an export's folder and a name"),
    ):
        with pytest.raises(SystemExit) as end:
            console.main(words)
        error = capsys.readouterr().err
        assert end.value.code == 2 and told in error and error.count("\n") == 1
        assert "hf_secret" not in error
    assert not hub.files


def test_a_hub_that_does_not_answer_is_one_line(
    net, hub: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_ticket(net()[2], tmp_path / "a")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as end:
        console.main(["push", str(tmp_path / "a"), "me/ticket"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "the hub http://127.0.0.1:9 does not answer: " in error
    assert error.count("\n") == 1 and "hf_secret" not in error
