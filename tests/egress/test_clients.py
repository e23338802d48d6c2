"""The clients of OpenAI and Anthropic, installed by a route, use APIs whose key stays outside."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from gvisor_kernel.egress.process import EgressWorker

from ..jupyter.helpers import SECONDS, execute
from ..sweeps import needs_all
from .conftest import SECRET
from .fake_api import TOGETHER, Api
from .indexes import host_environment, index_of_host
from .test_kernels import kernel_with, run
from .upstream import Fake, make_certificate, serving

pytestmark = [needs_all, pytest.mark.once]

CALLS = {
    "openai": """
import openai as library
Client, AsyncClient = library.OpenAI, library.AsyncOpenAI
def ask(client, model, **more):
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], **more)
text_of = lambda answer: answer.choices[0].message.content
word_of = lambda event: event.choices[0].delta.content
upload = lambda client, data: client.files.create(file=("a.bin", data), purpose="batch").bytes
""",
    "anthropic": """
import anthropic as library
Client, AsyncClient = library.Anthropic, library.AsyncAnthropic
def ask(client, model, **more):
    return client.messages.create(
        model=model, max_tokens=9, messages=[{"role": "user", "content": "hi"}], **more)
text_of = lambda answer: answer.content[0].text
word_of = lambda event: getattr(getattr(event, "delta", None), "text", None)
upload = lambda client, data: client.beta.files.upload(file=("a.bin", data)).size_bytes
""",
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    """The fake, with TLS. The worker trusts its CA and those of this machine's indexes."""
    ca, both = make_certificate(tmp_path_factory.mktemp("tls"))
    system = ssl.get_default_verify_paths().cafile
    if system is not None:
        ca.write_bytes(ca.read_bytes() + Path(system).read_bytes())
    with pytest.MonkeyPatch.context() as patch, serving(both, Api) as fake:
        patch.setenv("SSL_CERT_FILE", str(ca))
        patch.setenv("GK_TEST_SECRET", SECRET)
        patch.setattr(Api, "key", SECRET)
        EgressWorker.instance().stop()
        yield fake


@pytest.fixture(scope="module")
def client(api: Fake) -> Iterator[BlockingKernelClient]:
    """A kernel that has installed both libraries."""
    host_environment(f"{index_of_host().url}openai/")
    base: dict[str, Any] = {"allow_private": True, "secret": "env:GK_TEST_SECRET"}
    url = f"https://127.0.0.1:{api.port}"
    routes = {
        "openai": {**base, "url": f"{url}/v1", "variable": "OPENAI_BASE_URL"},
        "anthropic": {
            **base,
            "url": url,
            "variable": "ANTHROPIC_BASE_URL",
        },
    }
    with kernel_with(routes, ["packages", *routes]) as (_, client):
        text = run(client, "%pip install openai anthropic")
        assert "Successfully installed" in text, text
        yield client


@pytest.fixture(params=CALLS)
def called(request: pytest.FixtureRequest, client: BlockingKernelClient, api: Fake) -> str:
    """Prepare the kernel for calls of one library."""
    api.seen.clear()
    api.go.clear()
    api.gone.clear()
    Api.failed.clear()
    run(client, CALLS[request.param])
    return str(request.param)


@pytest.mark.usefixtures("called")
def test_a_client_needs_no_argument(client: BlockingKernelClient, api: Fake) -> None:
    assert run(client, "print(text_of(ask(Client(), 'm')))") == "hello\n"
    sent = str(api.seen[-1].headers)
    assert SECRET in sent
    code = "print(text_of(await ask(AsyncClient(), 'm')))"
    assert run(client, code) == "hello\n"


def test_events_arrive_before_the_next_is_sent(called: str, client: BlockingKernelClient) -> None:
    """The server sends an event only after the kernel has told it that it has the last one."""
    go = f"os.environ['{called.upper()}_BASE_URL'] + '/go'"
    code = f"""
import os, urllib.request
for event in ask(Client(), "steps", stream=True):
    if word_of(event):
        print(word_of(event))
        urllib.request.urlopen({go}).read()
"""
    assert run(client, code) == "one\ntwo\nthree\n"
    code = f"""
async for event in await ask(AsyncClient(), "steps", stream=True):
    if word_of(event):
        print(word_of(event))
        urllib.request.urlopen({go}).read()
"""
    assert run(client, code) == "one\ntwo\nthree\n"


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize("status", [429, 500])
def test_a_client_tries_again(client: BlockingKernelClient, api: Fake, status: int) -> None:
    assert run(client, f"print(text_of(ask(Client(), 'fail-{status}-again')))") == "hello\n"
    assert len(api.seen) == 2


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize(
    ("status", "name", "requests"),
    [
        (401, "AuthenticationError", 1),
        (429, "RateLimitError", 3),
        (500, "InternalServerError", 3),
    ],
)
def test_an_error_is_that_of_the_api(
    client: BlockingKernelClient, api: Fake, status: int, name: str, requests: int
) -> None:
    answer = execute(client, f"ask(Client(), 'fail-{status}')")
    assert answer.error == name
    assert "as asked" in answer.reply["content"]["evalue"]
    assert len(api.seen) == requests


@pytest.mark.usefixtures("called")
def test_a_key_that_an_error_quotes_is_masked(client: BlockingKernelClient) -> None:
    answer = execute(client, "ask(Client(), 'quote')")
    assert answer.error == "BadRequestError"
    assert f"not with {'*' * len(SECRET)}, my friend" in answer.reply["content"]["evalue"]
    assert SECRET not in str(answer)


@pytest.mark.usefixtures("called")
def test_a_file_of_10_mb_arrives(client: BlockingKernelClient) -> None:
    assert run(client, "print(upload(Client(), bytes(10_000_000)))") == "10000000\n"


@pytest.mark.usefixtures("called")
def test_the_server_notices_that_a_stream_is_cancelled(
    client: BlockingKernelClient, api: Fake
) -> None:
    """The kernel waits for the server, so it still has the client when the server notices."""
    code = """
library_client = Client()
with ask(library_client, "endless", stream=True) as stream:
    for event in stream:
        if word_of(event):
            break
print("left")
"""
    assert run(client, code) == "left\n"
    assert api.gone.wait(SECONDS)
    api.gone.clear()
    code = """
async_client = AsyncClient()
async with await ask(async_client, "endless", stream=True) as stream:
    async for event in stream:
        if word_of(event):
            break
"""
    run(client, code)
    assert api.gone.wait(SECONDS)


@pytest.mark.usefixtures("called")
def test_an_interrupt_ends_a_stream(client: BlockingKernelClient, api: Fake) -> None:
    code = """
import os, signal, threading
for event in ask(Client(), "endless", stream=True):
    if word_of(event):
        signal.raise_signal(signal.SIGINT)
"""
    assert execute(client, code).error == "KeyboardInterrupt"
    run(client, "import sys; sys.last_value = sys.last_exc = None")
    run(client, "del event; import gc; gc.collect()")
    assert api.gone.wait(SECONDS)


@pytest.mark.usefixtures("called")
def test_many_requests_at_once(client: BlockingKernelClient) -> None:
    code = f"""
from concurrent.futures import ThreadPoolExecutor
shared = Client()
with ThreadPoolExecutor({TOGETHER}) as pool:
    answers = list(pool.map(lambda _: text_of(ask(shared, "together")), range({TOGETHER})))
import asyncio
shared = AsyncClient()
answers += map(text_of, await asyncio.gather(*[ask(shared, "together")] * 0,
    *(ask(shared, "together") for _ in range({TOGETHER}))))
print(len(answers), set(answers))
"""
    assert run(client, code) == f"{2 * TOGETHER} {{'hello'}}\n"
