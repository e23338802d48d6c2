"""The runtime ``runsc``: sandboxes by the runsc that is installed on this host."""
