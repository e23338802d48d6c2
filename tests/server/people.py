"""Who people are, and what they may, to a server of the tests: classes that its options name.

Whoever has the token is whom the header ``Test-User`` names.
"""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.auth.identity import IdentityProvider, User

HEADER = "Test-User"
WITHOUT_CONTENTS = "eve"
"""Somebody who may use kernels, and may not read the server's files."""


class People(IdentityProvider):
    """Knows people by their names."""

    async def _get_user(self, handler: Any) -> User | None:
        # Jupyter's own answer is somebody without a name, for a token or a cookie.
        if self.get_token(handler) != self.token:
            return None
        handler._token_authenticated = True
        return User(username=handler.request.headers.get(HEADER, ""))

    get_user = _get_user


class Rights(Authorizer):
    """Everybody may do everything, except one."""

    def is_authorized(self, handler: Any, user: User, action: str, resource: str) -> bool:
        return user.username != WITHOUT_CONTENTS or resource != "contents"
