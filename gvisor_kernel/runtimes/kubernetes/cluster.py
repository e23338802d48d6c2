"""A Kubernetes cluster, through the official package ``kubernetes``, which knows how to reach it.

That package reads kubeconfigs, runs the programs that they name for credentials, and renews tokens.
Objects of the API are plain JSON here: so what is sent is what ``pod.py`` made, and what comes is
looked at field by field.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from gvisor_kernel.errors import RuntimeMissing, SandboxError
from gvisor_kernel.runtimes.kubernetes import attach
from gvisor_kernel.runtimes.kubernetes.attach import Stream, StreamCut
from gvisor_kernel.runtimes.kubernetes.settings import Kubernetes
from gvisor_kernel.strict_json import JsonError, parse_json

SECONDS = 10.0
"""Seconds that one request may take."""
MAX_ANSWER = 8 * 1024 * 1024
CHUNK = 64 * 1024
MAX_PODS = 2000
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ClusterNotAnswering(SandboxError):
    """The API server cannot be reached now."""


class NotFound(SandboxError):
    """There is no such object."""


class RequestRejected(SandboxError):
    """The API server does not do what was asked: rights, a quota, an admission."""


@dataclass(frozen=True)
class Address:
    """A cluster and its namespace, for another process of the same user."""

    config: str
    context: str
    namespace: str

    def write(self) -> str:
        return json.dumps([self.config, self.context, self.namespace])

    @classmethod
    def read(cls, text: str | None) -> Address:
        """Return the address that ``write`` wrote; the usual one if there is none."""
        try:
            config, context, namespace = json.loads(text or "")
        except (TypeError, ValueError):
            return cls("", "", "")
        return cls(str(config), str(context), str(namespace))


def find_address(settings: Kubernetes) -> Address:
    """Return the address that the settings name. Several kubeconfigs count as one text. A relative
    one becomes absolute: the processes that remove what is left work in another folder."""
    config = settings.config or os.environ.get("KUBECONFIG", "")
    parts = [
        part if part.startswith("~") else str(Path(part).absolute())  # the package knows "~"
        for part in config.split(os.pathsep)
        if part
    ]
    return Address(os.pathsep.join(parts), settings.context, settings.namespace)


class Cluster:
    """A cluster and one namespace in it. Any thread; requests wait for each other only in the pool
    of connections."""

    def __init__(self, address: Address) -> None:
        """:raises RuntimeMissing: when the package is missing, or nothing names a cluster"""
        self._client, found = _load(address)
        self.namespace = address.namespace or found or "default"
        self.address = Address(address.config, address.context, self.namespace)
        self.host = str(self._client.configuration.host).rstrip("/")

    # -- pods ------------------------------------------------------------------------------------

    def create_pod(self, pod: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask("POST", self._pods(), pod)

    def read_pod(self, name: str) -> dict[str, Any]:
        return self._ask("GET", self._pods(name))

    def delete_pod(self, name: str, grace: int = 0) -> None:
        """Delete a pod. One that is not there is as good as deleted."""
        options = {"gracePeriodSeconds": grace, "propagationPolicy": "Background"}
        try:
            self._ask("DELETE", self._pods(name), options)
        except NotFound:
            return

    def find_pods(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        query = urlencode({"labelSelector": selector, "limit": MAX_PODS})
        items = self._ask("GET", f"{self._pods()}?{query}").get("items")
        return [item for item in items or () if isinstance(item, dict)]

    # -- what doctor and the verification look at ------------------------------------------------

    def read_namespace(self) -> dict[str, Any]:
        return self._ask("GET", f"/api/v1/namespaces/{quote(self.namespace)}")

    def read_runtime_class(self, name: str) -> dict[str, Any]:
        return self._ask("GET", f"/apis/node.k8s.io/v1/runtimeclasses/{quote(name)}")

    def read_version(self) -> str:
        return str(self._ask("GET", "/version").get("gitVersion", ""))

    def may(self, verb: str, resource: str, group: str = "") -> bool:
        """Return whether this user may do ``verb`` to ``resource``, such as "pods/attach"."""
        kind, _, part = resource.partition("/")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "namespace": self.namespace,
                    "verb": verb,
                    "group": group,
                    "resource": kind,
                    "subresource": part,
                }
            },
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        status = self._ask("POST", path, review).get("status")
        return isinstance(status, dict) and status.get("allowed") is True

    # -- streams ---------------------------------------------------------------------------------

    def attach(self, name: str, container: str, seconds: float = SECONDS) -> Stream:
        """Connect to a pod's stdio.

        :raises StreamCut: when the API server does not let us
        """
        query = [("container", container)]
        query += [(part, "true") for part in ("stdin", "stdout", "stderr")]
        return self._connect(f"{self._pods(name)}/attach?{urlencode(query)}", seconds)

    def execute(self, name: str, container: str, argv: list[str]) -> Stream:
        """Run a program in a pod, and connect to its stdout and stderr.

        :raises StreamCut: when the API server does not let us
        """
        query = [("container", container), ("stdout", "true"), ("stderr", "true")]
        query += [("command", word) for word in argv]
        return self._connect(f"{self._pods(name)}/exec?{urlencode(query)}", SECONDS)

    def _connect(self, path: str, seconds: float) -> Stream:
        configuration = self._client.configuration
        tls: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED}
        if not configuration.verify_ssl:
            tls = {"cert_reqs": ssl.CERT_NONE, "check_hostname": False}
        for name, value in (
            ("ca_certs", configuration.ssl_ca_cert),
            ("certfile", configuration.cert_file),
            ("keyfile", configuration.key_file),
            ("server_hostname", configuration.tls_server_name),
        ):
            if value:
                tls[name] = value
        url = self.host.replace("http", "ws", 1) + path
        return attach.connect(url, self._headers(), tls, seconds)

    # -- requests --------------------------------------------------------------------------------

    def _pods(self, name: str = "") -> str:
        path = f"/api/v1/namespaces/{quote(self.namespace)}/pods"
        return f"{path}/{quote(name)}" if name else path

    def _headers(self) -> dict[str, str]:
        """Return the credentials, which the package renews when they have expired."""
        found = self._client.configuration.auth_settings()
        return {
            str(entry["key"]): str(entry["value"])
            for entry in found.values()
            if entry.get("in") == "header" and entry.get("value")
        }

    def _ask(
        self, method: str, path: str, content: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the answer to a request.

        :raises NotFound, RequestRejected, ClusterNotAnswering: when there is none
        """
        answer = self._send(method, path, content)
        try:
            parsed = parse_json(answer, MAX_ANSWER)
        except JsonError as error:
            raise ClusterNotAnswering(f"{self.host} has sent no JSON: {error}.") from error
        return parsed if isinstance(parsed, dict) else {}

    def _send(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> bytes:
        import urllib3

        headers = {**self._headers(), "Accept": "application/json"}
        body = None
        if content is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(content).encode()
        try:
            response = self._client.rest_client.pool_manager.request(
                method,
                self.host + path,
                body=body,
                headers=headers,
                timeout=SECONDS,
                retries=False,
                preload_content=False,
            )
            try:
                answer = _read_answer(response)
            except BaseException:
                response.close()
                raise
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterNotAnswering(
                f"The API server {self.host} does not answer: {str(error)[:300]}.",
                "check the network, and `kubectl version`.",
            ) from error
        if response.status >= 300:  # it redirects nobody
            raise _read_failure(response.status, answer, f"{method} {path.partition('?')[0]}")
        return answer

    def close(self) -> None:
        """Close idle connections. Never raises."""
        self._client.rest_client.pool_manager.clear()


def _read_answer(response: Any) -> bytes:
    """Return the body of an answer, at most MAX_ANSWER bytes and one more.

    :raises TimeoutError: when it is not whole after SECONDS
    """
    deadline = time.monotonic() + SECONDS
    read = getattr(response, "read1", response.read)  # not before release 2.2 of urllib3
    answer = bytearray()
    while more := read(min(CHUNK, MAX_ANSWER + 1 - len(answer))):
        answer += more
        if len(answer) > MAX_ANSWER:
            raise OSError(f"its answer has more than {MAX_ANSWER} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"its answer was not whole after {SECONDS:g} s")
    return bytes(answer)


def _read_failure(status: int, answer: bytes, what: str) -> SandboxError:
    reason = ""
    try:
        parsed = parse_json(answer, MAX_ANSWER)
        words = str(parsed["message"])
        reason = str(parsed.get("reason"))
    except (JsonError, KeyError, TypeError):
        words = answer.decode(errors="replace")
    words = "".join(c for c in words if c.isprintable())[:1000]
    fact = f"The API server answered {what} with {status}: {words.rstrip('.')}."
    if status == 404 and reason == "NotFound":
        return NotFound(fact)
    if status in (404, 429, 500, 502, 503, 504) or status < 400:  # what stands before the server
        return ClusterNotAnswering(fact, "try again later.")
    hint = ""
    if status == 401:
        hint = "renew the credentials; `kubectl auth whoami` shows whether they are accepted."
    if status == 403 and " cannot " in words:
        hint = "see which rights are missing: gvisor-kernel doctor --runtime kubernetes"
    elif status in (403, 422):  # an admission: a quota, a class that is not there, a webhook
        hint = "change the setting that this names, or ask who runs the cluster."
    return RequestRejected(fact, hint)


def _load(address: Address) -> tuple[Any, str]:
    """Return the package's client, and the namespace that the configuration names.

    :raises RuntimeMissing: when there is no package, or no configuration
    """
    try:
        from kubernetes import client as package
        from kubernetes import config
        from kubernetes.config.config_exception import ConfigException
        from yaml import YAMLError
    except ImportError as error:
        raise RuntimeMissing(
            "The Python package kubernetes is not installed.",
            "run `pip install 'gvisor-kernel[kubernetes]'`.",
        ) from error
    configuration = package.Configuration()
    hint = "set KUBECONFIG, or config and context in the setting kubernetes."
    try:
        if (
            not address.config
            and OWN_NAMESPACE.exists()
            and "KUBERNETES_SERVICE_HOST" in os.environ
        ):
            config.load_incluster_config(client_configuration=configuration)
            namespace = OWN_NAMESPACE.read_text().strip()
        else:
            file = address.config or None
            context = address.context or None
            config.load_kube_config(file, context, client_configuration=configuration)
            namespace = _find_namespace(config, file, context)
    except (
        *(ConfigException, OSError, YAMLError),
        *(ValueError, TypeError, AttributeError, KeyError),  # a file of another form
    ) as error:
        words = " ".join(str(error)[:300].split()).rstrip(".")
        chosen = f"by {address.config}" if address.config else "here"
        raise RuntimeMissing(f"No cluster is configured {chosen}: {words}.", hint) from error
    configuration.retries = False
    return package.ApiClient(configuration), namespace


def _find_namespace(config: Any, file: str | None, context: str | None) -> str:
    contexts, active = config.list_kube_config_contexts(file)
    chosen = next((entry for entry in contexts if entry["name"] == context), active)
    return str((chosen.get("context") or {}).get("namespace") or "")


def is_cut_by(error: StreamCut, *statuses: int) -> bool:
    """Return whether the API server has answered a handshake with one of ``statuses``."""
    return getattr(error.__cause__, "status_code", 0) in statuses
