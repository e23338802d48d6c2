"""The setting ``kubernetes``: in which cluster pods are made, and what is added to them.

A kernelspec and Jupyter's configuration may both set it: what the configuration names holds. Which
cluster, namespace and RuntimeClass (PLACE) is the configuration's alone if it sets any of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.config.validators import accept_strings, is_plain_path
from gvisor_kernel.errors import SettingError

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
LABEL_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
QUANTITY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?(m|[KMGT]i?)?")
CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(/[A-Za-z0-9_.-]+)*")
OWN_PREFIXES = ("gvisor-kernel.org/", "app.kubernetes.io/managed-by", "kubernetes.io/")
"""Labels that this package sets, or that belong to Kubernetes."""
TOLERATION = {"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}
MAX_ENTRIES = 64
PLACE = frozenset({"config", "context", "namespace", "runtime_class", "handlers"})
PULL = ("", "Always", "IfNotPresent", "Never")


@dataclass(frozen=True)
class Kubernetes:
    """``config``, ``context``: a kubeconfig and a context in it; empty for the usual ones, or for
    the cluster that the server runs in. ``runtime_class``: the RuntimeClass of gVisor; its handler
    must be one of ``handlers``. ``cpu``: processors of a pod. ``log_limit``: the pod's limit of
    ephemeral storage, where the node keeps what a kernel prints. ``uploads_claim`` and
    ``outputs_claim``: an existing PersistentVolumeClaim, and a folder in it, in place of copies.
    ``labels``, ``node_selector``: pairs. ``tolerations``: JSON, as in a pod."""

    config: str = ""
    context: str = ""
    namespace: str = ""
    runtime_class: str = "gvisor"
    handlers: tuple[str, ...] = ("runsc", "gvisor")
    cpu: str = "1"
    log_limit: str = "4Gi"
    pull: str = ""
    pull_secrets: tuple[str, ...] = ()
    priority_class: str = ""
    uploads_claim: str = ""
    outputs_claim: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[str, ...] = ()


NO_CHOICE = Kubernetes()


def accept_kubernetes(name: str, configured: object, asked: object = None) -> Kubernetes:
    """Return the settings in two mappings, of Jupyter's configuration and of a kernelspec.

    :raises SettingError: when one is not accepted
    """
    values = _merge(name, configured, asked)
    for key in ("config",):
        value = values[key]
        if not isinstance(value, str) or (
            value and not (is_plain_path(value) and value.startswith("/"))
        ):
            raise SettingError(f"{name}.{key}", value, "an absolute path")
    context = values["context"]
    if not isinstance(context, str) or len(context) > 300 or not (context + "x").isprintable():
        raise SettingError(f"{name}.context", context, "the name of a context of the kubeconfig")
    for key in ("namespace", "runtime_class", "priority_class"):
        _check(f"{name}.{key}", values[key], NAME, "a name of Kubernetes, such as jupyter")
    if not values["runtime_class"]:
        raise SettingError(f"{name}.runtime_class", "", "the name of gVisor's RuntimeClass")
    for key in ("uploads_claim", "outputs_claim"):
        rule = "a PersistentVolumeClaim, or one and a folder in it, such as data/notebooks"
        _check(f"{name}.{key}", values[key], CLAIM, rule)
        if ".." in str(values[key]).split("/"):
            raise SettingError(f"{name}.{key}", values[key], rule)
    for key in ("cpu", "log_limit"):
        rule = "a quantity, such as 500m, 2 or 4Gi; 0 would be no limit"
        _check(f"{name}.{key}", str(values[key]), QUANTITY, rule)
        if not set(str(values[key])) & set("123456789"):
            raise SettingError(f"{name}.{key}", values[key], rule)
        values[key] = str(values[key])
    if values["pull"] not in PULL:
        raise SettingError(f"{name}.pull", values["pull"], '"Always", "IfNotPresent" or "Never"')
    for key in ("handlers", "pull_secrets"):
        names = accept_strings(f"{name}.{key}", values[key], "a list of names")
        for entry in names:
            _check(f"{name}.{key}", entry, NAME, "a list of names")
        values[key] = tuple(names)
    for key in ("labels", "node_selector"):
        values[key] = _accept_labels(f"{name}.{key}", values[key], ours=key == "labels")
    values["tolerations"] = _accept_tolerations(f"{name}.tolerations", values["tolerations"])
    return Kubernetes(**values)


def _merge(name: str, configured: object, asked: object) -> dict[str, Any]:
    values: dict[str, Any] = dict(vars(NO_CHOICE))
    decided = isinstance(configured, Mapping) and PLACE & set(configured)
    for mapping in (asked, configured):
        if mapping is None:
            continue
        if isinstance(mapping, Kubernetes):
            values.update(vars(mapping))
            continue
        if not isinstance(mapping, Mapping) or not set(mapping) <= set(values):
            rule = f"a mapping with any of: {', '.join(sorted(values))}"
            raise SettingError(name, mapping, rule)
        ignored = PLACE if decided and mapping is not configured else frozenset()
        values.update({key: value for key, value in mapping.items() if key not in ignored})
    return values


def _check(name: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str) or (value and not pattern.fullmatch(value)):
        raise SettingError(name, value, rule)


def _accept_labels(name: str, value: object, *, ours: bool) -> tuple[tuple[str, str], ...]:
    rule = 'a mapping of labels, such as {"team": "data"}'
    if isinstance(value, tuple | list):
        with suppress(TypeError, ValueError):
            value = dict(value)
    if not isinstance(value, Mapping) or len(value) > MAX_ENTRIES:
        raise SettingError(name, value, rule)
    for key, text in value.items():
        if not (isinstance(key, str) and LABEL_KEY.fullmatch(key)):
            raise SettingError(name, key, rule)
        if not (isinstance(text, str) and LABEL_VALUE.fullmatch(text)):
            raise SettingError(f"{name}[{key}]", text, rule)
        if ours and key.startswith(OWN_PREFIXES):
            raise SettingError(name, key, "labels that gvisor-kernel does not set itself")
    return tuple(sorted(value.items()))


def _accept_tolerations(name: str, value: object) -> tuple[str, ...]:
    rule = 'a list of tolerations, such as [{"key": "kernels", "operator": "Exists"}]'
    if not isinstance(value, list | tuple) or len(value) > MAX_ENTRIES:
        raise SettingError(name, value, rule)
    accepted = []
    for entry in value:
        try:
            item = json.loads(entry) if isinstance(entry, str) else entry
        except ValueError:
            item = None
        if not isinstance(item, Mapping) or not all(
            isinstance(part, TOLERATION.get(key, type(None))) for key, part in item.items()
        ):
            raise SettingError(name, entry, rule)
        accepted.append(json.dumps(dict(item), sort_keys=True))
    return tuple(accepted)
