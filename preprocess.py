"""A picture, as a file or as bytes, to a model's input tensor, by the manifest's `Preprocessing`.

The arithmetic is the one that exported SavedModels do in their graph (``serve_bytes``), so that
both give the same pixels: libjpeg's accurate integer DCT, and a triangle filter over float pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import ImageError
from .manifest import Preprocessing

# More than any camera's picture that is sent as it is; a small file can hold a huge one, and its floats
# take twelve bytes a pixel.
MAX_PIXELS = 50_000_000
# ITU-R BT.601 luma.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Picture:
    """A decoded picture as float32 tensor (height, width, channels), its size and bytes as they were given."""

    tensor: NDArray[np.float32]
    original_size: tuple[int, int]
    encoded: bytes

    @property
    def resized(self) -> bool:
        """Whether the picture had another size than the model takes."""
        height, width = self.tensor.shape[:2]
        return self.original_size != (width, height)


def decode_image(data: bytes, how: Preprocessing, name: str = "the image") -> Picture:
    """Decode PNG or JPEG bytes and prepare them as ``how`` says.

    ``name`` is what an error calls the picture. Raises `ImageError` if the bytes are empty, damaged,
    no picture, or one of more than ``MAX_PIXELS``.
    """
    if not data:
        raise ImageError(f"{name} is empty: not a picture")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{name} has {image.width} × {image.height} pixels; at most {MAX_PIXELS:,} are decoded"
                )
            pixels = np.asarray(_to_rgb(image), dtype=np.float32)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture: expected a PNG or JPEG file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name} is damaged and cannot be decoded: {error}") from error
    height, width = pixels.shape[:2]
    if (height, width) != (how.height, how.width):
        channels = [_resize(pixels[:, :, c], how) for c in range(3)]
        pixels = np.stack(channels, axis=-1)
    if how.channels == 1:
        pixels = pixels @ np.array(LUMA, dtype=np.float32)[:, np.newaxis]
    return Picture(pixels * np.float32(how.scale) + np.float32(how.offset), (width, height), data)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: keep the high byte, as libpng does; Pillow's own conversion would clip.
        high = (np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)
        image = Image.fromarray(high)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns where the step is left out
    return image.convert("RGB")


def _resize(channel: NDArray[np.float32], how: Preprocessing) -> NDArray[np.float32]:
    image = Image.fromarray(channel).resize((how.width, how.height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)


def decode_images(encoded: NDArray[Any], how: Preprocessing) -> NDArray[np.float32]:
    """A (batch,) array of encoded pictures as one (batch, height, width, channels) tensor."""
    batch = [decode_image(data, how, f"image {i}").tensor for i, data in enumerate(encoded.ravel().tolist())]
    if not batch:
        return np.zeros((0, how.height, how.width, how.channels), np.float32)
    return np.stack(batch)


def read_image(path: Path, how: Preprocessing) -> Picture:
    """Read and prepare a picture file; `ImageError` names the file if it cannot be read or decoded."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"there is no file {path}") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    return decode_image(data, how, str(path))
