"""Exports on the Hugging Face hub: from_pretrained and save_pretrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, snapshot_download

from spikeformer_lt.bundle import staged
from spikeformer_lt.errors import ExportError, shown
from spikeformer_lt.export.api import SHIPPED
from spikeformer_lt.export.file import CARD, CONFIG, EXPORT, TENSORS, read_packed
from spikeformer_lt.export.inference import CompactModel, compact
from spikeformer_lt.tickets.surgery import model_from_ticket

FILES = (CONFIG, TENSORS, CARD)
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
        self.folder = Path(folder)
        self.eval()

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubTicket:
        if Path(model_id).is_dir():
            return cls(model_id)
        known = {name: options[name] for name in DOWNLOAD if name in options}
        try:
            folder = snapshot_download(model_id, allow_patterns=list(FILES), **known)
        except Exception as fault:
            what = f"{shown(model_id)} is no folder here, and the hub did not give it: "
            raise ExportError(what + shown(str(fault), 200)) from fault
        return cls(folder)

    def save_pretrained(
        self, save_directory: str | Path, *, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Publish the packed files as a folder that is new, empty or an export, all or none.

        Raises:
            ExportError: it holds something else, which stays.
        """
        target = Path(save_directory)
        if not (target.exists() and target.samefile(self.folder)):
            with staged(target, EXPORT, overwrite=True) as stage:
                for name in FILES:
                    stage.write(name, (self.folder / name).read_bytes())
        if not push_to_hub:
            return None
        return str(self.push_to_hub(options.pop("repo_id", None) or target.name, **options))


def from_pretrained(place: str | Path, **options: Any) -> HubTicket:
    """Load an export, ready to predict: its folder, or its name OWNER/NAME on the hub.

    A name that comes with this package, such as spikformer_digits, needs no network. `options` are
    those of `huggingface_hub.PyTorchModelHubMixin.from_pretrained`: revision, token, cache_dir,
    force_download, local_files_only.

    Raises:
        ExportError: neither a folder nor on the hub, or files that were changed.
    """
    shipped = SHIPPED / str(place)
    found: HubTicket = HubTicket.from_pretrained(shipped if shipped.is_dir() else place, **options)
    return found
