"""The record of each sandbox, and the removal of sandboxes by whichever process is left."""
