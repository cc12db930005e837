"""A stub of the Hugging Face hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class Hub(ThreadingHTTPServer):
    """The part of the hub's interface that publishing and loading need, on this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.tokens: list[str | None] = []
        self.asked: list[str] = []
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
        files = self.server.files
        name = unquote(self.path.partition("/resolve/")[2].partition("/")[2])
        self.server.asked.append(self.path)
        if name:
            tag = hashlib.sha256(files[name]).hexdigest()
            self.answer(files[name], 200, {"ETag": f'"{tag}"', "X-Repo-Commit": "a" * 40})
        elif "/tree/" in self.path:
            kinds = {"type": "file", "oid": "b" * 40}
            self.answer([{"path": n, "size": len(files[n]), **kinds} for n in files])
        elif not re.match("/api/(models|datasets)/me/", self.path):
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
