"""Architectures, one family a file, and the registry that names them. Depends on torch alone."""

from . import alexnet as alexnet
from . import bpnet as bpnet
from . import googlenet as googlenet
from . import lenet as lenet
from . import lenet5 as lenet5
from . import resnet as resnet
from . import resnet_cifar as resnet_cifar
from . import vgg as vgg
from .brought import MissingLibraryError
from .registry import Adapted, ModelArgumentError, ModelSpec, UnknownModelError, create, names, register, spec

__all__ = [
    "Adapted",
    "MissingLibraryError",
    "ModelArgumentError",
    "ModelSpec",
    "UnknownModelError",
    "create",
    "names",
    "register",
    "spec",
]
