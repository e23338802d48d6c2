"""Routes used by programs in real sandboxes: what arrives there, and what stays outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from traitlets.config import Config

from gvisor_kernel.egress.process import EgressWorker

from ..docker.dockerd import needs_dockerd
from ..jupyter.helpers import assert_way, execute, running_kernel
from ..sweeps import needs_all
from ..world import WAYS
from .conftest import SECRET
from .upstream import Fake

HELPERS = """
import urllib.request, urllib.error
API = "http://127.0.0.1:3128/api"
PLAIN = "http://127.0.0.1:3128/plain"
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def get(url, **more):
    try:
        with direct.open(urllib.request.Request(url, **more), timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
"""


def routes(upstream: Fake, tls: Fake) -> dict[str, Any]:
    return {
        "api": {
            "url": f"https://127.0.0.1:{tls.port}/v1",
            "allow_private": True,
            "secret": "env:GK_TEST_SECRET",
        },
        "plain": upstream.route("/v1"),
        "web": {"hosts": [f"127.0.0.1:{upstream.port}"], "allow_private": True},
    }


@contextmanager
def kernel_with(
    routes: dict[str, Any], names: list[str], way: str = "direct", **settings: Any
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    config = Config(
        {
            "GVisorProvisioner": {**WAYS[way], "egress": names, **settings},
            "GVisorEgress": {"routes": routes},
        }
    )
    with running_kernel(config=config) as (manager, client):
        assert execute(client, HELPERS).status == "ok"
        yield manager, client


def run(client: BlockingKernelClient, code: str) -> str:
    """Run code and return what it prints."""
    answer = execute(client, code)
    assert answer.status == "ok", answer.reply["content"]
    return answer.text


@pytest.fixture(scope="module", autouse=True)
def own_worker(tls: Fake) -> Iterator[None]:
    """Start the worker of this process with the tests' CA, and end it."""
    EgressWorker.instance().stop()
    os.environ["GK_TEST_SECRET"] = SECRET
    yield
    EgressWorker.instance().stop()
    del os.environ["GK_TEST_SECRET"]


@pytest.fixture(scope="module")
def client(upstream: Fake, tls: Fake) -> Iterator[BlockingKernelClient]:
    with kernel_with(routes(upstream, tls), ["api", "plain", "web"]) as (_, client):
        yield client


@pytest.fixture(autouse=True)
def forget(upstream: Fake, tls: Fake) -> None:
    for fake in (upstream, tls):
        fake.seen.clear()
        fake.go.clear()
        fake.gone.clear()


def test_urllib_reaches_an_api_whose_key_stays_outside(
    client: BlockingKernelClient, tls: Fake
) -> None:
    assert "/v1/models" in run(client, "print(get(API + '/models'))")
    assert tls.seen[-1].values("authorization") == [f"Bearer {SECRET}"]


def test_a_body_arrives_and_a_large_answer_comes_back(
    client: BlockingKernelClient, upstream: Fake
) -> None:
    assert '"size": 5000000' in run(client, "print(get(PLAIN + '/x', data=bytes(5_000_000)))")
    assert run(client, "print(len(get(PLAIN + '/big?mib=20')))") == f"{20 * 1024 * 1024}\n"


def test_events_arrive_one_by_one(client: BlockingKernelClient, upstream: Fake) -> None:
    code = """
answer = direct.open(PLAIN + "/events", timeout=60)
print(answer.readline())
get(PLAIN + "/echo")
"""
    assert run(client, code) == "b'data: 0\\n'\n"
    upstream.go.set()
    assert run(client, "print(answer.read())") == "b'\\ndata: 1\\n\\n'\n"


def test_curl_uses_a_route_and_the_proxy(client: BlockingKernelClient, upstream: Fake) -> None:
    code = f"""
import shutil, subprocess
def curl(*words):
    argv = ["curl", "-sS", "--max-time", "60", *words]
    return subprocess.run(argv, stdout=-1, stderr=-2, text=True).stdout
print(shutil.which("curl") is not None)
print(curl("--noproxy", "*", PLAIN + "/echo"))
proxy = ["--noproxy", "", "--proxy", "http://127.0.0.1:3128"]  # NO_PROXY has 127.0.0.1
print(curl(*proxy, "http://127.0.0.1:{upstream.port}/by-proxy"))
print(curl(*proxy, "--proxytunnel", "http://127.0.0.1:{upstream.port}/by-tunnel"))
print(curl("--proxy", "http://127.0.0.1:3128", "https://pypi.org/simple/"))
"""
    text = run(client, code)
    if text.startswith("False"):
        pytest.skip("curl is not on this machine")
    assert "/v1/echo" in text
    assert "/by-proxy" in text
    assert "/by-tunnel" in text
    assert "403" in text


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_a_library_uses_a_route_and_the_proxy(
    client: BlockingKernelClient, upstream: Fake, library: str
) -> None:
    code = f"""
import {library} as library, os
with library.{"Client(trust_env=False)" if library == "httpx" else "Session()"} as session:
    if {library == "requests"}:
        session.trust_env = False
    for i in range(3):
        print(session.get(PLAIN + f"/kept/{{i}}").json()["path"])
    print(session.post(PLAIN + "/x", json={{"a": [1] * 1000}}).json()["method"])
proxies = {{name + "_proxy": "http://127.0.0.1:3128" for name in ("http", "https")}}
before = dict(os.environ)
os.environ.update(proxies | {{name.upper(): value for name, value in proxies.items()}})
os.environ.update(NO_PROXY="", no_proxy="")
try:
    print(library.get("http://127.0.0.1:{upstream.port}/by-proxy").json()["path"])
    try:
        library.get("https://pypi.org/simple/")
    except Exception as error:
        print(error)
finally:
    os.environ.clear()
    os.environ.update(before)
"""
    answer = execute(client, code)
    if answer.error == "ModuleNotFoundError":
        pytest.skip(f"{library} is not in the sandbox")
    assert answer.status == "ok", answer.reply["content"]
    assert answer.text.startswith("/v1/kept/0\n/v1/kept/1\n/v1/kept/2\nPOST\n/by-proxy\n")
    assert "403" in answer.text


def test_two_hundred_requests_at_once(client: BlockingKernelClient) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(60) as pool:
    answers = list(pool.map(lambda i: get(f"{PLAIN}/many/{i}"), range(200)))
print(sum(b"/many/" in answer for answer in answers if isinstance(answer, bytes)))
"""
    assert run(client, code) == "200\n"


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("relay", marks=needs_all),
        "restored",
        pytest.param("docker", marks=[*needs_dockerd, needs_all]),
    ],
)
def test_a_kernel_of_another_way_has_its_routes(
    upstream: Fake,
    tls: Fake,
    way: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if way != "relay":
        request.getfixturevalue({"restored": "shared_snapshot", "docker": "dockerd"}[way])
    with kernel_with(routes(upstream, tls), ["api"], way) as (manager, client):
        assert_way(manager, client, way)
        assert "/v1/x" in run(client, "print(get(API + '/x'))")
        assert "(403" in run(client, "print(get(PLAIN + '/x'))")
