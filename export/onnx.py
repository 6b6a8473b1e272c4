"""ONNX files by tf2onnx from the SavedModel, with its names and a dynamic batch."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import extras
from ..errors import ExportError, UnimplementedError
from . import onnx_quantize
from .registry import Exporter, Job, register
from .source_model import first_line

_REQUIRES = ("tensorflow", "tf2onnx", "onnx", "onnxruntime")
_FLOAT32 = "model.onnx"
_UNKNOWN = re.compile(r"No Op registered for (\w+)")


def _from_tensorflow(job: Job) -> Any:
    """A float32 ModelProto of the signature, with what a reader of the file wants to know of it."""
    tf = extras.load("tensorflow", "exporting a model")
    tf2onnx = extras.load("tf2onnx", "exporting to ONNX")
    onnx = extras.load("onnx", "exporting to ONNX")
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # it logs what it then raises
    loaded = tf.saved_model.load(str(job.saved_model))
    call = loaded.signatures[job.signature.name]
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in job.signature.inputs.items()]

    def traced(*tensors: Any) -> Any:
        answers = call(**dict(zip(job.signature.inputs, tensors, strict=True)))
        return [answers[name] for name in job.signature.outputs]

    concrete = tf.function(traced, input_signature=specs, autograph=False).get_concrete_function()
    # Captured tensors are inputs too, of which tf2onnx.convert.from_function would make inputs of the file.
    inputs = [tensor.name for tensor in concrete.inputs[: len(specs)]]
    outputs = [tensor.name for tensor in concrete.outputs]
    names = dict(zip(inputs + outputs, [*job.signature.inputs, *job.signature.outputs], strict=True))
    try:
        frozen = tf2onnx.tf_loader.from_function(concrete, inputs, outputs)
        model, _ = tf2onnx.convert.from_graph_def(
            frozen,
            name=job.model,
            input_names=inputs,
            output_names=outputs,
            opset=job.opset,
            tensors_to_rename=names,
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    except Exception as error:  # tf2onnx raises every kind
        raise ExportError(first_line(error)) from error
    onnx.helper.set_model_props(
        model,
        {
            "servable.model": job.model,
            "servable.source": job.source,
            "servable.task": job.task,
            "servable.labels": json.dumps(job.labels, ensure_ascii=False),
        },
    )
    model.producer_name, model.producer_version = "servable", job.producer
    return model


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Make 1 - Erf(x) of TensorFlow's Erfc(x), of which Keras makes the exact GELU and tf2onnx nothing."""
    dtype = extras.load("tf2onnx", "exporting to ONNX").utils.map_onnx_to_numpy_type(context.get_dtype(node.output[0]))
    erf = context.make_node("Erf", [node.input[0]])
    one = context.make_const(f"{name}_one", np.array(1, dtype))
    node.type = "Sub"
    context.replace_inputs(node, [one.output[0], erf.output[0]])


def _write(change: Callable[[Any, Job], Any] | None, job: Job, path: Path) -> None:
    """Write a file that ``onnx.checker`` and its shape inference find nothing wrong with."""
    onnx = extras.load("onnx", "exporting to ONNX")
    ready = path.with_name(_FLOAT32)
    if change and ready.is_file():
        model = onnx.load(ready)
    else:
        model = _from_tensorflow(job)
        _check(onnx, model)
    if change:
        model = change(model, job)
        _check(onnx, model)
    path.write_bytes(model.SerializeToString())


def _check(onnx: Any, model: Any) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown:  # tf2onnx hands on what it has nothing for
            raise UnimplementedError(f"ONNX has no operator for {unknown[1]}") from error
        raise ExportError(f"what was made is no valid ONNX: {first_line(error)}") from error


def _to_float16(model: Any, job: Job) -> Any:
    return onnx_quantize.to_float16(model)


def _to_int8(model: Any, job: Job) -> Any:
    return onnx_quantize.to_int8(model, job.calibration)


def _unsupported(job: Job) -> str | None:
    if any(operation.startswith("LookupTable") for operation in job.operations):
        return "the model looks words up in a table, which ONNX does not have"
    if any(spec.dtype == "bfloat16" for spec in (*job.signature.inputs.values(), *job.signature.outputs.values())):
        return "tf2onnx does not convert bfloat16"
    both = sorted(job.signature.inputs.keys() & job.signature.outputs.keys())
    return f"an ONNX graph cannot have an input and an output of one name, {both[0]!r}" if both else None


for quantization, path, change in (
    ("float32", _FLOAT32, None),
    ("float16", "model_float16.onnx", _to_float16),
    ("int8", "model_int8.onnx", _to_int8),
):
    register(
        Exporter(
            "onnx",
            quantization,
            path,
            _REQUIRES,
            partial(_write, change),
            _unsupported,
            derived=quantization == "float32",
            after="onnx" if change else "",
        )
    )
