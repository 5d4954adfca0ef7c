"""The graph is right and its weights are not: of another head, another epoch, or with a bit flipped."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.runtime.bundle import WEIGHTS

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault
from .surgery import LINEAR, array, nodes, put, weighted, weights

DRIFT = 0.02
"""Of its own root mean square that a weight moves in a late epoch."""
EXPONENT = 23
"""The lowest bit of a float32's exponent: flipped, the value doubles or halves."""


def _drifted(values: Any, seed: int) -> Any:
    """As an epoch before: every weight a little elsewhere."""
    if values.dtype.kind != "f" or not values.size:
        return values
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    size = np.sqrt(np.mean(values.astype(np.float64) ** 2))
    return (values + DRIFT * size * noise).astype(values.dtype)


@fault("other head", "the last layer has other weights", "onnx")
def take_another_head(healthy: Healthy) -> Deployment:
    """The head of another fine-tuning on the same backbone, or one freshly drawn since its name did not match."""
    model = healthy.graph()
    _, last = weighted(model)[-1]
    values = array(last)
    put(last, np.random.default_rng(1).normal(values.mean(), values.std(), values.shape))
    return healthy.with_graph(model)


@fault("older checkpoint", "all weights are of an older checkpoint", "onnx")
def take_an_older_checkpoint(healthy: Healthy) -> Deployment:
    """last.pt for best.pt: nearly the same answers, and no gate on accuracy alone would see it."""
    model = healthy.graph()
    for seed, (_, tensor) in enumerate(weighted(model)):
        put(tensor, _drifted(array(tensor), seed))
    return healthy.with_graph(model)


@fault("lost bias", "a convolution has lost its bias", "onnx")
def lose_a_bias(healthy: Healthy) -> Deployment:
    """Folding a batch norm into a convolution without one, as in pytorch#166797."""
    model = healthy.graph()
    known = weights(model)
    for node in nodes(model, "Conv"):
        if len(node.input) > 2 and node.input[2] in known and array(known[node.input[2]]).any():
            put(known[node.input[2]], np.zeros_like(array(known[node.input[2]])))
            return healthy.with_graph(model)
    raise DoesNotApplyError("no convolution has a bias")


@fault("flipped bit", "a single bit of a weight is flipped", "onnx")
def flip_a_bit(healthy: Healthy) -> Deployment:
    """Memory without error correction, or a broken disk, before the seal: the largest weight of the head is halved."""
    model = healthy.graph()
    _, last = weighted(model)[-1]
    values = array(last)
    if values.dtype != np.float32:
        raise DoesNotApplyError("the weights are not float32")
    values.reshape(-1).view(np.uint32)[np.abs(values).argmax()] ^= 1 << EXPONENT
    put(last, values)
    return healthy.with_graph(model)


@fault("exchanged layers", "two layers of one shape have each other's weights", "onnx")
def exchange_two_layers(healthy: Healthy) -> Deployment:
    """A checkpoint loaded by order in place of by name."""
    model = healthy.graph()
    seen: dict[tuple[int, ...], Any] = {}
    for _, tensor in weighted(model):
        other = seen.setdefault(tuple(tensor.dims), tensor)
        if other is not tensor:
            mine, theirs = array(tensor), array(other)
            put(tensor, theirs)
            put(other, mine)
            return healthy.with_graph(model)
    raise DoesNotApplyError("no two layers have weights of one shape")


@fault("swapped channels", "the first layer takes the channels in reverse", "onnx")
def reverse_the_first_layer(healthy: Healthy) -> Deployment:
    """Weights from a framework that reads BGR, as Caffe's."""
    model = healthy.graph()
    node, first = weighted(model)[0]
    channels = healthy.bundle.manifest.preprocessing.channels
    if node.op_type != "Conv" or channels == 1 or array(first).shape[1] != channels:
        raise DoesNotApplyError("the first layer takes one channel" if channels == 1 else "the first layer is another")
    put(first, array(first)[:, ::-1])
    return healthy.with_graph(model)


@fault("transposed layer", "a square linear layer is transposed", "onnx")
def transpose_a_layer(healthy: Healthy) -> Deployment:
    """(out, in) in torch, (in, out) in TensorFlow: where the two are equal no shape tells."""
    model = healthy.graph()
    for _, tensor in weighted(model, *LINEAR):
        values = array(tensor)
        if values.ndim == 2 and values.shape[0] == values.shape[1]:
            put(tensor, values.T)
            return healthy.with_graph(model)
    raise DoesNotApplyError("no linear layer is square")


@fault("other original", "the bundle's weights are of another training", "original")
def ship_other_weights(healthy: Healthy) -> Deployment:
    """weights.safetensors was overwritten by a later run after the graph had been exported."""
    if WEIGHTS not in healthy.bundle.manifest.files:
        raise DoesNotApplyError(f"the bundle has no {WEIGHTS}")
    try:
        from safetensors.numpy import load, save
    except ImportError as error:
        raise DoesNotApplyError(f"planting it needs {error.name}") from error
    tensors = load(healthy.bundle.read(WEIGHTS))
    drifted = {name: _drifted(values, seed) for seed, (name, values) in enumerate(sorted(tensors.items()))}
    kept = {name: values for name, values in tensors.items() if name.endswith("running_var")}  # stays positive
    return healthy.with_files({WEIGHTS: save(drifted | kept)})
