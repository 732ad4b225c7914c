"""How the documentation is built: Sphinx reads the Markdown pages of this folder.

Every warning is an error in the build that .ci/run makes, so a link to a page or a heading that is not there fails.
"""

from __future__ import annotations

import walsync._version

project = "walsync"
author = "walsync contributors"
copyright = "2026, walsync contributors"
version = release = walsync._version.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

# Headings can be linked to as they can on code hosting sites; the depth is that of the deepest page.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "fieldlist"]

# A single backtick in a docstring is code, as it is in the pages.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
add_module_names = False

html_theme = "furo"
html_title = "walsync"
html_show_sourcelink = False
