"""Writers of event files in their true forms, for tests of the readers; loaded by path."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from spikeformer_lt.events.recording import make_events
from spikeformer_lt.export import to_input
from spikeformer_lt.images.loader import eval_loader, train_loader
from spikeformer_lt.training.experiment import DataConfig, augmentation

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


def write_aedat2(path: Path, events, special=(), chip=""):
    """jAER's DVS128 or DAVIS: big-endian address and time; `special` positions are no pixel's."""
    words = np.empty(len(events), [("address", ">u4"), ("clock", ">u4")])
    davis = "davis" in chip.lower()
    x, y, p = (events[name].astype(np.uint32) for name in ("x", "y", "p"))
    address = (y << 22) | (x << 12) | (p << 11) if davis else (y << 8) | (x << 1) | p
    address[list(special)] |= 0x80000000 if davis else 0x8000
    words["address"] = address
    words["clock"] = events["t_us"] % 2**32
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f"# AEChip: {chip}\r\n".encode() if chip else b""
    path.write_bytes(AEDAT2_HEADER + line + words.tobytes())


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


AEDAT4_STREAM = """<node name="{number}" path="/mainloop/Recorder/outInfo/{number}/">
<attr key="compression" type="string">NONE</attr>
<attr key="originalModuleName" type="string">capture</attr>
<attr key="originalOutputName" type="string">events</attr>
<attr key="typeDescription" type="string">Array of events (polarity ON/OFF).</attr>
<attr key="typeIdentifier" type="string">{kind}</attr>
<node name="info" path="/mainloop/Recorder/outInfo/{number}/info/">
<attr key="sizeX" type="int">{width}</attr><attr key="sizeY" type="int">{height}</attr>
<attr key="source" type="string">DVS128</attr></node></node>"""
PACKINGS = {"none": 0, "lz4": 1, "zstd": 3}


def packed(data: bytes, packing: str) -> bytes:
    """The bytes of a packet as DV packs them."""
    if packing == "lz4":
        import lz4.frame

        return lz4.frame.compress(data)
    if packing == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return data


def write_aedat4(
    path: Path, events, packet=400, width=128, height=128, packing="none", index=False,
    number=None, streams=("EVTS",),
):  # fmt: skip
    """DV's form: its FlatBuffers are few enough to be laid out by hand.

    `index` appends an index of packets, as DV does when it closes a recording; `number` overrules
    the header's number of the packing; the packets take the `streams` in turn.
    """
    told = [
        AEDAT4_STREAM.format(number=i, kind=kind, width=width, height=height)
        for i, kind in enumerate(streams)
    ]
    info = '<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
    info = f"{info}{''.join(told)}</node></dv>".encode()
    header = struct.pack("<I4s", 20, b"IOHE")  # root at 20
    header += struct.pack("<5H2x", 10, 20, 4, 12, 8)  # vtable at 8
    number = PACKINGS[packing] if number is None else number
    header += struct.pack("<iiIq", 12, number, 12, -1)  # table: packing, text at 40, no index
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
    for turn, first in enumerate(range(0, len(events), packet)):
        part = events[first : first + packet]
        rows = np.zeros(len(part), kind)
        for theirs, ours in (("t", "t_us"), ("x", "x"), ("y", "y"), ("on", "p")):
            rows[theirs] = part[ours]
        body = struct.pack("<I4s", 16, b"EVTS") + struct.pack("<3H2x", 6, 8, 4)
        body += struct.pack("<iI", 8, 8) + bytes(4)  # table at 16, vector at 28
        body += struct.pack("<I", len(part)) + rows.tobytes()
        body = packed(struct.pack("<I", len(body)) + body, packing)
        out.append(struct.pack("<II", turn % len(streams), len(body)) + body)
    whole = bytearray(b"".join(out))
    if index:
        place = 18 + 20 + 12  # of the table's field
        whole[place : place + 8] = struct.pack("<q", len(whole))
        whole += packed(bytes(range(200)), packing)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole)


def write_evt2(path: Path, events):
    """Prophesee's EVT 2.0: words of 32 bits, the upper bits of the time in words of their own."""
    words = []
    upper = None
    for x, y, p, t in events.tolist():
        if t >> 6 != upper:
            upper = t >> 6
            words.append(8 << 28 | (upper & 0xFFFFFFF))
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
        if len(words) % 50 == 0:
            words.append(0xA << 28 | (t & 63) << 22)  # a trigger
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"% date 2024-01-01\n% evt 2.0\n% geometry 1280x720\n% end\n"
    path.write_bytes(header + np.array(words, "<u4").tobytes())


def write_evt3(path: Path, events):
    """EVT 3.0: 16-bit words; events of one row, time and sign within 12 columns make a vector."""
    words, high, low, row = [], None, None, None
    rows = events.tolist()
    i = 0
    while i < len(rows):
        x, y, p, t = rows[i]
        if t >> 12 != high:
            high, low = t >> 12, None if t & 0xFFF else 0
            words.append(8 << 12 | (high & 0xFFF))
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(6 << 12 | low)
        if y != row:
            row = y
            words.append(y)
        last = i
        while last + 1 < len(rows) and rows[last + 1][1:] == (y, p, t):
            if not rows[last][0] < rows[last + 1][0] < x + 20:
                break
            last += 1
        if last == i:
            words.append(2 << 12 | p << 11 | x)
        else:
            bits = sum(1 << (rows[j][0] - x) for j in range(i, last + 1))
            words += [3 << 12 | p << 11 | x, 4 << 12 | (bits & 0xFFF), 5 << 12 | bits >> 12]
        i = last + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"% evt 3.0\n% end\n" + np.array(words, "<u2").tobytes())


def write_dat(path: Path, events):
    """Prophesee's .dat: eight bytes an event after two of their kind and size."""
    words = np.empty(len(events), [("clock", "<u4"), ("data", "<u4")])
    x, y, p = (events[name].astype(np.uint32) for name in ("x", "y", "p"))
    words["clock"], words["data"] = events["t_us"] % 2**32, x | y << 14 | p << 28
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"% Data file containing Event2D events.\n% Version 2\n"
    path.write_bytes(header + bytes([12, 8]) + words.tobytes())


def write_txt(path: Path, events):
    """Lines of the Event Camera Dataset: seconds, column, row, polarity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f"{t / 1e6:.6f} {x} {y} {p}\n" for x, y, p, t in events.tolist())
    path.write_text("# made up\n" + "".join(rows))


def write_npz(path: Path, events):
    """Columns, as spikingjelly writes DVS128 Gesture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: events[ours] for name, ours in zip("xypt", events.dtype.names, strict=True)}
    np.savez_compressed(path, **columns)


def write_hdf5(path: Path, events, group="events", table=False):
    """Columns in a group, or a table with fields."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as store:
        if table:
            kinds = [("x", "<u2"), ("y", "<u2"), ("p", "u1"), ("t", "<i8")]
            store[group] = np.array(events.tolist(), kinds)
            return
        for name, ours in zip("xypt", events.dtype.names, strict=True):
            path = f"{group}/{name}"
            store.create_dataset(path, data=events[ours], compression="gzip")


def same_from_files(splits) -> bool:
    """Whether the files of a set, given to a ticket's preprocess, become the frames of the set."""
    test = splits.test
    return all(
        torch.equal(to_input(test.source.root / sample.path, splits.preprocess)[0], test[i][0])
        for i, sample in enumerate(test.samples[:3])
    )


def ranks_share(splits, batch=3) -> bool:
    """Whether two ranks train on the batches of one process, and test each sample once, alike."""
    augment, _ = augmentation(DataConfig(), splits)

    def taken(batch, **rank):
        train = train_loader(splits.train, augment, batch, 1, 0, **rank)
        test = eval_loader(splits.test, batch, **rank)
        return list(train), {
            int(i): (image, label)
            for images, labels, places in test
            for image, label, i in zip(images, labels, places, strict=True)
        }

    whole, tested = taken(2 * batch)
    (one, few), (other, rest) = (taken(batch, rank=r, world_size=2, workers=r) for r in (0, 1))
    together = [map(torch.cat, zip(*pair, strict=True)) for pair in zip(one, other, strict=True)]
    assert whole and not few.keys() & rest.keys() and tested.keys() == few.keys() | rest.keys()
    pairs = [*zip(whole, together, strict=True), *((tested[i], (few | rest)[i]) for i in tested)]
    return all(all(map(torch.equal, a, b)) for a, b in pairs)
