"""An ipykernel whose methods are not as expected gets the relay, and the log says why."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from jupyter_client import KernelManager

from ..jupyter.helpers import FIND_WAY, SECONDS, execute, kernel_log, running_kernel
from ..snapshots.conftest import make_python, packages_of
from ..sweeps import needs_all
from ..world import WAYS

CHANGES = {
    "a missing method": (
        ("_bind_socket", "_bind_one_socket"),
        "IPKernelApp has no _bind_socket",
    ),
    "a method with another parameter": (
        ("def init_heartbeat(self)", "def init_heartbeat(self, context=None)"),
        "IPKernelApp.init_heartbeat takes ['self', 'context'], not ['self']",
    ),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    make_python(folder)
    return folder


@pytest.mark.once
@pytest.mark.parametrize(
    "change", [pytest.param("a missing method", marks=needs_all), "a method with another parameter"]
)
def test_unknown_ipykernel_gets_the_relay(change: str, environment: Path, tmp_path: Path) -> None:
    (old, new), reason = CHANGES[change]
    known = find_spec("ipykernel")
    assert known is not None
    assert known.origin is not None
    copy = packages_of(environment) / "ipykernel"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(Path(known.origin).parent, copy)
    source = (copy / "kernelapp.py").read_text()
    assert old in source
    (copy / "kernelapp.py").write_text(source.replace(old, new))

    def choose(manager: KernelManager) -> None:
        assert manager.kernel_spec is not None
        manager.kernel_spec.argv[0] = str(environment / "bin" / "python")

    with running_kernel(settings=WAYS["direct"], prepare=choose, start={"cwd": str(tmp_path)}) as (
        manager,
        client,
    ):
        assert execute(client, FIND_WAY).text == "True\n", "it listens on ZMQ"
        assert execute(client, "import ipykernel; ipykernel.__file__").result == repr(
            str(copy / "__init__.py")
        )
        assert f"Using the relay for this kernel: {reason}" in kernel_log(manager)
        manager.restart_kernel()
        client.wait_for_ready(timeout=SECONDS)
        assert execute(client, "40 + 2").result == "42"
