"""What there is to choose from: architectures, data sets, and how a data set is split, as tables."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import unknown_name

from .console import Table
from .data import Dataset, open_dataset, split, verify
from .data.dataset import Indices, shortened
from .data.download import shown_bytes
from .data.named import NAMED, Named
from .data.published import Published
from .progress import open_progress
from .recipe import load_recipe, recipe_names, recipe_text
from .resolve import catalogue, libraries

if TYPE_CHECKING:
    from trueport.models.registry import ModelSpec

BRING = "package.module:factory"
"""How anybody's own code is named."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """An architecture, as it is listed."""

    name: str
    aliases: tuple[str, ...]
    size: tuple[int, int]
    """Height and width in pixels it was designed for."""
    channels: tuple[int, ...]
    summary: str
    paper: str


def listed_models(library: str | None = None, pattern: str = "*") -> list[Listed]:
    """Our architectures, or the classifiers of `torchvision` or `timm`, whose names match the pattern (`*`, `?`).

    Raises UsageError for another library, MissingError where it is not installed.
    """
    own = catalogue()
    from trueport.models import brought

    if library is None:
        specs = sorted(own, key=_order)
    elif library in brought.LIBRARIES:
        with libraries():
            names = fnmatch.filter(brought.library_names(library), pattern)
            specs = [brought.spec(f"{library}/{name}") for name in names]
    else:
        raise unknown_name("library", library, brought.LIBRARIES)
    return [
        Listed(
            name=spec.name,
            aliases=spec.aliases,
            size=spec.size,
            channels=spec.channels,
            summary=spec.summary,
            paper=spec.paper,
        )
        for spec in specs
    ]


def models_table(library: str | None = None, pattern: str = "*") -> Table:
    """What `listed_models` answers; for ours, how to bring others."""
    rows = [
        (item.name, f"{item.size[0]} x {item.size[1]}", "/".join(map(str, item.channels)), *_told(item))
        for item in listed_models(library, pattern)
    ]
    if library is not None:
        brief = tuple(row[:3] for row in rows)
        return Table("", ("name", "pixels", "channels"), brief, (f"{len(rows):,} model{'s' * (len(rows) != 1)}",))
    notes = (
        "or any that maps images to logits: torchvision/NAME and timm/NAME, which `trueport models torchvision` and "
        f"`trueport models timm 'resnet*'` list, and {BRING} for your own code",
    )
    return Table("", ("name", "pixels", "channels", "what it is", "paper"), tuple(rows), notes)


def _order(spec: ModelSpec) -> list[int | str]:
    """resnet18 before resnet101: numbers in names are compared as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", spec.name)]


def _told(item: Listed) -> tuple[str, str]:
    """What it is, and who wrote the paper when; --json has the paper's title."""
    also = f" (also {', '.join(item.aliases)})" if item.aliases else ""
    cited = re.search(r"\(([^()]+)\)$", item.paper)
    return item.summary + also, cited[1] if cited else item.paper


def recipes_table() -> Table:
    """Every recipe that comes with trueport; what it is for is its first line."""
    rows = []
    for name in recipe_names():
        recipe, title = load_recipe(name), recipe_text(name).partition("\n")[0]
        rows.append((name, recipe.model.arch, recipe.data.source, title.removeprefix("# ")))
    notes = ("`trueport run NAME` goes through every stage, `trueport recipes NAME > mine.toml` makes it yours",)
    return Table("", ("name", "architecture", "data", "what it is"), tuple(rows), notes)


def data_table() -> Table:
    """Every data set that has a name; none is opened."""
    rows = tuple(
        (known.name, f"{known.pictures:,}", str(known.classes), known.pixels, _whereabouts(known))
        for known in NAMED.values()
    )
    notes = (
        "or a folder, FOLDER/CLASS/PICTURE or FOLDER/{train,val,test}/CLASS/PICTURE, or a CSV file with the columns "
        "image and label, or image and labels where a picture has several",
    )
    return Table("", ("name", "pictures", "classes", "pixels", "where"), rows, notes)


def _whereabouts(known: Named) -> str:
    if isinstance(known, Published):
        return str(known.folder()) if known.is_here() else f"to download, {shown_bytes(known.size)}"
    return "built in"


def split_table(source: str, validation: float, test: float, seed: int) -> Table:
    """How a data set is split, class by class. Raises UsageError that names every picture that can't be decoded."""
    data = open_dataset(source)
    parts = split(data, validation, test, seed)  # refuses shares before everything is decoded
    with open_progress() as progress:
        progress.begin(f"decode {data.name}", len(data))
        verify(data, progress.advance)
    members = (parts.train, parts.validation, parts.test)
    counts = np.array([_counts(data, part) for part in members])
    rows = [(name, *map(str, counts[:, label])) for label, name in enumerate(data.classes)]
    rows.append(("all pictures" if data.task == "multilabel" else "all", *(str(len(part)) for part in members)))
    ignored = [f"passed over, as they are no pictures: {shortened(data.ignored)}"] if data.ignored else []
    notes = (*ignored, f"data {data.fingerprint}", f"split {parts.fingerprint}")
    return Table(f"{data.name}, seed {seed}", ("class", "train", "validation", "test"), tuple(rows), notes)


def _counts(data: Dataset, part: Indices) -> NDArray[np.int64]:
    """How many pictures of each class are in a part; one with several labels counts for each."""
    labels = data.labels[part]
    return labels.sum(axis=0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=len(data.classes))
