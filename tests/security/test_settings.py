"""Settings: a kernelspec or a client widens nothing, and an error names a wrong setting."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jupyter_client import KernelManager
from traitlets.config import Config

from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.settings import SETTINGS, SandboxSpec
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.errors import LaunchError, SettingError, UnknownSetting
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner, choose_folder
from gvisor_kernel.runtimes.state.beginning import begin
from gvisor_kernel.spec.identity import new_identity

from ..jupyter.helpers import KERNEL, execute, running_kernel
from ..sweeps import ALL
from ..world import PROJECT, World
from .inside import make_request, outputs_of

PATHS = [
    *("", " ", ".", "..", "../..", "a/../..", "/", "//", "///etc", "/..", "/etc/..", "/etc/../etc"),
    *("/proc", "/proc/self/root", "/proc/1/root", "/sys", "/dev", "/dev/null", "/dev/shm"),
    *("/etc/passwd", "/nonexistent", "/nonexistent/deeper", "~nobody-at-all", "~nobody-at-all/x"),
    *("a:b", "/a:/b", "/a,rw", "a\nb", "/a\nb", "a\0b", "/a\0", "\0", "a\tb", "a\x1b[31mb", "\x7f"),
    *("\ud800", "/\udcff", "a" * 300, "/" + "a" * 300, "a/" * 600, "/a" * 3000, "é" * 200),
    *("\u202egpj", "\u200b", "\ufeff", "$HOME", "$(id)", "`id`", "; rm -rf /", "| cat", "-rf"),
    *("file:///etc", "http://localhost/", "{connection_file}", "%s%n", "C:\\x", "\\\\host\\x"),
]
NUMBERS: list[object] = [
    *(-1, 0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**128, -(2**63), 10**5000, -(10**5000)),
    *(0.0, -0.0, 0.5, 1e308, float("inf"), float("-inf"), float("nan"), 1j),
    *("0", "-1", "1e9", "0x10", "1_000", "१२", "4K4", "4\u212a", "9" * 39, "1" * 400, "-0", "+4G"),
    *("4G\n", "\n4G", "4 G", "4  G", "4P", "4GG", ".5G", "4.G", "1.5.5G", "nan", "inf", "4G;"),
]
OTHERS: list[object] = [
    *(None, True, False, b"", b"4G", [], [[]], {}, set(), (), object(), Ellipsis, print, type),
    *([None], [0], ["", ""], [b"x"], ["a\0"], ["\ud800"], [{}], [[[[]]]], {"a": {}}, {1: 2}),
    *(
        ["A=b"],
        ["PATH"],
        ["KERNEL_X"],
        ["a" * 100_000],
        ["{connection_file}" * 2000],
        ["x"] * 10**5,
    ),
    *([{"source": "/etc"}], [{"source": "/etc", "target": "/etc"}], [{"target": "/x"}]),
    *([{"source": "/", "target": "/x"}], [{"source": "/proc", "target": "/x"}], ["/etc:/x"]),
    *([{"source": "/etc", "target": "/x", "read_only": False}], [{"source": 1, "target": 2}]),
    *(
        [{"source": "/etc", "target": "/x", "read_only": "no"}],
        [{"source": "/e\nc", "target": "/x"}],
    ),
    *([{"source": "/etc", "target": "/x"}] * 2, [{"source": "~nobody-at-all", "target": "/x"}]),
    *([{"source": "/" + "a" * 300, "target": "/x"}], [{"source": "/etc", "target": "/x\0"}]),
    *(
        [{"source": "/etc", "target": t}]
        for t in ("/usr/x", "/workspace", "/x/../etc", "x", "/a:b")
    ),
]
HOSTILE: list[object] = [*PATHS, *NUMBERS, *OTHERS]


def deep() -> list[Any]:
    """Return lists nested deeper than Python's recursion limit."""
    found: list[Any] = []
    for _ in range(5000):
        found = [found]
    return found


def judge(name: str, value: object) -> SettingError | None:
    """Return the SettingError for a value in a kernelspec; None if it is accepted."""
    try:
        SandboxSettings(**{name: value}).sandbox_spec()
    except SettingError as raised:
        error = raised
    else:
        return None
    said = str(error)
    assert error.setting.split(".")[0].split("[")[0] == name
    assert name in said
    assert "What to do: set it to" in said
    assert len(said) < 2000
    said.encode()  # it can be shown
    return error


@pytest.mark.parametrize("name", SETTINGS)
def test_hostile_values_are_refused(name: str) -> None:
    """At least fifty values are refused per setting, and fewer than half are accepted."""
    values = [*HOSTILE, deep()]
    refused = [value for value in values if judge(name, value) is not None]
    assert len(refused) >= 50
    accepted = [repr(value)[:80] for value in values if judge(name, value) is None]
    assert len(accepted) < len(values) / 2


ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=50)
    | st.binary(max_size=20)
    | st.sampled_from(PATHS)
    | st.builds("/{}".format, st.text(max_size=30))
    | st.builds("{}{}".format, st.integers(), st.sampled_from("KMGTkmgt \u212abB")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["source", "target", "read_only"]) | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@hypothesis_settings(
    max_examples=400 if ALL else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.sampled_from(list(SETTINGS)), ANY_VALUE)
@example("memory_limit", "5\u212a")
@example("skills", "~nobody-at-all")
@pytest.mark.once
def test_any_value_is_accepted_or_refused_cleanly(name: str, value: object) -> None:
    judge(name, value)


@hypothesis_settings(max_examples=200 if ALL else 20, deadline=None)
@given(st.text(max_size=30).filter(lambda name: name not in SETTINGS), ANY_VALUE)
def test_unknown_name_is_refused(name: str, value: object) -> None:
    """Any name that is not a setting gives UnknownSetting."""
    if name in ("config", "parent", "log", "kernel_id", "kernel_spec", "connection_info"):
        return  # names of jupyter_client, which do not affect a sandbox
    with pytest.raises(UnknownSetting):
        SandboxSettings(**{name: value}).sandbox_spec()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_unreadable_folders_are_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "public").mkdir(parents=True)
    closed.chmod(0)
    try:
        for name in ("uploads", "outputs", "skills"):
            assert judge(name, str(closed / "public" / "x")) is not None
        mounts = [{"source": str(closed / "public"), "target": "/x"}]
        assert judge("mounts", mounts) is not None
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize("outputs", ["work/data", "work", "link"])
def test_outputs_that_are_or_contain_the_uploads_are_refused(tmp_path: Path, outputs: str) -> None:
    uploads = tmp_path / "work" / "data"
    uploads.mkdir(parents=True)
    (tmp_path / "link").symlink_to(uploads)
    spec = SandboxSpec(uploads=str(uploads), outputs=str(tmp_path / outputs))
    named = re.escape(str(uploads))
    with pytest.raises(SettingError, match=rf"such as {named}/outputs: .* uploads, {named},"):
        outputs_of(spec, tmp_path)
    request = make_request(tmp_path)
    identity = new_identity("a kernel", spec, "a version", "")
    with (  # where outputs are copied
        pytest.raises(SettingError, match="the folder of uploads"),
        begin(spec, request, identity, {"runtime": "docker"}),
    ):
        pass
    for beside in (uploads / "outputs", tmp_path / "work" / "results"):
        assert outputs_of(replace(spec, outputs=str(beside)), tmp_path) == str(beside)


def test_kernel_starts_with_largest_limits() -> None:
    """The largest accepted values work: the host's kernel refuses none of them."""
    most = {
        "memory_limit": 2**60,
        "disk_limit": 2**60,
        "cpu_shares": 262144,
        "pids_limit": 4194304,
        "start_timeout": 3600,
    }
    with running_kernel(settings=most) as (_, client):
        assert execute(client, "6 * 7").result == "42"


# The administrator's limits hold, whoever writes the kernelspec.

GENEROUS = {"memory_limit": "64G", "cpu_shares": 262144, "pids_limit": 100_000, "disk_limit": "1T"}
FIXED: dict[str, Any] = {
    "memory_limit": 512 * MIB,
    "cpu_shares": 100,
    "pids_limit": 80,
    "disk_limit": 32 * MIB,
}


def spec_of(configured: dict[str, Any], stanza: dict[str, Any]) -> SandboxSpec:
    config = Config({"GVisorProvisioner": configured})
    return GVisorProvisioner(
        kernel_id="k", kernel_spec=None, parent=None, config=config, **stanza
    ).sandbox_spec()


LIMITS = sorted(name for name, setting in SETTINGS.items() if setting.both == "lower")


@pytest.mark.parametrize("name", LIMITS)
def test_kernelspec_cannot_raise_fixed_limit(name: str) -> None:
    assert getattr(spec_of({name: FIXED[name]}, {name: GENEROUS[name]}), name) == FIXED[name]


@pytest.mark.parametrize("name", LIMITS)
def test_kernelspec_can_lower_limit(name: str) -> None:
    less = {"memory_limit": "256M", "cpu_shares": 10, "pids_limit": 70, "disk_limit": "16M"}
    found = getattr(spec_of({name: FIXED[name]}, {name: less[name]}), name)
    assert found == getattr(spec_of({}, {name: less[name]}), name)
    assert found < FIXED[name]


@pytest.mark.parametrize("name", LIMITS)
def test_kernelspec_with_invalid_limit_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=name):
        spec_of({name: FIXED[name]}, {name: "lots"})


@pytest.mark.parametrize(
    ("name", "fixed", "wanted"),
    [
        ("mounts", [], [{"source": "/etc", "target": "/mnt/etc"}]),
        ("environment", [], ["SECRET"]),
        ("uploads", None, "/etc"),
        ("outputs", None, "/srv/results"),
        ("skills", None, "/srv/skills"),
        ("transcripts", True, False),
        ("command", [], ["/bin/sh", "{connection_file}"]),
        ("transport", "ipc", "tcp"),
        ("start_timeout", 10, 3600),
    ],
)
def test_kernelspec_cannot_change_fixed_setting(name: str, fixed: Any, wanted: Any) -> None:
    assert getattr(spec_of({name: fixed}, {name: wanted}), name) == getattr(
        spec_of({name: fixed}, {}), name
    )


@pytest.mark.parametrize(
    "stanza",
    [
        {"config": {"GVisorProvisioner": {"memory_limit": "64G"}}},
        {"parent": None, "memory_limit": "64G"},
        {"_lower": {}, "memory_limit": "64G"},
        {"VALIDATORS": None},
        {"GVisorProvisioner": {"memory_limit": "64G"}},
        {"__class__": "x"},
        {"sandbox_spec": None},
        {"traits": {}, "memory_limit": "64G"},
    ],
)
def test_kernelspec_cannot_pose_as_configuration(stanza: dict[str, Any]) -> None:
    """Names in a kernelspec reach neither the configuration nor attributes of the class."""
    config = Config({"GVisorProvisioner": {"memory_limit": 512 * MIB}})
    arguments = {"kernel_id": "k", "kernel_spec": None, "config": config} | stanza
    if not isinstance(arguments["config"], Config):
        arguments["parent"] = None
    try:
        found = GVisorProvisioner(**arguments).sandbox_spec()
    except SettingError:
        return
    assert found.memory_limit <= 512 * MIB


@pytest.mark.once
def test_foreign_kernelspec_and_client_get_fixed_settings(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ask for everything; the kernel gets what the administrator has fixed."""
    (tmp_path / "data.csv").touch()
    template = json.loads((world.kernelspecs / KERNEL / "kernel.json").read_text())
    template["metadata"]["kernel_provisioner"]["config"] = {
        **GENEROUS,
        "mounts": [{"source": "/etc", "target": "/mnt/etc"}],
        "environment": ["GK_SECRET"],
        "uploads": "/etc",
    }
    template["env"] = {"IS_SANDBOX": "no", "HOME": "/root", "LD_PRELOAD": "/tmp/x.so"}
    folder = world.add_kernelspec("gvisor-foreign", template)
    try:
        configured = {**FIXED, "mounts": [], "environment": [], "uploads": "."}
        environment = os.environ | {
            "GK_SECRET": "no",
            **{f"KERNEL_{name.upper()}": str(value) for name, value in GENEROUS.items()},
            "KERNEL_MOUNTS": '[{"source": "/root", "target": "/mnt/root"}]',
            "KERNEL_LAUNCH_TIMEOUT": "3600",
            "KERNEL_WORKING_DIR": "/root",
            "KERNEL_UID": "0",
        }
        start = {"cwd": str(tmp_path), "env": environment}
        code = """
import json, os, resource
info = json.load(open("/container_info.json"))
found = {"limits": info["limits"], "mnt": os.listdir("/mnt"), "secret": "GK_SECRET" in os.environ,
         "uploads": os.listdir("/mnt/user-data/uploads"), "uid": os.getuid(),
         "pids": resource.getrlimit(resource.RLIMIT_NPROC)[1], "cwd": os.getcwd(),
         "client": [name for name in os.environ if name.startswith("KERNEL_")]}
print(json.dumps(found))
"""
        with running_kernel("gvisor-foreign", settings=configured, start=start) as (_, client):
            found = json.loads(execute(client, code).text)
    finally:
        (folder / "kernel.json").unlink()
        folder.rmdir()
    assert found["limits"] == {
        "memory_bytes": FIXED["memory_limit"],
        "cpu_shares": FIXED["cpu_shares"],
        "pids": FIXED["pids_limit"],
        "disk_bytes": FIXED["disk_limit"],
    }
    assert found["pids"] == FIXED["pids_limit"]
    # The interpreter is shown, and so are the names of the folders above it.
    above = {path.parts[2] for path in (PROJECT, Path(sys.prefix)) if path.parts[1] == "mnt"}
    assert set(found["mnt"]) == {"skills", "transcripts", "user-data"} | above
    assert "data.csv" in found["uploads"]
    assert found["secret"] is False
    assert found["client"] == []
    assert (found["uid"], found["cwd"]) == (1000, "/workspace")


# The folder that a client names.


class Server:
    """The part of a server that says where its notebooks are."""

    def __init__(self, root: Path) -> None:
        self.root_dir = str(root)


class Manager:
    def __init__(self, root: Path) -> None:
        self.parent = Server(root)


@pytest.mark.parametrize("way", ["..", "../..", "/etc", "sub/../../..", "/", "../root-of-others"])
def test_folder_outside_server_root_is_refused(tmp_path: Path, way: str) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    with pytest.raises(LaunchError, match="not below the server's root"):
        choose_folder(os.path.join(root, way), Manager(root))  # noqa: PTH118 - as a server does


def test_folder_inside_server_root_is_accepted(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    assert choose_folder(str(tmp_path / "sub"), manager) == tmp_path / "sub"
    assert choose_folder(None, manager) == tmp_path
    assert choose_folder("/srv", KernelManager()) == Path("/srv")
    assert choose_folder(None, None) == Path.cwd()
