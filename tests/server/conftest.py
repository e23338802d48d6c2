"""A client of the server that a module has."""

from __future__ import annotations

import pytest

from ..jupyter.server import JupyterServer
from .clients import Client


@pytest.fixture
def client(server: JupyterServer) -> Client:
    return Client(server)
