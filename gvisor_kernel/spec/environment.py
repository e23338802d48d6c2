"""The environment variables of a kernel: a fixed table and those that a setting names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from gvisor_kernel.spec.layout import HOME

SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")

INIT_ENVIRONMENT = ("PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8")
"""All variables of PID 1. The kernel can read them, so they contain nothing of the server."""

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
"""Variables that are set to the first of these paths that exists in the image, if any does."""


def image_paths() -> tuple[str, ...]:
    """Return the paths whose existence ``kernel_environment`` needs to know."""
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
    """Return all environment variables of the kernel.

    ``bin_directories``: the first entries of PATH. ``present``: those of ``image_paths()`` that
    exist in the image. ``user_base``: where the interpreter's user packages are, if any.
    ``names``: variables that are copied from ``server``; they do not replace a fixed value.
    ``image``: variables that a root image sets, without its PATH, which is in ``bin_directories``.
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


def image_environment(
    variables: Mapping[str, str], names: Sequence[str], server: Mapping[str, str]
) -> dict[str, str]:
    """Return all environment variables of a kernel in another program's image.

    ``variables``: the image's, with its PATH. ``names``: those that are copied from ``server``.
    """
    path = variables.get("PATH", "").split(":")
    return kernel_environment(
        bin_directories=[part for part in path if part.startswith("/")],
        present=(),
        user_base=None,
        names=names,
        server=server,
        image={name: value for name, value in variables.items() if name != "PATH"},
    )
