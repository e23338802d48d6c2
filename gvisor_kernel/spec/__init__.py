"""Pure functions that turn settings and facts into what a sandbox is made of. No effects here."""
