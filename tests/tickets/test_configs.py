"""Config classes of the searches: what they know without torch, and how searches are built."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from spikeformer_lt import create_model, create_search, list_searches
from spikeformer_lt.config import from_dict, to_dict
from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.layers import patches, stems
from spikeformer_lt.mask import SCOPES
from spikeformer_lt.registry import _searches, config_class
from spikeformer_lt.tickets import Search, SnipConfig, configs, levels
from spikeformer_lt.tickets.configs import ImpConfig, PruneConfig


def test_the_words_are_those_that_layers_and_masks_know() -> None:
    assert levels.SCOPES == SCOPES
    assert (tuple(patches.SCORES), patches.STOPS) == (levels.SCORES, levels.STOPS)
    assert (levels.ACTIVATIONS, levels.RESIDUALS) == (stems.ACTIVATIONS, stems.RESIDUALS)


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
    scoped: dict[str, Any] = {"scope": scope} if hasattr(kind, "scope") else {}
    scoped |= (
        {"preset": "default", "start_sparsity": 0.1} if hasattr(kind, "start_sparsity") else {}
    )
    model = create_model("spikformer_toy", embed_dim=16, num_heads=2, image_size=16)

    def search(floor: float) -> Search:
        return create_search(name, sparsity=0.3, floor=floor, **scoped)

    search(0.6).check(model)
    if scope in search(0.8).floored:
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


LATE: list[tuple[str, dict[str, Any], str]] = [
    ("imp", {"sparsity": 0.6, "floor": 0.5}, "impossible"),
    ("imp", {"epochs": 2, "rewind": "3ep"}, "rewind='3ep' is not allowed: at most epochs=2"),
    ("magnitude", {"sparsity": 0.9, "floor": 0.3}, "impossible"),
    ("nm", {"m": 7}, "divides the inputs of no layer"),
    ("sparse_training", {"sparsity": 0.9, "floor": 0.2, "preset": "granet"}, "impossible"),
    ("joint", {"imp": ImpConfig(sparsity=0.6, floor=0.5)}, "impossible"),
    ("early_bird", {"kind": "channels", "sparsity": 0.9, "floor": 0.3}, "impossible"),
    ("early_bird", {"kind": "channels", "prune": PruneConfig(inside=("head",))}, "prune.inside"),
    ("edge_popup", {"sparsity": 0.999}, "sparsity=0.999 is impossible for layer"),
    ("biprop", {"sparsity": 0.999}, "sparsity=0.999 is impossible for layer"),
]


@pytest.mark.parametrize(("name", "options", "words"), LATE)
def test_what_cannot_be_is_refused_before_a_training(name, options, words) -> None:
    """By `find` of itself, whoever calls it; channels need the images that a dry run has not."""
    torch.manual_seed(0)
    model = create_model("spikformer_toy", embed_dim=16, num_heads=2, image_size=16)
    images = torch.rand(4, 3, 16, 16)

    def fit(*given: Any) -> Any:
        raise AssertionError(given)

    search = create_search(name, **options, batch=lambda n: (images[:n], torch.zeros(n)))
    with pytest.raises((ConfigError, MaskError), match=words):
        search.find(model, fit)


def test_a_floor_is_refused_only_where_weights_are_removed_by_it() -> None:
    model = create_model("spikformer_toy", embed_dim=16, num_heads=2, image_size=16)
    create_search("sparse_training", sparsity=0.9, floor=0.2).check(model)  # RigL: none is
    with pytest.raises(ConfigError, match="leaves nothing to prune"):
        create_search("sparse_training", prune=PruneConfig(inside=("no",))).check(model)
