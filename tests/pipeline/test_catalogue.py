"""What is listed: ours with their aliases, the classifiers of torchvision and timm by pattern."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

import pytest

from trueport import models
from trueport.pipeline.catalogue import listed_models, models_table, recipes_table
from trueport.pipeline.cli import main
from trueport.pipeline.console import print_table
from trueport.runtime.errors import MissingError, UsageError


def test_ours_are_all_listed_with_aliases_and_with_how_to_bring_others() -> None:
    table = models_table()
    names = [row[0] for row in table.rows]
    assert sorted(names) == models.names()
    assert names.index("resnet18") < names.index("resnet101")
    assert "(also vgg16)" in {row[0]: row[3] for row in table.rows}["vgg_d"]
    (note,) = table.notes
    assert all(way in note for way in ("torchvision/NAME", "timm/NAME", "package.module:factory"))


def test_libraries_are_listed_by_pattern() -> None:
    found = {item.name: item for item in listed_models("timm", "vit_tiny_*")}
    assert found["timm/vit_tiny_patch16_224"].size == (224, 224)
    assert all(name.startswith("timm/vit_tiny_") for name in found)
    assert [item.name for item in listed_models("torchvision", "inception*")] == ["torchvision/inception_v3"]
    assert models_table("torchvision", "nothing*").notes == ("0 models",)
    with pytest.raises(UsageError, match="did you mean torchvision"):
        listed_models("torchvison")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 130])
def test_the_list_fits_the_terminal_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(recipes_table())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    rows = recipes_table().rows
    assert not Counter("".join("".join(map("".join, rows)).split())) - Counter("".join(out.split()))
    if width >= 80:
        assert re.findall(r"^ ([a-z][\w-]+)", out, re.MULTILINE)[1:] == [row[0] for row in rows], "names are copied"


def test_a_library_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match=r"pip install 'trueport\[timm\]'"):
        listed_models("timm")


def test_the_list_is_had_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["trueport", "models", "torchvision", "resnet18", "--json", "-"])
    with pytest.raises(SystemExit):
        main()
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["size"]) == ("torchvision/resnet18", [224, 224])
