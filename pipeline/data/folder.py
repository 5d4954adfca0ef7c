"""A folder of class folders, `flowers/rose/1.jpg`: the folder's name is the class, classes are sorted by name.

Pictures may lie deeper inside a class folder. Hidden files are passed over in silence, files that are not pictures are
passed over and counted in `ignored`.

ImageNet's layout has parts above the classes, `train/rose/1.jpg` and `val/rose/2.jpg`, as users of ImageNet mean them:

    train, val          val is held out as the test part, validation is a share of train
    train, test         so is test
    train, val, test    each is what it is called
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from trueport.runtime.errors import UsageError
from trueport.runtime.preprocessing import FORMATS

from .dataset import Part, displayed, shortened
from .files import FileDataset, files_below, folders_in, is_picture

PART_NAMES: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SYNSETS = "LOC_synset_mapping.txt"
"""ImageNet's own list of what the class folders' numbers mean: `n01440764 tench, Tinca tinca`."""


class Folder(FileDataset):
    """Pictures below `root`; an id is the path from there, with slashes on every system.

    names: what class folders are called where their own names mean nothing; where not given and the folder has
    ImageNet's LOC_synset_mapping.txt, what that says.
    """

    def __init__(self, root: Path, names: Mapping[str, str] | None = None) -> None:
        parts = _parts(root)
        tops = {f"{name}/": part for name, part in parts.items()} or {"": None}
        classes = _common_classes(root, list(parts)) if parts else _classes(root)
        samples: list[tuple[str, int, Part | None]] = []
        ignored: list[str] = []
        for top, part in tops.items():
            found = {name: files_below(root / f"{top}{name}") for name in classes}
            _refuse_empty(root / top, found)
            for label, name in enumerate(classes):
                paths = [f"{top}{name}/{path}" for path in found[name]]
                samples += [(path, label, part) for path in paths if is_picture(path)]
                ignored += [displayed(path) for path in paths if not is_picture(path)]
        samples.sort()
        super().__init__(
            root,
            root.resolve().name,
            _named(root, classes, names),
            [sample for sample, _, _ in samples],
            (label for _, label, _ in samples),
            [part for _, _, part in samples],
        )
        self.ignored = tuple(sorted(ignored))


def _parts(root: Path) -> dict[str, Part | None]:
    """The folders of parts, and which part each one is; None is divided. Empty where `root` has class folders."""
    names = _folders(root)
    found = [name for name in names if name.lower() in PART_NAMES]
    parts: dict[str, Part | None] = {name: PART_NAMES[name.lower()] for name in found}
    held_out = set(parts.values()) - {"train"}
    if len(found) < 2 and len(names) != len(found):
        return {}  # a folder of vehicles may well have a class train
    if found and (len(found) != len(names) or "train" not in parts.values() or len(set(parts.values())) < len(found)):
        others = [displayed(name) for name in names if name not in found]
        raise UsageError(
            f"{root} holds {', '.join(found)}, which are parts and not classes"
            + (f", beside {shortened(others)}" if others else "")
            + ": expected class folders alone, or train with val, test or both and nothing else"
        )
    if found and not held_out:
        raise UsageError(
            f"{root} holds {found[0]} alone, which is a part and not a class: "
            f"give {root / found[0]}, which is split by the recipe"
        )
    if held_out == {"validation"}:
        return {name: None if part == "train" else "test" for name, part in parts.items()}
    return {name: None if part == "train" and len(held_out) < 2 else part for name, part in parts.items()}


def _common_classes(root: Path, parts: list[str]) -> list[str]:
    """The classes, which all parts must have."""
    of_part = {part: _classes(root / part, f"; see {root / parts[0]}") for part in parts}
    everywhere = set.intersection(*map(set, of_part.values()))
    for part, classes in of_part.items():
        if odd := sorted(set(classes) - everywhere):
            others = [other for other in parts if not set(odd) <= set(of_part[other])]
            raise UsageError(
                f"the parts of {root} have other classes: {shortened(odd)} in {part} and not in {', '.join(others)}; "
                "add pictures there, or leave the class out of all parts"
            )
    return sorted(everywhere)


def _classes(root: Path, where: str = "") -> list[str]:
    """The class folders in one folder. Raises UsageError where they make no classes."""
    classes = _folders(root)
    if not classes:
        loose = sum(is_picture(entry.name) for entry in os.scandir(root))
        raise UsageError(
            f"{root} has no class folders ({loose:,} pictures lie directly in it), expected one folder for each class, "
            f"such as {root}/cat/1.jpg: sort them, or list them in a CSV manifest{where}"
        )
    if len(classes) == 1:
        raise UsageError(f"{root} has the one class folder {classes[0]}, expected at least two to tell apart")
    if unnamed := [displayed(name) for name in classes if name != displayed(name)]:
        raise UsageError(
            f"the names of class folders become labels, expected UTF-8, "
            f"found {shortened(unnamed)} in {displayed(str(root))}: rename them"
        )
    return classes


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder, expected a folder of class folders such as {root}/cat/1.jpg")
    return folders_in(root)


def _named(root: Path, folders: list[str], names: Mapping[str, str] | None) -> list[str]:
    """What the classes are called; two that would be called the same are told apart by their folders."""
    known = _synsets(root) if names is None else names
    called = [known.get(folder, folder) for folder in folders]
    return [
        f"{name} ({folder})" if called.count(name) > 1 else name for name, folder in zip(called, folders, strict=True)
    ]


def _synsets(root: Path) -> dict[str, str]:
    try:
        lines = (root / SYNSETS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"can't read the names of the classes in {root / SYNSETS}: {error}; repair or remove it"
        ) from error
    pairs = (line.partition(" ") for line in lines)
    return {folder: name.partition(",")[0].strip() for folder, _, name in pairs if name.strip()}


def _refuse_empty(root: Path, found: dict[str, list[str]]) -> None:
    empty = [name for name, paths in found.items() if not any(map(is_picture, paths))]
    if empty:
        others = sorted({PurePosixPath(path).suffix or path for name in empty for path in found[name]})
        seen = f", only {', '.join(others[:5])} files" if others else ""
        raise UsageError(
            f"no pictures in the class folder{'s' * (len(empty) > 1)} {', '.join(empty)} of {root}{seen}: "
            f"add pictures ({', '.join(FORMATS)}) or remove the folder"
        )
