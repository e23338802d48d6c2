"""Settings: what there is, what is accepted, and the one place that reads them."""
