"""What takes long, and runs with ``scripts/test --all`` alone."""

from __future__ import annotations

import os

import pytest

ALL = os.environ.get("GK_TEST_ALL") == "1"
needs_all = pytest.mark.skipif(not ALL, reason="takes long: scripts/test --all has it")
