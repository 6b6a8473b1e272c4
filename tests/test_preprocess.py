"""Pictures to input tensors: the same pixels as TensorFlow's own ops, and a clear no to what is no picture."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from servable.errors import ImageError
from servable.manifest import Preprocessing
from servable.preprocess import LUMA, Picture, decode_image, decode_images, read_image

HEIGHT, WIDTH = 33, 21
SAME = Preprocessing(HEIGHT, WIDTH, 3)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = CHANNELS


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(depth: int, colour: int, extra: bytes = b"", height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A PNG of noise by hand: Pillow cannot write every bit depth."""
    noise = np.random.default_rng(depth * 10 + colour)
    row = (width * CHANNELS[colour] * depth + 7) // 8
    if colour == PALETTE:
        extra = chunk(b"PLTE", noise.bytes(3 * 2**depth)) + extra
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + noise.bytes(row) for _ in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def encoded(format: str, mode: str, height: int = HEIGHT, width: int = WIDTH, **options: Any) -> bytes:
    """A picture of waves and noise in a format that Pillow writes."""
    channels = {"CMYK": 4, "RGBA": 4, "RGB": 3, "LA": 2}.get(mode, 1)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([(np.sin(x / 5 + c) + np.cos(y / 7 + c)) * 60 + 128 for c in range(channels)], axis=-1)
    noise = np.random.default_rng(height * width).integers(-20, 20, waves.shape)
    pixels = np.clip(waves + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    if image.mode != mode:
        image = image.convert(mode) if channels == 1 else Image.frombytes(mode, image.size, image.tobytes())
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", "RGB", exif=exif)


PICTURES = {
    **{f"png grey {depth} bit": png(depth, GREY) for depth in (1, 2, 4, 8, 16)},
    **{f"png rgb {depth} bit": png(depth, RGB) for depth in (8, 16)},
    **{f"png grey alpha {depth} bit": png(depth, GREY_ALPHA) for depth in (8, 16)},
    **{f"png rgb alpha {depth} bit": png(depth, RGB_ALPHA) for depth in (8, 16)},
    **{f"png palette {depth} bit": png(depth, PALETTE) for depth in (1, 2, 4, 8)},
    "png palette with transparency": png(8, PALETTE, chunk(b"tRNS", bytes(range(0, 256, 2)))),
    "png grey with transparency": png(8, GREY, chunk(b"tRNS", b"\0\7")),
    "png rgb with gamma": png(8, RGB, chunk(b"gAMA", struct.pack(">I", 22000))),
    "jpeg grey": encoded("JPEG", "L"),
    "jpeg grey progressive": encoded("JPEG", "L", progressive=True),
    "jpeg rgb": encoded("JPEG", "RGB"),
    "jpeg rgb progressive": encoded("JPEG", "RGB", progressive=True),
    "jpeg rgb low quality": encoded("JPEG", "RGB", quality=20),
    **{f"jpeg rgb subsampling {kind}": encoded("JPEG", "RGB", subsampling=kind) for kind in (0, 1, 2)},
    "jpeg rotated by exif": exif_rotated(),
}


def tensorflow_decodes(data: bytes, how: Preprocessing) -> NDArray[np.float32]:
    """The arithmetic of a served model's graph, in TensorFlow's own ops."""
    import tensorflow as tf

    if data.startswith(b"BM"):
        pixels = tf.io.decode_bmp(data, channels=3)  # decode_jpeg reads all of the formats but this one
    else:
        pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    pixels = tf.image.resize(tf.cast(pixels, tf.float32), (how.height, how.width), antialias=True)
    if how.channels == 1:
        pixels = tf.tensordot(pixels, tf.constant(LUMA, tf.float32)[:, tf.newaxis], 1)
    tensor: NDArray[np.float32] = (pixels * how.scale + how.offset).numpy()
    return tensor


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (28, 28), (64, 50), (7, 5), (1, 1), (HEIGHT, 40), (224, 3)])
@pytest.mark.parametrize("name", sorted(PICTURES))
def test_same_pixels_as_tensorflow(name: str, size: tuple[int, int], channels: int) -> None:
    how = Preprocessing(*size, channels)
    got = decode_image(PICTURES[name], how).tensor
    assert got.dtype == np.float32
    assert got.shape == (*size, channels)
    np.testing.assert_allclose(got, tensorflow_decodes(PICTURES[name], how), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (101, 67), (300, 5)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_odd_sizes(format: str, size: tuple[int, int]) -> None:
    data = encoded(format, "RGB", *size)
    how = Preprocessing(28, 28, 3)
    np.testing.assert_allclose(decode_image(data, how).tensor, tensorflow_decodes(data, how), rtol=0, atol=1e-4)


def test_cmyk_differs_by_one_level_at_most() -> None:
    # Both convert with integers, Pillow with rounding and TensorFlow without.
    data = encoded("JPEG", "CMYK")
    difference = decode_image(data, SAME).tensor - tensorflow_decodes(data, SAME)
    assert np.abs(difference).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1 / 127.5, -1.0), (0.0, 2.5)])
def test_scale_and_offset(scale: float, offset: float) -> None:
    data = PICTURES["png rgb 8 bit"]
    plain = decode_image(data, Preprocessing(HEIGHT, WIDTH, 3, scale=1.0)).tensor
    got = decode_image(data, Preprocessing(HEIGHT, WIDTH, 3, scale, offset)).tensor
    np.testing.assert_array_equal(got, plain * np.float32(scale) + np.float32(offset))


def test_picture_says_whether_it_was_resized() -> None:
    data = PICTURES["png rgb 8 bit"]
    assert decode_image(data, SAME).original_size == (WIDTH, HEIGHT)
    assert not decode_image(data, SAME).resized
    assert decode_image(data, Preprocessing(WIDTH, HEIGHT, 3)).resized


TIFF = encoded("TIFF", "RGB")
WEBP_HEAD = b"RIFF\x24\0\0\0WEBPVP8 "
JPEG = PICTURES["jpeg rgb"]
PNG = PICTURES["png rgb 8 bit"]
BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**20, 2**20, 8, RGB, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(100)))
    + chunk(b"IEND", b"")
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the cat is empty"),
        (b"\0", "the cat is not a picture"),
        (b"just text", "the cat is not a picture: expected a PNG or JPEG file"),
        (TIFF, "the cat is not a picture"),
        (WEBP_HEAD, "the cat is not a picture"),
        (PNG[:8], "the cat is not a picture"),
        (PNG[: len(PNG) // 2], "the cat is damaged"),
        (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "the cat is damaged"),
        (JPEG[: len(JPEG) // 2], "the cat is damaged"),
        (JPEG[:-2], "the cat is damaged"),
        (encoded("GIF", "P"), "the cat is not a picture"),
        (encoded("BMP", "RGB"), "the cat is not a picture"),
        (BOMB, "the cat is damaged"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, expected: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data, SAME, "the cat")
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@given(
    name=st.sampled_from(sorted(PICTURES)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    cut=st.floats(0, 1),
)
@settings(max_examples=400, deadline=None)
def test_damaged_bytes_give_a_picture_or_an_image_error(name: str, edits: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(PICTURES[name])
    for where, value in edits:
        data[int(where * len(data))] = value
    try:
        picture = decode_image(bytes(data[: int(len(data) * max(cut, 0.05)) if cut < 0.5 else None]), SAME)
    except ImageError as error:
        assert str(error).startswith("the image ")  # noqa: PT017  # a picture is as good an answer
    else:
        assert picture.tensor.shape == (HEIGHT, WIDTH, 3)


def test_batch_is_the_pictures_one_by_one() -> None:
    how = Preprocessing(28, 28, 1)
    names = ["png grey 8 bit", "jpeg rgb", "png rgb 8 bit"]
    batch = decode_images(np.array([PICTURES[name] for name in names], dtype=object), how)
    assert batch.shape == (3, 28, 28, 1)
    for row, name in zip(batch, names, strict=True):
        np.testing.assert_array_equal(row, decode_image(PICTURES[name], how).tensor)


def test_batch_names_the_picture_at_fault() -> None:
    with pytest.raises(ImageError, match=r"^image 1 is not a picture"):
        decode_images(np.array([PNG, b"text"], dtype=object), SAME)


def test_empty_batch() -> None:
    batch = decode_images(np.empty(0, dtype=object), Preprocessing(28, 28, 1))
    assert (batch.shape, batch.dtype) == ((0, 28, 28, 1), np.float32)


def test_read_image_is_decode_image_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "shoe.png").write_bytes(PNG)
    got = read_image(tmp_path / "shoe.png", SAME)
    assert isinstance(got, Picture)
    np.testing.assert_array_equal(got.tensor, decode_image(PNG, SAME).tensor)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("missing", "there is no file "), ("folder", "cannot be read: Is a directory"), ("text", "is not a picture")],
)
def test_file_that_is_no_picture_is_named(kind: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "shoe.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("shoe")
    with pytest.raises(ImageError) as caught:
        read_image(path, SAME)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    assert decode_image(huge(5000, 10_000), Preprocessing(2, 2, 1)).original_size == (5000, 10_000)
    with pytest.raises(ImageError, match=r"^image 7 has 5000 × 10001 pixels; at most 50,000,000 are decoded"):
        decode_image(huge(5000, 10_001), SAME, "image 7")


def huge(width: int, height: int) -> bytes:
    """A black picture of one bit a pixel."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()
