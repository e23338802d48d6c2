"""How a client reaches the kernel: ipc and tcp, unencrypted and with CURVE."""

from __future__ import annotations

import contextlib
import json
import stat
from pathlib import Path
from queue import Empty

import pytest
import zmq
from jupyter_client import BlockingKernelClient
from traitlets.config import Config

from ..sweeps import needs_all
from ..world import WAYS
from .helpers import SANDBOXED, execute, running_kernel

SOON = {"GVisorProvisioner": WAYS["restored"]}


def test_default_is_private_ipc_sockets() -> None:
    if not SANDBOXED:
        pytest.skip("the local kernel takes tcp by default")
    with running_kernel() as (manager, client):
        info = manager.get_connection_info()
        assert info["transport"] == "ipc"
        folder = Path(info["ip"]).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert execute(client, "40 + 2").result == "42"
    assert not list(folder.glob("*-[0-9]")) or not folder.exists()


# ipc is what kernels have in all other tests.
@pytest.mark.parametrize("transport", ["tcp", pytest.param("ipc", marks=needs_all)])
def test_transport_of_manager_is_used(transport: str) -> None:
    """It counts if configured; a trait that is set to its default, tcp, cannot be told apart."""
    config = Config({**SOON, "KernelManager": {"transport": transport}})
    with running_kernel(config=config) as (manager, client):
        info = manager.get_connection_info()
        assert info["transport"] == transport
        assert json.loads(Path(manager.connection_file).read_text())["transport"] == transport
        if transport == "tcp":
            assert info["ip"] == "127.0.0.1"
        assert execute(client, "40 + 2").result == "42"
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        assert execute(client, "40 + 3").result == "43"


def test_transport_in_settings_is_used() -> None:
    if not SANDBOXED:
        pytest.skip("the local kernel has no settings")
    with running_kernel(settings={"transport": "tcp"}) as (manager, client):
        assert manager.get_connection_info()["transport"] == "tcp"
        assert execute(client, "40 + 2").result == "42"


@pytest.mark.parametrize("transport", ["tcp", pytest.param("ipc", marks=needs_all)])
def test_client_without_curve_is_ignored(transport: str) -> None:
    """With encryption required, a client with the message key but without CURVE is ignored."""
    encrypted = {"transport": transport, "transport_encryption": "required"}
    config = Config({**SOON, "KernelManager": encrypted})
    with running_kernel(config=config) as (manager, client):
        assert manager.get_connection_info()["transport"] == transport
        assert manager.get_connection_info()["curve_publickey"]
        assert execute(client, "40 + 2").result == "42"

        info = manager.get_connection_info(session=True)
        clear = {k: v for k, v in info.items() if not k.startswith("curve_")}
        stranger = BlockingKernelClient(**clear)
        stranger.start_channels(hb=False)
        try:
            # The refusal of its handshake ends the connection, and then a send has nowhere to go.
            stranger.shell_channel.socket.sndtimeo = 200
            with contextlib.suppress(zmq.Again):
                stranger.execute("intruder = 1")
            with pytest.raises(Empty):
                stranger.get_shell_msg(timeout=0.5)
        finally:
            stranger.stop_channels()
        assert execute(client, "print('intruder' in globals())").text == "False\n"

        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        assert execute(client, "40 + 3").result == "43"
