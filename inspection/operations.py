"""TensorFlow's operations: all that it registers, and those that reach beyond the graph.

The names in ``tensorflow_operations.txt`` are what TF_GetAllOpList of TensorFlow 2.21 gives. What an
operation does is in TensorFlow's documentation of its raw operations
(https://www.tensorflow.org/api_docs/python/tf/raw_ops); that a model is a program is in its SECURITY.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from .report import Kind


@dataclass(frozen=True)
class Rule:
    """Why an operation is worth a finding.

    ``path`` is the number of the input that says which file, ``attribute`` the name of the attribute that
    says it; ``only_if`` tells from the attribute whether a file is meant at all.
    """

    kind: Kind
    why: str
    path: int | None = None
    attribute: str = ""
    only_if: Callable[[bytes], bool] | None = None


READS, WRITES = "reads files", "writes files"
_READER = "reads the files that it is given by a queue"
_CODE = "runs Python code of the process that made the model"
_SERVER = "talks to other machines"


def _is_file_url(value: bytes) -> bool:
    return value.startswith(b"file:")


def _is_descriptor_file(value: bytes) -> bool:
    return value not in (b"", b"local://") and not value.startswith(b"bytes://")


RULES: dict[str, Rule] = {
    **dict.fromkeys(("ReadFile", "MatchingFiles", "MatchingFilesDataset"), Rule("files", READS, 0)),
    **dict.fromkeys(("ExperimentalMatchingFilesDataset", "TextLineDataset"), Rule("files", READS, 0)),
    **dict.fromkeys(("TFRecordDataset", "TFRecordDatasetV2", "LMDBDataset"), Rule("files", READS, 0)),
    **dict.fromkeys(("FixedLengthRecordDataset", "FixedLengthRecordDatasetV2"), Rule("files", READS, 0)),
    **dict.fromkeys(("CSVDataset", "CSVDatasetV2", "ExperimentalCSVDataset"), Rule("files", READS, 0)),
    **dict.fromkeys(("ExperimentalLMDBDataset", "LoadDataset", "LoadAndRemapMatrix"), Rule("files", READS, 0)),
    **dict.fromkeys(("SnapshotDatasetReader", "SnapshotNestedDatasetReader"), Rule("files", READS)),
    **dict.fromkeys(("SnapshotChunkDataset", "ListSnapshotChunksDataset"), Rule("files", READS, 0)),
    **dict.fromkeys(("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"), Rule("files", READS, 1)),
    **dict.fromkeys(("Restore", "RestoreSlice", "RestoreV2", "DTensorRestoreV2"), Rule("files", READS, 0)),
    **dict.fromkeys(("WholeFileReader", "WholeFileReaderV2", "LMDBReader"), Rule("files", _READER)),
    **dict.fromkeys(("TextLineReader", "TextLineReaderV2"), Rule("files", _READER)),
    **dict.fromkeys(("FixedLengthRecordReader", "FixedLengthRecordReaderV2"), Rule("files", _READER)),
    **dict.fromkeys(("TFRecordReader", "TFRecordReaderV2"), Rule("files", _READER)),
    **dict.fromkeys(("SqlDataset", "ExperimentalSqlDataset"), Rule("files", "reads a data base", 1)),
    "GenerateVocabRemapping": Rule("files", READS, 0),
    "ImmutableConst": Rule("files", READS, attribute="memory_region_name"),
    "RecordInput": Rule("files", READS, attribute="file_pattern"),
    "Skipgram": Rule("files", READS, attribute="filename"),
    "DecodeProtoV2": Rule("files", READS, attribute="descriptor_source", only_if=_is_descriptor_file),
    "EncodeProto": Rule("files", READS, attribute="descriptor_source", only_if=_is_descriptor_file),
    "FileSystemSetConfiguration": Rule("files", "sets up a file system"),
    **dict.fromkeys(("WriteFile", "Save", "SaveSlices", "SaveV2"), Rule("files", WRITES, 0)),
    **dict.fromkeys(("MergeV2Checkpoints", "DistributedSave"), Rule("files", WRITES, 1)),
    **dict.fromkeys(("SaveDataset", "SaveDatasetV2", "SnapshotDataset", "SnapshotDatasetV2"), Rule("files", WRITES, 1)),
    **dict.fromkeys(("DatasetToTFRecord", "ExperimentalDatasetToTFRecord"), Rule("files", WRITES, 1)),
    **dict.fromkeys(("CacheDataset", "CacheDatasetV2"), Rule("files", "keeps what it reads in files", 1)),
    **dict.fromkeys(("CreateSummaryFileWriter", "CreateSummaryDbWriter"), Rule("files", WRITES, 1)),
    "DumpTensor": Rule("files", WRITES, attribute="log_dir_path"),
    "CalibrationStatisticsSaver": Rule("files", WRITES, attribute="output_file_path"),
    "PrintV2": Rule("files", WRITES, attribute="output_stream", only_if=_is_file_url),
    **dict.fromkeys(
        ("DebugIdentity", "DebugIdentityV2", "DebugIdentityV3"), Rule("files", WRITES, attribute="debug_urls")
    ),
    **dict.fromkeys(("DebugNanCount", "DebugNumericSummary"), Rule("files", WRITES, attribute="debug_urls")),
    **dict.fromkeys(("PyFunc", "PyFuncStateless", "EagerPyFunc"), Rule("code", _CODE)),
    **dict.fromkeys(("XlaCustomCall", "XlaCustomCallV2"), Rule("code", "calls a native function by its name")),
    **dict.fromkeys(("XlaHostCompute", "_XlaHostComputeMlir"), Rule("code", "runs a program of its own")),
    "XlaCallModule": Rule("code", "runs a compiled module, which this audit does not look into"),
    "RemoteCall": Rule("network", "runs a function on another device or machine"),
    **dict.fromkeys(("RpcCall", "RpcClient", "RpcServer", "RpcServerRegister"), Rule("network", _SERVER)),
    **dict.fromkeys(("RpcServerStart", "RegisterDataset", "RegisterDatasetV2"), Rule("network", _SERVER)),
    **dict.fromkeys(("DataServiceDataset", "DataServiceDatasetV2"), Rule("network", _SERVER)),
    **dict.fromkeys(("DataServiceDatasetV3", "DataServiceDatasetV4"), Rule("network", _SERVER)),
}

# What writes and reads the variables of every SavedModel.
SAVER_OPS = frozenset({"SaveV2", "RestoreV2", "MergeV2Checkpoints", "Save", "SaveSlices", "Restore", "RestoreSlice"})
# What a model may do with the files of its own assets folder.
ASSET_OPS = frozenset({"InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "ReadFile", "TextLineDataset"})


@cache
def known() -> frozenset[str]:
    """The names of all operations that TensorFlow itself registers."""
    text = resources.files(__package__).joinpath("tensorflow_operations.txt").read_text(encoding="ascii")
    return frozenset(text.split())


def attribute_texts(node: Any, name: str) -> list[bytes]:
    """The string, or the strings, of an attribute of a NodeDef; empty if it has none."""
    if name not in node.attr:
        return []
    value = node.attr[name]
    return list(value.list.s) if value.HasField("list") else [value.s] if value.s else []
