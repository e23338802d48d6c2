"""Settings and facts become specifications: pure functions, no sandbox."""
