"""recipes/export.py as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
import torch

from spikeformer_lt import Mask, Ticket, create_dataset, create_model, load_exported
from spikeformer_lt.config import to_dict
from spikeformer_lt.preprocess import Preprocess
from spikeformer_lt.training.checkpoint import CheckpointStore

pytestmark = pytest.mark.recipe
ARGS = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = create_model("spikformer_toy", **ARGS).eval()
    weights = {n: torch.rand(t.shape) for n, t in model.state_dict().items() if t.ndim == 4}
    known = {"model": {"name": "spikformer_toy", "args": ARGS}, "run_id": "toy-1"}
    ticket = Ticket.of(model, Mask.from_scores(weights, 0.8), known)
    ticket.save(tmp_path / "run" / "ticket")
    (tmp_path / "run" / "report.json").write_text('{"test_accuracy": 41.25, "macs": 7}')
    return tmp_path


def test_a_run_becomes_a_folder_that_loads(recipes, folder: Path) -> None:
    out = folder / "exported"
    done = recipes.run("export", "--run", folder / "run", "--out", out, "--graphs", "pt2")
    assert done.code == 0, done.err
    assert "over bound" in done.out and "verified: reloaded logits within 0;" in done.out
    assert sorted(p.name for p in out.iterdir()) == [
        *("README.md", "config.json", "kept.svg", "model.safetensors"),
    ]
    assert "| test accuracy, % | 41.25 |" in (out / "README.md").read_text()
    ticket = Ticket.load(folder / "run" / "ticket")
    found = load_exported(out, plain=True).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in ticket.tensors.items())
    assert (folder / "exported.pt2").is_file()
    assert "NOTICE: this ticket lacks its preprocess" in done.out
    again = recipes.run(
        "export", "--run", folder / "run", "--out", folder / "b", "--data", "digits"
    )
    assert again.code == 0 and "NOTICE" not in again.out, again.err
    assert (
        load_exported(folder / "b").preprocess == create_dataset("digits", image_size=16).preprocess
    )


@pytest.mark.parametrize(
    "name", ["spiking_vgg_toy", pytest.param("spikformer_toy", marks=pytest.mark.slow)]
)
def test_what_was_trained_from_an_imp_ticket_is_exported(recipes, tmp_path: Path, name) -> None:
    """Not its start weights: the report's accuracy in the folder is that of the network in it."""
    run, out = tmp_path / "run", tmp_path / "exported"
    options = shlex.split(
        f"--data.name digits --data.limit-train 64 --data.limit-test 40 --data.image-size 16 "
        f"--model.name {name} --model.T 2 --train.cpu --train.batch-size 16 --epochs 2 "
        "--imp.epochs 1 --imp.rounds 2 --imp.rewind 1it"
    )
    done = recipes.run("imp_cifar", *options, "--run.out", run)
    assert done.code == 0, done.err
    done = recipes.run("export", "--run", run, "--out", out)
    assert done.code == 0 and "NOTICE" not in done.out, done.err
    start, trained = Ticket.load(run / "ticket"), Ticket.load(run / "trained")
    assert start.mask == trained.mask
    found = load_exported(out, plain=True)
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, trained.tensors[key]), key
    assert any(not torch.equal(start.tensors[k], trained.tensors[k]) for k in start.mask)
    images = torch.rand(4, 3, 16, 16)
    compact = load_exported(out)
    torch.testing.assert_close(compact(images), found(images), rtol=1e-4, atol=1e-4)
    accuracy = json.loads((run / "report.json").read_text())["test_accuracy"]
    assert f"| test accuracy, % | {accuracy} |" in (out / "README.md").read_text()
    body = json.loads((out / "config.json").read_text())
    report = json.loads((run / "report.json").read_text())
    assert len(body["provenance"]["split_sha256"]) == 64
    assert body["provenance"]["run_id"] == body["about"]["run_id"] == report["run_id"]
    for name in ("test_accuracy", "val_accuracy", "test_count", "sparsity"):
        assert body["about"][name] == report[name], name
    assert len(report["sparsity"]) > 1
    sizes = {"image_size": 16, "limit_train": 64, "limit_test": 40}
    data = create_dataset("digits", **sizes)
    digits, saved = data.test, CheckpointStore(run / "last").load()
    assert saved is not None and Preprocess.known(saved.state) == data.preprocess
    assert report["preprocess"] == body["preprocess"] == to_dict(data.preprocess)
    hits = [
        p.label == y for p, y in zip(compact.predict(digits.images), digits.labels, strict=True)
    ]
    assert 100 * sum(map(int, hits)) / 40 == pytest.approx(accuracy)
    done = recipes.run("export", "--run", run / "ticket", "--out", tmp_path / "start")
    assert "NOTICE: this ticket holds its start weights" in done.out


@pytest.mark.slow
def test_the_recipe_writes_a_graph_in_integers(recipes, folder: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    ticket = Ticket.load(folder / "run" / "ticket")
    binary = {
        name: tensor.sign() * 0.5 if name.startswith("conv_pep.stages.1.conv") else tensor
        for name, tensor in ticket.tensors.items()
    }
    Ticket(ticket.mask, binary, ticket.provenance).save(folder / "binary")
    out = folder / "exported"
    done = recipes.run("export", "--run", folder / "binary", "--out", out, "--graphs", "int8.onnx")
    assert done.code == 0 and "ONNX graph in integers" in done.out, done.err
    kinds = [node.op_type for node in onnx.load(folder / "exported.int8.onnx").graph.node]
    assert kinds.count("ConvInteger") == 1 and kinds.count("Conv") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "run"),
        (["--run", "RUN"], "out"),
        (["--run", "RUN", "--out", "X", "--precision", "int4"], "fp32, fp16, bf16"),
        (["--run", "RUN", "--out", "X", "--graphs", "tflite"], "pt2, onnx, int8.onnx, nir"),
        (["--run", "RUN", "--out", "X", "--graphs", "pt2,pt2"], "once, with commas"),
        (["--run", "RUN", "--out", "X", "--graphs", ","], "once, with commas"),
        (["--run", "nowhere", "--out", "X"], "there is no such folder"),
        (["--run", "RUN", "--out", "RUN"], "already holds"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    options: list[str], message: str, recipes, folder: Path
) -> None:
    names = {"RUN": str(folder / "run"), "X": str(folder / "x")}
    done = recipes.run("export", *(names.get(o, o) for o in options))
    assert message in done.error
    assert not (folder / "x").exists()


def test_onnx_without_its_packages_is_an_error_with_advice(recipes, folder: Path) -> None:
    if importlib.util.find_spec("onnxruntime") is not None:
        pytest.skip("the extra 'onnx' is installed")
    out = folder / "exported"
    done = recipes.run("export", "--run", folder / "run", "--out", out, "--graphs", "onnx")
    assert "spikeformer_lt[onnx,nir]" in done.error
