"""Marker for long tests, which run only with ``scripts/test --all``."""

from __future__ import annotations

import os

import pytest

ALL = os.environ.get("GK_TEST_ALL") == "1"
needs_all = pytest.mark.skipif(not ALL, reason="takes long: run scripts/test --all")
