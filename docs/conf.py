"""The site: `make docs` builds these pages and the docstrings into build/docs.

Pages are read on a forge, too, so they are plain Markdown with relative links. Files at the root of the checkout are
included where they belong; nothing stands in two places.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]  # the package of this very checkout; docstrings.py

from docstrings import to_rest  # noqa: E402

project = "ldm_vae"
author = copyright = "the ldm_vae authors"
release = metadata.version("ldm-vae")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
myst_heading_anchors = 3  # links to headings, as forges make them
highlight_language = "none"  # a block that names no language has none

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autoclass_content = "both"  # arguments are described in __init__
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True, "special-members": "__call__"}

# Names of this package must lead somewhere. Those of others would need their indices, and a build needs no network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!ldm_vae\b).*"), ("py:.*", r"ldm_vae\.(.*\.)?[A-Z]\w*T")]  # and type variables

# Kept by a group that many scientific projects rely on; its fonts and scripts come with it.
html_theme = "pydata_sphinx_theme"
html_title = "ldm_vae"
html_sidebars = {"**": ["all_pages.html"]}
html_theme_options: dict[str, Any] = {
    "navbar_center": [],
    "show_toc_level": 2,
    "footer_end": [],
    "primary_sidebar_end": [],
}
html_show_sourcelink = False

# Files outside of this folder that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "extend.md",
    "CHANGELOG.md": "changes.md",
    "configs/RESULTS.md": "results.md",
}


def links_from_here(text: str, folder: Path) -> str:
    """Markdown of a file in `folder` -> the same, with its links to files as seen from this folder.

    A file that is a page of the site becomes that page; another one outside of this folder becomes a download.
    """

    def link(found: re.Match[str]) -> str:
        name, hash_sign, heading = found[1].partition("#")
        path = (folder / name).resolve()
        if not name or not path.is_file() or not path.is_relative_to(ROOT):
            return found[0]
        inside = path.relative_to(ROOT).as_posix()
        if path.is_relative_to(HERE) or inside in PAGES:
            target = PAGES.get(inside) or path.relative_to(HERE).as_posix()
            return f"]({target}{hash_sign}{heading})"
        return f"](path:{os.path.relpath(path, HERE)})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    content[0] = links_from_here(content[0], HERE)


def read_included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    content[0] = links_from_here(content[0], (HERE / path).resolve().parent)


def read_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    if isinstance(thing, type) and issubclass(thing, BaseModel):
        inherited = inspect.cleandoc(BaseModel.__init__.__doc__ or "").splitlines()[0]
        if inherited in lines:  # autodoc puts it behind the text of each configuration
            del lines[lines.index(inherited) :]
    lines[:] = to_rest(lines)


def read_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returned: str
) -> tuple[str, str] | None:
    """A configuration is made from a recipe; its fields are listed below it, and need not be its arguments, too."""
    return ("", "") if isinstance(thing, type) and issubclass(thing, BaseModel) else None


def skip_member(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """What pydantic adds to each model is not of interest."""
    return True if name in {"model_config", "model_post_init"} else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("autodoc-skip-member", skip_member)
