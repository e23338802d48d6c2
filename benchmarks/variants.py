"""The compared variants: names of kernels, their kernelspecs, and who runs them."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRELOADED = ("numpy", "pandas", "matplotlib.pyplot")
BASELINE = "local"

OURS_ARGV = (
    *("-P", "-m", "gvisor_kernel", "launch"),
    *("--kernel", "gvisor-python", "-f", "{connection_file}"),
)
"""As in kernelspecs/gvisor-python, after the interpreter whose ipykernel the provisioner runs."""


@dataclass(frozen=True)
class Variant:
    """One kind of kernel.

    ``kind``: "local", "ours", "dockernel" or "gateway" (gateway-provisioners). ``other_user``: an
    ordinary user's process runs it when the benchmark runs as root. ``settings``: of
    GVisorProvisioner. ``oci_runtime``: the OCI runtime of a peer's container. ``resend``: seconds
    after which an unanswered kernel_info_request is sent again; a container engine's port
    forwarder accepts and loses messages before the kernel listens. ``prefix``: words before the
    argv of a local kernel.
    """

    name: str
    kind: str
    other_user: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    oci_runtime: str = ""
    transport: str = "ipc"
    resend: float = 1.0
    prefix: tuple[str, ...] = ()

    @property
    def worker(self) -> str:
        """Name of the worker process; variants with the same name share it."""
        return f"{self.kind}-user" if self.other_user else self.kind

    @property
    def snapshot(self) -> bool:
        return self.settings.get("snapshot") == "auto"

    @property
    def starts_only(self) -> bool:
        """Whether it differs from another variant only in its start."""
        return bool(self.settings.get("spare"))

    @property
    def mode(self) -> str:
        """The mode of our kernels, "direct" or "relay"."""
        return "relay" if self.settings.get("kernel_mode") == "relay" else "direct"

    @property
    def code(self) -> str:
        """A name without blanks, for kernelspecs and files."""
        words = "".join(c if c.isalnum() else "-" for c in self.name)
        return "-".join(word for word in words.split("-") if word)


def ours() -> list[Variant]:
    starts: dict[str, dict[str, Any]] = {
        "cold": {"snapshot": "off"},
        "snapshot": {"snapshot": "auto", "spare": False, "preload": "off"},
        "learned": {"snapshot": "auto", "spare": False, "preload": "auto"},
        "snapshot+preload": {"snapshot": "auto", "spare": False, "preload": list(PRELOADED)},
        "spare": {"snapshot": "auto", "spare": True, "preload": "off"},
        "spare+learned": {"snapshot": "auto", "spare": True, "preload": "auto"},
        "spare+preload": {"snapshot": "auto", "spare": True, "preload": list(PRELOADED)},
    }
    modes = {"relay": "relay", "direct": "auto"}
    return [
        Variant(
            f"{start}, {mode}, {'user' if other else 'root'}",
            "ours",
            other,
            {"kernel_mode": value, **settings},
        )
        for other in (False, True)
        for start, settings in starts.items()
        for mode, value in modes.items()
        if mode == "direct" or not settings.get("spare")
    ]


def peers() -> list[Variant]:
    names = {"dockernel": "dockernel", "gateway": "gateway-provisioners"}
    return [
        Variant(
            f"{name}, {runtime}",
            kind,
            oci_runtime=runtime,
            transport="tcp",
            resend=0.2,
        )
        for kind, name in names.items()
        for runtime in ("runc", "runsc")
    ]


VARIANTS = (Variant(BASELINE, "local"), *ours(), *peers())


def choose(patterns: Sequence[str]) -> list[Variant]:
    """Return the variants whose names match one of ``patterns``, and always the baseline.

    :raises ValueError: when a pattern matches no variant
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(variant.name, pattern) for variant in VARIANTS):
            raise ValueError(f"no variant is called {pattern!r}")
    return [
        variant
        for variant in VARIANTS
        if not patterns
        or variant.name == BASELINE
        or any(fnmatch.fnmatchcase(variant.name, pattern) for pattern in patterns)
    ]


def kernelspec(variant: Variant, image: str = "") -> dict[str, Any]:
    """Return the content of the variant's kernel.json. ``image``: the Docker image of peers."""
    spec: dict[str, Any] = {"display_name": variant.name, "language": "python"}
    wrapper = [sys.executable, "-P", str(Path(__file__).parent / "peers" / "with_runtime.py")]
    match variant.kind:
        case "local":
            return {
                **spec,
                "argv": [
                    *variant.prefix,
                    sys.executable,
                    *("-Xfrozen_modules=off", "-m", "ipykernel_launcher"),
                    *("-f", "{connection_file}"),
                ],
            }
        case "ours":
            stanza = {"provisioner_name": "gvisor-provisioner", "config": variant.settings}
            return {
                **spec,
                "argv": [sys.executable, *OURS_ARGV],
                "metadata": {"kernel_provisioner": stanza},
            }
        case "dockernel":
            started = ["dockernel", "start", image, "{connection_file}"]
            # As `dockernel install` writes it, except for the wrapper.
            return {
                **spec,
                "argv": [*wrapper, variant.oci_runtime, *started],
                "interrupt_mode": "message",
            }
        case "gateway":
            given = ("kernel-id", "port-range", "response-address", "public-key")
            arguments = [word for name in given for word in (f"--{name}", f"{{{name}}}")]
            stanza = {"provisioner_name": "docker-provisioner", "config": {"image_name": image}}
            return {
                **spec,
                "argv": [
                    *wrapper,
                    variant.oci_runtime,
                    "gateway_provisioners/kernel-launchers/docker/scripts/launch_docker.py",
                    *(word.replace("-", "_") if word[0] == "{" else word for word in arguments),
                ],
                "metadata": {"kernel_provisioner": stanza},
            }
    raise AssertionError(variant.kind)
