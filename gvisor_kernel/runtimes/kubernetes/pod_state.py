"""Reads a pod's description: why it does not start, and why it has ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FATAL_WAITS = frozenset(
    {
        *("ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError"),
        *("CreateContainerError", "RunContainerError", "ErrImagePull", "ImagePullBackOff"),
        *("CreatePodSandboxError", "CrashLoopBackOff"),
    }
)
"""Reasons of a container that waits for what will not come."""
GONE = "the pod was deleted"
MAX_END = 250
"""Characters."""
NOT_STARTED = "the container could not be started"
_ADVICE = (
    (
        ("ErrImage", "ImagePull", "InvalidImageName"),
        "check the setting image, and in the setting kubernetes pull_secrets for a private registry"
        ' and pull ("Never" for an image that only the nodes have).',
    ),
    ((NOT_STARTED,), "check the setting image: it needs python3 on its PATH."),
    (
        ("Unschedulable",),
        "change what no node has: a kernel asks for memory_limit, and for the cpu, log_limit,"
        " node_selector and claims of the setting kubernetes.",
    ),
)
"""Beginnings of the texts of ``find_obstacle`` and ``describe_wait``, with what to do then."""


@dataclass(frozen=True)
class Ending:
    """The reason why a pod has ended. ``memory``: the limit of memory was it."""

    cause: str
    memory: bool = False


def find_phase(pod: Mapping[str, Any]) -> Literal["waiting", "running", "ended"]:
    """Return where in its life a pod is. One that is being deleted has ended for us."""
    status = _mapping(pod.get("status"))
    if status.get("phase") in ("Succeeded", "Failed"):
        return "ended"
    if _find_terminated(status) is not None:
        return "ended"
    if _mapping(pod.get("metadata")).get("deletionTimestamp"):
        return "ended"
    state = _mapping(_container(status).get("state"))
    return "running" if "running" in state else "waiting"


def is_pod(pod: Mapping[str, Any], uid: object) -> bool:
    """Return whether this is the pod with a uid, and not another one that has its name now."""
    return _mapping(pod.get("metadata")).get("uid") == uid


def explain_end(pod: Mapping[str, Any] | None) -> Ending:
    """Return why a pod has ended. None: there is no such pod any more."""
    if pod is None:
        return Ending(GONE)
    status = _mapping(pod.get("status"))
    reason, message = _text(status, "reason"), _text(status, "message")
    terminated = _find_terminated(status) or {}
    code = terminated.get("exitCode")
    if reason == "Evicted" or _has_condition(status, "DisruptionTarget", "TerminationByKubelet"):
        return Ending(_join("the node has evicted the pod", message))
    if terminated.get("reason") == "OOMKilled" or reason == "OOMKilled":
        return Ending("the pod has used more memory than its limit", memory=True)
    if _mapping(pod.get("metadata")).get("deletionTimestamp"):
        return Ending(_join(GONE, _find_disruption(status)))
    if reason:
        return Ending(_join(f"the pod has failed ({reason})", message))
    if isinstance(code, int):
        words = _text(terminated, "reason")
        if words in ("StartError", "ContainerCannotRun"):  # then the message is the node's
            return Ending(_join(NOT_STARTED, _end_of(terminated, "message")))
        more = f" ({words})" if words not in ("", "Completed", "Error") else ""
        return Ending(f"the pod's first process has ended with status {code}{more}")
    return Ending("the pod has ended")


def find_obstacle(pod: Mapping[str, Any]) -> str:
    """Return why a pod will never run; empty as long as it may."""
    if find_phase(pod) == "ended":
        return explain_end(pod).cause
    waiting = _mapping(
        _mapping(_container(_mapping(pod.get("status"))).get("state")).get("waiting")
    )
    if waiting.get("reason") in FATAL_WAITS:
        return _join(_text(waiting, "reason"), _text(waiting, "message"))
    return ""


def describe_wait(pod: Mapping[str, Any]) -> str:
    """Return what a pod waits for, for a person."""
    status = _mapping(pod.get("status"))
    for condition in status.get("conditions") or ():
        found = _mapping(condition)
        if found.get("type") == "PodScheduled" and found.get("status") == "False":
            return _join(_text(found, "reason"), _text(found, "message"))
    waiting = _mapping(_mapping(_container(status).get("state")).get("waiting"))
    return _join(_text(waiting, "reason"), _text(waiting, "message"))


def find_advice(words: str) -> str:
    """Return what to do about what ``find_obstacle`` or ``describe_wait`` says; empty if that is
    not known."""
    return next((advice for begins, advice in _ADVICE if words.startswith(begins)), "")


def _find_terminated(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = _mapping(_container(status).get("state")).get("terminated")
    return found if isinstance(found, Mapping) else None


def _container(status: Mapping[str, Any]) -> Mapping[str, Any]:
    found = status.get("containerStatuses")
    return _mapping(found[0]) if isinstance(found, list) and found else {}


def _has_condition(status: Mapping[str, Any], kind: str, reason: str) -> bool:
    return any(
        (_mapping(entry).get("type"), _mapping(entry).get("reason")) == (kind, reason)
        for entry in status.get("conditions") or ()
    )


def _find_disruption(status: Mapping[str, Any]) -> str:
    for entry in status.get("conditions") or ():
        found = _mapping(entry)
        if found.get("type") == "DisruptionTarget":
            return _join(_text(found, "reason"), _text(found, "message"))
    return ""


def _text(mapping: Mapping[str, Any], name: str) -> str:
    value = mapping.get(name)
    text = value if isinstance(value, str) else ""
    return "".join(c for c in text if c.isprintable())[:500].rstrip(". ")


def _end_of(mapping: Mapping[str, Any], name: str) -> str:
    """Return the end of a text: a runtime names the cause after the whole command, our program."""
    text = str(mapping.get(name) or "").strip()
    kept = text if len(text) <= MAX_END else f"…{text[-MAX_END:]}"
    return "".join(c for c in kept if c.isprintable()).rstrip(". ")


def _join(fact: str, more: str) -> str:
    return f"{fact}: {more}" if fact and more else fact or more


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
