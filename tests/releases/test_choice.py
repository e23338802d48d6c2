"""What the setting ``runsc`` finds, and who may set it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from traitlets.config import Config

from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.errors import RuntimeMissing, SettingError
from gvisor_kernel.runtimes.runsc import kept_programs
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.runtimes.state.records import read_record

from ..jupyter.helpers import running_kernel, sandbox_of
from ..jupyter.server import JupyterServer
from ..mcp.servers import fail, stdio_session
from ..world import DEFAULT_KERNEL
from .programs import Program, make_programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Program]:
    return make_programs(tmp_path_factory.mktemp("programs"))


def test_a_path_names_a_program(programs: tuple[Program, Program]) -> None:
    """Whatever is on the PATH."""
    for program in programs:
        found = find_runsc(str(program.path))
        assert (found.path, found.version) == (str(program.path), program.version)
    settings = {"snapshot": "off", "runsc": str(programs[1].path)}
    with running_kernel(settings=settings) as (manager, _):
        record = read_record(sandbox_of(manager).directory)
        assert record is not None
        assert (record.runsc, record.program) == (programs[1].version, found.program)


@pytest.mark.parametrize("choice", ["20990101.0", "/nonexistent/runsc", "/etc/passwd", "/etc"])
def test_what_is_not_there_is_an_error_with_its_name(choice: str) -> None:
    with pytest.raises(RuntimeMissing, match=choice) as caught:
        find_runsc(choice)
    assert caught.value.hint


def test_variables_of_a_client_and_a_program_that_kernels_write_choose_none(
    programs: tuple[Program, Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables as papermill and gateways pass them on. A program in a folder that kernels write
    is not run: a kernel may have put it there, or may replace it."""
    monkeypatch.chdir(tmp_path)
    names = ("KERNEL_RUNSC", "RUNSC", "GVISOR_RUNSC", "KERNEL_EXTRA_SPEC_OPTS")
    start = {"env": {**os.environ, **dict.fromkeys(names, str(programs[1].path))}}
    with running_kernel(settings={"snapshot": "off"}, start=start) as (manager, _):
        record = read_record(sandbox_of(manager).directory)  # its outputs are noted
        assert record is not None
        assert record.program == find_runsc().program
        place = tmp_path / "outputs" / "bin"
        place.mkdir()
        (place / "runsc").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (place / "runsc").chmod(0o755)
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        settings = {"snapshot": "off", "runsc": str(place / "runsc")}
        said = f"kernels may write in {tmp_path}/outputs"
        with pytest.raises(RuntimeMissing, match=said), running_kernel(settings=settings):
            pass
        with pytest.raises(RuntimeMissing, match=said):
            find_runsc(str(place / "runsc"))
        assert not (tmp_path / "ran").exists()
        shutil.rmtree(place)


@pytest.mark.parametrize(("runtime", "more"), [("docker", {"image": "x"}), ("kubernetes", {})])
def test_engines_with_a_runsc_of_their_own_refuse_it(runtime: str, more: dict[str, object]) -> None:
    settings = {"runtime": runtime, "image": "any/image", **more}
    SandboxSettings(**settings).sandbox_spec()
    with pytest.raises(SettingError, match=r"runsc is '20240729\.0'"):
        SandboxSettings(**settings, runsc="20240729.0").sandbox_spec()


def test_the_configuration_has_the_last_word() -> None:
    config = Config({"SandboxSettings": {"runsc": "system"}})
    assert SandboxSettings(config=config, runsc="/tmp/own/runsc").sandbox_spec().runsc == "system"
    assert SandboxSettings(runsc=20240729.0).sandbox_spec().runsc == "20240729.0"


def test_a_model_and_a_client_of_a_server_choose_none(
    programs: tuple[Program, Program], tmp_path: Path
) -> None:
    """Tools have no such argument; a request for a kernel has fields that nobody reads."""
    path = str(programs[1].path)

    async def look() -> None:
        async with stdio_session() as session:
            tools = (await session.list_tools()).tools
            assert len(tools) > 5
            assert not [tool.name for tool in tools if "runsc" in json.dumps(tool.input_schema)]
            said = await fail(session, "run_code", code="1", runsc=path)
            assert "runsc" in said

    asyncio.run(look())
    server = JupyterServer(tmp_path, extensions=("gvisor_kernel.server",))
    try:
        server.start()
        stanza = {"kernel_provisioner": {"config": {"runsc": path}}}
        asked = {"runsc": path, "env": {"KERNEL_RUNSC": path}, "config": {"runsc": path}}
        kernel = server.ask("POST", "kernels", name=DEFAULT_KERNEL, metadata=stanza, **asked)["id"]
        (record,) = [one.record for one in find_all() if one.record.kernel_id == kernel]
        assert record.program == find_runsc().program
        server.ask("DELETE", f"kernels/{kernel}")
    finally:
        server.stop()


def test_files_that_were_replaced_before_they_were_opened_are_not_held(
    programs: tuple[Program, Program],
) -> None:
    program = kept_programs.name_program(str(programs[0].path), "of other files")
    kept_programs.hold(program)
    assert program not in kept_programs._held
    assert kept_programs.find_copy(program, "") is None
