"""SavedModels of others: everything that their graphs hide, and what is in every SavedModel and harmless."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from servable.errors import ArtifactError
from servable.inspection import Finding, Model, inspect
from servable.wire import messages

SPEC = tf.TensorSpec([None], tf.float32, name="x")


def saved(folder: Path, call: Callable[[Any], Any], **attributes: Any) -> Path:
    """A SavedModel of a module whose signature is ``call``."""
    module = tf.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    module.call = tf.function(call, input_signature=[SPEC])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.call})
    return folder


def model_at(folder: Path) -> Model:
    (entry,) = inspect(folder).entries
    assert entry.model is not None
    return entry.model


def found(folder: Path) -> dict[str, Finding]:
    return {finding.op: finding for finding in model_at(folder).findings}


def test_python_code(tmp_path: Path) -> None:
    def call(x: Any) -> Any:
        y = tf.py_function(lambda a: a, [x], tf.float32)
        return {"y": tf.numpy_function(lambda a: a, [y], tf.float32)}

    findings = found(saved(tmp_path, call))
    assert findings.keys() == {"EagerPyFunc", "PyFunc"}
    assert all(finding.kind == "code" and finding.places for finding in findings.values())
    assert not any(finding.at_load for finding in findings.values())


def test_files_in_nested_functions(tmp_path: Path) -> None:
    @tf.function
    def inner(x: Any) -> Any:
        text = tf.io.read_file("/etc/hostname")
        with tf.control_dependencies([tf.io.write_file("/tmp/out", text)]):
            return x + tf.cast(tf.size(tf.io.matching_files("/home/*")), tf.float32)

    def call(x: Any) -> Any:
        @tf.function
        def middle(x: Any) -> Any:
            return tf.while_loop(lambda i, v: i < 2, lambda i, v: (i + 1, inner(v)), [0, x])[1]

        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: middle(x), lambda: x)}

    findings = found(saved(tmp_path, call))
    assert {name: finding.detail for name, finding in findings.items()} == {
        "ReadFile": "/etc/hostname",
        "WriteFile": "/tmp/out",
        "MatchingFiles": "/home/*",
    }
    assert all("inner" in finding.places[0] for finding in findings.values())


RAW = tf.raw_ops
NAMED: dict[str, Any] = {"tensor_names": ["a"], "shape_and_slices": [""]}
WAYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "PrintV2": (lambda x: tf.print("x", output_stream="file:///tmp/p"), "file:///tmp/p"),
    "SaveV2": (lambda x: RAW.SaveV2(prefix="/tmp/p", tensors=[x], **NAMED), "/tmp/p"),
    "RestoreV2": (lambda x: RAW.RestoreV2(prefix="/tmp/p", dtypes=[tf.float32], **NAMED)[0], "/tmp/p"),
    "WholeFileReaderV2": (lambda x: RAW.WholeFileReaderV2(), ""),
    "Save": (lambda x: RAW.Save(filename="/tmp/p", tensor_names=["a"], data=[x]), "/tmp/p"),
    "DebugIdentityV3": (lambda x: RAW.DebugIdentityV3(input=x, debug_urls=["file:///tmp/p"]), "file:///tmp/p"),
}


@pytest.mark.parametrize("op", WAYS)
def test_other_ways_to_files(tmp_path: Path, op: str) -> None:
    make, detail = WAYS[op]

    def call(x: Any) -> Any:
        made = make(x)
        with tf.control_dependencies([] if made is None else [made]):
            return {"y": x + 1.0}

    findings = found(saved(tmp_path, call))
    assert {name: finding.detail for name, finding in findings.items()} == {op: detail}


def test_printing_to_the_log_is_harmless(tmp_path: Path) -> None:
    def call(x: Any) -> Any:
        tf.print("x", x)
        return {"y": x}

    assert found(saved(tmp_path, call)) == {}


def vocabulary(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("a\nb\n")
    return path


def with_table(tmp_path: Path) -> Path:
    words = tf.saved_model.Asset(str(vocabulary(tmp_path)))
    initializer = tf.lookup.TextFileInitializer(
        words, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    table = tf.lookup.StaticVocabularyTable(initializer, 1)

    def call(x: Any) -> Any:
        return {"y": table.lookup(tf.strings.as_string(x))}

    return saved(tmp_path / "model", call, table=table, words=words)


def test_tables_from_assets_are_expected(tmp_path: Path) -> None:
    model = model_at(with_table(tmp_path))
    assert model.findings == ()
    assert "InitializeTableFromTextFileV2" in {each.op for each in model.expected}
    assert model.metadata["assets"] == ["words.txt"]


def changed(folder: Path, change: Callable[[Any], None]) -> Path:
    """The SavedModel with its message changed in place."""
    path = folder / "saved_model.pb"
    proto = messages.SavedModel.FromString(path.read_bytes())
    change(proto.meta_graphs[0])
    path.write_bytes(proto.SerializeToString())
    return folder


def all_nodes(graph: Any) -> list[Any]:
    return [*graph.graph_def.node, *(node for f in graph.graph_def.library.function for node in f.node_def)]


def test_tables_from_elsewhere_are_not(tmp_path: Path) -> None:
    def leave(graph: Any) -> None:
        graph.asset_file_def[0].filename = "../../../etc/passwd"

    findings = found(changed(with_table(tmp_path), leave))
    assert findings["InitializeTableFromTextFileV2"].kind == "files"
    assert findings["InitializeTableFromTextFileV2"].at_load


def plain(tmp_path: Path) -> Path:
    variable = tf.Variable(np.ones(3, np.float32))
    return saved(tmp_path, lambda x: {"y": x * tf.reduce_sum(variable)}, variable=variable)


def test_restoring_from_a_constant_is_a_finding(tmp_path: Path) -> None:
    def redirect(graph: Any) -> None:
        for function in graph.graph_def.library.function:
            if any(node.op == "RestoreV2" for node in function.node_def):
                evil = function.node_def.add(name="evil", op="Const")
                evil.attr["value"].tensor.dtype = 7
                evil.attr["value"].tensor.string_val.append(b"/etc/shadow")
                for node in function.node_def:
                    if node.op == "RestoreV2":
                        node.input[0] = "evil:output:0"

    folder = plain(tmp_path)
    assert found(folder) == {}
    finding = found(changed(folder, redirect))["RestoreV2"]
    assert (finding.detail, finding.at_load) == ("/etc/shadow", True)


@pytest.mark.parametrize("op", ["StringJoin", "Select", "RegexReplace"])
def test_a_path_made_from_the_loader_s_is_a_finding(tmp_path: Path, op: str) -> None:
    def redirect(graph: Any) -> None:
        for function in graph.graph_def.library.function:
            saves = [node for node in function.node_def if node.op == "SaveV2"]
            for node in saves:
                evil = function.node_def.add(name="evil", op="Const")
                evil.attr["value"].tensor.dtype = 7
                evil.attr["value"].tensor.string_val.append(b"elsewhere")
                prefix = node.input[0]
                parts = {"StringJoin": ["evil:output:0", prefix], "Select": [prefix, "evil:output:0", prefix]}
                function.node_def.add(name="made", op=op, input=parts.get(op, [prefix]))
                node.input[0] = "made:output:0"

    assert "SaveV2" in found(changed(plain(tmp_path), redirect))


def test_a_signature_must_not_call_the_saver(tmp_path: Path) -> None:
    def call_it(graph: Any) -> None:
        name = graph.saver_def.save_tensor_name.split(":")[0]
        (output,) = graph.signature_def["serving_default"].outputs.values()
        next(node for node in graph.graph_def.node if node.name == output.name.split(":")[0]).input.append(f"^{name}")

    assert found(changed(plain(tmp_path), call_it)).keys() >= {"SaveV2", "MergeV2Checkpoints"}


def test_the_path_of_the_saver_must_come_from_the_loader(tmp_path: Path) -> None:
    def drop(graph: Any) -> None:
        graph.saver_def.filename_tensor_name = "another:0"

    assert found(changed(plain(tmp_path), drop)).keys() == {"SaveV2", "RestoreV2", "MergeV2Checkpoints"}


def test_operations_of_libraries(tmp_path: Path) -> None:
    def rename(graph: Any) -> None:
        next(node for node in all_nodes(graph) if node.op == "Mul").op = "Some\x1b[2JOp"

    (finding,) = model_at(changed(plain(tmp_path), rename)).findings
    assert finding.kind == "custom"
    assert finding.op == "Some\\x1b[2JOp"


def test_functions_that_nothing_calls_are_looked_into(tmp_path: Path) -> None:
    def add(graph: Any) -> None:
        function = graph.graph_def.library.function.add()
        function.signature.name = "lonely"
        function.node_def.add(name="read", op="ReadFile", input=["path"])

    (finding,) = model_at(changed(plain(tmp_path), add)).findings
    assert finding.places == ("function lonely",)


def test_functions_that_call_themselves_come_to_an_end(tmp_path: Path) -> None:
    def add(graph: Any) -> None:
        function = graph.graph_def.library.function.add()
        function.signature.name = "again"
        node = function.node_def.add(name="call", op="PartitionedCall", input=["call"])
        node.attr["f"].func.name = "again"
        graph.graph_def.node.add(name="round", op="Identity", input=["round"])
        graph.graph_def.node.add(name="start", op="again", input=["round"])

    assert model_at(changed(plain(tmp_path), add)).findings == ()


def test_every_graph_is_looked_into(tmp_path: Path) -> None:
    def call(x: Any) -> Any:
        return {"y": x + tf.strings.to_number(tf.io.read_file("number"))}

    evil = messages.SavedModel.FromString((saved(tmp_path / "evil", call) / "saved_model.pb").read_bytes())
    folder = plain(tmp_path / "good")
    path = folder / "saved_model.pb"
    proto = messages.SavedModel.FromString(path.read_bytes())
    evil.meta_graphs[0].meta_info_def.tags[:] = ["serve", "gpu"]
    proto.meta_graphs.append(evil.meta_graphs[0])
    path.write_bytes(proto.SerializeToString())
    model = model_at(folder)
    assert [finding.op for finding in model.findings] == ["ReadFile"]
    assert model.metadata["tags"] == [["serve"], ["gpu", "serve"]]


@pytest.mark.parametrize("sharded", [False, True])
def test_tensorflow_1(tmp_path: Path, sharded: bool) -> None:
    v1 = tf.compat.v1
    folder = tmp_path / "model"
    with v1.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, [None, 2], "x")
        weights = v1.get_variable("w", [2, 3])
        y = tf.matmul(x, weights)
        v1.train.AdamOptimizer().minimize(tf.reduce_sum(y), global_step=v1.train.get_or_create_global_step())
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(vocabulary(tmp_path)), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            ),
            -1,
        )  # fmt: skip
        number = table.lookup(tf.constant(["a"]))
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y, "n": number})
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature},
            main_op=v1.tables_initializer(), saver=v1.train.Saver(sharded=sharded),
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        )  # fmt: skip
        builder.save()
    model = model_at(folder)
    assert model.findings == ()
    assert {"SaveV2", "RestoreV2", "InitializeTableFromTextFileV2"} <= {each.op for each in model.expected}
    assert model.parameters == 6  # not Adam's slots and powers, not the step
    assert model.signatures["serving_default"].inputs["x"].shape == (None, 2)


def test_a_frozen_graph_has_its_weights_in_constants(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with v1.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, [None, 2], "x")
        y = tf.matmul(x, tf.constant(np.ones((2, 3), np.float32)))
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, {"y": y})
    model = model_at(tmp_path / "model")
    assert (model.parameters, model.parameters_in) == (6, "constants")
    assert model.findings == ()


def test_optimizers_do_not_count(tmp_path: Path) -> None:
    keras = tf.keras
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    model.export(str(tmp_path / "export"), verbose=False)
    assert model_at(tmp_path / "export").parameters == model.count_params()
    old = pytest.importorskip("tf_keras")
    other = old.Sequential([old.layers.Dense(3, input_shape=[4]), old.layers.BatchNormalization()])
    other.compile("adam", "mse")
    other.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    other.save(str(tmp_path / "old"))
    assert model_at(tmp_path / "old").parameters == other.count_params()


def test_lambda_layers_of_keras_2(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    code = base64.b64encode(b"code").decode()
    (folder / "keras_metadata.pb").write_text(f'{{"class_name": "Lambda", "config": {{"function": "{code}"}}}}')
    assert found(folder)["Lambda"].kind == "code"


def test_weights_that_are_cut_off(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    (shard,) = (folder / "variables").glob("variables.data-*")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"variables\.data-00000-of-00001 is cut off: it has"):
        inspect(folder)
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"variables\.data-00000-of-00001 cannot be read"):
        inspect(folder)
    shutil.rmtree(folder / "variables")
    assert model_at(folder).parameters == 0
