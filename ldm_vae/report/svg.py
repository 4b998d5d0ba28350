"""matplotlib's SVG -> an element of the page: its colours and font, names of its own, an alternative text."""

from __future__ import annotations

from xml.etree import ElementTree

from markupsafe import Markup

from ldm_vae.report.numbers import printable

COLOURS = tuple(f"#c0000{i}" for i in range(1, 9))  # stand-ins for var(--series-1) and so on
INK, GRID = "#0a0b0c", "#0a0b0d"  # for currentColor and var(--grid)
SVG = "http://www.w3.org/2000/svg"


def inline(text: str, identifier: str, title: str, description: str) -> Markup:
    """text: what matplotlib wrote, with COLOURS, INK and GRID where the page has its own.
    identifier: unique in the page.   title, description: the alternative text."""
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
