"""The lists of names that we ship are those of the packages, and the rules are about operations that exist."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from ai_edge_litert import schema_py_generated as schema

from servable.inspection import operations, tflite

NAMES = """
from tensorflow.core.framework.op_def_pb2 import OpList
from tensorflow.python.client import pywrap_tf_session as client
print(*[op.name for op in OpList.FromString(client.TF_GetBuffer(client.TF_GetAllOpList())).op])
"""


def test_all_operations_of_tensorflow_are_known() -> None:
    """If this fails: write the sorted names of `registered` to inspection/tensorflow_operations.txt.

    In a process of its own, for others of this one have loaded libraries with operations that are not TensorFlow's.
    """
    done = subprocess.run([sys.executable, "-c", NAMES], check=True, capture_output=True, text=True, timeout=120)
    registered = set(done.stdout.split())
    assert len(registered) > 1000
    assert registered <= operations.known()


def test_rules_are_about_operations_that_there_are() -> None:
    assert operations.RULES.keys() <= operations.known()
    assert operations.RULES.keys() >= operations.SAVER_OPS | operations.ASSET_OPS


def test_the_inputs_that_rules_call_paths_are_strings() -> None:
    client = import_module("tensorflow.python.client.pywrap_tf_session")
    ops = import_module("tensorflow.core.framework.op_def_pb2").OpList
    registered = {op.name: op for op in ops.FromString(client.TF_GetBuffer(client.TF_GetAllOpList())).op}
    for name, rule in operations.RULES.items():
        if rule.path is not None:
            assert registered[name].input_arg[rule.path].type == 7, name
        if rule.attribute:
            assert rule.attribute in [attr.name for attr in registered[name].attr], name


def test_builtin_operators_and_dtypes_are_those_of_litert() -> None:
    def numbered(enum: type) -> list[str]:
        by_number = {number: name for name, number in vars(enum).items() if isinstance(number, int)}
        return [by_number[number] for number in range(len(by_number))]

    assert list(tflite._builtins()) == numbered(schema.BuiltinOperator)
    assert list(tflite._DTYPES) == [name.lower() for name in numbered(schema.TensorType)]
