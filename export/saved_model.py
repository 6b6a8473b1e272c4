"""The SavedModel, with the signatures that every call of the TensorFlow Serving API needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import extras
from ..manifest import Derivation
from ..preprocess import LUMA
from ..signature import PREDICT_METHOD, Signature, TensorSpec
from .registry import Exporter, register
from .saved_source import SavedModelFolder
from .source import Source
from .source_model import TracedModel

# What belongs to a SavedModel; other files of its folder are left where they are.
_PARTS = ("saved_model.pb", "saved_model.pbtxt", "fingerprint.pb", "keras_metadata.pb", "variables", "assets")
_EXTRA_ASSETS = "assets.extra"


def write(source: Source, folder: Path) -> None:
    """Write ``saved_model.pb``, ``variables/`` and ``assets/`` into ``folder``, with all signatures.

    What is a SavedModel already is copied as it is, with the warm-up requests that it brings along.
    """
    model = source.model
    if isinstance(model, SavedModelFolder):
        for name in (*_PARTS, _EXTRA_ASSETS):
            part = model.folder / name
            if part.is_dir():
                shutil.copytree(part, folder / name, dirs_exist_ok=True)
            elif part.is_file():
                shutil.copyfile(part, folder / name)
        return
    assert isinstance(model, TracedModel)
    tf = extras.load("tensorflow", "exporting a model")
    functions = {source.signature.name: _base(tf, model, source.signature)}
    for name, how in source.derivations.items():
        make = _from_images if how.prologue == "decode_image" else _from_examples
        functions[name] = make(tf, source, model, how)
    _save(tf, model, functions, folder)
    _set_method_names(tf, source.signatures, folder)


def write_base(model: TracedModel, signature: Signature, folder: Path) -> None:
    """Write a SavedModel with the one signature, to convert from; its batch may be fixed."""
    tf = extras.load("tensorflow", "exporting a model")
    with model.without_fused_loops():
        _save(tf, model, {signature.name: _base(tf, model, signature)}, folder)


def _save(tf: Any, model: TracedModel, functions: Mapping[str, Any], folder: Path) -> None:
    module = tf.Module()
    module.tracked_by_the_model = list(model.tracked)
    module.signature_functions = list(functions.values())
    concrete = {name: function.get_concrete_function() for name, function in functions.items()}
    tf.saved_model.save(module, str(folder), signatures=concrete)


def _function(tf: Any, specs: Mapping[str, Any], body: Any) -> Any:
    """A tf.function of these inputs, in this order, which hands them to ``body`` by name."""

    def traced(*tensors: Any) -> Any:
        return body(dict(zip(specs, tensors, strict=True)))

    return tf.function(traced, input_signature=list(specs.values()), autograph=False)


def _base(tf: Any, model: TracedModel, signature: Signature) -> Any:
    return _function(tf, _tensor_specs(tf, signature.inputs), model.call)


def _tensor_specs(tf: Any, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    return {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}


def _from_images(tf: Any, source: Source, model: TracedModel, how: Derivation) -> Any:
    """``serve_bytes``: decode, resize and scale in the graph, with the arithmetic of ``servable.preprocess``."""
    pixels_to = source.preprocessing
    assert pixels_to is not None
    (spec,) = source.signature.inputs.values()
    shape = [size for size in spec.shape or () if size is not None]
    luma = tf.constant(LUMA, tf.float32)[:, tf.newaxis]

    def prepare(encoded: Any) -> Any:
        # decode_jpeg also reads PNG, and it alone lets us choose the accurate DCT.
        pixels = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        size = (pixels_to.height, pixels_to.width)
        pixels = tf.image.resize(tf.cast(pixels, tf.float32), size, antialias=True)
        if pixels_to.channels == 1:
            pixels = tf.tensordot(pixels, luma, 1)
        return tf.reshape(pixels * pixels_to.scale + pixels_to.offset, shape)

    def serve_bytes(tensors: dict[str, Any]) -> dict[str, Any]:
        (encoded,) = tensors.values()
        batch = tf.map_fn(prepare, encoded, fn_output_signature=tf.TensorSpec(shape, tf.float32))
        answers = model.call({spec.name: batch})
        return {alias: answers[name] for alias, name in how.outputs.items()}

    return _function(tf, {"image_bytes": tf.TensorSpec([None], tf.string, name="image_bytes")}, serve_bytes)


def _from_examples(tf: Any, source: Source, model: TracedModel, how: Derivation) -> Any:
    """``classify`` and ``regress``: serialized tf.Examples with a dense feature for each input."""
    features = {
        name: tf.io.FixedLenFeature(list(spec.shape or ())[1:], spec.dtype)
        for name, spec in source.signature.inputs.items()
    }
    labels = tf.constant([label.encode() for label in source.labels], tf.string)

    def from_examples(tensors: dict[str, Any]) -> dict[str, Any]:
        (serialized,) = tensors.values()
        answers = model.call(tf.io.parse_example(serialized, features))
        outputs = {alias: answers[name] for alias, name in how.outputs.items()}
        if how.labels_as:
            outputs[how.labels_as] = tf.repeat(labels[tf.newaxis], tf.shape(serialized)[0], axis=0)
        return outputs

    return _function(tf, {"inputs": tf.TensorSpec([None], tf.string, name="inputs")}, from_examples)


def _set_method_names(tf: Any, signatures: Mapping[str, Signature], folder: Path) -> None:
    """``tf.saved_model.save`` writes the predict method for every signature; put the right ones."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    for name, signature in signatures.items():
        if signature.method_name != PREDICT_METHOD:
            updater.replace_method_name(signature_key=name, method_name=signature.method_name)
    updater.save()


register(Exporter("saved_model", "float32", ".", ("tensorflow", "google_crc32c"), convert=None, derived=True))
