"""Models that are brought along: `torchvision/NAME`, `timm/NAME`, and `package.module:factory` for anybody's own code.

https://docs.pytorch.org/vision/stable/models.html and https://huggingface.co/docs/timm.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .registry import ModelArgumentError, ModelSpec, UnknownModelError

Kind = Literal["own", "torchvision", "timm", "code"]
LIBRARIES: tuple[Literal["torchvision", "timm"], ...] = ("torchvision", "timm")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pictures, on a scale of 0 to 1."""
CHANNEL_ARGUMENTS = ("channels", "in_chans", "in_channels")
SIZE_ARGUMENTS: Mapping[str, str] = {"torchvision": "image_size", "timm": "img_size"}
"""The argument of their networks that are built for one size of picture."""
_BY_INIT = re.compile(r"pretrained|weights|checkpoint|cache_dir|progress$")
"""Arguments that would fetch or read weights: those are model.init's, which says what it does and checks it."""
_WITH_INITIALISATION = {"googlenet", "inception_v3"}
"""Of torchvision; asked aloud for initialising, which is their default, they don't warn that it will not stay so."""
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_URLS = {
    "torchvision": "https://docs.pytorch.org/vision/stable/models.html",
    "timm": "https://huggingface.co/docs/timm",
}


class MissingLibraryError(LookupError):
    """The library that a brought model comes from is not installed; `package` is its name."""

    def __init__(self, package: str) -> None:
        self.package = package
        super().__init__(f"{package} is not installed")


def kind(name: str) -> Kind:
    """Where an architecture of this name comes from; nothing is imported."""
    for library in LIBRARIES:
        if name.startswith(f"{library}/"):
            return library
    return "code" if ":" in name else "own"


def spec(name: str) -> ModelSpec:
    """What is known about a brought model. A factory's module is imported, which runs its code.

    Raises UnknownModelError and MissingLibraryError.
    """
    of = kind(name)
    if of == "torchvision":
        return _torchvision_spec(name)
    return _timm_spec(name) if of == "timm" else _factory_spec(name)


def library(name: str) -> ModuleType:
    """Import torchvision or timm. Raises MissingLibraryError."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingLibraryError(error.name or name) from error


def library_names(name: str) -> list[str]:
    """The classifiers of torchvision or timm, without the library's name before them. Raises MissingLibraryError."""
    found = library(name)
    listed: list[str] = found.models.list_models(module=found.models) if name == "torchvision" else found.list_models()
    return listed


def namesakes(name: str) -> list[str]:
    """Models of the installed libraries that have exactly this name, as a recipe would name them."""
    found = []
    for source in LIBRARIES:
        with suppress(MissingLibraryError):
            found += [f"{source}/{name}"] if name in library_names(source) else []
    return found


def sized(found: ModelSpec, arguments: Mapping[str, object]) -> ModelSpec:
    """The spec as these arguments change it: one of them may be the size that the network is built for."""
    pixels = arguments.get(SIZE_ARGUMENTS.get(kind(found.name), ""))
    if not isinstance(pixels, int):
        return found
    size = (pixels, pixels)
    return replace(found, size=size, sizes=(size,), minimum=1)


def probe(name: str, module: nn.Module, num_classes: int, channels: int, size: tuple[int, int]) -> None:
    """Have a freshly built module answer zeros, as it is deployed and as it is trained, and look at the logits.

    Its buffers, its mode and torch's global generator are as they were afterwards.
    Raises ModelArgumentError where it can't take such pictures, or answers something else than logits (B, num_classes).
    """
    buffers = {key: buffer.clone() for key, buffer in module.named_buffers()}
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            for training in (False, True):
                module.train(training)
                answer = functional_call(module, buffers, (torch.zeros(2, channels, *size),))
                _refuse_other_logits(name, answer, num_classes, training)
    except ModelArgumentError:
        raise
    except Exception as error:  # whatever somebody else's forward may raise
        pictures = f"pictures of {size[0]} x {size[1]} pixels and {channels} channels"
        raise ModelArgumentError(f"{name} can't take {pictures}: {_reason(error)}") from error
    finally:
        for part, training in modes:
            part.training = training


def _refuse_other_logits(name: str, answer: Any, num_classes: int, training: bool) -> None:
    logits = answer[0] if training and isinstance(answer, tuple) and answer else answer
    if not isinstance(logits, Tensor):
        raise ModelArgumentError(f"{name} answers {type(answer).__name__}, expected one tensor of logits (B, K)")
    if logits.ndim != 2 or len(logits) != 2:
        raise ModelArgumentError(
            f"{name} answers {tuple(logits.shape)} for 2 pictures, expected logits (2, {num_classes})"
        )
    if logits.shape[1] != num_classes:
        raise ModelArgumentError(
            f"the data has {num_classes} classes: expected {num_classes} logits of {name}, found {logits.shape[1]}"
        )


def _refuse_given(name: str, arguments: Mapping[str, object]) -> None:
    """Raise ModelArgumentError for what other parts of the recipe decide."""
    for argument in arguments:
        if _BY_INIT.match(argument):
            raise ModelArgumentError(
                f"{name} takes no argument {argument!r} here: model.init says which weights it starts from"
            )
        if argument in CHANNEL_ARGUMENTS:
            raise ModelArgumentError(f"{name} takes no argument {argument!r} here: preprocessing.mode decides it")


def _build(name: str, make: Callable[..., object], own: Sequence[inspect.Parameter]) -> Callable[..., nn.Module]:
    """`make` as the catalogue builds: own arguments are seen, and whatever foreign code may raise says whose it is."""

    def build(*, num_classes: int, channels: int, **arguments: object) -> nn.Module:
        try:
            module = make(num_classes, channels, arguments)
        except ModelArgumentError:
            raise
        except Exception as error:
            given = ", ".join(f"{key} = {value!r}" for key, value in arguments.items()) or "no arguments of its own"
            raise ModelArgumentError(f"{name} can't be built with {given}: {_reason(error)}") from error
        if not isinstance(module, nn.Module):
            raise ModelArgumentError(f"expected a torch.nn.Module of {name}, found {type(module).__name__}")
        return module

    by_name = inspect.Parameter.KEYWORD_ONLY
    given = [inspect.Parameter(argument, by_name) for argument in ("num_classes", "channels")]
    anything = [item for item in own if item.kind == inspect.Parameter.VAR_KEYWORD]
    named = [item.replace(kind=by_name) for item in own if item.kind not in _VARIADIC]
    build.__signature__ = inspect.Signature([*given, *named, *anything])  # type: ignore[attr-defined]
    return build


def _reason(error: Exception) -> str:
    """The first line of an error, and its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _torchvision_spec(name: str) -> ModelSpec:
    models, bare = library("torchvision").models, name.partition("/")[2]
    known = library_names("torchvision")
    if bare not in known:
        no_classifier = bare in models.list_models()
        raise UnknownModelError(name, _near(name, known), "it is no classifier in float32" if no_classifier else "")
    builder = models.get_model_builder(bare)

    def make(num_classes: int, _: int, arguments: dict[str, Any]) -> nn.Module:
        _refuse_given(name, arguments)
        if bare in _WITH_INITIALISATION:
            arguments = {"init_weights": True} | arguments
        module: nn.Module = builder(weights=None, num_classes=num_classes, **arguments)
        return module

    weights = models.get_model_weights(bare).DEFAULT
    preset = weights.transforms()
    side, minimum = preset.crop_size[0], max(weights.meta.get("min_size", (1, 1)))
    own = [item for item in inspect.signature(builder).parameters.values() if not _BY_INIT.match(item.name)]
    return ModelSpec(
        name=name,
        build=_build(name, make, own),
        summary=f"{bare} of torchvision",
        paper="see torchvision's documentation",
        url=_URLS["torchvision"],
        size=(side, side),
        minimum=minimum if minimum < side else 1,  # else it is the size of the training, which not all are bound to
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _timm_spec(name: str) -> ModelSpec:
    timm, bare = library("timm"), name.partition("/")[2]
    # A name with a colon or a slash would have timm fetch it from elsewhere.
    if not re.fullmatch(r"[\w.-]+", bare) or not timm.is_model(bare):
        raise UnknownModelError(name, _near(name, library_names("timm")))
    try:
        config = timm.get_pretrained_cfg(bare)
    except RuntimeError as error:  # the architecture is there, but it has no such weights
        known = timm.list_models(f"{bare.partition('.')[0]}.*", include_tags=True)
        raise UnknownModelError(name, _near(name, known)) from error

    def make(num_classes: int, channels: int, arguments: dict[str, Any]) -> nn.Module:
        _refuse_given(name, arguments)
        made: nn.Module = timm.create_model(bare, num_classes=num_classes, in_chans=channels, **arguments)
        return made

    height, width = config.input_size[1:] if config else (224, 224)
    return ModelSpec(
        name=name,
        build=_build(name, make, [inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)]),
        summary=f"{bare} of timm",
        paper="see timm's documentation",
        url=_URLS["timm"],
        size=(height, width),
        channels=(1, 3),
        sizes=((height, width),) if config and config.fixed_input_size else (),
        minimum=max(config.min_input_size[1:]) if config and config.min_input_size else 1,
        mean=tuple(config.mean) if config else IMAGENET[0],
        std=tuple(config.std) if config else IMAGENET[1],
    )


def _factory_spec(name: str) -> ModelSpec:
    factory = _factory(name)
    parameters = inspect.signature(factory).parameters
    anything = any(item.kind == inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    channel_argument = next((item for item in CHANNEL_ARGUMENTS if item in parameters), "")

    def make(num_classes: int, channels: int, arguments: dict[str, Any]) -> object:
        given = {"num_classes": num_classes} if anything or "num_classes" in parameters else {}
        given |= {channel_argument: channels} if channel_argument else {}
        return factory(**given, **arguments)

    own = [item for key, item in parameters.items() if key not in {"num_classes", channel_argument}]
    return ModelSpec(
        name=name,
        build=_build(name, make, own),
        summary=f"the model that {name} makes",
        paper="not known here",
        url="",
        size=(224, 224),
        channels=(1, 3) if channel_argument else (3,),
    )


def _factory(name: str) -> Callable[..., object]:
    """The callable that a name means. Its module is looked for as Python does and then in the current directory."""
    if not _FACTORY.fullmatch(name):
        raise UnknownModelError(name, [], "expected package.module:factory")
    module_name, _, attributes = name.partition(":")
    here = os.getcwd()  # noqa: PTH109 — sys.path holds text
    if here not in sys.path and not sys.flags.safe_path:
        sys.path.append(here)  # last: what lies here never stands in for a package that is installed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{module_name} can't be imported from {here} or what is installed, {_reason(error)}"
        raise UnknownModelError(name, [], reason) from error
    try:
        found: object = reduce(getattr, attributes.split("."), module)
    except AttributeError as error:
        public = [item for item in vars(module) if callable(vars(module)[item]) and not item.startswith("_")]
        raise UnknownModelError(name, [f"{module_name}:{item}" for item in public]) from error
    if not callable(found):
        raise UnknownModelError(name, [], f"it is a {type(found).__name__}, expected a callable that makes the model")
    return found


def _near(name: str, known: list[str]) -> list[str]:
    """Of a library's names those that are near, else all, as a recipe names them."""
    of, _, bare = name.partition("/")
    return [f"{of}/{item}" for item in difflib.get_close_matches(bare, known, n=3, cutoff=0.5) or known]
