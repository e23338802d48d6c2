"""What hostile code in a notebook achieves: the promises of docs/threat-model.md."""
