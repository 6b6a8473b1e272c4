"""The Prometheus page: read, summed and compared with an earlier reading."""

from __future__ import annotations

import pytest

from servable.benchmarks.metrics_page import Sample, means, parse, total

COUNT = ":tensorflow:serving:request_count"
STAGES = "servable_request_stage_seconds"


def test_lines() -> None:
    page = (
        f"# TYPE {COUNT} counter\n"
        f'{COUNT}{{model_name="mlp",status="OK"}} 12\n'
        f'{COUNT}{{model_name="a\\"b\\\\c",status="OK"}} 1e+06\n'
        "empty{} 3\n"
        "bare 0.5\n"
        f'{STAGES}_bucket{{stage="run",le="+Inf"}} 7\n'
        "\n"
        "no sample at all\n"
        "nonsense x\n"
    )
    assert parse(page) == [
        Sample(COUNT, {"model_name": "mlp", "status": "OK"}, 12.0),
        Sample(COUNT, {"model_name": 'a"b\\c', "status": "OK"}, 1e6),
        Sample("empty", {}, 3.0),
        Sample("bare", {}, 0.5),
        Sample(f"{STAGES}_bucket", {"stage": "run", "le": "+Inf"}, 7.0),
    ]


def test_total_takes_every_series_that_has_the_labels() -> None:
    page = parse(
        f'{COUNT}{{model_name="mlp",status="OK"}} 12\n'
        f'{COUNT}{{model_name="cnn",status="OK"}} 5\n'
        f'{COUNT}{{model_name="mlp",status="NOT_FOUND"}} 1\n'
        f'other{{model_name="mlp",status="OK"}} 100\n'
    )
    assert total(page, COUNT, model_name="mlp", status="OK") == 12
    assert total(page, COUNT, model_name="mlp") == 13
    assert total(page, COUNT) == 18
    assert total(page, COUNT, model_name="celsius") == 0


def _stages(model: str, **stages: tuple[float, int]) -> list[Sample]:
    text = ""
    for stage, (seconds, count) in stages.items():
        labels = f'{{model="{model}",version="1",runtime="onnx",stage="{stage}"}}'
        text += f"{STAGES}_sum{labels} {seconds}\n{STAGES}_count{labels} {count}\n"
    return parse(text)


def test_means_are_of_what_came_between() -> None:
    before = _stages("mlp", run=(1.0, 10), decode=(5.0, 10))
    after = _stages("mlp", run=(1.5, 20), decode=(5.0, 10), encode=(0.25, 10))
    found = means(before, after, STAGES, by="stage", model="mlp")
    assert found == pytest.approx({"run": 0.05, "encode": 0.025})
    assert means(before, after, STAGES, by="stage", model="cnn") == {}
    assert means([], [], STAGES, by="stage") == {}
