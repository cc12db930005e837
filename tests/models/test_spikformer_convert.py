from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spikeformer_lt.adapted import read_foreign
from spikeformer_lt.errors import CheckpointError
from spikeformer_lt.models.spikformer import Spikformer
from spikeformer_lt.models.spikformer_convert import load_translated, translate

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 7}


def published(form: str = "linear", channels: int = 3) -> dict[str, torch.Tensor]:
    """A checkpoint as the published code would write it: `linear` CIFAR, `conv` ImageNet."""
    dims = SIZES["embed_dim"]
    hidden = int(dims * SIZES["mlp_ratio"])
    out: dict[str, torch.Tensor] = {}

    def norm(name: str, size: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            out[f"{name}.{leaf}"] = torch.rand(size)
        out[f"{name}.num_batches_tracked"] = torch.tensor(3)

    def linear(name: str, rows: int, columns: int, axes: int, bias: bool) -> None:
        conv = form == "conv"
        shape = (rows, columns) + (1,) * (axes if conv else 0)
        out[f"{name}_{'conv' if conv else 'linear'}.weight"] = torch.randn(shape)
        if bias:
            out[f"{name}_{'conv' if conv else 'linear'}.bias"] = torch.randn(rows)
        norm(f"{name}_bn", rows)

    widths = [channels, dims // 8, dims // 4, dims // 2, dims]
    for i in range(4):
        stage = str(i or "")
        out[f"patch_embed.proj_conv{stage}.weight"] = torch.randn(widths[i + 1], widths[i], 3, 3)
        norm(f"patch_embed.proj_bn{stage}", widths[i + 1])
    out["patch_embed.rpe_conv.weight"] = torch.randn(dims, dims, 3, 3)
    norm("patch_embed.rpe_bn", dims)
    for i in range(SIZES["depth"]):
        for dead in ("norm1", "norm2"):
            out[f"block.{i}.{dead}.weight"] = torch.ones(dims)
            out[f"block.{i}.{dead}.bias"] = torch.zeros(dims)
        for part in ("q", "k", "v"):
            linear(f"block.{i}.attn.{part}", dims, dims, 1, bias=form == "linear")
        linear(f"block.{i}.attn.proj", dims, dims, 1, bias=True)
        linear(f"block.{i}.mlp.fc1", hidden, dims, 2, bias=True)
        linear(f"block.{i}.mlp.fc2", dims, hidden, 2, bias=True)
    out["head.weight"], out["head.bias"] = torch.randn(7, dims), torch.randn(7)
    return out


def build(sizes: dict[str, object], **options: object) -> Spikformer:
    return Spikformer(**{"num_heads": 4, "image_size": 16, **sizes, **options})


# -- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["linear", "conv"])
@pytest.mark.parametrize("channels", [2, 3])
def test_every_tensor_finds_its_place_and_value(form: str, channels: int) -> None:
    source = published(form, channels)
    found = translate(source)
    model = build(found.sizes)
    load_translated(model, found.tensors)
    state = model.state_dict()
    assert len(found.tensors) == len(state)
    assert len(found.dropped) + len(state) == len(source)
    assert all(".norm" in name and name.startswith("block.") for name in found.dropped)
    kind = form
    for theirs, ours in {
        "patch_embed.proj_conv.weight": "conv_pep.stages.0.conv.weight",
        "patch_embed.proj_conv3.weight": "conv_pep.stages.3.conv.weight",
        "patch_embed.proj_bn.running_var": "conv_pep.stages.0.norm.running_var",
        "patch_embed.proj_bn2.bias": "conv_pep.stages.2.norm.bias",
        "patch_embed.rpe_conv.weight": "conv_pep.rpe.conv.weight",
        "patch_embed.rpe_bn.num_batches_tracked": "conv_pep.rpe.norm.num_batches_tracked",
        f"block.0.attn.q_{kind}.weight": "blocks.0.attn.q.linear.weight",
        f"block.1.attn.proj_{kind}.bias": "blocks.1.attn.proj.linear.bias",
        "block.1.attn.v_bn.running_mean": "blocks.1.attn.v.norm.running_mean",
        f"block.0.mlp.fc1_{kind}.weight": "blocks.0.mlp.fc1.linear.weight",
        f"block.1.mlp.fc2_{kind}.bias": "blocks.1.mlp.fc2.linear.bias",
        "head.weight": "head.weight",
    }.items():
        assert torch.equal(state[ours], source[theirs].view_as(state[ours])), theirs


@pytest.mark.parametrize(("form", "qkv"), [("linear", True), ("conv", False)])
def test_the_sizes_are_told_by_the_tensors(form: str, qkv: bool) -> None:
    sizes = translate(published(form, 2)).sizes
    assert sizes == {
        **{name: SIZES[name] for name in ("embed_dim", "depth", "mlp_ratio", "num_classes")},
        "in_channels": 2,
        "linear_bias": True,
        "qkv_bias": qkv,
    }


def test_the_dead_tensors_of_all_variants_are_dropped_by_name() -> None:
    extra = {"pos_embed": torch.zeros(1, 64, 32), "norm.weight": torch.ones(32)}
    found = translate({**published("conv"), **extra, "norm.bias": torch.zeros(32)})
    assert {"pos_embed", "norm.weight", "norm.bias", "block.1.norm2.bias"} <= set(found.dropped)
    assert len(found.dropped) == 3 + 2 * 2 * 2


def test_foreign_names_are_refused_and_the_first_five_named() -> None:
    foreign = {f"stage{i}.weight": torch.zeros(1) for i in range(7)}
    with pytest.raises(CheckpointError) as caught:
        translate({**published(), **foreign})
    text = str(caught.value)
    assert all(f"stage{i}.weight" in text for i in range(5))
    assert "stage5" not in text and "and 2 more" in text


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.q_linear.weight", "block.0.attn.q_lif.v", "block.0.attn.w_bn.weight",
             "patch_embed.proj_conv4.weight", "xhead.weight", "block.99999.norm1.weights"],
)  # fmt: skip
def test_a_name_that_only_resembles_one_is_foreign(name: str) -> None:
    with pytest.raises(CheckpointError, match="no name of a published Spikformer"):
        translate({**published(), name: torch.zeros(1)})


def test_a_checkpoint_of_something_else_says_what_is_missing() -> None:
    with pytest.raises(CheckpointError, match=r"missing: 'conv_pep.stages.0.conv.weight'"):
        translate({"head.weight": torch.zeros(7, 32)})
    with pytest.raises(CheckpointError, match="missing"):
        translate({})
    with pytest.raises(CheckpointError, match=r"head.weight \[7\], 2 axes expected"):
        translate({**published(), "head.weight": torch.zeros(7)})


def test_missing_extra_and_misshapen_tensors_are_named_with_both_shapes() -> None:
    source = published()
    for name in [n for n in source if n.startswith("block.1.attn.")][:9]:
        del source[name]
    source["patch_embed.proj_bn2.bias"] = torch.zeros(5)
    source["patch_embed.rpe_conv.bias"] = torch.zeros(32)
    found = translate(source)
    model = build(found.sizes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_translated(model, found.tensors)
    text = str(caught.value)
    assert "missing: 'blocks.1.attn.q.linear.weight'" in text and "and 4 more" in text
    assert "extra: 'conv_pep.rpe.conv.bias'" in text
    assert "of another shape: 'conv_pep.stages.2.norm.bias [5] for [16]'" in text
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items()), "all or nothing"


def test_a_kernel_that_is_no_point_is_refused_with_its_shape() -> None:
    source = published("conv")
    source["block.0.attn.q_conv.weight"] = torch.zeros(32, 32, 3)
    found = translate(source)
    with pytest.raises(CheckpointError, match=r"q.linear.weight \[32, 32, 3\] for \[32, 32\]"):
        load_translated(build(found.sizes), found.tensors)


def test_a_block_that_is_left_out_is_missing_rather_than_renumbered() -> None:
    source = {n.replace("block.1.", "block.7."): v for n, v in published().items()}
    found = translate(source)
    assert found.sizes["depth"] == 2
    with pytest.raises(CheckpointError, match=r"missing: 'blocks.1.*extra: 'blocks.7"):
        load_translated(build(found.sizes), found.tensors)


# -- files ---------------------------------------------------------------------------------


def same(read: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> bool:
    return read.keys() == source.keys() and all(torch.equal(read[n], source[n]) for n in source)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 299, "arch": "spikformer", "metric": 95.19},
        lambda s: {"state_dict_ema": s, "args": argparse.Namespace(lr=5e-4, amp=True)},
        lambda s: {"state_dict": OrderedDict((f"module.{n}", v) for n, v in s.items())},
        lambda s: {f"module._orig_mod.{n}": v for n, v in s.items()},
        lambda s: {"state_dict": s, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        lambda s: {"model": s, "model_ema": {n: v + 1 for n, v in s.items()}, "epoch": 3},
        lambda s: {"net": s, "max_test_acc": np.float64(94.1), "epoch": np.int32(3)},
        lambda s: {"model_state_dict": {**s, "epoch": 3, "a.total_ops": torch.zeros(1)}},
        lambda s: {"state_dict": {f"model.{n}": v for n, v in s.items()}, "loops": {"a": {}}},
        lambda s: {"snapshot": {"weights": {f"backbone.{n}": v for n, v in s.items()}}},
        lambda s: {n.replace("block.0.", "block.0._orig_mod."): v for n, v in s.items()},
        lambda s: {n.replace("mlp.", "mlp._fsdp_wrapped_module."): v for n, v in s.items()},
        lambda s: {"model": s, "args": argparse.Namespace(out=Path("a b")), "accs": np.ones(3)},
    ],
    ids=[
        "plain", "state_dict", "ema and options", "module.", "compiled", "optimizer", "model",
        "net with numbers of NumPy", "scalars beside", "Lightning", "any one wrapper",
        "a compiled block", "a sharded MLP", "paths and arrays beside",
    ],
)  # fmt: skip
@pytest.mark.fault(102)
def test_every_wrapper_of_a_training_script_is_taken_off(
    tmp_path: Path, wrap: object, legacy: bool
) -> None:
    source = published()
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(wrap(source), path, _use_new_zipfile_serialization=not legacy)
    assert same(read_foreign(path), source)


def test_averaged_weights_are_taken_when_asked_for(tmp_path: Path) -> None:
    live, averaged = published(), published()
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": live, "state_dict_ema": averaged}, path)
    assert same(read_foreign(path), live)
    assert same(read_foreign(path, ema=True), averaged)
    torch.save({"state_dict": live}, path)
    with pytest.raises(CheckpointError, match=r"no averaged weights .*drop --ema"):
        read_foreign(path, ema=True)


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    source = published()
    save_file(source, tmp_path / "model.safetensors")
    assert same(read_foreign(tmp_path / "model.safetensors"), source)


class Payload:
    """Creates a file when it is unpickled: what a hostile checkpoint does."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo run > {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "beside the weights"])
@pytest.mark.fault(11)
def test_code_in_a_pickle_is_never_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "checkpoint.pth.tar"
    content = {**published(), "head.bias": Payload(mark)}
    if form == "beside the weights":
        content = {"state_dict": published(), "args": Payload(mark)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"head.bias": Payload(mark)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError) as caught:
        read_foreign(path)
    assert not mark.exists()
    assert "nothing in it was run" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "system" in str(caught.value)
    if form == "zip":  # the payload itself works: this is what was kept from running
        torch.load(path, weights_only=False)
        assert mark.exists()


BAD_FILES = {
    "empty": b"",
    "text": b"404: not found",
    "page": b"<!DOCTYPE html><html></html>",
    "cut zip": b"PK\x03\x04" + b"\0" * 60,
    "cut safetensors": b"\x40\0\0\0\0\0\0\0{" + b" " * 20,
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(BAD_FILES[kind])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth") as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(published(), whole)
    data = whole.read_bytes()
    for share in (0.01, 0.3, 0.7, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            read_foreign(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth.*No such file"):
        read_foreign(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="directory"):
        read_foreign(tmp_path)


def test_contents_other_than_finite_tensors_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    for content, message in (
        ([1, 2], "no table of tensors but list"),
        ({}, "no table of tensors"),
        ({"one": published(), "two": published()}, r"several tables of tensors \('one', 'two'\)"),
        ({"model": {"a": torch.zeros(1), "b": [1]}}, "'b' is no dense tensor but list"),
        ({"epoch": 3, "args": argparse.Namespace()}, "no table of tensors but dict; 'args' is no"),
        ({"head.weight": torch.eye(3).to_sparse()}, "'head.weight' is no dense tensor"),
        ({"head.weight": torch.tensor([1.0, float("nan")])}, "'head.weight' has NaN"),
        ({"module.a": torch.zeros(1), "a": torch.zeros(1)}, "'a' is there twice"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            read_foreign(path)


# -- the published network itself ----------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_spikingjellys_checkpoint_gives_its_logits(tmp_path: Path, wrapped: bool) -> None:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model.spikformer import Spikformer as Theirs

    sizes = {"in_channels": 3, "img_size_h": 16, "img_size_w": 16, "patch_size": 4, "depths": 2}
    torch.manual_seed(3)
    theirs = Theirs(T=4, num_classes=7, embed_dims=32, num_heads=4, mlp_ratio=2.0, **sizes)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.5, 2.0)
    nn.init.normal_(theirs.head.weight)
    theirs.double().eval()
    state = theirs.state_dict()
    torch.save({"model": state} if wrapped else state, tmp_path / "jelly.pth")
    found = translate(read_foreign(tmp_path / "jelly.pth"))
    assert not found.dropped and found.sizes["pool_before_act"]
    model = build(found.sizes, T=4).double().eval()
    load_translated(model, found.tensors)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x).transpose(0, 1)
    functional.reset_net(theirs)
    assert expected.std() > 0
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)


@pytest.mark.golden
@pytest.mark.parametrize("compute_once", [False, True])
def test_the_published_networks_logits_are_ours(shared: Path, compute_once: bool) -> None:
    """Its logits are means over T; in float64, so that no rounding turns into a spike."""
    golden = load_file(shared / "golden" / "spikformer_cifar10_d64_l2_h4_t4.safetensors")
    source = {n.removeprefix("model."): v for n, v in golden.items() if n.startswith("model.")}
    found = translate(source)
    model = build(found.sizes, image_size=32, compute_once=compute_once)
    load_translated(model, found.tensors)
    model.double().eval()
    assert (found.sizes["embed_dim"], found.sizes["depth"]) == (64, 2)
    rates = {}
    for name, module in model.named_modules():
        if name.endswith("act"):
            module.register_forward_hook(
                lambda m, args, out, name=name: rates.update({name: out.mean().item()})
            )
    with torch.no_grad():
        logits = model(golden["input"].double())
    assert len(rates) == 19
    assert all(0.05 < rate < 0.6 for rate in rates.values()), "a silent layer would prove nothing"
    assert torch.allclose(logits.mean(1), golden["logits"], rtol=0, atol=1e-9)
    assert golden["logits"].std() > 1e-3
