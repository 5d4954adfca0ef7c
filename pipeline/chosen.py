"""What a command line says on top of a recipe, or in the place of one."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from trueport.runtime.errors import UsageError

from .recipe import Recipe, load_recipe, recipe_from_table


def chosen_recipe(
    arch: str | None, data: str | None, recipe: str | None, changes: list[str], init: str | None
) -> Recipe:
    """The recipe with what is said on top. Raises UsageError where the two contradict each other."""
    if recipe:
        loaded = load_recipe(recipe, changes)
    elif arch and data:
        loaded = recipe_from_table({"name": run_name(arch, data)}, changes)
    else:
        raise UsageError("expected an architecture and --data, such as `lenet --data digits`, or --recipe")
    if recipe and arch and arch != loaded.model.arch:
        raise UsageError(
            f"the recipe {recipe} is for {loaded.model.arch}, found {arch}: leave one of them out, "
            f"or change the recipe's by --set model.arch={arch}"
        )
    model = {"arch": arch or loaded.model.arch, "init": init or loaded.model.init}
    return msgspec.structs.replace(
        loaded,
        model=msgspec.structs.replace(loaded.model, **model),
        data=msgspec.structs.replace(loaded.data, source=data or loaded.data.source),
    )


def run_name(arch: str, data: str) -> str:
    """ARCH-DATA, as files and bundles can be called."""
    path = Path(data).resolve()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{arch}-{path.stem if path.suffix.lower() == '.csv' else path.name}")
