"""The documents of image archives: OCI layouts, and archives of ``docker save``.

They are untrusted: sizes are bounded, digests and types are checked.

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

from gvisor_kernel.archive.tar import Stream, quote_name
from gvisor_kernel.errors import ArchiveError
from gvisor_kernel.images.blobs import MAX_DOCUMENT, Blobs, Documents, HashedStream, decompressed
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_LAYERS = 500
"""Layers of an image. Docker allows 127."""
MAX_INDEX_DEPTH = 3
MAX_MANIFESTS = 200
MAX_ENVIRONMENT = 64 * 1024
"""Bytes of all environment variables of an image."""

ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
"""The names of images for the machines of ``uname -m``."""

_REFERENCES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
ReadManifest: TypeAlias = Callable[[], "Manifest"]
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Layer:
    """A layer: its file ``name`` in the archive, and the digests of that file (if known) and of the
    uncompressed tar archive. A digest begins with its algorithm."""

    name: str
    digest: str | None
    plain_digest: str


@dataclass(frozen=True)
class Manifest:
    """One image of an archive."""

    reference: str
    config_digest: str
    environment: Mapping[str, str]
    layers: tuple[Layer, ...]


@contextmanager
def open_layer(blobs: Blobs, layer: Layer) -> Iterator[Stream]:
    """Open the uncompressed tar archive of a layer. The caller reads it to its end in the block.

    :raises ArchiveError: also inside the block: when the layer is missing, damaged, or does not
        match its digests
    """
    with blobs.open(layer.name) as stream:
        outer = HashedStream(stream, (layer.digest or "sha256:").partition(":")[0])
        with decompressed(outer) as plain:
            inner = HashedStream(plain, layer.plain_digest.partition(":")[0])
            yield inner
            inner.read_to_end()
        outer.read_to_end()
    found = ((layer.digest, outer.digest), (layer.plain_digest, inner.digest))
    for stated, digest in found:
        if stated is not None and stated.partition(":")[2] != digest:
            raise ArchiveError(f"the layer {quote_name(layer.name)} does not match its digest")


def read_manifest(blobs: Blobs, reference: str | None) -> Manifest | None:
    """Read the image called ``reference``, or the only one. Return None if this is not an image
    archive.

    :raises ArchiveError: when a document is damaged, or there is not exactly one such image
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
        called = ", ".join(quote_name(name) for name, _ in found[:10])
        raise ArchiveError(
            f"the archive has no image {reference or 'for ' + _architecture()}",
            f"choose one of its images with --reference: {called}."
            if found
            else f"get the image for linux on {_architecture()}.",
        )
    if len(fitting) > 1:
        called = ", ".join(quote_name(name) for name, _ in fitting[:10])
        raise ArchiveError(
            f"the archive has several images: {called}", "choose one with --reference."
        )
    return fitting[0][1]()


# OCI layouts.


def _read_layout(documents: Documents) -> Iterator[tuple[str, ReadManifest]]:
    """Yield the reference of each image for this machine, and a function that reads it."""
    layout = _parse(documents.read("oci-layout"), "oci-layout")
    if not str(layout.get("imageLayoutVersion", "")).startswith("1."):
        raise ArchiveError("the OCI layout has an unknown version")
    index = _parse(documents.read("index.json"), "index.json")
    for count, (reference, descriptor) in enumerate(_find_manifests(documents, index, "", 0)):
        if count >= MAX_MANIFESTS:
            raise ArchiveError(f"the archive has more than {MAX_MANIFESTS} images")
        yield reference, partial(_read_oci, documents, reference, descriptor)


def _find_manifests(
    documents: Documents, index: Mapping[str, Any], reference: str, depth: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if depth > MAX_INDEX_DEPTH:
        raise ArchiveError(
            f"the index documents are nested more than {MAX_INDEX_DEPTH} levels deep"
        )
    for descriptor in _get_list(index, "manifests")[:MAX_MANIFESTS]:
        if not isinstance(descriptor, dict):
            raise ArchiveError("an index document is damaged")
        annotations = descriptor.get("annotations")
        annotations = annotations if isinstance(annotations, dict) else {}
        named = next((str(annotations[n]) for n in _REFERENCES if n in annotations), reference)
        kind = str(descriptor.get("mediaType", ""))
        if "index" in kind or "manifest.list" in kind:
            below = _parse(_read_blob(documents, descriptor), "an index document")
            yield from _find_manifests(documents, below, named, depth + 1)
        elif _fits_machine(descriptor.get("platform")):
            yield named, descriptor


def _read_oci(documents: Documents, reference: str, descriptor: Mapping[str, Any]) -> Manifest:
    manifest = _parse(_read_blob(documents, descriptor), "a manifest")
    config = manifest.get("config")
    if not isinstance(config, dict):
        raise ArchiveError("the manifest has no configuration")
    layers = []
    for layer in _get_list(manifest, "layers"):
        if not isinstance(layer, dict) or "tar" not in str(layer.get("mediaType", "")):
            raise ArchiveError("a layer is not a tar archive")
        if "encrypted" in str(layer["mediaType"]):
            raise ArchiveError("a layer is encrypted")
        digest = _get_digest(layer)
        layers.append((_blob_name(digest), digest))
    return _make_manifest(reference, _get_digest(config), _read_blob(documents, config), layers)


def _get_digest(descriptor: Mapping[str, Any]) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ArchiveError(f"{quote_name(str(digest))} is not a valid digest")
    return digest


def _blob_name(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


def _read_blob(documents: Documents, descriptor: Mapping[str, Any]) -> bytes:
    digest = _get_digest(descriptor)
    content = documents.read(_blob_name(digest))
    algorithm, _, digits = digest.partition(":")
    if hashlib.new(algorithm, content).hexdigest() != digits:
        raise ArchiveError(f"the blob {digest[:19]}… does not match its digest")
    return content


# Docker's archives.


def _read_docker(documents: Documents) -> Iterator[tuple[str, ReadManifest]]:
    images = _parse_any(documents.read("manifest.json"), "manifest.json")
    if not isinstance(images, list) or len(images) > MAX_MANIFESTS:
        raise ArchiveError("manifest.json is damaged")
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get("Config"), str):
            raise ArchiveError("manifest.json is damaged")
        tags = [str(tag) for tag in image.get("RepoTags") or []]
        for tag in tags[:MAX_MANIFESTS] if len(images) > 1 or len(tags) == 1 else [""]:
            yield tag, partial(_read_docker_image, documents, tag, image)


def _read_docker_image(documents: Documents, reference: str, image: Mapping[str, Any]) -> Manifest:
    content = documents.read(image["Config"])
    digest = hashlib.sha256(content).hexdigest()
    named = re.search(r"([0-9a-f]{64})(?:\.json)?$", image["Config"])
    if named is not None and named[1] != digest:
        raise ArchiveError("the configuration does not match its digest")
    layers: list[tuple[str, str | None]] = []
    for name in _get_list(image, "Layers"):
        if not isinstance(name, str):
            raise ArchiveError("manifest.json is damaged")
        blob = re.fullmatch(r"blobs/sha256/([0-9a-f]{64})", name)
        layers.append((name, f"sha256:{blob[1]}" if blob else None))
    return _make_manifest(reference, f"sha256:{digest}", content, layers)


# Both.


def _make_manifest(
    reference: str, digest: str, content: bytes, layers: Sequence[tuple[str, str | None]]
) -> Manifest:
    config = _parse(content, "the configuration")
    platform = {"os": config.get("os", "linux"), "architecture": config.get("architecture")}
    if not _fits_machine(platform):
        raise ArchiveError(
            f"the image is for {quote_name(str(platform['os']))} on"
            f" {quote_name(str(platform['architecture']))}",
            f"get the image for linux on {_architecture()}.",
        )
    rootfs = config.get("rootfs")
    plain_digests = _get_list(rootfs if isinstance(rootfs, dict) else {}, "diff_ids")
    if len(plain_digests) != len(layers) or len(layers) > MAX_LAYERS:
        raise ArchiveError(
            f"the manifest has {len(layers)} layers (at most {MAX_LAYERS} are allowed), and the"
            f" configuration lists {len(plain_digests)}"
        )
    found = tuple(
        Layer(name, packed, _get_digest({"digest": inner}))
        for (name, packed), inner in zip(layers, plain_digests, strict=True)
    )
    settings = config.get("config")
    environment = read_environment(settings if isinstance(settings, dict) else {})
    return Manifest(reference, digest, environment, found)


def read_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables that an image sets.

    :raises ArchiveError: when one of them is not valid, or they are too large together
    """
    found: dict[str, str] = {}
    for item in _get_list(settings, "Env"):
        name, equals, value = str(item).partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or not _is_value(value):
            raise ArchiveError(f"the environment variable {quote_name(str(item))} is not valid")
        found[name] = value
    if sum(len(name) + len(value.encode()) + 2 for name, value in found.items()) > MAX_ENVIRONMENT:
        raise ArchiveError(f"the environment has more than {MAX_ENVIRONMENT} bytes")
    return found


def _is_value(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _fits_machine(platform: Any) -> bool:
    if not isinstance(platform, dict):
        return True
    system, machine = platform.get("os", "linux"), platform.get("architecture")
    return bool(system == "linux" and machine in (None, _architecture()))


def _architecture() -> str:
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def _get_list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ArchiveError(f"{name} is not a list")
    return value


def _parse(content: bytes, what: str) -> dict[str, Any]:
    found = _parse_any(content, what)
    if not isinstance(found, dict):
        raise ArchiveError(f"{what} is damaged")
    return found


def _parse_any(content: bytes, what: str) -> Any:
    try:
        return parse_json(content, MAX_DOCUMENT)
    except JsonError as error:
        raise ArchiveError(f"{what} is damaged: {error}") from None
