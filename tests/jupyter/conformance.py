"""jupyter_kernel_test's checks, on a machine that does other things as well."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from typing import Any

from .helpers import SECONDS

# jsonschema checks IRIs with it, and no message of Jupyter has one. It compiles 38 grammars when it
# is imported: two seconds in each process of a run. To jsonschema it is not installed.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
import jupyter_kernel_test  # noqa: E402

if sys.modules["rfc3987_syntax"] is None:
    del sys.modules["rfc3987_syntax"]


class Conformance(jupyter_kernel_test.KernelTests):
    __test__ = False

    @classmethod
    def setUpClass(cls) -> None:
        """Start in an empty folder: a Docker engine gets a copy of the notebook's folder."""
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        with contextlib.chdir(folder):
            super().setUpClass()

    def execute_helper(self, *arguments: Any, **options: Any) -> Any:
        """Wait longer for each output than the package, which allows a tenth of a second."""
        channel = self.kc.iopub_channel

        def get_msg(timeout: float) -> Any:
            return get_soon(timeout=SECONDS)

        get_soon, channel.get_msg = channel.get_msg, get_msg  # type: ignore[method-assign]
        try:
            return super().execute_helper(*arguments, **options)
        finally:
            channel.get_msg = get_soon  # type: ignore[method-assign]

    def flush_channels(self) -> None:
        """Read all messages of earlier requests before a check sends the next one.

        The package's own method waits a tenth of a second for them, and fails at later ones, such
        as answers of a slow kernel to repeated requests.
        """
        asked = self.kc.kernel_info()
        while self.kc.get_shell_msg(timeout=SECONDS)["parent_header"].get("msg_id") != asked:
            pass
        state = ""
        while state != "idle":
            message = self.kc.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == asked:
                state = message["content"].get("execution_state", "")


class WelcomeConformance(jupyter_kernel_test.IopubWelcomeTests):
    __test__ = False
