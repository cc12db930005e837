"""Settings of a run refuse what cannot be trained."""

from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.options import TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0), ("eval_batch_size", 0), ("accumulate", 0), ("validate_every", 0),
        ("skip_limit", 0), ("workers", -1), ("checkpoint_steps", -1), ("threads", -2),
        ("ema_decay", 1.0), ("ema_decay", float("nan")), ("loss", "mse"), ("nonfinite", "ignore"),
        ("mixed_precision", "fp16"),
    ],
)  # fmt: skip
@pytest.mark.fault(35)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"train.{field}"):
        TrainConfig(**{field: value})


def test_fp16_is_refused_with_its_reason():
    with pytest.raises(ConfigError, match="overflows"):
        TrainConfig(mixed_precision="fp16")
