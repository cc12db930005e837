"""Tickets as packed files, compact networks and graphs."""

from typing import TYPE_CHECKING

from spikeformer_lt.runtime import lazy

__all__ = [
    "Check", "CompactModel", "Decision", "EventStream", "Exported", "HubTicket", "Prediction",
    "Preprocess", "Recordings", "Size", "Stream", "compact", "export_run", "export_ticket",
    "from_pretrained", "load_exported", "packed_bytes", "predict", "pretrained_model", "push",
    "read_ticket", "shipped", "size_table", "spike_mismatch", "to_input", "to_nir", "to_onnx",
    "to_pt2", "write_graph",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.export.api import (
        Check,
        Exported,
        Size,
        export_run,
        export_ticket,
        load_exported,
        packed_bytes,
        pretrained_model,
        read_ticket,
        size_table,
        spike_mismatch,
    )
    from spikeformer_lt.export.graphs import to_nir, to_onnx, to_pt2, write_graph
    from spikeformer_lt.export.hub import HubTicket, from_pretrained, push
    from spikeformer_lt.export.inference import CompactModel, compact
    from spikeformer_lt.export.prediction import Prediction, predict, to_input
    from spikeformer_lt.export.streaming import Decision, EventStream, Stream
    from spikeformer_lt.named import shipped
    from spikeformer_lt.preprocess import Preprocess, Recordings
else:
    __getattr__, __dir__ = lazy(__name__)
