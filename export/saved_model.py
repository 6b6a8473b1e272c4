"""The SavedModel, with the signatures that every call of the TensorFlow Serving API needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import extras
from ..preprocess import LUMA
from ..signature import DEFAULT_SIGNATURE, PREDICT_METHOD
from .registry import FLOAT32, Exporter, register
from .source import Source


def convert(source: Source, folder: Path) -> None:
    """Write ``saved_model.pb``, ``variables/`` and ``assets/`` into ``folder``."""
    tf = extras.load("tensorflow", "exporting a model")
    module = tf.Module()
    # A Keras 3 model is not tracked by tf.Module; its variables must be, or they are not saved.
    module.variables_of_model = [variable.value for variable in source.model.variables]
    functions = {DEFAULT_SIGNATURE: _default(tf, source)}
    for name, how in source.derivations.items():
        picture = how.prologue == "decode_image"
        functions[name] = _serve_bytes(tf, source) if picture else _from_examples(tf, source, name)
    module.signature_functions = list(functions.values())
    concrete = {name: function.get_concrete_function() for name, function in functions.items()}
    tf.saved_model.save(module, str(folder), signatures=concrete)
    _set_method_names(tf, source, folder)


def _default(tf: Any, source: Source) -> Any:
    spec = tf.TensorSpec(source.input.shape, source.input.dtype, name=source.input.name)

    @tf.function(input_signature=[spec])  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def serving_default(tensor: Any) -> dict[str, Any]:
        return {source.output.name: source.model(tensor, training=False)}

    return serving_default


def _serve_bytes(tf: Any, source: Source) -> Any:
    """Decode, resize and scale in the graph, with the arithmetic of ``servable.preprocess``."""
    how = source.preprocessing
    assert how is not None
    shape = [size for size in source.input.shape or () if size is not None]
    luma = tf.constant(LUMA, tf.float32)[:, tf.newaxis]

    def prepare(encoded: Any) -> Any:
        # decode_jpeg also reads PNG, and it alone lets us choose the accurate DCT.
        pixels = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        pixels = tf.image.resize(tf.cast(pixels, tf.float32), (how.height, how.width), antialias=True)
        if how.channels == 1:
            pixels = tf.tensordot(pixels, luma, 1)
        return tf.reshape(pixels * how.scale + how.offset, shape)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def serve_bytes(image_bytes: Any) -> dict[str, Any]:
        batch = tf.map_fn(prepare, image_bytes, fn_output_signature=tf.TensorSpec(shape, tf.float32))
        return {source.output.name: source.model(batch, training=False)}

    return serve_bytes


def _from_examples(tf: Any, source: Source, name: str) -> Any:
    """``classify`` and ``regress``: serialized tf.Examples with one dense feature, the model's input."""
    how = source.derivations[name]
    shape = list(source.input.shape or ())[1:]
    feature = {source.input.name: tf.io.FixedLenFeature(shape, source.input.dtype)}
    labels = tf.constant([label.encode() for label in source.labels], tf.string)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def from_examples(serialized: Any) -> dict[str, Any]:
        batch = tf.io.parse_example(serialized, feature)[source.input.name]
        result = source.model(batch, training=False)
        outputs = dict.fromkeys(how.outputs, result)
        if how.labels_as:
            outputs[how.labels_as] = tf.repeat(labels[tf.newaxis], tf.shape(serialized)[0], axis=0)
        return outputs

    return from_examples


def _set_method_names(tf: Any, source: Source, folder: Path) -> None:
    """``tf.saved_model.save`` writes the predict method for every signature; put the right ones."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    for name, signature in source.signatures.items():
        if signature.method_name != PREDICT_METHOD:
            updater.replace_method_name(signature_key=name, method_name=signature.method_name)
    updater.save()


register(
    Exporter(
        format="saved_model",
        quantization="float32",
        path=".",
        requires=("tensorflow",),
        tolerance=FLOAT32,
        convert=convert,
        derived=True,
    )
)
