"""Responses that are not UTF-8 have the original's bytes; the layouts are as the real server wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from servable.wire.json_codec import format_predict
from servable.wire.json_layout import as_original


@pytest.mark.parametrize(
    ("compact", "single_line", "expected"),
    [
        (b'{"predictions":["\xff\xef"]}', True, b'{\n    "predictions": ["\xff\xef"\n    ]\n}'),
        (b'{"predictions":[[["\xff"],["b"]]]}', True, b'{\n    "predictions": [[["\xff"], ["b"]]\n    ]\n}'),
        (b'{"predictions":[[],["\xff"]]}', True, b'{\n    "predictions": [[], ["\xff"]\n    ]\n}'),
        (
            b'{"predictions":[{"b64":"YQ=="},{"\xff":1}]}',
            True,
            b'{\n    "predictions": [{\n            "b64": "YQ=="\n        }, {\n'
            b'            "\xff": 1\n        }\n    ]\n}',
        ),
        (b'{"outputs":"\xff"}', False, b'{\n    "outputs": "\xff"\n}'),
        (b'{"outputs":["\xff",[]]}', False, b'{\n    "outputs": [\n        "\xff",\n        []\n    ]\n}'),
        (
            b'{"predictions":[{"t":"\xff","s":2.0},{"t":"a,]\\"","s":{}}]}',
            False,
            b'{\n    "predictions": [\n        {\n            "t": "\xff",\n            "s": 2.0\n        },\n'
            b'        {\n            "t": "a,]\\"",\n            "s": {}\n        }\n    ]\n}',
        ),
        (b'{"outputs":["\xc3\xbc"]}', False, b'{"outputs":["\xc3\xbc"]}'),
    ],
)
def test_layout(compact: bytes, single_line: bool, expected: bytes) -> None:
    assert as_original(compact, single_line=single_line) == expected


@pytest.mark.parametrize(
    ("outputs", "row", "expected"),
    [
        ({"y": [b"\xff", b"a"]}, True, b'{\n    "predictions": ["\xff", "a"\n    ]\n}'),
        ({"y": [b"\xff"]}, False, b'{\n    "outputs": [\n        "\xff"\n    ]\n}'),
        ({"y_bytes": [b"\xff"]}, True, b'{"predictions":[{"b64":"/w=="}]}'),
        ({"y": [b"ok"]}, True, b'{"predictions":["ok"]}'),
    ],
)
def test_of_predict_responses(outputs: Any, row: bool, expected: bytes) -> None:
    arrays = {name: np.array(values, object) for name, values in outputs.items()}
    assert format_predict(arrays, row=row) == expected
