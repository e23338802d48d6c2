"""An API server and a node of the tests' own. Its pods are real sandboxes of this machine's runsc.

It does what was measured at a real one: the handshake of an attach succeeds before the container
exists and fails later on channel 3; what is printed while nobody is attached is lost; "Success" on
channel 3 means nothing; the phase of a pod follows later; a stream may be cut and attached again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from gvisor_kernel.runtimes.runsc.command_line import find_runsc

NAMESPACE = "kernels"
NODE = "the-node-of-the-tests"
TOKEN = "the-token-of-the-tests"  # noqa: S105 - of a server that only the tests know
PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR = 0, 1, 2, 3
IMAGE = "gvisor-kernel-tests"
PIECE = 32 * 1024
MAX_SEEN = 4096


class FakePod:
    """A pod, and its container once that runs."""

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        self.content = content
        self.container = f"fake-{content['metadata']['uid']}"
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None
        self.stdin = -1
        self.attached: list[web.WebSocketResponse] = []
        self.printed = 0
        """Bytes that the container has printed, whoever was attached."""
        self.lost = 0
        """Of them, those that nobody was attached for; and in how many pieces they came."""
        self.pieces = 0
        self.over = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        return str(self.content["metadata"]["name"])

    def set_state(self, phase: str, state: dict[str, Any], **more: Any) -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "kernel", "state": state}], **more}
        self.content["status"] = status


class FakeCluster:
    """Runs in a thread of its own. ``folder`` is removed by ``close``.

    ``mutate``: what an admission webhook does to each pod. ``denied``: pairs of a verb and a
    resource that the user may not. ``late``: how many attaches fail after their handshake.
    ``busy``: how many reads of a pod are answered with 503.
    ``lag``: seconds until the API knows of the end of a container. ``handler``: the RuntimeClass's.
    ``mute``: streams stay open, and nothing more comes on them. ``network``: how runsc is told to
    connect pods.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.pods: dict[str, FakePod] = {}
        self.mutate: Callable[[dict[str, Any]], None] = lambda pod: None
        self.denied: set[tuple[str, str]] = set()
        self.late = 0
        self.busy = 0
        self.lag = 0.3
        self.handler = "runsc"
        self.network = "none"
        self.mute = False
        self.labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.waiting: dict[str, str] | None = None
        """Why containers do not start, if they do not."""
        self.requests: list[str] = []
        self.attaches = 0
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None
        self.start()
        self.config = folder / "config"
        self.config.write_text(json.dumps(self._make_config()))

    def _make_config(self) -> dict[str, Any]:
        """Return a kubeconfig; JSON is YAML."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [
                {"name": "tests", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
            ],
            "users": [{"name": "tests", "user": {"token": TOKEN}}],
            "contexts": [
                {
                    "name": "tests",
                    "context": {"cluster": "tests", "user": "tests", "namespace": NAMESPACE},
                }
            ],
        }

    # -- for the tests ---------------------------------------------------------------------------

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def start(self) -> None:
        self.call(self._start())

    def stop(self) -> None:
        """Stop the API server, and with it all streams. Pods go on."""
        self.call(self._stop())

    def cut(self) -> None:
        """Cut all streams, without a word, with what is on its way."""
        self.call(self._cut())

    def evict(self, pod: FakePod) -> None:
        reason = {
            "reason": "Evicted",
            "message": "The node was low on resource: ephemeral-storage.",
        }
        terminated = {"terminated": {"exitCode": 137, "reason": "Error"}}
        self.call(self._end(pod, "Failed", terminated, **reason))

    def kill_for_memory(self, pod: FakePod) -> None:
        terminated = {"terminated": {"exitCode": 128, "reason": "OOMKilled"}}
        self.call(self._end(pod, "Failed", terminated))

    def delete(self, pod: FakePod) -> None:
        """Delete a pod as a person does, with a grace period."""
        self.call(self._delete(pod, 1))

    def replace(self, pod: FakePod) -> None:
        """Let another pod have the name of ``pod`` from now on, and cut the streams."""
        pod.content["metadata"]["uid"] = uuid.uuid4().hex
        self.cut()

    def only_pod(self) -> FakePod:
        (pod,) = self.pods.values()
        return pod

    def close(self) -> None:
        for pod in list(self.pods.values()):
            self.call(self._delete(pod, 0))
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the server ------------------------------------------------------------------------------

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._check])
        base = f"/api/v1/namespaces/{NAMESPACE}"
        app.add_routes(
            [
                web.get("/version", self._version),
                web.get(base, self._namespace),
                web.get("/apis/node.k8s.io/v1/runtimeclasses/{name}", self._runtime_class),
                web.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review),
                web.get(f"{base}/pods", self._list),
                web.post(f"{base}/pods", self._create),
                web.get(f"{base}/pods/{{name}}", self._read),
                web.delete(f"{base}/pods/{{name}}", self._remove),
                web.get(f"{base}/pods/{{name}}/attach", self._attach),
                web.get(f"{base}/pods/{{name}}/exec", self._exec),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        server = site._server
        assert server is not None
        self._port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        await self._cut()
        if runner is not None:
            await runner.cleanup()

    async def _cut(self) -> None:
        for pod in self.pods.values():
            for stream in pod.attached:
                transport = stream._req.transport if stream._req is not None else None
                if transport is not None:
                    transport.abort()
            pod.attached.clear()

    @web.middleware
    async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _failure(401, "Unauthorized")
        verb = {"POST": "create", "DELETE": "delete"}.get(request.method, "get")
        parts = request.path.split("/")
        resource = parts[-1] if parts[-1] in ("attach", "exec") else ""
        name = f"pods/{resource}" if resource else "pods" if "pods" in parts else parts[-2]
        for needed in ("get", "create") if resource else (verb,):
            if (needed, name) in self.denied:
                return _failure(403, f'{name} is forbidden: User "tests" cannot {needed} it')
        response: web.StreamResponse = await handler(request)
        return response

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"gitVersion": "v1.35.0-fake"})

    async def _namespace(self, request: web.Request) -> web.Response:
        return web.json_response({"metadata": {"name": NAMESPACE, "labels": self.labels}})

    async def _runtime_class(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != "gvisor":
            return _failure(404, f'runtimeclasses "{request.match_info["name"]}" not found')
        return web.json_response({"metadata": {"name": "gvisor"}, "handler": self.handler})

    async def _review(self, request: web.Request) -> web.Response:
        wanted = (await request.json())["spec"]["resourceAttributes"]
        part = f"/{wanted['subresource']}" if wanted.get("subresource") else ""
        allowed = (wanted["verb"], wanted["resource"] + part) not in self.denied
        return web.json_response({"status": {"allowed": allowed}}, status=201)

    async def _list(self, request: web.Request) -> web.Response:
        selector = request.query.get("labelSelector", "")
        wanted = dict(entry.split("=") for entry in selector.split(",") if entry)
        found = [
            pod.content
            for pod in self.pods.values()
            if wanted.items() <= pod.content["metadata"].get("labels", {}).items()
        ]
        return web.json_response({"items": found})

    async def _create(self, request: web.Request) -> web.Response:
        content = await request.json()
        if content["spec"].get("runtimeClassName") != "gvisor":
            name = content["spec"].get("runtimeClassName")
            return _failure(
                403, f'pods is forbidden: pod rejected: RuntimeClass "{name}" not found'
            )
        self.mutate(content)
        content["spec"]["nodeName"] = NODE
        content["metadata"].update(uid=uuid.uuid4().hex, namespace=NAMESPACE)
        pod = FakePod(content, self.folder / content["metadata"]["uid"])
        pod.set_state("Pending", {"waiting": {"reason": "ContainerCreating"}})
        self.pods[pod.name] = pod
        self._spawn(pod, self._run(pod))
        return web.json_response(content, status=201)

    async def _read(self, request: web.Request) -> web.Response:
        if self.busy:
            self.busy -= 1
            return _failure(503, "the server is currently unable to handle the request")
        pod = self.pods.get(request.match_info["name"])
        return _missing(request) if pod is None else web.json_response(pod.content)

    async def _remove(self, request: web.Request) -> web.Response:
        pod = self.pods.get(request.match_info["name"])
        if pod is None:
            return _missing(request)
        options = await request.json() if request.can_read_body else {}
        await self._delete(pod, options.get("gracePeriodSeconds", 30))
        return web.json_response(pod.content)

    # -- streams ---------------------------------------------------------------------------------

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        pod = self.pods.get(request.match_info["name"])
        if pod is None:
            return _missing(request)
        stream = web.WebSocketResponse(protocols=[PROTOCOL], max_msg_size=0)
        await stream.prepare(request)
        self.attaches += 1
        if self.late or pod.process is None or pod.over.is_set():
            self.late = max(0, self.late - 1)
            await _say(stream, _status(f'container "kernel" in pod "{pod.name}" is not running'))
            return stream
        pod.attached.append(stream)
        ended = asyncio.ensure_future(pod.over.wait())
        reading = asyncio.ensure_future(self._read_stdin(pod, stream))
        try:
            await asyncio.wait({ended, reading}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await _say(stream, {"metadata": {}, "status": "Success"})
        finally:
            for task in (ended, reading):
                task.cancel()
            if stream in pod.attached:
                pod.attached.remove(stream)
        return stream

    @staticmethod
    async def _read_stdin(pod: FakePod, stream: web.WebSocketResponse) -> None:
        async for message in stream:
            if message.type != WSMsgType.BINARY or message.data[:1] != bytes((STDIN,)):
                continue
            await asyncio.get_running_loop().run_in_executor(None, write_all, pod, message.data[1:])

    async def _pass_output(self, pod: FakePod, source: asyncio.StreamReader, channel: int) -> None:
        while data := await source.read(PIECE):
            pod.printed += len(data)
            streams = [] if self.mute else list(pod.attached)
            if not streams:
                pod.lost += len(data)
                pod.pieces += 1
            for stream in streams:
                with suppress(ConnectionError, RuntimeError):
                    await stream.send_bytes(bytes((channel,)) + data)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        pod = self.pods.get(request.match_info["name"])
        if pod is None:
            return _missing(request)
        stream = web.WebSocketResponse(protocols=[PROTOCOL])
        await stream.prepare(request)
        if pod.process is None or pod.over.is_set():
            await _say(stream, _status("container not found"))
            return stream
        argv = request.query.getall("command")
        command = self._runsc("exec", "-user", "1000:1000", pod.container, *argv)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

        async def copy(source: asyncio.StreamReader | None, channel: int) -> None:
            assert source is not None
            while data := await source.read(PIECE):
                await stream.send_bytes(bytes((channel,)) + data)

        try:
            await asyncio.gather(copy(process.stdout, STDOUT), copy(process.stderr, STDERR))
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if code:
            status = _status(f"command terminated with non-zero exit code: {code}")
        with suppress(ConnectionError, RuntimeError):
            await _say(stream, status)
        return stream

    # -- the node --------------------------------------------------------------------------------

    def _spawn(self, pod: FakePod, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        pod.tasks.add(task)
        task.add_done_callback(pod.tasks.discard)

    def _runsc(self, *words: str) -> list[str]:
        options = (f"--network={self.network}", "--ignore-cgroups", "--overlay2=root:memory")
        return [find_runsc().path, f"--root={self.folder}/runsc", *options, *words]

    async def _run(self, pod: FakePod) -> None:
        if self.waiting is not None:
            pod.set_state("Pending", {"waiting": self.waiting})
            return
        claims = [v["persistentVolumeClaim"]["claimName"] for v in find_claims(pod)]
        if len(claims) > len(set(claims)):  # kubelet takes one of them for both, and waits
            return
        pod.folder.mkdir()
        (pod.folder / "config.json").write_text(json.dumps(make_bundle(pod, self.network)))
        theirs, pod.stdin = os.pipe2(os.O_CLOEXEC)  # asyncio would make a socket
        pod.process = process = await asyncio.create_subprocess_exec(
            *self._runsc("run", "-bundle", str(pod.folder), pod.container),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=PIECE,
        )
        os.close(theirs)
        pod.set_state("Running", {"running": {}})
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(
            self._pass_output(pod, process.stdout, STDOUT),
            self._pass_output(pod, process.stderr, STDERR),
        )
        code = await process.wait()
        pod.over.set()
        os.close(pod.stdin)
        await self._delete_container(pod)
        await asyncio.sleep(self.lag)
        if "terminated" not in pod.content["status"]["containerStatuses"][0]["state"]:
            phase = "Failed" if code else "Succeeded"
            reason = "Error" if code else "Completed"
            pod.set_state(phase, {"terminated": {"exitCode": code, "reason": reason}})

    async def _end(self, pod: FakePod, phase: str, state: dict[str, Any], **more: Any) -> None:
        await self._kill(pod)
        pod.set_state(phase, state, **more)

    async def _kill(self, pod: FakePod) -> None:
        if pod.process is None or pod.over.is_set():
            return
        command = self._runsc("kill", pod.container, "KILL")
        killing = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if await killing.wait():
            with suppress(ProcessLookupError):
                pod.process.send_signal(signal.SIGKILL)
        await pod.over.wait()

    async def _delete_container(self, pod: FakePod) -> None:
        deleting = await asyncio.create_subprocess_exec(
            *self._runsc("delete", "-force", pod.container),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await deleting.wait()

    async def _delete(self, pod: FakePod, grace: int) -> None:
        pod.content["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        if grace:
            await asyncio.sleep(self.lag)
        await self._kill(pod)
        if pod.tasks:
            await asyncio.wait(pod.tasks, timeout=20)
        self.pods.pop(pod.name, None)
        shutil.rmtree(pod.folder, ignore_errors=True)


def write_all(pod: FakePod, data: bytes) -> None:
    """Write to a container's stdin, as fast as that takes it. In a thread."""
    view = memoryview(data)
    with suppress(OSError):
        while view and not pod.over.is_set():
            view = view[os.write(pod.stdin, view) :]


def find_claims(pod: FakePod) -> list[dict[str, Any]]:
    """Return the volumes of a pod that are claims."""
    return [v for v in pod.content["spec"]["volumes"] if "persistentVolumeClaim" in v]


def make_bundle(pod: FakePod, network: str) -> dict[str, Any]:
    """Return what kubelet, containerd and gVisor's shim make of a pod: an OCI specification.

    The root is this machine's, read-only; its Python is the one of this process.
    """
    spec = pod.content["spec"]
    container = spec["containers"][0]
    folders: dict[str, Path] = {}
    for volume in spec["volumes"]:
        folders[volume["name"]] = place = pod.folder / volume["name"]
        place.mkdir()
        place.chmod(0o777)
        for item in volume.get("downwardAPI", {}).get("items", ()):
            key = item["fieldRef"]["fieldPath"].split("'")[1]
            (place / item["path"]).write_text(pod.content["metadata"]["annotations"][key])
    last_words = pod.folder / "termination-log"
    last_words.touch()
    last_words.chmod(0o666)
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        {
            "destination": container.get("terminationMessagePath", "/dev/termination-log"),
            "type": "bind",
            "source": str(last_words),
            "options": ["bind", "rw"],
        },
    ]
    if sys.base_prefix.startswith("/root/"):  # only root may enter that, and no pod runs as root
        mounts.append({"destination": "/root", "type": "tmpfs", "source": "tmpfs"})
        python = {"destination": sys.base_prefix, "type": "bind", "source": sys.base_prefix}
        mounts.append({**python, "options": ["bind", "ro"]})
    # Its own place may be below /var/tmp, which a kernel finds empty.
    python = {"destination": "/venv", "type": "bind", "source": sys.prefix}
    mounts.append({**python, "options": ["bind", "ro"]})
    for mount in container["volumeMounts"]:
        source = folders[mount["name"]] / mount.get("subPath", "")
        source.parent.mkdir(parents=True, exist_ok=True)
        if not source.exists():
            source.mkdir(mode=0o755)  # a folder of a claim, for root
        access = "ro" if mount.get("readOnly") else "rw"
        mounts.append(
            {
                "destination": mount["mountPath"],
                "type": "bind",
                "source": str(source),
                "options": ["bind", access],
            }
        )
    environment = {
        "PATH": "/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "IMAGE_SAYS": "hello",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        **{entry["name"]: entry["value"] for entry in container.get("env", ())},
    }
    user = spec["securityContext"]["runAsUser"]
    namespaces = ["pid", "ipc", "uts", "mount"] + (["network"] if network == "none" else [])
    return {
        "ociVersion": "1.0.0",
        "hostname": spec.get("hostname", pod.name),
        "process": {
            "user": {"uid": user, "gid": user},
            "args": container["command"],
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": "/", "readonly": True},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "resources": {"memory": {"limit": int(container["resources"]["limits"]["memory"])}},
        },
    }


async def _say(stream: web.WebSocketResponse, status: dict[str, Any]) -> None:
    await stream.send_bytes(bytes((ERROR,)) + json.dumps(status).encode())
    await stream.close()


def _status(message: str) -> dict[str, Any]:
    return {"metadata": {}, "status": "Failure", "message": message, "code": 500}


def _failure(code: int, message: str) -> web.Response:
    reason = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 503: "ServiceUnavailable"}[
        code
    ]
    return web.json_response({**_status(message), "reason": reason, "code": code}, status=code)


def _missing(request: web.Request) -> web.Response:
    return _failure(404, f'pods "{request.match_info["name"]}" not found')


def is_root() -> bool:
    return os.geteuid() == 0
