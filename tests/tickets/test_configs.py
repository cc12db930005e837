"""Config classes of the searches: what they know without torch, and how searches are built."""

from __future__ import annotations

import inspect

import pytest

from spikeformer_lt import create_model, create_search, list_searches
from spikeformer_lt.config import from_dict, to_dict
from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.layers import patches, stems
from spikeformer_lt.mask import SCOPES
from spikeformer_lt.registry import _searches, config_class
from spikeformer_lt.tickets import Search, SnipConfig, configs


def test_the_words_are_those_that_layers_and_masks_know() -> None:
    assert configs.SCOPES == SCOPES
    assert tuple(patches.SCORES) == configs.SCORES
    assert (configs.ACTIVATIONS, configs.RESIDUALS) == (stems.ACTIVATIONS, stems.RESIDUALS)


@pytest.mark.parametrize("name", list_searches())
def test_every_search_has_one_form(name: str) -> None:
    made = create_search(name)
    assert isinstance(made, Search) and made.name == name
    kind = config_class("search", name)
    assert kind is not None and kind is type(made).config_class
    assert kind is getattr(configs, kind.__name__), "a config class belongs to configs.py"
    assert list(inspect.signature(type(made)).parameters)[:3] == ["config", "seed", "batch"]
    again = from_dict(kind, to_dict(kind()))
    assert again == kind()


def test_what_is_declared_in_the_source_is_what_gets_registered() -> None:
    assert sorted(_searches.declared()) == list_searches()


FLOORED = [
    name
    for name in list_searches()
    if {"floor", "sparsity"} <= set(dir(config_class("search", name)))
]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", FLOORED)
def test_a_floor_that_leaves_too_little_is_refused_before_training(name: str, scope: str) -> None:
    kind = config_class("search", name)
    assert kind is not None and len(FLOORED) > 3
    scoped = {"scope": scope} if hasattr(kind, "scope") else {}
    model = create_model("spikformer_toy", embed_dim=16, num_heads=2, image_size=16)

    def search(floor: float) -> Search:
        return create_search(name, sparsity=0.3, floor=floor, **scoped)

    search(0.6).check(model)
    if scope in search(0.8).floored or not scoped:
        with pytest.raises(MaskError, match=r"sparsity=0.3 with floor=0.8 is impossible"):
            search(0.8).check(model)


def test_a_search_takes_a_configuration_or_its_fields() -> None:
    def batch(count: int) -> None:
        raise AssertionError(count)

    made = create_search("snip", sparsity=0.3, images=7, seed=3, batch=batch)
    assert made.config == SnipConfig(0.3, images=7)
    assert (made.seed, made.batch) == (3, batch)
    assert create_search("snip", config=SnipConfig(images=9), sparsity=0.2).config == SnipConfig(
        0.2, images=9
    )
    with pytest.raises(ConfigError, match="no keyword 'imagse'; did you mean 'images'"):
        create_search("snip", imagse=7)
    with pytest.raises(ConfigError, match="images=1 is not allowed"):
        create_search("snip", images=1)
