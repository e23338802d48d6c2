"""Settings: their names, defaults and accepted values. The only package that reads them."""
