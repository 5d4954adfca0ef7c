"""The original: the trained module in eval mode, with all that turns a picture into its input. The only reference."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trueport.runtime.bundle import WEIGHTS, Bundle
from trueport.runtime.errors import BundleError, MissingError, TrustError, missing_extra
from trueport.runtime.machine import available_cores
from trueport.runtime.manifest import Manifest, Normalisation, Preprocessing, Task, TensorSpec
from trueport.runtime.runner import Array, RunnerReport

if TYPE_CHECKING:
    import torch
    from torch import nn

INPUT, OUTPUT = "image", "logits"
STATISTICS = "mean", "std"
"""Constants of the served module: the normalisation's, (C, 1, W) with one value for each channel."""


@dataclass(frozen=True, eq=False)
class Original:
    """A trained classifier: float (B, C, H, W) normalised pictures -> (B, K) logits.

    Raises ValueError where the normalisation does not fit the channels.
    """

    module: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    normalisation: Normalisation
    arch: str
    arch_args: dict[str, int | float | str | bool] = field(default_factory=dict)
    task: Task = "classification"

    def __post_init__(self) -> None:
        channels = self.preprocessing.channels
        if len(self.normalisation.mean) != channels:
            raise ValueError(f"normalisation has {len(self.normalisation.mean)} channels, the pictures have {channels}")
        self.module.eval()

    @property
    def input_spec(self) -> TensorSpec:
        """uint8 (N, H, W, C)."""
        return TensorSpec(INPUT, "uint8", (-1, *self.preprocessing.shape))

    @property
    def output_spec(self) -> TensorSpec:
        """float32 (N, K)."""
        return TensorSpec(OUTPUT, "float32", (-1, len(self.labels)))


def served_module(original: Original, dtype: torch.dtype | None = None, *, contiguous: bool = False) -> nn.Module:
    """The module as it is deployed: uint8 (N, H, W, C) in, logits (N, K) out, normalisation inside.

    dtype: what it computes in; None: float32. The logits are float32, and float64 only where that is the dtype.
    contiguous: hand the network maps that lie in memory as (N, C, H, W), which is what to export: to maps that lie as
    the pixels do some operators restride their answers, in graphs too. Eager torch is faster without.
    The first operation is the cast: TensorRT accepts a uint8 input into nothing else.
    """
    import torch
    from torch import nn

    compute = dtype or torch.float32
    network = original.module if compute == torch.float32 else copy.deepcopy(original.module).to(compute)
    # Pixels are normalised in full precision: bfloat16 has no room for 255 levels about a mean.
    precise = compute if compute == torch.float64 else torch.float32
    # In memory a row of pixels, (W, C), which eager torch walks along: three values at a time take four times as long.
    mean, std = (
        torch.tensor(values, dtype=precise).repeat(original.preprocessing.width, 1).t().unsqueeze(1)  # (C, 1, W)
        for values in (original.normalisation.mean, original.normalisation.std)
    )

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

        def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            planes = image.to(precise).permute(0, 3, 1, 2)  # first: onnxruntime is slow at pixels of a single value
            normalised = (planes / 255).sub_(self.mean).div_(self.std)  # in place: training is faster by it
            if contiguous:
                normalised = normalised.contiguous()
            logits: torch.Tensor | tuple[torch.Tensor, ...] = self.network(normalised.to(compute))
            if isinstance(logits, tuple):  # in training mode: those of auxiliary classifiers too
                return tuple(part.float() for part in logits)
            return logits if compute == torch.float64 else logits.float()

    return Served().eval()


class OriginalRunner:
    """The original behind the Runner contract, eager, on the CPU.

    threads: torch has one setting for the whole process; it is put in place for each run and back after it.
    dtype: None is float32; float64 is the reference that float32's own noise is measured against.
    """

    def __init__(self, original: Original, threads: int | None = None, dtype: torch.dtype | None = None) -> None:
        self.inputs = (original.input_spec,)
        self.outputs = (original.output_spec,)
        self._threads = threads or available_cores()
        self._module = served_module(original, dtype)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch."""
        import torch

        before = torch.get_num_threads()
        if before != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                return {OUTPUT: self._module(torch.from_numpy(feeds[INPUT])).numpy()}
        finally:
            if before != self._threads:
                torch.set_num_threads(before)

    def report(self) -> RunnerReport:
        """Eager torch on the CPU."""
        import torch

        return RunnerReport(
            name="original",
            provider="torch eager",
            device="cpu",
            threads=self._threads,
            versions={"torch": str(torch.__version__)},
        )

    def close(self) -> None:
        """Drop the module."""
        del self._module


def original_from_bundle(bundle: Bundle, trust_code: bool = False) -> Original:
    """Rebuild the original from a bundle's weights.

    trust_code: consent to import and call a `package.module:factory` that the bundle names, which may be any code.
    Raises TrustError where that is needed and not given, MissingError where the bundle has no weights, or torch, timm
    or the factory's module is not here, and BundleError where the weights don't fit.
    """
    if WEIGHTS not in bundle.manifest.files:
        raise MissingError(f"the bundle has no {WEIGHTS}, which the original is rebuilt from")
    try:
        from safetensors.torch import load

        from trueport import models
        from trueport.models.state import load_tensors
    except ImportError as error:
        raise missing_extra(error.name or "torch", "train", "the original") from error
    manifest, origin = bundle.manifest, bundle.manifest.provenance
    brought = models.brought.kind(origin.arch) == "code"
    if brought and not trust_code:
        raise TrustError(
            f"rebuilding the original would run {origin.arch}, code that the bundle names: "
            "where you trust whoever made it, say so with --trust-code (trust_code=True)"
        )
    channels = manifest.preprocessing.channels
    try:
        module = models.create(origin.arch, num_classes=len(manifest.labels), channels=channels, **origin.arch_args)
        load_tensors(module, load(bundle.read(WEIGHTS)))
    except models.MissingLibraryError as error:
        raise missing_extra(error.package, "timm" if error.package == "timm" else "train", origin.arch) from error
    except (models.UnknownModelError, TypeError, ValueError) as error:  # of arguments that nothing here would write
        if brought and isinstance(error, models.UnknownModelError):
            raise MissingError(f"the original needs the code that made it: {error}") from error
        raise BundleError(f"{bundle.path} was made by another trueport: {error}") from error
    except RuntimeError as error:
        raise BundleError(f"the weights of {bundle.path} don't fit {origin.arch}: {error}") from error
    return original_of(module, manifest)


def original_of(module: nn.Module, manifest: Manifest) -> Original:
    """A module, with what a bundle says is around it."""
    return Original(
        module,
        manifest.labels,
        manifest.preprocessing,
        manifest.normalisation,
        manifest.provenance.arch,
        manifest.provenance.arch_args,
        manifest.task,
    )


def original_runner(bundle: Bundle, threads: int | None = None, trust_code: bool = False) -> OriginalRunner:
    """The original of a bundle, ready to run beside its port. Raises what `original_from_bundle` raises."""
    return OriginalRunner(original_from_bundle(bundle, trust_code), threads)
