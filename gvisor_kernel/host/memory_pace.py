"""Intervals at which a sandbox's memory is measured, and how far it may exceed its limit.

For the bridge, and for the helper on a node, which imports no bridge.
"""

from __future__ import annotations

import os

MAX_INTERVAL_SECONDS = 0.1
"""The longest time between two measurements."""
MIN_INTERVAL_SECONDS = 0.005
MAX_GROWTH = max(4, os.cpu_count() or 1) * 1024**3
"""Bytes per second that a sandbox can touch (measured: about 2 GiB/s on two cores). The nearer the
limit, the sooner the next measurement, so that this rate exceeds the limit only a little."""
MAX_OVERRUN = 128 * 1024**2
"""Bytes over the limit above which the whole sandbox is killed, without asking PID 1."""


def seconds_to_next_measurement(used: int, limit: int) -> float:
    """Return how long the next measurement may wait."""
    return min(MAX_INTERVAL_SECONDS, max(MIN_INTERVAL_SECONDS, (limit - used) / MAX_GROWTH))
