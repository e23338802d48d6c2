"""The extension of Sphinx: hands each page to ``pages``, and resolves the names of the Python API.

A page that has generated parts is read again in each build, as the code may have changed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gvisor_kernel

from .pages import FROM, GENERATED, for_the_site
from .reference import GENERATORS


def setup(app: Any) -> dict[str, bool]:
    """Register the hooks. Called by Sphinx."""
    app.connect("env-get-outdated", _find_outdated)
    app.connect("source-read", _read)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _find_outdated(_app: Any, env: Any, *_: Any) -> list[str]:
    def changes_with_others(page: str) -> bool:
        text = Path(env.doc2path(page)).read_text(encoding="utf-8")
        return bool(GENERATED.search(text) or FROM.match(text))

    return [page for page in env.found_docs if changes_with_others(page)]


def _read(app: Any, page: str, source: list[str]) -> None:
    source[0] = for_the_site(source[0], page, Path(app.srcdir), GENERATORS)


def _resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Return the link to a name of ours; the bare text of a name that has no page here."""
    if node.get("refdomain") != "py":
        return None
    module, _, name = node["reftarget"].rpartition(".")
    if name in gvisor_kernel.__all__ and module != "gvisor_kernel":
        target = f"gvisor_kernel.{name}"
        domain = env.get_domain("py")
        page = node["refdoc"]
        return domain.resolve_xref(env, page, app.builder, "obj", target, node, content)
    top = module.partition(".")[0]
    # A name of the standard library, or of a module of ours that programs do not import from.
    known = top == "gvisor_kernel" or top in sys.stdlib_module_names
    return content if known or name in _SHORT else None


_SHORT = frozenset({"Event", "T"})
"""Aliases and variables of types, which annotations name without a module."""
