"""By which door a kernel is started: each names its own way to give it routes. Only data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Door:
    """``remedy``: what gives a kernel a network that has none. It is part of a status line: ASCII,
    at most 120 characters. ``giving``: what gives it the route NAME.
    """

    remedy: str
    giving: str


JUPYTER = Door(
    "set c.GVisorProvisioner.egress to give it packages or an API",
    'c.GVisorProvisioner.egress = ["NAME"], or gvisor-kernel install --egress NAME,',
)
PROGRAM = Door(
    'pass egress=["packages"] to Sandbox to give it packages', 'Sandbox(egress=["NAME"])'
)
MCP = Door(
    'ask the user to start this MCP server with --set egress=["packages"]',
    'gvisor-kernel mcp --set egress=["NAME"], which is the user\'s command,',
)
