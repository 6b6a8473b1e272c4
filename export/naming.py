"""Names that mean something, for inputs and outputs that nobody named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..errors import InvalidArgumentError
from ..signature import TensorSpec

# What Keras and TensorFlow call an input that nobody named.
_UNNAMED = re.compile(r"(keras_tensor|input_layer|inputs?|args|arg|x)?(_\d+)?|.*_input(_\d+)?")
_UNNAMED_OUTPUT = re.compile(r"\d.*|output(_\d+)?|")
# TensorFlow makes arguments of a function of them.
_USABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def input_names(specs: Sequence[TensorSpec], given: Sequence[str] = ()) -> list[str]:
    """A name for each input: the given ones, else the model's own, else one by what the tensor is.

    Raises `InvalidArgumentError` unless there is one usable name for each.
    """
    own = _distinct([_clean(spec.name) if not _UNNAMED.fullmatch(spec.name) else _kind(spec) for spec in specs])
    return _checked(given, own, "input") if given else own


def output_names(found: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """A name for each output: the given ones, else what was found, else ``output``.

    A ``found`` name is empty where nobody named the output. Raises `InvalidArgumentError` unless
    there is one usable name for each.
    """
    own = _distinct(["output" if _UNNAMED_OUTPUT.fullmatch(name) else _clean(name) for name in found])
    return _checked(given, own, "output") if given else own


def is_default_layer_name(name: str, class_name: str) -> bool:
    """Whether Keras made this layer's name of its class.

    >>> is_default_layer_name("max_pooling2d_3", "MaxPooling2D"), is_default_layer_name("boxes", "Dense")
    (True, False)
    """
    if name.startswith("tf."):  # of an operation between layers, such as tf.__operators__.add
        return True
    plain = name.replace("_", "").rstrip("0123456789")
    return plain == class_name.lower().replace("_", "").rstrip("0123456789") or plain == class_name.lower()


def _kind(spec: TensorSpec) -> str:
    shape = spec.shape or ()
    if spec.dtype == "string":
        return "text"
    if len(shape) == 4 and shape[-1] in (1, 3, 4):
        return "image"
    if len(shape) == 3:
        return "sequence"
    return "tokens" if spec.dtype.startswith(("int", "uint")) else "features"


def _clean(name: str) -> str:
    """A name without what TensorFlow does not take in one: blanks, slashes, dashes, dots."""
    cleaned = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return cleaned if _USABLE.fullmatch(cleaned) else f"tensor_{cleaned}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that occur more than once get a number.

    >>> _distinct(["image", "features", "image"])
    ['image_1', 'features', 'image_2']
    """
    count, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if count[name] == 1 else f"{name}_{seen[name]}")
    return found if len(set(found)) == len(found) else [f"{name}_{i}" for i, name in enumerate(names, 1)]


def _checked(given: Sequence[str], own: Sequence[str], what: str) -> list[str]:
    count = len(own)
    if len(given) != count:
        raise InvalidArgumentError(
            f"the model has {count} {what}s, {', '.join(own)}; {len(given)} names are given: {', '.join(given)}"
        )
    for name in given:
        if not _USABLE.fullmatch(name):
            raise InvalidArgumentError(
                f"{name!r} cannot be the name of an {what}: use letters, digits and '_', and begin with a letter"
            )
    if len(set(given)) < count:
        raise InvalidArgumentError(f"two {what}s cannot have one name: {', '.join(given)}")
    return list(given)
