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
from gvisor_kernel.config.entry_points import find_names
from gvisor_kernel.config.packages import check_packages
from gvisor_kernel.config.settings import SETTINGS, SandboxSpec, find_entry, find_own_settings
from gvisor_kernel.config.validators import check_image, parse_value
from gvisor_kernel.errors import RuntimeMissing, SettingError, UnknownSetting

CONSTRUCTOR = frozenset({"config", "connection_info", "kernel_id", "kernel_spec", "log", "parent"})
"""Arguments that jupyter_client passes to a provisioner besides the keys of the kernelspec."""
OWN = tuple(name for name in find_names() if name not in SETTINGS)
"""The runtimes, each of which may have a setting of its own that has its name."""


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
        | {
            name: Unchecked(dict, f'The setting that only the runtime "{name}" has, if it has one.')
            for name in OWN
        }
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
            if name not in (*SETTINGS, *OWN) and not isinstance(value, Config)
        }
        self._asked = {}
        for name in {*SETTINGS, *OWN} & stanza.keys():
            if name in configured or name in OWN:
                self._asked[name] = stanza[name]
            else:
                setattr(self, name, stanza[name])

    def sandbox_spec(self, *, strict: bool = False) -> SandboxSpec:
        """Return the validated settings.

        ``strict``: limits and mounts that were asked for, and that Jupyter's configuration does not
        allow, are wrong values. Otherwise what it allows is in their place.

        :raises SettingError: for the first setting with a wrong value
        :raises UnknownSetting: for the first name that is no setting
        :raises RuntimeMissing: when the runtime cannot be imported
        """
        for name, value in self._unknown.items():
            raise UnknownSetting(name, value, [*SETTINGS, *find_own_settings()])
        common = {name: self._find_value(name, strict) for name in SETTINGS}
        spec = SandboxSpec(**common, own=self._find_own(common["runtime"]))
        entry = find_entry(spec.runtime)
        check_image(entry.images, spec.image)
        check_packages(spec.packages, spec.command)
        if spec.profile is not None and not entry.shows_profile:
            accepted = f"None: the runtime {spec.runtime} cannot show a profile"
            raise SettingError("profile", spec.profile, accepted)
        entry.check(spec)
        return spec

    def _find_own(self, runtime: str) -> AnyValue:
        """Return the accepted value of the runtime's own setting; None if it has none. Those of
        other runtimes are only checked, if they are given."""
        found = None
        for name in OWN:
            value, asked = getattr(self, name), self._asked.get(name)
            is_given = value != {} or asked is not None
            if not is_given and name != runtime:
                continue
            try:
                setting = find_entry(name).setting
            except RuntimeMissing:
                if name == runtime:
                    raise
                continue
            if setting is not None:
                accepted = setting.accept(name, value, asked)
                found = accepted if name == runtime else found
            elif is_given:
                raise UnknownSetting(name, value or asked, [*SETTINGS, *find_own_settings()])
        return found

    def _find_value(self, name: str, strict: bool) -> AnyValue:
        """Return the accepted value of a setting, by the rule for a value in both places."""
        entry, value, asked = SETTINGS[name], getattr(self, name), self._asked.get(name)
        accepted = entry.accept(name, value)
        refuses = strict and name == "mounts"
        if name not in self._asked or (entry.both == "configuration" and not refuses):
            return accepted
        chosen = entry.accept(name, asked)
        place = f"c.GVisorProvisioner.{name} in Jupyter's configuration"
        if refuses:
            if not set(chosen) <= set(accepted):
                raise SettingError(name, asked, f"mounts that {place} has, or leave it out")
            return accepted
        if entry.both == "lower":
            if strict and chosen > accepted:
                raise SettingError(name, asked, f"at most {value!r}, as {place} says")
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
