"""A network in which every layer fires, its images, and a headless browser for pages."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikeformer_lt import Ticket, create_dataset, create_model
from spikeformer_lt.mask import Mask

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = shutil.which("chromedriver") or ""
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def make_lively(**sizes):
    torch.manual_seed(0)
    model = create_model(
        "spikformer_toy", **{"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2,
                             **sizes}
    )  # fmt: skip
    for module in model.modules():
        if type(module).__name__ == "BatchNorm":
            nn.init.constant_(module.bias, 1.2)
            nn.init.constant_(module.weight, 2.0)
    for _ in range(40):  # BatchNorm statistics of real activity: every layer fires
        model.train()(torch.rand(8, 3, 16, 16))
    return model.eval()


@pytest.fixture
def build():
    """Makes a small network in which every layer fires, with options of its own."""
    return make_lively


@pytest.fixture
def lively():
    return make_lively()


@pytest.fixture(scope="session")
def probe():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(4, 3, 16, 16, generator=generator) for _ in range(2)]


def save_untrained(folder, **provenance):
    args = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
    torch.manual_seed(0)
    model = create_model("spikformer_toy", num_classes=10, **args)
    known = {
        "model": {"name": "spikformer_toy", "args": args},
        "dataset": "digits",
        "split_sha256": create_dataset("digits", image_size=16, limit_test=30).split_sha256,
        "data": {"image_size": 16, "limit_test": 30},
        **provenance,
    }
    known = {name: value for name, value in known.items() if value is not None}
    mask = Mask({k: torch.ones_like(v).bool() for k, v in model.state_dict().items() if v.ndim > 3})
    Ticket(mask, model.state_dict(), known).save(folder / "ticket")
    return model


@pytest.fixture(scope="session")
def saved():
    """Saves a run with an untrained ticket into a folder."""
    return save_untrained


class Browser:
    """One window of a headless Chromium, driven through chromedriver (WebDriver).

    `script` runs JavaScript in its page and returns what it returns.
    """

    def __init__(self, folder: Path) -> None:
        if not (CHROMIUM and DRIVER):
            pytest.skip("no Chromium with chromedriver; Debian: apt-get install chromium-driver")
        self.driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.driver.stdout is not None
        found = (
            re.search(r"started successfully on port (\d+)", line) for line in self.driver.stdout
        )
        self.address = f"http://127.0.0.1:{next(filter(None, found))[1]}/session"
        options = {"binary": CHROMIUM, "args": [*OPTIONS, f"--user-data-dir={folder / 'profile'}"],
                   "prefs": {"download.default_directory": str(folder)}}  # fmt: skip
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        started = self.ask("", capabilities={"alwaysMatch": asked})
        self.address += f"/{started['sessionId']}"

    def ask(self, path: str, method: str = "POST", **data: Any) -> Any:
        """Send one command and return its value; a fault of the driver or the page is raised."""
        body = json.dumps(data).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        self.ask("/url", url=page.as_uri())

    def script(self, text: str, *arguments: Any) -> Any:
        return self.ask("/execute/sync", script=text, args=list(arguments))

    def command(self, name: str, **how: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.ask("/goog/cdp/execute", cmd=name, params=how)

    def size(self, width: int, height: int = 900) -> None:
        """Width and height of the page in CSS pixels, also below the least window of a desktop."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=1, mobile=False)  # fmt: skip

    def system(self, theme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path, whole: bool = True) -> Path:
        found = self.command("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def complaints(self) -> list[str]:
        """Messages of the console since the last call."""
        return [entry["message"] for entry in self.ask("/se/log", type="browser")]

    def close(self) -> None:
        try:
            self.ask("", method="DELETE")
        finally:
            self.driver.terminate()
            self.driver.wait(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    window = Browser(tmp_path_factory.mktemp("browser"))
    yield window
    window.close()
