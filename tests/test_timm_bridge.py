"""Our models in timm's registry, whichever package comes first; each case in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

CHECKS = """
    from spikeformer_lt import create_model, list_models
    from spikeformer_lt.errors import ConfigError
    names = list_models()
    assert names, "no model is registered"
    assert set(names) <= set(timm.list_models()), set(names) - set(timm.list_models())
    assert [n for n in timm.list_models("spikformer*")] == [
        n for n in timm.list_models() if n.startswith("spikformer")
    ]
    name = "spikformer_toy" if "spikformer_toy" in names else names[0]
    model = timm.create_model(name, num_classes=7)
    assert type(model) is type(create_model(name, num_classes=7))
    shapes = lambda m: {k: v.shape for k, v in m.state_dict().items()}
    assert shapes(model) == shapes(create_model(name, num_classes=7))
    timm.create_model(name, pretrained=False, pretrained_cfg={}, cache_dir="x", drop_rate=None)
    for keywords in ({"pretrained": True}, {"no_such_word": 3}):
        try:
            timm.create_model(name, **keywords)
        except ConfigError as fault:
            assert next(iter(keywords)) in str(fault), fault
        else:
            raise AssertionError(keywords)
    assert timm.is_model("resnet18")
    assert not timm.is_model_pretrained(name)
"""


def run(*parts: str) -> str:
    code = "\n".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:timm", "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_timm_after_us_finds_our_models() -> None:
    before = """
        import importlib.util, sys
        import spikeformer_lt
        assert "torch" not in sys.modules and "timm" not in sys.modules
        spec = importlib.util.find_spec("timm")  # only looking must not count as the import
        assert spec.origin.endswith("__init__.py") and "timm" not in sys.modules
        assert spec.loader.get_filename("timm") == spec.origin
        hooks = len(sys.meta_path)
        import timm
        assert type(timm.__spec__.loader).__name__ == "SourceFileLoader", timm.__spec__
        assert timm.__loader__ is timm.__spec__.loader
        assert len(sys.meta_path) == hooks - 1
        import importlib
        importlib.reload(timm)
    """
    after = """
        from spikeformer_lt.registry import register_model
        from torch import nn
        @register_model
        def a_model_of_a_user(num_classes: int = 2) -> nn.Module:
            return nn.Linear(1, num_classes)
        assert timm.create_model("a_model_of_a_user", num_classes=5).out_features == 5
        modules = ("spikformer", "spikformer_dvs")
        found = sorted(name for module in modules for name in timm.list_models(module=module))
        assert found == sorted(timm.list_models("spikformer*")) and len(found) > 5
    """
    run(before, CHECKS, after)


def test_timm_before_us_finds_our_models() -> None:
    run("import timm\nimport spikeformer_lt", CHECKS, "import sys; print(len(sys.meta_path))")


CONTRACT = """
    import torch
    from timm.data import resolve_model_data_config
    from timm.optim import create_optimizer_v2
    from spikeformer_lt.adapted import at_door
    torch.manual_seed(0)
    kinds = ("spikformer", "spikingformer", "qkformer", "sdt", "sdt2", "sdt3", "bestformer",
             "maxformer", "spiking_vgg", "spiking_resnet")
    try:
        timm.create_model("sdt_toy", features_only=True, out_indices=(7,))
    except ConfigError as fault:
        assert "out_indices=(7,) is not allowed: of 3 maps" in str(fault), fault
    else:
        raise AssertionError
    for name in (f"{kind}_toy" for kind in kinds):
        net = timm.create_model(name, num_classes=7, in_chans=1, img_size=16).eval()
        images = torch.rand(2, 1, 16, 16)
        logits, features = net(images), net.forward_features(images)
        assert logits.shape == (2, 7) and features.shape[:2] == (2, net.T), (name, features.shape)
        assert torch.equal(net.forward_head(features), logits)
        pooled = net.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, net.num_features) == (2, net.get_classifier().in_features)
        assert resolve_model_data_config(net)["input_size"] == (1, 16, 16)
        groups = create_optimizer_v2(net, "adamw", weight_decay=0.1).param_groups
        assert [g["weight_decay"] for g in groups] == [0.0, 0.1]
        net.reset_classifier(3)
        assert net(images).shape == (2, 3) and float(net.head.weight.detach().std()) > 0
        net.reset_classifier(0)
        assert torch.equal(net(images), pooled) and net.num_classes == 0
        bare = timm.create_model(name, num_classes=0, in_chans=1, img_size=16)
        assert bare.eval()(images).shape == (2, net.num_features)
        bare.set_grad_checkpointing()
        parts = [part.recompute for part in bare.modules() if hasattr(part, "recompute")]
        assert parts and all(parts)
        bare.train()(images).sum().backward()
        assert at_door(net, 4, lambda: images) is net and net(images).dim() == 3
        maps = timm.create_model(name, features_only=True, in_chans=1, img_size=16).eval()
        found, info = maps(images), maps.feature_info
        assert [list(x.shape) for x in found] == [
            [2, c, 16 // r, 16 // r] for c, r in zip(info.channels(), info.reduction())
        ], name
        assert len(found) > 1 and sorted(set(info.reduction())) == info.reduction()
        last = maps.model.forward_features(images)
        last = last.mean(1).flatten(2) if last.dim() == 5 else last.mean(1).transpose(1, 2)
        assert name.startswith("spiking_") or torch.equal(found[-1].flatten(2), last), name
        some = timm.create_model(name, features_only=True, in_chans=1, img_size=16,
                                 out_indices=(0, -1)).eval()
        some.load_state_dict(maps.state_dict())
        assert all(map(torch.equal, some(images), (found[0], found[-1])))
        maps.train()(images)[0].sum().backward()
        assert next(iter(maps.parameters())).grad.abs().sum() > 0
        try:
            net.reset_classifier(3, global_pool="max")
        except ConfigError as fault:
            assert "global_pool='max' is not allowed" in str(fault), fault
        else:
            raise AssertionError(name)
"""


def test_networks_keep_timms_contract() -> None:
    before = """
        import os
        os.environ["SPIKEFORMER_KERNELS"] = "torch"  # the process compiles nothing
        import timm
        import spikeformer_lt
        from spikeformer_lt.errors import ConfigError
    """
    run(before, CONTRACT)


VALIDATE = """
    import pathlib, tempfile
    import torch
    from PIL import Image
    from timm.data import create_dataset, create_loader, resolve_data_config
    from timm.models import load_checkpoint
    from timm.utils import AverageMeter, ModelEmaV3, accuracy
    test = spikeformer_lt.create_dataset("digits", image_size=16).test
    root = pathlib.Path(tempfile.mkdtemp())
    for i, (image, label) in enumerate(zip(test.images, test.labels)):
        (root / "val" / str(int(label))).mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / "val" / str(int(label)) / f"{i}.png")

    def validate(net):  # the loop of timm's validate.py
        config = resolve_data_config({}, model=net)
        loader = create_loader(
            create_dataset("", root=str(root / "val")), batch_size=64, use_prefetcher=False,
            num_workers=0, device=torch.device("cpu"), **{k: config[k] for k in (
                "input_size", "interpolation", "mean", "std", "crop_pct")})
        top1, top5 = AverageMeter(), AverageMeter()
        net.eval()
        with torch.inference_mode():
            for images, target in loader:
                at1, at5 = accuracy(net(images), target, topk=(1, 5))
                top1.update(at1.item(), len(images))
                top5.update(at5.item(), len(images))
        return top1, top5

    net = timm.create_model("spikformer_digits", pretrained=True)
    top1, top5 = validate(net)
    assert top1.count == 359 and round(top1.avg, 2) == 96.94, top1.avg  # as on its card
    assert top1.avg < top5.avg <= 100
    torch.save({"state_dict": net.state_dict()}, root / "checkpoint.pth")
    again = timm.create_model("spikformer_digits", num_classes=10)
    load_checkpoint(again, str(root / "checkpoint.pth"))
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    images = torch.rand(3, 3, 16, 16)
    assert ModelEmaV3(net).module(images).shape == (3, 10)
    bare = timm.create_model("spikformer_digits", num_classes=0).eval()
    features = bare(images)
    assert features.shape == (3, bare.num_features)
    tokens = bare.forward_features(images)
    assert torch.equal(bare.forward_head(tokens, pre_logits=True), features)
"""


def test_timms_own_validation_gives_the_accuracy_of_the_card() -> None:
    before = """
        import os
        os.environ["SPIKEFORMER_KERNELS"] = "torch"
        import timm
        import spikeformer_lt
    """
    run(before, VALIDATE)


TINY_TIMM = """
    import sys, types, pathlib, tempfile
    root = pathlib.Path(tempfile.mkdtemp())
    (root / "timm" / "models").mkdir(parents=True)
    (root / "timm" / "__init__.py").write_text({init!r})
    (root / "timm" / "models" / "__init__.py").write_text(
        "made = {{'taken': None}}\\n"
        "def is_model(name): return name in made\\n"
        "def register_model(fn): made[fn.__name__] = fn\\n"
    )
    sys.path.insert(0, str(root))
    import spikeformer_lt
    from spikeformer_lt import registry
    registry._models._discovered = True
"""


def tiny(init: str = "create_model = None") -> str:
    """Put a stand-in for timm first on the path; it starts in a moment and can be broken."""
    return textwrap.dedent(TINY_TIMM).format(init=init)


def test_a_submodule_of_timm_is_enough() -> None:
    code = """
        @registry.register_model
        def toy(): return 3
        from timm.models import made
        assert made["toy"]() == 3
    """
    run(tiny(), code)


def test_a_failed_import_of_timm_is_tried_again() -> None:
    code = """
        for _ in range(2):
            try:
                import timm
            except ZeroDivisionError:
                pass
        (root / "timm" / "__init__.py").write_text("create_model = None")
        @registry.register_model
        def toy(): return 3
        import importlib
        importlib.invalidate_caches()
        import timm, timm.models
        assert timm.models.made["toy"]() == 3
    """
    run(tiny("1 / 0"), code)


def test_a_name_of_timms_own_is_not_taken_from_it() -> None:
    code = """
        @registry.register_model
        def taken(): return 3
        import timm, timm.models
        assert timm.models.made == {"taken": None}
    """
    run(tiny(), code)


def test_a_broken_model_of_ours_does_not_break_timm() -> None:
    code = """
        registry._models.names = lambda: 1 / 0
        import timm
        assert timm.create_model is None
        assert not any("spikeformer_lt" in type(f).__module__ for f in sys.meta_path)
    """
    run(tiny(), code)


def test_a_missing_timm_is_still_missing() -> None:
    code = """
        import sys
        sys.path = [entry for entry in sys.path if "site-packages" not in entry]
        try:
            import timm
        except ModuleNotFoundError as fault:
            assert fault.name == "timm"
        else:
            raise AssertionError(timm)
    """
    run("import spikeformer_lt", code)
