"""Files of a user that register models, data sets or searches: ``--plugins FILE.py``.

The files are kept in an environment variable, so that the child processes of a comparison know the
same names.

Models, data sets and searches by name.

A decorator on a factory function registers it under the function's own name. The modules of
`spikeformer_lt.models`, `.datasets` and `.tickets` are imported at the first question about a name,
so that nothing is imported for a user who asks nothing; files of the user's own join by
``--plugins FILE.py`` (see `spikeformer_lt.registry`). Models also join timm's registry, whichever
of the two packages is imported first and without importing timm here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import logging
import os
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spikeformer_lt.errors import ConfigError, near, shown

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "VARIABLE",
    "Factory",
    "Registry",
    "create_dataset",
    "create_model",
    "create_search",
    "dataset_factory",
    "import_plugins",
    "list_datasets",
    "list_models",
    "list_searches",
    "register_dataset",
    "register_model",
    "register_search",
    "use_plugins",
]

VARIABLE = "SPIKEFORMER_LT_PLUGINS"
"""Environment variable: paths of the files, separated as those of PATH are."""


def use_plugins(files: Iterable[str | Path]) -> None:
    """Import files, here and in every process that this one starts.

    Args:
        files: Python files; each is imported once a process.

    Raises:
        ConfigError: a file is missing, is no Python file, or fails while it is imported.
    """
    paths = [str(Path(file).absolute()) for file in files]
    known = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    for path in paths:
        _import(Path(path))
    if paths:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*known, *paths]))


def import_plugins() -> None:
    """Import the files that the environment names.

    Raises:
        ConfigError: as `use_plugins`.
    """
    for path in os.environ.get(VARIABLE, "").split(os.pathsep):
        if path:
            _import(Path(path))


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
    except Exception as fault:
        del sys.modules[name]
        said = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise ConfigError(f"--plugins {where} cannot be imported: {said}") from fault


Factory = TypeVar("Factory", bound=Callable[..., Any])
log = logging.getLogger(__name__)


class Registry:
    """One shelf of named factories.

    Args:
        kind: what the factories make, as messages call it ("model").
        package: package whose modules hold the factories.
        listing: how a user lists the names, for messages.
    """

    def __init__(self, kind: str, package: str, listing: str) -> None:
        self.kind = kind
        self.package = package
        self.listing = listing
        self.listeners: list[Callable[[str], None]] = []
        self._factories: dict[str, Callable[..., Any]] = {}
        self._unavailable: dict[str, str] = {}
        self._discovered = False

    def register(self, factory: Factory) -> Factory:
        """Register `factory` under its own name and return it unchanged.

        Raises:
            ConfigError: another factory has that name.
        """
        name = factory.__name__
        present = self._factories.get(name)
        if present is not None and _origin(present) != _origin(factory):
            raise ConfigError(
                f"{self.kind} {name!r} of {factory.__module__} is already registered by "
                f"{present.__module__}; names are unique: rename one of the two functions"
            )
        self._factories[name] = factory
        for listener in self.listeners:
            listener(name)
        return factory

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._discover()
        return sorted(self._factories)

    def factory(self, name: str) -> Callable[..., Any]:
        """Return the function registered as `name`.

        Raises:
            ConfigError: nothing has that name; the message offers the nearest one.
        """
        self._discover()
        if isinstance(name, str) and name in self._factories:
            return self._factories[name]
        hint = near(str(name), self._factories)
        missing = "".join(f"; {m} is not available: {why}" for m, why in self._unavailable.items())
        raise ConfigError(
            f"unknown {self.kind} {shown(name)}{hint or ';'} see {self.listing}(); one of your own "
            f"needs its file, --plugins FILE.py{missing}"
        )

    def create(self, name: str, keywords: Mapping[str, Any]) -> Any:
        """Call the factory `name` with `keywords`.

        Raises:
            ConfigError: unknown name, unknown keyword or missing keyword.
        """
        factory = self.factory(name)
        allowed = _parameters(factory)
        if allowed is not None:
            for keyword in keywords:
                if keyword not in allowed:
                    raise ConfigError(
                        f"{self.kind} {name!r} has no keyword {shown(keyword)}"
                        f"{near(keyword, allowed) or ';'} allowed: {', '.join(allowed) or 'none'}"
                    )
            needed = [key for key, needed in allowed.items() if needed and key not in keywords]
            if needed:
                raise ConfigError(f"{self.kind} {name!r} needs the keyword {', '.join(needed)}")
        return factory(**keywords)

    def _discover(self) -> None:
        # Set first: a module under discovery may ask for names, or import timm, which asks.
        if self._discovered:
            return
        self._discovered = True
        try:
            try:
                package = importlib.import_module(self.package)
            except ModuleNotFoundError as fault:
                if fault.name != self.package:
                    raise
                return
            for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
                self._import(f"{self.package}.{module}")
            import_plugins()
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


_models = Registry("model", "spikeformer_lt.models", "list_models")
_datasets = Registry("data set", "spikeformer_lt.datasets", "list_datasets")
_searches = Registry("search", "spikeformer_lt.tickets", "list_searches")


def register_model(factory: Factory) -> Factory:
    """Register a function that makes a model; its name is the model's name, in timm too."""
    return _models.register(factory)


def register_dataset(factory: Factory) -> Factory:
    """Register a function that makes the splits of a data set; its name is the set's name."""
    return _datasets.register(factory)


def register_search(factory: Factory) -> Factory:
    """Register a function that makes a ticket search; its name is the search's name."""
    return _searches.register(factory)


def create_model(name: str, /, **keywords: Any) -> nn.Module:
    """Make the model called `name`.

    Raises:
        ConfigError: unknown name or keyword; the message offers the nearest one.
    """
    return typing.cast("nn.Module", _models.create(name, keywords))


def dataset_factory(name: str) -> Callable[..., Any]:
    """Return the function that makes the data set called `name`.

    Raises:
        ConfigError: unknown name; the message offers the nearest one.
    """
    return _datasets.factory(name)


def create_dataset(name: str, /, **keywords: Any) -> Any:
    """Make the splits of the data set called `name`.

    Raises:
        ConfigError: unknown name or keyword; the message offers the nearest one.
    """
    return _datasets.create(name, keywords)


def create_search(name: str, /, **keywords: Any) -> Any:
    """Make the ticket search called `name`.

    Raises:
        ConfigError: unknown name or keyword; the message offers the nearest one.
    """
    return _searches.create(name, keywords)


def list_models() -> list[str]:
    """Return the names of all models, sorted."""
    return _models.names()


def list_datasets() -> list[str]:
    """Return the names of all data sets, sorted."""
    return _datasets.names()


def list_searches() -> list[str]:
    """Return the names of all searches, sorted."""
    return _searches.names()
