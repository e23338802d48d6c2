"""``python -m gvisor_kernel``: the command line. Installed kernelspecs start it as well."""

from __future__ import annotations

import sys

from gvisor_kernel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
