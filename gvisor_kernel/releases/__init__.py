"""Releases of runsc beside the system's: which are installed and chosen, and where they come from.

Nothing here starts a sandbox, and only ``bucket`` uses the network.
"""

import re

BASE = "https://storage.googleapis.com/gvisor/releases"
TRIED, LATEST = "20260817", "latest"
"""The newest release that was tried with this version of gvisor-kernel, and the bucket's newest."""
DATE = re.compile(r"[0-9]{8}(\.[0-9]{1,3})?")
"""The name of a release in the bucket."""
SIZE = "some 166 MB"
"""Of a release, for who is asked before anything is sent to the bucket."""
SYSTEM = "system"
"""Chosen: the runsc on the PATH. With a dash and digits: a copy of one that was replaced."""
