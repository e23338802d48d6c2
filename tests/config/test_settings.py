"""Settings: precedence, accepted values, and errors for wrong values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets.config import Config

from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SETTINGS, SandboxSpec, find_own_settings
from gvisor_kernel.config.validators import GIB, MIB
from gvisor_kernel.errors import SettingError, UnknownSetting
from gvisor_kernel.kernel.moves import choose_place


class GVisorProvisioner(KernelProvisionerBase, SandboxSettings):
    """A provisioner class that has the settings but no sandbox."""


GVisorProvisioner.__abstractmethods__ = frozenset()


def spec(config: Config | None = None, **stanza: Any) -> SandboxSpec:
    """Return the spec of a kernelspec with ``stanza``, built as by jupyter_client's factory."""
    return GVisorProvisioner(
        kernel_id="k", kernel_spec=None, parent=None, config=config, **stanza
    ).sandbox_spec()


def test_empty_config_gives_the_defaults() -> None:
    assert spec() == SandboxSpec()


def test_constructor_passes_other_arguments_to_the_base_class() -> None:
    assert GVisorProvisioner(kernel_id="abc", memory_limit="1G").kernel_id == "abc"


def test_kernelspec_overrides_the_default() -> None:
    assert spec(memory_limit="1G").memory_limit == GIB


def test_jupyter_config_overrides_the_kernelspec() -> None:
    config = Config()
    config.GVisorProvisioner.memory_limit = "2G"
    config.GVisorProvisioner.transcripts = False
    found = spec(config, memory_limit="64G", transcripts=True, cpu_shares=7)
    assert (found.memory_limit, found.transcripts, found.cpu_shares) == (2 * GIB, False, 7)


def test_appended_list_replaces_kernelspec_list_in_this_instance_only() -> None:
    config = Config()
    config.GVisorProvisioner.environment.append("B")
    assert spec(config, environment=["A"]).environment == ("B",)
    assert spec(config).environment == ("B",)


def test_command_line_values_are_parsed() -> None:
    from traitlets.config.loader import DeferredConfigString

    config = Config()
    config.GVisorProvisioner.memory_limit = DeferredConfigString("1G")
    config.GVisorProvisioner.cpu_shares = DeferredConfigString("2")
    config.GVisorProvisioner.uploads = DeferredConfigString("None")
    config.GVisorProvisioner.environment = DeferredConfigString("['A']")
    found = spec(config)
    assert (found.memory_limit, found.cpu_shares) == (GIB, 2)
    assert (found.uploads, found.environment) == (None, ("A",))


def test_instances_share_no_list() -> None:
    GVisorProvisioner().mounts.append("broken")
    assert spec().mounts == ()


def test_client_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(f"KERNEL_{name.upper()}", "1")
        monkeypatch.setenv(f"GVISOR_KERNEL_{name.upper()}", "1")
    assert spec() == SandboxSpec()


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (512 * MIB, 512 * MIB),
        ("4G", 4 * GIB),
        ("512M", 512 * MIB),
        ("4GiB", 4 * GIB),
        ("4 gb", 4 * GIB),
        ("1.5g", 3 * GIB // 2),
        ("1T", 1024 * GIB),
        ("1048576K", GIB),
        ("1073741824", GIB),
        ("1073741824B", GIB),
    ],
)
def test_size_is_parsed(value: object, size: int) -> None:
    assert spec(memory_limit=value).memory_limit == size


WRONG: list[tuple[str, object]] = [
    *(("memory_limit", value) for value in ("4 apples", "", "-1G", "1e9", 0, -5, 1.5, None, True)),
    *(("memory_limit", value) for value in (1024, "127M", 2**61, "9" * 500, [4], "4G\n5", "٤G")),
    *(("disk_limit", value) for value in ("lots", 4096, b"4G")),
    *(("cpu_shares", value) for value in (1, 262145, "1024", 10.0, False)),
    *(("pids_limit", value) for value in (0, 63, 10**9, None)),
    *(("start_timeout", value) for value in (0, -1, 3601, "60", None, True, float("nan"))),
    *(("transcripts", value) for value in (1, 0, "yes", None)),
    *(("runtime", value) for value in ("docker-in-docker", "", None, ["runsc"])),
    *(("image", value) for value in ("", "Ubuntu", "a/b", "..", "a" * 65, "a\n", 3)),
    *(("runsc", value) for value in ("runsc latest", "../runsc", "a/b", "-x", "/", "/a\nb", None)),
    *(("runsc", value) for value in (True, [], "latest", "nonsense", "x" * 65, "/\0", "/x" * 2100)),
    *(("restart", value) for value in ("always", None)),
    *(("branch_outputs", value) for value in ("other", True, None)),
    *(("apply", value) for value in ("all", "new_files", True, None)),
    *(("transport", value) for value in ("inproc", 4)),
    *(("profile", value) for value in ("", "../x", "a/b", 3, [])),
    *(("uploads", value) for value in ("", "../x", "a/../../b", "/nonexistent", "/proc", "a\0b")),
    *(("uploads", value) for value in (3, ["."], "a\nb", "/etc/passwd", "/dev/shm")),
    *(("outputs", value) for value in ("", ".", "./", "../x", "/", "/etc", "/etc/x", "/usr/local")),
    *(("outputs", value) for value in ("/dev/shm/x", "~", "/home/../etc", "/etc/passwd", 1)),
    *(("skills", value) for value in ("", "relative", "/nonexistent", "/etc", 1)),
    *(("environment", value) for value in ("PATH", ["A=b"], [""], [3], None, ["A", "B\n"])),
    *(("environment", value) for value in (["KERNEL_USERNAME"], ["HOME"], ["É"], {"A": "b"})),
    *(("command", value) for value in ("python", ["python"], [3], None, ["", "{connection_file}"])),
    *(("command", value) for value in (["a\0", "{connection_file}"],)),
    *(("kernel_mode", value) for value in ("direct", "", None, True)),
    *(("snapshot", value) for value in ("on", False, None)),
    *(("preload", value) for value in ("numpy", ["a b"], ["a."], ["import"], [""], [3], None)),
    *(("preload", value) for value in (["os; print"], ["a-b"], ["x" * 201], ["a"] * 101)),
    *(("checkpoints", value) for value in ("on", True, None, "")),
    *(("checkpoints_kept", value) for value in (0, -1, 1.5, "3", None, True, 1001)),
    *(("hibernate_key", value) for value in ("key", "env:KEY", "file:key", "keyring:one", None)),
    *(("hibernate_idle_timeout", value) for value in (-1, "60", True, 1e9)),
    *(("idle_stop", value) for value in (1, "yes", None)),
    *(("spare", value) for value in (0, "off", None)),
    *(("egress", value) for value in ("packages", None, [3], ["A"], [""], ["a/b"], ["a" * 33])),
    *(("packages", value) for value in (["polars"], "polars", {}, {"requirements": ["polars"]})),
    *(
        ("packages", {"requirements": names, "environment": "a" * 64})
        for names in ([], ["-r"], ["../x"], ["a"] * 101, "polars", [3], None)
    ),
    *(
        ("packages", {"requirements": ["polars"], "environment": digest})
        for digest in ("A" * 64, "../" + "a" * 61, "a" * 63, None, "a" * 64 + "\n")
    ),
    *(("slurm", value) for value in (3, ["x"], {"nodes": 2}, {"partition": "a b"}, {"wait": 0})),
    *(("slurm", {key: "--x"}) for key in ("partition", "account", "qos", "time", "gres")),
    *(("slurm", {"arguments": value}) for value in ("x", ["x"], ["--mem=1T"], ["--x=$(y)"])),
    ("slurm", {"arguments": ["--constraint=a"]}),  # nobody has allowed it
    *(("slurm", {"allowed_arguments": value}) for value in (["--constraint=*"], "x")),
    *(("slurm", {key: value}) for key in ("python", "state") for value in ("x", "/a/../b", 3)),
    *(("ssh", value) for value in (3, {"host": "x"}, {"hosts": "x"}, {"hosts": ["-oX=y"]})),
    *(("ssh", {"hosts": value}) for value in ([""], ["a b"], ["a;b"], [3], ["x"] * 2000)),
    *(("ssh", {"config": value}) for value in ("x", "/a/../b", 3)),
    *(
        (way, {"files": value})
        for way in ("slurm", "ssh")
        for value in ("", "nfs", 3, None, ["copy"])
    ),
    *(("kubernetes", value) for value in ("kernels", {"names": "x"}, {"cpu": "lots"}, [1], 3)),
    *(("egress", value) for value in ({"packages": 1}, [f"r{i}" for i in range(65)], ["a\n"])),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_value_error_names_setting_and_accepted_values(name: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        spec(**{name: value})
    text = str(caught.value)
    assert name in text
    assert "What to do: set it to" in text
    assert caught.value.setting.startswith(name)
    assert len(text) < 1200


def test_kernelspec_and_configuration_set_different_keys() -> None:
    """The configuration holds; what it allows may be chosen by a kernelspec."""
    config = Config()
    config.GVisorProvisioner.slurm = {
        "partition": "k",
        "allowed_arguments": ["--constraint=*", "--exclusive"],
    }
    asked = {"partition": "other", "qos": "low", "arguments": ["--constraint=avx512"]}
    found = spec(config, runtime="slurm", slurm=asked).own
    assert (found.partition, found.qos) == ("k", "low")
    assert found.arguments == ("--constraint=avx512",)
    with pytest.raises(SettingError, match=r"administrator allows \(--constraint=\*, --exclusive"):
        spec(config, slurm={"arguments": ["--reservation=x"]})
    with pytest.raises(SettingError, match="limits and streams alone"):
        spec(config, slurm={"arguments": ["--mem=100G"]})


@pytest.mark.parametrize("runtime", ["slurm", "ssh"])
def test_what_is_to_be_encrypted_is_not_on_a_node(runtime: str) -> None:
    key = "file:/home/user/key"
    more = {"ssh": {"hosts": ["n1"]}} if runtime == "ssh" else {}
    with pytest.raises(SettingError, match="unencrypted"):
        spec(runtime=runtime, hibernate_key=key, **more)
    here = spec(hibernate_key=key)
    to = "n1" if runtime == "ssh" else runtime
    with pytest.raises(SettingError, match="unencrypted"):
        choose_place(here, to, lambda name: spec(runtime=name, ssh={"hosts": ["n1"]}).own)


def test_configuration_may_name_arguments_itself() -> None:
    config = Config()
    config.GVisorProvisioner.slurm = {"arguments": ["--constraint=a"]}
    assert spec(config, runtime="slurm").own.arguments == ("--constraint=a",)


@pytest.mark.parametrize(
    "argument",
    [
        "--outpu=/x",
        "--task-prolo=/x",
        "--expor=ALL",
        "--container-id=x",
        "--mpi=x",
        "--tres-per-task=cpu=64",
        "--acctg=0",
    ],
)
def test_argument_that_srun_would_complete_is_refused(argument: str) -> None:
    """srun takes any abbreviation that only one of its options begins with."""
    config = Config()
    config.GVisorProvisioner.slurm = {"allowed_arguments": ["--*"]}
    with pytest.raises(SettingError, match="leave the kernel's limits and streams alone"):
        spec(config, slurm={"arguments": [argument]})
    found = spec(config, runtime="slurm", slurm={"arguments": ["--exclusive"]})
    assert found.own.arguments == ("--exclusive",)


def test_configuration_forbids_programs_outside_a_sandbox() -> None:
    """An empty text holds as any other: a kernelspec cannot name a Python or a ProxyCommand."""
    config = Config()
    config.GVisorProvisioner.ssh = {"hosts": ["n1"], "config": "", "python": ""}
    config.GVisorProvisioner.slurm = {"python": ""}
    ssh = spec(config, runtime="ssh", ssh={"config": "/x", "python": "/x"}).own
    slurm = spec(config, runtime="slurm", slurm={"python": "/x"}).own
    assert (ssh.config, ssh.python, slurm.python) == ("", "", "")


@pytest.mark.parametrize("way", ["slurm", "ssh"])
def test_configuration_decides_how_files_come_to_nodes(way: str) -> None:
    """If it says nothing, a kernelspec may choose."""
    config = Config()
    asked = {"hosts": ["n1"]} if way == "ssh" else {}
    for value in ("shared", "copy"):
        found = spec(config, runtime=way, **{way: {**asked, "files": value}})
        assert found.own.files == value
    config.GVisorProvisioner[way] = {"files": "shared"}
    found = spec(config, runtime=way, **{way: {**asked, "files": "copy"}})
    assert found.own.files == "shared"


def test_ssh_without_a_host_is_refused() -> None:
    with pytest.raises(SettingError, match="ssh"):
        spec(runtime="ssh")


def test_every_setting_has_a_wrong_value() -> None:
    every = {*SETTINGS, *find_own_settings()}
    assert {name for name, _ in WRONG} | {"mounts"} == every


def test_unknown_name_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(
        UnknownSetting, match=r"(?s)memroy_limit.*use 'memory_limit' if that was meant"
    ):
        spec(memroy_limit="1G")


@pytest.mark.parametrize("name", ["network", "provisioner_name", "_unknown", "sandbox_spec"])
def test_other_attributes_are_no_settings(name: str) -> None:
    with pytest.raises(UnknownSetting, match=name):
        spec(**{name: "x"})


def test_kernelspec_cannot_pass_a_jupyter_config() -> None:
    settings = GVisorProvisioner(config={"GVisorProvisioner": {"memory_limit": "64G"}})
    with pytest.raises(UnknownSetting, match="config"):
        settings.sandbox_spec()


def test_unknown_name_in_jupyter_config_is_an_error() -> None:
    config = Config()
    config.GVisorProvisioner.memory_limits = "1G"
    with pytest.raises(UnknownSetting, match="memory_limits"):
        spec(config)


def test_folders_are_normalised(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert spec(uploads="./data//x/").uploads == "data/x"
    # A symbolic link is not resolved: that is done when the folder is opened.
    assert spec(uploads=f"/{tmp_path}/link/").uploads == str(tmp_path / "link")
    assert spec(outputs=str(tmp_path / "link")).outputs == str(tmp_path / "link")
    assert spec(outputs=str(tmp_path / "new")).outputs == str(tmp_path / "new")
    assert spec(uploads=None, outputs=None).outputs is None


def test_home_is_refused_as_uploads_and_as_writable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "people" / "ann"
    home.mkdir(parents=True)
    (tmp_path / "alias").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    for path in (home, tmp_path / "people", tmp_path / "alias"):
        with pytest.raises(SettingError):
            spec(outputs=str(path))
        with pytest.raises(SettingError, match="choose one below it"):
            spec(uploads=str(path))
        with pytest.raises(SettingError):
            spec(mounts=[{"source": str(path), "target": "/data", "read_only": False}])
    assert spec(outputs="~/results").outputs == str(home / "results")
    with pytest.raises(SettingError, match="the home of an account"):
        spec(uploads="~")


def test_skills_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    assert spec(skills=str(tmp_path)).skills == str(tmp_path)


def test_mounts_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    mounts = spec(
        mounts=[
            {"source": str(tmp_path), "target": "/mnt/data/"},
            {"source": str(tmp_path / "link"), "target": "/data/x", "read_only": False},
        ]
    ).mounts
    assert mounts == (
        ExtraMount(str(tmp_path), "/mnt/data", True),
        ExtraMount(str(tmp_path / "link"), "/data/x", False),
    )


@pytest.mark.parametrize(
    "target",
    [
        *("", "relative", "/", "//", "/mnt", "/a/../etc", "/a\nb", "/a\0b", "/proc", "/proc/self"),
        *("/sys/x", "/dev", "/usr/local/lib", "/etc/passwd", "/opt/gvisor-kernel/x", "/opt"),
        *("/workspace/x", "/mnt/user-data/uploads/x", "/mnt/user-data", "/mnt/skills/public"),
        *(
            "/mnt/transcripts",
            "/container_info.json",
            "/tmp/x",
            "/home",
            "/lib64",
            "/a,rw",
            "//etc",
        ),
        3,
        None,
    ],
)
def test_wrong_mount_target_is_refused(tmp_path: Path, target: object) -> None:
    with pytest.raises(SettingError) as caught:
        spec(mounts=[{"source": str(tmp_path), "target": target}])
    assert caught.value.setting == "mounts[0].target"


@pytest.mark.parametrize(
    "source",
    [
        "",
        "relative",
        "/nonexistent",
        "/",
        "/proc/self",
        "/sys",
        "/dev/null",
        "/etc/../etc",
        3,
        None,
    ],
)
def test_wrong_mount_source_is_refused(source: object) -> None:
    with pytest.raises(SettingError) as caught:
        spec(mounts=[{"source": source, "target": "/data"}])
    assert caught.value.setting == "mounts[0].source"


def test_named_pipe_is_refused_as_mount_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SettingError):
        spec(mounts=[{"source": str(tmp_path / "fifo"), "target": "/data"}])


@pytest.mark.parametrize(
    "mounts",
    [
        "/data",
        {"source": "/etc", "target": "/data"},
        ["/data:/data"],
        [{}],
        [{"source": "/etc"}],
        [{"source": "/etc", "target": "/data", "readonly": True}],
        [{"source": "/etc", "target": "/data", "read_only": "no"}],
        [{"source": "/etc", "target": "/data", "read_only": False}],
        [{"source": "/etc", "target": "/data"}, {"source": "/usr", "target": "/data"}],
        [{"source": "/etc", "target": "/data"}, {"source": "/usr", "target": "/data/x"}],
        [{"source": "/etc", "target": "/data/x"}, {"source": "/usr", "target": "/data"}],
    ],
)
def test_schema_of_mounts_is_strict(mounts: object) -> None:
    with pytest.raises(SettingError, match="mounts"):
        spec(mounts=mounts)
