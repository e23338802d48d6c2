"""From a SandboxSpec to a plan that a runtime carries out: pure functions only, no effects."""
