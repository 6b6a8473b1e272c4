"""What goes into a model and what comes out: `TensorSpec` and `Signature`.

dtypes are NumPy's names (``float32``, ``int64``, ``bool``, …), ``bfloat16`` and ``string`` (bytes of
any length); shapes are tuples in which None stands for a dimension of any size, and a shape of None
for a tensor of any rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_SIGNATURE = "serving_default"

PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

Shape = tuple[int | None, ...] | None


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one input or output.

    ``tensor_name`` is what the file itself calls the tensor (``serving_default_image:0`` in a
    SavedModel) and is empty where the two names are the same. ``quantization`` is the scale and zero
    point of a tensor of integers that stand for real numbers: ``real = (stored - zero_point) * scale``.
    """

    name: str
    dtype: str
    shape: Shape
    tensor_name: str = ""
    quantization: tuple[float, int] | None = None

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this concrete shape fits.

        >>> TensorSpec("image", "float32", (None, 28, 28, 1)).accepts_shape((32, 28, 28, 1))
        True
        """
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype} of any shape"
        dims = ", ".join("batch" if i == 0 and d is None else str(d or "?") for i, d in enumerate(self.shape))
        return f"{self.name}: {self.dtype} ({dims})"


@dataclass(frozen=True)
class Signature:
    """One way to call a model: named inputs, named outputs and TensorFlow Serving's method name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str = PREDICT_METHOD
    name: str = field(default=DEFAULT_SIGNATURE)

    def __str__(self) -> str:
        ins = "; ".join(str(spec) for spec in self.inputs.values())
        outs = "; ".join(str(spec) for spec in self.outputs.values())
        return f"{self.name}: {ins} → {outs}"
