"""Imagenette: ten easily told classes of ImageNet, 13,394 photos; its val/ is taken as the test part.

https://github.com/fastai/imagenette, version 2. Sizes and SHA-256 are those of TensorFlow Datasets
(imagenette/checksums.tsv).
"""

from __future__ import annotations

from pathlib import Path

from .archives import untar
from .dataset import Dataset
from .download import Remote
from .folder import Folder
from .published import Published

CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""By WordNet's number, in whose order they are."""


def _published(name: str, archive: str, size: int, sha256: str) -> Published:
    def unpack(downloads: Path, folder: Path) -> None:
        untar(downloads / f"{archive}.tgz", folder)

    def read(folder: Path) -> Dataset:
        return Folder(folder / archive, CLASSES)

    remote = Remote((f"https://s3.amazonaws.com/fast-ai-imageclas/{archive}.tgz",), size, sha256)
    return Published(name, 13_394, len(CLASSES), "colour", (remote,), unpack, read)


IMAGENETTE = _published(
    "imagenette",
    "imagenette2-320",  # the shorter side in pixels: enough for nets of 224
    341_663_724,
    "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
)
IMAGENETTE_160 = _published(
    "imagenette160",
    "imagenette2-160",
    99_003_388,
    "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
)
