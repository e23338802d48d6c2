"""The variables of the server that the clients of engines get. Nodes get none of them."""

from __future__ import annotations

from collections.abc import Mapping

COMMON = ("HOME", "PATH", "USER", "LOGNAME")
OWN: Mapping[str, tuple[str, ...]] = {
    "slurm": ("SLURM_CONF", "SLURM_CONF_SERVER", "LD_LIBRARY_PATH"),
    "ssh": ("SSH_AUTH_SOCK", "KRB5CCNAME"),
}
"""Variables that a runtime's clients get beside the common ones."""
ALL = tuple(dict.fromkeys((*COMMON, *(name for names in OWN.values() for name in names))))


def client_variables(runtime: str, server: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a client of the runtime ``runtime``, from the server's."""
    return {name: server[name] for name in (*COMMON, *OWN.get(runtime, ())) if name in server}
