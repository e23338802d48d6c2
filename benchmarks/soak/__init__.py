"""A server's long day in a short time: starts, cells, floods, kills, and what is left of it all."""
