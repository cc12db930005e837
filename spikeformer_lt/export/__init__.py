"""Tickets as packed files, compact networks and graphs."""

from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy

if TYPE_CHECKING:
    from spikeformer_lt.export.api import Check as Check
    from spikeformer_lt.export.api import Exported as Exported
    from spikeformer_lt.export.api import Size as Size
    from spikeformer_lt.export.api import export_run as export_run
    from spikeformer_lt.export.api import export_ticket as export_ticket
    from spikeformer_lt.export.api import load_exported as load_exported
    from spikeformer_lt.export.api import read_ticket as read_ticket
    from spikeformer_lt.export.api import size_table as size_table
    from spikeformer_lt.export.api import spike_mismatch as spike_mismatch
    from spikeformer_lt.export.graphs import to_nir as to_nir
    from spikeformer_lt.export.graphs import to_onnx as to_onnx
    from spikeformer_lt.export.graphs import to_pt2 as to_pt2
    from spikeformer_lt.export.graphs import write_graph as write_graph
    from spikeformer_lt.export.hub import HubTicket as HubTicket
    from spikeformer_lt.export.inference import CompactModel as CompactModel
    from spikeformer_lt.export.inference import compact as compact
    from spikeformer_lt.export.streaming import Stream as Stream
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
