"""Finds differences that a made pod may not have from the one that was asked for. Pure.

An admission webhook may change a pod, and its author does not know this package. What no field here
names, such as the node and tolerations, changes nothing of the sandbox.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_COMPARED = (
    *("runtimeClassName", "restartPolicy", "automountServiceAccountToken", "hostname"),
    *("dnsPolicy", "dnsConfig", "securityContext", "enableServiceLinks"),
)
_EMPTY = (
    *("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "initContainers"),
    *("ephemeralContainers", "hostAliases", "resourceClaims"),
)
_CONTAINER_EMPTY = (
    *("args", "envFrom", "lifecycle", "livenessProbe", "readinessProbe", "ports"),
    *("startupProbe", "volumeDevices", "tty", "stdinOnce", "restartPolicy"),
)
_CONTAINER_COMPARED = (
    *("name", "image", "command", "env", "stdin", "securityContext", "workingDir"),
    "terminationMessagePath",
)
_FLAGS = ("dev.gvisor.", "cdi.k8s.io/")
"""Prefixes of annotations that containerd passes to gVisor, or that name devices and mounts."""


def find_faults(asked: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """Compare the pod that was ``asked`` for with the one that was ``made``; return differences."""
    wanted, got = asked["spec"], _mapping(made.get("spec"))
    faults = [_differs(name, wanted.get(name), got.get(name)) for name in _COMPARED]
    faults += [f"{name} is {_short(got[name])}" for name in _EMPTY if got.get(name)]
    containers = got.get("containers")
    if not isinstance(containers, list) or len(containers) != 1:
        names = [_mapping(c).get("name") for c in containers or ()]
        faults.append(f"its containers are {_short(names)}: a webhook may have added one")
    else:
        container, own = wanted["containers"][0], _mapping(containers[0])
        faults += [
            _differs(name, container.get(name), own.get(name)) for name in _CONTAINER_COMPARED
        ]
        faults += [f"{name} is {_short(own[name])}" for name in _CONTAINER_EMPTY if own.get(name)]
        faults += _compare_mounts(container, own)
        faults += _compare_resources(container, own)
    expected = {_describe_volume(volume) for volume in wanted["volumes"]}
    found = {_describe_volume(_mapping(volume)) for volume in got.get("volumes") or ()}
    if found != expected:
        changed = sorted({name for name, *_ in found ^ expected})
        faults.append(f"it has other volumes: {_short(changed)}")
    metadata = _mapping(made.get("metadata"))
    flags = sorted(
        name for name in map(str, _mapping(metadata.get("annotations"))) if name.startswith(_FLAGS)
    )
    if flags:
        faults.append(f"it has annotations for gVisor or containerd: {_short(flags)}")
    uid = asked["metadata"].get("uid")
    if metadata.get("uid") != uid:
        faults.append(f"it is another pod: {_short(metadata.get('uid'))}")
    labels = _mapping(metadata.get("labels"))
    lost = sorted(k for k, v in asked["metadata"]["labels"].items() if labels.get(k) != v)
    if lost:
        faults.append(f"it has lost the labels {_short(lost)}")
    return [fault for fault in faults if fault]


def _describe_volume(volume: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a volume's name, and what its files are: the kinds of its source, and what is written
    there of the claim, of the memory and of the pod's own fields."""
    kinds = ",".join(sorted(str(key) for key in volume if key != "name"))
    claim = _mapping(volume.get("persistentVolumeClaim"))
    memory = _mapping(volume.get("emptyDir"))
    items = _mapping(volume.get("downwardAPI")).get("items")
    fields = [
        (
            str(_mapping(item).get("path")),
            str(_mapping(_mapping(item).get("fieldRef")).get("fieldPath")),
        )
        for item in (items if isinstance(items, list) else ())
    ]
    return (
        *(str(volume.get("name", "")), kinds, tuple(sorted(fields))),
        *(str(claim.get("claimName", "")), bool(claim.get("readOnly"))),
        *(str(memory.get("medium", "")), read_quantity(str(memory.get("sizeLimit", "")))),
    )


def _compare_mounts(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    def key(mount: Any) -> tuple[str, ...]:
        found = _mapping(mount)
        names = ("mountPath", "name", "subPath", "subPathExpr")
        propagation = found.get("mountPropagation") or "None"
        return (
            *(str(found.get(name, "")) for name in names),
            *(str(bool(found.get("readOnly"))), str(propagation)),
        )

    expected = {key(mount) for mount in wanted["volumeMounts"]}
    found = {key(mount) for mount in got.get("volumeMounts") or ()}
    return [f"it has a mount at {_short(mount[0])}" for mount in sorted(found - expected)] + [
        f"it has no mount at {mount[0]}" for mount in sorted(expected - found)
    ]


def _compare_resources(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Return which limits are higher than what was ``wanted``; 0 is none. A limit of something else
    is a device."""
    resources = _mapping(got.get("resources"))
    limits, expected = _mapping(resources.get("limits")), wanted["resources"]["limits"]
    faults = []
    for name, value in expected.items():
        found = limits.get(name)
        if found is None or not 0 < read_quantity(str(found)) <= read_quantity(value):
            faults.append(f"its limit of {name} is {_short(found)}, not {value}")
    more = sorted(str(name) for name in limits if name not in expected)
    if more or resources.get("claims"):
        faults.append(f"it has other resources: {_short(more or resources['claims'])}")
    return faults


def _differs(name: str, wanted: Any, got: Any) -> str:
    """Return how a field differs; empty if it does not. What a cluster adds to a mapping as a
    default is empty or false. What is missing is not false: without a word privileges may grow."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        more = {k: v for k, v in got.items() if k in wanted or v not in (None, False, [], {})}
        return "" if more == wanted else f"{name} is {_short(got)}"
    return "" if wanted == got else f"{name} is {_short(got)}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    return ascii(value)[:200]


_SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SUFFIXES |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def read_quantity(text: str) -> float:
    """Return a quantity of Kubernetes as a number; infinity if it is none."""
    number = text.rstrip("mkKMGTi")
    try:
        return float(number) * _SUFFIXES[text[len(number) :]]
    except (ValueError, KeyError):
        return math.inf
