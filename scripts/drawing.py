"""The look of the documentation's figures: SVG with text as text, in the reader's light or dark colours.

    figure = Figure(400, 120, "Two boxes", "An encoder and its teacher.")
    figure.box(10, 20, 120, 40, "encoder", "encoder")
    Path("boxes.svg").write_text(figure.render(), encoding="utf-8")

A figure paints its own ground, so that it can be read on any page. Colours only repeat what words say.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from digpt.charts import element

# kind -> fill and stroke in light, fill and stroke in dark
COLORS = {
    "plain": ("#f6f8fa", "#8c959f", "#161b22", "#7d8590"),
    "encoder": ("#dbeafe", "#2563eb", "#172a54", "#60a5fa"),
    "gen": ("#ffe8cc", "#c2410c", "#43200a", "#fb923c"),
    "dis": ("#d6f5df", "#15803d", "#0a331b", "#4ade80"),
    "target": ("#f0e4ff", "#7e22ce", "#321155", "#c084fc"),
}
_BASE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
.small { font-size: 11px; } .soft { fill: var(--soft); } .strong { font-weight: 600; }
.ground { fill: var(--ground); } .link { stroke: var(--soft); stroke-width: 1.5; fill: none; }
.head { fill: var(--soft); } .none { stroke-dasharray: 4 3; }
"""
LINE = 16  # pixels from one line of text to the next


def _style() -> str:
    light = ["--ground: #ffffff; --ink: #1f2328; --soft: #57606a;"]
    dark = ["--ground: #0d1117; --ink: #e6edf3; --soft: #9aa4af;"]
    rules = []
    for kind, (fill, stroke, dark_fill, dark_stroke) in COLORS.items():
        light.append(f"--{kind}: {fill}; --{kind}-line: {stroke};")
        dark.append(f"--{kind}: {dark_fill}; --{kind}-line: {dark_stroke};")
        rules.append(f".{kind} {{ fill: var(--{kind}); stroke: var(--{kind}-line); }}")
    light_rule, dark_rule = (f"svg {{ {' '.join(values)} }}" for values in (light, dark))
    return "\n".join([light_rule, f"@media (prefers-color-scheme: dark) {{ {dark_rule} }}", _BASE.strip(), *rules])


class Figure:
    """One drawing of ``width`` x ``height`` pixels; ``title`` and ``description`` are for those who cannot see it."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.width, self.height = width, height
        self._about = [element("title", title), element("desc", description)]
        self._shapes: list[Markup] = []

    def rect(self, x: float, y: float, width: float, height: float, kind: str, **attributes: object) -> None:
        """A rectangle in the colours of ``kind``; a second word, ``none``, draws its outline dashed."""
        self._shapes.append(
            element("rect", x=_px(x), y=_px(y), width=_px(width), height=_px(height), class_=kind, **attributes)
        )

    def squares(self, corners: Sequence[tuple[float, float]], side: float, kind: str, **attributes: object) -> None:
        """Squares of one kind, given by their upper left corners, as a single shape."""
        path = " ".join(f"M{_px(x)} {_px(y)}h{_px(side)}v{_px(side)}h-{_px(side)}z" for x, y in corners)
        self._shapes.append(element("path", d=path, class_=kind, stroke_opacity="0.35", **attributes))

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        """Words whose baseline lies at ``y``; each ``\\n`` begins another line below."""
        for number, line in enumerate(words.split("\n")):
            place = {"x": _px(x), "y": _px(y + number * LINE)}
            self._shapes.append(element("text", line, **place, text_anchor=anchor, class_=style or None))

    def box(
        self, x: float, y: float, width: float, height: float, words: str, kind: str = "plain", style: str = ""
    ) -> None:
        """A rectangle with words in its middle."""
        self.rect(x, y, width, height, kind, rx=4)
        lines = words.count("\n")
        self.text(x + width / 2, y + height / 2 + 4.5 - lines * LINE / 2, words, style, "middle")

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through ``points`` that ends, horizontally or vertically, in an arrowhead."""
        (x0, y0), (x, y) = points[-2:]
        horizontal, sign = abs(x - x0) >= abs(y - y0), 1 if (x - x0) + (y - y0) > 0 else -1
        back = (x - 7 * sign, y) if horizontal else (x, y - 7 * sign)
        path = " L".join(f"{_px(a)} {_px(b)}" for a, b in (*points[:-1], back))
        self._shapes.append(element("path", d=f"M{path}", class_="link"))
        side = ((0, 4), (0, -4)) if horizontal else ((4, 0), (-4, 0))
        corners: Sequence[tuple[float, float]] = [(x, y), *((back[0] + a, back[1] + b) for a, b in side)]
        self._shapes.append(
            element("path", d="M" + " L".join(f"{_px(a)} {_px(b)}" for a, b in corners) + "Z", class_="head")
        )

    def render(self) -> str:
        """The file's text, one shape a line."""
        ground = element("rect", width=self.width, height=self.height, rx=8, class_="ground")
        inside = Markup("\n").join([*self._about, element("style", Markup(_style())), ground, *self._shapes])
        size = {"viewBox": f"0 0 {self.width} {self.height}", "width": self.width, "height": self.height}
        return str(element("svg", inside, xmlns="http://www.w3.org/2000/svg", role="img", **size)) + "\n"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
