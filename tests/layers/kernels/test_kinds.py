"""One ticket under other kinds of kernels: its accuracy, and masks from given scores."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KINDS = {
    "as found": {},
    "AVX2": {
        "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
    "torch": {"SPIKEFORMER_KERNELS": "torch"},
    "numba": {"SPIKEFORMER_KERNELS": "numba"},
}  # fmt: skip
CODE = """
import json
import torch
from spikeformer_lt import Mask, create_dataset, load_exported
from spikeformer_lt.images.loader import eval_loader

torch.set_num_threads(1)
model = load_exported("docs/results/digits-ticket").eval()
right = count = 0
with torch.no_grad():
    for images, labels, *_ in eval_loader(create_dataset("digits", image_size=16).test, 64):
        right += int((model(images).mean(1).argmax(1) == labels).sum())
        count += len(labels)
generator = torch.Generator().manual_seed(0)
shapes = {"a": (64, 48, 3, 3), "b": (300, 70)}
drawn = {n: torch.randn(s, generator=generator).mul(8).round() for n, s in shapes.items()}
masks = [Mask.from_scores(drawn, 0.9, scope=scope).sha256 for scope in ("global", "layer")]
print(json.dumps({"right": right, "count": count, "masks": masks}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault(98)
def test_a_ticket_keeps_its_accuracy_and_scores_their_mask(tmp_path: Path) -> None:
    found = {}
    for kind, variables in KINDS.items():
        env = {**os.environ, **variables, "NUMBA_CACHE_DIR": str(tmp_path / kind)}
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (kind, done.stderr[-3000:])
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    card = json.loads((ROOT / "docs/results/digits-ticket/config.json").read_text("utf-8"))
    said = card["about"]["test_accuracy_of_this_file"] / 100
    for kind, row in found.items():
        assert row["masks"] == found["torch"]["masks"], kind
        # The 95 % interval of Wilson around the accuracy on the card.
        n, z = row["count"], 1.96
        centre = (said + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(said * (1 - said) / n + z * z / (4 * n * n))
        assert abs(row["right"] / n - centre) < half, (kind, row)
