"""Writers of event files in their true forms, for tests of the readers; loaded by path."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from spikeformer_lt.events.recording import make_events

AEDAT2_HEADER = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n# created Wed Nov 09 10:25:38 CST 2016\r\n"
)
AEDAT31_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-04-28 14:22:05 (TZ+0200)\r\n#!END-HEADER\r\n"
)


def some_events(count=1000, height=128, width=128, span_us=1_000_000, seed=0):
    """Valid random events in time order, from time 0 or a little later."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, span_us, count))
    return make_events(
        rng.integers(0, width, count),
        rng.integers(0, height, count),
        rng.integers(0, 2, count),
        times,
    )


def write_npy(path: Path, events, ticks=1, columns=("x", "y", "p", "t_us"), dtype=np.int32):
    """A plain [N, 4] array, as tonic's DVS128 Gesture (ticks=1000) and Poker-DVS have it."""
    scaled = {name: events[name].astype(np.int64) for name in columns}
    scaled["t_us"] //= ticks
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.stack([scaled[name] for name in columns], 1).astype(dtype))


def write_aedat2(path: Path, events, special=()):
    """jAER's DVS128: big-endian address and time; `special` positions become sync pulses."""
    words = np.empty(len(events), [("address", ">u4"), ("clock", ">u4")])
    address = events["p"].astype(np.uint32) | (events["x"].astype(np.uint32) << 1)
    address |= events["y"].astype(np.uint32) << 8
    address[list(special)] |= 0x8000
    words["address"] = address
    words["clock"] = events["t_us"] % 2**32
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(AEDAT2_HEADER + words.tobytes())


def write_aedat31(path: Path, events, packet=300, invalid=(), other=True):
    """Packets of `packet` events, and between them packets of another type (IMU, 36 bytes each)."""
    data = np.empty(len(events), [("data", "<u4"), ("clock", "<u4")])
    data["data"] = 1 | (events["p"].astype(np.uint32) << 1)
    data["data"] |= (events["y"].astype(np.uint32) << 2) | (events["x"].astype(np.uint32) << 17)
    data["data"][list(invalid)] &= 0xFFFFFFFE
    data["clock"] = events["t_us"] & 0x7FFFFFFF
    turns = events["t_us"] >> 31
    out = [AEDAT31_HEADER]
    first = 0
    while first < len(events):
        last = min(first + packet, int(np.searchsorted(turns, turns[first], side="right")))
        n = last - first
        out.append(struct.pack("<hhiiiiii", 1, 1, 8, 4, int(turns[first]), n, n, n))
        out.append(data[first:last].tobytes())
        if other:
            out.append(struct.pack("<hhiiiiii", 3, 1, 36, 4, 0, 2, 2, 2) + bytes(72))
        first = last
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(out))


def write_bin(path: Path, events, overflow_every=0):
    """ATIS: 5 bytes an event; with `overflow_every`, times are written as a clock of 13 bits."""
    rows = []
    clock = 0
    for x, y, p, t in events.tolist():
        while overflow_every and t - clock >= 2**13:
            rows.append((0, 240, 0, 0, 0))
            clock += 2**13
        left = t - clock if overflow_every else t
        rows.append((x, y, (p << 7) | (left >> 16), (left >> 8) & 255, left & 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.array(rows, np.uint8).reshape(-1, 5).tobytes())


AEDAT4_INFO = """<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">
<node name="0" path="/mainloop/Recorder/outInfo/0/">
<attr key="compression" type="string">NONE</attr>
<attr key="originalModuleName" type="string">capture</attr>
<attr key="originalOutputName" type="string">events</attr>
<attr key="typeDescription" type="string">Array of events (polarity ON/OFF).</attr>
<attr key="typeIdentifier" type="string">EVTS</attr>
<node name="info" path="/mainloop/Recorder/outInfo/0/info/">
<attr key="sizeX" type="int">{width}</attr><attr key="sizeY" type="int">{height}</attr>
<attr key="source" type="string">DVS128</attr></node></node></node></dv>"""


def write_aedat4(path: Path, events, packet=400, width=128, height=128):
    """DV's form without compression: its FlatBuffers are few enough to be laid out by hand."""
    info = AEDAT4_INFO.format(width=width, height=height).encode()
    header = struct.pack("<I4s", 20, b"IOHE")  # root at 20
    header += struct.pack("<5H2x", 10, 20, 4, 12, 8)  # vtable at 8
    header += struct.pack("<iiIq", 12, 0, 12, -1)  # table: no compression, text at 40, no index
    header += struct.pack("<I", len(info)) + info + b"\0"
    header += bytes(-len(header) % 8)
    out = [b"#!AER-DAT4.0\r\n", struct.pack("<I", len(header)), header]
    kind = np.dtype(
        {
            "names": ["t", "x", "y", "on"],
            "formats": ["<i8", "<i2", "<i2", "u1"],
            "offsets": [0, 8, 10, 12],
            "itemsize": 16,
        }
    )
    for first in range(0, len(events), packet):
        part = events[first : first + packet]
        rows = np.zeros(len(part), kind)
        for theirs, ours in (("t", "t_us"), ("x", "x"), ("y", "y"), ("on", "p")):
            rows[theirs] = part[ours]
        body = struct.pack("<I4s", 16, b"EVTS") + struct.pack("<3H2x", 6, 8, 4)
        body += struct.pack("<iI", 8, 8) + bytes(4)  # table at 16, vector at 28
        body += struct.pack("<I", len(part)) + rows.tobytes()
        body = struct.pack("<I", len(body)) + body
        out.append(struct.pack("<II", 0, len(body)) + body)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(out))
