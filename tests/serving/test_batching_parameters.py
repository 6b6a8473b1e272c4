"""What batching can be told, by a file as TensorFlow Serving reads it or by us, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from servable.errors import InvalidArgumentError
from servable.serving.batch_queue import Batcher
from servable.serving.batch_scheduler import BatchScheduler
from servable.serving.batching import BatchingParameters
from servable.serving.monitoring import Monitor


def parsed(folder: Path, text: str) -> BatchingParameters:
    path = folder / "batching_params.pbtxt"
    path.write_text(text)
    return BatchingParameters.read(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    found = parsed(tmp_path, "")
    assert found == BatchingParameters()
    assert found == BatchingParameters(
        max_batch_size=1000,
        batch_timeout_micros=0,
        max_enqueued_batches=10,
        num_batch_threads=os.cpu_count() or 1,
        thread_pool_name="batch_threads",
        allowed_batch_sizes=(),
        pad_variable_length_inputs=False,
        enable_large_batch_splitting=False,
        max_execution_batch_size=None,
    )
    found.check()
    assert found.execution_limit == 1000


def test_every_field_is_read(tmp_path: Path) -> None:
    found = parsed(
        tmp_path,
        """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 5000 }
        max_enqueued_batches { value: 64 }
        num_batch_threads { value: 3 }
        thread_pool_name { value: "mine" }
        allowed_batch_sizes: 32
        allowed_batch_sizes: 128
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 32 }
        """,
    )
    assert found == BatchingParameters(128, 5000, 64, 3, "mine", (32, 128), True, True, 32)
    found.check()
    assert found.execution_limit == 32


def test_a_value_of_zero_is_a_value(tmp_path: Path) -> None:
    found = parsed(tmp_path, "max_batch_size { } max_enqueued_batches { value: 0 } num_batch_threads { value: -1 }")
    assert (found.max_batch_size, found.max_enqueued_batches, found.num_batch_threads) == (0, 0, -1)


@pytest.mark.parametrize("text", ["max_batch_size: 5", "max_batch_sise { value: 5 }", "{", "allowed_batch_sizes: x"])
def test_a_file_that_is_no_such_message_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a BatchingParameters in text format"):
        parsed(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read: No such file"):
        BatchingParameters.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"allowed_batch_sizes": (2, 4)},
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 1000",
        ),
        (
            {"max_batch_size": 8, "allowed_batch_sizes": (8, 4)},
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        (
            {
                "max_batch_size": 8,
                "allowed_batch_sizes": (4,),
                "enable_large_batch_splitting": True,
                "max_execution_batch_size": 4,
            },
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        (
            {"max_batch_size": 8, "allowed_batch_sizes": (4, 2, 8)},
            "allowed_batch_sizes entries must be monotonically increasing; were 4, 2, 8",
        ),
        (
            {"max_batch_size": 8, "allowed_batch_sizes": (4, 4, 8)},
            "allowed_batch_sizes entries must be monotonically increasing; were 4, 4, 8",
        ),
        (
            {"max_batch_size": 8, "allowed_batch_sizes": (0, 8)},
            "allowed_batch_sizes entries must be positive; were 0, 8",
        ),
        ({"max_batch_size": 0}, "max_batch_size must be positive; was 0"),
        ({"max_batch_size": -1}, "max_batch_size must be positive; was -1"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros must be non-negative; was -1"),
        ({"max_enqueued_batches": -1}, "max_enqueued_batches must be non-negative; was -1"),
        (
            {"max_enqueued_batches": 0, "enable_large_batch_splitting": True},
            "max_enqueued_batches must be positive; was 0",
        ),
        ({"max_execution_batch_size": 0}, "max_execution_batch_size must be positive; was 0"),
        (
            {"max_batch_size": 8, "max_execution_batch_size": 9, "enable_large_batch_splitting": True},
            "max_execution_batch_size must not be larger than max_batch_size; was 9, and max_batch_size is 8",
        ),
    ],
)
def test_nonsense_is_refused_when_a_version_is_loaded(given: dict[str, Any], message: str) -> None:
    parameters = BatchingParameters(**given)
    with pytest.raises(InvalidArgumentError) as check:
        parameters.check()
    assert str(check.value) == message
    with pytest.raises(InvalidArgumentError) as load:
        Batcher(BatchScheduler(1, Monitor()), parameters, lambda *_: {})
    assert str(load.value) == message


@pytest.mark.parametrize(
    "given",
    [
        {"max_enqueued_batches": 0},
        {"max_batch_size": 8, "allowed_batch_sizes": (1, 8)},
        {"max_batch_size": 8, "max_execution_batch_size": 9},  # it does not count without splitting
        {"max_batch_size": 8, "max_execution_batch_size": 8, "enable_large_batch_splitting": True},
        {"num_batch_threads": 0},  # of no version's concern
    ],
)
def test_what_the_original_takes_is_taken(given: dict[str, Any]) -> None:
    BatchingParameters(**given).check()


@pytest.mark.parametrize("threads", [0, -3])
def test_the_threads_are_checked_where_they_are_made(threads: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        BatchScheduler(threads, Monitor())
    assert str(caught.value) == f"num_batch_threads must be positive; was {threads}"


def test_sizes_are_rounded_up_to_the_next_that_is_allowed() -> None:
    parameters = BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    assert [parameters.padding(size) for size in range(10)] == [0, 1, 0, 1, 0, 3, 2, 1, 0, 0]
    assert BatchingParameters().padding(7) == 0
