"""What there is to choose from: architectures, data sets, and how a data set is split, as tables."""

from __future__ import annotations

from collections import Counter

from .console import Table
from .data import dataset_names, open_dataset, split, verify
from .data.dataset import shortened
from .recipe import load_recipe, recipe_names, recipe_text
from .resolve import catalogue


def models_table() -> Table:
    """Every architecture."""
    rows = tuple(
        (spec.name, f"{spec.size[0]} x {spec.size[1]}", "/".join(map(str, spec.channels)), spec.summary, spec.paper)
        for spec in catalogue()
    )
    return Table("", ("name", "pixels", "channels", "what it is", "paper"), rows)


def recipes_table() -> Table:
    """Every recipe that comes with trueport; what it is for is its first line."""
    rows = []
    for name in recipe_names():
        recipe, title = load_recipe(name), recipe_text(name).partition("\n")[0]
        rows.append((name, recipe.model.arch, recipe.data.source, title.removeprefix("# ")))
    notes = ("`trueport run NAME` goes through every stage, `trueport recipes NAME > mine.toml` makes it yours",)
    return Table("", ("name", "architecture", "data", "what it is"), tuple(rows), notes)


def data_table() -> Table:
    """Every data set that has a name."""
    rows = []
    for name in dataset_names():
        data = open_dataset(name)
        rows.append((name, f"{len(data):,}", str(len(data.classes)), "grey" if data.grey else "colour"))
    notes = ("or any folder of class folders: FOLDER/CLASS/PICTURE",)
    return Table("", ("name", "pictures", "classes", "pixels"), tuple(rows), notes)


def split_table(source: str, validation: float, test: float, seed: int) -> Table:
    """How a data set is split, class by class. Raises UsageError that names every picture that can't be decoded."""
    data = open_dataset(source)
    verify(data)
    parts = split(data, validation, test, seed)
    counts = [Counter(data.labels[part].tolist()) for part in (parts.train, parts.validation, parts.test)]
    rows = [(name, *(str(count[label]) for count in counts)) for label, name in enumerate(data.classes)]
    rows.append(("all", *(str(count.total()) for count in counts)))
    ignored = [f"passed over, as they are no pictures: {shortened(data.ignored)}"] if data.ignored else []
    notes = (*ignored, f"data {data.fingerprint}", f"split {parts.fingerprint}")
    return Table(f"{data.name}, seed {seed}", ("class", "train", "validation", "test"), tuple(rows), notes)
