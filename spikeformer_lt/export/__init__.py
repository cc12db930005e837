"""Tickets that are really smaller and really faster: packed files, compact runtime, graphs."""

from __future__ import annotations

from spikeformer_lt.export.api import Exported as Exported
from spikeformer_lt.export.api import export_ticket as export_ticket
from spikeformer_lt.export.api import load_exported as load_exported
from spikeformer_lt.export.api import read_ticket as read_ticket
