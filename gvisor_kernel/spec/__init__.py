"""Pure functions that turn settings and facts into specifications of a sandbox. No side effects."""
