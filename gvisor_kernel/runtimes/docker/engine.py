"""The client of a Docker engine: each call has a timeout, and each failure is an error with a hint.

The only module that imports the package ``docker``. Callers check what an engine answers. The
environment names the engine (``DOCKER_HOST`` and so on), as for the command ``docker``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gvisor_kernel.errors import LaunchError, RuntimeMissing, SandboxError
from gvisor_kernel.runtimes.docker.connection import (
    ANSWER_SECONDS,
    explain_no_answer,
    open_tunnel,
    shorten,
)
from gvisor_kernel.runtimes.docker.container import LABEL, MIN_API, RUNTIME, is_gvisor
from gvisor_kernel.runtimes.hints import find_hint

if TYPE_CHECKING:
    import docker

log = logging.getLogger(__name__)

WORK_SECONDS = 60.0
"""Timeout between two bytes of what takes time: making, starting and removing containers,
copying."""
DEFAULT = "unix:///var/run/docker.sock"

INSTALL_PACKAGE = "install it with gvisor-kernel: pip install 'gvisor-kernel[docker]'."
INSTALL_RUNTIME = (
    "install gVisor on the engine's machine, and register it as a runtime: `sudo runsc install --"
    " --network=none && sudo systemctl reload docker`; see docs/docker.md."
)


class EngineNotFound(SandboxError):
    """The engine does not have what was asked for."""


class Attached:
    """The socket of a container's stdio, as the SDK returns it, without a timeout."""

    def __init__(self, found: Any) -> None:
        self._found = found
        self._sock = getattr(found, "_sock", found)
        self._sock.settimeout(None)
        self.recv = self._sock.recv
        self.sendall = self._sock.sendall
        self.shutdown = self._sock.shutdown

    def close(self) -> None:
        """Close the socket, and the HTTP response that would keep it open."""
        self._sock.close()
        response = getattr(self._found, "_response", None)
        if response is not None:
            response.close()


class Engine:
    """One Docker engine. Its methods block.

    :raises EngineNotAnswering: when the engine does not answer
    :raises EngineNotFound: when the container, image or volume does not exist
    :raises SandboxError: when the engine refuses
    """

    def __init__(self, address: str, client: docker.APIClient, patient: docker.APIClient) -> None:
        """``client`` has the timeout of questions, ``patient`` that of work."""
        self.address = address
        self._client = client
        self._patient = patient

    def close(self) -> None:
        """Close the connections to the engine."""
        self._client.close()
        self._patient.close()

    # -- questions -------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Return how the engine is set up, as ``docker info`` does."""
        with self._translated("be asked how it is set up"):
            return dict(self._client.info())

    def inspect_image(self, name: str) -> dict[str, Any]:
        """Return the engine's description of an image.

        :raises EngineNotFound: when it has no such image
        """
        with self._translated(f"be asked for the image {name}"):
            return dict(self._client.inspect_image(name))

    def inspect(self, container: str) -> dict[str, Any]:
        """Return the engine's description of a container, by its id or name.

        :raises EngineNotFound: when it has no such container
        """
        with self._translated(f"be asked for the container {container}"):
            return dict(self._client.inspect_container(container))

    def find_containers(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the containers with these labels, also those that do not run."""
        with self._translated("list its containers"):
            return list(self._client.containers(all=True, filters=_filters(labels)))

    def find_volumes(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the volumes with these labels."""
        with self._translated("list its volumes"):
            return list(self._client.volumes(filters=_filters(labels)).get("Volumes") or ())

    # -- work ------------------------------------------------------------------------------------

    def make_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume."""
        with self._translated("make a volume"):
            self._patient.create_volume(name, labels=dict(labels))

    def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Make the container that ``body`` describes (see ``container.py``); return its id."""
        with self._translated("make a container"):
            url = self._patient._url("/containers/create")
            answer = self._patient._post_json(url, data=dict(body), params={"name": name})
            return str(self._patient._result(answer, json=True)["Id"])

    def start(self, container: str) -> None:
        """Start a container that was created.

        :raises EngineNotFound: when it has no such container
        """
        with self._translated("start a container"):
            self._patient.start(container)

    def kill(self, container: str) -> None:
        """Kill a container. Does nothing if it does not run or does not exist."""
        with contextlib.suppress(EngineNotFound), self._translated("end a container"):
            try:
                self._client.kill(container)
            except _errors().APIError as error:
                if error.status_code != 409:  # the container does not run
                    raise

    def wait(self, container: str, seconds: float) -> None:
        """Wait until a container has ended.

        :raises EngineNotAnswering: when that takes longer than ``seconds``
        """
        with self._translated("wait for a container"):
            self._patient.wait(container, timeout=seconds)

    def remove(self, container: str) -> None:
        """Kill and remove a container. Does nothing if it does not exist."""
        with contextlib.suppress(EngineNotFound), self._translated("remove a container"):
            self._patient.remove_container(container, v=True, force=True)

    def remove_volume(self, name: str) -> None:
        """Remove a volume. Does nothing if it does not exist."""
        with contextlib.suppress(EngineNotFound), self._translated("remove a volume"):
            self._patient.remove_volume(name, force=True)

    def attach(self, container: str, *, stdin: bool) -> Attached:
        """Connect to a container's stdin, or to its stdout and stderr in one stream of frames."""
        params = {"stdin": int(stdin), "stdout": int(not stdin), "stderr": int(not stdin)}
        with self._translated("connect to a container"):
            found = self._client.attach_socket(container, {**params, "stream": 1})
            return Attached(found)

    def put(self, container: str, folder: str, archive: Iterable[bytes]) -> None:
        """Unpack a tar archive in the container's folder ``folder``."""
        with self._translated("take files"):
            self._patient.put_archive(container, folder, archive)

    def get(self, container: str, path: str) -> Iterator[bytes]:
        """Yield a tar archive of ``path`` in pieces. Errors may also come while it is read."""
        with self._translated("give files"):
            pieces, _ = self._patient.get_archive(container, path)
            yield from pieces

    def stats(self, container: str) -> Iterator[dict[str, Any]]:
        """Yield what a running container uses, about once a second."""
        with self._translated("be asked what a container uses"):
            yield from self._patient.stats(container, decode=True, stream=True)

    def _translated(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Raise errors of the SDK as this package's. ``what``: the task, for the message."""
        return _translate(self.address, what)


def _filters(labels: Mapping[str, str]) -> dict[str, list[str]]:
    return {"label": [f"{LABEL}{name}={value}" for name, value in labels.items()]}


def _errors() -> Any:
    import docker.errors

    return docker.errors


@contextlib.contextmanager
def _translate(address: str, what: str) -> Iterator[None]:
    import requests.exceptions
    import urllib3.exceptions

    errors = _errors()
    try:
        _check_listening(address)
        yield
    except errors.NotFound as error:
        raise EngineNotFound(f"The Docker engine does not have it: {_explain(error)}.") from error
    except errors.APIError as error:
        words = _explain(error)
        raise LaunchError(
            f"The Docker engine at {address} could not {what}: {words}.", find_hint(words)
        ) from error
    except (
        errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        *(ValueError, TypeError, LookupError, AttributeError),  # a malformed answer
    ) as error:
        raise explain_no_answer(address, error) from error


def _check_listening(address: str) -> None:
    """Connect to the engine's socket on this machine, before anything is asked.

    The SDK would leave a socket open that it could not connect.

    :raises OSError: when nothing listens there
    :raises EngineNotAnswering: when there is no way to its machine
    """
    if address.startswith("ssh:"):
        open_tunnel(address)  # the last one may have ended meanwhile
    if not address.startswith("unix:"):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        probe.connect("/" + address.removeprefix("unix:").lstrip("/"))


def _explain(error: Any) -> str:
    return shorten(str(error.explanation or error))


def find_address() -> str:
    """Return the address of the engine that the environment names."""
    return os.environ.get("DOCKER_HOST") or DEFAULT


def connect(address: str | None = None) -> Engine:
    """Connect to the engine at ``address``, or to the one that the environment names.

    Blocks for at most three seconds.

    :raises RuntimeMissing: when the package ``docker`` is not installed, or the engine is too old
    :raises EngineNotAnswering: when the engine does not answer
    """
    address = address or find_address()
    try:
        import docker
        import docker.utils
    except ImportError as error:
        raise RuntimeMissing("The Python package docker is not installed.", INSTALL_PACKAGE) from (
            error
        )
    with _translate(address, "be asked for its version"):
        local = f"unix://{open_tunnel(address)}" if address.startswith("ssh:") else address
        settings = docker.utils.kwargs_from_env(environment={**os.environ, "DOCKER_HOST": local})
        client = docker.APIClient(**settings, version="auto", timeout=ANSWER_SECONDS)
        patient = docker.APIClient(**settings, version=client._version, timeout=WORK_SECONDS)
    if _number(client._version) < _number(MIN_API):
        client.close()
        patient.close()
        raise RuntimeMissing(
            f"The Docker engine at {address} is too old: its API version is {client._version}, and"
            f" {MIN_API} is needed.",
            "install Docker 26 or newer.",
        )
    return Engine(address, client, patient)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_engine(engine: Engine) -> None:
    """Check that the engine can make sandboxes and limit what they use.

    :raises RuntimeMissing: when it cannot
    :raises EngineNotAnswering: when it does not answer
    """
    info = engine.info()
    runtimes = info.get("Runtimes")
    if not isinstance(runtimes, dict) or not isinstance(runtimes.get(RUNTIME), dict):
        raise RuntimeMissing(
            f"The Docker engine at {engine.address} has no runtime {RUNTIME} (gVisor). It has"
            f" {', '.join(sorted(map(str, runtimes or ['none'])))[:200]}.",
            INSTALL_RUNTIME,
        )
    if not is_gvisor(runtimes[RUNTIME]):
        raise RuntimeMissing(
            f"The runtime {RUNTIME} of the Docker engine at {engine.address} is another program:"
            f" {shorten(str(runtimes[RUNTIME].get('path')))}.",
            INSTALL_RUNTIME,
        )
    lacking = [name for name in ("MemoryLimit", "PidsLimit") if not info.get(name)]
    if lacking:
        raise RuntimeMissing(
            f"The Docker engine at {engine.address} cannot limit what a container uses:"
            f" {' and '.join(lacking)} not supported.",
            "enable cgroups with memory and pids: `docker info` shows what is missing.",
        )
    if info.get("OSType", "linux") != "linux":
        raise RuntimeMissing(
            f"The Docker engine at {engine.address} runs containers of {info['OSType']}.",
            "switch it to Linux containers.",
        )


def find_image(engine: Engine, name: str) -> dict[str, Any]:
    """Return what the engine knows of an image.

    :raises LaunchError: when it has no such image
    """
    try:
        return engine.inspect_image(name)
    except EngineNotFound as error:
        raise LaunchError(
            f"The Docker engine at {engine.address} has no image {name}.",
            f"pull it (`docker pull {name}`), or build or load an image with python3 and"
            " ipykernel, and name that in the setting image.",
        ) from error
