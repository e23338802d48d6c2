"""Command lines of the engines, and what their words mean to a person."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from gvisor_kernel import __version__
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.runtimes import clients
from gvisor_kernel.runtimes.nodes.checks import check_specs
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.runtime import make_engine
from gvisor_kernel.runtimes.nodes.settings import Slurm as SlurmSettings
from gvisor_kernel.runtimes.nodes.settings import Ssh as SshSettings
from gvisor_kernel.runtimes.nodes.slurm import Slurm, find_waiting_job
from gvisor_kernel.runtimes.nodes.ssh import Ssh
from gvisor_kernel.runtimes.nodes.variables import VARIABLES, client_variables
from gvisor_kernel.runtimes.state import lifeline

SLURM = Slurm(
    SandboxSpec(
        memory_limit=512 * MIB,
        cpu_shares=1500,
        own=SlurmSettings(partition="k", gres="gpu:1", arguments=("--constraint=a",), python="/p"),
    )
)
SSH = Ssh(SandboxSpec(own=SshSettings(hosts=("a", "b"), config="/c")), "/state/ssh", {"a": 2})


def test_job_has_limits_and_no_variables() -> None:
    argv = SLURM.start_argv("", ["helper"])
    for word in ("--mem=832M", "--cpus-per-task=2", "--export=NONE", "--unbuffered", "--ntasks=1"):
        assert word in argv
    assert argv[-1] == "helper"
    assert {"--partition=k", "--gres=gpu:1", "--constraint=a"} <= set(argv)
    assert SLURM.helper("serve")[0] == "/p"


def test_command_for_a_node_names_it() -> None:
    argv = SLURM.ask_argv("n7", ["sweep"])
    assert "--nodelist=n7" in argv
    assert "--constraint=a" not in argv


def test_snapshot_is_made_by_a_job_of_its_own() -> None:
    """With the memory and CPUs of a kernel's job, on its node, without its GPU; never urgent."""
    argv = SLURM.build_argv("n7", ["build"])
    limits = {"--mem=832M", "--cpus-per-task=2", "--nodelist=n7", "--partition=k", "--nice"}
    assert limits <= set(argv)
    assert any(word.startswith("--immediate=") for word in argv)
    assert "--gres=gpu:1" not in argv
    assert argv[-1] == "build"
    assert SSH.build_argv("a", ["build"]) == SSH.start_argv("a", ["build"])


@pytest.mark.parametrize("job", ["", "5; rm -rf /", "--all", "5\n6"])
def test_odd_job_is_not_ended(job: str) -> None:
    assert SLURM.end_argv(job) == []


def test_client_asks_nothing_and_forwards_nothing() -> None:
    argv = SSH.start_argv("a", ["python", "-c", "print('x y')"])
    for word in ("-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oForwardAgent=no", "-T"):
        assert word in argv
    assert "-oRemoteCommand=none" in argv  # with one in the configuration, ssh refuses a command
    assert argv[-3:] == ["a", "--", "python -c 'print('\"'\"'x y'\"'\"')'"]


def test_hosts_with_fewest_kernels_come_first() -> None:
    assert SSH.hosts() == ["b", "a"]


def test_connection_is_shared_by_one_name_only() -> None:
    def socket_of(engine: Ssh, host: str) -> str:
        return next(w for w in engine.start_argv(host, ["x"]) if w.startswith("-oControlPath="))

    other = Ssh(SandboxSpec(own=SshSettings(hosts=("a",), config="/d")), "/state/ssh", {})
    assert len({socket_of(SSH, "a"), socket_of(SSH, "b"), socket_of(other, "a")}) == 3
    far = Ssh(SandboxSpec(own=SshSettings(hosts=("a",))), "/x" * 60, {})
    assert socket_of(far, "a") == "-oControlPath=none"


@pytest.mark.parametrize("control", ["/a b", "/${HOME}", '/a"b', "/a\\b", "/" + "ü" * 40])
def test_connection_is_not_shared_where_ssh_would_read_another_path(control: str) -> None:
    engine = Ssh(SandboxSpec(own=SshSettings(hosts=("a",))), control, {})
    assert {"-oControlPath=none", "-oControlMaster=no"} <= set(engine.start_argv("a", ["x"]))


def test_engines_of_a_killed_server_have_their_variables() -> None:
    """What removes the rest starts the same clients, without the engine."""
    server = dict.fromkeys(["KRB5CCNAME", "SSH_AUTH_SOCK", "SLURM_CONF", "SLURM_CONF_SERVER"], "x")
    for engine in (SSH, SLURM):
        assert engine.environment(server) == client_variables(engine.name, server)
    assert {**SSH.environment(server), **SLURM.environment(server)} == server
    assert set(server) <= {*lifeline.KEPT, *VARIABLES["slurm"], *VARIABLES["ssh"]}


@pytest.mark.parametrize(
    ("engine", "words", "status", "meaning"),
    [
        (SLURM, "slurmstepd: error: *** STEP 1.0 ON n1 CANCELLED AT 2026 ***", 143, "cancelled"),
        (SLURM, "slurmstepd: error: Step 1.0 exceeded memory limit (9 > 8), killed", 137, "memory"),
        (
            SLURM,
            "slurmstepd: error: *** JOB 5 CANCELLED DUE TO TIME LIMIT ***",
            143,
            "time is over",
        ),
        (SLURM, "srun: error: Node failure on n1", 1, "node has failed"),
        (
            SLURM,
            "srun: error: Unable to contact slurm controller (connect failure)",
            1,
            "controller",
        ),
        (SLURM, "srun: error: _establish_config_source: failed to fetch config", 1, "controller"),
        (SLURM, "slurmstepd-n1: error: execve(): /p: No such file or directory", 2, "at that path"),
        (SLURM, "srun: error: Invalid --time specification", 255, "cannot run such a job"),
        (SLURM, "srun: Job allocation 7 has been revoked", 1, "cancelled"),
        (SLURM, "", 1, "srun ended with status 1"),
        (SLURM, "", -9, "ended by signal 9"),
        (SSH, "me@a: Permission denied (publickey).", 255, "does not let this user in"),
        (SSH, "Host key verification failed.", 255, "key is not the one"),
        (SSH, "ssh: connect to host a port 22: Connection refused", 255, "does not answer"),
        (SSH, "client_loop: send disconnect: Broken pipe", 255, "connection was lost"),
        (SSH, "", 255, "connection was lost"),
        (SSH, "sh: 1: /p: not found", 127, "no gvisor-kernel at that path"),
        (SSH, "bash: module: command not found", 255, "connection was lost"),
        (SSH, "", -9, "ended by signal 9"),
    ],
)
def test_words_of_a_client_are_explained(
    engine: Engine, words: str, status: int, meaning: str
) -> None:
    assert meaning in engine.explain(words.splitlines(), status, "a").fact


LIBRARIES = list(Path("/usr/lib").glob("*/slurm-wlm/libslurmfull.so"))
SLURMS_WORDS = {
    "account": [
        "Invalid account or account/partition combination specified",
        "Invalid qos specification",
        "Invalid or unknown association",
        "Invalid wckey specification",
        "Requested account has breached requested QOS usage threshold",
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
    ],
    "partition": [
        "invalid partition specified: %s",
        "Invalid partition name specified",
        "No partition specified or system default partition",
        "User's group not permitted to use this partition",
        "Requested nodes not in this partition",
        "Required partition not available (inactive or drain)",
        "Requested partition configuration not available now",
    ],
    '"time"': [
        "Requested time limit is invalid (missing or exceeds some limit)",
        "Time limit specification required, but not provided",
        "Invalid --time specification",
    ],
    '"gres"': [
        "Invalid generic resource (gres) specification",
        "Invalid GRES specification (with and without type identification)",
        "Invalid Trackable RESource (TRES) specification",
    ],
    '"arguments"': [
        "Invalid feature specification",
        "Invalid license specification",
        "Invalid node name specified",
        "Requested reservation is invalid",
        "Access denied to requested reservation",
        "Invalid --signal specification",
    ],
    "memory_limit": [
        "Requested node configuration is not available",
        "More processors requested than permitted",
        "Memory required by task is not available",
        "Required node not available (down, drained or reserved)",
    ],
}
"""What Slurm says of a job that it refuses, by a word of the hint."""


@pytest.mark.parametrize(
    ("hint", "words"), [(hint, words) for hint, texts in SLURMS_WORDS.items() for words in texts]
)
def test_hint_for_a_job_that_slurm_refuses_names_the_setting(hint: str, words: str) -> None:
    for text in (words, f"Unable to allocate resources: {words}"):
        trouble = SLURM.explain([f"srun: error: {text.replace('%s', 'x')}"], 1, "")
        assert "cannot run such a job" in trouble.fact
        assert hint in trouble.hint, trouble


@pytest.mark.skipif(not LIBRARIES, reason="Slurm is not installed: install slurm-client")
def test_words_of_refusals_are_slurms_own() -> None:
    content = LIBRARIES[0].read_bytes()
    # The command srun itself says the first of these.
    texts = [text for texts in SLURMS_WORDS.values() for text in texts if "%s" not in text]
    assert [text for text in texts if text.encode() not in content] == []


def test_waiting_job_is_found_until_it_has_resources() -> None:
    words = ["srun: job 17 queued and waiting for resources"]
    assert find_waiting_job(words) == "17"
    words.append("srun: job 17 has been allocated resources")
    assert find_waiting_job(words) == ""


def test_doctor_asks_each_host_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many kernelspecs name it. Another configuration may lead to another machine."""
    asked = tmp_path / "asked"
    answer = json.dumps({"node": "n", "release": __version__, "error": ""})
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\necho \"$*\" >>{asked}\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    settings = [("a", "b"), ("b", "c"), ("b",)]
    specs = [SandboxSpec(runtime="ssh", own=SshSettings(hosts=hosts)) for hosts in settings]
    specs.append(SandboxSpec(runtime="ssh", own=SshSettings(hosts=("b",), config="/c")))
    names = [check.name for check in check_specs(make_engine, specs)]
    assert sorted(names) == ["ssh a", "ssh b", "ssh b", "ssh c"]
    lines = asked.read_text().splitlines()
    assert len(set(lines)) == len(lines) == 4


def test_doctor_says_what_a_node_lacks_and_where_to_do_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are those of the node, where there is no runsc."""
    code = "from gvisor_kernel.node import __main__ as node; import shutil, sys;"
    code += "shutil.which = lambda *_, **__: None; sys.exit(node.main(['check']))"
    program = tmp_path / "ssh"
    answer = shlex.join([sys.executable, "-c", code])
    program.write_text(f"#!/bin/sh\nexec {answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    spec = SandboxSpec(runtime="ssh", own=SshSettings(hosts=("a",)))
    (check,) = check_specs(make_engine, [spec])
    assert check.state == "failed"
    assert check.fact.endswith(": The program runsc (gVisor) is not installed.")
    assert check.fix.startswith("on that node, run `gvisor-kernel runsc install`")


def test_what_a_node_prints_without_end_is_not_kept() -> None:
    program = "head -c 20000000 /dev/zero; echo; echo '{}'; echo error >&2; exit 3"
    done = clients.run(["sh", "-c", program], {"PATH": os.environ["PATH"]})
    assert (clients.last_line(done), done.errors, done.status) == ("{}", "error\n", 3)
    assert len(done.output) <= clients.MAX_WORDS
    assert clients.run(["/no/such/program"], {}).status == 1
