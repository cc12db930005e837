"""Every form of recordings that is read: by whom else, written by whom, damaged, in what memory.

The table in docs/events.md is written from TABLE: python tests/events/test_forms.py --write.
"""

from __future__ import annotations

import importlib
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.formats import FORMS as READ
from spikeformer_lt.events.formats import FileReader, form_of
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.events.recording import LARGEST_SIDE, Sensor
from spikeformer_lt.events.split import Sample
from spikeformer_lt.events.validate import validate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "events.md"
Columns = dict[str, Any]


def columns(table: Any, **names: str) -> Columns:
    """Columns x, y, p and t_us of what another reader gives."""
    own = {"x": "x", "y": "y", "p": "p", "t_us": "t", **names}
    return {ours: np.asarray(table[theirs]).astype(np.int64) for ours, theirs in own.items()}


# -- readers of others -------------------------------------------------------------------


def by_tonic_dvs128(path: Path) -> Columns:
    start = path.read_bytes().index(b"CST 2016\r\n") + 10
    words = tonic_io().get_aer_events_from_file(path, 2.0, start)  # read_dvs_128 raises in 1.7.0
    address = words["address"]
    table = {"x": address >> 1 & 0x7F, "y": address >> 8 & 0x7F, "p": address & 1}
    return columns({**table, "t": words["timeStamp"]})


def by_tonic_davis(path: Path) -> Columns:
    found = columns(tonic_io().read_davis_346(path)[2])
    return {**found, "x": 345 - found["x"], "y": 259 - found["y"]}  # it turns the picture


def by_tonic_words(path: Path) -> Columns:
    start = path.read_bytes().index(b"#!END-HEADER\r\n") + 14
    words = tonic_io().get_aer_events_from_file(path, 3.1, start)
    address = words["address"]
    table = {"x": address >> 17, "y": address >> 2 & 0x7FFF, "p": address >> 1 & 1}
    return columns({**table, "t": words["timeStamp"]})


def by_tonic_bin(path: Path) -> Columns:
    return columns(tonic_io().read_mnist_file(path, np.dtype([(n, int) for n in "xytp"])))


def tonic_io() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("tonic.io")


def by_aedat(path: Path) -> Columns:
    packets = importlib.import_module("aedat").Decoder(str(path))
    return columns(np.concatenate([p["events"] for p in packets if "events" in p]), p="on")


def by_expelliarmus(path: Path) -> Columns:
    kind = "dat" if path.suffix == ".dat" else "evt2"
    return columns(importlib.import_module("expelliarmus").Wizard(encoding=kind).read(path))


def by_evlib(path: Path) -> Columns:
    found = importlib.import_module("evlib").load_events(str(path), sort=False).collect()
    table = {name: found[name].to_numpy() for name in "xy"}
    table["t"] = found["t"].dt.total_microseconds().to_numpy()
    return columns({**table, "p": found["polarity"].to_numpy() > 0})


def by_numpy(path: Path) -> Columns:
    found = np.loadtxt(path) if path.suffix == ".txt" else np.load(path)
    if path.suffix == ".txt":
        found = np.rint(found * [1e6, 1, 1, 1])[:, [1, 2, 3, 0]]
    return columns(found if path.suffix == ".npz" else dict(zip("xypt", found.T, strict=True)))


def by_h5py(path: Path) -> Columns:
    with importlib.import_module("h5py").File(path) as store:
        table = store["events"] if "events" in store else store["CD/events"]
        return columns({name: table[name][()] for name in "xypt"})


# -- writers of others -------------------------------------------------------------------


def to_dv(path: Path, events: Any) -> None:
    dv = importlib.import_module("dv_processing")
    config = dv.io.MonoCameraWriter.Config("DVXplorer_sample")
    config.addEventStream((128, 128))
    store = dv.EventStore()
    for x, y, p, t in events.tolist():
        store.push_back(t, x, y, bool(p))
    writer = dv.io.MonoCameraWriter(str(path), config)
    writer.writeEvents(store)
    del writer


def to_expelliarmus(path: Path, events: Any, kind: str) -> None:
    rows = np.empty(len(events), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
    for theirs, ours in (("t", "t_us"), ("x", "x"), ("y", "y"), ("p", "p")):
        rows[theirs] = events[ours]
    importlib.import_module("expelliarmus").Wizard(encoding=kind).save(path, rows)


def to_evlib(path: Path, events: Any) -> None:
    evlib = importlib.import_module("evlib")
    save = evlib.save_events_to_text if path.suffix == ".txt" else evlib.save_events_to_hdf5
    x, y, p = (events[name].astype(np.int64) for name in ("x", "y", "p"))
    save(x, y, events["t_us"] / 1e6, p, str(path))


def to_numpy(path: Path, events: Any) -> None:
    table = {name: events[ours] for name, ours in zip("xypt", events.dtype.names, strict=True)}
    if path.suffix == ".npz":
        np.savez(path, **table)
    else:
        np.save(path, np.stack([column.astype("i8") for column in table.values()], 1))


@dataclass(frozen=True)
class Form:
    """A form of files: how our tests write it, and who else reads and writes it."""

    write: str  # of tests/event_files.py
    name: str
    form: str
    sample: str = "none here"  # a recording of a camera, that a test reads
    reader: tuple[str, Callable[[Path], Columns]] | None = None
    writer: tuple[str, Callable[[Path, Any], None]] | None = None
    differs: str = ""  # column in which the other writer's files differ, and why
    packs: str = "cannot pack"  # what is said of a file that unpacks to far more than its size
    any_bytes: str = ""  # what other content is taken for, where the form has nothing to tell it by
    size: tuple[int, int] = (128, 128)


BOMB = "refused"  # by tests of test_aedat.py and test_formats.py


def _evt(kind: str) -> tuple[str, Callable[[Path, Any], None]]:
    return "expelliarmus", lambda path, events: to_expelliarmus(path, events, kind)


TABLE = {
    "AEDAT 2, DVS128": Form("aedat2", "a.aedat", "aedat2", reader=("tonic", by_tonic_dvs128)),
    "AEDAT 2, DAVIS": Form(
        "aedat2_davis", "a.aedat", "aedat2", reader=("tonic", by_tonic_davis), size=(260, 346)
    ),
    "AEDAT 3.1": Form("aedat31", "a.aedat", "aedat31", reader=("tonic", by_tonic_words)),
    "AEDAT 4": Form(
        "aedat4", "a.aedat4", "aedat4", reader=("aedat", by_aedat),
        writer=("dv_processing", to_dv), packs=BOMB,
    ),
    "EVT 2.0": Form(
        "evt2", "a.raw", "raw", reader=("expelliarmus", by_expelliarmus), writer=_evt("evt2")
    ),
    "EVT 3.0": Form(
        "evt3", "a.raw", "raw", "219,596 events", ("evlib", by_evlib), _evt("evt3"),
        "t_us: expelliarmus 1.1.12 writes jumps of 8,192 us",
        packs="12 events for 2 bytes at most",
    ),
    "Prophesee .dat": Form(
        "dat", "a.dat", "dat", "2,009 events", ("expelliarmus", by_expelliarmus), _evt("dat")
    ),
    "ATIS (.bin, .bs2)": Form(
        "bin", "a.BS2", "bin", reader=("tonic", by_tonic_bin), any_bytes="zeros"
    ),
    "HDF5, events/x": Form(
        "hdf5", "a.h5", "hdf5", reader=("h5py", by_h5py), writer=("evlib", to_evlib),
        packs=BOMB,
    ),
    "HDF5, CD/events": Form(
        "hdf5_table", "a.hdf5", "hdf5", reader=("h5py", by_h5py), packs=BOMB
    ),
    ".npy": Form(
        "npy", "a.npy", "npy", "Poker-DVS", ("numpy", by_numpy), ("numpy", to_numpy)
    ),
    ".npz": Form(
        "npz", "a.npz", "npz", reader=("numpy", by_numpy), writer=("numpy", to_numpy),
        packs=BOMB,
    ),
    ".txt": Form("txt", "a.txt", "txt", reader=("numpy", by_numpy), writer=("evlib", to_evlib)),
}  # fmt: skip
every_form = pytest.mark.parametrize("form", TABLE.values(), ids=TABLE)


@pytest.fixture
def write(files):
    """Writes events in a form."""

    def written(form: Form, path: Path, events: Any) -> Path:
        kind, _, how = form.write.partition("_")
        own = {
            "davis": {"chip": "eu.seebetter.ini.chips.davis.Davis346red"},
            "table": {"group": "CD/events", "table": True},
        }
        getattr(files, f"write_{kind}")(path, events, **own.get(how, {}))
        return path

    return written


@pytest.fixture
def events(files):
    """Events that no form has to round."""
    return lambda form, count=2000: files.some_events(count, *form.size, span_us=100_000)


def read(path: Path, side: int = LARGEST_SIDE) -> Any:
    return validate(FileReader(path.parent, "auto")(Sample(path.name)).events, Sensor(side, side))[
        0
    ]


def same(found: Any, wanted: Any, but: str = "") -> None:
    assert len(found["x"]) == len(wanted["x"])
    for name in ("x", "y", "p", "t_us"):
        if name != but:
            assert np.array_equal(found[name].astype(np.int64), wanted[name].astype(np.int64)), name


def test_the_table_has_every_form():
    assert {*(form.form for form in TABLE.values()), "auto", "cifar10_dvs"} == set(READ)


@every_form
@pytest.mark.fault(81)
def test_a_file_comes_back_event_for_event_and_is_recognised(write, events, tmp_path, form):
    path = write(form, tmp_path / form.name, events(form))
    assert form_of(path) == form.form
    same(read(path), events(form))
    same(FileReader(tmp_path, form.form)(Sample(path.name)).events, events(form))


@every_form
@pytest.mark.fault(81)
def test_another_reader_finds_the_same(write, events, tmp_path, form):
    package, reader = form.reader
    pytest.importorskip(package, reason=f"the package {package} is not installed")
    made = events(form)
    made["y"][0] = 0  # tonic takes a first byte of # for a comment
    made["t_us"] |= 1  # evlib keeps lower bits of an EVT 3 time where openeb clears them
    if form.write == "aedat31":  # tonic passes no packet of another kind over
        made = made[:300]
    path = write(form, tmp_path / form.name, made)
    if form.write == "aedat31":
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.index(struct.pack("<hhi", 3, 1, 36))])
    same(read(path), reader(path))


@pytest.mark.parametrize(
    "form", [f for f in TABLE.values() if f.writer], ids=[n for n, f in TABLE.items() if f.writer]
)
@pytest.mark.fault(81)
def test_files_that_others_write_are_read(events, tmp_path, form):
    package, writer = form.writer
    pytest.importorskip(package, reason=f"the package {package} is not installed")
    path = tmp_path / form.name
    writer(path, events(form))
    found = FileReader(tmp_path, "auto")(Sample(path.name)).events
    same(found, events(form), form.differs.partition(":")[0])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "extent", "span"),
    [
        ("evt3_sample.raw", 219_596, (1280, 720), (11_718_656, 11_727_457)),
        ("sample_ncars.dat", 2_009, (78, 42), (0, 99_952)),
    ],
)
@pytest.mark.fault(81)
def test_recordings_of_cameras_are_read(shared, name, count, extent, span):
    """Counts of the publisher; times of EVT 3 as evlib reads them."""
    path = shared / "data" / "event_files" / name
    if not path.is_file():
        pytest.skip(f"no file {path}")
    events, report = validate(
        FileReader(path.parent, "auto")(Sample(name)).events, Sensor(720, 1280)
    )
    assert len(events) == count and not report.faults and not report.doubt
    assert (events["x"].max() + 1, events["y"].max() + 1) == extent
    assert (events["t_us"][0], events["t_us"][-1]) == span


@every_form
@pytest.mark.fault(24)
def test_a_cut_file_is_refused_or_has_the_first_events(write, events, tmp_path, form):
    path = write(form, tmp_path / form.name, events(form, 300))
    whole, wanted, said = path.read_bytes(), read(path), []
    for cut in np.random.default_rng(0).integers(0, len(whole), 60):
        path.write_bytes(whole[:cut])
        try:
            found = FileReader(tmp_path, "auto")(Sample(path.name)).events
        except DataError as fault:
            said.append(str(fault))
            continue
        assert len(found["x"]) < 300
        same(found, wanted[: len(found["x"])])
    assert said and all(form.name in line and "\n" not in line for line in said)


@pytest.mark.parametrize("turns", [60, pytest.param(3_000, marks=pytest.mark.slow)])
@every_form
@pytest.mark.fault(24, 82)
def test_a_mutated_file_is_read_or_refused_in_one_line(
    write, events, tmp_path, traced, form, turns
):
    """Bits, bytes and lengths are changed: no other error, and memory stays with the file."""
    path = write(form, tmp_path / form.name, events(form, 150))
    whole, reader = path.read_bytes(), FileReader(tmp_path, "auto")
    rng = np.random.default_rng(len(form.write))
    with traced() as peak:
        for turn in range(turns):
            hit = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                place = int(rng.integers(len(hit) if turn % 2 else min(len(hit), 400)))
                match turn % 4:
                    case 0:
                        hit[place] ^= 1 << rng.integers(8)
                    case 1:
                        hit[place : place + 4] = struct.pack("<I", int(rng.integers(2**32)))
                    case 2:
                        hit[place : place + 4] = rng.choice(
                            [b"\xff\xff\xff\x7f", b"\xff" * 4, bytes(4)]
                        )
                    case 3:
                        del hit[place : place + int(rng.integers(1, 9))]
            path.write_bytes(hit)
            try:
                raw = reader(Sample(path.name))
                policy = EventOptions(bad_events="count").policy()
                validate(raw.events, Sensor(*form.size), policy, path.name)
            except DataError as fault:
                message = str(fault)
            else:
                message = ""
            assert "\n" not in message
    assert peak.bytes < 30_000_000


@every_form
def test_memory_follows_the_file_and_its_events(write, events, tmp_path, traced, form):
    """Twenty times the file and twice the events at most, beside what a chunk takes."""
    made = events(form, 40_000)
    path = write(form, tmp_path / form.name, made)
    FileReader(tmp_path, "auto")(Sample(path.name))  # imports what it needs
    with traced() as peak:
        FileReader(tmp_path, "auto")(Sample(path.name))
    assert peak.bytes < 20 * path.stat().st_size + 2 * made.nbytes


GARBAGE = {
    "a web page": b"<!DOCTYPE html>\n<html><body>not found</body></html>\n",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "nothing": b"",
    "zeros": bytes(4000),
    "noise": np.random.default_rng(0).bytes(4001),
    "a text": b"to be or not to be, that is the question\n" * 20,
}


@every_form
@pytest.mark.fault(24)
def test_other_content_is_refused_in_one_line(tmp_path, traced, form):
    path = tmp_path / form.name
    for what, content in GARBAGE.items():
        path.write_bytes(content)
        if what in form.any_bytes:
            assert len(FileReader(tmp_path, "auto")(Sample(path.name)).events["x"])
            continue
        with traced() as peak, pytest.raises(DataError, match=form.name) as fault:
            FileReader(tmp_path, "auto")(Sample(path.name))
        assert "\n" not in str(fault.value) and peak.bytes < 30_000_000, what


def test_vectors_of_evt3_take_what_their_events_take(tmp_path, traced):
    """A word of 2 bytes is 12 events at most, which are held in parts and then together."""
    words = np.full(100_000, 4 << 12 | 0xFFF, "<u2")  # twelve events each
    words[:4] = 8 << 12, 6 << 12, 0 << 12, 3 << 12  # time, row, column 0
    words[4:] = np.where(np.arange(len(words) - 4) % 101, words[4:], 3 << 12)  # back to column 0
    path = tmp_path / "a.raw"
    path.write_bytes(b"% evt 3.0\n% end\n" + words.tobytes())
    with traced() as peak:
        events = FileReader(tmp_path, "auto")(Sample(path.name)).events
    assert len(events) == 12 * np.count_nonzero(words >> 12 == 4)
    assert peak.bytes < 20 * path.stat().st_size + 2 * events.nbytes


# -- the table of docs/events.md ---------------------------------------------------------

COLUMNS = ("form", "recording of a camera", "same as", "written by", "cut", "other content")
COLUMNS += ("made to fill memory", "memory")
HEAD = f"| {' | '.join(COLUMNS)} |\n"
RULE = "|---" * len(COLUMNS) + "|\n"


def table() -> str:
    """The table of docs/events.md: each cell is a test here, or says what there is none of."""
    rows = []
    for name, form in TABLE.items():
        by = form.writer[0] if form.writer else "our tests alone: untested"
        by += f" ({form.differs})" if form.differs else ""
        other = f"refused, but {form.any_bytes} are events" if form.any_bytes else "refused"
        memory = "file x 20, events x 2"
        cells = (
            name,
            form.sample,
            form.reader[0],
            by,
            "refused or first",
            other,
            form.packs,
            memory,
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + RULE + "".join(rows)


def page() -> tuple[str, str]:
    """docs/events.md as it is, and with its table written anew."""
    text = PAGE.read_text("utf-8")
    before, head, after = text.partition(HEAD)
    assert head, f"{PAGE} has lost the head of its table"
    rest = after.partition("\n\n")[2]
    return text, f"{before}{table()}\n{rest}"


def test_the_page_has_the_table():
    found, wanted = page()
    assert found == wanted, "python tests/events/test_forms.py --write"


if __name__ == "__main__" and "--write" in sys.argv:
    PAGE.write_text(page()[1], "utf-8")
