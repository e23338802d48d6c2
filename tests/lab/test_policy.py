"""What closes a server: also in an environment below a path with brackets, in which Jupyter looks
for extensions by a pattern."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from traitlets.config import Config

from gvisor_kernel.lab.policy import harden

LOOK = """
import json
from jupyter_core.paths import jupyter_path
from jupyterlab_server.config import get_federated_extensions
from traitlets.config import Config
from gvisor_kernel.cli.checks.jupyter import check_provisioner
from gvisor_kernel.lab.policy import harden

config = Config()
harden(config)
print(json.dumps({
    "jupyter lab": list(get_federated_extensions(jupyter_path("labextensions"))),
    "ours": list(get_federated_extensions(config.LabApp.extra_labextensions_path)),
    "doctor": [check_provisioner().state, check_provisioner().fact],
}))
"""


def test_the_extension_is_found_below_brackets_or_doctor_says_that_it_is_not(
    tmp_path: Path,
) -> None:
    environment = tmp_path / "a [1]"
    environment.symlink_to(sys.prefix)
    argv = [environment / "bin" / "python", "-c", LOOK]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert "gvisor-kernel" not in found["jupyter lab"]
    assert "gvisor-kernel" in found["ours"]
    state, fact = found["doctor"]
    assert state == "warning"
    assert f"jupyter lab finds no extension in {environment}" in fact


@pytest.mark.parametrize(("value", "held"), [("new files", "ask"), ("off", "off"), ("", "ask")])
def test_nothing_is_applied_without_a_question(value: str, held: str) -> None:
    config = Config({"GVisorProvisioner": {"apply": value} if value else {}})
    harden(config)
    assert config.GVisorProvisioner.apply == held
