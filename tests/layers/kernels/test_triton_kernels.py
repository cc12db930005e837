"""The Triton kernels, in Triton's interpreter, against the reference and torch's own operations.

On a CUDA device (`-m gpu`) the same tests run compiled.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.reference import lif_loop

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
DEVICE = "cuda" if HAS_CUDA else "cpu"
pytestmark = pytest.mark.gpu if HAS_CUDA else []

RESETS: list[dict[str, Any]] = [{"v_reset": -0.2}, {"v_reset": None}, {"tau": 4 / 3}]
FLAGS = [
    {"decay_input": d, "detach_reset": r, "surrogate": s}
    for d, r, s in itertools.product((True, False), (True, False), ("sigmoid", "atan"))
]
STATELESS = [{"surrogate": "hardtanh", "alpha": 0.7}, {"surrogate": "bireal", "alpha": 0.7}]
SETTINGS = [NeuronConfig(**(a | b)) for a, b in itertools.product(RESETS, FLAGS)]
SETTINGS += [NeuronConfig(**choice) for choice in STATELESS]


def kernels() -> Any:
    """Give the room, once the interpreter is asked for."""
    return dispatch.load("triton_kernels")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def gradients(out: Tensor, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, [x for x in inputs if x.requires_grad], grad)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_lif_and_its_gradient_are_those_of_the_reference(number: int) -> None:
    p, T = SETTINGS[number], (4, 3, 1)[number % 3]
    x = (normal(T if number % 4 else 1, 2, 5, 7) * 2).requires_grad_()
    v = normal(2, 5, 7, seed=1) if number % 5 else None
    wanted, end = lif_loop(x, v, T, p)
    found, last = kernels().lif(x, v, T, p)
    assert torch.equal(found, wanted) and 0.05 < wanted.mean() < 0.95
    torch.testing.assert_close(last, end, rtol=0, atol=1e-12)
    g = normal(*wanted.shape, seed=2)
    torch.testing.assert_close(gradients(found, g, x), gradients(wanted, g, x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("steps", [4, 1])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("p", [SETTINGS[0], SETTINGS[15]], ids=["hard", "soft"])
def test_norm_and_lif_in_one_are_batch_norm_and_the_reference(
    p: NeuronConfig, batch: bool, steps: int, affine: bool
) -> None:
    """33 channels: neither a power of two nor whole words."""
    p, x = replace(p, v_threshold=0.4), (normal(steps, 2, 30, 33) * 2 + 1).requires_grad_()
    weight = (normal(33, seed=1) + 1).requires_grad_() if affine else None
    bias = (normal(33, seed=2) * 0.1 + 0.6).requires_grad_() if affine else None
    mean, var = (None, None) if batch else (normal(33, seed=3), normal(33, seed=4).square() + 1)
    y = F.batch_norm(x.reshape(-1, 33), mean, var, weight, bias, batch, 0.0, 1e-5)
    wanted, end = lif_loop(y.reshape(x.shape), None, 4, p)
    found, last, m, s = kernels().norm_lif(x, weight, bias, mean, var, 1e-5, None, 4, p)
    rows = x.detach().reshape(-1, 33)
    torch.testing.assert_close(m, rows.mean(0) if batch else mean)
    torch.testing.assert_close(s, rows.var(0, unbiased=False) if batch else var)
    assert torch.equal(found, wanted) and 0.05 < wanted.mean() < 0.95
    torch.testing.assert_close(last, end)
    g = normal(*wanted.shape, seed=5)
    inputs = [q for q in (x, weight, bias) if q is not None]
    torch.testing.assert_close(gradients(found, g, *inputs), gradients(wanted, g, *inputs))


def test_statistics_keep_their_digits_far_from_zero() -> None:
    x = normal(700, 40, dtype=torch.float32) + 1e4
    mean, var = kernels().moments(x)
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var(0, unbiased=False), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(4, 3, 96), (2, 5, 32)])
def test_bits_are_the_spikes(shape: tuple[int, ...]) -> None:
    room, p = kernels(), NeuronConfig()
    x, v = normal(*shape) * 2, None
    words, last = room.Neurons(x, v, shape[0], p).forward(bits=True)
    wanted, end = lif_loop(x, v, shape[0], p)
    assert words.dtype == torch.int32 and words.numel() * 32 == wanted.numel()
    assert torch.equal(room.unpack(words, wanted.shape, x.dtype), wanted) and wanted.any()
    assert torch.equal(last, end)
    mean, var = x.flatten(0, -2).mean(0), x.flatten(0, -2).var(0, unbiased=False)
    norm = (mean, var, None, None)
    words, _ = room.Neurons(x, v, shape[0], p, norm, 1e-5).forward(bits=True)
    spikes, _ = room.Neurons(x, v, shape[0], p, norm, 1e-5).forward()
    assert torch.equal(room.unpack(words, spikes.shape, x.dtype), spikes) and spikes.any()


@pytest.mark.parametrize(("tokens", "heads", "size"), [(5, 2, 16), (50, 3, 12), (64, 1, 32)])
def test_attention_and_its_gradient_are_those_of_products(
    tokens: int, heads: int, size: int
) -> None:
    x = (normal(2, 2, tokens, 3, heads * size) > 1).double().requires_grad_()
    q, k, v = x.unflatten(-1, (heads, size)).permute(3, 0, 1, 4, 2, 5)
    wanted = ((q @ k.transpose(-2, -1)) @ v * 0.3).transpose(2, 3).flatten(3)
    found = kernels().attention(x, heads, 0.3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    g = normal(*wanted.shape, seed=1)
    torch.testing.assert_close(gradients(found, g, x), gradients(wanted, g, x))
    single = kernels().attention(x.detach().float(), heads, 0.125)
    assert torch.equal(single * 8, (wanted.detach() / 0.3).round().float()) and single.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_smaller_types_keep_their_dtype_and_compute_in_float32(dtype: torch.dtype) -> None:
    p, x = NeuronConfig(v_reset=None), (normal(4, 60, 48) * 2).to(dtype).requires_grad_()
    weight = torch.ones(48, device=DEVICE, requires_grad=True)
    y = F.batch_norm(x.float().reshape(-1, 48), None, None, weight, None, True, 0.0, 1e-5)
    wanted, _ = lif_loop(y.reshape(x.shape), None, 4, p)
    found, last, mean, _ = kernels().norm_lif(x, weight, None, None, None, 1e-5, None, 4, p)
    assert found.dtype == dtype and last.dtype == mean.dtype == torch.float32
    assert (found.float() != wanted).float().mean() < 1e-3 < wanted.mean()
    g = normal(*wanted.shape, seed=1, dtype=torch.float32).to(dtype)
    gx, gw = gradients(found, g, x, weight)
    wx, ww = gradients(wanted, g.float(), x, weight)
    assert gx.dtype == dtype and gw.dtype == torch.float32
    assert (gx.float() - wx.float()).norm() < 0.02 * wx.float().norm()
    torch.testing.assert_close(gw, ww, rtol=0.02, atol=0.02 * float(ww.abs().max()))


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that chooses the kernels as the environment would."""
    return lambda choice: monkeypatch.setattr(dispatch, "_triton", choice)


def test_attention_of_an_export_without_spikes_is_not_theirs(switched: Any) -> None:
    """It would be rounded to float16, in which spikes alone are exact."""
    from spikeformer_lt import create_model
    from spikeformer_lt.export.inference import compact
    from spikeformer_lt.layers.neuron import Relu

    torch.manual_seed(0)
    model: Any = create_model("spikformer_toy", T=2, image_size=8, depth=1).to(DEVICE)
    attention: Any = model.blocks[0].attn
    for unit in (attention.q, attention.k, attention.v, attention.proj):
        unit.act = Relu()
    attention.attn_act = Relu()
    net: Any = compact(model)
    tokens, found = normal(2, 2, 16, 32).float() * 1000, []
    for choice in ("off", "on"):
        switched(choice)
        found.append(net.net.blocks[0].attn(tokens, 2))
    assert torch.equal(*found) and found[0].any()


def test_a_whole_network_runs_on_them(switched: Any) -> None:
    """The fused norm and LIF, q, k and v together, and attention are reached from the model."""
    from spikeformer_lt import create_model

    torch.manual_seed(0)
    model = create_model("spikformer_toy", T=2, image_size=8, depth=1).double().to(DEVICE)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.constant_(module.bias, 0.5)
    images, found = torch.rand(2, 3, 8, 8, dtype=torch.float64, device=DEVICE), []
    for choice in ("off", "on"):
        switched(choice)
        model.train().zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
        model.load_state_dict(model.state_dict())
    assert found[0][0].std() > 1e-4
    for wanted, own in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_the_gradient_is_that_of_torch(switched: Any) -> None:
    x = normal(2, 40, 3).requires_grad_()
    found = []
    for choice in ("off", "on"):
        switched(choice)
        result = dispatch.norm_lif(x, None, None, None, None, 1e-5, None, 2, NeuronConfig())
        y = lif_loop(F.batch_norm(x.view(-1, 3), None, None, training=True).view(x.shape),
                     None, 2, NeuronConfig())[0] if result is None else result[0]  # fmt: skip
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_a_table_of_times_says_where_they_are_taken(tmp_path: Path, switched: Any) -> None:
    table, x = tmp_path / "table.json", torch.zeros(100, device=DEVICE)
    name = torch.cuda.get_device_name() if HAS_CUDA else "cpu"
    table.write_text(json.dumps({"device": name, "faster": {"lif float32": 100}}))
    switched(str(table))
    assert dispatch.takes_triton("lif", x)
    assert not dispatch.takes_triton("lif", x[:99])
    assert not dispatch.takes_triton("lif", x.double())
    assert not dispatch.takes_triton("norm_lif", x)
    assert not dispatch.takes_triton("lif", x, x[None].to("meta"))
    switched("off")
    assert not dispatch.takes_triton("lif", x)


def test_a_table_of_another_device_is_not_used(
    tmp_path: Path, switched: Any, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "table.json"
    table.write_text('{"device": "another", "faster": {"lif float32": 1}}')
    switched(str(table))
    assert not dispatch.takes_triton("lif", torch.zeros(100, device=DEVICE))
    assert "was measured on another" in caplog.text


@pytest.mark.parametrize("text", [None, "[]", "{}", '{"device": "cpu", "faster": {"lif": "x"}}'])
def test_what_is_no_table_is_refused(tmp_path: Path, switched: Any, text: str | None) -> None:
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    switched(str(path))
    with pytest.raises(ConfigError, match="SPIKEFORMER_TRITON=.*is not allowed: off, on, or"):
        dispatch.takes_triton("lif", torch.zeros(100, device=DEVICE))


def test_a_kernel_that_fails_is_given_up_or_said(
    tmp_path: Path, switched: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise dispatch.TritonError("_forward failed") from ValueError("no registers")

    monkeypatch.setattr(kernels(), "lif", fails)
    x, p = normal(2, 50), NeuronConfig()
    switched("on")
    with pytest.raises(ConfigError, match=r"_forward failed \(ValueError: no registers\); use off"):
        dispatch.lif(x, None, 2, p)
    monkeypatch.setattr(dispatch, "takes_triton", lambda *_: dispatch._triton != "off")
    switched("table")
    assert torch.equal(dispatch.lif(x, None, 2, p)[0], lif_loop(x, None, 2, p)[0])
    assert dispatch._triton == "off" and "no registers" in caplog.text


COMPILES = """
import torch, triton
from triton.backends.compiler import GPUTarget
from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import triton_kernels as room

names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}
done = []

def compiled(kernel, programs, *args, **constants):
    kinds, known = dict.fromkeys(constants, "constexpr"), dict(constants)
    for name, value in zip(kernel.arg_names, args):
        if isinstance(value, torch.Tensor):
            kinds[name] = names[value.dtype]
        elif value is None or (value == 1 and name != "rows"):
            kinds[name], known[name] = "constexpr", value
        else:
            kinds[name] = "i32"
    places = {(kernel.arg_names.index(name),): value for name, value in known.items()}
    source = triton.compiler.ASTSource(kernel, {n: kinds[n] for n in kernel.arg_names}, places)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert made.asm["cubin"] and made.metadata.shared <= 99 * 1024
    done.append(kernel.__name__)

room._launch = compiled
p = NeuronConfig(v_reset=None, decay_input=False, surrogate="atan", detach_reset=False)
for neuron, dtype in ((p, torch.float32), (NeuronConfig(), torch.bfloat16)):
    x = torch.randn(4, 8, 64, 96, dtype=dtype, requires_grad=True)
    room.lif(x, None, 4, neuron)[0].sum().backward()
    w = torch.randn(96, requires_grad=True)
    room.norm_lif(x, w, w, None, None, 1e-5, None, 4, neuron)[0].sum().backward()
    room.Neurons(x[:1].detach(), x[0].float().detach(), 4, neuron).forward(bits=True)
    room.attention(x.detach()[:1, :1].repeat(1, 1, 3, 1).view(1, 1, 64, 3, 96).requires_grad_(),
                   3, 0.125).sum().backward()
print(len(done), len(set(done)))
"""


@pytest.mark.slow
def test_they_compile_for_a_device_that_is_not_there(tmp_path: Path) -> None:
    """To machine code of compute capability 8.0, in the shared memory of the smallest of 8.x."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-P", "-c", COMPILES]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("18 6\n", 0), ended.stderr
