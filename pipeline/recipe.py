"""The recipe: every choice of the main job in one TOML file that people can read and change.

Unknown keys are refused with near choices; `--set train.epochs=3` changes one value.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from trueport.runtime.errors import UsageError, unknown_name
from trueport.runtime.manifest import ModelName, Precision, Resample
from trueport.runtime.runners import DEFAULT, RUNNERS

Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0, lt=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to learn from: a name of `trueport data list`, or a folder of class folders."""

    source: str = "digits"
    validation: Fraction = 0.1
    """Share of the pictures that chooses the best epoch."""
    test: Fraction = 0.2
    """Share held out for the accuracy that is reported."""
    seed: int = 0
    """Of the split."""


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which architecture, its own arguments, and the weights it starts from."""

    arch: str = "lenet"
    args: dict[str, int | float | str | bool] = {}
    init: str = ""
    """Empty: fresh. imagenet: torchvision's or timm's. Else a file, safetensors or a weights-only state dict."""


class PreprocessingSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Changes to what the architecture and the data imply; see `Preprocessing` and `Normalisation` of the bundle."""

    # Not tuple[Positive, Positive]: beside a number with bounds, msgspec 0.22 crashes on it in garbage collection.
    size: Positive | Annotated[tuple[Positive, ...], msgspec.Meta(min_length=2, max_length=2)] | None = None
    """Pixels: one number for a square, or [height, width]; None: the architecture's own."""
    mode: Literal["RGB", "L"] | None = None
    """None: grey where all of the data is grey."""
    resize: Literal["exact", "shorter-side"] = "exact"
    resize_to: Positive | None = None
    resample: Resample = "bilinear"
    mean: tuple[float, ...] | None = None
    """One value, or one per channel, on a scale of 0 to 1; None: what the initial weights were trained with, else the
    architecture's own."""
    std: tuple[float, ...] | None = None


class AugmentSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What training pictures go through, drawn anew for each in each epoch; the transforms are torchvision's v2."""

    shift_px: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Moved by up to so many pixels each way; the border's pixels fill what is laid bare."""
    horizontal_flip: Probability = 0.0
    vertical_flip: Probability = 0.0
    crop_scale: tuple[Share, Share] | None = None
    """RandomResizedCrop in place of resize and crop: the share of the picture's area, least and most."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Of the random crop: width by height, least and most."""
    randaugment: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Operations of RandAugment; 0: none."""
    randaugment_magnitude: Annotated[int, msgspec.Meta(ge=0, le=30)] = 9
    erase: Probability = 0.0
    """Of RandomErasing."""
    mixup: NotNegative = 0.0
    """Alpha of MixUp; 0: none. With `cutmix` too, each batch is mixed by one of them, drawn evenly."""
    cutmix: NotNegative = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            ends = getattr(self, name)
            if ends is not None and ends[0] > ends[1]:
                raise UsageError(f"augment.{name} has to be the least and the most, found {list(ends)}")


class TrainSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train."""

    epochs: Annotated[int, msgspec.Meta(ge=0)] = 30
    """0: the initial weights are taken as they are, which needs model.init."""
    batch_size: Positive = 64
    """Of each process."""
    accumulate: Positive = 1
    """Batches whose gradients make one step."""
    loss: Literal["auto", "cross-entropy", "binary-cross-entropy"] = "auto"
    """auto: cross-entropy for one label a picture, binary cross-entropy for several."""
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: the loss counts a class inversely to how often it occurs in the training part."""
    auxiliary_weight: NotNegative = 0.3
    """Of each auxiliary classifier's loss, where the architecture has any."""
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "adagrad"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NotNegative = 0.01
    decay_norms: bool = True
    """Whether biases and norms decay too, as in the papers of old; else what has more than one dimension alone."""
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    """Of sgd and rmsprop."""
    nesterov: bool = False
    """Of sgd."""
    schedule: Literal["cosine", "constant", "step", "exponential", "one-cycle"] = "cosine"
    warmup_epochs: NotNegative = 1.0
    step_epochs: Positive | tuple[Positive, ...] = 30
    """Of the schedule step: the learning rate is multiplied by gamma after every so many epochs, or after each of the
    epochs listed; counted from the end of the warm-up."""
    gamma: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    """Of the schedules step and exponential, which multiplies by it after every epoch."""
    clip_norm: NotNegative = 0.0
    """Largest norm of all gradients together; 0: not clipped."""
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Decay of the exponential moving average of the weights, which is then what is validated and kept; 0: none."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Automatic mixed precision; the weights stay float32."""
    channels_last: bool = False
    compile: bool = False
    """By torch.compile."""
    freeze: bool = False
    """Train the last layer alone; the backbone keeps its weights and its batch norm statistics."""
    patience: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Stop after so many epochs without a better one; 0: never."""
    seed: int = 0
    """Of initial weights, order and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Processes that decode and augment; None: as many as help. The numbers don't depend on it."""

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise UsageError("train.nesterov needs a train.momentum above 0: set it, or leave nesterov out")


class Int8Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How int8 is calibrated."""

    method: Literal["auto", "minmax", "entropy", "percentile"] = "auto"
    """How ranges follow from the training pictures; auto: what the validation pictures prefer."""
    samples: Positive = 256
    """Training pictures, at most."""
    reduce_range: bool = False
    """7 bits for the weights of int8-cpu, for CPUs without VNNI, whose 8-bit products overflow."""


class ExportSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes into the bundle."""

    precision: Annotated[tuple[Precision, ...], msgspec.Meta(min_length=1)] = ("fp32",)
    """fp32 is always there; int8 is two variants, one for CPUs and one for GPUs."""
    max_drop: NotNegative = 1.0
    """Points of accuracy that a precision other than fp32 may lose, the whole interval of the loss; MLPerf's 99 %."""
    int8: Int8Section = Int8Section()
    opset: Annotated[int, msgspec.Meta(ge=18, le=23)] = 20
    """Of ONNX; 18 to 23 is what torch's exporter states that it writes. bf16 takes 22 where this is less."""
    golden: Positive = 64
    """Pictures in the golden set."""
    evaluation: Positive = 1000
    """Most held-out test pictures in the evaluation slice."""


class CheckSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `check` runs on."""

    runner: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = (DEFAULT,)

    def __post_init__(self) -> None:
        for name in self.runner:
            if name not in RUNNERS:
                raise unknown_name("check.runner", name, RUNNERS)


class BenchSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `bench` times."""

    batch: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)] = (1, 8, 32)
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """For each batch size, original and port together."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The main job: train, export, check, bench, report."""

    name: ModelName
    """Also of the bundle, and in the server's addresses."""
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    preprocessing: PreprocessingSection = PreprocessingSection()
    augment: AugmentSection = AugmentSection()
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()
    check: CheckSection = CheckSection()
    bench: BenchSection = BenchSection()

    def __post_init__(self) -> None:
        _refuse_unwritable(msgspec.to_builtins(self))


def recipe_names() -> list[str]:
    """The recipes that come with trueport."""
    folder = resources.files("trueport.pipeline") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML of a recipe that comes with trueport. Raises UsageError with near choices for an unknown name."""
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return (resources.files("trueport.pipeline") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(source: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe by its name or its file, with `key=value` changes (`train.epochs=3`) on top.

    Raises UsageError for an unknown name, an unreadable file, an unknown key or a value that can't be taken.
    """
    path = Path(source)
    text = _read(path) if path.suffix == ".toml" or path.is_file() else recipe_text(str(source))
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not valid TOML: {error}") from error
    return recipe_from_table({"name": path.stem} | table, changes)


def recipe_from_table(table: dict[str, Any], changes: Iterable[str] = ()) -> Recipe:
    """The recipe that a nested table states, with `key=value` changes on top. Raises UsageError that names the key."""
    for change in changes:
        _apply(table, change)
    _refuse_unknown_keys(table)
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise UsageError(f"in the recipe: {_told(error, table)}") from error


WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "date": "a date",
    "datetime": "a date",
    "time": "a time",
    "null": "",
}
"""What msgspec's names of types are called in TOML."""


def _told(error: msgspec.ValidationError, table: dict[str, Any]) -> str:
    """What msgspec found, in a recipe's own terms: the key first, choices where there are only so many."""
    text, _, where = str(error).partition(" - at `$")
    key = where.strip(".`")
    text = re.sub("`([a-z |]+)`", lambda match: _worded(match[1]), text).replace(", got ", ", found ")
    text = re.sub("a string matching regex .*", "letters, digits, dots, dashes and underscores alone", text)
    if text.startswith("Invalid enum value") and (choices := _choices(key)):
        value: Any = table
        for part in re.findall(r"[^.[\]]+", key):
            value = value[int(part) if isinstance(value, list) else part]
        return str(unknown_name(key, str(value), choices))
    return f"{key}: {text[:1].lower()}{text[1:]}" if key else text


def _worded(types: str) -> str:
    """`int | array | null` as `a whole number or a list`."""
    return " or ".join(filter(None, (WORDS.get(name, name) for name in types.split(" | "))))


def _choices(key: str) -> tuple[str, ...]:
    """The words that may stand at a key such as `train.schedule` or `export.precision[0]`; empty: any may."""
    *sections, field = re.sub(r"\[.*", "", key).split(".")
    wanted: Any = Recipe(name="any")
    for section in sections:
        wanted = getattr(wanted, section)
    for kind in (hint := get_type_hints(type(wanted)).get(field), *get_args(hint)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return ()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        known = f"; {path.stem} is one that comes with trueport" if path.stem in recipe_names() else ""
        raise UsageError(f"there is no recipe {path}{known}: `trueport recipes` lists those") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the recipe {path}: {error}") from error


def _apply(table: dict[str, Any], change: str) -> None:
    key, separator, text = change.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UsageError(f"expected key=value such as train.epochs=3, found {change!r}")
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"{part} in {change!r} is a value, not a table of the recipe")
    table[parts[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: --set model.arch=lenet


def _refuse_unwritable(value: Any, key: str = "") -> None:
    """Raise UsageError for what neither computes nor goes into run.json."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_unwritable(item, f"{key}.{name}" if key else name)
    elif isinstance(value, tuple | list):
        for item in value:
            _refuse_unwritable(item, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"in the recipe: {key} is {value}, expected a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UsageError(f"in the recipe: {key} is {value}, expected a whole number of at most 64 bits")
    elif isinstance(value, str) and not _is_utf8(value):
        raise UsageError(f"in the recipe: {key} is {value!a}, expected UTF-8: rename what it names")


def _is_utf8(text: str) -> bool:
    """Whether no surrogate stands for a byte of a name that was none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unknown_keys(table: dict[str, Any], kind: type[msgspec.Struct] = Recipe, where: str = "") -> None:
    fields = {field.name: field.default for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            raise unknown_name(f"recipe key in [{where}]" if where else "recipe key", key, fields)
        if isinstance(section := fields[key], msgspec.Struct) and isinstance(value, dict):
            _refuse_unknown_keys(value, type(section), f"{where}.{key}" if where else key)
