"""The first module of PID 1: imports the guest itself quickly, and runs it."""

from __future__ import annotations

from gvisor_kernel.guest.interpreter import lone_imports, read_quickly, with_stack_room


def begin(*ahead: str) -> None:
    """Run ``main.main`` with ``ahead``. Does not return."""
    read_quickly()
    with lone_imports():
        with_stack_room(_import_main)()
    from gvisor_kernel.guest.main import main

    main(*ahead)


def _import_main() -> None:
    import gvisor_kernel.guest.main  # noqa: F401
