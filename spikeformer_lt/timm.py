"""Our models under their own names in timm, without importing timm.

If timm was imported before us, the models join at once; if after us, a finder on `sys.meta_path`
lets the usual finders load timm and joins when timm is complete.
"""

from __future__ import annotations

import importlib.abc
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import _models, create_model

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
# What timm.create_model hands to every entry point beside the caller's own keywords.
_TIMM_ONLY = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained_model_args")
_joined: dict[str, Callable[..., Any]] = {}


def join_timm() -> None:
    """Register our models with timm now if it is imported, else as soon as it will be."""
    if not hasattr(sys.modules.get("timm"), "create_model"):  # absent, or being imported
        if not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _TimmFinder())
        return
    if _add not in _models.listeners:
        _models.listeners.append(_add)
    try:
        names = _models.names()
    except Exception:
        # A broken model file of ours must not break somebody's `import timm`.
        log.warning("the models of spikeformer_lt did not join timm's registry", exc_info=True)
        return
    for name in names:
        _add(name)


def _add(name: str) -> None:
    from timm.models import is_model, register_model

    if name in _joined:
        return
    if is_model(name):
        log.warning("timm has its own model %r; ours is reached by our create_model only", name)
        return

    def entrypoint(pretrained: bool = False, **keywords: Any) -> nn.Module:
        if pretrained:
            raise ConfigError(
                f"pretrained=True is not allowed for {name!r}: no weights are published for it; "
                "use pretrained=False and load a ticket or a converted checkpoint"
            )
        ours = {key: value for key, value in keywords.items() if key not in _TIMM_ONLY}
        return create_model(name, **ours)

    source = _models.factory(name)
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = source.__doc__
    # timm files a model under the module of its entry point, for list_models(module=...).
    entrypoint.__module__ = source.__module__ if source.__module__ in sys.modules else __name__
    _joined[name] = entrypoint
    register_model(entrypoint)


class _TimmFinder(importlib.abc.MetaPathFinder):
    """Lets the other finders find timm, and registers our models when it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        loader: Any = spec and spec.loader
        if loader is not None:
            load = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module  # the loader's own again
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                join_timm()

            loader.exec_module = exec_module
        return spec
