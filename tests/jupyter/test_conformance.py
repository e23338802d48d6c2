"""Runs jupyter_kernel_test, Jupyter's checks for kernel authors, against the kernel."""

from __future__ import annotations

import pytest

from ..docker.dockerd import needs_dockerd
from ..nodes.cluster import needs_slurm
from ..nodes.sshd import needs_sshd
from ..sweeps import needs_all
from ..world import kernelspec_of
from .conformance import Conformance, WelcomeConformance
from .helpers import KERNEL, SANDBOXED, SECONDS


class Checks(Conformance):
    __test__ = False

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]  # noqa: RUF012 - as the suite does
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = [  # noqa: RUF012
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data = [  # noqa: RUF012
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
        {
            "code": "from IPython.display import Math, display; display(Math('x'))",
            "mime": "text/latex",
        },
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = (
        "tail",
        "search",
    )  # IPython calls the current session 0 in a range
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


@needs_all  # a cold kernel is reached like a restored one
@pytest.mark.once
class TestDirect(Checks):
    __test__ = True
    kernel_name = kernelspec_of("direct") if SANDBOXED else KERNEL


@needs_all  # kernels of other languages, whose suites are beside this one, are reached so
@pytest.mark.once
@pytest.mark.skipif(not SANDBOXED, reason="the local kernel is started in one way only")
class TestRelay(Checks):
    __test__ = True
    kernel_name = kernelspec_of("relay")


@pytest.mark.usefixtures("shared_snapshot")
@pytest.mark.skipif(not SANDBOXED, reason="the local kernel is started in one way only")
class TestRestored(Checks):
    __test__ = True
    kernel_name = kernelspec_of("restored")


@pytest.mark.usefixtures("dockerd")
class TestDocker(Checks):
    __test__ = True
    pytestmark = needs_dockerd
    kernel_name = kernelspec_of("docker")


SSH_MARKS = [*needs_sshd, needs_all]


@pytest.mark.usefixtures("sshd")
class TestSsh(Checks):
    """Only with ``--all``: the same link as here, over a stream that other tests look at."""

    __test__ = True
    pytestmark = SSH_MARKS
    kernel_name = kernelspec_of("ssh")


SLURM_MARKS = [*needs_slurm, needs_all]


@pytest.mark.usefixtures("cluster")
class TestSlurm(Checks):
    """Only with ``--all``: the same helper and the same stream as over SSH."""

    __test__ = True
    pytestmark = SLURM_MARKS
    kernel_name = kernelspec_of("slurm")


class TestWelcome(WelcomeConformance):
    __test__ = True
    kernel_name = KERNEL
    support_iopub_welcome = True

    @classmethod
    def tearDownClass(cls) -> None:
        # The welcome comes before the kernel is up. If a client is stopped before its heartbeat
        # has begun, the heartbeat never stops (jupyter_client 8.10).
        cls.kc.wait_for_ready(timeout=SECONDS)
        super().tearDownClass()
