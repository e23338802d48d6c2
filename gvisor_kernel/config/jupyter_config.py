"""Turns Jupyter's configuration and a kernelspec into one frozen SandboxSpec, and reads routes.

This is the only module that reads settings. Variables that a client sends (``KERNEL_*``) are not
read.

Values are stored unchecked and validated in ``SandboxSettings.sandbox_spec()``, so that a wrong
value raises the same kind of error wherever it was written. Precedence: Jupyter's configuration
(the administrator), then the kernelspec, then the default; ``Setting.both`` has the exceptions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any as AnyValue

from traitlets import Any
from traitlets.config import Config, Configurable

from gvisor_kernel.config.egress import check_subset
from gvisor_kernel.config.nodes import check_nodes
from gvisor_kernel.config.packages import check_packages
from gvisor_kernel.config.settings import SETTINGS, SandboxSpec
from gvisor_kernel.config.validators import check_image, parse_value
from gvisor_kernel.errors import UnknownSetting

CONSTRUCTOR = frozenset({"config", "connection_info", "kernel_id", "kernel_spec", "log", "parent"})
"""Arguments that jupyter_client passes to a provisioner besides the keys of the kernelspec."""


class Unchecked(Any):
    """A trait that stores any value; whoever reads it validates it."""

    def __init__(self, make_default: Callable[[], AnyValue], help: str) -> None:
        super().__init__(make_default(), help=help)
        self._make_default = make_default
        self.tag(config=True)

    def default(self, obj: AnyValue = None) -> AnyValue:
        """Return the default, as a list or mapping of the instance's own, so that ``.append``
        works. Called by traitlets, once for each instance."""
        return self._make_default()

    def from_string(self, s: str) -> AnyValue:
        """Parse a value from Jupyter's command line."""
        return parse_value(s)


class SandboxSettings(Configurable):
    """All settings of a sandbox; the provisioner class inherits them.

    A kernelspec's ``config`` arrives as keyword arguments (jupyter_client's provisioner factory
    passes them); ``c.GVisorProvisioner.*`` overrides them. The constructor accepts wrong names and
    values: ``sandbox_spec()`` raises for them, at a point where Jupyter shows the error to a
    person.
    """

    # The namespace of the class, before it is made: a trait for each setting.
    locals().update(
        {name: Unchecked(entry.write_default, entry.help) for name, entry in SETTINGS.items()}
    )

    _unknown: dict[str, object]
    _asked: dict[str, object]
    """The kernelspec's values that Jupyter's configuration sets as well, or may set in part."""

    def __init__(self, **kwargs: AnyValue) -> None:
        stanza = {name: kwargs.pop(name) for name in set(kwargs) - CONSTRUCTOR}
        if not isinstance(kwargs.get("config"), Config | None):
            stanza["config"] = kwargs.pop("config")
        super().__init__(**kwargs)
        configured = self._find_my_config(self.config)
        self._unknown = {
            name: value
            for name, value in (*stanza.items(), *configured.items())
            if name not in SETTINGS and not isinstance(value, Config)
        }
        self._asked = {}
        for name in SETTINGS.keys() & stanza:
            if name in configured or SETTINGS[name].both == "merged":
                self._asked[name] = stanza[name]
            else:
                setattr(self, name, stanza[name])

    def sandbox_spec(self) -> SandboxSpec:
        """Return the validated settings.

        :raises SettingError: for the first setting with a wrong value
        :raises UnknownSetting: for the first name that is no setting
        """
        for name, value in self._unknown.items():
            raise UnknownSetting(name, value, SETTINGS)
        spec = SandboxSpec(**{name: self._find_value(name) for name in SETTINGS})
        check_image(spec.runtime, spec.image)
        check_packages(spec.packages, spec.command)
        check_nodes(spec.runtime, spec.ssh)
        return spec

    def _find_value(self, name: str) -> AnyValue:
        """Return the accepted value of a setting, by the rule for a value in both places."""
        entry, value, asked = SETTINGS[name], getattr(self, name), self._asked.get(name)
        if entry.both == "merged":
            return entry.accept(name, value, asked)
        accepted = entry.accept(name, value)
        if name not in self._asked or entry.both == "configuration":
            return accepted
        chosen = entry.accept(name, asked)
        if entry.both == "lower":
            return min(accepted, chosen)
        check_subset(name, chosen, accepted)
        return chosen


class GVisorEgress(Configurable):
    """The routes by which kernels may reach the network.

    The constructor accepts wrong names and values: ``read_routes`` raises for them.
    """

    routes = Unchecked(
        dict,
        inspect.cleandoc(
            """The routes that exist, by name. A kernel can use those that its setting "egress"
            names, and nothing else. Each is a mapping with "url" (one upstream, whose key stays
            outside the sandbox) or with "hosts" (names and ports to connect to). The route
            "packages" exists always. See docs/egress.md."""
        ),
    )

    def __init__(self, config: Config | None = None) -> None:
        section = {} if config is None else config.get("GVisorEgress", {})
        self._unknown = [name for name in section if name != "routes"]
        own = {"routes": section["routes"]} if "routes" in section else {}
        super().__init__(config=Config({"GVisorEgress": own}))

    def configured_routes(self) -> object:
        """Return the value of ``routes``, not validated yet.

        :raises UnknownSetting: when the configuration has another name for this class
        """
        for name in self._unknown:  # its value may contain a secret
            raise UnknownSetting(f"c.GVisorEgress.{name}", "not shown", ["c.GVisorEgress.routes"])
        return self.routes
