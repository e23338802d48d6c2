"""Makes the plan of a kernel that no Jupyter manager starts: for the launcher and the commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_core.application import JupyterApp
from traitlets import TraitError
from traitlets.config import Config

from gvisor_kernel.bridge import KernelIdentity
from gvisor_kernel.config.jupyter_config import CONSTRUCTOR, GVisorEgress
from gvisor_kernel.config.settings import SETTINGS, SandboxSpec, find_own_settings
from gvisor_kernel.egress.kinds import PACKAGES, Route
from gvisor_kernel.egress.routes import parse_routes
from gvisor_kernel.errors import KernelspecError, UnknownSetting
from gvisor_kernel.jupyter.kernelspecs import PROVISIONER, find_kernelspecs
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel.client import private_connection_info, read_address
from gvisor_kernel.kernel.command import choose_program
from gvisor_kernel.kernel.plan import KernelPlan, without_user
from gvisor_kernel.runtimes.base import LaunchRequest


class _Configuration(JupyterApp):
    """Jupyter's configuration files as a server reads them, so that the same limits apply."""

    name = "jupyter-server"
    config_file_name = "jupyter_server_config"


def check_provisioner(kernel_name: str) -> None:
    """Check that Jupyter would start kernels of this kernelspec with our provisioner.

    :raises KernelspecError: when there is no such kernelspec, or when it uses another provisioner
    """
    application, kernel_spec = _find_kernel_spec(kernel_name)
    stanza = kernel_spec.metadata.get("kernel_provisioner", {})
    provisioner = stanza.get("provisioner_name", _find_default(application))
    if provisioner == PROVISIONER:
        return
    names = ", ".join(dict.fromkeys(spec.name for spec in find_kernelspecs()))
    raise KernelspecError(
        f"The kernelspec {kernel_name!r} does not start kernels in gVisor: its provisioner is"
        f" {provisioner}.",
        f"name one of these kernelspecs: {names}." if names else "run: gvisor-kernel install",
    )


def _find_kernel_spec(kernel_name: str) -> tuple[_Configuration, KernelSpec]:
    application = _Configuration()
    application.load_config_file()
    manager = KernelSpecManager(parent=application)
    try:
        return application, manager.get_kernel_spec(kernel_name)
    except NoSuchKernel as error:
        raise KernelspecError(
            f"There is no kernelspec named {kernel_name!r}.",
            "list the kernelspecs: jupyter kernelspec list",
        ) from error
    except (OSError, ValueError, TypeError, TraitError) as error:
        folder = manager.find_kernel_specs().get(kernel_name, kernel_name)
        raise KernelspecError(
            f"The kernelspec {folder}/kernel.json cannot be read: {error}.",
            "repair the file, or remove the folder and install the kernelspec again.",
        ) from error


def find_unsandboxed(configured: bool = True) -> list[str]:
    """Return the names of the kernelspecs whose kernels a server starts without a sandbox.

    ``configured``: False for programs other than servers. They read no configuration, as nbclient,
    or make the factory of provisioners before they hand it theirs, as Jupyter's consoles do.
    One that cannot be read is left out: nothing starts it.
    """
    application = _Configuration()
    if configured:
        application.load_config_file()
    manager = KernelSpecManager(parent=application)
    return sorted(name for name, (_, is_ours) in read_kernelspecs(manager).items() if not is_ours)


def read_kernelspecs(manager: KernelSpecManager) -> dict[str, tuple[KernelSpec, bool]]:
    """Return each kernelspec that can be read, and whether its kernels start in sandboxes."""
    default = _find_default(manager.parent)
    found = {}
    for name, folder in manager.find_kernel_specs().items():
        with suppress(OSError, ValueError, TypeError, AttributeError, TraitError):
            spec = KernelSpec.from_resource_dir(folder)
            found[name] = (spec, _find_settings(spec.metadata, default) is not None)
    return found


def _find_default(application: Any) -> str:
    """Return the provisioner of kernelspecs that name none, by the application's configuration."""
    return str(KernelProvisionerFactory(parent=application).default_provisioner_name)


def _find_settings(metadata: Mapping[str, Any], default: str) -> dict[str, Any] | None:
    """Return a kernelspec's settings of our provisioner; None if another one starts its kernels."""
    stanza = metadata.get("kernel_provisioner", {})
    if stanza.get("provisioner_name", default) != PROVISIONER:
        return None
    return dict(stanza.get("config", {}))


def read_configuration() -> Config:
    """Return the configuration that a Jupyter server of this user would read."""
    application = _Configuration()
    application.load_config_file()
    return application.config


def find_routes(config: Config) -> dict[str, Route]:
    """Return the routes to the network that exist in ``config``.

    :raises SettingError: when one is not described correctly
    """
    return parse_routes(GVisorEgress(config).configured_routes())


def make_provisioner(settings: Mapping[str, Any], config: Config) -> GVisorProvisioner:
    """Return what would start kernels whose kernelspec has ``settings``.

    :raises SettingError: when a setting is none of a kernelspec
    """
    for name in CONSTRUCTOR.intersection(settings):
        raise UnknownSetting(name, settings[name], [*SETTINGS, *find_own_settings()])
    return GVisorProvisioner(kernel_id="", config=config, **settings)


def check_routes(settings: Mapping[str, Any], config: Config) -> tuple[str, ...]:
    """Return the names of the routes of kernels whose kernelspec has ``settings``.

    :raises SettingError: when a setting is wrong, or a route does not exist
    """
    provisioner = make_provisioner(settings, config)
    spec = provisioner.sandbox_spec()
    provisioner.find_routes(spec, Path("/nonexistent"))  # no notebook's folder is known here
    return spec.egress


def make_packages_plan(settings: Mapping[str, Any], kernel_name: str, config: Config) -> KernelPlan:
    """Make the plan of the kernel in which the packages of a kernelspec are installed.

    It has the image and the limits of the kernelspec's ``settings``, nothing of the user, and the
    route to the package indexes.

    :raises GvisorKernelError: when a setting or the kernel's program is wrong
    """
    provisioner = make_provisioner(settings, config)
    spec = replace(without_user(provisioner.sandbox_spec()), egress=(PACKAGES,))
    launcher = [sys.executable, "-m", "gvisor_kernel", "launch"]
    python, argv = choose_program(spec, launcher, [])
    info = private_connection_info()
    return KernelPlan(
        spec=spec,
        request=LaunchRequest(kernel_name, "", Path("/"), python, {}),
        identity=KernelIdentity(
            kernel_name, info["key"].encode(), "hmac-sha256", spec.memory_limit
        ),
        address=read_address(info),
        argv=argv,
        routes=provisioner.find_routes(spec, Path("/")),
    )


def make_plan_ahead(
    kernel_name: str, kernel_spec: Any, folder: Path, application: Any
) -> KernelPlan | None:
    """Make the plan of a kernel that a running server may start in ``folder``, from its settings.

    ``application``: the server's, whose configuration holds. Returns None if the server starts
    kernels of ``kernel_spec`` without our provisioner.

    :raises GvisorKernelError: when a setting is wrong, or the kernel's program cannot be used
    """
    settings = _find_settings(kernel_spec.metadata, _find_default(application))
    if settings is None:
        return None
    return _plan_for(kernel_name, kernel_spec, settings, folder, application.config)


def _plan_for(
    name: str, kernel_spec: KernelSpec, settings: Mapping[str, Any], folder: Path, config: Config
) -> KernelPlan:
    provisioner = GVisorProvisioner(
        kernel_id="", kernel_spec=kernel_spec, parent=None, config=config, **settings
    )
    return provisioner.plan_ahead(name, folder)


def find_spec(metadata: Mapping[str, Any], application: Any) -> SandboxSpec | None:
    """Return what the sandboxes of kernels would be whose kernelspec has ``metadata``.

    ``application``: the server's, whose configuration holds. Returns None if the server starts such
    kernels without our provisioner.

    :raises GvisorKernelError: when a setting is wrong
    """
    settings = _find_settings(metadata, _find_default(application))
    if settings is None:
        return None
    return make_provisioner(settings, application.config).sandbox_spec()


def make_plan(kernel_name: str, info: dict[str, Any], kernel_id: str) -> KernelPlan:
    """Make a plan from a kernelspec, Jupyter's configuration and the address in ``info``.

    :raises GvisorKernelError: when the kernelspec, a setting or the kernel's program is wrong
    """
    application, kernel_spec = _find_kernel_spec(kernel_name)
    settings = kernel_spec.metadata.get("kernel_provisioner", {}).get("config", {})
    plan = _plan_for(kernel_name, kernel_spec, settings, Path.cwd(), application.config)
    scheme = info.get("signature_scheme", plan.identity.signature_scheme)
    return replace(
        plan,
        request=replace(plan.request, kernel_id=kernel_id),
        identity=replace(plan.identity, key=info["key"].encode(), signature_scheme=scheme),
        address=read_address(info),
    )
