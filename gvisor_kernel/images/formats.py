"""What image archives say of themselves: OCI layouts, and what ``docker save`` writes.

Documents of strangers: each is bounded, its digest is checked, and what is taken of it has the
type that it should have.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from gvisor_kernel.archive.refusal import Refused
from gvisor_kernel.archive.tar import Stream, show
from gvisor_kernel.images.blobs import MAX_DOCUMENT, Blobs, Checked, Documents, unpacked
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_LAYERS = 500
"""Docker has at most 127."""
MAX_INDEX_DEPTH = 3
MAX_MANIFESTS = 200
MAX_ENVIRONMENT = 64 * 1024

ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
"""What images call what ``uname -m`` says."""

_REFERENCES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
Reading: TypeAlias = Callable[[], "Manifest"]
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Layer:
    """``name`` in the archive; ``digest`` of the file, where it is known, and of what it unpacks
    to: both with their algorithm before them."""

    name: str
    digest: str | None
    unpacked_digest: str


@dataclass(frozen=True)
class Manifest:
    """An image of an archive."""

    reference: str
    config_digest: str
    environment: Mapping[str, str]
    layers: tuple[Layer, ...]


@contextmanager
def open_layer(blobs: Blobs, layer: Layer) -> Iterator[Stream]:
    """A layer's tar archive, which is to be read to its end within. Raises Refused, there
    too, where it is not the one that the image names."""
    with blobs.open(layer.name) as stream:
        outer = Checked(stream, (layer.digest or "sha256:").partition(":")[0])
        with unpacked(outer) as unpacking:
            inner = Checked(unpacking, layer.unpacked_digest.partition(":")[0])
            yield inner
            inner.drain()
        outer.drain()
    found = ((layer.digest, outer.digest), (layer.unpacked_digest, inner.digest))
    for stated, digest in found:
        if stated is not None and stated.partition(":")[2] != digest:
            raise Refused(f"the layer {show(layer.name)} is not the one that it should be")


def read_manifest(blobs: Blobs, reference: str | None) -> Manifest | None:
    """The image called ``reference``, or the only one. None where this is no archive of images.

    Raises Refused.
    """
    documents = Documents(blobs)
    names = documents.names()
    if "index.json" in names and "oci-layout" in names:
        found = list(_read_layout(documents))
    elif "manifest.json" in names:
        found = list(_read_docker(documents))
    else:
        return None
    fitting = [name for name in found if reference is None or name[0] == reference]
    if not fitting:
        called = ", ".join(show(name) for name, _ in found[:10]) or "none for this machine"
        raise Refused(
            f"it has no image {reference or 'for ' + _architecture()}",
            f"the images in it: {called}.",
        )
    if len(fitting) > 1:
        called = ", ".join(show(name) for name, _ in fitting[:10])
        raise Refused(f"it has several images: {called}", "say which with --reference.")
    return fitting[0][1]()


# OCI layouts.


def _read_layout(documents: Documents) -> Iterator[tuple[str, Reading]]:
    """Reference of each image that runs here, and what reads it."""
    layout = _parse(documents.read("oci-layout"), "oci-layout")
    if not str(layout.get("imageLayoutVersion", "")).startswith("1."):
        raise Refused("it is an OCI layout of an unknown version")
    index = _parse(documents.read("index.json"), "index.json")
    for count, (reference, descriptor) in enumerate(_manifests(documents, index, "", 0)):
        if count >= MAX_MANIFESTS:
            raise Refused(f"it has more than {MAX_MANIFESTS} images")
        yield reference, partial(_read_oci, documents, reference, descriptor)


def _manifests(
    documents: Documents, index: Mapping[str, Any], reference: str, depth: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if depth > MAX_INDEX_DEPTH:
        raise Refused("its lists of images are nested too deep")
    for descriptor in _list(index, "manifests")[:MAX_MANIFESTS]:
        if not isinstance(descriptor, dict):
            raise Refused("its list of images is damaged")
        annotations = descriptor.get("annotations")
        annotations = annotations if isinstance(annotations, dict) else {}
        named = next((str(annotations[n]) for n in _REFERENCES if n in annotations), reference)
        kind = str(descriptor.get("mediaType", ""))
        if "index" in kind or "manifest.list" in kind:
            below = _parse(_read_blob(documents, descriptor), "a list of images")
            yield from _manifests(documents, below, named, depth + 1)
        elif _runs_here(descriptor.get("platform")):
            yield named, descriptor


def _read_oci(documents: Documents, reference: str, descriptor: Mapping[str, Any]) -> Manifest:
    manifest = _parse(_read_blob(documents, descriptor), "a manifest")
    config = manifest.get("config")
    if not isinstance(config, dict):
        raise Refused("its manifest names no configuration")
    layers = []
    for layer in _list(manifest, "layers"):
        if not isinstance(layer, dict) or "tar" not in str(layer.get("mediaType", "")):
            raise Refused("a layer of it is no tar archive")
        if "encrypted" in str(layer["mediaType"]):
            raise Refused("a layer of it is encrypted")
        digest = _digest(layer)
        layers.append((_blob_name(digest), digest))
    return _finish(reference, _digest(config), _read_blob(documents, config), layers)


def _digest(descriptor: Mapping[str, Any]) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise Refused(f"a digest in it is none: {show(str(digest))}")
    return digest


def _blob_name(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


def _read_blob(documents: Documents, descriptor: Mapping[str, Any]) -> bytes:
    digest = _digest(descriptor)
    content = documents.read(_blob_name(digest))
    algorithm, _, digits = digest.partition(":")
    if hashlib.new(algorithm, content).hexdigest() != digits:
        raise Refused(f"{digest[:19]}… in it is not what its digest says")
    return content


# Docker's archives.


def _read_docker(documents: Documents) -> Iterator[tuple[str, Reading]]:
    images = _parse_any(documents.read("manifest.json"), "manifest.json")
    if not isinstance(images, list) or len(images) > MAX_MANIFESTS:
        raise Refused("its manifest.json is damaged")
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get("Config"), str):
            raise Refused("its manifest.json is damaged")
        tags = [str(tag) for tag in image.get("RepoTags") or []]
        for tag in tags[:MAX_MANIFESTS] if len(images) > 1 or len(tags) == 1 else [""]:
            yield tag, partial(_read_docker_image, documents, tag, image)


def _read_docker_image(documents: Documents, reference: str, image: Mapping[str, Any]) -> Manifest:
    content = documents.read(image["Config"])
    digest = hashlib.sha256(content).hexdigest()
    named = re.search(r"([0-9a-f]{64})(?:\.json)?$", image["Config"])
    if named is not None and named[1] != digest:
        raise Refused("its configuration is not what its digest says")
    layers: list[tuple[str, str | None]] = []
    for name in _list(image, "Layers"):
        if not isinstance(name, str):
            raise Refused("its manifest.json is damaged")
        blob = re.fullmatch(r"blobs/sha256/([0-9a-f]{64})", name)
        layers.append((name, f"sha256:{blob[1]}" if blob else None))
    return _finish(reference, f"sha256:{digest}", content, layers)


# Both.


def _finish(
    reference: str, digest: str, content: bytes, layers: Sequence[tuple[str, str | None]]
) -> Manifest:
    config = _parse(content, "its configuration")
    platform = {"os": config.get("os", "linux"), "architecture": config.get("architecture")}
    if not _runs_here(platform):
        raise Refused(
            f"it is for {show(str(platform['os']))} on {show(str(platform['architecture']))}",
            f"get the one for linux on {_architecture()}.",
        )
    rootfs = config.get("rootfs")
    unpacked_digests = _list(rootfs if isinstance(rootfs, dict) else {}, "diff_ids")
    if len(unpacked_digests) != len(layers) or len(layers) > MAX_LAYERS:
        raise Refused(f"it has {len(layers)} layers, and its configuration {len(unpacked_digests)}")
    found = tuple(
        Layer(name, packed, _digest({"digest": inner}))
        for (name, packed), inner in zip(layers, unpacked_digests, strict=True)
    )
    settings = config.get("config")
    environment = read_environment(settings if isinstance(settings, dict) else {})
    return Manifest(reference, digest, environment, found)


def read_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """The variables that an image sets. Raises Refused."""
    found: dict[str, str] = {}
    for item in _list(settings, "Env"):
        name, equals, value = str(item).partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or not _is_value(value):
            raise Refused(f"it sets a variable {show(str(item))}, which is none")
        found[name] = value
    if sum(len(name) + len(value.encode()) + 2 for name, value in found.items()) > MAX_ENVIRONMENT:
        raise Refused(f"its environment has more than {MAX_ENVIRONMENT} bytes")
    return found


def _is_value(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _runs_here(platform: Any) -> bool:
    if not isinstance(platform, dict):
        return True
    system, machine = platform.get("os", "linux"), platform.get("architecture")
    return bool(system == "linux" and machine in (None, _architecture()))


def _architecture() -> str:
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused(f"{name} in it is no list")
    return value


def _parse(content: bytes, what: str) -> dict[str, Any]:
    found = _parse_any(content, what)
    if not isinstance(found, dict):
        raise Refused(f"{what} is damaged")
    return found


def _parse_any(content: bytes, what: str) -> Any:
    try:
        return parse_json(content, MAX_DOCUMENT)
    except JsonError as error:
        raise Refused(f"{what} is damaged: {error}") from None
