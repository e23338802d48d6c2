"""Shared by the tests of kernels in an engine."""

from __future__ import annotations

import json
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager

from ..jupyter.helpers import execute

OUTPUTS = "/mnt/user-data/outputs"


def sandbox_of(manager: KernelManager) -> Any:
    return manager.provisioner._kernel.sandbox  # type: ignore[union-attr]


def ask(client: BlockingKernelClient, code: str) -> Any:
    """Return the value of an expression that the kernel evaluates; it has to be JSON."""
    answer = execute(client, f"import json, os; print(json.dumps({code}))")
    assert answer.status == "ok", answer.reply["content"]
    return json.loads(answer.text)
