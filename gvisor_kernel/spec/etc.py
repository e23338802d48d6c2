"""The synthetic ``/etc`` of the host image: users, names, and what programs need to be found.

Nothing that says who the host is, whom it knows, or how it is configured: no shadow, no
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
"""Written as they are, in every sandbox."""

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
"""Copied from the host where it has them: small files without secrets. A link stays a link."""

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
"""Seen read-only as they are on the host, where it has them."""

DIRECTORY_PATTERNS = ("java-*-openjdk", "python3*", "ImageMagick-*")
"""Likewise: configuration that packages under /usr link to."""

SINGLE_FILES = ("ssl/openssl.cnf", "pki/tls/openssl.cnf", "matplotlibrc")
"""Copied like COPIED, below a directory of their own."""


def machine_id(container_id: str) -> str:
    """A machine id of the sandbox's own: 32 hexadecimal digits that say nothing of the host."""
    return hashlib.sha256(b"gvisor-kernel\0" + container_id.encode()).hexdigest()[:32]
