"""The configuration that closes a Jupyter server, for ``gvisor-kernel lab`` and for hubs.

Named as classes and values, so that one file of Jupyter's configuration can have all of it; and a
list of the options that a person may give the command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from glob import escape
from typing import Any

from jupyter_core.paths import jupyter_config_path, jupyter_path
from jupyter_server.extension.config import ExtensionConfigManager
from traitlets.config import Config
from traitlets.config.loader import DeferredConfigString

from gvisor_kernel.config.settings import ASK, NEVER
from gvisor_kernel.errors import GvisorKernelError

OURS = "gvisor_kernel.server"
EXTENSIONS = ("jupyterlab", OURS, "notebook", "notebook_shim")
"""Extensions of the server that stay. Others, such as terminals and language servers, start
programs on the host."""
ACCEPTED = (
    r"ServerApp\.(base_url|browser|certfile|keyfile|custom_display_url|log_level|port|port_retries"
    r"|open_browser|shutdown_no_activity_timeout|iopub_\w+|rate_limit_window|max_body_size"
    r"|max_buffer_size|quit_button)"
    r"|(Sandbox|Mapping|AsyncMapping)KernelManager\.(cull_\w+|kernel_info_timeout)"
    r"|LabApp\.(app_dir|log_level)|GVisor(Provisioner|Egress)\.\w+"
    r"|GVisorServer\.(warm|shared_storage|hibernate_on_shutdown|cull_hibernates)"
)
"""Options that open nothing."""


def harden(config: Any) -> None:
    """Close the server that reads ``config``. Called in ``jupyter_server_config.py``.

    Kernels: sandboxes alone. Contents: the root folder's, without links and hidden files. Routes:
    those that JupyterLab needs. Who may log in, and from where, is left as it is.
    """
    server = config.ServerApp
    server.kernel_spec_manager_class = "gvisor_kernel.lab.kernels.SandboxKernelSpecManager"
    server.kernel_manager_class = "gvisor_kernel.lab.kernels.SandboxKernelManager"
    server.contents_manager_class = "gvisor_kernel.lab.contents.FolderContents"
    server.terminals_enabled = False
    if config.GVisorProvisioner.get("apply") != NEVER:
        config.GVisorProvisioner.apply = ASK  # a stranger's notebook names its kernelspec
    server.allow_external_kernels = False
    server.allow_origin = server.allow_origin_pat = ""
    server.allow_credentials = False
    server.disable_check_xsrf = False
    server.reraise_server_extension_failures = True  # without our extension routes were open
    server.jpserver_extensions = choose_extensions()
    config.FolderContents.allow_hidden = False
    config.GVisorServer.closed = True
    config.LabApp.news_url = None
    config.LabApp.check_for_updates_class = "jupyterlab.handlers.announcements.NeverCheckForUpdate"
    config.LabApp.extension_manager = "readonly"
    config.LabApp.lock_all_plugins = True
    for name in ("LabApp", "JupyterNotebookApp"):
        config[name].custom_css = False
        config[name].expose_app_in_browser = False
        # JupyterLab looks for extensions by a pattern, and would not find ours below a[1].
        config[name].extra_labextensions_path = [
            escape(path) for path in jupyter_path("labextensions") if escape(path) != path
        ]


def choose_extensions() -> dict[str, bool]:
    """Return which of the extensions that are enabled in Jupyter's folders stay so."""
    manager = ExtensionConfigManager(read_config_path=jupyter_config_path())
    found = manager.get_jpserver_extensions()  # type: ignore[no-untyped-call]
    return {name: name in EXTENSIONS for name in found} | {OURS: True}


def parse_options(texts: Iterable[str]) -> Config:
    """Return the configuration in options such as ``--ServerApp.base_url=/x/``.

    :raises GvisorKernelError: for one that is not in the list
    """
    config = Config()
    for text in texts:
        option, _, value = text.partition("=")
        if not re.fullmatch(f"--({ACCEPTED})", option):
            raise GvisorKernelError(
                f"{option} is not accepted: of Jupyter's options, as"
                " --CLASS.NAME=VALUE, this command takes those that cannot open the server.",
                "see gvisor-kernel lab --help; where you trust what you open, run jupyter lab.",
            )
        section, _, name = option.removeprefix("--").partition(".")
        config[section][name] = DeferredConfigString(value)
    return config
