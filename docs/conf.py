"""Sphinx configuration: ``python -m sphinx -W docs docs/_build/html``."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))

project = _PROJECT["project"]["name"]
author = _PROJECT["project"]["authors"][0]["name"]
project_copyright = author
version = release = _PROJECT["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
language = "en"

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

# Links to headings work as on any forge: [text](page.md#the-heading).
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
