"""Every architecture of the catalogue keeps the registry's promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trueport import models
from trueport.models import registry


@pytest.fixture
def empty_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SPECS", {})
    monkeypatch.setattr(registry, "_ALIASES", {})


HEAVY = {"resnet101", "resnet152", "resnet1202", "vgg_b", "vgg_b_bn", "vgg_d", "vgg_d_bn", "vgg_e", "vgg_e_bn"}
"""Names whose every step takes long, even on small pictures: left to `make sweep`, as lighter ones share their code."""
NAMES = [pytest.param(name, marks=pytest.mark.sweep if name in HEAVY else ()) for name in models.names()]


def small(name: str) -> dict[str, Any]:
    """Own arguments that make linear layers of millions of weights small."""
    return {"width": 16} if "width" in models.spec(name).arguments else {}


def small_size(spec: models.ModelSpec) -> tuple[int, int]:
    """32 x 32 where that can be had, else the smallest or only size."""
    return spec.size if spec.sizes or max(spec.size) <= 32 else (max(spec.minimum, 32),) * 2


@pytest.mark.parametrize("name", NAMES)
def test_every_model_answers_logits_for_every_channel_count_and_trains(name: str) -> None:
    spec = models.spec(name)
    for channels in spec.channels:
        model = models.create(name, num_classes=7, channels=channels, **small(name))
        answer = model(torch.rand(2, channels, *small_size(spec)))
        answers = answer if isinstance(answer, tuple) else (answer,)
        assert all(logits.shape == (2, 7) for logits in answers)
        assert all(logits.dtype == torch.float32 for logits in answers)
        sum(logits.sum() for logits in answers).backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        assert not [key for key, gradient in gradients.items() if gradient is None]
        assert not [key for key, gradient in gradients.items() if gradient is not None and not gradient.any()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in models.names()]
)
def test_every_model_takes_the_size_it_was_designed_for(name: str) -> None:
    """With its own defaults: shapes without numbers."""
    spec = models.spec(name)
    with torch.device("meta"):
        model = models.create(name, num_classes=7, channels=spec.channels[0]).eval()
        assert model(torch.rand(2, spec.channels[0], *spec.size)).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_answers_each_row_alone_in_evaluation(name: str) -> None:
    spec = models.spec(name)
    channels = spec.channels[-1]
    # Untrained, the sums of six hundred blocks would overflow.
    arguments = {"zero_init": True} if name == "resnet1202" else small(name)
    model = models.create(name, num_classes=3, channels=channels, **arguments).eval()
    batch = torch.rand(3, channels, *small_size(spec))
    with torch.inference_mode():
        together, alone = model(batch), model(batch[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5 * float(together.abs().max()))


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


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_the_same_weights_for_the_same_seed(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = models.create(name, num_classes=2, **small(name)).state_dict()
        torch.manual_seed(3)
        second = models.create(name, num_classes=2, **small(name)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_unknown_name_lists_near_choices_else_all() -> None:
    with pytest.raises(models.UnknownModelError, match="did you mean lenet") as near:
        models.create("lenett", num_classes=2)
    assert near.value.choices[0] == "lenet"
    with pytest.raises(models.UnknownModelError) as far:
        models.spec("zzzzzz")
    assert set(models.names()) < set(far.value.choices)


def test_an_alias_finds_the_architecture_and_is_no_name() -> None:
    assert models.spec("vgg16_bn") is models.spec("vgg_d_bn")
    assert "vgg16_bn" not in models.names()
    with torch.device("meta"):
        assert isinstance(models.create("vgg16", num_classes=2), type(models.create("vgg_d", num_classes=2)))


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
