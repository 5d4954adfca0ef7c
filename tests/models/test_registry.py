"""Every architecture of the catalogue keeps the registry's promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trueport import models
from trueport.models import registry


@pytest.fixture
def empty_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SPECS", {})
    monkeypatch.setattr(registry, "_ALIASES", {})


@pytest.mark.parametrize("name", models.names())
def test_every_model_answers_logits_for_every_channel_count_and_trains(name: str) -> None:
    spec = models.spec(name)
    for channels in spec.channels:
        model = models.create(name, num_classes=7, channels=channels)
        logits = model(torch.rand(2, channels, *spec.size))
        assert logits.shape == (2, 7)
        assert logits.dtype == torch.float32
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", models.names())
def test_every_model_is_described_and_refuses_what_it_cannot_take(name: str) -> None:
    spec = models.spec(name)
    assert spec.name == name
    assert spec.summary
    assert "\n" not in spec.summary
    assert spec.paper
    assert spec.url.startswith("http")
    with pytest.raises(models.ModelArgumentError, match="input channels, found 17"):
        models.create(name, num_classes=2, channels=17)
    with pytest.raises(models.ModelArgumentError, match="no argument 'depht'"):
        models.create(name, num_classes=2, depht=3)
    with pytest.raises(models.ModelArgumentError, match="at least one class"):
        models.create(name, num_classes=0)


@pytest.mark.parametrize("name", models.names())
def test_every_model_has_the_same_weights_for_the_same_seed(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = models.create(name, num_classes=2).state_dict()
        torch.manual_seed(3)
        second = models.create(name, num_classes=2).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_unknown_name_lists_near_choices_else_all() -> None:
    with pytest.raises(models.UnknownModelError, match="did you mean lenet") as near:
        models.create("lenett", num_classes=2)
    assert near.value.choices == ["lenet"]
    with pytest.raises(models.UnknownModelError) as far:
        models.spec("zzzzzz")
    assert far.value.choices == models.names()


@pytest.mark.usefixtures("empty_catalogue")
def test_a_name_is_registered_once() -> None:
    def add() -> None:
        @models.register("tiny", summary="one layer", paper="none", url="http://example.org", size=4)
        class Tiny(nn.Module):
            def __init__(self, num_classes: int, channels: int, width: int = 5) -> None:
                super().__init__()

    add()
    assert models.names() == ["tiny"]
    assert models.spec("tiny").arguments == {"width": 5}
    with pytest.raises(ValueError, match="two architectures are named 'tiny'"):
        add()
