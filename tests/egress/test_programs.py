"""Programs and libraries that people use, each by a route with a URL, by the proxy, and refused."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient

from gvisor_kernel.egress.process import EgressWorker

from ..sweeps import needs_all
from .conftest import SECRET
from .fake_files import Files, make_files
from .indexes import host_environment, index_of_host
from .test_kernels import kernel_with, run
from .upstream import Fake, make_certificate, serving

pytestmark = [needs_all, pytest.mark.once]

PROXIED = "127.0.0.2"
"""This machine, by an address that NO_PROXY does not name."""

PREPARE = """
import os, subprocess, sys
CA = os.path.expanduser("~/ca.pem")
with open(CA, "w") as file:
    file.write({ca!r})
for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
             "NODE_EXTRA_CA_CERTS"):
    os.environ[name] = CA
def sh(*argv):
    done = subprocess.run(argv, stdout=-1, stderr=-2, text=True, timeout=60)
    return done.stdout
def attempt(function, *arguments):
    try:
        print(function(*arguments))
    except Exception as error:
        while error is not None:
            print(type(error).__name__, error)
            error = error.__cause__ or error.__context__
"""

PROGRAMS = {
    "curl": 'fetch = lambda url: sh("curl", "-sS", url)',
    "wget": """
fetch = lambda url: sh("wget", "-nv", "-t", "1", f"--ca-certificate={CA}", "-O-", url)
""",
    "urllib": "import urllib.request\nfetch = lambda url: urllib.request.urlopen(url).read()",
    "requests": "import requests\nfetch = lambda url: requests.get(url).text",
    "httpx": "import httpx\nfetch = lambda url: httpx.get(url).text",
    "httpx with HTTP/2": """
import httpx
def fetch(url):
    with httpx.Client(http2=True) as client:
        return client.get(url).text
""",
    "urllib3": """
import urllib3, os
def fetch(url):
    if urllib.request.proxy_bypass(urllib.parse.urlsplit(url).hostname):
        pool = urllib3.PoolManager(retries=0)
    else:
        pool = urllib3.ProxyManager(os.environ["HTTPS_PROXY"], ca_certs=CA, retries=0)
    return pool.request("GET", url).data
""",
    "pandas": "import pandas\nfetch = lambda url: pandas.read_csv(url).to_csv()",
}
"""Code that defines ``fetch``."""
ASYNC = {
    "aiohttp": """
import aiohttp
async def fetch(url):
    context = ssl.create_default_context(cafile=CA)
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(url, ssl=context) as answer:
            return await answer.text()
""",
    "httpx": """
import httpx
async def fetch(url):
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).text
""",
}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A CA, and a certificate with its key. The worker trusts it and the system's."""
    ca, both = make_certificate(tmp_path_factory.mktemp("tls"))
    trusted = ca.with_name("trusted.pem")
    system = ssl.get_default_verify_paths().cafile
    trusted.write_bytes(ca.read_bytes() + (Path(system).read_bytes() if system else b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(trusted))
        patch.setenv("GK_TEST_SECRET", SECRET)
        EgressWorker.instance().stop()
        yield ca, both


@pytest.fixture(scope="module")
def files(
    ca: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Fake, Fake]]:
    """A server for a route with a URL, and one for the proxy."""
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Files, "folder", folder, raising=False)
        with serving(ca[1], Files) as one, serving(ca[1], Files, PROXIED) as other:
            yield one, other


@pytest.fixture(scope="module")
def client(ca: tuple[Path, Path], files: tuple[Fake, Fake]) -> Iterator[BlockingKernelClient]:
    host_environment(f"{index_of_host().url}aiohttp/")
    api, proxied = files
    routes = {
        "api": {
            "url": f"https://127.0.0.1:{api.port}",
            "variable": "HF_ENDPOINT",
            "secret": "env:GK_TEST_SECRET",
            "allow_private": True,
        },
        "web": {"hosts": [f"{PROXIED}:{proxied.port}"], "allow_private": True},
    }
    with kernel_with(routes, ["packages", *routes]) as (_, client):
        run(client, PREPARE.format(ca=ca[0].read_text()))
        assert "Successfully installed" in run(client, "%pip install uv")
        text = run(client, "!NO_COLOR=1 uv pip install aiohttp 'httpx[http2]' huggingface_hub")
        assert "+ aiohttp==" in text, text
        yield client


def programs(table: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("program", table.values(), ids=table)


@programs(PROGRAMS)
def test_a_program_uses_a_route_and_the_proxy(
    client: BlockingKernelClient, files: tuple[Fake, Fake], program: str
) -> None:
    run(client, "import urllib.request, urllib.parse\n" + program)
    text = run(client, "attempt(fetch, API + '/files/table.csv')")
    assert "3,4" in text
    text = run(client, f"attempt(fetch, 'https://{PROXIED}:{files[1].port}/files/table.csv')")
    assert "3,4" in text
    text = run(client, "attempt(fetch, 'https://pypi.org/simple/')")
    assert "403" in text or "no egress route of this kernel" in text


@programs(ASYNC)
def test_a_library_with_a_loop_uses_a_route_and_the_proxy(
    client: BlockingKernelClient, files: tuple[Fake, Fake], program: str
) -> None:
    run(client, "import ssl\n" + program)
    text = run(client, "print(await fetch(API + '/files/table.csv'))")
    assert "3,4" in text
    code = f"print(await fetch('https://{PROXIED}:{files[1].port}/files/table.csv'))"
    assert "3,4" in run(client, code)
    code = """
try:
    await fetch("https://pypi.org/simple/")
except Exception as error:
    print(repr(error))
"""
    text = run(client, code)
    assert "403" in text


def test_git_clones_by_the_proxy(client: BlockingKernelClient, files: tuple[Fake, Fake]) -> None:
    code = f"""
print(sh("git", "clone", "https://{PROXIED}:{files[1].port}/files/repo.git", "/tmp/by-proxy"))
print(open("/tmp/by-proxy/hello.txt").read())
print(sh("git", "clone", API + "/files/repo.git", "/tmp/by-route"))
print(open("/tmp/by-route/hello.txt").read())
print(sh("git", "clone", "https://github.com/acme/tiny", "/tmp/refused"))
"""
    text = run(client, code)
    assert text.count("from a repository") == 2
    assert "403" in text


def test_a_model_is_downloaded(client: BlockingKernelClient, files: tuple[Fake, Fake]) -> None:
    code = """
import huggingface_hub
print(open(huggingface_hub.hf_hub_download("acme/tiny", "config.json")).read())
"""
    assert "a model" in run(client, code)
    assert files[0].seen[-1].values("authorization") == [f"Bearer {SECRET}"]


def test_node_fetches(client: BlockingKernelClient) -> None:
    code = """
script = "fetch(process.argv[1]).then(a => a.text()).then(console.log)"
print(sh("node", "-e", script, API + "/files/table.csv"))
"""
    assert "3,4" in run(client, code)


def test_npm_installs(client: BlockingKernelClient) -> None:
    code = """
os.makedirs("/tmp/n", exist_ok=True)
os.chdir("/tmp/n")
print(sh("npm", "install", "left-pad"))
print(sh("node", "-e", 'console.log(require("left-pad")("x", 3, "-"))'))
"""
    text = run(client, code)
    assert "--x" in text
