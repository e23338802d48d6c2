"""The SDK's server with our tools, resources and prompts, whatever brings their requests.

It finds the client of a request, bounds its calls at once, and turns errors into results.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.mcpserver.tools import Tool
from mcp.server.stdio import stdio_server
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError

from gvisor_kernel import __version__
from gvisor_kernel.errors import GvisorKernelError, SandboxError
from gvisor_kernel.mcp import resources
from gvisor_kernel.mcp.checkpoint_tools import CHECKPOINT_TOOLS
from gvisor_kernel.mcp.file_tools import FILE_TOOLS, sandbox_upload_file
from gvisor_kernel.mcp.results import make_failure, make_plain
from gvisor_kernel.mcp.service import STATELESS, STDIO, Client, Clients
from gvisor_kernel.mcp.settings import INSTRUCTIONS, Wording
from gvisor_kernel.mcp.stdio import NAME, TITLE, Wire
from gvisor_kernel.mcp.tools import CODE_TOOLS, Call, describe_tool

log = logging.getLogger(__name__)

Context = ServerRequestContext[Any]
Page = PaginatedRequestParams | None
SESSION_HEADER = "mcp-session-id"
MAX_FIELD = 80
"""Characters of a wrong argument's name that an error repeats."""


def make_server(clients: Clients) -> Server[Any]:
    """Return a server for the sandboxes of ``clients``."""
    settings = clients.settings
    tools = {tool.name: tool for tool in (*CODE_TOOLS, *CHECKPOINT_TOOLS, *FILE_TOOLS)}
    if settings.upload_roots:
        tools[sandbox_upload_file.name] = sandbox_upload_file

    def find_client(context: Context) -> Client:
        if context.request is None:
            return clients.get(STDIO)
        if context.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            # The SDK has checked that it has given this id to this client.
            return clients.get(context.request.headers.get(SESSION_HEADER) or STATELESS)
        return clients.get(STATELESS)

    async def list_tools(context: Context, params: Page) -> ListToolsResult:
        wording = Wording(settings, find_client(context).sessions.is_stateless)
        return ListToolsResult(tools=[describe_tool(tool, wording) for tool in tools.values()])

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        tool = tools.get(params.name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"There is no tool {params.name[:80]!r}.")
        try:
            with find_client(context).calling() as sessions:
                call = Call(sessions, settings, context.session.report_progress)
                return await run_tool(tool, call, params.arguments or {})
        except GvisorKernelError as error:
            return make_failure(error)

    async def list_resources(context: Context, params: Page) -> ListResourcesResult:
        with refusing(), find_client(context).calling() as sessions:
            return ListResourcesResult(resources=await resources.list_resources(sessions))
        raise AssertionError

    async def list_templates(context: Context, params: Page) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=resources.TEMPLATES)

    async def read_resource(
        context: Context, params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        with refusing({"uri": params.uri}), find_client(context).calling() as sessions:
            contents = await resources.read_resource(sessions, params.uri)
            return ReadResourceResult(contents=[contents])
        raise AssertionError

    async def list_prompts(context: Context, params: Page) -> ListPromptsResult:
        return ListPromptsResult(prompts=await resources.list_prompts())

    async def get_prompt(context: Context, params: GetPromptRequestParams) -> GetPromptResult:
        with refusing():
            return await resources.get_prompt(params.name, params.arguments or {})
        raise AssertionError

    async def complete(context: Context, params: CompleteRequestParams) -> CompleteResult:
        with refusing(), find_client(context).calling() as sessions:
            return CompleteResult(completion=await resources.complete(sessions, params))
        raise AssertionError

    return Server(
        NAME,
        version=__version__,
        title=TITLE,
        instructions=Wording(settings).fill(INSTRUCTIONS),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
    )


@contextmanager
def refusing(data: dict[str, str] | None = None) -> Iterator[None]:
    """Turn an error into one of the protocol, with ``data`` for programs."""
    try:
        yield
    except GvisorKernelError as error:
        text = make_plain(f"{error.fact} {error.hint}").strip()
        raise MCPError(INVALID_PARAMS, text, data) from error


async def run_tool(tool: Tool, call: Call, given: dict[str, Any]) -> CallToolResult:
    """Call a tool.

    :raises GvisorKernelError: the arguments are wrong, or it fails
    """
    arguments = read_arguments(tool, given)
    try:
        result: CallToolResult = await tool.fn(call, **arguments)
    except (OSError, RuntimeError) as error:
        # A sandbox that ends in the middle of a call; its text may name files of the host.
        log.warning("%s failed: %s", tool.name, error)
        raise SandboxError(
            f"{tool.name} failed, as its sandbox could not be used.",
            "call sandbox_restart_session, or go on in another session.",
        ) from error
    return result


def read_arguments(tool: Tool, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call; numbers may have been given as text.

    :raises SandboxError: they are wrong
    """
    known = tool.parameters["properties"]
    wrong = [
        f"{name[:MAX_FIELD]}: There is no such argument" for name in given if name not in known
    ]
    if not wrong:
        try:
            return tool.fn_metadata.validate_arguments(given)
        except ValidationError as error:
            wrong = [
                f"{'.'.join(map(str, item['loc']))[:MAX_FIELD]}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False)
            ]
    raise SandboxError(
        f"The arguments of {tool.name} are wrong. {'; '.join(wrong[:5])}.",
        f"call it again; its arguments are: {', '.join(known) or 'none'}.",
    )


async def serve_stdio(clients: Clients, wire: Wire) -> None:
    """Serve the client at the other end of ``wire`` until it leaves, or the wire is stopped."""
    server = make_server(clients)
    reading, writing = map(anyio.wrap_file, wire.open_texts())
    async with stdio_server(reading, writing) as (messages, answers):
        await server.run(messages, answers, server.create_initialization_options())
