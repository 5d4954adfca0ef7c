"""trueport build: TensorRT engines of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import listed, new_app

app = new_app()


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    target: Annotated[
        str,
        typer.Option(metavar="TARGETS", help="local, the GPU that is here, or a list such as sm80,sm86,sm89,sm120."),
    ] = "local",
    flavour: Annotated[
        str | None, typer.Option(metavar="NAME", help="tensorrt or rtx; what is installed where not given.")
    ] = None,
    variant: Annotated[list[str], typer.Option(metavar="NAME", help="Only this variant; repeatable.")] = [],  # noqa: B006
    precision: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these, such as fp32,fp16,bf16,int8; all where not given.")
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="RANGES", help="Batch sizes as min:opt:max, several separated by commas.")
    ] = "1:8:64",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engines that later versions load too (tensorrt).")
    ] = False,
    hardware_compatible: Annotated[
        str, typer.Option(metavar="LEVEL", help="none, ampere-plus or same-capability (tensorrt).")
    ] = "none",
    workspace_mib: Annotated[
        int | None,
        typer.Option(metavar="N", help="Scratch memory in MiB that a layer may use; the GPU's where not given."),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build even what is there.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where engines go; BUNDLE/engines where not given.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
) -> None:
    """Build engines for GPUs, and read back what they compute in. RTX engines need no GPU to be built."""
    from ..build import build as build_engines
    from ..build import build_table, options_from_text
    from ..console import emit_json, print_table, refuse_unwritable, say

    refuse_unwritable(json)
    report = build_engines(
        bundle,
        targets=listed(target),
        flavour_name=flavour,
        variants=variant,
        precisions=listed(precision or ""),
        options=options_from_text(batch, version_compatible, hardware_compatible, workspace_mib),
        rebuild=rebuild,
        out=out,
        progress=say,
    )
    emit_json(report, json)
    if json != "-":
        print_table(build_table(report))
