"""Message classes of the TensorFlow Serving interface and of model files, in a descriptor pool of their own.

The descriptions in ``protos/`` are compiled to ``descriptors.binpb`` (``make protos``) and loaded into
a private pool, so that they live beside TensorFlow's own classes in one process, whichever is imported
first. Pass ``POOL`` to every ``json_format`` and ``text_format`` call: without it protobuf takes the
default pool's class of the same name, silently.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"


def _load_pool() -> DescriptorPool:
    pool = DescriptorPool()
    raw = resources.files(__package__).joinpath("descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        pool.Add(file)
    return pool


POOL = _load_pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


_TENSORFLOW = "tensorflow"
_SERVING = "tensorflow.serving"
_ONNX = "onnx"

TensorProto = _message(f"{_TENSORFLOW}.TensorProto")
SignatureDef = _message(f"{_TENSORFLOW}.SignatureDef")
SavedModel = _message(f"{_TENSORFLOW}.SavedModel")
Example = _message(f"{_TENSORFLOW}.Example")
AssetFileDef = _message(f"{_TENSORFLOW}.AssetFileDef")
BundleHeaderProto = _message(f"{_TENSORFLOW}.BundleHeaderProto")
BundleEntryProto = _message(f"{_TENSORFLOW}.BundleEntryProto")
TrackableObjectGraph = _message(f"{_TENSORFLOW}.TrackableObjectGraph")
ModelProto = _message(f"{_ONNX}.ModelProto")
ModelSpec = _message(f"{_SERVING}.ModelSpec")
PredictRequest = _message(f"{_SERVING}.PredictRequest")
PredictResponse = _message(f"{_SERVING}.PredictResponse")
ClassificationRequest = _message(f"{_SERVING}.ClassificationRequest")
ClassificationResponse = _message(f"{_SERVING}.ClassificationResponse")
RegressionRequest = _message(f"{_SERVING}.RegressionRequest")
RegressionResponse = _message(f"{_SERVING}.RegressionResponse")
MultiInferenceRequest = _message(f"{_SERVING}.MultiInferenceRequest")
MultiInferenceResponse = _message(f"{_SERVING}.MultiInferenceResponse")
SignatureDefMap = _message(f"{_SERVING}.SignatureDefMap")
GetModelMetadataRequest = _message(f"{_SERVING}.GetModelMetadataRequest")
GetModelMetadataResponse = _message(f"{_SERVING}.GetModelMetadataResponse")
GetModelStatusRequest = _message(f"{_SERVING}.GetModelStatusRequest")
GetModelStatusResponse = _message(f"{_SERVING}.GetModelStatusResponse")
ReloadConfigRequest = _message(f"{_SERVING}.ReloadConfigRequest")
ReloadConfigResponse = _message(f"{_SERVING}.ReloadConfigResponse")
PredictionLog = _message(f"{_SERVING}.PredictionLog")
ModelServerConfig = _message(f"{_SERVING}.ModelServerConfig")
BatchingParameters = _message(f"{_SERVING}.BatchingParameters")
MonitoringConfig = _message(f"{_SERVING}.MonitoringConfig")
SSLConfig = _message(f"{_SERVING}.SSLConfig")
