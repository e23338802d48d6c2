"""jupyter_kernel_test's checks, on a machine that does other things as well."""

from __future__ import annotations

from typing import Any

import jupyter_kernel_test

from .helpers import SECONDS


class Conformance(jupyter_kernel_test.KernelTests):
    __test__ = False

    def execute_helper(self, *arguments: Any, **options: Any) -> Any:
        """The package's own gives each output a tenth of a second to follow the one before it."""
        channel = self.kc.iopub_channel

        def get_msg(timeout: float) -> Any:
            return get_soon(timeout=SECONDS)

        get_soon, channel.get_msg = channel.get_msg, get_msg  # type: ignore[method-assign]
        try:
            return super().execute_helper(*arguments, **options)
        finally:
            channel.get_msg = get_soon  # type: ignore[method-assign]

    def flush_channels(self) -> None:
        """Before a check asks something: take all that belongs to what was asked before.

        The package's own waits a tenth of a second for that, and fails at what comes later, as
        would the answers to those who asked a kernel that was slow to start again and again.
        """
        asked = self.kc.kernel_info()
        while self.kc.get_shell_msg(timeout=SECONDS)["parent_header"].get("msg_id") != asked:
            pass
        state = ""
        while state != "idle":
            message = self.kc.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == asked:
                state = message["content"].get("execution_state", "")
