"""From pixels to the network's input, inside the graph: another scale, another mean, another order of axes.

In the field the graph takes floats and these steps are the application's; here they are in the graph, and so are their
faults. Each graph says of itself what the healthy one says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.export.layers import attribute

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault
from .surgery import constant, insert_behind, normalising, redirect, set_attribute

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _statistics(healthy: Healthy, mean: Any, std: Any) -> Deployment:
    """The deployment whose graph normalises with other values, one a channel."""
    model = healthy.graph()
    chain = normalising(model)
    chain.centre.input[1] = constant(model, "other_mean", np.reshape(mean, (-1, 1, 1)).astype(np.float32))
    chain.divide.input[1] = constant(model, "other_std", np.reshape(std, (-1, 1, 1)).astype(np.float32))
    return healthy.with_graph(model)


@fault("unnormalised", "mean and deviation are forgotten", "onnx")
def forget_normalisation(healthy: Healthy) -> Deployment:
    """ToTensor() without Normalize(): pixels reach the network as 0 to 1."""
    model = healthy.graph()
    chain = normalising(model)
    redirect(model, chain.divide.output[0], chain.scale.output[0])
    return healthy.with_graph(model)


@fault("normalised twice", "mean and deviation are applied twice", "onnx")
def normalise_twice(healthy: Healthy) -> Deployment:
    """Once by the application and once in the graph."""
    import onnx

    model = healthy.graph()
    chain = normalising(model)
    centre = onnx.helper.make_node("Sub", [chain.divide.output[0], chain.centre.input[1]], ["twice_centred"])
    divide = onnx.helper.make_node("Div", ["twice_centred", chain.divide.input[1]], ["twice_divided"])
    redirect(model, chain.divide.output[0], "twice_divided")
    insert_behind(model, chain.divide, centre, divide)
    return healthy.with_graph(model)


@fault("mean for std", "mean and deviation are swapped", "onnx")
def swap_mean_and_std(healthy: Healthy) -> Deployment:
    """Two tuples of three numbers in the wrong order."""
    own = healthy.bundle.manifest.normalisation
    if 0.0 in own.mean:
        raise DoesNotApplyError("a mean of 0 can't divide")
    return _statistics(healthy, own.std, own.mean)


@fault("imagenet statistics", "ImageNet's mean and deviation in place of its own", "onnx")
def take_imagenets(healthy: Healthy) -> Deployment:
    """Copied from an example, whatever the model was trained with."""
    channels = healthy.bundle.manifest.preprocessing.channels
    mean, std = ((np.mean(values),) if channels == 1 else values for values in IMAGENET)
    return _statistics(healthy, mean, std)


@fault("unscaled", "pixels of 0 to 255 where 0 to 1 is expected", "onnx")
def forget_the_scale(healthy: Healthy) -> Deployment:
    """A uint8 array cast to float without the division by 255."""
    model = healthy.graph()
    chain = normalising(model)
    redirect(model, chain.scale.output[0], chain.transpose.output[0])
    return healthy.with_graph(model)


@fault("scaled twice", "pixels are divided by 255 twice", "onnx")
def scale_twice(healthy: Healthy) -> Deployment:
    """The application divides, and so does the graph: all pictures are nearly black."""
    model = healthy.graph()
    chain = normalising(model)
    chain.scale.input[1] = constant(model, "scale_squared", 255.0**2)
    return healthy.with_graph(model)


@fault("nhwc", "channels last, read as channels first", "onnx")
def read_as_channels_first(healthy: Healthy) -> Deployment:
    """A reshape in place of a transpose: the shape is right, every pixel is elsewhere."""
    model = healthy.graph()
    node = normalising(model).transpose
    height, width, channels = healthy.bundle.manifest.preprocessing.shape
    node.op_type = "Reshape"
    del node.attribute[:]
    node.input.append(constant(model, "channels_first", (-1, channels, height, width), np.int64))
    return healthy.with_graph(model)


@fault("transposed", "height and width are swapped", "onnx")
def swap_height_and_width(healthy: Healthy) -> Deployment:
    """(W, H) for (H, W), as between Pillow's sizes and NumPy's shapes; on square pictures no shape tells."""
    model = healthy.graph()
    height, width, _ = healthy.bundle.manifest.preprocessing.shape
    if height != width:
        raise DoesNotApplyError("the pictures are not square: a swap would be refused for its shape")
    node = normalising(model).transpose
    batch, channels, down, across = attribute(node, "perm", [0, 3, 1, 2])
    set_attribute(node, "perm", [batch, channels, across, down])
    return healthy.with_graph(model)
