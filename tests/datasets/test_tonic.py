"""Data sets of tonic's own classes on files in true form, against our readers of the same files."""

from __future__ import annotations

import functools
import hashlib
import http.client
import http.server
import socket
import tarfile
import threading
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tonic.datasets

from spikeformer_lt import published
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import EventOptions
from spikeformer_lt.registry import create_dataset

CONNECT, RESOLVE = socket.socket.connect, socket.getaddrinfo
FEW = EventOptions(T=4, incomplete="report", cache="none")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **keywords):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def put(files, root: Path, name: str) -> Path:
    """A small set as tonic lays it out."""
    home, seed = root / name, 0

    def events(side=128, span_us=900_000):
        nonlocal seed
        seed += 1
        return files.some_events(60 + seed, side, side, span_us, seed)

    if name == "NMNIST":
        for part, digit, _ in np.ndindex(2, 10, 5):
            path = home / ("Train", "Test")[part] / str(digit) / f"{seed:05d}.bin"
            files.write_bin(path, events(34, 300_000))
    elif name == "POKERDVS":
        for part, card, i in np.ndindex(2, 4, 12):
            path = home / ("pips_train", "pips_test")[part] / ("cl", "he", "di", "sp")[card]
            columns = ("t_us", "x", "y", "p")
            files.write_npy(path / f"{i}.npy", events(35, 20_000), columns=columns)
    elif name == "DVSGesture":
        for part, people in (("ibmGestureTrain", range(1, 6)), ("ibmGestureTest", range(24, 26))):
            for person, label in np.ndindex(len(people), 11):
                path = home / part / f"user{people[person]:02d}_led" / f"{label}.npy"
                files.write_npy(path, events(), ticks=1000)
    else:
        for label, i in np.ndindex(10, 10):
            path = home / tuple(tonic.datasets.CIFAR10DVS.classes)[label] / f"cifar10_{i}.aedat4"
            files.write_aedat4(path, events(), packing="lz4")
    return root


OURS = {
    "NMNIST": "nmnist",
    "POKERDVS": "poker_dvs",
    "DVSGesture": "dvs128_gesture",
    "CIFAR10DVS": "cifar10_dvs",
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.fault(27)
def test_frames_parts_and_classes_are_those_of_our_own_reader(files, tmp_path, name):
    pytest.importorskip("aedat" if name == "CIFAR10DVS" else "tonic")
    root = str(put(files, tmp_path, name))
    theirs = create_dataset(f"tonic:{name}", root=root, events=FEW)
    ours = create_dataset(OURS[name], root=root, events=FEW)
    assert theirs.name == f"tonic:{name}"
    assert theirs.preprocess.classes == ours.preprocess.classes
    for fact in ("num_classes", "image_size", "augment", "mirror_changes_label", "kind"):
        assert getattr(theirs, fact) == getattr(ours, fact), fact
    if name != "POKERDVS":  # its class holds events, not files
        assert theirs.split_sha256 == ours.split_sha256
    for part in ("train", "val", "test"):
        mine, other = getattr(ours, part), getattr(theirs, part)
        frames = [
            sorted(
                (int(y), frame.numpy().tobytes())
                for frame, y in map(one.__getitem__, range(len(one)))
            )
            for one in (mine, other)
        ]
        if name != "POKERDVS" or part == "test":
            assert frames[0] == frames[1] and len(frames[0]) == len(mine) > 0


def test_more_of_its_classes_are_read(files, tmp_path):
    """Events of MATLAB in one column, a sensor that the class does not know, arrays with parts."""
    for number, label in enumerate(("airplanes", "ant", "bass")):
        for i in range(10):
            made = files.some_events(200, 100, 100, 300_000, 10 * number + i)
            path = tmp_path / "NCALTECH101" / "Caltech101" / label / f"image_{i:04d}.bin"
            files.write_bin(path, made)
            folder = tmp_path / "ASLDVS" / "abc"[number]
            folder.mkdir(parents=True, exist_ok=True)
            columns = {"ts": made["t_us"], "x": made["x"], "y": made["y"], "pol": made["p"]}
            columns = {name: each.astype(float)[:, None] for name, each in columns.items()}
            scipy.io.savemat(folder / f"{label}_{i:04d}.mat", columns)
            for part in ("train", "test"):
                word = ("accused", "action", "allow")[number]
                home = tmp_path / "DVSLip" / "DVS-Lip" / part / word
                home.mkdir(parents=True, exist_ok=True)
                table = np.empty(200, [("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "?")])
                for theirs, ours in zip("txyp", ("t_us", "x", "y", "p"), strict=True):
                    table[theirs] = made[ours]
                np.save(home / f"{i}.npy", table)
    for name, sensor in (("NCALTECH101", "100x100"), ("ASLDVS", None), ("DVSLip", None)):
        how = EventOptions(T=4, incomplete="report", cache="none", sensor=sensor)
        splits = create_dataset(f"tonic:{name}", root=str(tmp_path), events=how)
        frames = [splits.train[i][0] for i in range(len(splits.train))]
        assert len(frames) > 18 and all(int(each.sum()) == 200 for each in frames), name


def test_the_set_may_lie_in_the_root_itself_and_is_counted(files, tmp_path):
    home = put(files, tmp_path, "DVSGesture") / "DVSGesture"
    splits = create_dataset("tonic:DVSGesture", root=str(home), events=FEW)
    assert len(splits.test) == 22 and {s.group for s in splits.val.samples} == {"02"}
    with pytest.raises(
        DataError, match=r"tonic:DVSGesture is not in .*Put there ibmGestureTrain\.tar\.gz"
    ):
        create_dataset("tonic:DVSGesture", root=str(tmp_path), events=EventOptions(T=4))


def test_an_archive_is_checked_before_it_is_unpacked(files, tmp_path, monkeypatch):
    root = put(files, tmp_path / "made", "NMNIST")
    kind = tonic.datasets.NMNIST
    (tmp_path / "NMNIST").mkdir()
    for part in ("train", "test"):
        path = tmp_path / "NMNIST" / getattr(kind, f"{part}_filename")
        with zipfile.ZipFile(path, "w") as packed:
            for file in sorted((root / "NMNIST" / part.capitalize()).rglob("*.bin")):
                packed.write(file, file.relative_to(root / "NMNIST"))
        monkeypatch.setattr(kind, f"{part}_md5", hashlib.md5(path.read_bytes()).hexdigest())
    # 100 files are less than tonic's whole set, so that it asks for the archive.
    splits = create_dataset("tonic:NMNIST", root=str(tmp_path), events=EventOptions(T=4))
    assert len(splits.test) == 50
    with (tmp_path / "NMNIST" / "test.zip").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match="md5"):
        create_dataset("tonic:NMNIST", root=str(tmp_path), events=EventOptions(T=4))


class PlainHttps(urllib.request.HTTPSHandler):
    """Speaks http where https is asked for, so that a test needs no certificate."""

    def https_open(self, req):
        return self.do_open(http.client.HTTPConnection, req)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves the folder `served` where tonic's own addresses would lead; notes what is asked."""
    (tmp_path / "served").mkdir()
    asked = []

    class Answer(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.path = "/" + self.path.rpartition("/")[2]
            super().do_GET()

        def log_message(self, *words):
            pass

    monkeypatch.setattr(socket.socket, "connect", CONNECT)
    monkeypatch.setattr(socket, "getaddrinfo", RESOLVE)
    monkeypatch.setattr(
        published, "fetch", functools.partial(published.fetch, handlers=[PlainHttps()])
    )
    answer = functools.partial(Answer, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        made.asked, made.folder = asked, tmp_path / "served"
        yield made
        made.shutdown()


def pack(home, name, folder):
    """The archives of a set as its publisher packs them: {attribute of the class: path}."""
    if name == "CIFAR10DVS":  # a zip of a zip for each class
        with zipfile.ZipFile(folder / "cifar.zip", "w") as outer:
            for label in sorted(home.iterdir()):
                with (
                    outer.open(f"{label.name}.zip", "w") as file,
                    zipfile.ZipFile(file, "w") as own,
                ):
                    for path in sorted(label.iterdir()):
                        own.write(path, path.relative_to(home))
        return {"": folder / "cifar.zip"}
    made = {}
    for part in ("train", "test"):
        own = getattr(tonic.datasets, name)
        path = made[f"{part}_"] = folder / getattr(own, f"{part}_filename")
        inner = next(each for each in home.iterdir() if part in each.name.lower())
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as packed:
                for file in sorted(inner.rglob("*.*")):
                    packed.write(file, file.relative_to(home))
        else:
            with tarfile.open(path, "w:gz") as packed:
                packed.add(inner, inner.name)
    return made


@pytest.mark.parametrize("name", ["NMNIST", "DVSGesture", "CIFAR10DVS"])
def test_a_set_is_fetched_checked_and_unpacked_where_that_is_allowed(
    files, tmp_path, monkeypatch, server, name
):
    home = put(files, tmp_path / "made", name) / name
    local = create_dataset(f"tonic:{name}", root=str(tmp_path / "made"), events=FEW)
    for field, path in pack(home, name, server.folder).items():
        kind, md5 = getattr(tonic.datasets, name), f"{field}md5" if field else "file_md5"
        place = f"https://127.0.0.1:{server.server_port}/figshare.com/ndownloader/files/{path.name}"
        monkeypatch.setattr(kind, f"{field}url", place)
        monkeypatch.setattr(kind, md5, hashlib.md5(path.read_bytes()).hexdigest())
    root = str(tmp_path / "data")
    with pytest.raises(DataError, match=f"tonic:{name} is not in"):
        create_dataset(f"tonic:{name}", root=root, events=FEW)
    assert not server.asked
    fetched = create_dataset(f"tonic:{name}", root=root, download=True, events=FEW)
    assert len(server.asked) == len([*server.folder.iterdir()])
    assert all("/api.figshare.com/v2/file/download/" in path for path in server.asked)
    server.asked.clear()
    again = create_dataset(f"tonic:{name}", root=root, events=FEW)
    assert not server.asked
    assert fetched.split_sha256 == again.split_sha256 == local.split_sha256
    for part in ("train", "val", "test"):
        one, other = getattr(fetched, part), getattr(local, part)
        assert len(one) == len(other) > 0 and (one[0][0] == other[0][0]).all()
    monkeypatch.setattr(kind, md5, "0" * 32)
    with pytest.raises(DataError, match="has md5 .*as published it is 0000"):
        create_dataset(f"tonic:{name}", root=str(tmp_path / "x"), download=True, events=FEW)


@pytest.mark.parametrize("name", tonic.datasets.__all__)
@pytest.mark.parametrize("there", [False, True])
def test_no_class_reaches_for_the_network_without_leave(tmp_path, name, there):
    if there:
        (tmp_path / name).mkdir()
    with pytest.raises((ConfigError, DataError), match=f"tonic:{name}"):
        create_dataset(f"tonic:{name}", root=str(tmp_path), events=EventOptions(T=4))


def test_an_unknown_name_says_the_nearest(tmp_path):
    for given, hint in (("tonic:NMIST", "NMNIST"), ("tonic", "tonic:NMNIST")):
        with pytest.raises(ConfigError, match=hint):
            create_dataset(given, root=str(tmp_path))
    with pytest.raises(ConfigError, match="unknown data set 'digits:x'"):
        create_dataset("digits:x")
