"""Tests that take long, and run only with ``scripts/test --all``.

``needs_all`` marks a sweep where it stands. ``LONG`` lists tests of one behaviour each, which a
cheaper test of the usual suite touches as well. ``BY_USER`` lists those that root runs only then.
"""

from __future__ import annotations

import os

import pytest

ALL = os.environ.get("GK_TEST_ALL") == "1"
needs_all = pytest.mark.skipif(not ALL, reason="takes long: run scripts/test --all")

LONG: dict[str, tuple[str, ...]] = {
    "api/test_cancelled.py": (
        "a_listener_that_waits_ends_with_its_run",
        "a_pool_goes_on_after_any_failed_start",
        "a_take_that_is_cancelled_loses_no_sandbox",
    ),
    "api/test_branches.py": (
        "secrets_differ_and_random_numbers_go_on[relay",
        "outputs_have_one_writer_unless_they_are_shared[shared",
        "no_request_is_lost_or_doubled_in_any_gap",
    ),
    "api/test_checkpoints.py": (
        "a_broken_image_leaves_the_kernel_as_it_was[pages",
        "many_verbs_at_once_lose_nothing",
        "a_request_that_comes_meanwhile_runs_in_the_state_gone_back_to",
        "another_checkpoint_costs_what_differs",
        "long_cells_have_checkpoints_by_themselves",
    ),
    "api/test_hibernation.py": (
        "a_library_that_was_replaced_is_named_and_not_mixed",
        "random_numbers_go_on_and_outputs_and_uploads_stay",
        "files_and_commands_wake_the_kernel",
        "a_kernel_that_works_is_not_saved",
        "a_relayed_kernel_goes_on",
        "the_end_removes_what_was_saved",
        "a_sandbox_killed_while_it_is_saved_is_a_death",
    ),
    "api/test_life.py": (
        "a_program_that_ends_leaves_nothing[leave_pool",
        "map_calls_in_clean_sandboxes_and_in_order",
    ),
    "api/test_sandbox.py": (
        "what_is_moved_is_copied_if_it_must_be",
        "without_threads_a_call_fails_alone",
    ),
    "bridge/test_process_end.py": (
        "concurrent_shutdowns_are_harmless",
        "shutdown_after_bridge_ended_is_harmless",
    ),
    "browser/test_doors.py": ("notebook_7_names_the_sandbox_that_asks",),
    "browser/test_files.py": (
        "dead_sandbox_and_a_stopped_one",
        "files_that_are_not_kept_are_told_before_and_after",
    ),
    "browser/test_frame.py": (
        "a_csv_is_shown_in_the_encodings_of_spreadsheets[utf-16",
        "a_parquet_file_is_shown",
    ),
    "browser/test_talks.py": ("a_page_talks_by_a_route_until_it_is_stopped",),
    "browser/test_widgets.py": ("widgets_of_other_kernels_are_shown_by_jupyterlab",),
    "changes/test_killed.py": (
        "a_disk_that_fails_at_any_call_leaves_each_file_old_or_new[13-EDQUOT",
        "a_disk_that_fails_at_any_call_leaves_each_file_old_or_new[13-EIO",
        "a_disk_that_fails_at_any_call_leaves_each_file_old_or_new[13-EROFS",
    ),
    "cli/test_offer.py": (
        "a_script_that_agrees_gets_the_release_too",
        "who_says_no_gets_the_kernelspec_and_the_command[NO",
        "who_says_no_gets_the_kernelspec_and_the_command[perhaps",
    ),
    "cli/test_runsc.py": ("who_dies_at_any_step_changes_nothing",),
    "docker/test_kernels.py": (
        "cell_over_the_memory_limit_says_so",
        "container_that_differs_from_the_request_is_killed[fake_more_capabilities",
        "exited_kernel_restarts_in_its_sandbox",
        "failed_start_leaves_nothing[settings1",
        "outputs_are_not_copied_into_another_folder",
        "outputs_survive_a_stopped_engine",
        "sandbox_without_state_directory_is_removed",
    ),
    "egress/test_attacks.py": (
        "a_request_whose_client_leaves_before_the_answer_is_recorded_after_any_number_of_refusals",
    ),
    "egress/test_kernels.py": ("two_hundred_requests_at_once",),
    "egress/test_packages_inside.py": (
        "a_package_of_the_image_is_hidden_by_another_version_and_comes_back",
        "the_shells_pip_is_the_kernels",
        "what_is_installed_is_imported_at_once_and_after_a_restart[direct",
    ),
    "egress/test_packages_offline.py": (
        "a_second_kernel_installs_with_pip_while_the_index_is_stopped",
    ),
    "environments/test_kernels.py": (
        "the_same_interpreter_by_another_name_has_the_packages",
        "what_was_installed_is_named",
    ),
    "faults/test_each_step.py": ("killed_part_leaves_nothing[restore",),
    "faults/test_fake_runsc.py": (
        "broken_run_command_is_refused[prints too much",
        "hanging_run_command_is_refused[hangs with a child",
    ),
    "faults/test_full_disk.py": (
        "no_snapshot_is_made_without_room",
        "running_kernel_survives_removed_state_directory",
        "start_with_full_user_folder_is_refused_or_works[TMPDIR",
    ),
    "faults/test_idle.py": (
        "kernel_with_harmless_threads_is_stopped[a timer that was cancelled",
        "kernel_with_harmless_threads_is_stopped[the thread of asyncio.to_thread",
        "kernel_with_pending_work_is_not_stopped[a task that waits",
        "message_wakes_stopped_kernel[usage",
        "sandbox_that_is_still_busy_is_stopped_again",
        "stopped_kernel_can_be_restarted_and_shut_down[now",
    ),
    "faults/test_late_starts.py": (
        "a_sandbox_that_is_late_is_replaced_once[greet",
        "a_sandbox_that_is_late_is_replaced_once[sentry",
    ),
    "faults/test_memory.py": ("kernel_over_memory_limit_is_killed[pages touched",),
    "faults/test_owner_death.py": ("killed_sandbox_process_ends_the_kernel[gofer",),
    "faults/test_scarce_descriptors.py": ("running_kernel_survives_without_descriptors",),
    "faults/test_trial.py": (
        "a_kernel_that_never_answers_is_ended",
        "a_trial_that_is_killed_leaves_nothing[do",
    ),
    "guest/test_egress_listener.py": (
        "kernel_started_in_another_way_has_streams[relay",
        "thousands_of_connections_do_no_harm",
    ),
    "guest/test_kernel_process.py": (
        "stopped_kernel_can_be_interrupted_and_shut_down[shutdown now",
    ),
    "images/test_bounds.py": ("each_of_many_opaque_folders_is_walked_once",),
    "jupyter/test_taken_over.py": (
        "checkpoints_come_with_the_kernel[die",
        "encrypted_kernels_outlive_their_server",
        "a_kernel_outlives_its_server[die asleep",
        "a_kernel_outlives_its_server[die idle",
        "a_kernel_outlives_its_server[die now",
        "a_kernel_outlives_its_server[leave",
    ),
    "jupyter/test_debugger.py": ("debug_info_and_variables_work_without_stop[restored",),
    "jupyter/test_default.py": ("kernels_of_running_servers_without_a_sandbox_are_named",),
    "jupyter/test_gvisor_sandbox.py": ("raw_questions_are_judged_on_the_host",),
    "jupyter/test_interrupt.py": (
        "interrupt_works_for_background_server[docker",
        "interrupt_works_for_background_server[slurm",
        "unnoticed_interrupt_wakes_waiting_call[slurm",
        "wake_up_signal_does_not_call_notebooks_handler[slurm",
        *(
            f"interrupt_ends_cell[{by}-{code}-{engine}"
            for by in ("signal", "message")
            for code in ("sleep", "regular expression", "lock", "coroutine", "shell escape")
            for engine in ("docker", "ssh", "slurm")
        ),
    ),
    "jupyter/test_launch.py": (
        "invalid_connection_file_is_reported[[]",
        'invalid_connection_file_is_reported[{"transport"',
        "invalid_connection_file_is_reported[{}",
    ),
    "jupyter/test_lifecycle.py": (
        "managers_work_on_several_loops_and_threads",
        "many_kernels_run_at_once",
        "many_restarts_leak_nothing",
        "second_start_replaces_kernel",
        "sync_multi_kernel_manager_works",
    ),
    "jupyter/test_output.py": (
        "100_megabytes_of_output_arrive[at once",
        "100_megabytes_of_output_arrive[in lines-relay",
    ),
    "jupyter/test_root_images.py": ("image_in_use_is_shared_and_kept",),
    "jupyter/test_rough_code.py": (
        "closing_descriptors_0_to_2_is_harmless[closed by Python",
        "interrupt_works_while_gil_is_held[a call of C-relay",
    ),
    "kubernetes/test_ends.py": (
        "an_end_that_comes_late_is_told_to_nobody_else",
        "the_command_kill_ends_a_pod_after_its_outputs_are_fetched",
    ),
    "mcp/test_hostile.py": (
        "calls_beyond_the_limit_are_refused",
        "garbage_and_floods_do_no_harm",
        "nothing_but_messages_is_on_stdout",
    ),
    "mcp/test_stdio.py": ("sessions_that_are_not_used_end",),
    "nodes/test_copies.py": (
        "files_are_copied_there_and_back[ssh",
        "killed_server_leaves_outputs_and_nothing_else[ssh",
        "outputs_come_back_after_a_death[client-ssh",
        "outputs_come_back_after_a_death[sentry-ssh",
    ),
    "nodes/test_faults.py": (
        "client_is_killed[ssh",
        "full_disk_of_the_node[slurm",
        "helper_is_killed[ssh",
        "job_is_cancelled",
        "network_is_cut_for_good",
        "server_is_killed[ssh",
    ),
    "nodes/test_kernels.py": ("kernel_waits_for_resources_and_says_so",),
    "nodes/test_snapshots.py": ("first_start_is_cold_and_next_is_restored[ssh",),
    "releases/test_choice.py": ("a_model_and_a_client_of_a_server_choose_none",),
    "releases/test_switch.py": (
        "a_release_of_root_serves_all_users",
        "kernels_with_the_release_that_their_kernelspec_names_are_restored",
        "restart_after_an_update_of_the_package_is_restored",
        "running_kernel_keeps_its_release_over_a_switch[kernel",
        "running_kernel_keeps_its_runsc_over_an_update_of_the_package[/usr/bin",
        "running_server_notices_another_runsc",
        "spare_of_the_old_release_is_replaced",
    ),
    "runtimes/test_inside.py": ("servers_umask_does_not_change_modes_inside[23",),
    "runtimes/test_outside.py": (
        "start_that_fails_half_way_leaves_nothing[launch_plan.write_rootfs",
        "start_that_fails_half_way_leaves_nothing[runtime.make_cgroup",
    ),
    "runtimes/test_owner_death.py": (
        "killed_owner_leaves_nothing[11",
        "killed_owner_leaves_nothing[15",
    ),
    "server/test_hibernation.py": (
        "a_cull_ends_kernels_where_that_is_set",
        "no_kernel_begins_anew_in_the_place_of_one_that_cannot_be_resumed",
    ),
    "server/test_lab.py": ("end_leaves_nothing[SIGHUP", "end_leaves_nothing[shutdown"),
    "security/test_closed_folders.py": (
        "folders_that_a_kernel_has_closed_are_open_at_the_next_start[restored",
    ),
    "security/test_link.py": ("random_frames_do_not_disturb_neighbour",),
    "security/test_races.py": (
        "swap_at_each_step_of_kernel_life_is_harmless",
        "spare_of_swapped_folder_is_not_taken[plain",
        "swap_while_spare_is_taken_is_harmless[plain",
    ),
    "security/test_resources.py": (
        "last_output_of_throttled_kernel_arrives",
        "memory_of_sandbox_itself_counts[one page, mapped every GiB",
    ),
    "security/test_settings.py": ("any_value_is_accepted_or_refused_cleanly",),
    "security/test_zmtp.py": ("invalid_zmtp_ends_the_kernel[an ERROR command",),
    "skills/test_inside.py": (
        "algorithmic_art_examples_work",
        "mcp_builder_examples_work",
        "pdf_examples_work",
        "pptx_examples_work",
        "xlsx_examples_work",
    ),
    "snapshots/test_damaged.py": (
        "damaged_snapshot_makes_one_start_cold[a bit flipped",
        "damaged_snapshot_makes_one_start_cold[a file missing",
        "damaged_snapshot_makes_one_start_cold[truncated",
        "undamaged_copy_is_restored",
    ),
    "snapshots/test_editable.py": ("snapshot_covers_editable_installs",),
    "snapshots/test_languages.py": ("bash_kernels_are_restored",),
    "snapshots/test_left_builder.py": (
        "builder_ends_with_its_program_or_when_it_was_left_too_long[xfinish",
    ),
    "snapshots/test_snapshot_queue.py": (
        "builder_ends_with_its_server[killed with a child that stays",
        "failing_snapshot_is_tried_twice",
        "program_leaves_its_builder_to_finish",
        "snapshots_are_made_one_at_a_time_with_low_priority",
        "store_removes_least_recently_used_snapshot",
    ),
    "snapshots/test_spares.py": (
        "busy_sandbox_becomes_no_spare",
        "killed_spare_does_not_stop_next_start",
        "setting_turns_spares_off",
        "spare_ends_with_its_process[exits",
        "spare_is_removed_after_keep_seconds",
        "start_of_other_kind_does_not_take_spare",
    ),
    "snapshots/test_unfit.py": (
        "fewer_cpus_start_cold",
        "other_mounts_and_limits_start_cold",
    ),
}
"""Files below tests/, and the beginnings of their tests' names without ``test_``."""


BY_USER: dict[str, tuple[str, ...]] = {
    "releases/test_switch.py": (
        "first_start_after_a_switch_is_restored",
        "running_kernel_keeps_its_runsc_over_an_update_of_the_package[on",
        "start_whose_program_is_replaced_meanwhile_is_begun_again",
    ),
}
"""The same for tests that the ordinary user's part has (``tests/run_as_user.py``)."""


def is_by_user(file: str, name: str) -> bool:
    """Whether root runs the test ``name`` of ``file`` only with ``--all``."""
    return name.removeprefix("test_").startswith(BY_USER.get(file, ()) or ("\0",))


def is_long(file: str, name: str) -> bool:
    """Whether the test ``name`` of ``file``, a path below tests/, runs only with ``--all``."""
    return name.removeprefix("test_").startswith(LONG.get(file, ()) or ("\0",))
