"""Preprocessing: every kind of picture comes out right, or is refused by name."""

from __future__ import annotations

import io
import struct
import tracemalloc
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trueport.runtime import preprocessing as preprocessing_module
from trueport.runtime.errors import ImageError
from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import ImageLimits, decode, prepare, upright

COLOUR = Preprocessing(height=8, width=8)
GREY = Preprocessing(height=8, width=8, mode="L")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_of_the_right_shape_are_not_touched() -> None:
    for preprocessing in (COLOUR, GREY):
        array = pixels(*preprocessing.shape)
        assert np.array_equal(prepare(array, preprocessing), array)
        assert np.array_equal(prepare(encoded(Image.fromarray(array.squeeze())), preprocessing), array)


def test_path_bytes_image_and_array_agree(tmp_path: Path) -> None:
    array = pixels(20, 30, 3)
    file = tmp_path / "picture.png"
    Image.fromarray(array).save(file)
    data = file.read_bytes()
    sources: tuple[Any, ...] = (file, str(file), data, bytearray(data), memoryview(data), Image.open(file), array)
    results = [prepare(source, COLOUR) for source in sources]
    for result in results:
        assert result.flags.c_contiguous
        assert np.array_equal(result, results[0])


@pytest.mark.parametrize(("width", "height", "resize_to"), [(61, 97, 12), (97, 61, 12), (40, 40, 8), (13, 200, 9)])
def test_shorter_side_and_crop_are_torchvision_s(width: int, height: int, resize_to: int) -> None:
    from torchvision.transforms import v2

    image = Image.fromarray(pixels(height, width, 3))
    preprocessing = Preprocessing(height=8, width=8, resize="shorter-side", resize_to=resize_to)
    theirs = v2.Compose([v2.Resize(resize_to), v2.CenterCrop(8)])(image)
    assert np.array_equal(prepare(image, preprocessing), np.asarray(theirs))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4] = 255  # one bright corner tells all eight orientations apart, save mirrorings of the diagonal
    upright[:4, 4:] = 128
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    assert np.array_equal(prepare(encoded(stored, exif=exif), COLOUR), upright)


def test_sixteen_bits_keep_their_scale() -> None:
    deep = (np.arange(64).reshape(8, 8) * 1024).astype(np.uint16)
    result = prepare(encoded(Image.fromarray(deep)), GREY)
    assert np.array_equal(result[:, :, 0], deep // 257)


def test_transparency_is_laid_on_white() -> None:
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, 4:, 3] = 255
    result = prepare(encoded(Image.fromarray(array)), COLOUR)
    assert (result[:, :4] == 255).all()
    assert (result[:, 4:] == 0).all()


def png(depth: int, colour: int, rows: NDArray[Any], transparent: bytes = b"") -> bytes:
    """A PNG of 8 x 8 written chunk by chunk, for what Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0))
    names_transparent = chunk(b"tRNS", transparent) if transparent else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + names_transparent + data + chunk(b"IEND", b"")


DEEP = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
LEVELS = (DEEP // 257).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("PNG", encoded(Image.fromarray(DEEP))),
        ("TIFF", encoded(Image.fromarray(DEEP), "TIFF")),
        (
            "TIFF of the other byte order",
            encoded(Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()), "TIFF"),
        ),
        ("TIFF of 32 bits", encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF")),
        ("PGM", b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes()),
    ],
)
def test_sixteen_bits_of_any_format_keep_their_scale(kind: str, data: bytes) -> None:
    assert np.array_equal(prepare(data, GREY)[:, :, 0], LEVELS), kind
    assert np.array_equal(prepare(data, COLOUR), np.repeat(LEVELS[:, :, None], 3, axis=2)), kind


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_in_colour_or_with_alpha_lose_the_lower_eight(colour: int, channels: int) -> None:
    opaque = np.dstack([DEEP] * channels).astype(">u2")
    if channels in (2, 4):
        opaque[:, :, -1] = 65535
    result = prepare(png(16, colour, opaque), COLOUR)
    assert np.array_equal(result, np.repeat((DEEP >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_few_bits_are_spread_over_the_scale() -> None:
    quarters = np.full((8, 2), 0b00011011, np.uint8)
    assert np.array_equal(prepare(png(2, 0, quarters), GREY)[0, :, 0], [0, 85, 170, 255] * 2)
    ten_bits = b"P5 8 8 1023\n" + (np.arange(64) * 16).astype(">u2").tobytes()
    assert np.array_equal(prepare(ten_bits, GREY).ravel(), np.arange(64) * 16 * 255 // 1023)


def test_the_one_transparent_colour_of_a_png_is_white() -> None:
    grey = png(16, 0, DEEP.astype(">u2"), struct.pack(">H", 1040))
    assert np.array_equal(prepare(grey, GREY)[:, :, 0], np.where(DEEP == 1040, 255, LEVELS))
    grey = png(8, 0, LEVELS, struct.pack(">H", 4))
    assert np.array_equal(prepare(grey, GREY)[:, :, 0], np.where(LEVELS == 4, 255, LEVELS))
    colours = np.dstack([LEVELS, LEVELS.T, np.full((8, 8), 9, np.uint8)])
    result = prepare(png(8, 2, colours, struct.pack(">HHH", 0, 0, 9)), COLOUR)
    assert result[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(result.reshape(64, 3)[1:], colours.reshape(64, 3)[1:])


def test_a_palette_s_transparency_is_laid_on_white() -> None:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 200, 0, 200, 0, 200, 0, 0])
    picture.paste(1, (2, 0, 4, 8))
    picture.paste(2, (4, 0, 8, 8))
    half = prepare(encoded(picture, transparency=bytes([0, 128, 255])), COLOUR)
    assert [half[0, column].tolist() for column in (0, 2, 4)] == [[255] * 3, [127, 227, 127], [200, 0, 0]]
    for kind in ("PNG", "GIF"):
        one = prepare(encoded(picture, kind, transparency=1), COLOUR)
        assert [one[0, column].tolist() for column in (0, 2, 4)] == [[0, 0, 200], [255] * 3, [200, 0, 0]]


def partly_opaque() -> Image.Image:
    array = pixels(30, 45, 4)
    array[:16, 16:32, 3] = 255
    return Image.fromarray(array)


TRANSPARENT = {
    "RGBA": encoded(partly_opaque()),
    "LA": encoded(partly_opaque().convert("LA")),
    "palette": encoded(partly_opaque().convert("RGB").quantize(16), transparency=bytes(range(0, 256, 16))),
    "one of a palette": encoded(partly_opaque().convert("RGB").quantize(16), "GIF", transparency=3),
    "one level": encoded(partly_opaque().convert("L"), transparency=77),
    "one colour": encoded(
        partly_opaque().convert("RGB"), transparency=partly_opaque().convert("RGB").getpixel((20, 7))
    ),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("data", TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_laid_on_white_tile_by_tile_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, data: bytes, mode: Any
) -> None:
    whole = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert(mode)
    for side in (16, 30, 2048):
        monkeypatch.setattr(preprocessing_module, "TILE", side)
        found = upright(data, mode)
        assert (found.mode, found.size) == (mode, (45, 30))
        assert np.array_equal(np.asarray(found), np.asarray(expected)), side


def test_what_is_laid_on_white_at_once_is_a_tile_and_nothing_where_all_of_it_is_opaque(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[tuple[int, int]] = []
    composite = Image.alpha_composite

    def counted(below: Image.Image, above: Image.Image) -> Image.Image:
        sizes.append(above.size)
        return composite(below, above)

    monkeypatch.setattr(Image, "alpha_composite", counted)
    monkeypatch.setattr(preprocessing_module, "TILE", 16)
    prepare(encoded(partly_opaque()), COLOUR)
    assert sizes == [(16, 16), (13, 16), (16, 14), (16, 14), (13, 14)]
    sizes.clear()
    opaque = pixels(30, 45, 3)
    result = prepare(encoded(Image.fromarray(opaque).convert("RGBA")), Preprocessing(height=30, width=45))
    assert np.array_equal(result, opaque)
    assert not sizes


def test_every_level_of_sixteen_bits_is_divided_as_it_was_and_not_widened() -> None:
    deep, grey = np.arange(1 << 16).reshape(256, 256), Preprocessing(height=256, width=256, mode="L")
    for stored in (deep.astype(np.uint16), deep.astype(np.int32)):
        assert np.array_equal(prepare(encoded(Image.fromarray(stored), "TIFF"), grey)[:, :, 0], deep // 257)
    data = encoded(Image.fromarray(np.tile(deep.astype(np.uint16), (4, 4))))
    tracemalloc.start()
    try:
        prepare(data, GREY)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 9 << 20, "a million pixels of 2 bytes, and not of 8"


def test_what_was_decoded_is_let_go_before_the_resizing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[weakref.ref[Image.Image]] = []
    framed = preprocessing_module._framed

    def seen(source: Any, limits: ImageLimits) -> Image.Image:
        image = decode(source, limits)
        decoded.append(weakref.ref(image))
        return image

    def alone(*arguments: Any) -> Image.Image:
        assert decoded[-1]() is None
        return framed(*arguments)

    monkeypatch.setattr(preprocessing_module, "decode", seen)
    monkeypatch.setattr(preprocessing_module, "_framed", alone)
    for picture in (partly_opaque(), Image.fromarray(DEEP)):
        prepare(encoded(picture), COLOUR)
    assert len(decoded) == 2


@pytest.mark.parametrize("colour", [(200, 30, 60), (255, 255, 255), (0, 0, 0), (10, 200, 120)])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_printing_inks_are_not_inverted(colour: tuple[int, int, int], kind: str) -> None:
    inks = Image.new("RGB", (8, 8), colour).convert("CMYK")
    data = encoded(inks, kind, **({"quality": 100} if kind == "JPEG" else {}))
    assert (b"Adobe" in data) == (kind == "JPEG")
    assert np.abs(prepare(data, COLOUR).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    result = prepare(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), COLOUR)
    assert (result == (255, 0, 0)).all()


def test_a_camera_s_picture_with_a_preview_is_read() -> None:
    data = encoded(
        Image.new("RGB", (8, 8), (9, 99, 199)), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]
    )
    assert np.abs(prepare(data, COLOUR).astype(int) - (9, 99, 199)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone_in_every_format_that_has_it(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture is shown turned by 90 degrees clockwise
    stored = Image.new("L", (8, 8), 0)
    stored.paste(255, (0, 0, 8, 4))
    result = prepare(encoded(stored.convert("RGB"), kind, exif=exif), GREY)[:, :, 0].astype(int)
    assert result[:, :4].max() <= 5
    assert result[:, 4:].min() >= 250


def test_a_colour_profile_is_not_applied() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    array = pixels(8, 8, 3)
    assert np.array_equal(prepare(encoded(Image.fromarray(array), icc_profile=profile), COLOUR), array)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC/HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC/HEIF"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\n <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?><svg/>", "SVG or other XML"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
    ],
)
def test_formats_that_are_not_accepted_are_named(tmp_path: Path, data: bytes, kind: str) -> None:
    file = tmp_path / "phone.jpg"
    file.write_bytes(data + bytes(64))
    with pytest.raises(ImageError, match=rf"phone\.jpg is {kind}, which is not accepted: convert it to a known format"):
        prepare(file, COLOUR)


def test_grey_levels_beyond_sixteen_bits_have_no_white() -> None:
    for low, high in ((0, 65_536), (-1, 9)):
        data = encoded(Image.fromarray(np.array([[low, high]], np.int32)), "TIFF")
        with pytest.raises(ImageError, match=f"grey levels from {low} to {high:,} has no defined white"):
            prepare(data, GREY)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_shows_the_same_picture(mode: str) -> None:
    checks = Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((4, 4))).astype(np.uint8))
    for preprocessing in (GREY, COLOUR):
        result = prepare(checks.convert("RGB").convert(mode), preprocessing)
        assert np.abs(result.astype(int) - np.asarray(checks)[:, :, None]).max() <= 1


def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path: Path) -> None:
    jpeg = encoded(Image.fromarray(pixels(64, 64, 3)), "JPEG")
    (tmp_path / "empty.png").write_bytes(b"")
    bad: list[tuple[Any, str]] = [
        (b"", "is empty"),
        (b"no picture at all", "known format"),
        (jpeg[: len(jpeg) // 2], "is damaged and can't be decoded: .*truncated"),
        (tmp_path / "empty.png", r"empty\.png is empty"),
        (tmp_path / "absent.png", r"can't read .*absent\.png"),
        (tmp_path, "can't read"),
        ("a\0b", "can't read"),
        (Image.open(io.BytesIO(jpeg[: len(jpeg) // 2])), "is damaged and can't be decoded: .*truncated"),
        (Image.new("La", (8, 8)), "mode La"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros((0, 8), np.uint8), r"\(0, 8\)"),
        (12, "found int"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "floating-point"),
    ]
    for source, message in bad:
        with pytest.raises(ImageError, match=message):
            prepare(source, COLOUR)


def test_limits_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (100, 100)))
    with pytest.raises(ImageError, match="100 x 100 pixels, at most 9,999"):
        prepare(data, COLOUR, ImageLimits(max_pixels=9_999))
    file = tmp_path / "large.png"
    file.write_bytes(data)
    for source in (data, file):
        with pytest.raises(ImageError, match="bytes, at most 10"):
            prepare(source, COLOUR, ImageLimits(max_bytes=10))


def test_a_sliver_is_not_blown_up() -> None:
    sliver = Image.new("L", (500_000, 1))
    shorter = Preprocessing(height=224, width=224, resize="shorter-side")
    for source in (encoded(sliver), sliver, np.asarray(sliver)):
        with pytest.raises(ImageError, match="112000000 x 224 pixels, at most 64,000,000"):
            prepare(source, shorter)
    assert prepare(encoded(sliver), COLOUR).shape == COLOUR.shape


@pytest.mark.parametrize("method", ["load", "resize"])
def test_a_lack_of_memory_refuses_the_picture(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    data = encoded(Image.fromarray(pixels(20, 30, 3)), "BMP")

    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load" if method == "load" else "PIL.Image.Image.resize", exhausted)
    with pytest.raises(ImageError, match="no memory left"):
        prepare(data, COLOUR)


def test_damaged_bytes_never_raise_anything_else() -> None:
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        whole = encoded(Image.fromarray(pixels(40, 40, 3)), kind)
        for _ in range(40):
            data = bytearray(whole[: random.integers(1, len(whole) + 1)])
            for position in random.integers(0, len(data), 4):
                data[position] = random.integers(256)
            try:
                result = prepare(bytes(data), COLOUR)
            except ImageError:
                continue
            assert result.shape == (8, 8, 3)


def test_impossible_sizes_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Preprocessing(height=0, width=8)
    with pytest.raises(ValueError, match="smaller than the crop"):
        Preprocessing(height=8, width=8, resize="shorter-side", resize_to=7)
    with pytest.raises(ValueError, match="shorter-side"):
        Preprocessing(height=8, width=8, resize_to=9)
