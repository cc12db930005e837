"""Exports on the Hugging Face hub: from_pretrained and save_pretrained."""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, PyTorchModelHubMixin, snapshot_download

from spikeformer_lt.bundle import staged
from spikeformer_lt.errors import (
    ConfigError,
    ExportError,
    SpikeformerError,
    check_license,
    listed,
    name_of,
    near,
    shown,
)
from spikeformer_lt.export.file import (
    CARD,
    CONFIG,
    EXPORT,
    PICTURE,
    TENSORS,
    licensed,
    read_packed,
    write_packed,
)
from spikeformer_lt.export.inference import CompactModel, compact
from spikeformer_lt.named import SHIPPED, shipped
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.surgery import model_from_ticket

FILES = (CONFIG, TENSORS, CARD)
OPTIONAL = (PICTURE,)  # which exports of older versions lack
_NAME = r"""[^\s\\/|"'`)\]]+"""
ABSOLUTE = re.compile(rf"(?<![\w.:/\\-])(?:~|[A-Za-z]:)?(?:[\\/]+{_NAME})*[\\/]+({_NAME})")
"""A path from a root, a home or a drive, and its last part."""
DOWNLOAD = ("revision", "cache_dir", "token", "force_download", "local_files_only")


class HubTicket(
    CompactModel,
    PyTorchModelHubMixin,
    library_name="spikeformer_lt",
    tags=["spiking-neural-network", "lottery-ticket", "pruning"],
    pipeline_tag="image-classification",
):
    """A compact network that knows the folder of its export.

    ``from_pretrained`` reads a folder offline, a name of the hub through huggingface_hub, and
    verifies and raises as `load_exported`; ``save_pretrained`` publishes the packed files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.about = read_packed(folder)
        made = compact(model_from_ticket(self.about.ticket))
        super().__init__(made.net, made.removed, made.preprocess)
        self.layers, self._found = made.layers, made._found
        self.folder = Path(folder)
        self.eval()

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubTicket:
        if odd := options.keys() - {*DOWNLOAD, "proxies", "resume_download"}:
            raise ConfigError(f"{listed(odd)} not allowed: {listed(DOWNLOAD)}")
        if Path(model_id).is_dir():
            return cls(model_id)
        known = {name: options[name] for name in DOWNLOAD if name in options}
        try:
            known |= {"endpoint": os.environ.get("HF_ENDPOINT")}
            folder = snapshot_download(model_id, allow_patterns=[*FILES, *OPTIONAL], **known)
        except Exception as fault:
            raise _not_given(model_id, fault) from fault
        return cls(folder)

    def save_pretrained(
        self, save_directory: str | Path, *, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Publish the packed files as a folder that is new, empty or an export, all or none.

        Raises:
            ConfigError: options of a push without one.
            ExportError: it holds something else, which stays; the export lacks a file.
        """
        if odd := options.keys() - {"config", "model_card_kwargs"} if not push_to_hub else ():
            raise ConfigError(f"{listed(odd)} not allowed: options of push_to_hub=True")
        target = Path(save_directory)
        if not (target.exists() and target.samefile(self.folder)):
            with staged(target, EXPORT, overwrite=True) as stage:
                for name in _files(self.folder):
                    stage.write(name, (self.folder / name).read_bytes())
        if not push_to_hub:
            return None
        return push(self.folder, options.pop("repo_id", None) or target.name, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish it under a name, as `push` does."""
        return push(self.folder, repo_id, **options)


def _not_given(name: str | Path, fault: Exception) -> ExportError:
    what = f"{shown(str(name))} is no folder here, and the hub did not give it: "
    return ExportError(what + shown(str(fault), 200))


def _files(folder: Path) -> list[str]:
    if lost := [name for name in FILES if not (folder / name).is_file()]:
        raise ExportError(f"{name_of(folder)} lacks {listed(lost)}: export it again")
    return [*FILES, *(name for name in OPTIONAL if (folder / name).is_file())]


def push(
    folder: str | Path,
    name: str,
    *,
    private: bool = False,
    license: str = "",
    token: str | None = None,
    commit_message: str = "Publish a ticket",
) -> str:
    """Publish an export on the Hugging Face hub (``HF_ENDPOINT``), as one commit.

    Absolute paths in its provenance are cut to their last part. The tensors stay bit for bit.

    Args:
        folder: the export.
        name: OWNER/NAME of the repository; it is made where it is missing.
        private: whether the owner alone sees a new one.
        license: of the weights, in the hub's words, such as "mit"; none keeps what the card says.
        token: as `huggingface_hub` takes it; None is that of the login. It is in no message.
        commit_message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: a licence of other characters than those words have.
        ExportError: no export, or the hub refuses, or does not answer.
    """
    check_license(license)
    try:
        packed, source = read_packed(folder), Path(folder)
    except ExportError as fault:
        raise ExportError(f"{fault}; push takes a folder that export wrote") from fault
    about, found = packed.ticket, _scrubbed(packed.ticket.provenance)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with TemporaryDirectory() as place:
        with staged(Path(place) / "export", EXPORT) as stage:
            clean = Ticket(about.mask, about.tensors, found)
            write_packed(stage, clean, packed.precision, _scrubbed(packed.about))
            for file in _files(source):
                if file not in (CONFIG, TENSORS, CARD):
                    stage.write(file, (source / file).read_bytes())
            card = _scrubbed((source / CARD).read_text("utf-8")).replace("THIS_FOLDER", name)
            card = card.replace("import load_exported", "import from_pretrained")
            card = card.replace("load_exported(", "from_pretrained(")
            stage.write(CARD, licensed(card, license).encode())
        try:
            repo = api.create_repo(name, private=private, exist_ok=True).repo_id
            folder = Path(place) / "export"
            sent = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=commit_message
            )
            return str(sent.commit_url)
        except Exception as fault:  # of the hub, or of the client that finds none
            said, told = shown(str(fault).partition("\n")[0], 200), f"the hub refuses {shown(name)}"
            kinds = {kind.__name__ for kind in type(fault).__mro__}  # of the client's own HTTP
            if kinds & {"TransportError", "ConnectionError"}:
                told = f"the hub {api.endpoint} does not answer"
            raise ExportError(f"{told}: {said}") from fault


def _scrubbed(value: Any) -> Any:
    """The same JSON, or text, with the last part of each absolute path; names of classes stay."""
    if isinstance(value, dict):
        return {key: own if key == "classes" else _scrubbed(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(own) for own in value]
    return ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def from_pretrained(place: str | Path, **options: Any) -> HubTicket:
    """Load an export, ready to predict: its folder, or its name OWNER/NAME on the hub.

    A name that comes with this package, such as spikformer_digits, needs no network. `options` are
    those of `huggingface_hub.PyTorchModelHubMixin.from_pretrained`: revision, token, cache_dir,
    force_download, local_files_only.

    Raises:
        ExportError: neither a folder nor on the hub, or files that were changed.
    """
    if not isinstance(place, str | Path):
        raise ExportError(f"place={shown(place)} is not allowed: a folder, or OWNER/NAME")
    folder = shipped(place) or place
    if "/" not in str(place) and not Path(folder).exists():
        names = [path.name for path in SHIPPED.iterdir()]
        rule = f"{near(str(place), names) or ';'} a name of the hub is OWNER/NAME"
        raise ExportError(f"{shown(str(place))} is no folder here{rule}")
    try:
        found: HubTicket = HubTicket.from_pretrained(folder, **options)
    except SpikeformerError:
        raise
    except Exception as fault:  # of the client
        raise _not_given(place, fault) from fault
    return found
