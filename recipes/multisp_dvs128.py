"""Train a spiking transformer into a MultiSp ticket on recordings of an event camera.

accelerate launch recipes/multisp_dvs128.py                               # DVS128 Gesture in ./data
accelerate launch recipes/multisp_dvs128.py --data.name moving_digits     # embedded, no download
accelerate launch recipes/multisp_dvs128.py --data.name moving_gestures   # simulated gestures, too
accelerate launch recipes/multisp_dvs128.py --data.values binary          # spikes in, too

Defaults are Spikformer's for DVS128 Gesture: 2-256, T 16, 16x16 patches, 192 epochs and 10 more at
the last learning rate. Where DVS128 Gesture is not on disk, the embedded moving
digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import EVENTS_SMALL as SMALL
from spikeformer_lt.cli import EventRecipe, find
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import MultiSpConfig


@dataclass(frozen=True)
class MultiSpDvs128(EventRecipe):
    """MultiSp on event recordings: patch, ConvPEP-weight and ConvPEP-activation sparsity."""

    multisp: MultiSpConfig = field(
        default_factory=lambda: MultiSpConfig(epochs=202, stem_epochs=100)
    )


def main(cfg: MultiSpDvs128) -> None:
    """Search, save the ticket, test once, write the report."""
    find(cfg, "multisp", SMALL, fallback="moving_digits", wanted="dvs128_gesture")


if __name__ == "__main__":
    run_recipe(main, MultiSpDvs128)
