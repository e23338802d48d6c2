"""Tests of egress: routes, the rules for them, budgets and the record of requests."""
