"""What the extension shows, without a server: documents, lines of logs, routes, events, metrics."""

from __future__ import annotations

import asyncio
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from jupyter_server.base.handlers import APIHandler
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gvisor_kernel.bridge.deaths import Death, DeathKind
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.egress.audit import FILE, Audit, Entry
from gvisor_kernel.egress.kinds import HostsRoute, PackagesRoute, UrlRoute
from gvisor_kernel.host.log_files import NAMES
from gvisor_kernel.kernel.facts import (
    Ended,
    KernelEvents,
    KernelFacts,
    Left,
    Start,
    StartKind,
    State,
)
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.server import doctor, sandboxes
from gvisor_kernel.server.documents import Described, HostFacts, make_sandbox
from gvisor_kernel.server.extension import PREFIX, ROUTES
from gvisor_kernel.server.handlers import OPENAPI, shut_down
from gvisor_kernel.server.recorded import MAX_CHARACTERS, MAX_KERNELS, EndedKernels, clean
from gvisor_kernel.server.sandboxes import Sandboxes, Snapshot
from gvisor_kernel.server.watch import Events, Metrics, Refusals, is_refused, read_schemas

from ..world import PROJECT

pytestmark = pytest.mark.once

REST = (PROJECT / "docs/rest.md").read_text()


def described(**facts: object) -> Described:
    kernel = KernelFacts("busy", "k", Path("/n"), SandboxSpec(), **facts)  # type: ignore[arg-type]
    return Described("1", "K", "python", kernel, HostFacts())


def test_document_of_routes_names_each_route() -> None:
    """OpenAPI, the page for people and the handlers agree."""
    served = {
        (method, re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", path).replace("\\", ""))
        for path, handler in ROUTES
        for method in ("get", "post", "put", "patch", "delete")
        if getattr(handler, method) is not getattr(APIHandler, method)
    }
    document = json.loads(OPENAPI.read_text())
    assert served == {(m, path) for path, ops in document["paths"].items() for m in ops}
    told = re.findall(r"^\| `(GET|POST|PUT|DELETE) (/\S+)` \|", REST, re.MULTILINE)
    assert served == {(method.lower(), path) for method, path in told}
    assert PREFIX.lstrip("/") in document["servers"][0]["url"]


def test_schema_has_the_keys_of_a_sandbox() -> None:
    schema = json.loads(OPENAPI.read_text())["components"]["schemas"]["Sandbox"]
    document = make_sandbox(described(start=Start("cold", 1.0), last_death=Death("exit", when=1.0)))
    assert set(document) == set(schema["required"]) == set(schema["properties"])
    for key in ("memory", "release", "workspace", "start", "last_death"):
        assert set(document[key]) == set(schema["properties"][key]["required"])


def test_mounts_show_folders_of_a_person_and_nothing_of_this_package() -> None:
    state = Path("/state/01abc")
    document = make_sandbox(
        described(
            directory=state,
            mounts=(
                MountView("/n", "/mnt/user-data/uploads", True),
                MountView("/n/<b>", "/mnt/user-data/outputs", False),
                MountView("/state/01abc/covers/x", "/n/.jupyter", True),
                MountView("/lib/g", "/opt/gvisor-kernel/gvisor_kernel/guest", True),
                MountView("/usr", "/usr", True),
            ),
        )
    )
    assert [mount["source"] for mount in document["mounts"]] == ["/n", "/n/<b>", "/usr"]
    assert document["workspace"] == {"uploads": "/n", "outputs": "/n/<b>", "is_home": False}
    assert document["id"] == "01abc"


def test_home_is_told_and_not_the_empty_folder_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the person came to the home by a link."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    state = tmp_path / "01abc"
    empty = MountView(str(state / "empty"), "/mnt/user-data/uploads", True)
    facts = described(directory=state, mounts=(empty,)).facts
    for folder, is_home in (("home", True), ("link", True), (".", True), ("01abc", False)):
        found = sandboxes.find_host_facts(replace(facts, folder=tmp_path / folder))
        assert found.is_home is is_home
    document = make_sandbox(Described("1", "K", "python", facts, HostFacts(is_home=True)))
    assert document["workspace"]["uploads"] is None
    assert "not shown" in document["mounts"][0]["description"]
    shown = replace(empty, source=str(tmp_path / "home"))
    assert not sandboxes.find_host_facts(replace(facts, mounts=(shown,))).is_home


def test_routes_show_hosts_and_no_credential() -> None:
    routes = (
        UrlRoute("api", "https://api.example/v1", secret="env:KEY", header="X: {secret}"),  # noqa: S106
        HostsRoute("web", ("a.example:443",)),
        PackagesRoute(),
    )
    document = make_sandbox(described(routes=routes))
    assert document["egress"] == [
        {"name": "api", "kind": "url", "hosts": ["api.example"]},
        {"name": "web", "kind": "hosts", "hosts": ["a.example:443"]},
        {"name": "packages", "kind": "packages", "hosts": []},
    ]
    assert "KEY" not in json.dumps(document)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[31mred\x1b[0m\n", "red"),
        ("\\x1b[31mred\\x1b[0m", "red"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\\x1b]0;title\\x07b", "ab"),
        ("back\x08\x00\u202e", "back\\x08\\x00\\u202e"),
        ("<script>é</script>", "<script>é</script>"),
        ("x" * 10_000, "x" * 2000),
    ],
)
def test_line_of_a_log_has_no_control_character(line: str, shown: str) -> None:
    assert clean(line) == shown


def test_only_requests_of_which_nothing_was_sent_are_refused() -> None:
    entry = {"route": "", "method": "GET", "host": "h", "path": "/", "status": 403}
    assert is_refused(Entry(**entry, reason="no rule"))  # type: ignore[arg-type]
    assert not is_refused(Entry(**entry))  # type: ignore[arg-type]
    assert not is_refused(Entry(**entry, reason="it broke", up=1, id="1"))  # type: ignore[arg-type]


@pytest.fixture
def registry() -> CollectorRegistry:
    """One of its own for the metrics of a test."""
    return CollectorRegistry()


def read_samples(registry: CollectorRegistry) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Return the names and labels of what Prometheus would read, by its client's own parser."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in families
        for sample in family.samples
    }


def test_no_kernel_makes_a_series(registry: CollectorRegistry) -> None:
    """Whatever it is called, uses and dies of; a server that runs for a year has as many."""
    metrics = Metrics(registry)
    metrics.show([])
    before = read_samples(registry)
    for number in range(50):
        name = f'"}}\n{number}'
        facts = KernelFacts("busy", name, Path(name), SandboxSpec(), identity=name)
        metrics.show([replace(facts, state=state) for state in get_args(State)])
        for death in get_args(DeathKind):
            metrics.deaths.labels(death).inc()
        for kind in get_args(StartKind):
            metrics.starts.labels(kind).observe(float(number))
        for direction in ("received", "sent"):
            metrics.bytes.labels(direction).inc(number)
        metrics.refused.inc(number)
    assert read_samples(registry) == before
    assert len(before) < 100


def test_dashboard_asks_for_metrics_that_there_are(registry: CollectorRegistry) -> None:
    Metrics(registry).show([])
    samples = read_samples(registry)
    names = {name for name, _ in samples}
    labels = {label for _, pairs in samples for label, _ in pairs}
    dashboard = json.loads((PROJECT / "docs/grafana.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    assert len(expressions) == 11
    for expression in expressions:
        (name,) = re.findall(r"gvisor_kernel_\w+", expression)
        assert name in names
        by = re.findall(r"by \(([^)]*)\)", expression)
        assert {label.strip() for part in by for label in part.split(",")} <= labels


def test_page_for_people_names_each_event_and_metric(registry: CollectorRegistry) -> None:
    for schema in read_schemas():
        assert schema["$id"] in REST
    Metrics(registry).show([])
    text = generate_latest(registry).decode()
    names = set(re.findall(r"^# TYPE (gvisor_kernel_\w+)(?<!_created) ", text, re.MULTILINE))
    assert len(names) == 10
    assert names == set(re.findall(r"^\| `(gvisor_kernel_\w+)`", REST, re.MULTILINE))
    dashboard = (PROJECT / "docs/grafana.json").read_text()
    used = set(re.findall(r"gvisor_kernel_\w+", dashboard))
    assert {re.sub(r"_(count|bucket)$", "", name) for name in used} == names


class NoKernels:
    """Stands for the kernel manager of a server without kernels."""

    def list_kernel_ids(self) -> list[str]:
        return []


def test_flood_of_requests_is_one_look() -> None:
    async def flood() -> list[Snapshot]:
        with ThreadPoolExecutor(1) as executor:
            shown = Sandboxes(NoKernels(), executor, keep_seconds=3600.0)
            together = await asyncio.gather(*(shown.read() for _ in range(100)))
            return [*together, await shown.read()]

    assert len({id(found) for found in asyncio.run(flood())}) == 1


def test_refused_requests_are_read_once(tmp_path: Path) -> None:
    refusals = Refusals(tmp_path)
    assert refusals.read() is None
    entry = Entry(route="", method="GET", host="<h>", path="/", status=403, reason="no rule")
    audit = Audit(tmp_path / FILE)
    for _ in range(3):
        assert audit.write(entry)
    found = refusals.read()
    assert found is not None
    assert (found.entry.host, found.count) == ("<h>", 3)
    assert refusals.read() is None
    audit.close()
    refusals.close()


SAYS = """
import json, sys
print(json.dumps({"ok": True, "checks": [{"name": "a", "fact": chr(27) + "[1m<b>"}]}))
"""


async def read_doctor(code: str, *, ends: bool = False) -> Any:
    """Ask a doctor that runs ``code`` instead, and is asked three times at once."""
    asked = doctor.Doctor(("-c", code))
    reading = [asyncio.create_task(asked.read()) for _ in range(3)]
    await asyncio.sleep(0)
    if ends:
        while asked._process is None:
            await asyncio.sleep(0)
        await asked.end()
    return await asyncio.gather(*reading, return_exceptions=True)


def test_doctor_runs_once_and_its_texts_are_clean() -> None:
    found = asyncio.run(read_doctor(SAYS))
    assert found[0]["checks"] == [{"name": "a", "fact": "\\x1b[1m<b>"}]
    assert found[0] is found[1] is found[2]


def test_doctor_that_says_nothing_or_is_ended_has_failed() -> None:
    sleeps = "import sys; sys.stdin.close(); import signal; signal.pause()"
    for code, ends in (("1", False), (sleeps, True)):
        found = asyncio.run(read_doctor(code, ends=ends))
        assert [type(one) for one in found] == [doctor.DoctorFailed] * 3


class Restarting:
    """Stands for a kernel manager whose only kernel is being restarted."""

    def __init__(self) -> None:
        self.ready = asyncio.get_running_loop().create_future()
        self.ended_after_restart: bool | None = None

    def get_kernel(self, kernel_id: str) -> Restarting:
        return self

    async def shutdown_kernel(self, kernel_id: str, now: bool) -> None:
        self.ended_after_restart = self.ready.done()


def test_kernel_is_shut_down_after_its_restart() -> None:
    """Jupyter's manager answers with an error otherwise, and may leave the kernel running."""

    async def shut() -> bool | None:
        manager = Restarting()
        asyncio.get_running_loop().call_later(0.01, manager.ready.set_result, None)
        await shut_down(manager, "1", now=True)
        return manager.ended_after_restart

    assert asyncio.run(shut())


class Logger:
    """Stands for a server's event logger: validates as it does, and keeps what is emitted."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self.emitted: list[dict[str, Any]] = []

    def register_event_schema(self, schema: dict[str, Any]) -> None:
        self.schemas[schema["$id"]] = schema

    def emit(self, *, schema_id: str, data: dict[str, Any]) -> None:
        Draft202012Validator(self.schemas[schema_id]).validate(data)
        self.emitted.append(data)


class NoKernelspecs:
    """Stands for a manager whose kernelspecs were removed."""

    def get_kernel_spec(self, name: str) -> None:
        raise KeyError(name)


def test_ended_kernels_are_bounded_whatever_they_wrote(tmp_path: Path) -> None:
    """Names that a kernel has chosen, and megabytes of log."""
    (tmp_path / NAMES[0]).write_text("2026-01-01T00:00:00.000000Z \x1b[31mx\n" * 2**16)
    (tmp_path / NAMES[1]).write_text(f"2026-01-02T00:00:00.000000Z {'y' * 1000}\n" * 2000)
    os.mkfifo(tmp_path / NAMES[2])
    facts = KernelFacts("ended", "k", tmp_path, SandboxSpec(), directory=tmp_path)
    logger = Logger()

    async def end_many() -> list[Any]:
        kernels = EndedKernels(NoKernelspecs(), Events(logger).tell_lost)
        kernels.start()
        try:
            for number in range(MAX_KERNELS + 5):
                left = Left(10**30, True, ("\x00<b>" + "z" * 5000,) * 200)
                KernelEvents.instance().tell_end(Ended(str(number), "k\n", facts, left))
            await asyncio.sleep(0)
        finally:
            kernels.end()
        KernelEvents.instance().tell_end(Ended("later", "k", facts, None))
        await asyncio.sleep(0)
        return [kernels.find(name) for name in ("0", "4", "5", str(MAX_KERNELS + 4), "later")]

    first, second, third, last, later = asyncio.run(end_many())
    assert (first, second, later) == (None, None, None)
    assert third is not None
    lines = last.lines["log"]
    assert 0 < sum(map(len, lines)) <= MAX_CHARACTERS
    assert lines[-1].endswith("y")
    assert len(logger.emitted) == MAX_KERNELS + 5
    event = logger.emitted[-1]
    assert (len(event["paths"]), event["total"]) == (10, 10**9)
    assert event["paths"][0].startswith("\\x00<b>z")
    assert len(event["paths"][0]) <= 1000
    document = make_sandbox(last.described, last.left)
    assert document["unkept"]["paths"] == event["paths"]
