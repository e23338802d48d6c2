"""The parts of the reference that are made from the code, as Markdown. Pure functions.

``GENERATORS`` has them by the names that pages use in ``<!-- generated: NAME -->``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import gvisor_kernel
from gvisor_kernel.config.jupyter_config import GVisorEgress
from gvisor_kernel.config.settings import SETTINGS, find_own_settings
from gvisor_kernel.config.validators import GIB
from gvisor_kernel.server.extension import GVisorServer
from gvisor_kernel.server.handlers import OPENAPI
from gvisor_kernel.server.watch import read_schemas

from .commands import commands
from .tables import code, escape, table


def settings() -> str:
    """Return a table of the settings of a sandbox, each with a link to its explanation."""
    rows = [
        (
            f"[`{name}`](../settings.md#{name})",
            default(setting.write_default()),
            PRECEDENCE[setting.both],
            escape(first_sentence(setting.help)),
        )
        for name, setting in SETTINGS.items()
    ]
    rows += [
        (
            f"[`{name}`](../settings.md#{name})",
            default(setting.write_default()),
            "the configuration, key by key",
            escape(first_sentence(setting.help)),
        )
        for name, setting in find_own_settings().items()
    ]
    return table(("setting", "default", "if both places set it", ""), rows)


def default(value: object) -> str:
    """Return a default as Python writes it, and a large number of bytes also in GiB."""
    if isinstance(value, int) and value >= GIB:
        return f"{code(repr(value))} ({value / GIB:g} GiB)"
    return code(repr(value))


PRECEDENCE = {
    "configuration": "the configuration",
    "lower": "the lower value",
    "choice": "the kernelspec's part of the list",
}
"""Which value holds if Jupyter's configuration and a kernelspec set a setting."""


def first_sentence(text: str) -> str:
    """Return the beginning of a help text. A dot inside a name or a number ends no sentence."""
    text = " ".join(text.split())
    return text.partition(". ")[0].rstrip(".") + "."


def own_traits(owner: Any) -> list[tuple[str, Any]]:
    """Return what can be configured of a class, in the order in which it is written."""
    order = list(vars(owner))
    traits = {
        name: trait for name, trait in owner.class_traits(config=True).items() if name in order
    }
    return sorted(traits.items(), key=lambda pair: order.index(pair[0]))


def server_settings() -> str:
    """Return a table of what else can be configured: the server's extension, and the routes."""
    rows = [
        (code(f"c.{owner.__name__}.{name}"), code(repr(trait.default())), escape(trait.help))
        for owner in (GVisorServer, GVisorEgress)
        for name, trait in own_traits(owner)
    ]
    return table(("name", "default", ""), rows)


PYTHON = {
    "Sandboxes": ("Sandbox", "AsyncSandbox"),
    "What code gives": (
        *("Execution", "ExecutionError", "Result", "Logs", "Printed", "ShellResult"),
    ),
    "Files": ("Entry", "open_output"),
    "Changes": ("Changes", "Change", "Applied", "Undone"),
    "State that lasts": ("Checkpoint", "RewindChanges", "OutputChanges", "LastingSandbox"),
    "Many sandboxes": ("SandboxPool", "AsyncSandboxPool", "MapResult"),
    "Errors": (
        *(
            "GvisorKernelError",
            "SettingError",
            "SandboxError",
            "NotIdle",
            "NoCheckpoint",
            "CodeFailed",
            "FileFailed",
        ),
        *("ChangesError", "OutputsError"),
    ),
}
"""The names of the Python API, in the order of its page."""


def python() -> str:
    """Return the Python API: each name with its signature and docstrings, by Sphinx's autodoc."""
    parts = []
    for title, names in PYTHON.items():
        parts.append(f"## {title}\n")
        for name in names:
            kind = getattr(gvisor_kernel, name)
            is_class = isinstance(kind, type)
            is_error = is_class and issubclass(kind, Exception)
            directive = "autoexception" if is_error else "autoclass" if is_class else "autofunction"
            lines = [f".. {directive}:: gvisor_kernel.{name}"]
            if is_class:
                lines += ["   :show-inheritance:"] if is_error else ["   :members:"]
            parts.append("```{eval-rst}\n" + "\n".join(lines) + "\n```\n")
        if title == "Files":
            parts.append(
                "```{eval-rst}\n.. autoclass:: gvisor_kernel.api.sandbox.Files\n   :members:\n```\n"
            )
    return "\n".join(parts)


def rest() -> str:
    """Return the routes of the OpenAPI document, each with parameters, body and answers."""
    document = json.loads(OPENAPI.read_text())
    parts = ["## Routes\n"]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(f"### `{method.upper()} {path}`\n")
            parts.append(f"{escape(route['summary'])}\n")
            if "description" in route:
                parts.append(f"{escape(route['description'])}\n")
            parts += [part for part in described(route, document["components"]) if part]
    parts.append("## Objects\n")
    for name, schema in document["components"]["schemas"].items():
        parts += [f"### {name}\n", fields(schema)]
    return "\n".join(parts)


def described(route: Mapping[str, Any], components: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of a route: parameters, fields of the body, answers."""
    named = components["parameters"]
    parameters = (
        named[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        for one in route.get("parameters", ())
    )
    yield table(
        ("parameter", "in", "type", ""),
        (
            (
                code(one["name"]),
                one["in"] + ("" if one.get("required") else ", optional"),
                kind(one.get("schema", {})),
                escape(one.get("description", "")),
            )
            for one in parameters
        ),
    )
    for mime, content in route.get("requestBody", {}).get("content", {}).items():
        if "schema" in content:
            yield "The body is JSON:\n"
            yield fields(content["schema"])
        else:
            yield f"The body is {code(mime)}.\n"
    yield table(
        ("status", "content", ""),
        (
            (code(status), answer(said), escape(said["description"]))
            for status, said in answers(route)
        ),
    )
    for status, said in answers(route):
        for content in said.get("content", {}).values():
            unnamed = fields(content.get("schema", {}))
            if unnamed:
                yield f"The fields of the answer {status}:\n"
                yield unnamed


def answers(route: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the answers of a route by their status."""
    return sorted(route["responses"].items())


def answer(said: Mapping[str, Any]) -> str:
    """Return what an answer contains, in a few words."""
    return ", ".join(
        kind(content["schema"]) if "schema" in content else code(mime)
        for mime, content in said.get("content", {}).items()
    )


def fields(schema: Mapping[str, Any], title: str = "field") -> str:
    """Return a table of an object's fields; those of objects in it are named with dots."""
    return table((title, "type", ""), rows_of(schema))


def rows_of(schema: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the rows of an object's fields. A schema may leave open which of them it requires."""
    required = schema.get("required", schema.get("properties", {}))
    for name, one in schema.get("properties", {}).items():
        full = f"{above}{name}"
        optional = "" if name in required else ", optional"
        yield code(full), kind(one) + optional, escape(one.get("description", ""))
        yield from rows_of(one, f"{full}.")
        yield from rows_of(one.get("items", {}), f"{full}[].")


def kind(schema: Mapping[str, Any] | bool) -> str:
    """Return a schema's type in a few words; an object that has a name, as a link."""
    if isinstance(schema, bool):
        return "anything"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(kind(one) for one in schema[union])
    if "enum" in schema:
        return " or ".join(code(json.dumps(value)) for value in schema["enum"])
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    types = schema.get("type", "anything")
    return types if isinstance(types, str) else " or ".join(types)


def metrics() -> str:
    """Return a table of the metrics, with the values of their labels."""
    from prometheus_client import REGISTRY

    from gvisor_kernel.server.watch import metrics as register

    register()
    rows = []
    for family in REGISTRY.collect():
        if family.name.startswith("gvisor_kernel_"):
            labels: dict[str, set[str]] = {}
            for sample in family.samples:
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append((code(name), family.type, values_of(labels), escape(family.documentation)))
    return table(("metric", "type", "labels", ""), sorted(rows))


def values_of(labels: Mapping[str, set[str]]) -> str:
    """Return labels with their values. The bounds of a histogram are numbers, in their order."""
    parts = []
    for label, values in labels.items():
        order = sorted(values, key=float) if label == "le" else sorted(values)
        parts.append(f"{code(label)}: {', '.join(map(escape, order))}")
    return "; ".join(parts)


def events() -> str:
    """Return the events: each with when it is emitted, and its fields."""
    parts = []
    for schema in sorted(read_schemas(), key=itemgetter("$id")):
        parts.append(f"### `{schema['$id']}`\n")
        parts.append(f"{escape(schema['description'])}\n")
        parts.append(fields(schema))
    return "\n".join(parts)


GENERATORS: Mapping[str, Callable[[], str]] = {
    function.__name__: function
    for function in (commands, events, metrics, python, rest, server_settings, settings)
}
assert all(inspect.getdoc(function) for function in GENERATORS.values())
