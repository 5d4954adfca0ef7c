"""What a bundle says about itself: the contract between export, which writes it, and everything that reads it.

The schema is versioned as one integer: a reader takes its own version and refuses any other with a sentence.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

SCHEMA = 2
MANIFEST = "manifest.json"

ModelName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
"""Safe as a file name and in a URL."""
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
DType = Literal["uint8", "float16", "float32", "int64", "bytes"]


Task = Literal["classification", "multilabel"]
"""classification: each picture has one label, scores are a softmax. multilabel: any number, scores are sigmoids."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named tensor; -1 in the shape is the symbolic batch."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From an encoded picture to uint8 (H, W, C): decode, orientation, colour mode, resize, crop.

    What follows (scale, normalise, transpose) is inside the graph and stated by `Normalisation`.
    """

    height: int
    width: int
    mode: Literal["RGB", "L"] = "RGB"
    resize: Literal["exact", "shorter-side"] = "exact"
    """exact: straight to height x width; shorter-side: shorter side to `resize_to`, aspect ratio kept, centre crop."""
    resize_to: int | None = None
    """Pixels of the shorter side before the centre crop; None: the longer side of the crop."""
    resample: Resample = "bilinear"
    """Pillow's filter; bilinear, bicubic and lanczos widen their support when shrinking (antialiasing)."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height and width must be at least 1, found {self.height} x {self.width}")
        if self.resize == "exact" and self.resize_to is not None:
            raise ValueError("resize_to goes with resize = 'shorter-side'")
        if self.resize_to is not None and self.resize_to < max(self.height, self.width):
            raise ValueError(f"resize_to is {self.resize_to}, smaller than the crop {self.height} x {self.width}")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return 1 if self.mode == "L" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the prepared picture."""
        return self.height, self.width, self.channels


class Normalisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inside the graph: (image / 255 - mean) / std per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}, expected one per channel each")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be positive, found {list(self.std)}")


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a port in one precision may differ by, and the noise of the original it was derived from.

    Logits are compared by their absolute difference from the original's, in the logits' own unit.
    """

    max_abs: float
    """Allowed for any one logit."""
    rms: float
    """Allowed for the root mean square over all logits."""
    noise_max_abs: float
    """Largest deviation of the original from itself in float64, over the repetitions in `noise_from`."""
    noise_rms: float
    noise_from: tuple[str, ...]
    max_drop: float | None = None
    """Points of accuracy (1.0: one per cent) that may be lost; None: no prediction may change but by a tie."""


Method = Literal["minmax", "entropy", "percentile"]
"""How the ranges of activations follow from the calibration pictures."""


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One calibration, and what it was worth on validation pictures."""

    method: Method
    samples: int
    float_layers: int
    """How many layers were kept in float."""
    score: float
    """Top-1, or the mean of `comparison.overlaps` where pictures have several labels, 0 to 1."""
    original: float
    """That of the original on the same pictures."""
    rms: float
    """Of the logits' deviation from the original's."""


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an int8 graph was had."""

    scheme: Literal["u8s8", "s8s8"]
    """Activations and weights. u8s8: unsigned and asymmetric, for x86 CPUs; s8s8: signed and symmetric, for GPUs."""
    method: Method
    samples: int
    """Pictures of the training part that it was calibrated on."""
    per_channel: bool
    reduce_range: bool
    """Weights in 7 bits, for CPUs without VNNI, whose 8-bit products overflow."""
    float_layers: tuple[str, ...] = ()
    """Nodes that were kept in float because accuracy needs it."""
    trials: tuple[Trial, ...] = ()
    """What was tried, the choice among them."""


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One executable form of the model."""

    name: str
    """`fp32`, `fp16`, `bf16`, `int8-cpu`, `int8-gpu`."""
    format: Literal["onnx"]
    precision: Precision
    """What was asked for; a graph that does not reach it is not written."""
    reached: dict[str, int]
    """Layers that compute (convolutions, matrix products) by the type they compute in, read back from the graph."""
    target: Literal["any", "cpu", "gpu"] = "any"
    """The kind of device that it was made for."""
    file: str
    bounds: Bounds
    quantization: Quantization | None = None
    warnings: tuple[str, ...] = ()
    """What the activations' ranges say against this precision, layer by layer."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Integrity of one file of the bundle."""

    sha256: str
    size: int


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the model comes from: enough to rebuild the original and to tell two bundles apart."""

    arch: str
    arch_args: dict[str, int | float | str | bool]
    weights_sha256: str
    data: str
    data_sha256: str
    split_sha256: str
    seed: int
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    recipe: dict[str, object]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of manifest.json."""

    schema: int = SCHEMA
    name: ModelName
    version: str
    task: Task = "classification"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    normalisation: Normalisation
    labels: tuple[str, ...]
    variants: tuple[Variant, ...]
    provenance: Provenance
    files: dict[str, FileEntry]
    sha256: str = ""
    """Of manifest.json itself, its own 64 digits counted as zeros: no byte of a bundle can change unseen."""
