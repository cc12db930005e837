"""Factories by name: registration, discovery, keywords."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spikeformer_lt import registry
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import Registry, list_models


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """An empty registry over an empty package that a test may fill."""
    package = tmp_path / "shelf_of_a_test"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    shelf = Registry("model", "shelf_of_a_test")
    monkeypatch.setattr(registry, "_shelf_of_a_test", shelf, raising=False)
    yield shelf
    for name in [name for name in sys.modules if name.partition(".")[0] == "shelf_of_a_test"]:
        del sys.modules[name]


FILE = """
from spikeformer_lt.registry import _shelf_of_a_test as shelf
@shelf.register
def {name}(width: int = 3):
    return ("{name}", width)
"""


def put(shelf: Registry, tmp_path: Path, name: str, text: str = FILE) -> None:
    (tmp_path / shelf.package / f"{name}.py").write_text(text.format(name=name))


def make(name: str = "toy", **keywords: Any) -> Callable[..., Any]:
    def factory(width: int = 3, *, depth: int = 1) -> tuple[int, int]:
        return width, depth

    factory.__name__ = name
    for key, value in keywords.items():
        setattr(factory, key, value)
    return factory


def test_a_file_with_a_decorator_is_all_that_a_new_name_needs(
    shelf: Registry, tmp_path: Path
) -> None:
    put(shelf, tmp_path, "zeta")
    put(shelf, tmp_path, "alpha")
    assert "shelf_of_a_test.alpha" not in sys.modules
    assert shelf.names() == ["alpha", "zeta"]
    assert shelf.create("zeta", **{"width": 5}) == ("zeta", 5)


def test_an_unknown_name_is_refused_with_the_nearest(shelf: Registry) -> None:
    shelf.register(make("spikformer_cifar"))
    with pytest.raises(ConfigError) as caught:
        shelf.create("spikfomer")
    assert str(caught.value) == (
        "unknown model 'spikfomer'; did you mean 'spikformer_cifar'? see spikeformer-lt ls "
        "models; one of your own needs its file, --plugins FILE.py"
    )
    with pytest.raises(ConfigError, match="unknown model 'zzz'; see spikeformer-lt ls models"):
        shelf.create("zzz")
    for odd in (None, 3, ["toy"], "a\nb", "x" * 5000):
        with pytest.raises(ConfigError, match="unknown model") as caught:
            shelf.create(odd)  # type: ignore[arg-type]
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 200


def test_a_name_belongs_to_one_function(shelf: Registry) -> None:
    shelf.register(make())

    def toy() -> None: ...

    first = toy

    def toy() -> None: ...  # type: ignore[no-redef]

    with pytest.raises(ConfigError, match=r"'toy' .* already registered .* rename one"):
        shelf.register(toy)
    twins = Registry("model", "spikeformer_lt.no_such_shelf")
    twins.register(first)
    with pytest.raises(ConfigError, match="already registered"):
        twins.register(toy)
    assert shelf.create("toy") == (3, 1)


def test_a_module_that_is_executed_again_may_register_again(
    shelf: Registry, tmp_path: Path
) -> None:
    put(shelf, tmp_path, "alpha")
    first = shelf.factory("alpha")
    del sys.modules["shelf_of_a_test.alpha"]
    import importlib

    importlib.import_module("shelf_of_a_test.alpha")
    assert shelf.factory("alpha") is not first


def test_the_decorator_gives_the_function_back(shelf: Registry) -> None:
    factory = make()
    assert shelf.register(factory) is factory


def test_an_unknown_keyword_is_refused_with_the_nearest(shelf: Registry) -> None:
    shelf.register(make())
    assert shelf.create("toy", **{"depth": 4}) == (3, 4)
    with pytest.raises(ConfigError, match=r"'toy' has no keyword 'dept'; did you mean 'depth'\?"):
        shelf.create("toy", **{"dept": 4})
    with pytest.raises(ConfigError, match="'zzz'; allowed: width, depth"):
        shelf.create("toy", **{"zzz": 4})


def test_a_missing_keyword_is_named(shelf: Registry) -> None:
    def needs(num_classes: int, seed: int = 0) -> int:
        return num_classes + seed

    shelf.register(needs)
    assert shelf.create("needs", **{"num_classes": 3}) == 3
    with pytest.raises(ConfigError, match="'needs' needs the keyword num_classes"):
        shelf.create("needs")


class Net:
    """What a factory makes."""

    def __init__(self, width: int, *, T: int = 4) -> None:
        self.width, self.T = width, T


def test_keywords_passed_on_are_those_of_the_class_that_is_made(shelf: Registry) -> None:
    def net(**kwargs: Any) -> Net:
        return Net(**{"width": 8, **kwargs})

    shelf.register(net)
    assert shelf.create("net", **{"T": 2}).T == 2
    with pytest.raises(ConfigError, match=r"no keyword 'wdth'; did you mean 'width'\?"):
        shelf.create("net", **{"wdth": 3})


def test_a_factory_that_says_nothing_may_take_anything(shelf: Registry) -> None:
    def anything(**kwargs: Any) -> Any:
        return kwargs

    shelf.register(anything)
    assert shelf.create("anything", **{"x": 1}) == {"x": 1}


def test_a_missing_optional_package_costs_only_the_names_that_need_it(
    shelf: Registry, tmp_path: Path
) -> None:
    put(shelf, tmp_path, "alpha")
    put(shelf, tmp_path, "beta", "import no_such_package_at_all\n" + FILE)
    assert shelf.names() == ["alpha"]
    with pytest.raises(ConfigError, match="beta is not available: install no_such_package_at_all"):
        shelf.create("beta")


def test_a_broken_file_is_reported_and_not_skipped(shelf: Registry, tmp_path: Path) -> None:
    put(shelf, tmp_path, "alpha")
    put(shelf, tmp_path, "beta", "1 / 0\n" + FILE)
    for _ in range(2):  # the second question must not find an empty shelf
        with pytest.raises(ZeroDivisionError):
            shelf.names()
    put(shelf, tmp_path, "beta")
    assert shelf.names() == ["alpha", "beta"]


def test_a_missing_module_of_ours_is_our_mistake(shelf: Registry, tmp_path: Path) -> None:
    put(shelf, tmp_path, "alpha", "import spikeformer_lt.no_such_module\n" + FILE)
    with pytest.raises(ModuleNotFoundError):
        shelf.names()


def test_a_shelf_without_a_package_is_empty() -> None:
    assert Registry("search", "spikeformer_lt.no_such_shelf").names() == []


def test_a_module_may_ask_for_names_while_it_is_discovered(shelf: Registry, tmp_path: Path) -> None:
    put(shelf, tmp_path, "alpha", FILE + "\nseen = shelf.names()\n")
    put(shelf, tmp_path, "beta")
    assert shelf.names() == ["alpha", "beta"]
    assert sys.modules["shelf_of_a_test.alpha"].seen == ["alpha"]


def test_listeners_hear_of_each_new_name(shelf: Registry) -> None:
    heard: list[str] = []
    shelf.listeners.append(heard.append)
    shelf.register(make("a"))
    shelf.register(make("b"))
    assert heard == ["a", "b"]


@pytest.mark.parametrize(
    ("kind", "names", "create"),
    [
        ("model", registry.list_models, registry.create_model),
        ("data set", registry.list_datasets, registry.create_dataset),
        ("search", registry.list_searches, registry.create_search),
    ],
)
def test_each_shelf_lists_its_names_sorted_and_refuses_others(
    kind: str, names: Callable[[], list[str]], create: Callable[..., Any]
) -> None:
    found = names()
    assert found == sorted(set(found))
    assert found
    with pytest.raises(ConfigError, match=f"unknown {kind} 'no such name at all'"):
        create("no such name at all")
    with pytest.raises(ConfigError, match=f"{kind} '{found[0]}' has no keyword 'no_such_word'"):
        create(found[0], no_such_word=1)


def test_every_registered_factory_has_a_docstring() -> None:
    assert all(registry._models.factory(name).__doc__ for name in list_models())


class Base:
    def __init__(self, width: int, depth: int = 1) -> None:
        self.made = (width, depth)


class Derived(Base):
    def __init__(self, width: int = 3, *, own: int = 0, **options: Any) -> None:
        super().__init__(width, **options)


def derived(**options: Any) -> Derived:
    return Derived(**options)


def test_a_class_that_passes_options_to_its_base_allows_those_of_both(shelf: Registry) -> None:
    shelf.register(derived)
    assert shelf.create("derived", **{"depth": 2, "own": 1}).made == (3, 2)
    with pytest.raises(ConfigError, match=r"no keyword 'dept'; did you mean 'depth'\?"):
        shelf.create("derived", **{"dept": 2})
