"""Configuration of the documentation's site. ``scripts/docs`` builds it.

The pages are plain Markdown, which also reads well without the site. ``docs/ext`` adds what the
site needs and Markdown has not: the table of contents, and reference pages made from the code.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
for folder in (DOCS, DOCS.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from gvisor_kernel import __version__  # noqa: E402

project = "gvisor-kernel"
author = "the authors of gvisor-kernel"
project_copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "ext.hooks"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["ext"]
nitpicky = True

# The anchors that GitHub gives to headings, so that links work there and here.
myst_heading_anchors = 6
# A block of code that names no language has none.
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = f"gvisor-kernel {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(DOCS / "ext/scorer.js")
html_copy_source = False
html_show_sphinx = False
pygments_style = "default"
pygments_dark_style = "github-dark"

linkcheck_timeout = 20
linkcheck_retries = 1
linkcheck_workers = 4
linkcheck_ignore = [
    # Addresses of examples, and of this machine.
    r"https?://(127\.0\.0\.1|localhost|[\w.]*example)\b",
    # A mirror of PyPI has packages and no pages of projects; PyPI itself shows them to browsers.
    r"https://pypi\.org/project/",
]
