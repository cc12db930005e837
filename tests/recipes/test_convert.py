"""recipes/convert.py, as a user runs it and from the inside."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spikeformer_lt.disk import read_tensors
from spikeformer_lt.errors import CheckpointError, ConfigError, TicketError
from spikeformer_lt.registry import create_model

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "convert.py"

pytestmark = pytest.mark.recipe


def published(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of a toy of ours under the published names."""
    out = {}
    for name, value in model.state_dict().items():
        theirs = re.sub(r"conv_pep\.stages\.0\.(conv|norm)", r"patch_embed.proj_\1", name)
        theirs = re.sub(r"conv_pep\.stages\.(\d)\.(conv|norm)", r"patch_embed.proj_\2\1", theirs)
        theirs = re.sub(r"conv_pep\.rpe\.(conv|norm)", r"patch_embed.rpe_\1", theirs)
        theirs = re.sub(r"^blocks\.(\d+)\.(\w+)\.(\w+)\.", r"block.\1.\2.\3_", theirs)
        out[re.sub(r"_norm(\d?)\.", r"_bn\1.", theirs)] = value
    for i in range(len(model.blocks)):
        out[f"block.{i}.norm1.weight"] = torch.ones(32)
    return out


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A training checkpoint of a toy whose layers fire."""
    model = create_model("spikformer_toy", num_classes=10)
    for name, value in model.named_parameters():
        if name.endswith("norm.bias"):
            torch.nn.init.uniform_(value, 0.4, 2.0)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": published(model), "epoch": 3, "metric": 91.5}, path)
    return path


def convert(**options: object) -> None:
    """Run the recipe's own main in this process."""
    recipe = runpy.run_path(str(RECIPE))
    recipe["main"](recipe["Convert"](**{n: str(v) if isinstance(v, Path) else v
                                        for n, v in options.items()}))  # fmt: skip


def rebuilt(folder: Path) -> torch.nn.Module:
    tensors, about = read_tensors(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    assert about["model"] == config["model"] and about["source"] == config["source"]
    model = create_model(config["model"]["name"], **config["model"]["args"])
    model.load_state_dict(tensors)
    return model.eval()


def test_a_published_checkpoint_becomes_a_folder_of_ours(
    recipes: Any, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "toy"
    given = ("--source", source, "--model", "spikformer_toy", "--out", folder)
    done = recipes.run("convert", *given)
    assert (done.code, done.err) == (0, "")
    assert "num_classes=10" in done.out and "mlp_ratio=2.0" in done.out
    assert "dropped   2 tensors" in done.out and "block.0.norm1.weight" in done.out
    assert "num_heads=4" in done.out and "none from the options" in done.out
    files = {"model.safetensors", "config.json", "mask.safetensors", "ticket.json"}
    assert {p.name for p in folder.iterdir()} == files
    model = rebuilt(folder)
    stored = torch.load(source, weights_only=True)["state_dict"]
    ours = published(model)
    assert all(torch.equal(ours[name], value) for name, value in stored.items())
    logits = model.double()(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    assert logits.shape == (2, 4, 10) and logits.std() > 0


@pytest.mark.fault(11)
def test_a_hostile_checkpoint_is_refused_in_one_line(recipes: Any, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"echo run > {tmp_path / 'mark'}",)

    torch.save({"state_dict": {"head.weight": Payload()}}, tmp_path / "bad.pth")
    done = recipes.run("convert", "--source", tmp_path / "bad.pth", "--out", tmp_path / "out")
    assert re.fullmatch(r"error: .*nothing in it was run.*system.*", done.error)
    assert not (tmp_path / "mark").exists() and not (tmp_path / "out").exists()


def test_what_no_tensor_tells_can_be_given(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"T": 2, "num_heads": 8, "image_size": 16, "attn_scale": 0.25}
    convert(source=source, model="spikformer_cifar", out=out, **options)
    model = rebuilt(out)
    assert (model.T, model.num_heads, model.image_size) == (2, 8, (16, 16))
    assert model.blocks[0].attn.scale == 0.25
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 2, 10)


def test_heads_that_do_not_divide_the_width_ask_for_the_option(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"num_heads=12 .*embed_dim=32.*give --num-heads"):
        convert(source=source, model="spikformer_cifar", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(50)
def test_nothing_is_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(TicketError, match=r"already holds 'config\.json'"):
            convert(source=source, model="spikformer_toy", out=out, overwrite=overwrite)
    assert (out / "config.json").read_text() == "mine"


def test_what_an_earlier_call_wrote_is_replaced_where_that_is_asked_for(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(source=source, model="spikformer_toy", out=out)
    with pytest.raises(TicketError, match="already holds .*--overwrite"):
        convert(source=source, model="spikformer_toy", out=out, T=2)
    assert rebuilt(out).T == 4
    convert(source=source, model="spikformer_toy", out=out, T=2, overwrite=True)
    assert rebuilt(out).T == 2
    (out / "notes.txt").write_text("mine")
    with pytest.raises(TicketError, match="already holds 'notes.txt'"):
        convert(source=source, model="spikformer_toy", out=out, overwrite=True)


def test_a_checkpoint_that_does_not_fit_writes_nothing(source: Path, tmp_path: Path) -> None:
    content = torch.load(source, weights_only=True)
    del content["state_dict"]["block.1.attn.q_linear.weight"]
    torch.save(content, source)
    with pytest.raises(CheckpointError, match=r"missing: 'blocks\.1\.attn\.q\.linear\.weight'"):
        convert(source=source, model="spikformer_toy", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_wrong_options_are_named(recipes: Any, source: Path, tmp_path: Path) -> None:
    assert "error: --source is missing: a file: --source FILE" in recipes.run("convert").error
    assert "--out is missing: a new" in recipes.run("convert", "--source", source).error
    for options, message in (
        ({"source": source, "out": tmp_path / "out", "model": "spikformer_toi"}, "spikformer_toy"),
        ({"source": source, "out": tmp_path / "out", "model": "spikformer_toy", "T": 0}, "T=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(**options)


def test_a_converted_checkpoint_evaluates_exports_and_reports(
    recipes: Any, source: Path, tmp_path: Path
) -> None:
    torch.save({"net": published(create_model("spikformer_toy", num_classes=7))}, source)
    convert(source=source, model="spikformer_toy", out=tmp_path / "out")
    assert "name the data set" in recipes.run("evaluate", "--run", tmp_path / "out").error
    data = ("--data.name", "digits", "--data.limit-test", "20")
    assert (
        "has 7 classes, digits has 10"
        in recipes.run("evaluate", "--run", tmp_path / "out", *data).error
    )
    model = create_model("spikformer_toy")
    torch.save({"net": published(model)}, source)
    shutil.rmtree(tmp_path / "out")
    convert(source=source, model="spikformer_toy", out=tmp_path / "out")
    shown = []
    assert recipes.run("export", "--run", tmp_path / "out", "--out", tmp_path / "x").code == 0
    ended = recipes.run("evaluate", "--run", tmp_path / "out", "--data.name", "moving_digits")
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    for folder in ("out", "x"):
        ended = recipes.run("evaluate", "--run", tmp_path / folder, *data)
        assert (ended.code, ended.err) == (0, "")
        shown.append(ended.out)
    assert shown[0].splitlines()[0] == shown[1].splitlines()[0]
    page = recipes.run("report", "--runs", tmp_path / "out", "--images", "10", *data)
    assert page.code == 0 and (tmp_path / "out" / "report.html").is_file()


@pytest.mark.golden
def test_the_published_network_survives_the_whole_way(shared: Path, tmp_path: Path) -> None:
    golden = load_file(shared / "golden" / "spikformer_cifar10_d64_l2_h4_t4.safetensors")
    state = {n.removeprefix("model."): v for n, v in golden.items() if n.startswith("model.")}
    torch.save({"state_dict": state}, tmp_path / "published.pth.tar")
    options = {"model": "spikformer_cifar", "num_heads": 4}
    convert(source=tmp_path / "published.pth.tar", out=tmp_path / "out", **options)
    with torch.no_grad():
        logits = rebuilt(tmp_path / "out").double()(golden["input"].double())
    assert torch.allclose(logits.mean(1), golden["logits"], rtol=0, atol=1e-9)
