"""Fits matplotlib's SVG into the page: its colours and font, unique names, and a text alternative."""

from __future__ import annotations

from xml.etree import ElementTree

from markupsafe import Markup

from ldm_vae.report.numbers import printable

# Matplotlib draws with these colours; `inline` replaces them by those of the page.
COLOURS = tuple(f"#c0000{i}" for i in range(1, 9))  # var(--series-1) and so on
INK, GRID = "#0a0b0c", "#0a0b0d"  # currentColor and var(--grid)
SVG = "http://www.w3.org/2000/svg"


def inline(text: str, identifier: str, title: str, description: str) -> Markup:
    """The SVG as an element of the page.

    text: what matplotlib wrote, with COLOURS, INK and GRID where the page has its own colours.
    identifier: a name that is unique in the page.
    title, description: the text alternative.
    """
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, f"{identifier}-{value}")
            elif name.endswith("}href"):
                del element.attrib[name]
                element.set("href", f"#{identifier}-{value.removeprefix('#')}")
            elif value.startswith("url(#"):
                element.set(name, f"url(#{identifier}-{value.removeprefix('url(#')}")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for place, (tag, content) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{identifier}-{tag}"})
        child.text = printable(content)
        root.insert(place, child)
    root.attrib |= {"role": "img", "aria-labelledby": f"{identifier}-title {identifier}-desc"}
    ElementTree.register_namespace("", SVG)
    svg = ElementTree.tostring(root, encoding="unicode")
    for number, colour in enumerate(COLOURS, start=1):
        svg = svg.replace(colour, f"var(--series-{number})")
    return Markup(svg.replace(INK, "currentColor").replace(GRID, "var(--grid)"))
