"""Initial weights: ImageNet's from torchvision or timm, or a file; a head of another number of classes stays fresh."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from trueport.runtime.errors import MissingError, TrueportError, UsageError, missing_extra

from .recipe import ModelSection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trueport.models import ModelSpec

    Tensors = dict[str, Tensor]

IMAGENET = "imagenet"
IMAGENET_CLASSES = 1000
PerChannel = tuple[float, ...]
HALVES: PerChannel = (0.5, 0.5, 0.5)
TRANSFORMING = {"googlenet", "inception_v3"}
"""Of torchvision: their weights are of a network that sees pictures normalised by 0.5, and is told to make them so."""
PREFIXES = ("module.", "_orig_mod.")
"""That DataParallel and torch.compile put before every name."""
NESTED = ("state_dict", "model")
"""Keys under which checkpoints keep the state dict."""
HUB_ANSWERS_S = 5.0
NAMED = 3
"""Tensors of each kind of mismatch that are named in an error; the others are counted."""


@dataclass(frozen=True)
class Initial:
    """What a network starts from."""

    source: str
    """In words for people: `fresh`, the file, or whose weights."""
    sha256: str
    """Of the tensors that were read; empty where the weights are fresh. Part of what a run's numbers follow from."""
    fresh: tuple[str, ...]
    """Names of the tensors that the weights don't bring and that start fresh: the head, or none."""
    normalisation: tuple[PerChannel, PerChannel] | None
    """Mean and standard deviation on a scale of 0 to 1 that the weights were trained with; None where not known."""


@dataclass(frozen=True, eq=False)
class _Weights:
    """Tensors by name, before it is known whether they fit."""

    source: str
    tensors: Tensors
    optional: Callable[[str], bool] = lambda _: False
    """Tells by its name of a tensor that the network and the weights need not have in common."""


def load_initial(
    module: nn.Module,
    section: ModelSection,
    spec: ModelSpec,
    num_classes: int,
    say: Callable[[str], None] = lambda _: None,
) -> Initial:
    """Load the weights that `model.init` asks for into the freshly built module; nothing where it is empty.

    say: told what was loaded and what starts fresh, a line each.
    Raises UsageError for weights that don't fit or can't be read, MissingError where they can't be had.
    """
    if not section.init:
        return Initial("fresh", "", (), None)
    from trueport.models.state import load_tensors

    weights = _imagenet(section, spec) if section.init == IMAGENET else _file(Path(section.init), say)
    own = module.state_dict()
    head = _other_head(own, weights.tensors, num_classes)
    _refuse_mismatch(own, weights, spec, head)
    fresh = tuple(name for name in own if name in head or (name not in weights.tensors and not _counter(name)))
    taken = {name: tensor for name, tensor in weights.tensors.items() if name in own and name not in head}
    load_tensors(module, own | taken)
    say(f"initial weights: {weights.source}")
    if head:
        before = len(weights.tensors[head[0]])
        say(f"the weights know {before} classes, the data has {num_classes}: {', '.join(head)} start fresh")
    if others := [name for name in fresh if name not in head]:
        say(f"not among the weights: {_named(others)} start fresh")
    return Initial(weights.source, _digest(weights.tensors), fresh, expected_normalisation(section, spec))


def expected_normalisation(section: ModelSection, spec: ModelSpec) -> tuple[PerChannel, PerChannel] | None:
    """Mean and standard deviation that `model.init`'s weights were trained with, told without loading them.

    None where they are fresh or a file, which does not say.
    Raises UsageError where the architecture has no ImageNet weights.
    """
    if section.init != IMAGENET:
        return None
    from trueport.models import brought

    bare = spec.name.partition("/")[2]
    if brought.kind(spec.name) == "torchvision" and bare in TRANSFORMING and not section.args.get("transform_input"):
        return HALVES, HALVES
    if brought.kind(spec.name) in brought.LIBRARIES:
        return _per_channel(spec.mean), _per_channel(spec.std)
    preset = _published(spec).transforms()
    return tuple(preset.mean), tuple(preset.std)


def _per_channel(value: float | PerChannel) -> PerChannel:
    return value if isinstance(value, tuple) else (value,)


def _other_head(own: Mapping[str, Tensor], found: Mapping[str, Tensor], num_classes: int) -> tuple[str, ...]:
    """Names of the tensors that differ in their number of classes, where these are all that differ in shape."""
    differing = [name for name, tensor in own.items() if name in found and found[name].shape != tensor.shape]
    if all(
        own[name].ndim == found[name].ndim > 0
        and len(own[name]) == num_classes
        and own[name].shape[1:] == found[name].shape[1:]
        for name in differing
    ):
        return tuple(differing) if len({len(found[name]) for name in differing}) == 1 else ()
    return ()


def _refuse_mismatch(own: Mapping[str, Tensor], weights: _Weights, spec: ModelSpec, head: tuple[str, ...]) -> None:
    """Raise UsageError that lists what is missing, what is too much and what has another shape."""
    found = weights.tensors
    missing = [name for name in own if name not in found and not weights.optional(name) and not _counter(name)]
    unknown = [name for name in found if name not in own and not weights.optional(name)]
    shapes = {
        name: (tuple(tensor.shape), tuple(found[name].shape))
        for name, tensor in own.items()
        if name in found and name not in head and found[name].shape != tensor.shape
    }
    if not missing and not unknown and len(shapes) == 1 and _grey_beside_colour(*next(iter(shapes.values()))):
        raise UsageError(
            f"the weights of {weights.source} are for colour pictures, the network was built for grey ones: "
            "set preprocessing.mode=RGB, which gives grey pictures three equal channels"
        )
    told = [f"{name}: expected {expected}, found {shape}" for name, (expected, shape) in shapes.items()]
    parts = [
        *([f"{len(missing)} missing ({_named(missing)})"] if missing else []),
        *([f"{len(unknown)} that the network does not have ({_named(unknown)})"] if unknown else []),
        *([f"{len(told)} of another shape ({_named(told)})"] if told else []),
    ]
    if parts:
        raise UsageError(f"the weights of {weights.source} don't fit {spec.name}: {'; '.join(parts)}")


def _grey_beside_colour(expected: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """Whether the one is the shape of a first convolution's weights for grey pictures, the other for colour."""
    return len(expected) == 4 and expected[1] == 1 and found == (expected[0], 3, *expected[2:])


def _counter(name: str) -> bool:
    """Whether it is batch norm's count of batches, which older files don't have and nothing depends on."""
    return name.endswith("num_batches_tracked")


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and contents."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file(path: Path, say: Callable[[str], None]) -> _Weights:
    """A safetensors file, or a state dict that torch saved; of the latter nothing but tensors is read."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}: expected model.init to be {IMAGENET} or a file with weights")
    try:
        import safetensors.torch
        import torch

        read: Any
        if path.suffix == ".safetensors":
            read = safetensors.torch.load(path.read_bytes())
        else:
            read = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "train", "reading weights") from error
    except Exception as error:  # each format and each kind of damage has errors of its own
        raise UsageError(
            f"can't read {path}, expected safetensors (*.safetensors) or a state dict that torch.save wrote: "
            f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    for key in NESTED:
        if isinstance(read, dict) and isinstance(read.get(key), dict):
            read = read[key]
    if not isinstance(read, dict) or not read or not all(isinstance(item, torch.Tensor) for item in read.values()):
        raise UsageError(f"{path} holds no state dict: expected tensors by name, also under {' or '.join(NESTED)}")
    tensors: Tensors = dict(read)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            say(f"{path}: every name begins with {prefix!r}, which is left out")
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return _Weights(str(path), tensors)


def _imagenet(section: ModelSection, spec: ModelSpec) -> _Weights:
    from trueport.models import brought

    kind = brought.kind(spec.name)
    if kind == "timm":
        return _timm(section, spec)
    published = _published(spec)
    source = f"torchvision's {published!r}"
    tensors = _downloaded(published)
    if kind == "own":
        if section.args:
            _refuse_other_network(section, spec, tensors)
        return _Weights(source, tensors)
    # Built by torchvision itself, from the file that now lies there: it knows how the older files name their tensors.
    models = brought.library("torchvision").models
    built: Tensors = models.get_model(spec.name.partition("/")[2], weights=published, progress=False).state_dict()
    return _Weights(source, built, optional=lambda name: name.lower().startswith("aux"))


def _published(spec: ModelSpec) -> Any:
    """What torchvision publishes as the default ImageNet weights. Raises UsageError where there are none that fit."""
    from trueport.models import brought

    of_torchvision = brought.kind(spec.name) == "torchvision"
    name = spec.name.partition("/")[2] if of_torchvision else spec.imagenet
    if name is None:
        raise UsageError(
            f"there are no ImageNet weights for {spec.name}: leave model.init out, or name a file; "
            "the architectures that have some are resnet18 to resnet152, vgg_a, vgg_b, vgg_d and vgg_e, "
            "torchvision/NAME and timm/NAME"
        )
    try:
        return brought.library("torchvision").models.get_model_weights(name).DEFAULT
    except brought.MissingLibraryError as error:
        raise missing_extra(error.package, "train", "ImageNet weights") from error


def _downloaded(published: Any) -> Tensors:
    """The tensors behind torchvision's entry, from torch's cache or downloaded into it, compared with their checksum.

    Raises MissingError where they can't be had.
    """
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    remedy = f"bring the machine online, or download {published.url} elsewhere into {file}"
    begun = file.exists()
    try:
        with redirect_stdout(sys.stderr):  # torch tells of the download where results belong
            tensors: Tensors = published.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
            )
    except OSError as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer as well
        raise MissingError(f"can't download {published.url}, {getattr(error, 'reason', error)}: {remedy}") from error
    except Exception as error:  # damage shows as whatever unpickling makes of it
        if begun:
            raise MissingError(f"{file} is damaged: remove it, and it is downloaded again ({error})") from error
        raise MissingError(
            f"the download of {published.url} came out damaged, {error}: try again, or {remedy}"
        ) from error
    _refuse_damaged(file)
    return tensors


def _refuse_damaged(file: Path) -> None:
    """Compare a file of torch's cache with the digits of its SHA-256 in its name; torch does so only when it comes."""
    import torch

    stated = torch.hub.HASH_REGEX.search(file.name)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if stated and not found.startswith(stated.group(1)):
        raise MissingError(
            f"{file} is damaged, expected a SHA-256 that begins with {stated.group(1)}, found {found}: "
            "remove it, and it is downloaded again"
        )


def _refuse_other_network(section: ModelSection, spec: ModelSpec, tensors: Tensors) -> None:
    """Raise UsageError where the architecture's arguments make a network that the weights fit and don't belong to."""
    import torch

    from trueport.models import brought

    with torch.random.fork_rng(), torch.inference_mode():
        ours = spec.build(num_classes=IMAGENET_CLASSES, channels=3, **section.args)
        theirs = brought.library("torchvision").models.get_model(spec.imagenet)
        try:
            ours.load_state_dict(tensors)
            theirs.load_state_dict(tensors)
        except RuntimeError:
            return  # of other shapes: that is told with their names later
        picture = torch.rand(1, 3, 64, 64)
        same = torch.allclose(ours.eval()(picture), theirs.eval()(picture), rtol=1e-3, atol=1e-3)
    if not same:
        given = ", ".join(f"{key} = {value!r}" for key, value in section.args.items())
        raise UsageError(
            f"{spec.name} with {given} is another network than torchvision's weights were trained in, and would answer "
            "otherwise: leave out model.args or model.init"
        )


def _timm(section: ModelSection, spec: ModelSpec) -> _Weights:
    """Weights of timm, fetched and, for another size of picture, adapted by timm."""
    from trueport.models import brought

    timm, bare = brought.library("timm"), spec.name.partition("/")[2]
    config = timm.get_pretrained_cfg(bare)
    if config is None or not config.has_weights:
        raise UsageError(f"timm has no weights for {bare}: leave model.init out, or name a file")
    try:
        with redirect_stdout(sys.stderr), _no_patience_with_a_silent_hub():
            tensors: Tensors = timm.create_model(bare, pretrained=True, **section.args).state_dict()
    except TrueportError:
        raise
    except Exception as error:  # of the hub's client, its transport, or the file
        raise MissingError(
            f"can't get timm's weights of {bare} ({config.hf_hub_id or config.url}), {type(error).__name__}: "
            f"bring the machine online, or set model.init to a file with them"
        ) from error
    heads = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    headless = not config.num_classes
    source = f"timm's {bare if '.' in bare else f'{bare}.{config.tag}'.rstrip('.')}"
    return _Weights(source, tensors, optional=lambda name: headless and name.rpartition(".")[0] in heads)


@contextmanager
def _no_patience_with_a_silent_hub() -> Iterator[None]:
    """Without a connection have the hub's client look into its cache alone: else it tries again for 46 seconds."""
    constants = importlib.import_module("huggingface_hub.constants")  # timm's requirement, none of ours
    before = constants.HF_HUB_OFFLINE
    vars(constants)["HF_HUB_OFFLINE"] = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        vars(constants)["HF_HUB_OFFLINE"] = before


def _answers(url: str) -> bool:
    """Whether a server can be reached, whatever it says."""
    import ssl
    import urllib.request

    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 -- the address of the hub, or the user's own
        with urllib.request.urlopen(request, timeout=HUB_ANSWERS_S):  # noqa: S310
            return True
    except HTTPError as error:
        error.close()
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the hub's client may well trust it: it has other certificates
    except OSError:
        return False
