"""Sandboxes for MCP clients: a server over stdio and Streamable HTTP, on the ``mcp`` SDK."""
