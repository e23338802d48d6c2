"""Options of Jupyter that a person may give ``gvisor-kernel lab``: a list. Others are refused.

A refusal says what the option would open, where that is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from traitlets.config import Config
from traitlets.config.loader import DeferredConfigString

from gvisor_kernel.errors import GvisorKernelError

ACCEPTED = (
    r"ServerApp\.(base_url|browser|certfile|keyfile|custom_display_url|log_level|port|port_retries"
    r"|open_browser|shutdown_no_activity_timeout|iopub_\w+|rate_limit_window|max_body_size"
    r"|max_buffer_size|quit_button)"
    r"|(Sandbox|Mapping|AsyncMapping)KernelManager\.(cull_\w+|kernel_info_timeout)"
    r"|LabApp\.(app_dir|log_level)|GVisor(Provisioner|Egress)\.\w+"
    r"|GVisorServer\.(warm|shared_storage)"
)
OPENS = {
    r"\w+\.terminals_enabled|Term\w+\..*": "terminals, which are shells of this machine",
    r"ServerApp\.(jpserver_extensions|extra_services|\w+_class)": "code that answers beside it",
    r"\w+\.allow_origin\w*|\w+\.allow_credentials": "the server to pages of other sites",
    r"\w+\.(disable_check_xsrf|allow_unauthenticated_access)": "the server to pages of other sites",
    r"\w+\.(token|password|\w*password\w*)|IdentityProvider\..*": "the server to who knows it",
    r"ServerApp\.(ip|sock\w*|allow_remote_access|local_hostnames)": "the server to other machines"
    " (from there, use: ssh -L PORT:127.0.0.1:PORT THIS_MACHINE)",
    r"\w+\.(root_dir|notebook_dir|preferred_dir)": "another folder; name it instead of FOLDER",
    r"\w+\.(allow_hidden|checkpoint\w*|\w+_hook|files_handler\w*)": "files that are hidden",
    r"\w*Kernel(Spec)?Manager\..*|KernelProvisionerFactory\..*|\w+\.\w*kernel\w*": "kernels"
    " without a sandbox",
    r"LabApp\.(extension_manager|lock_all_plugins|\w+_dir|\w+path|dev_mode|core_mode|watch)": "the"
    " code of JupyterLab's page, or settings of other servers",
    r"\w+\.(tornado_settings|\w+_options|trust_xheaders)": "any of the server's doors",
    r"GVisorServer\.closed": "all routes of the server",
}


def parse_options(texts: Iterable[str]) -> Config:
    """Return the configuration in options such as ``--ServerApp.base_url=/x/``.

    :raises GvisorKernelError: for one that is not in the list
    """
    config = Config()
    for text in texts:
        found = re.fullmatch(r"--(\w+)\.(\w+)=(.*)", text, re.DOTALL)
        if not found:
            raise GvisorKernelError(
                f"{text} is no option of this command.",
                "see gvisor-kernel lab --help; write Jupyter's options as --CLASS.NAME=VALUE.",
            )
        name = f"{found[1]}.{found[2]}"
        if not re.fullmatch(ACCEPTED, name):
            reasons = [what for opens, what in OPENS.items() if re.fullmatch(opens, name)]
            opened = f" It would open {reasons[0]}." if reasons else ""
            raise GvisorKernelError(
                f"--{name} is not accepted here.{opened}",
                "leave it out; where you trust what you open, run jupyter lab.",
            )
        config[found[1]][found[2]] = DeferredConfigString(found[3])
    return config
