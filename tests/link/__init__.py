"""The link without I/O: frames, states, flow control, and everything a hostile end may send."""
