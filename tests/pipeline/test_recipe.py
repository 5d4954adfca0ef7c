"""A recipe that can't be carried out to the end is refused when it is loaded, by the key that is wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from trueport.pipeline import run_folder
from trueport.pipeline.recipe import load_recipe, recipe_from_table, recipe_names
from trueport.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("bench.seconds=inf", "bench.seconds is inf, expected a finite number"),
        ("train.learning_rate=1e999", "train.learning_rate is inf"),
        ("preprocessing.std=[nan]", "preprocessing.std is nan"),
        ("preprocessing.mean=[0.5, -inf, 0.5]", "preprocessing.mean is -inf"),
        ("model.args={width=nan}", "model.args.width is nan"),
        ("train.seed=100000000000000000000", "train.seed is 100000000000000000000, expected a whole number of at most"),
        ("model.args={depth=100000000000000000000}", "model.args.depth"),
        ("data.source=caf\udce9", r"data.source is 'caf\udce9', expected UTF-8"),
        ("train.epochs=07:32:00", "train.epochs: expected a whole number, found a time"),
        ("name=1979-05-27", "name: expected a string, found a date"),
        ("data.source=1979-05-27T07:32:00Z", "data.source: expected a string, found a date"),
        ("model.args={a=1979-05-27}", "model.args[...]: expected true or false or a whole number"),
        ("train=3", "train: expected a table, found a whole number"),
        ("train.label_smoothing=1", "train.label_smoothing: expected a number < 1.0"),
        ("augment.crop_scale=[1.0, 0.08]", "augment.crop_scale has to be the least and the most, found [1.0, 0.08]"),
        ("augment.crop_ratio=[2, 1]", "augment.crop_ratio has to be the least and the most, found [2.0, 1.0]"),
        ("train={nesterov=true, momentum=0}", "train.nesterov needs a train.momentum above 0"),
        ("check.runner=[]", "check.runner: expected a list of length >= 1"),
        ('check.runner=["onnxruntim:cpu"]', "unknown check.runner 'onnxruntim:cpu': did you mean onnxruntime:cpu"),
        ("bench.batch=[]", "bench.batch: expected a list of length >= 1"),
        ("bench.batch=[0]", "bench.batch[0]: expected a whole number >= 1"),
        ("export.precision=[]", "export.precision: expected a list of length >= 1"),
        ('export.precision=["fp32", "int4"]', "unknown export.precision[1] 'int4': did you mean int8"),
        ("export.max_drop=-1", "export.max_drop: expected a number >= 0"),
        ("export.int8.samples=0", "export.int8.samples: expected a whole number >= 1"),
        ("export.int8.method=minmx", "unknown export.int8.method 'minmx': did you mean minmax"),
        ("export.int8.sample=9", "unknown recipe key in [export.int8] 'sample': did you mean samples"),
        ("export.opset=17", "export.opset: expected a whole number >= 18"),
        ("export.opset=24", "export.opset: expected a whole number <= 23"),
    ],
)
def test_what_can_t_be_carried_out_is_refused_by_its_key(change: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_from_table({"name": "x"}, [change])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_with_a_mark_of_its_bytes_order_and_missed_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf[train]\nepochs = 3\n")
    assert load_recipe(tmp_path / "mine.toml").train.epochs == 3
    with pytest.raises(UsageError, match=r"there is no recipe .*digits\.toml; digits is one that comes with trueport"):
        load_recipe(tmp_path / "digits.toml")
    with pytest.raises(UsageError, match=r"there is no recipe .*nothing\.toml: `trueport recipes` lists those"):
        load_recipe(tmp_path / "nothing.toml")


def test_changing_a_loaded_recipe_is_checked_too() -> None:
    recipe = load_recipe("digits")
    with pytest.raises(UsageError, match=r"data\.source is .*, expected UTF-8"):
        msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, source="caf\udce9"))


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_read_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["export.opset=23", 'check.runner=["onnxruntime:cuda", "onnxruntime:cpu"]'])
    run_folder.write_recipe(tmp_path / "recipe.toml", recipe)
    assert load_recipe(tmp_path / "recipe.toml") == recipe
