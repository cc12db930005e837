from __future__ import annotations

import builtins
import codecs
import hashlib
import os
import pickle
import warnings

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.images import read_batch

DATA = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)


def stored(folder, content):
    path = folder / "batch"
    path.write_bytes(content)
    return path, hashlib.md5(content).hexdigest()


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_the_published_form_is_read_without_a_warning(tmp_path, python2_batch):
    path, md5 = stored(tmp_path, python2_batch(DATA, [7, 300]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = read_batch(path, md5=md5)
    assert sorted(batch) == ["batch_label", "data", "filenames", "labels"]
    assert np.array_equal(batch["data"], DATA)
    assert batch["data"].dtype == np.uint8
    assert batch["labels"] == [7, 300]
    assert batch["filenames"] == [b"image_0.png", b"image_1.png"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_python_3_pickles_is_read_too(tmp_path, protocol):
    content = pickle.dumps({b"data": DATA, "fine_labels": [1, 2], b"note": b"\xff"}, protocol)
    path, md5 = stored(tmp_path, content)
    batch = read_batch(path, md5=md5)
    assert np.array_equal(batch["data"], DATA)
    assert batch["fine_labels"] == [1, 2]
    assert batch["note"] == b"\xff"


def test_a_tampered_file_is_refused_by_its_hash_before_it_is_looked_at(
    tmp_path, python2_batch, monkeypatch
):
    path, md5 = stored(tmp_path, python2_batch(DATA, [7, 8]))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    read_batch(path, md5=md5, sha256=sha256)
    marker = tmp_path / "ran"
    path.write_bytes(pickle.dumps(Payload(os.mkdir, str(marker))))
    monkeypatch.setattr(pickle, "Unpickler", None)
    with pytest.raises(DataError, match=f"{md5}.*was not used"):
        read_batch(path, md5=md5)
    now = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="sha256"):
        read_batch(path, md5=now, sha256=sha256)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_payload_is_not_run_even_under_a_hash_that_fits(tmp_path, protocol):
    marker = tmp_path / "ran"
    payloads = [
        Payload(os.mkdir, str(marker)),
        Payload(os.system, f"mkdir {marker}"),
        Payload(builtins.eval, f"__import__('os').mkdir({str(marker)!r})"),
        Payload(codecs.lookup, "rot13"),
        Payload(np.load, str(marker)),
    ]
    for payload in payloads:
        for content in (payload, {"labels": [payload]}):
            path, md5 = stored(tmp_path, pickle.dumps(content, protocol))
            with pytest.raises(DataError, match="does not need; refused, nothing of it was run"):
                read_batch(path, md5=md5)
            assert not marker.exists()
    pickle.loads(pickle.dumps(payloads[0]))
    assert marker.exists()  # the payload works where nobody refuses it


def test_every_cut_of_a_batch_is_refused_by_name(tmp_path, python2_batch):
    whole = python2_batch(DATA[:, :12], [7, 8])
    for cut in range(len(whole)):
        path, md5 = stored(tmp_path, whole[:cut])
        with pytest.raises(DataError, match="is not a pickled batch"):
            read_batch(path, md5=md5)


def test_what_is_no_dictionary_is_refused(tmp_path):
    path, md5 = stored(tmp_path, pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="holds list"):
        read_batch(path, md5=md5)


def test_a_pickle_that_asks_for_an_outside_object_is_refused(tmp_path):
    path, md5 = stored(tmp_path, b"\x80\x02U\x01aQ.")
    with pytest.raises(DataError, match="is not a pickled batch"):
        read_batch(path, md5=md5)
