"""trueport export: a run, or weights that are there already, become a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from . import listed, new_app

if TYPE_CHECKING:
    from trueport.runtime.manifest import Precision

    from ..recipe import Recipe

app = new_app()


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_ARCH",
            help="A run folder, as `trueport train` leaves it; or the architecture of weights that you have, with "
            "--init and --data.",
        ),
    ],
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Of ARCH: a file, safetensors or a weights-only state dict, or imagenet. They are taken as they are.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled pictures for ARCH, as `trueport train` takes them: what is shipped is proven on them.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Of ARCH: a recipe's file or name; defaults where not given.")
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Bundle folder; RUN/bundle where not given.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Of fp32, fp16, bf16 and int8, comma-separated; else the recipe's."),
    ] = None,
) -> None:
    """Export. An older bundle in the same place is replaced in one step, or stays whole where this fails."""
    import msgspec

    from ..console import refuse_unwritable_folder, say
    from ..export_run import export_run, tell_warnings

    refuse_unwritable_folder(out)
    precisions = _precisions(precision) if precision is not None else None
    run, chosen = (
        _from_run(source, set_) if not (init or data or recipe) else _from_weights(source, data, recipe, set_, init)
    )
    if precisions:
        section = msgspec.structs.replace(chosen.export, precision=precisions)
        chosen = msgspec.structs.replace(chosen, export=section)
    folder, manifest = export_run(run, out, chosen, say)
    tell_warnings(manifest, say)
    size = sum(entry.size for entry in manifest.files.values())
    names = ", ".join(variant.name for variant in manifest.variants)
    print(f"{folder}: {manifest.name} {manifest.version}, {names}, {len(manifest.labels)} classes, {size:,} bytes")


def _from_run(source: str, changes: list[str]) -> tuple[Path, Recipe]:
    """A run and its recipe, of which only the name and what is said of the export can be changed now."""
    from trueport.runtime.errors import UsageError

    from ..recipe import recipe_from_table
    from ..run_folder import Run, recipe_table

    run = Run.open(source)
    for change in changes:
        if not change.startswith(("export.", "name=")):
            raise UsageError(f"{source} is trained: --set changes export.… and name alone now, found {change}")
    return run.path, recipe_from_table(recipe_table(run.recipe()), changes)


def _from_weights(
    source: str, data: str | None, recipe: str | None, changes: list[str], init: str | None
) -> tuple[Path, Recipe]:
    """A run made of weights as they are, and its recipe."""
    from trueport.runtime.errors import UsageError

    from ..chosen import chosen_recipe
    from ..console import say
    from ..export_run import run_of_weights

    if Path(source).is_dir():
        raise UsageError(
            f"{source} is a folder: a run has its own data and weights, leave --data, --init and --recipe out"
        )
    chosen = chosen_recipe(source, data, recipe, changes, init)
    if not chosen.model.init:
        raise UsageError(f"whose weights? Give --init a file or imagenet, or train: `trueport train {source}`")
    run, taken = run_of_weights(chosen)
    say(f"{run.path}: {run.info.told()}")
    return run.path, taken


def _precisions(text: str) -> tuple[Precision, ...]:
    from trueport.runtime.errors import UsageError, unknown_name
    from trueport.runtime.manifest import Precision

    known, names = get_args(Precision), listed(text)
    if not names:
        raise UsageError(f"--precision takes some of {', '.join(known)}, comma-separated, found {text!r}")
    for name in names:
        if name not in known:
            raise unknown_name("precision", name, known)
    return cast("tuple[Precision, ...]", tuple(names))
