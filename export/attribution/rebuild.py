"""A bundle written anew with some layers of an int8 variant back in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Manifest, Variant

from ..bundle import write_files
from ..golden import exact_answers
from ..layers import check_reached
from ..variants import Recorded, int8_bounds
from .float_layers import in_float, node_names
from .subject import Subject


def rebuilt_bundle(subject: Subject, variant: Variant, layers: Sequence[str], out: Path) -> Manifest:
    """Write the bundle into `out` with these layers of the variant in float, its bounds derived anew, sealed.

    Bounds are those of the graph against the original in float64; where that can't be rebuilt here, its recording.
    Raises UsageError where the variant is not int8 or has no such layers, or `out` holds something else; ExportError
    where no layer would be left in int8.
    """
    bundle = subject.bundle
    if variant.quantization is None or not layers:
        raise UsageError(f"expected layers of an int8 variant to keep in float, found {len(layers)} of {variant.name}")
    graph = subject.graph(variant)
    nodes = node_names(graph, layers)
    if len(nodes) < len(set(layers)):
        raise UsageError(f"{variant.name} has no integer layers {', '.join(layers)}: explain this very bundle again")
    made = in_float(graph, subject.graph(subject.base), nodes)
    recorded = Recorded(subject.golden, subject.evaluation)
    images = subject.golden.images
    exact = subject.golden.logits if subject.original is None else exact_answers(subject.original, images)
    kept = tuple(dict.fromkeys((*variant.quantization.float_layers, *layers)))
    changed = msgspec.structs.replace(
        variant,
        reached=check_reached(made, variant.precision),
        bounds=int8_bounds(made, recorded, exact, variant.bounds.max_drop),
        quantization=msgspec.structs.replace(variant.quantization, float_layers=kept),
    )
    others = bundle.manifest.variants
    variants = tuple(changed if one.name == variant.name else one for one in others)
    content = {name: bundle.read(name) for name in bundle.manifest.files}
    content[variant.file] = made.SerializeToString(deterministic=True)
    return write_files(out, msgspec.structs.replace(bundle.manifest, variants=variants), content)
