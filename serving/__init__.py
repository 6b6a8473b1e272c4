"""The embedded server: TensorFlow Serving's API over gRPC and REST, from one model store."""

from .server import Server, ServerOptions

__all__ = ["Server", "ServerOptions"]
