"""The packages of ``install --with``: installs them, and removes those that nothing uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gvisor_kernel.cli.images import progress
from gvisor_kernel.environments.environment import Environment
from gvisor_kernel.environments.store import Store
from gvisor_kernel.errors import GvisorKernelError, KernelspecError
from gvisor_kernel.host.sizes import describe_size
from gvisor_kernel.jupyter.kernelspecs import find_kernelspecs, read_kernelspec
from gvisor_kernel.jupyter.plan_factory import make_packages_plan, read_configuration
from gvisor_kernel.kernel.environment_builder import (
    build_environment,
    describe_environment,
    find_environment,
)
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.shown_text import printable_name


def install_packages(
    settings: Mapping[str, object], name: str, requirements: tuple[str, ...]
) -> Environment:
    """Return the environment of ``requirements`` for the kernelspec ``name``; make it if necessary.

    ``settings`` are all settings of the kernelspec. Prints what is done.

    :raises GvisorKernelError: when a setting is wrong, or the packages cannot be installed
    """
    plan = make_packages_plan(settings, name, read_configuration())
    found = find_environment(plan, requirements)
    if found is not None:
        print(f"Installed before: {printable_name(describe_environment(found))}")
        return found
    print(f"Installing {' '.join(requirements)} in a sandbox", flush=True)
    with progress() as report:
        report("Starting a sandbox", 0.0)
        steps = iter(range(1, 100))
        built = build_environment(
            plan, requirements, lambda line: report(line[:60], min(next(steps, 99), 95) / 100)
        )
    print(f"Installed {printable_name(describe_environment(built))}")
    return built


def remove_unused() -> None:
    """Remove the environments that no kernelspec and no running kernel uses. Prints which."""
    if not Store.exists():
        return
    try:
        store = Store.open()
        found = [str(kernelspec.directory) for kernelspec in find_kernelspecs()]

        def is_used(environment: Environment, folders: list[str]) -> bool:
            return any(_uses(Path(folder), environment) for folder in {*folders, *found})

        with records.locked():
            removed = store.remove_unused(is_used, records.environments_in_use())
    except (OSError, GvisorKernelError) as error:
        print(f"Packages that nothing uses were not removed: {printable_name(str(error))}")
        return
    for environment in removed:
        names = " ".join(environment.requirements)
        print(f"Removed the packages of {printable_name(names)}, {describe_size(environment.size)}")


def _uses(folder: Path, environment: Environment) -> bool:
    try:
        packages = read_kernelspec(folder).settings.get("packages")
    except KernelspecError:
        return False
    return isinstance(packages, Mapping) and packages.get("environment") == environment.digest
