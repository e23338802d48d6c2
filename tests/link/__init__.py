"""The link, without a byte of I/O: frames, states, flow, and whatever a hostile end may send."""
