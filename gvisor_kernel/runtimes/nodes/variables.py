"""The variables of the server that the clients of engines get. Nodes get none of them."""

from __future__ import annotations

from collections.abc import Mapping

from gvisor_kernel.runtimes.clients import COMMON_VARIABLES, SSH_VARIABLES, pick

VARIABLES: Mapping[str, tuple[str, ...]] = {
    "slurm": (*COMMON_VARIABLES, "SLURM_CONF", "SLURM_CONF_SERVER", "LD_LIBRARY_PATH"),
    "ssh": SSH_VARIABLES,
}


def client_variables(runtime: str, server: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a client of the runtime ``runtime``, from the server's."""
    return pick(VARIABLES.get(runtime, COMMON_VARIABLES), server)
