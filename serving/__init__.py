"""The embedded server: TensorFlow Serving's API over gRPC and REST, without a container."""

import os

# The thread that takes gRPC's events then polls the sockets itself, and no other has to wake it for each
# message: a sixth of the time of a small request. grpcio reads this when it is imported; one that no
# longer knows the name ignores it.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

from .options import ServerOptions
from .server import Server
from .sources import Aspired

__all__ = ["Aspired", "Server", "ServerOptions"]
