"""Files of outputs that are shown as pages, and what such pages keep."""
