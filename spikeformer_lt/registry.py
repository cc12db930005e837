"""Models, data sets and searches by name, with the config class of each that has options.

Modules of `spikeformer_lt.models`, `.datasets` and `.tickets` are imported when a name is first
needed, files of a user by ``--plugins FILE.py``.

Models are in timm's registry, too, without an import of timm: if it was imported before us, they
join at once; if after us, a finder on `sys.meta_path` lets the usual finders load it first.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.abc
import importlib.util
import inspect
import logging
import os
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from spikeformer_lt.errors import ConfigError, near, shown

if TYPE_CHECKING:
    from torch import nn

Factory = TypeVar("Factory", bound=Callable[..., Any])
log = logging.getLogger(__name__)
ENTRY = (
    r'^@register_VERB(?:\("(\w+)", (\w+)\))?\n(?:@.*\n)*(?:def|class) (\w+)'
    r'[\s\S]*?^    """(.*?)(?:"""|$)'
)
"""A registered function or class: name, config class, own name, first line of its docstring."""
VARIABLE = "SPIKEFORMER_LT_PLUGINS"
"""Environment variable: paths of the files, separated as those of PATH are."""


def use_plugins(files: Iterable[str | Path] = ()) -> None:
    """Import Python files, and those that the environment names, here and in every child process.

    Raises:
        ConfigError: a file is missing, is no Python file, or fails while it is imported.
    """
    paths = [str(Path(file).absolute()) for file in files]
    known = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    for path in dict.fromkeys([*known, *paths]):
        _import(Path(path))
    if paths:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*known, *paths]))


def _import(path: Path) -> None:
    where = shown(str(path), 300)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"--plugins {where} is not allowed: a Python file that exists, FILE.py")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"spikeformer_lt_plugin_{digest}_{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # first: dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        said = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise ConfigError(f"--plugins {where} cannot be imported: {said}") from fault


class Registry:
    """Named factories of one `kind`, held by the modules of `package`."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self.verb = kind.replace(" ", "")  # of register_VERB
        self.listeners: list[Callable[[str], None]] = []
        self._factories: dict[str, Callable[..., Any]] = {}
        self._configs: dict[str, type] = {}
        self._unavailable: dict[str, str] = {}
        self._written: dict[str, tuple[str, str, str]] | None = None
        self._discovered = False

    @overload
    def register(self, first: Factory) -> Factory: ...
    @overload
    def register(self, first: str, config: type) -> Callable[[Factory], Factory]: ...
    def register(self, first: Any, config: type | None = None) -> Any:
        """Register a function or class that makes a model, a data set or a search.

        Bare, a function is registered under its own name. As
        ``@register_model("my_net", MyNetConfig)`` it has a name and a dataclass of options: they
        are on the command line as ``--my-net.FIELD``, and the factory gets them as ``config``.
        Models join timm's registry too; a search is created as ``Class(config, seed, batch)``.

        Raises:
            ConfigError: another factory has that name.
        """
        if callable(first):
            return self._add(first.__name__, first, None)
        return lambda factory: self._add(first, factory, config)

    def _add(self, name: str, factory: Factory, config: type | None) -> Factory:
        present = self._factories.get(name)
        if present is not None and _origin(present) != _origin(factory):
            raise ConfigError(
                f"{self.kind} {name!r} of {factory.__module__} is already registered by "
                f"{present.__module__}; names are unique: rename one of the two functions"
            )
        self._factories[name] = factory
        if config is not None:
            self._configs[name] = config
            if hasattr(factory, "config_class"):  # a Search
                found: Any = factory
                found.name, found.config_class = name, config
        for listener in self.listeners:
            listener(name)
        return factory

    def _read(self) -> dict[str, tuple[str, str, str]]:
        """{name: (module, config class or "", docstring's first line)}, from the package's source.

        Nothing is imported, so that the command line knows the options without loading torch.
        """
        if self._written is None:
            spec = importlib.util.find_spec(self.package)
            folders = (spec and spec.submodule_search_locations) or []
            self._written = {
                name or function: (f"{self.package}.{path.stem}", config, about)
                for path in sorted(path for room in folders for path in Path(room).glob("*.py"))
                for name, config, function, about in re.findall(
                    ENTRY.replace("VERB", self.verb), path.read_text("utf-8"), re.MULTILINE
                )
            }
        return self._written

    def declared(self) -> dict[str, tuple[str, str]]:
        """Return {name: (module, config class)} of the package's entries that have options."""
        return {name: (room, config) for name, (room, config, _) in self._read().items() if config}

    def described(self) -> dict[str, str]:
        """Return {name: first line of its docstring}, sorted, of the package and of plug-ins."""
        found = {
            n: (inspect.getdoc(f) or "").partition("\n")[0] for n, f in self._factories.items()
        }
        return dict(
            sorted({**found, **{n: about for n, (*_, about) in self._read().items()}}.items())
        )

    def config_class(self, name: str) -> type | None:
        """Return the config class of `name`; None if it has no options or is unknown."""
        if name not in self._configs and name in self.declared():
            module, config = self.declared()[name]
            for room in (f"{self.package}.configs", module):  # the first imports no torch
                if importlib.util.find_spec(room):
                    found = getattr(importlib.import_module(room), config, None)
                    if isinstance(found, type):
                        return found
        return self._configs.get(name)

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._discover()
        return sorted(self._factories)

    def factory(self, name: str) -> Callable[..., Any]:
        """Return the function registered as `name`; of "name:rest" it takes the rest as `of`.

        Raises:
            ConfigError: nothing has that name; the message offers the nearest one.
        """
        self._discover()
        base, colon, rest = str(name).partition(":")
        found = self._factories.get(base)
        if found and colon and "of" in inspect.signature(found).parameters:
            return functools.partial(found, of=rest)
        if isinstance(name, str) and name in self._factories:
            return self._factories[name]
        hint = near(str(name), self._factories)
        plural = "es" if self.verb.endswith("ch") else "s"
        missing = "".join(f"; {m} is not available: {why}" for m, why in self._unavailable.items())
        raise ConfigError(
            f"unknown {self.kind} {shown(name)}{hint or ';'} see spikeformer-lt ls "
            f"{self.verb}{plural}; one of your own needs its file, --plugins FILE.py{missing}"
        )

    def create(self, name: str, /, **keywords: Any) -> Any:
        """Call the factory `name` with `keywords`.

        Raises:
            ConfigError: unknown name, unknown keyword or missing keyword.
        """
        factory, config = self.factory(name), self._configs.get(name)
        own = [f.name for f in dataclasses.fields(config)] if config else []
        given = keywords.pop("config", None) if config else None
        if (allowed := _parameters(factory)) is not None:
            allowed.pop("config", None)
            allowed |= dict.fromkeys(own, False)
            if odd := [key for key in keywords if key not in allowed]:
                raise ConfigError(
                    f"{self.kind} {name!r} has no keyword {shown(odd[0])}"
                    f"{near(odd[0], allowed) or ';'} allowed: {', '.join(allowed) or 'none'}"
                )
            if needed := [key for key, need in allowed.items() if need and key not in keywords]:
                raise ConfigError(f"{self.kind} {name!r} needs the keyword {', '.join(needed)}")
        if config is None:
            return factory(**keywords)
        values = {key: keywords.pop(key) for key in own if key in keywords}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if given is None:
            given = config(**values)
        elif values:
            given = dataclasses.replace(given, **values)
        return factory(config=given, **keywords)

    def _discover(self) -> None:
        # Set first: a module under discovery may ask for names, or import timm, which asks.
        if self._discovered:
            return
        self._discovered = True
        try:
            if importlib.util.find_spec(self.package) is None:
                return
            package = importlib.import_module(self.package)
            for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
                self._import(f"{self.package}.{module}")
            use_plugins()
        except BaseException:
            self._discovered = False
            raise

    def _import(self, module: str) -> None:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as fault:
            # A missing optional package costs the names that need it, and no other.
            if (fault.name or "").partition(".")[0] == __name__.partition(".")[0]:
                raise
            self._unavailable[module] = f"install {fault.name}"
            log.warning("%s is not available: the package %s is missing", module, fault.name)


def _origin(factory: Callable[..., Any]) -> tuple[str, str, int]:
    """Tell one definition from another; a module that is executed again gives the same."""
    code = getattr(inspect.unwrap(factory), "__code__", None)
    return factory.__module__, factory.__qualname__, getattr(code, "co_firstlineno", 0)


def _parameters(factory: Callable[..., Any]) -> dict[str, bool] | None:
    """Return {keyword: is it required} of `factory`, or None if it takes any keyword.

    A factory with ``**kwargs`` passes them on to the class that its annotation says it returns.
    """
    parameters = inspect.signature(factory).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name: p.default is p.empty for p in parameters if p.kind in kinds}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named
    if inspect.isclass(factory):  # a subclass passes them on to its base
        base = factory.__mro__[1]
        inherited = None if base is object else _parameters(base)
        return None if inherited is None else inherited | named
    try:
        made = typing.get_type_hints(factory).get("return")
    except NameError:  # an annotation that exists for type checkers only
        return None
    if not inspect.isclass(made) or made.__init__ is object.__init__:
        return None
    passed_on = _parameters(made)
    return None if passed_on is None else dict.fromkeys(passed_on, False) | named


_models = Registry("model", "spikeformer_lt.models")
_datasets = Registry("data set", "spikeformer_lt.datasets")
_searches = Registry("search", "spikeformer_lt.tickets")

register_model, list_models = _models.register, _models.names
register_dataset, list_datasets = _datasets.register, _datasets.names
register_search, list_searches = _searches.register, _searches.names
model_factory = _models.factory
create_dataset, dataset_factory = _datasets.create, _datasets.factory
create_search = _searches.create


def create_model(
    name: str, /, *, pretrained: bool | str | Path = False, **keywords: Any
) -> nn.Module:
    """Make the model registered as `name`, with its `keywords`.

    With `pretrained` it has trained weights and is in eval mode: those of a folder (a run, a ticket
    or an export of that model), or with True those that come with this package.

    Raises:
        ConfigError: unknown name, unknown or missing keyword, no weights.
        TicketError: weights of another model.
    """
    if pretrained is False:
        made: nn.Module = _models.create(name, **keywords)
    else:  # imported by name, as models are: it lies on a floor above
        _models.factory(name)  # an unknown name is refused first
        door = importlib.import_module(f"{__name__.partition('.')[0]}.export")
        made = door.pretrained_model(name, pretrained, **keywords)
    return made


def config_class(kind: str, name: str) -> type | None:
    """Return the config class of a "model", "dataset" or "search"; None if it has no options."""
    shelves = {"model": _models, "dataset": _datasets, "search": _searches}
    return shelves[kind].config_class(name)


def descriptions(kind: str) -> dict[str, str]:
    """Return {name: first line of its docstring} of "model" or "dataset", without importing any."""
    return {"model": _models, "dataset": _datasets}[kind].described()


def search_names() -> list[str]:
    """Return the searches that are registered or declared so far, sorted, without importing any."""
    return sorted({*_searches.declared(), *_searches._factories})


# What timm.create_model hands to every entry point beside the caller's own keywords.
_TIMM_ONLY = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained_model_args")
_TIMM_NAMES = {"in_chans": "in_channels", "img_size": "image_size"}
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
        ours = {_TIMM_NAMES.get(k, k): v for k, v in keywords.items() if k not in _TIMM_ONLY}
        maps, chosen = ours.pop("features_only", False), ours.pop("out_indices", None)
        model: Any = create_model(name, pretrained=pretrained, **ours)
        if maps:  # imported by name: it lies on a floor above
            door = importlib.import_module(f"{_models.package}.feature_maps")
            return door.FeatureMaps(model, chosen)  # type: ignore[no-any-return]
        if hasattr(model, "mean_over_time"):
            model.mean_over_time = True
        return model  # type: ignore[no-any-return]

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
