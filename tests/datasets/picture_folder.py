"""A small picture folder in the form of Tiny-ImageNet, and its zip."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from spikeformer_lt.datasets.tiny_imagenet import PictureFolders
from spikeformer_lt.published import Archive

CLASSES = ("n03", "n01", "n02")
PER_CLASS = 11  # beyond 9, where names sorted as text would go astray
TEST = 7


def jpeg(grey: int, side: int = 8, mode: str = "RGB") -> bytes:
    """A picture of one colour, which JPEG keeps exactly."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), grey, np.uint8)).convert(mode).save(file, "JPEG")
    return file.getvalue()


def contents() -> dict[str, bytes]:
    """{path below the folder: bytes}: the grey value tells class and number."""
    out = {"wnids.txt": "".join(f"{wnid}\n" for wnid in CLASSES).encode()}
    for number, wnid in enumerate(sorted(CLASSES)):
        for i in range(PER_CLASS):
            mode = "L" if i == 3 else "RGB"
            out[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(50 * number + i, mode=mode)
        out[f"train/{wnid}/{wnid}_boxes.txt"] = b"not read"
    lines = [f"val_{i}.JPEG\t{sorted(CLASSES)[i % 3]}\t0\t0\t7\t7\n" for i in range(TEST)]
    out["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    out |= {f"val/images/val_{i}.JPEG": jpeg(200 + i) for i in range(TEST)}
    out["test/images/test_0.JPEG"] = b"not read"
    return out


def write_folder(root: Path, files: dict[str, bytes]) -> None:
    """Write the set's folder below `root`."""
    for name, content in files.items():
        path = root / "small-set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_zip(root: Path, files: dict[str, bytes]) -> PictureFolders:
    """Write the set's zip into `root` and return its table."""
    path = root / "small-set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(f"small-set/{name}", content)
    return table(path.read_bytes())


def table(archive: bytes = b"") -> PictureFolders:
    """What the set consists of."""
    md5 = hashlib.md5(archive).hexdigest()
    return PictureFolders(
        name="small",
        folder="small-set",
        archive=Archive(
            *("small-set.zip", len(archive), md5),
            url="https://example.invalid/small-set.zip",
            unpacked=1_000_000,
            members=100,
        ),
        num_classes=3,
        per_class=PER_CLASS,
        test_count=TEST,
        sizes=(8,),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )
