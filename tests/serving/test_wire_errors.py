"""Every error class over both live transports: the code, the status, and the class it comes back as."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest

from servable import errors
from servable.clients import connect
from servable.serving.access_log import AccessLog
from servable.serving.data_plane import DataPlane, ModelSpec
from servable.serving.grpc_front import GrpcFront, GrpcOptions
from servable.serving.manager import Manager
from servable.serving.monitoring import Monitor
from servable.serving.rest_front import RestFront, RestOptions
from servable.serving.servable import Servable


def all_errors() -> list[type[errors.ServableError]]:
    found: list[type[errors.ServableError]] = []
    waiting = [errors.ServableError]
    while waiting:
        current = waiting.pop()
        found.append(current)
        waiting += current.__subclasses__()
    return sorted(found, key=lambda cls: cls.__name__)


def make(cls: type[errors.ServableError]) -> errors.ServableError:
    if cls is errors.MissingExtraError:
        return errors.MissingExtraError("the model", "some-package", "serve")
    return cls("the cause é")


class Failing(DataPlane):
    """Raises the error that the model's name asks for."""

    def resolve(self, spec: ModelSpec) -> Servable:
        if spec.name == "Exception":
            raise ValueError("a bug")
        raise make(getattr(errors, spec.name))


def grpc_front(plane: DataPlane) -> GrpcFront:
    return GrpcFront(plane, GrpcOptions(port=0), Monitor(), AccessLog(enabled=False))


def rest_front(plane: DataPlane) -> RestFront:
    return RestFront(plane, "127.0.0.1", 0, RestOptions(), Monitor(), AccessLog(enabled=False))


@pytest.fixture(scope="module")
def fronts() -> Iterator[tuple[GrpcFront, RestFront]]:
    plane = Failing(Manager())
    fronts = grpc_front(plane), rest_front(plane)
    for front in fronts:
        front.start()
    yield fronts
    for front in fronts:
        front.stop(1.0)


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_grpc(fronts: tuple[GrpcFront, RestFront], cls: type[errors.ServableError]) -> None:
    with (
        connect(f"grpc://127.0.0.1:{fronts[0].port}/{cls.__name__}") as client,
        pytest.raises(errors.ServableError) as e,
    ):
        client.metadata()
    assert e.value.code == cls.code
    assert issubclass(cls, type(e.value)) or cls is errors.ServableError
    assert str(make(cls)) in str(e.value)
    assert e.value.__cause__.code().value[0] == cls.code.value  # type: ignore[union-attr]  # an RpcError


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_rest(fronts: tuple[GrpcFront, RestFront], cls: type[errors.ServableError]) -> None:
    url = f"http://127.0.0.1:{fronts[1].port}/v1/models/{cls.__name__}/metadata"
    response = httpx.get(url, trust_env=False)
    assert response.status_code == make(cls).http_status
    assert response.json() == {"error": str(make(cls))}
    with connect(url.removesuffix("/metadata")) as client, pytest.raises(errors.ServableError) as e:
        client.metadata()
    assert e.value.http_status == make(cls).http_status


def test_a_bug_is_internal_and_named_on_both(fronts: tuple[GrpcFront, RestFront]) -> None:
    for target in (f"grpc://127.0.0.1:{fronts[0].port}/Exception", f"http://127.0.0.1:{fronts[1].port}/Exception"):
        with connect(target) as client, pytest.raises(errors.InternalError, match="ValueError: a bug"):
            client.metadata()


def test_the_grpc_status_table_is_complete() -> None:
    assert {code.value for code in errors.Code} == {code.value[0] for code in grpc.StatusCode}


def test_a_slow_model_does_not_hold_up_the_status_page() -> None:
    with ThreadPoolExecutor(1) as pool:
        import threading

        gate = threading.Event()

        class Slow(DataPlane):
            def resolve(self, spec: ModelSpec) -> Servable:
                assert gate.wait(30)
                raise errors.NotFoundError("at last")

        front = rest_front(Slow(Manager()))
        front.start()
        try:
            base = f"http://127.0.0.1:{front.port}/v1/models/m"
            slow = pool.submit(httpx.post, f"{base}:predict", content=b"{}", trust_env=False, timeout=30)
            assert httpx.get(base, trust_env=False, timeout=10).status_code == 404
            assert not slow.done()
            gate.set()
            assert slow.result().json() == {"error": "at last"}
        finally:
            gate.set()
            front.stop(1.0)
