"""Folders of the hub's form are read and written without any network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from spikeformer_lt import console, from_pretrained, load_exported
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


class Hub(ThreadingHTTPServer):
    """The part of the hub's interface that publishing and loading need, on this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.tokens: list[str | None] = []
        self.refuses = False


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *words: Any) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        hub, data = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.tokens.append(self.headers.get("Authorization"))
        if hub.refuses:
            self.answer(b'{"error": "You are not the owner"}', 403)
        elif self.path.endswith("/repos/create"):
            self.answer({"url": f"{hub.url}/me/ticket"})
        elif "/preupload/" in self.path:
            kinds = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [one | kinds for one in json.loads(data)["files"]]})
        elif "/commit/" in self.path:
            rows = [
                row["value"] for row in map(json.loads, data.splitlines()) if row["key"] == "file"
            ]
            hub.files |= {row["path"]: base64.b64decode(row["content"]) for row in rows}
            self.answer(
                {"commitUrl": f"{hub.url}/me/ticket/commit/{'a' * 40}", "commitOid": "a" * 40}
            )
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        files, name = self.server.files, self.path.rpartition("/")[2]
        if "/resolve/" in self.path:
            tag = hashlib.sha256(files[name]).hexdigest()
            self.answer(files[name], 200, {"ETag": f'"{tag}"', "X-Repo-Commit": "a" * 40})
        elif "/tree/" in self.path:
            kinds = {"type": "file", "oid": "b" * 40}
            self.answer([{"path": n, "size": len(files[n]), **kinds} for n in files])
        elif "/api/models/" not in self.path:
            self.answer({}, 404)
        else:
            rows = [{"rfilename": name} for name in files]
            self.answer({"id": "me/ticket", "sha": "a" * 40, "siblings": rows})

    do_HEAD = do_GET

    def answer(self, body: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        constants, place = huggingface_hub.constants, "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", made.url)  # read when it was imported
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{made.url}{place}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield made
        made.shutdown()


def test_a_ticket_is_pushed_without_paths_and_comes_back_the_same(
    net, images, hub: Hub, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    model, _, ticket = net()
    private = {"data": {"root": "/srv/somebody/data"}, "notes": ["~/x/y", "C:\\z\\w", "a/b"]}
    ticket = dataclasses.replace(ticket, provenance={**ticket.provenance, **private})
    export_ticket(ticket, tmp_path / "a", about={"test_accuracy": 91.5, "from": "/srv/me/run"})
    with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as end:
        console.main(["push", str(tmp_path / "a"), "me/ticket", "--license", "mit"])
    said = "".join(capsys.readouterr()) + caplog.text
    assert not end.value.code and f"{hub.url}/me/ticket/commit/" in said
    assert "Bearer hf_secretsecretsecret" in hub.tokens and "hf_secret" not in said
    assert set(hub.files) == {"README.md", "config.json", "kept.svg", "model.safetensors"}
    assert hub.files["model.safetensors"] == (tmp_path / "a" / "model.safetensors").read_bytes()
    known = json.loads(hub.files["config.json"])
    assert known["provenance"]["data"] == {"root": "data"}
    assert known["provenance"]["notes"] == ["y", "w", "a/b"] and known["about"]["from"] == "run"
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: spikeformer_lt\n")
    assert 'from_pretrained("me/ticket")' in card and "/srv" not in card
    x = images(model)
    assert torch.equal(from_pretrained("me/ticket")(x), load_exported(tmp_path / "a")(x))


def test_a_refusal_of_the_hub_is_one_line_without_the_token(
    net, hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    export_ticket(net()[2], tmp_path / "a")
    hub.refuses = True
    for words, told in (
        (["push", str(tmp_path / "a"), "me/ticket"], "the hub refuses 'me/ticket': "),
        (["push", str(tmp_path / "a"), "no such/na me"], "the hub refuses 'no such/na me': "),
        (["push", str(tmp_path), "me/ticket"], "config.json"),
        (["push", str(tmp_path / "a")], "takes an export's folder and a name"),
    ):
        with pytest.raises(SystemExit) as end:
            console.main(words)
        error = capsys.readouterr().err
        assert end.value.code == 2 and told in error and error.count("\n") == 1
        assert "hf_secret" not in error
    assert not hub.files
