"""Run the tests of sandboxes again as an ordinary user: ``python tests/run_as_user.py``.

Root only. Creates a user without any rights, with a copy of this checkout and an environment of
the distribution's Python (root's own may be in a home that others cannot enter). Runs pytest as
that user, then removes the user, its files and its processes. Arguments go to pytest, but for
``--prepare``, which only makes the environment, and ``--prepared``, which takes it as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
CACHE = Path("/var/cache/gvisor-kernel-tests")
FOLDERS = (
    *("runtimes", "faults", "security", "snapshots", "cli/test_doctor.py", "cli/test_sandboxes.py"),
    *("cli/test_runsc.py", "releases"),
    "api/test_sandbox.py::test_files_are_written_read_listed_and_removed",
    "api/test_sandbox.py::test_a_command_over_its_time_ends_with_its_children",
    "api/test_life.py::test_a_program_that_ends_leaves_nothing",
    *("lasting/test_lost.py", "lasting/test_states.py", "lasting/test_random_lives.py"),
    "lasting/test_each_step.py",
    "mcp/test_hostile.py::test_a_client_that_leaves_in_the_middle_leaves_nothing",
    "mcp/test_stdio.py::test_code_files_and_sessions",
    "changes/test_kernels.py",
    "server/test_lab.py",
    *("cli/test_snapshots.py", "skills/test_store.py", "guest/test_kernel_process.py"),
    *("jupyter/test_launch.py", "jupyter/test_lifecycle.py", "jupyter/test_provisioner.py"),
    *("jupyter/test_root_images.py", "jupyter/test_server.py", "jupyter/test_settings.py"),
    "egress/test_kernels.py::test_urllib_reaches_an_api_whose_key_stays_outside",
    "egress/test_packages_inside.py::test_what_is_installed_is_imported_at_once_and_after_a_restart",
    "environments/test_kernels.py::test_kernel_has_the_packages_and_may_install_another_version",
    "egress/test_process.py::test_the_workers_environment_and_command_line_have_no_secret",
    *("host/test_cgroups.py", "host/test_homes.py", "test_transcript.py"),
    "faults/test_idle.py::test_idle_kernel_is_stopped_and_continues",
    "faults/test_idle.py::test_killed_owner_of_stopped_kernels_leaves_nothing",
    "jupyter/test_launch.py::test_killed_launcher_leaves_nothing",
    "jupyter/test_lifecycle.py::test_crashed_kernel_is_restarted",
    "jupyter/test_lifecycle.py::test_restart_while_busy",
    "jupyter/test_lifecycle.py::test_shutdown_kills_kernel_that_ignores_it",
    "jupyter/test_provisioner.py::test_resolve_path_finds_only_mounted_files",
    "snapshots/test_snapshot_queue.py::test_builder_ends_with_its_server",
)
"""Tests of what can depend on the user. ``--all`` runs them."""
ONE_FOR_EACH: dict[str, tuple[str, ...]] = {
    # A start: in a user namespace, with one uid and without the host's mounts.
    "runtimes/test_features.py": ("installed_runsc_answers_the_probe",),
    "runtimes/test_inside.py": (
        *("layout_mounts_have_file_descriptors_5_to_10", "every_bind_but_outputs_is_read_only"),
        *("sandbox_runs_gvisor_without_a_network", "scratch_has_the_disk_limit"),
        *("meminfo_shows_the_memory_limit", "nothing_inside_names_host_paths"),
        *("home_is_shown_only_by_an_explicit_mount", "extra_mounts_are_shown_with_their_mode"),
    ),
    "runtimes/test_outside.py": (
        *("sandbox_processes_are_isolated", "sandbox_that_is_not_isolated_is_killed"),
        *("state_directory_is_private", "limits_are_set", "memory_used_follows_allocations"),
        *("host_limits_hold_without_the_bridge", "close_leaves_nothing"),
        *("close_during_start_leaves_nothing", "killed_sandbox_process_leaves_nothing"),
        "start_that_fails_half_way_leaves_nothing",
    ),
    "jupyter/test_settings.py": ("settings_reach_sandbox", "failed_start_shows_runsc_error"),
    "cli/test_doctor.py": (
        *("doctor_finds_no_failure_on_this_machine", "platform_check_starts_a_sandbox"),
        "cgroup_check_distinguishes_versions_and_delegation",
        "user_namespace_check_tries_unshare",
    ),
    # A server that such a user starts, which needs no right to be root.
    "server/test_lab.py": (
        "kernels_are_sandboxes_alone_also_after_a_change",
        "nothing_was_changed",
    ),
    "mcp/test_hostile.py": ("a_client_that_leaves_in_the_middle_leaves_nothing",),
    # A sandbox that is saved, and goes on.
    "api/test_hibernation.py": ("all_goes_on_as_it_was",),
    "api/test_encrypted.py": ("states_are_on_the_disk_encrypted_and_go_on",),
    "jupyter/test_taken_over.py": ("a_kernel_outlives_its_server[die busy]",),
    # A store of releases of one's own.
    "releases/test_switch.py": (
        "running_kernel_keeps_its_release_over_a_switch[sandbox]",
        "running_kernel_keeps_its_runsc_over_an_update_of_the_package[on the PATH]",
        "start_whose_program_is_replaced_meanwhile_is_begun_again",
        "first_start_after_a_switch_is_restored",
    ),
    # Isolation, and what is seen of the host.
    "security/test_privilege.py": (),
    "security/test_network.py": (
        *("network_access_fails_at_once", "host_loopback_services_are_unreachable"),
        "host_abstract_sockets_are_unreachable",
    ),
    "security/test_shown.py": ("search_finds_no_hidden_file",),
    "security/test_secrets.py": ("home_credentials_do_not_exist_inside",),
    "security/test_closed_folders.py": (
        "folders_that_a_kernel_has_closed_are_open_at_the_next_start[cold]",
        "only_a_folder_that_a_kernel_may_have_written_is_opened_again",
        "a_folder_named_outputs_that_no_kernel_has_written_stays_closed",
        "a_folder_that_kernels_only_read_is_named_with_a_command",
        "a_list_of_closed_outputs_names_them_with_a_command",
        "outputs_that_a_kernel_has_closed_on_a_node_wait_to_be_fetched",
    ),
    "security/test_settings.py": ("unreadable_folders_are_refused",),
    "security/test_users.py": (
        *("state_is_private", "argument_lists_contain_no_secret"),
        "planted_state_directory_is_refused",
    ),
    "security/test_races.py": (
        "swap_at_each_step_of_start_is_harmless[plain-cold]",
        "swap_at_each_step_of_end_is_harmless[plain]",
    ),
    # Limits without a cgroup.
    "host/test_cgroups.py": ("no_cgroup_is_made_without_delegation",),
    "faults/test_memory.py": ("kernel_over_memory_limit_is_killed",),
    "faults/test_odd_processes.py": ("start_below_a_file_size_limit_names_the_limit",),
    "security/test_resources.py": (
        *("pids_limit_stops_fork_and_thread_bombs", "interrupt_works_during_fork_bomb"),
        "neighbour_answers_beside_cpu_hogs",
        "memory_of_sandbox_itself_counts[a file, mapped again and again]",
        "memory_of_sandbox_itself_counts[full pipes and sockets]",
    ),
    # Owners of files and folders.
    "runtimes/test_kernel_id.py": ("kernel_owns_what_it_may_write",),
    "security/test_files.py": (
        *("files_belong_to_the_folders_owner", "read_only_paths_cannot_be_changed"),
        *("no_set_uid_file_reaches_the_host", "disk_limit_gives_enospc"),
    ),
    "changes/test_kernels.py": (
        "changes_are_listed_applied_and_undone",
        "the_control_socket_is_private_and_bounded",
    ),
    "jupyter/test_root_images.py": ("image_is_root_and_its_python_runs_kernel[direct]",),
    "environments/test_kernels.py": ("building_a_package_reaches_only_its_sandbox",),
    "skills/test_store.py": ("unusable_folder_falls_back_to_the_shipped_skills",),
    "host/test_homes.py": ("home_of_server_user_is_found",),
    "api/test_sandbox.py": ("files_are_written_read_listed_and_removed",),
    "egress/test_kernels.py": ("urllib_reaches_an_api_whose_key_stays_outside",),
    "egress/test_process.py": ("the_workers_environment_and_command_line_have_no_secret",),
    # Snapshots and spares: checkpoint and restore in a namespace.
    "runtimes/test_snapshots.py": (
        "restored_sandbox_sees_the_folders_of_its_own_session",
        "snapshot_is_readable_by_its_user_only",
    ),
    "snapshots/test_snapshot_queue.py": ("builder_ends_with_its_server",),
    "snapshots/test_spares.py": (
        "next_start_of_same_kind_takes_spare",
        "a_spare_makes_no_folder_of_outputs_before_a_kernel_takes_it",
    ),
    # Ends, deaths and removal.
    "api/test_life.py": ("a_program_that_ends_leaves_nothing[die-2\\n]",),
    "cli/test_sandboxes.py": (
        *("list_distinguishes_states", "prune_removes_orphaned_sandboxes_only"),
        "kill_removes_orphaned_sandbox",
    ),
    "faults/test_each_step.py": (
        # The processes that remain differ by user where one starts, is saved, or runs.
        *(f"killed_owner_leaves_nothing[{step}]" for step in ("start", "run", "checkpoint")),
        *(f"killed_part_leaves_nothing[{step}]" for step in ("start", "run", "checkpoint")),
    ),
    "faults/test_fake_runsc.py": (
        *(f"broken_run_command_is_refused[{what}]" for what in ("crashes", "leaves a child")),
        *("hanging_run_command_is_refused", "process_outside_sandbox_is_refused"),
    ),
    "cli/test_runsc.py": (
        "a_release_is_installed_tried_chosen_and_removed",
        "the_second_of_two_installs_is_refused",
    ),
    "releases/test_release_store.py": ("a_store_that_others_can_change_is_not_used",),
    "faults/test_trial.py": (
        "a_release_that_works_passes_with_its_own_program",
        "a_trial_that_is_killed_leaves_nothing",
    ),
    "faults/test_full_disk.py": ("read_only_state_directory_is_refused",),
    "faults/test_idle.py": ("killed_owner_of_stopped_kernels_leaves_nothing",),
    "faults/test_owner_death.py": ("killed_server_leaves_nothing",),
    "jupyter/test_launch.py": ("killed_launcher_leaves_nothing",),
    "jupyter/test_lifecycle.py": ("shutdown_kills_kernel_that_ignores_it",),
    "runtimes/test_owner_death.py": (
        "killed_owner_leaves_nothing",
        "sweep_removes_what_killed_owner_and_lifeline_left",
    ),
}
"""What runs without ``--all``: one test for each thing that differs for an ordinary user, by file
and without ``test_``; all of a file that names none. Other tests have the same result as root's."""
PASSED_ON = (
    *("GK_TEST_AGAIN", "GK_TEST_ALL", "GK_TEST_CYCLES", "GK_TEST_HIDDEN_RUNSC"),
    "GK_TEST_PATIENCE",
    *("GK_TEST_RUNSC", "GK_TEST_SKIPS"),
)
CHOSEN = ("-m", "not once and not browser")
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", "__pycache__", "test-artifacts", "outputs", "*.egg-info"),
    "node_modules",
)


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def find_tests() -> list[str]:
    """Return the files and tests that the ordinary user's part has."""
    if not os.environ.get("GK_TEST_ALL"):
        return [
            chosen
            for file, tests in ONE_FOR_EACH.items()
            for chosen in ([f"tests/{file}::test_{test}" for test in tests] or [f"tests/{file}"])
        ]
    found: list[str] = []
    for name in FOLDERS:
        place = PROJECT / "tests" / name
        files = sorted(place.glob("test_*.py")) if place.is_dir() else [place]
        names = (str(file.relative_to(PROJECT / "tests")) for file in files)
        found += [f"tests/{name}" for name in names]
    return found


def make_environment() -> Path:
    """Make or reuse an environment with the tests' requirements; return its Python."""
    wanted = (PROJECT / "pyproject.toml").read_bytes() + subprocess.check_output([PYTHON, "-VV"])
    folder = CACHE / hashlib.sha256(wanted).hexdigest()[:16]
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        say(f"Creating an environment for the user in {folder} with {PYTHON}")
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(mode=0o755, parents=True)
        subprocess.run([PYTHON, "-m", "venv", folder], check=True)
        install(python, f"{PROJECT}[test]")
        (folder / "complete").touch()
    return python


def install(python: Path, *what: str) -> None:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--root-user-action=ignore", *what], check=True, umask=0o022)


@contextlib.contextmanager
def ordinary_user() -> Iterator[pwd.struct_passwd]:
    """Create a user with a home; at the end remove it and kill all its processes."""
    name = f"gku-{secrets.token_hex(3)}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True)
    user = pwd.getpwnam(name)
    try:
        yield user
    finally:
        end_processes(user.pw_uid)
        # userdel complains that there is no mail spool to remove.
        subprocess.run(["userdel", "--remove", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(user.pw_dir, ignore_errors=True)


def end_processes(uid: int) -> None:
    """Send SIGKILL until no process of ``uid`` is alive."""
    for _ in range(100):
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if folder.stat().st_uid == uid and state != "Z":
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        print(
            "Only root can run the tests as another user. As an ordinary user run pytest directly.",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the user is removed
    python = make_environment()
    if arguments == ["--prepared"]:
        arguments = []
    else:
        install(python, "--no-deps", "--force-reinstall", "--no-build-isolation", str(PROJECT))
    if arguments == ["--prepare"]:
        return 0
    with ordinary_user() as user:
        copy = Path(user.pw_dir, PROJECT.name)
        shutil.copytree(PROJECT, copy, ignore=LEFT_OUT, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        chosen = [*CHOSEN, *find_tests()]
        program = ["pytest", *arguments] if arguments else ["tests.run", *chosen]
        done = subprocess.run(
            [python, "-m", *program],
            cwd=copy,
            env={
                "HOME": user.pw_dir,
                "USER": user.pw_name,
                "LANG": "C.UTF-8",
                "TEST_WORKERS": os.environ.get("TEST_WORKERS", ""),
                **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
                "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
                # All processes use one gvisor_kernel: a snapshot only fits the one that made it.
                "PYTHONPATH": str(copy),
            },
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            start_new_session=True,
            check=False,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
