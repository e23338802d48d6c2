"""The first module of PID 1: imports the guest itself quickly, and runs it."""

from __future__ import annotations

from gvisor_kernel.guest.lone_imports import lone_imports
from gvisor_kernel.guest.module_files import read_quickly
from gvisor_kernel.guest.stack_room import with_stack_room


def begin(*ahead: str) -> None:
    """Run ``main.main`` with ``ahead``. Does not return."""
    read_quickly()
    with lone_imports():
        with_stack_room(_import_main)()
    from gvisor_kernel.guest.main import main

    main(*ahead)


def _import_main() -> None:
    import gvisor_kernel.guest.main  # noqa: F401
