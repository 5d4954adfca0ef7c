"""trueport export: a run becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from . import new_app

if TYPE_CHECKING:
    from trueport.runtime.manifest import Precision

app = new_app()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `trueport train` leaves it.")],
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

    from ..console import say
    from ..export_run import export_run, tell_warnings
    from ..run_folder import Run

    recipe = Run.open(run).recipe()
    if precision:
        section = msgspec.structs.replace(recipe.export, precision=_precisions(precision))
        recipe = msgspec.structs.replace(recipe, export=section)
    folder, manifest = export_run(run, out, recipe, say)
    tell_warnings(manifest, say)
    size = sum(entry.size for entry in manifest.files.values())
    names = ", ".join(variant.name for variant in manifest.variants)
    print(f"{folder}: {manifest.name} {manifest.version}, {names}, {len(manifest.labels)} classes, {size:,} bytes")


def _precisions(text: str) -> tuple[Precision, ...]:
    from trueport.runtime.errors import unknown_name
    from trueport.runtime.manifest import Precision

    known = get_args(Precision)
    for name in text.split(","):
        if name not in known:
            raise unknown_name("precision", name, known)
    return cast("tuple[Precision, ...]", tuple(text.split(",")))
