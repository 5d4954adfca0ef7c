"""The recipes that come with trueport fit the architectures and the data that they name."""

from __future__ import annotations

import tomllib

import pytest
import torch
from typer.testing import CliRunner

from trueport import models
from trueport.pipeline.cli.recipes import app
from trueport.pipeline.data import dataset_names
from trueport.pipeline.recipe import load_recipe, recipe_names, recipe_text
from trueport.pipeline.resolve import new_model
from trueport.runtime.errors import UsageError

FAMILIES = {"alexnet", "bpnet", "googlenet", "lenet", "lenet5", "resnet20", "resnet34", "resnet50", "vgg_d", "vgg_d_bn"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_what_there_is_and_says_what_it_is_for(name: str) -> None:
    recipe, text = load_recipe(name), recipe_text(name)
    assert recipe.name == name
    assert recipe.data.source in dataset_names()
    assert text.startswith("# ")
    assert len(text.partition("\n")[0]) > len("# of some use")
    with torch.device("meta"):
        new_model(recipe.model, 10, 3)
    spec = models.spec(recipe.model.arch)
    size = recipe.preprocessing.size
    assert size is None or not spec.sizes
    assert not recipe.model.init or spec.imagenet


def test_every_family_has_a_recipe() -> None:
    assert {load_recipe(name).model.arch for name in recipe_names()} >= FAMILIES


def test_one_is_listed_and_printed_as_it_is() -> None:
    listed = CliRunner().invoke(app, [])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in recipe_names())
    printed = CliRunner().invoke(app, ["resnet20-shapes"])
    assert tomllib.loads(printed.output) == tomllib.loads(recipe_text("resnet20-shapes"))


def test_an_unknown_one_has_near_choices() -> None:
    with pytest.raises(UsageError, match="did you mean resnet20-shapes"):
        recipe_text("resnet20-shape")
