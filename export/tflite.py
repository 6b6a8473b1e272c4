"""TFLite files, converted from the SavedModel.

Never from a concrete function of the Keras model: that conversion loses a Keras 3 model's weights
without a word (the file reads uninitialised variables and answers NaN), and what it makes where it
works runs five times slower.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import extras
from ..errors import ExportError, ServableError, UnimplementedError
from . import tflite_metadata
from .keras_model import MAX_UNROLLED_STEPS
from .operations import LOOPS
from .registry import Exporter, Job, register
from .source_model import first_line
from .tflite_metadata import TensorMetadata


def _float32(tf: Any, converter: Any, job: Job) -> None:
    """float32 weights and activations."""


def _float16(tf: Any, converter: Any, job: Job) -> None:
    """float16 weights, which the delegate or the CPU computes with in float32."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic(tf: Any, converter: Any, job: Job) -> None:
    """int8 weights; activations are quantized for each run, by the range that they have in it."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8(tf: Any, converter: Any, job: Job) -> None:
    """int8 weights and activations, by ranges that come from the calibration rows."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = partial(_representative, job)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if job.int8_io:
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8


def _int16x8(tf: Any, converter: Any, job: Job) -> None:
    """int8 weights and int16 activations, by ranges that come from the calibration rows."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = partial(_representative, job)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    # The converter has no hook between the float32 file and its quantization.
    converter._quantize = partial(_quantize_own_biases, converter._quantize)


def _quantize_own_biases(quantize: Callable[..., bytes], model: bytes, *arguments: Any) -> bytes:
    """Quantize a file in which no two operations share a bias.

    A bias has the scale of its operation's input times that of its weights; the int16x8 quantizer gives
    a shared one the scale of one operation, and the others are wrong.
    """
    tools = import_module("tensorflow.lite.tools.flatbuffer_utils")
    operators = import_module("tensorflow.lite.python.schema_py_generated").BuiltinOperator
    places = {
        operators.FULLY_CONNECTED: 2,
        operators.CONV_2D: 2,
        operators.DEPTHWISE_CONV_2D: 2,
        operators.TRANSPOSE_CONV: 3,
    }
    content = tools.convert_bytearray_to_object(bytearray(model))
    for graph in content.subgraphs:
        taken = set()
        for operator in graph.operators:
            code = content.operatorCodes[operator.opcodeIndex]
            place = places.get(max(code.builtinCode, code.deprecatedBuiltinCode))
            if place is None or len(operator.inputs) <= place or operator.inputs[place] < 0:
                continue
            bias = int(operator.inputs[place])
            if bias in taken:
                own = copy.deepcopy(graph.tensors[bias])
                own.name += f"_{len(graph.tensors)}".encode()
                content.buffers.append(copy.deepcopy(content.buffers[own.buffer]))
                own.buffer = len(content.buffers) - 1
                graph.tensors.append(own)
                operator.inputs[place] = len(graph.tensors) - 1
            taken.add(bias)
    return quantize(bytes(tools.convert_object_to_bytearray(content)), *arguments)


def _representative(job: Job) -> Iterator[dict[str, Any]]:
    """The calibration rows, one at a time."""
    for i in range(len(next(iter(job.calibration.values())))):
        yield {name: array[i : i + 1] for name, array in job.calibration.items()}


Prepare = Callable[[Any, Any, Job], None]


def _convert(prepare: Prepare, job: Job, path: Path) -> None:
    tf = extras.load("tensorflow", "exporting a model")
    without_loops = job.unrolled or (job.sized if prepare in _OF_NO_LOOPS else None)
    folder = without_loops or job.fixed or job.saved_model
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[job.signature.name])
    prepare(tf, converter, job)
    try:
        model = converter.convert()
    except Exception as error:  # the converter raises every kind
        raise _explained(error) from error
    path.write_bytes(_described(model, job))


def _described(model: bytes, job: Job) -> bytes:
    """The file with TFLite Metadata: labels, and how pixels become numbers."""
    inputs = [
        tflite_metadata.image_input(job.preprocessing, name) if job.preprocessing else TensorMetadata(name)
        for name in job.signature.inputs
    ]
    labels = job.labels if job.task == "classification" else ()
    outputs = [TensorMetadata(name, labels=labels) for name in job.signature.outputs]
    return tflite_metadata.pack(
        model,
        name=job.model,
        version=job.producer,
        description=f"{job.model}, {job.task}; source {job.source[:16]}",
        inputs=inputs,
        outputs=outputs,
        signature=job.signature.name,
    )


def _explained(error: Exception) -> ServableError:
    """The converter's texts are pages long; the operations that TFLite lacks are what a user needs of them."""
    text = str(error)
    for head in ("TF Select ops:", "Custom ops:"):
        if head in text:
            half = " in float16 or bfloat16" if "xf16>" in text or "xbf16>" in text else ""
            return UnimplementedError(f"TFLite has no builtin for {text.split(head)[1].splitlines()[0].strip()}{half}")
    reason = first_line(error)
    return UnimplementedError(reason) if "not yet supported for op" in reason else ExportError(reason)


def _no_other_dtypes(job: Job) -> str | None:
    for spec in (*job.signature.inputs.values(), *job.signature.outputs.values()):
        if spec.dtype in ("string", "float64"):
            return f"{spec.name!r} is {spec.dtype}, which TFLite's builtins do not work on"
    return None


def _no_loops(job: Job) -> str | None:
    if not job.unrolled and not job.sized and LOOPS & job.operations:
        return (
            "the model has a loop, which the converter cannot quantize: only recurrent layers of Keras models are "
            f"unrolled, and up to {MAX_UNROLLED_STEPS} steps"
        )
    return _no_other_dtypes(job)


def _no_integers(job: Job) -> str | None:
    for spec in job.signature.inputs.values():
        if spec.dtype.startswith(("int", "uint")):
            return f"{spec.name!r} is {spec.dtype}, which the converter does not take beside int16 activations"
    return _no_loops(job)


# These take no model with a loop.
_OF_NO_LOOPS = (_int8, _int16x8)

for quantization, path, prepare, unsupported in (
    ("float32", "model.tflite", _float32, _no_other_dtypes),
    ("float16", "model_float16.tflite", _float16, _no_other_dtypes),
    ("dynamic", "model_dynamic.tflite", _dynamic, _no_other_dtypes),
    ("int8", "model_int8.tflite", _int8, _no_loops),
    ("int16x8", "model_int16x8.tflite", _int16x8, _no_integers),
):
    register(
        Exporter(
            "tflite",
            quantization,
            path,
            ("tensorflow", "ai_edge_litert.interpreter"),
            partial(_convert, prepare),
            unsupported,
            derived=quantization == "float32",
        )
    )
