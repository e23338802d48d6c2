"""The hub's spawner of the tests: each user is a number of the system without an account.

The hub imports it by its name. It needs JupyterHub, and root if it has numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Dict, Int, Unicode


class NumberSpawner(SimpleLocalProcessSpawner):  # type: ignore[misc]
    """Starts each user's server as the user's number, or without numbers as the hub's own user."""

    numbers = Dict(config=True, help="the number of each user")
    group = Int(None, allow_none=True, config=True, help="a group that all users have")
    run_template = Unicode(config=True, help="XDG_RUNTIME_DIR of a user: … {username} …")

    def make_preexec_fn(self, name: str) -> Callable[[], None]:
        number, home, group = self.numbers.get(name), self.home_dir, self.group

        def become_user() -> None:
            if number is not None:
                os.setgroups([] if group is None else [group])
                os.setgid(number)
                os.setuid(number)
            os.umask(0o022)
            os.chdir(home)

        return become_user

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        own = super().user_env(env)
        own["XDG_RUNTIME_DIR"] = self.run_template.format(username=self.user.name)
        own["LOGNAME"] = self.user.name
        return dict(own)
