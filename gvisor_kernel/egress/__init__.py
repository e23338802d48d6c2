"""Named ways out of a sandbox: routes, the rules for them, and what was let through."""
