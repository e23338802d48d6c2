"""APIs whose clients read a variable, and how these clients send a key. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from gvisor_kernel.egress.kinds import DEFAULT_HEADER, SECRET_MARK


@dataclass(frozen=True)
class KnownApi:
    """``variable``: what its client reads an address from; ``path``: the end of that address.
    ``key``: the variable without which the client refuses to start."""

    host: str
    variable: str
    path: str = ""
    key: str | None = None
    header: str = DEFAULT_HEADER


KNOWN_APIS = (
    KnownApi("api.openai.com", "OPENAI_BASE_URL", "/v1", "OPENAI_API_KEY"),
    KnownApi(
        "api.anthropic.com",
        "ANTHROPIC_BASE_URL",
        key="ANTHROPIC_API_KEY",
        header=f"x-api-key: {SECRET_MARK}",
    ),
    KnownApi("huggingface.co", "HF_ENDPOINT"),
    KnownApi("api.github.com", "GITHUB_API_URL"),
)


def find_api_of_host(url: str) -> KnownApi | None:
    """Return the API that is at the host of ``url``."""
    host = (urlsplit(url).hostname or "").lower()
    return next((api for api in KNOWN_APIS if api.host == host), None)


def find_api_of_variable(variable: str | None) -> KnownApi | None:
    """Return the API whose client reads ``variable``: another server may speak it, too."""
    return next((api for api in KNOWN_APIS if api.variable == variable), None)
