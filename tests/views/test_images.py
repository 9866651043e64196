"""Decoding: one rule for every kind of image file, the hash of the pixels, and refusals that name what is wrong."""

from __future__ import annotations

import os
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from samples import photo, same_pixels

from hf_dr.errors import ConfigError, DataError
from hf_dr.views import images
from hf_dr.views.images import FORMATS, decode_image, decode_row, pixel_hash, to_rgb

ORIENTATION = 0x0112


def cell(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    """The image as `datasets` stores it."""
    file = BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def pixels(image: PIL.Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


GREY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_give_their_pixels(kind: str) -> None:
    image = photo(12, 20)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert same_pixels(decode_image(cell(image, kind, **options)), image)


def test_a_path_is_read_where_there_are_no_bytes(tmp_path: Path) -> None:
    photo(12, 20).save(tmp_path / "image.png")
    assert same_pixels(decode_image({"bytes": None, "path": str(tmp_path / "image.png")}), photo(12, 20))


def test_bytes_are_preferred_to_the_path() -> None:
    """After an upload the path names a file of another machine."""
    assert same_pixels(decode_image({**cell(photo(12, 20)), "path": "elsewhere/0.png"}), photo(12, 20))


def test_black_and_white() -> None:
    bits = GREY > 100
    np.testing.assert_array_equal(
        pixels(decode_image(cell(PIL.Image.fromarray(bits)))), np.repeat(bits[..., None] * np.uint8(255), 3, -1)
    )


def test_grey() -> None:
    np.testing.assert_array_equal(
        pixels(decode_image(cell(PIL.Image.fromarray(GREY)))), np.repeat(GREY[..., None], 3, -1)
    )


def test_grey_with_alpha_drops_the_alpha() -> None:
    image = PIL.Image.merge("LA", [PIL.Image.fromarray(GREY), PIL.Image.fromarray(GREY[::-1].copy())])
    np.testing.assert_array_equal(pixels(decode_image(cell(image))), np.repeat(GREY[..., None], 3, -1))


def test_rgba_drops_the_alpha() -> None:
    """Also where the image is fully transparent: what lies beneath is shown."""
    image = photo(12, 20)
    image.putalpha(PIL.Image.fromarray(GREY))
    assert same_pixels(decode_image(cell(image)), photo(12, 20))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128] + [255] * 14)])
def test_palettes_are_looked_up_and_their_transparency_dropped(transparency: int | bytes | None) -> None:
    """Without Pillow's warning, which would come once for each such image."""
    image = photo(12, 20).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    colours = np.array(image.getpalette()).reshape(-1, 3)[np.asarray(image)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(decode_image(cell(image, **options))), colours)


def test_the_callers_image_is_not_changed() -> None:
    image = PIL.Image.open(BytesIO(cell(photo(12, 20).quantize(16), transparency=3)["bytes"]))
    image.getexif()[ORIENTATION] = 6
    to_rgb(image)
    assert (image.mode, image.info["transparency"], image.getexif()[ORIENTATION]) == ("P", 3, 6)


def test_cmyk_is_converted_by_pillows_formula() -> None:
    image = PIL.Image.merge("CMYK", [PIL.Image.fromarray(x) for x in (GREY, GREY[::-1].copy(), 255 - GREY, GREY // 2)])
    c, m, y, k = (np.asarray(x).astype(float) for x in image.split())
    expected = np.stack([(255 - x) * (255 - k) / 255 for x in (c, m, y)], -1)
    assert abs(pixels(decode_image(cell(image, "TIFF"))) - expected).max() <= 1


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")])
def test_grey_of_16_bits_keeps_its_high_bits(dtype: Any, kind: str) -> None:
    """Pillow's own conversion would clip all above 255 to white."""
    levels = (np.arange(240, dtype=dtype) * 273).reshape(12, 20)
    assert levels.max() == 65247
    image = PIL.Image.fromarray(levels)
    assert image.mode == ("I;16" if dtype is np.uint16 else "I")
    decoded = pixels(decode_image(cell(image, kind)))
    np.testing.assert_array_equal(decoded, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, -1))


@pytest.mark.parametrize("levels", [[[0, 65536]], [[-1, 0]]])
def test_grey_beyond_16_bits_is_refused(levels: list[list[int]]) -> None:
    image = PIL.Image.fromarray(np.array(levels, np.int32))
    low, high = min(levels[0]), max(levels[0])
    with pytest.raises(DataError, match=rf"expected grey levels of 16 bits, got {low} to {high}\. Convert the image\."):
        decode_image(cell(image, "TIFF"))


def test_floating_point_pixels_are_refused() -> None:
    message = r"expected an image of 8 or 16 bits, got floating-point pixels \(mode F\). Convert the image."
    with pytest.raises(DataError, match=message):
        decode_image(cell(PIL.Image.fromarray(GREY.astype(np.float32)), "TIFF"))


# What a camera that was held in each way stores, by EXIF's definition of the tag: the upright image is `upright`.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_images_are_turned_upright(orientation: int, mode: str) -> None:
    upright = photo(12, 20).convert(mode) if mode != "P" else photo(12, 20).quantize(16)
    stored = PIL.Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(upright))))
    if mode == "P":
        stored.putpalette(upright.getpalette())
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    assert same_pixels(decode_image(cell(stored, exif=exif)), upright.convert("RGB"))
    assert same_pixels(decode_image(cell(upright)), upright.convert("RGB"))


def test_an_orientation_that_does_not_exist_is_ignored() -> None:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 9
    assert same_pixels(decode_image(cell(photo(12, 20), exif=exif)), photo(12, 20))


def test_the_first_frame_is_taken() -> None:
    first, second = photo(12, 20), photo(12, 20, seed=1)
    assert same_pixels(decode_image(cell(first, "TIFF", save_all=True, append_images=[second])), first)


# ------------------------------------------------------------------------------------------------------------ refusals

PNG = cell(photo(12, 20))["bytes"]
JPEG = cell(photo(64, 64), "JPEG")["bytes"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected an image as bytes or a path, got None"),
        ({"bytes": None, "path": None}, "expected an image as bytes or a path, got {'bytes': None"),
        ("cat.png", "expected an image as bytes or a path, got 'cat.png'"),
        ({"bytes": b"", "path": None}, "expected an image as JPEG, .*, got an empty file"),
        ({"bytes": b"<html>404 not found</html>", "path": "0.png"}, "expected an image as JPEG, .*, got an HTML page"),
        ({"bytes": JPEG[:-400], "path": None}, "OSError: image file is truncated"),
        ({"bytes": PNG[:-100], "path": None}, "OSError: "),
        ({"bytes": PNG[:40], "path": None}, "got a PNG file that is cut short"),
        ({"bytes": None, "path": "/nowhere/0.png"}, "expected a file, found none at /nowhere/0.png"),
    ],
)
def test_unreadable_cells_are_data_errors(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_image(value)


def test_a_lower_bound_of_pillow_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    decode_image(cell(photo(10, 10)))
    for size in ((12, 20), (10, 11)):  # of which the first is an error of Pillow's, the second a warning
        with pytest.raises(
            DataError, match=r"expected at most 100 pixels, got more \(Image size .*\)\. Shrink the image, or"
        ):
            decode_image(cell(photo(*size)))


def test_running_out_of_memory_is_not_blamed_on_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(PIL.Image, "open", exhausted)
    with pytest.raises(MemoryError):
        decode_image({"bytes": PNG, "path": None})


# ---------------------------------------------------------------------------------------------------------------- hash


def test_equal_pixels_hash_equally_in_any_format() -> None:
    image = photo(12, 20)
    assert pixel_hash(decode_image(cell(image))) == pixel_hash(decode_image(cell(image, "BMP"))) == pixel_hash(image)


def test_the_hash_tells_sizes_apart() -> None:
    """The same bytes in rows of another length are another image."""
    flat = photo(12, 20)
    turned = PIL.Image.frombytes("RGB", (12, 20), flat.tobytes())
    assert flat.tobytes() == turned.tobytes()
    assert pixel_hash(flat) != pixel_hash(turned)


def test_the_hash_tells_one_level_of_one_pixel_apart() -> None:
    image = photo(12, 20)
    other = image.copy()
    red, green, blue = image.getpixel((19, 11))
    other.putpixel((19, 11), (red, green, blue ^ 1))
    assert pixel_hash(image) != pixel_hash(other)


def test_the_hash_never_changes() -> None:
    """It is stored in every published dataset."""
    assert pixel_hash(PIL.Image.new("RGB", (3, 2), (1, 2, 3))) == 0x17193A1E3F6EF3A3
    assert 0 <= pixel_hash(photo(1, 1)) < 2**64


# ---------------------------------------------------------------------------------------------- what is read and what not


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "got an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
            r"got a pointer of Git LFS: .*\(`git lfs pull`\)",
        ),
        (b"<!DOCTYPE html><html>404</html>", "got an HTML page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "got a PostScript file, which is a program"),
        (b"\xff\x0a\x00", "got a JPEG XL image"),
        (b"0123456789abcdef", "got 16 bytes that begin with b'0123456789ab'"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, found: str) -> None:
    with pytest.raises(DataError, match=f"expected an image as JPEG, PNG, .*{found}") as first:
        decode_image({"bytes": data, "path": None})
    with pytest.raises(DataError) as second:
        decode_image({"bytes": data, "path": None})
    assert str(first.value) == str(second.value)  # no object's address


def test_formats_that_start_programs_are_not_opened() -> None:
    assert {"EPS", "PS", "PDF", "WMF", "GBR"}.isdisjoint(FORMATS)


@pytest.mark.parametrize("bits", [1, 8, 12])
def test_grey_of_few_bits_that_becomes_black_is_told_once(bits: int, caplog: pytest.LogCaptureFixture) -> None:
    images._warn_of_few_bits.cache_clear()
    levels = np.linspace(0, (1 << bits) - 1, 16).astype(np.uint16).reshape(4, 4)
    for _ in range(2):
        assert pixels(decode_image(cell(PIL.Image.fromarray(levels)))).max() == ((1 << bits) - 1) >> 8
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"An image of 16-bit grey uses {bits} bits only, and becomes black or nearly so."
    )


def test_grey_that_is_black_or_uses_its_bits_is_read(caplog: pytest.LogCaptureFixture) -> None:
    for top, expected in ((0, 0), (0xFFFF, 255), (1 << 12, 16)):
        levels = np.full((2, 2), top, np.uint16)
        assert np.asarray(decode_image(cell(PIL.Image.fromarray(levels)))).max() == expected
    assert not caplog.records


def test_the_bound_on_pixels_holds_beyond_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    for of_pillow in (30, 100, None):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", of_pillow)
        monkeypatch.setenv("HF_DR_MAX_IMAGE_PIXELS", "120")
        assert decode_image(cell(photo(10, 12))).crop((0, 0, 12, 10)).size == (12, 10)
        for size in ((11, 11), (16, 16)):
            with pytest.raises(
                DataError, match=r"expected at most 120 pixels, got .*\. Shrink the image, or set HF_DR_MAX_IM"
            ):
                decode_image(cell(photo(*size)))


@pytest.mark.parametrize("given", ["64M", "", "0", "-5", "1e8", " "])
def test_a_bound_on_pixels_that_is_no_number_is_a_config_error(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is at fault, so none is skipped for it."""
    monkeypatch.setenv("HF_DR_MAX_IMAGE_PIXELS", given)
    with pytest.raises(
        ConfigError, match=r"`HF_DR_MAX_IMAGE_PIXELS` in the environment must be a whole number of at least 1"
    ):
        decode_row(cell(photo(2, 2)), "row 0")


def test_large_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)  # which may be raised
    monkeypatch.setenv("HF_DR_MAX_IMAGE_PIXELS", "99")
    decode_image(cell(PIL.Image.new("RGB", (9, 11))))
    with pytest.raises(
        DataError, match=r"expected at most 99 pixels, got 10x10\. Shrink the image, or set HF_DR_MAX_IMAGE_PIXELS"
    ):
        decode_image(cell(PIL.Image.new("RGB", (10, 10))))


def test_files_inside_archives_are_read(tmp_path: Path) -> None:
    data = cell(PIL.Image.new("RGB", (4, 3), (1, 2, 3)))["bytes"]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("0.png", data)
    image = decode_image({"bytes": None, "path": f"zip://0.png::{tmp_path / 'b.zip'}"})
    assert (image.size, image.getpixel((0, 0))) == ((4, 3), (1, 2, 3))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(DataError, match=f"expected a file, found none at {path}"):
            decode_image({"bytes": None, "path": str(path)})
