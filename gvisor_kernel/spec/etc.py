"""The synthetic ``/etc`` of the image ``host``: users, names, and configuration that programs need.

It contains nothing that identifies the host, its users or its configuration: no shadow, no
resolv.conf, no hosts, no keys, no proxies.
"""

from __future__ import annotations

import hashlib

HOSTNAME = "gvisor"
USER = "user"
UID = 1000

FILES = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        f"{USER}:x:{UID}:{UID}:{USER}:/home/{USER}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": f"root:x:0:\ntty:x:5:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
    "hostname": f"{HOSTNAME}\n",
    "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost ip6-localhost ip6-loopback\n",
    "nsswitch.conf": (
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\n"
        "protocols: files\n"
    ),
    "host.conf": "multi on\n",
    "shells": "/bin/sh\n/bin/bash\n",
    "fstab": "",
}
"""Files with the same content in every sandbox."""

COPIED = (
    "ld.so.cache",
    "ld.so.conf",
    "bash.bashrc",
    "debian_version",
    "inputrc",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "os-release",
    "profile",
    "protocols",
    "services",
    "timezone",
    "redhat-release",
)
"""Files that are copied from the host if it has them: small, without secrets. A symbolic link stays
a link."""

DIRECTORIES = (
    "alternatives",
    "crypto-policies",
    "fonts",
    "ld.so.conf.d",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "R",
    "ssl/certs",
    "terminfo",
)
"""Directories of the host that are mounted read-only if it has them."""

DIRECTORY_PATTERNS = ("java-*-openjdk", "python3*", "ImageMagick-*")
"""More such directories: configuration that packages in /usr link to."""

SINGLE_FILES = ("ssl/openssl.cnf", "pki/tls/openssl.cnf", "matplotlibrc")
"""Files that are copied like COPIED but may be in a directory."""


REPLACED = ("passwd", "group", "hostname", "hosts", "resolv.conf", "machine-id")
"""Files that are replaced in an image of an engine. Its own hosts and resolv.conf would describe
its network; all other files are those of the image."""


def replaced_files(container_id: str) -> dict[str, str]:
    """Return the content of the files in REPLACED, by name."""
    own = {"resolv.conf": "", "machine-id": machine_id(container_id) + "\n"}
    return {name: own.get(name, FILES.get(name, "")) for name in REPLACED}


def machine_id(container_id: str) -> str:
    """Return a machine id for the sandbox: 32 hexadecimal digits that do not identify the host."""
    return hashlib.sha256(b"gvisor-kernel\0" + container_id.encode()).hexdigest()[:32]
