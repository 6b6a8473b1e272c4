"""ONNX files of others: domains, local functions, subgraphs and weights in other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from servable.errors import ArtifactError
from servable.inspection import ExternalFile, Model, inspect

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
ONES = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")


def written(path: Path, nodes: list[Any], weights: list[Any] | None = None, **more: Any) -> Path:
    graph = helper.make_graph(nodes, "main", [X], [Y], weights or [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 3)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="someone", producer_version="2", **more)
    path.write_bytes(model.SerializeToString())
    return path


def model_at(path: Path) -> Model:
    (entry,) = inspect(path).entries
    assert entry.model is not None
    return entry.model


def test_other_domains(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Mine", ["a"], ["b"], domain="my.own"),
        helper.make_node("PyOp", ["b"], ["c"], domain="ai.onnx.contrib"),
        helper.make_node("Gelu", ["c"], ["d"], domain="com.microsoft"),
        helper.make_node("Scaler", ["d"], ["y"], domain="ai.onnx.ml"),
    ]
    model = model_at(written(tmp_path / "m.onnx", nodes))
    assert {(finding.kind, finding.op) for finding in model.findings} == {
        ("custom", "my.own.Mine"),
        ("code", "ai.onnx.contrib.PyOp"),
    }
    assert [each.op for each in model.expected] == ["com.microsoft.Gelu"]
    assert model.opsets == {"ai.onnx": 17, "my.own": 3}
    assert model.producers["producer"] == "someone 2"
    assert model.ops["ai.onnx.ml.Scaler"] == 1
    signature = model.signatures["serving_default"]
    assert signature.inputs["x"].shape == (None, 3)
    assert signature.outputs["y"].shape is None


def test_functions_of_the_file_are_looked_into(tmp_path: Path) -> None:
    inner = helper.make_node("Hidden", ["a"], ["b"], domain="elsewhere")
    function = helper.make_function("my.own", "Mine", ["a"], ["b"], [inner], [helper.make_opsetid("elsewhere", 1)])
    node = helper.make_node("Mine", ["x"], ["y"], domain="my.own")
    model = model_at(written(tmp_path / "m.onnx", [node], functions=[function]))
    (finding,) = model.findings
    assert (finding.op, finding.places) == ("elsewhere.Hidden", ("function Mine",))


def test_subgraphs_are_looked_into(tmp_path: Path) -> None:
    def branch(name: str, *nodes: Any) -> Any:
        weights = [numpy_helper.from_array(np.ones(5, np.float32), f"w_{name}")]
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info("o", 1, None)], weights)

    deep = branch("deep", helper.make_node("Hidden", ["x"], ["o"], domain="elsewhere"))
    flat = branch("flat", helper.make_node("Identity", ["x"], ["o"]))
    middle = branch("middle", helper.make_node("If", ["c"], ["o"], then_branch=deep, else_branch=flat))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["c"], ["y"], then_branch=middle, else_branch=flat),
    ]
    model = model_at(written(tmp_path / "m.onnx", nodes))
    (finding,) = model.findings
    assert finding.places == ("If in If in main graph",)
    assert model.ops == {"If": 2, "Identity": 2, "Constant": 1, "elsewhere.Hidden": 1}
    assert model.parameters == 20


def external(tensor: Any, location: str) -> Any:
    outside = TensorProto()
    outside.CopyFrom(tensor)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=location)
    return outside


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "a/../../b", r"..\weights", r"C:\weights", ""])
def test_weights_outside_of_the_folder(tmp_path: Path, location: str) -> None:
    path = written(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [external(ONES, location)])
    model = model_at(path)
    (finding,) = model.findings
    assert (finding.kind, finding.detail) == ("outside", location)
    assert "outside of the model's folder" in finding.why
    assert model.external == (ExternalFile(location.replace("\\", "\\"), None),)
    assert model.parameters == 9


def test_weights_beside_the_file(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, [external(ONES, "weights.bin")])
    (finding,) = model_at(path).findings
    assert finding.why == "weights in a file that is not there"
    (tmp_path / "weights.bin").write_bytes(bytes(36))
    model = model_at(path)
    assert model.findings == ()
    assert model.external == (ExternalFile("weights.bin", 36),)
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "weights.bin").symlink_to("/etc/passwd")
    (finding,) = model_at(path).findings
    assert "a link puts outside" in finding.why


def test_weights_outside_of_the_folder_in_an_attribute_of_a_subgraph(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["o"], value=external(ONES, "../weights"))
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("o", 1, None)])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    assert [finding.kind for finding in model_at(written(tmp_path / "m.onnx", nodes)).findings] == ["outside"]


def test_weights_among_the_inputs_are_none(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "old", [X, helper.make_tensor_value_info("w", 1, [3, 3])], [Y], [ONES],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, ir_version=3).SerializeToString())
    assert list(model_at(path).signatures["serving_default"].inputs) == ["x"]


def test_quantization_in_words(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = written(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [ONES])
    quantize_dynamic(source, tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    model = model_at(tmp_path / "q.onnx")
    assert model.quantization.startswith("dynamic range: int8 weights")
    assert model.weights == {"int8": 9}


def test_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", [helper.make_node("Evil\x1b[2J", ["x"], ["y"], domain="\x1b]0;x\x07")])
    model = model_at(path)
    assert list(model.ops) == ["\\x1b]0;x\\x07.Evil\\x1b[2J"]
    assert all(text.isprintable() for finding in model.findings for text in (finding.op, *finding.places))


def test_a_message_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.StringStringEntryProto(key="k", value="v").SerializeToString())
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        inspect(path)
