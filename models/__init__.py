"""Architectures, one a file, and the registry that names them. Depends on torch alone."""

from . import lenet as lenet
from .registry import Adapted, ModelArgumentError, ModelSpec, UnknownModelError, create, names, register, spec

__all__ = ["Adapted", "ModelArgumentError", "ModelSpec", "UnknownModelError", "create", "names", "register", "spec"]
