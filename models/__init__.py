"""Architectures, one a file, and the registry that names them. Depends on torch alone."""

from . import lenet as lenet
from .registry import ModelArgumentError, ModelSpec, UnknownModelError, create, names, register, spec

__all__ = ["ModelArgumentError", "ModelSpec", "UnknownModelError", "create", "names", "register", "spec"]
