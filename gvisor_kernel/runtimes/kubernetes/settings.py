"""The runtime's entry and its setting ``kubernetes``: the cluster, and what is added to pods.

Which cluster, namespace and RuntimeClass (PLACE) is Jupyter's configuration's alone if it sets any
of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from gvisor_kernel.config.keys import accept_mapping, key
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import (
    accept_absolute,
    accept_choice,
    accept_strings,
    accept_text,
)
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
CLASS_RULE = "the name of gVisor's RuntimeClass"


def accept_context(name: str, value: object) -> str:
    """Return the name of a context of a kubeconfig, which has no rules; empty for the usual one.

    :raises SettingError: when it is no text, or cannot be printed
    """
    if isinstance(value, str) and len(value) <= 300 and (value + "x").isprintable():
        return value
    raise SettingError(name, value, "the name of a context of the kubeconfig")


def accept_claim(name: str, value: object) -> str:
    """Return a PersistentVolumeClaim, perhaps with a folder in it; empty for none.

    :raises SettingError: when it is something else
    """
    rule = "a PersistentVolumeClaim, or one and a folder in it, such as data/notebooks"
    claim = accept_text(CLAIM, rule)(name, value)
    if ".." in claim.split("/"):
        raise SettingError(name, value, rule)
    return claim


def accept_quantity(name: str, value: object) -> str:
    """Return a quantity as Kubernetes writes it.

    :raises SettingError: when it is something else, or 0
    """
    if QUANTITY.fullmatch(str(value)) and set(str(value)) & set("123456789"):
        return str(value)
    raise SettingError(name, value, "a quantity, such as 500m, 2 or 4Gi; 0 would be no limit")


def accept_names(name: str, value: object) -> tuple[str, ...]:
    """Return names of Kubernetes.

    :raises SettingError: when one is none
    """
    names = accept_strings(name, value, "a list of names")
    for entry in names:
        if not NAME.fullmatch(entry):
            raise SettingError(name, entry, "a list of names")
    return names


def accept_labels(name: str, value: object) -> tuple[tuple[str, str], ...]:
    """Return pairs of labels.

    :raises SettingError: when one is no label of Kubernetes, or they are too many
    """
    rule = 'a mapping of labels, such as {"team": "data"}'
    if isinstance(value, tuple | list):
        with suppress(TypeError, ValueError):
            value = dict(value)
    if not isinstance(value, Mapping) or len(value) > MAX_ENTRIES:
        raise SettingError(name, value, rule)
    for label, text in value.items():
        if not (isinstance(label, str) and LABEL_KEY.fullmatch(label)):
            raise SettingError(name, label, rule)
        if not (isinstance(text, str) and LABEL_VALUE.fullmatch(text)):
            raise SettingError(f"{name}[{label}]", text, rule)
    return tuple(sorted(value.items()))


def accept_own_labels(name: str, value: object) -> tuple[tuple[str, str], ...]:
    """Return pairs of labels of a pod.

    :raises SettingError: when one is none, or is not for others to set
    """
    labels = accept_labels(name, value)
    for label, _ in labels:
        if label.startswith(OWN_PREFIXES):
            raise SettingError(name, label, "labels that gvisor-kernel does not set itself")
    return labels


def accept_tolerations(name: str, value: object) -> tuple[str, ...]:
    """Return tolerations as JSON.

    :raises SettingError: when one is none
    """
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
            isinstance(part, TOLERATION.get(word, type(None))) for word, part in item.items()
        ):
            raise SettingError(name, entry, rule)
        accepted.append(json.dumps(dict(item), sort_keys=True))
    return tuple(accepted)


accept_name = accept_text(NAME, "a name of Kubernetes, such as jupyter")


@dataclass(frozen=True)
class Kubernetes:
    """``config``, ``context``: a kubeconfig and a context in it; empty for the usual ones, or for
    the cluster that the server runs in. ``runtime_class``: the RuntimeClass of gVisor; its handler
    must be one of ``handlers``. ``cpu``: processors of a pod. ``log_limit``: the pod's limit of
    ephemeral storage, where the node keeps what a kernel prints. ``uploads_claim`` and
    ``outputs_claim``: an existing PersistentVolumeClaim, and a folder in it, in place of copies.
    ``labels``, ``node_selector``: pairs. ``tolerations``: JSON, as in a pod."""

    config: str = key("", accept_absolute)
    context: str = key("", accept_context)
    namespace: str = key("", accept_name)
    runtime_class: str = key("gvisor", accept_text(NAME, CLASS_RULE, may_be_empty=False))
    handlers: tuple[str, ...] = key(("runsc", "gvisor"), accept_names)
    cpu: str = key("1", accept_quantity)
    log_limit: str = key("4Gi", accept_quantity)
    pull: str = key("", accept_choice(PULL))
    pull_secrets: tuple[str, ...] = key((), accept_names)
    priority_class: str = key("", accept_name)
    uploads_claim: str = key("", accept_claim)
    outputs_claim: str = key("", accept_claim)
    labels: tuple[tuple[str, str], ...] = key((), accept_own_labels)
    node_selector: tuple[tuple[str, str], ...] = key((), accept_labels)
    tolerations: tuple[str, ...] = key((), accept_tolerations)


NO_CHOICE = Kubernetes()


def accept_kubernetes(name: str, configured: object, asked: object = None) -> Kubernetes:
    """Return the settings in two mappings, of Jupyter's configuration and of a kernelspec.

    :raises SettingError: when one is not accepted
    """
    return accept_mapping(Kubernetes, name, configured, asked, PLACE)


def find_settings(spec: SandboxSpec) -> Kubernetes:
    """Return the value of the setting ``kubernetes``."""
    return spec.own if isinstance(spec.own, Kubernetes) else NO_CHOICE


def without_claims(spec: SandboxSpec) -> SandboxSpec:
    """Return ``spec`` without the folders of this machine in whose place volumes are shown."""
    cluster = find_settings(spec)
    return replace(
        spec,
        uploads=None if cluster.uploads_claim else spec.uploads,
        outputs=None if cluster.outputs_claim else spec.outputs,
    )
