"""trueport export: a run becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, as `trueport train` leaves it.")],
    out: Annotated[Path | None, typer.Option(help="Bundle folder; RUN/bundle where not given.")] = None,
    precision: Annotated[str, typer.Option(help="Precisions, comma-separated.")] = "fp32",
) -> None:
    """Export. An older bundle in the same place is replaced in one step, or stays whole where this fails."""
    import msgspec

    from ..export_run import export_run
    from ..recipe import recipe_from_table
    from ..run_folder import Run

    section = Run.open(run).recipe().export
    wanted = recipe_from_table({"name": "-", "export": {"precision": precision.split(",")}}).export.precision
    folder, manifest = export_run(run, out, msgspec.structs.replace(section, precision=wanted))
    size = sum(entry.size for entry in manifest.files.values())
    names = ", ".join(variant.name for variant in manifest.variants)
    print(f"{folder}: {manifest.name} {manifest.version}, {names}, {len(manifest.labels)} classes, {size:,} bytes")
