"""What makes a site of the pages of docs/: see ``hooks`` for Sphinx's part of it."""
