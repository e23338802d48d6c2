"""Tests that attack as hostile code in a notebook: the promises of docs/threat-model.md."""
