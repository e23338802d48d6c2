"""The programs that make sandboxes, behind one small interface (``base``)."""
