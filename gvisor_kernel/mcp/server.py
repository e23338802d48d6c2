"""The server: what answers the requests of MCP clients, whatever brings them.

It finds the client of a request, bounds its calls at once, and turns errors into results. The SDK
does the protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
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

from gvisor_kernel import __version__
from gvisor_kernel.errors import GvisorKernelError, SandboxError
from gvisor_kernel.mcp import resources, skill_files
from gvisor_kernel.mcp.clients import STATELESS, Client, Clients
from gvisor_kernel.mcp.displays import make_plain
from gvisor_kernel.mcp.file_tools import FILE_TOOLS, UPLOAD
from gvisor_kernel.mcp.greeting import NAME, TITLE
from gvisor_kernel.mcp.results import make_failure
from gvisor_kernel.mcp.situation import INSTRUCTIONS, Situation
from gvisor_kernel.mcp.tools import CODE_TOOLS, Call, Tool

log = logging.getLogger(__name__)

STDIO = "stdio"
"""The key of the one client over stdio."""
SESSION_HEADER = "mcp-session-id"


class McpServer:
    """Answers requests for the sandboxes of ``clients``."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._tools = {tool.name: tool for tool in (*CODE_TOOLS, *FILE_TOOLS)}
        if clients.settings.upload_roots:
            self._tools[UPLOAD.name] = UPLOAD
        self.server: Server[Any] = Server(
            NAME,
            version=__version__,
            title=TITLE,
            instructions=Situation(clients.settings).fill(INSTRUCTIONS),
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_completion=self._complete,
        )

    def _find_client(self, context: ServerRequestContext[Any]) -> Client:
        request = context.request
        if request is None:
            return self._clients.get(STDIO)
        if context.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            # The SDK has checked that it has given this id to this client.
            key = request.headers.get(SESSION_HEADER)
            if key:
                return self._clients.get(key)
        return self._clients.get(STATELESS, is_stateless=True)

    @contextmanager
    def _counted(self, client: Client) -> Iterator[None]:
        limit = client.sessions.limits.calls
        if client.sessions.is_stateless:
            limit *= 4  # they are several clients
        if client.calls >= limit:
            raise SandboxError(
                f"There are {client.calls} calls at once, which is the limit.",
                "wait for the answers to earlier calls.",
            )
        client.calls += 1
        try:
            yield
        finally:
            client.calls -= 1

    async def _list_tools(
        self, context: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        is_stateless = self._find_client(context).sessions.is_stateless
        situation = Situation(self._clients.settings, is_stateless)
        return ListToolsResult(tools=[tool.describe(situation) for tool in self._tools.values()])

    async def _call_tool(
        self, context: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"There is no tool {params.name[:80]!r}.")
        client = self._find_client(context)
        call = Call(client.sessions, self._clients.settings, context.session.report_progress)
        try:
            with self._counted(client):
                return await self._run(tool, call, params)
        except GvisorKernelError as error:
            return make_failure(error)

    async def _run(self, tool: Tool, call: Call, params: CallToolRequestParams) -> CallToolResult:
        arguments = tool.read_arguments(params.arguments)
        try:
            return await tool.run(call, arguments)
        except (OSError, RuntimeError) as error:
            # A sandbox that ends in the middle of a call; its text may name files of the host.
            log.warning("%s failed: %s", tool.name, error)
            raise SandboxError(
                f"{tool.name} failed, as its sandbox could not be used.",
                "call sandbox_restart_session, or go on in another session.",
            ) from error

    async def _list_resources(
        self, context: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        client = self._find_client(context)
        with self._refused(), self._counted(client):
            return ListResourcesResult(resources=await resources.list_resources(client.sessions))
        raise AssertionError

    async def _list_templates(
        self, context: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=resources.list_templates())

    async def _read_resource(
        self, context: ServerRequestContext[Any], params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        client = self._find_client(context)
        with self._refused({"uri": str(params.uri)}), self._counted(client):
            contents = await resources.read_resource(client.sessions, str(params.uri))
            return ReadResourceResult(contents=[contents])
        raise AssertionError

    async def _list_prompts(
        self, context: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListPromptsResult:
        return ListPromptsResult(prompts=await skill_files.list_prompts())

    async def _get_prompt(
        self, context: ServerRequestContext[Any], params: GetPromptRequestParams
    ) -> GetPromptResult:
        with self._refused():
            return await skill_files.get_prompt(params.name, params.arguments or {})
        raise AssertionError

    async def _complete(
        self, context: ServerRequestContext[Any], params: CompleteRequestParams
    ) -> CompleteResult:
        client = self._find_client(context)
        with self._refused(), self._counted(client):
            found = await resources.complete(client.sessions, params)
            return CompleteResult(completion=found)
        raise AssertionError

    @contextmanager
    def _refused(self, data: dict[str, str] | None = None) -> Iterator[None]:
        """Turn an error into one of the protocol, with ``data`` for programs."""
        try:
            yield
        except GvisorKernelError as error:
            text = make_plain(f"{error.fact} {error.hint}").strip()
            raise MCPError(INVALID_PARAMS, text, data) from error
