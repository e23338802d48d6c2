"""The record of each sandbox, and its removal by whoever is left."""
