"""Our own messages are the public interface's, field by field, and live beside the official classes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

import servable.wire
from servable.wire import messages

WIRE = Path(servable.wire.__file__).parent
PROTOS = ("config.proto", "error.proto", "onnx.proto", "serving.proto", "tensorflow.proto")


OFFICIAL_MODULES = (
    "onnx.onnx_ml_pb2",
    "tensorflow.core.example.example_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
    "tensorflow.core.protobuf.tensor_bundle_pb2",
    "tensorflow.core.protobuf.trackable_object_graph_pb2",
    "tensorflow_serving.apis.model_service_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.apis.prediction_service_pb2",
    "tensorflow_serving.config.model_server_config_pb2",
)


def official(full_name: str) -> Any:
    """The official descriptor of that name, out of the pool in which protoc's modules register."""
    for module in OFFICIAL_MODULES:
        importlib.import_module(module)
    pool = descriptor_pool.Default()
    try:
        return pool.FindMessageTypeByName(full_name)
    except KeyError:
        return pool.FindEnumTypeByName(full_name)


def nested(message: Descriptor) -> Iterator[Descriptor | EnumDescriptor]:
    yield message
    yield from message.enum_types
    for inner in message.nested_types:
        yield from nested(inner)


def own_types() -> dict[str, Descriptor | EnumDescriptor]:
    found: dict[str, Descriptor | EnumDescriptor] = {}
    for name in PROTOS:
        file = messages.POOL.FindFileByName(name)
        found |= {enum.full_name: enum for enum in file.enum_types_by_name.values()}
        for message in file.message_types_by_name.values():
            found |= {inner.full_name: inner for inner in nested(message)}
    return found


TYPES = own_types()
# The server's own configuration files, which the official client package does not carry.
SERVER_ONLY = {
    f"tensorflow.serving.{name}" for name in ("BatchingParameters", "MonitoringConfig", "PrometheusConfig", "SSLConfig")
}
MESSAGES = sorted(name for name, kind in TYPES.items() if isinstance(kind, Descriptor) and name not in SERVER_ONLY)
ENUMS = sorted(name for name, kind in TYPES.items() if isinstance(kind, EnumDescriptor))


def described(field: FieldDescriptor) -> dict[str, Any]:
    """Everything about a field that decides what its bytes mean."""
    kind = field.message_type or field.enum_type
    return {
        "name": field.name,
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "of": kind.full_name if kind else None,
        "map": bool(field.message_type and field.message_type.GetOptions().map_entry),
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
    }


def test_compiled_descriptors_are_those_of_the_protos(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.binpb"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            "--include_imports",
            f"--descriptor_set_out={fresh}",
            *PROTOS,
        ],
        cwd=WIRE / "protos",
        check=True,
    )
    shipped = resources.files(messages.__package__).joinpath("descriptors.binpb").read_bytes()

    def files(raw: bytes) -> dict[str, Any]:
        return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file}

    assert files(shipped) == files(fresh.read_bytes())


def test_every_proto_is_compiled() -> None:
    assert sorted(path.name for path in (WIRE / "protos").iterdir()) == sorted(PROTOS)


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_are_those_of_the_official_message(name: str) -> None:
    ours, theirs = TYPES[name], official(name)
    assert isinstance(ours, Descriptor)
    for field in ours.fields:
        assert field.number in theirs.fields_by_number, f"{name} has no field {field.number}"
        assert described(field) == described(theirs.fields_by_number[field.number])


@pytest.mark.parametrize("name", ENUMS)
def test_values_are_those_of_the_official_enum(name: str) -> None:
    ours, theirs = TYPES[name], official(name)
    assert isinstance(ours, EnumDescriptor)
    official_values = {value.name: value.number for value in theirs.values}
    assert {value.name: value.number for value in ours.values}.items() <= official_values.items()


@pytest.mark.parametrize("service", [messages.PREDICTION_SERVICE, messages.MODEL_SERVICE])
def test_services_are_called_as_the_official_ones(service: str) -> None:
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

    known = [*prediction_service_pb2.DESCRIPTOR.services_by_name.values()]
    known += model_service_pb2.DESCRIPTOR.services_by_name.values()
    assert service in [one.full_name for one in known]


def test_names_in_the_module_are_the_messages_they_say() -> None:
    for name, value in vars(messages).items():
        if name[0].isupper() and hasattr(value, "DESCRIPTOR"):
            assert value.DESCRIPTOR.name == name
            assert value.DESCRIPTOR.full_name in TYPES


def test_unknown_fields_survive() -> None:
    from tensorflow_serving.apis import predict_pb2

    theirs = predict_pb2.PredictRequest(client_id=b"someone")
    theirs.model_spec.name = "cnn"
    through = messages.PredictRequest.FromString(theirs.SerializeToString()).SerializeToString()
    assert predict_pb2.PredictRequest.FromString(through) == theirs


OURS = "from servable.wire import messages as ours"
THEIRS = "import tensorflow\nfrom tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2"
BOTH_WAYS = """
from google.protobuf import text_format
text = '''
model_spec { name: "cnn" version { value: 3 } signature_name: "s" }
outputs { key: "y" value { dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: 1.5 float_val: -2 } }
'''
a = text_format.Parse(text, ours.PredictResponse(), descriptor_pool=ours.POOL)
b = text_format.Parse(text, predict_pb2.PredictResponse())
assert type(a) is not type(b)
assert type(a) is ours.PredictResponse and type(b) is predict_pb2.PredictResponse
assert predict_pb2.PredictResponse.FromString(a.SerializeToString()) == b
assert ours.PredictResponse.FromString(b.SerializeToString()) == a

# Any finds its message by name, which is where two pools could be mixed up.
m = ours.SignatureDefMap()
m.signature_def["s"].inputs["x"].dtype = 1
r = ours.GetModelMetadataResponse()
r.metadata["signature_def"].Pack(m)
t = get_model_metadata_pb2.GetModelMetadataResponse.FromString(r.SerializeToString())
n = get_model_metadata_pb2.SignatureDefMap()
assert t.metadata["signature_def"].Unpack(n) and n.signature_def["s"].inputs["x"].dtype == 1
again = ours.GetModelMetadataResponse.FromString(t.SerializeToString())
back = ours.SignatureDefMap()
assert again.metadata["signature_def"].Unpack(back) and back == m
print("both ways")
"""


@pytest.mark.parametrize("imports", [[OURS, THEIRS], [THEIRS, OURS]], ids=["ours first", "theirs first"])
def test_both_live_in_one_process(imports: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, BOTH_WAYS])], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both ways\n"


def test_importing_ours_imports_no_tensorflow() -> None:
    code = f"{OURS}\nimport sys; print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'grpc')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
