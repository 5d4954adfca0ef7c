"""trueport models: the catalogue."""

from __future__ import annotations

from . import new_app

app = new_app()


@app.command()
def models() -> None:
    """List the architectures with size, colour modes and paper."""
    from ..catalogue import models_table
    from ..console import print_table

    print_table(models_table())
