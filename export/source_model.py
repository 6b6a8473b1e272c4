"""A trained model, whatever it came from, as named arrays in and named arrays out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from ..errors import InternalError
from ..manifest import Derivation
from ..signature import Signature

Arrays = Mapping[str, NDArray[Any]]


class SourceModel(ABC):
    """What is exported.

    ``signature`` is the one that every artifact answers, batch first, with the names that all of them
    get. ``kind`` says what the model is, ``parameters`` counts its weights, ``recurrent`` says
    whether it has a recurrent layer, where that is known. Integers below ``vocabulary`` are inputs that
    it takes, and ``words`` are strings; ``half`` says that it computes in float16 or bfloat16.
    """

    kind: str
    signature: Signature
    parameters: int
    recurrent: bool = False
    vocabulary: int = 10
    words: tuple[str, ...] = ("red", "green", "blue", "cat", "dog", "house", "a", "the", "", "été", "1")
    half: bool = False
    # All signatures of a model that is published as it is; None for one that gets them from its export.
    signatures: Mapping[str, Signature] | None = None
    # Which of those are another one with a prologue, as its manifest says.
    derivations: Mapping[str, Derivation] = MappingProxyType({})

    @abstractmethod
    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """What the model itself answers for rows of named arrays: the reference of all evidence.

        Raises `ExportError` if it fails on them.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The manifest's ``source``: kind, class or file, parameter count and a digest of the weights."""


class TracedModel(SourceModel):
    """A model that TensorFlow traces into the SavedModel that is published."""

    @abstractmethod
    def call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Answer named tensors, for inference; called while a function is traced."""

    @property
    @abstractmethod
    def tracked(self) -> Sequence[Any]:
        """Variables, tables and assets that a SavedModel of `call` has to hold."""

    def unrolls(self, open_steps: int = 0) -> bool:
        """Whether `call` traces loops that `unrolled` takes out.

        ``open_steps`` is the number of steps to trace where the signature leaves it open, 0 for none.
        """
        return False

    @contextmanager
    def unrolled(self) -> Iterator[None]:
        """While this is entered, `call` traces recurrent layers step by step."""
        yield

    @contextmanager
    def without_fused_loops(self) -> Iterator[None]:
        """While this is entered, no loop is traced that a converter would replace by an operation with a state."""
        yield


class Facts(SourceModel):
    """What is known of a model, without the model: for a process of its own, which compares what others made."""

    def __init__(self, model: SourceModel) -> None:
        self.kind, self.signature, self.signatures = model.kind, model.signature, model.signatures
        self.parameters, self.recurrent, self.half = model.parameters, model.recurrent, model.half
        self.vocabulary, self.words = model.vocabulary, model.words
        self.derivations = dict(model.derivations)
        self._description = model.describe()

    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        raise InternalError(f"these are facts about a model of the kind {self.kind}, which cannot be run")

    def describe(self) -> dict[str, Any]:
        return self._description


# Keras colours its texts and says first in which layer it was, TensorFlow where it is in the graph.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PREAMBLE = re.compile(r"(Exception|Error) encountered (when calling|while)|Graph execution error|Detected at node")


def first_line(error: Exception) -> str:
    """The line of an error that says most: the first one with a reason in it, else the error's class."""
    lines = [_COLOURS.sub("", line).strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    said = [line for line in lines if not _PREAMBLE.match(line)]
    return (said or lines or [type(error).__name__])[0]


def one_line(error: Exception) -> str:
    """A message of TensorFlow on one line."""
    return " ".join(str(error).split()) or type(error).__name__
