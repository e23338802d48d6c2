"""The environment of a kernel: a fixed table, and the names that a setting lists. Nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from gvisor_kernel.spec.layout import HOME

SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")

INIT_ENVIRONMENT = ("PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8")
"""PID 1's whole environment: the kernel can read it, so nothing of anyone's is in it."""

_FIXED = {
    "IS_SANDBOX": "yes",
    "HOME": HOME,
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "DEBIAN_FRONTEND": "noninteractive",
}

IMAGE_VARIABLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("JAVA_HOME", ("/usr/lib/jvm/default-java",)),
    ("NODE_PATH", ("/usr/local/lib/node_modules", "/usr/lib/node_modules", "/usr/share/nodejs")),
    ("PLAYWRIGHT_BROWSERS_PATH", ("/usr/local/share/ms-playwright",)),
    ("SSL_CERT_FILE", ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")),
)
"""Variables that are set where the image has one of these paths: the first that it has."""


def image_paths() -> tuple[str, ...]:
    """The paths whose presence ``kernel_environment`` is told."""
    return tuple(path for _, paths in IMAGE_VARIABLES for path in paths)


def kernel_environment(
    *,
    bin_directories: Sequence[str],
    present: Collection[str],
    user_base: str | None,
    names: Sequence[str],
    server: Mapping[str, str],
    image: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """The kernel's whole environment.

    ``bin_directories`` come first in PATH; ``present`` holds those of ``image_paths()`` that
    exist inside; ``user_base`` is where the interpreter's user packages are, if there are any;
    ``names`` are taken from ``server``, and never replace a value of the fixed table. ``image``:
    what an image of its own sets; but for its PATH, which is in ``bin_directories`` already.
    """
    path = dict.fromkeys((*bin_directories, *SYSTEM_PATH))
    environment = {**image, **{name: server[name] for name in names if name in server}}
    for name, candidates in IMAGE_VARIABLES:
        found = next((path for path in candidates if path in present), None)
        if found is not None:
            environment.setdefault(name, found)
    if user_base is not None:
        environment["PYTHONUSERBASE"] = user_base
    environment.update(_FIXED)
    environment["PATH"] = ":".join(path)
    return environment
