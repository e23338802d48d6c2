"""The work of ``install`` and ``uninstall``: a kernelspec is added to Jupyter, or removed.

``install.py`` declares their arguments.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from gvisor_kernel.cli.arguments import parse_settings
from gvisor_kernel.cli.images import progress
from gvisor_kernel.cli.offer import offer_runsc
from gvisor_kernel.cli.output import describe_error
from gvisor_kernel.cli.snapshots import build_missing
from gvisor_kernel.config.packages import split_requirements
from gvisor_kernel.config.settings import SandboxSpec, find_entry
from gvisor_kernel.config.validators import HOST_IMAGE, is_within
from gvisor_kernel.environments.environment import Environment, Store
from gvisor_kernel.errors import GvisorKernelError, KernelspecError
from gvisor_kernel.jupyter.default_provisioner import (
    NATIVE,
    VARIABLE,
    find_defaults,
    replace_native,
    restore_in,
    restore_native,
    set_default,
    unset_default,
)
from gvisor_kernel.jupyter.kernelspecs import (
    PROVISIONER,
    Kernelspec,
    check_destination,
    find_broken_kernelspecs,
    find_destination,
    find_first,
    find_kernelspecs,
    install_kernelspec,
    is_ours,
    is_searched,
    name_shown,
    read_kernelspec,
    remove_kernelspec,
    template_settings,
    update_kernelspec,
)
from gvisor_kernel.jupyter.plan_factory import (
    check_routes,
    make_packages_plan,
    make_provisioner,
    read_configuration,
)
from gvisor_kernel.kernel.command import choose_program, host_path
from gvisor_kernel.kernel.environment_builder import (
    build_environment,
    describe_environment,
    find_environment,
)
from gvisor_kernel.runtimes.mounts.host_python import find_host_python
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.shown_text import describe_size, printable_name


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
            removed = store.remove_unused(is_used, records.find_used(lambda it: it.environment))
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


def choose_place(arguments: argparse.Namespace) -> tuple[bool, str | None] | None:
    """Return (user, prefix) from the options; None if no place was named."""
    if arguments.user:
        return True, None
    if arguments.sys_prefix:
        return False, sys.prefix
    if arguments.prefix is not None:
        return False, arguments.prefix
    return None


def default_place() -> tuple[bool, str | None]:
    """Return (user, prefix) for an install without an option for the place."""
    if sys.prefix != sys.base_prefix or Path(sys.prefix, "conda-meta").is_dir():
        return False, sys.prefix
    return os.geteuid() != 0, None


def split_names(texts: list[str]) -> list[str] | None:
    """Return the names in options that may be repeated, and may have a list with commas each."""
    names = [name.strip() for text in texts for name in text.split(",")]
    return list(dict.fromkeys(names)) if texts else None


def find_settings(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the settings that the options of an install name.

    :raises GvisorKernelError: when an option has no value, or a setting is given twice
    """
    settings = parse_settings(arguments.settings)
    routes = split_names(arguments.egress)
    options = (("image", arguments.image), ("memory_limit", arguments.memory), ("egress", routes))
    for name, value in options:
        if value is not None:
            if name in settings:
                raise GvisorKernelError(
                    f"The setting {name} is given twice.",
                    f"leave out --set {name}=…, or the option of its own.",
                )
            settings[name] = value
    return settings


def find_installed(arguments: argparse.Namespace, name: str) -> Kernelspec:
    """Return the kernelspec ``name`` that ``--update`` changes: in the place that the options name,
    or the one that Jupyter uses.

    :raises KernelspecError: when there is none of gvisor-kernel, or another language is asked for
    """
    if arguments.language:
        raise KernelspecError(
            "--update keeps the language of a kernelspec.", "leave out --language, or --update."
        )
    place = choose_place(arguments)
    for kernelspec in find_kernelspecs(find_destination(*place) if place else None):
        if kernelspec.name == name:
            return kernelspec
    raise KernelspecError(
        f"There is no kernelspec {name!r} of gvisor-kernel to update, or it cannot be read.",
        "install it without --update, or name one of `jupyter kernelspec list`: --name NAME.",
    )


def find_requirements(
    arguments: argparse.Namespace, language: str, settings: dict[str, object]
) -> tuple[str, ...]:
    """Return the requirements of ``--with``; none without it.

    :raises GvisorKernelError: when one is not accepted, or the kernel could not import them
    """
    if not arguments.packages:
        return ()
    if language != "python":
        raise KernelspecError(
            f"--with installs Python packages, and a kernel in {language.title()} does"
            " not import them.",
            "leave out --with, or --language.",
        )
    if arguments.update:
        settings.pop("packages", None)
    if "packages" in settings:
        raise GvisorKernelError(
            "The setting packages is given twice.", "leave out --set packages=…, or --with."
        )
    return split_requirements(arguments.packages)


def check_kernel(settings: dict[str, object]) -> SandboxSpec:
    """Check that a kernel with ``settings`` finds its program in its image; return its settings.

    :raises GvisorKernelError: when a setting is wrong, or the kernel's program is missing
    """
    spec = make_provisioner(settings, read_configuration()).sandbox_spec()
    if find_entry(spec.runtime).images:
        return spec  # the engine may be on another machine, and the image may be pulled later
    python, argv = choose_program(spec, [], [])
    if spec.image != HOST_IMAGE or not argv:
        return spec
    if argv[1:2] == ("-m",) and find_spec(argv[2]) is None:
        raise KernelspecError(
            f"{sys.executable} has no module {argv[2]}, which the kernel needs.",
            f"run `{sys.executable} -m pip install {argv[2]}`, or choose an image that has it:"
            " --image NAME.",
        )
    program = shutil.which(argv[0], path=host_path(python)) or argv[0]
    real = os.path.realpath(program)
    if "/" not in argv[0] and not any(is_within(real, r) for r in find_host_python(python).roots):
        raise KernelspecError(
            f"The kernel's program {program} is {real}, which kernels cannot read.",
            f"install {argv[0]} below /usr or in {sys.prefix}, or choose an image that has it:"
            " --image NAME.",
        )
    return spec


def install(arguments: argparse.Namespace) -> None:
    """Write a kernelspec and print where.

    :raises GvisorKernelError: when a setting is wrong, the kernel's program is missing, or the
        kernelspec or runsc cannot be installed
    """
    user, prefix = choose_place(arguments) or default_place()
    settings = find_settings(arguments)
    template = f"gvisor-{arguments.language or 'python'}"
    name = template if arguments.name is None else arguments.name
    old = find_installed(arguments, name) if arguments.update else None
    language = (arguments.language or "python") if old is None else old.language
    destination = check_destination(user, prefix, name) if old is None else old.directory
    settings = {**(template_settings(template) if old is None else old.settings), **settings}
    requirements = find_requirements(arguments, language, settings)
    planned = {"packages": {"requirements": requirements, "environment": "0" * 64}}
    spec = check_kernel({**settings, **(planned if requirements else {})})
    if settings.get("egress"):
        check_routes(settings, read_configuration())
    missing = offer_runsc(spec, agreed=arguments.yes)
    with ExitStack() as held:
        if requirements:
            environment = install_packages(settings, name, requirements)
            held.enter_context(Store.open().held(environment, destination))
            settings["packages"] = {
                "requirements": list(requirements),
                "environment": environment.digest,
            }
        if old is not None:
            kernelspec = update_kernelspec(old, arguments.display_name, settings)
        else:
            kernelspec = install_kernelspec(
                user=user,
                prefix=prefix,
                name=name,
                display_name=arguments.display_name or name_shown(name, template),
                settings=settings,
                template=template,
            )
    remove_unused()
    print(f'Installed "{printable_name(kernelspec.display_name)}" in {kernelspec.directory}')
    make_default(arguments, user, prefix)
    if missing is not None:
        print(f"But no kernel can start yet. {describe_error(missing)}")
    if not is_searched(kernelspec.directory.parent):
        print(
            "Jupyter does not look there; start it with"
            f" JUPYTER_PATH={kernelspec.directory.parent.parent}"
        )
        return
    comes_first = not say_what_comes_first(kernelspec.directory)
    if comes_first and missing is None and not arguments.no_snapshot:
        build_missing(name)
    print("Check this machine with: gvisor-kernel doctor")


def make_default(arguments: argparse.Namespace, user: bool, prefix: str | None) -> None:
    """Do what ``--default`` and ``--replace-python3`` say, and print what was changed."""
    if arguments.is_default:
        path = set_default(user, prefix)
        print(f"In Jupyter's servers, kernelspecs without a provisioner use sandboxes now: {path}")
        print(
            "jupyter console, run, nbconvert and execute, papermill and other programs that manage"
            " kernels by themselves still start them without one: for these,"
            f" gvisor-kernel install --replace-python3, or {VARIABLE}={PROVISIONER} in their"
            " environment."
        )
        undo = f"gvisor-kernel uninstall --default{describe_place(user, prefix)}"
        print(f"Running servers must be restarted. Undo it with: {undo}")
    if arguments.replace_python3:
        replaced = replace_native(user, prefix)
        if say_what_comes_first(replaced.directory):
            print(f"So python3 still starts without a sandbox. Replaced was {replaced.directory}")
        else:
            print(f"The kernelspec python3 starts in sandboxes now: {replaced.directory}")


def describe_place(user: bool, prefix: str | None) -> str:
    """Return the option that names a place, after a space; nothing for the default one."""
    if (user, prefix) == default_place():
        return ""
    if user:
        return " --user"
    return " --sys-prefix" if prefix == sys.prefix else f" --prefix {shlex.quote(prefix or '')}"


def say_what_comes_first(directory: Path) -> bool:
    """Say so, and return True, if Jupyter finds another kernelspec of this name first."""
    first = find_first(directory.name) if is_searched(directory.parent) else None
    if first is None or first.resolve() == directory.resolve():
        return False
    print(f"But Jupyter uses {first}, which has the same name and comes first.")
    place = first.parent.parent.parent.parent  # PREFIX/share/jupyter/kernels/NAME
    if directory.name == NATIVE and not is_ours(first):
        where = (
            " --sys-prefix" if place == Path(sys.prefix) else f" --prefix {shlex.quote(str(place))}"
        )
        print(f"Replace that one: gvisor-kernel install --replace-python3{where}")
    return True


def undo_default(arguments: argparse.Namespace) -> None:
    """Undo the default in the place, and print what was changed."""
    place = choose_place(arguments) or default_place()
    changed = [path for path in (unset_default(*place), restore_native(*place)) if path is not None]
    for path in changed:
        print(f"Changed back: {path}")
    if not changed:
        print("Nothing to undo: sandboxes are not the default there.")
    for option in find_defaults():
        print(f"They still are elsewhere: gvisor-kernel uninstall --default {option}")


def uninstall(arguments: argparse.Namespace) -> None:
    """Remove every kernelspec of that name that is gvisor-kernel's.

    :raises KernelspecError: when there is none, or it cannot be removed
    """
    if arguments.is_default:
        undo_default(arguments)
        return
    place = choose_place(arguments)
    folder = find_destination(*place) if place else None
    found = [spec for spec in find_kernelspecs(folder) if spec.name == arguments.name]
    if not found:
        where = folder or "the folders where Jupyter looks"
        for file, reason in find_broken_kernelspecs().items():
            if file.parent.name == arguments.name:
                raise KernelspecError(
                    f"{file} cannot be read, so nobody knows whose it is: {reason}.",
                    f"remove the folder yourself: rm -r {shlex.quote(str(file.parent))}",
                )
        raise KernelspecError(
            f"There is no kernelspec {arguments.name!r} of gvisor-kernel in {where}.",
            "list the kernelspecs with: jupyter kernelspec list",
        )
    for kernelspec in found:
        directory = kernelspec.directory
        if kernelspec.name == NATIVE and restore_in(directory.parent) is not None:
            print(f"Changed back: {directory}" if directory.exists() else f"Removed {directory}")
            continue
        remove_kernelspec(kernelspec)
        print(f"Removed {directory}")
    remove_unused()
