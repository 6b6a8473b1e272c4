"""REST Predict on BentoML, in its own environment: ``bentoml serve bentoml_rest:Predict`` beside this file.

Of a list or an array as the type of the argument, and of a method that is a coroutine or not, these
two are BentoML's fastest. The environment variable MODEL names the ONNX file.
"""

import os

import bentoml  # type: ignore[import-not-found,unused-ignore]  # it lives in an environment of its own
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)  # type: ignore[untyped-decorator,unused-ignore]  # the same
class Predict:
    """One ONNX file on one thread."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    @bentoml.api  # type: ignore[untyped-decorator,unused-ignore]  # the same
    async def predict(self, instances: np.ndarray) -> np.ndarray:
        """Run the model."""
        result: np.ndarray = self.session.run(None, {self.name: instances.astype(np.float32)})[0]
        return result
