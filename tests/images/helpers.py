"""Archives to import. They are made by Python's tarfile, independently of the code under test."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.images.formats import ARCHITECTURES

MACHINE = ARCHITECTURES.get(os.uname().machine, os.uname().machine)
MTIME = 1_600_000_000


@dataclass(frozen=True)
class Item:
    """An entry of a tar archive; ``kind`` as tarfile names it."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    mode: int = 0o644
    pax: Mapping[str, str] | None = None


def folder(name: str, mode: int = 0o755) -> Item:
    return Item(name, kind=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str) -> Item:
    return Item(name, kind=tarfile.SYMTYPE, target=target)


def hard_link(name: str, target: str) -> Item:
    return Item(name, kind=tarfile.LNKTYPE, target=target)


ROOT = (folder("usr"), folder("usr/bin"), Item("usr/bin/tool", b"#!/bin/sh\n", mode=0o755))
"""The smallest root file system that is accepted."""


def make_tar(items: Iterable[Item], form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type, info.linkname, info.mode = item.kind, item.target, item.mode
            info.size, info.mtime = len(item.content), MTIME
            info.pax_headers = dict(item.pax or {})
            archive.addfile(info, io.BytesIO(item.content))
    return packed.getvalue()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Archive:
    """The files of an image archive by name. Tests damage them before they are written."""

    files: dict[str, bytes]

    def write_folder(self, directory: Path) -> Path:
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return directory

    def write_tar(self, path: Path) -> Path:
        path.write_bytes(make_tar(Item(name, content) for name, content in self.files.items()))
        return path


def make_config(layers: Iterable[bytes], **changes: Any) -> bytes:
    config = {
        "architecture": MACHINE,
        "os": "linux",
        "config": {"Env": ["PATH=/opt/bin:/usr/bin", "GREETING=hello"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
    }
    return json.dumps({**config, **changes}).encode()


def make_oci(
    layers: Iterable[bytes], *, reference: str = "", pack: Any = bytes, **changes: Any
) -> Archive:
    """Make an OCI layout. ``pack`` compresses a layer, ``changes`` go into the configuration."""
    layers = list(layers)
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def add(content: bytes, kind: str) -> dict[str, Any]:
        files[f"blobs/sha256/{sha256(content)[7:]}"] = content
        return {"mediaType": kind, "digest": sha256(content), "size": len(content)}

    prefix = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "config": add(make_config(layers, **changes), f"{prefix}.config.v1+json"),
        "layers": [add(pack(layer), f"{prefix}.layer.v1.tar") for layer in layers],
    }
    entry = add(json.dumps(manifest).encode(), f"{prefix}.manifest.v1+json")
    if reference:
        entry["annotations"] = {"org.opencontainers.image.ref.name": reference}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return Archive(files)


def make_docker(layers: Iterable[bytes], tag: str = "world:1") -> Archive:
    """Make an archive like those of ``docker save`` until Docker 24."""
    layers = list(layers)
    config = make_config(layers)
    name = f"{sha256(config)[7:]}.json"
    names = [f"{sha256(layer)[7:]}/layer.tar" for layer in layers]
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": names}]
    files = dict(zip(names, layers, strict=True))
    return Archive({**files, name: config, "manifest.json": json.dumps(manifest).encode()})
