"""Pictures of figures, as SVG that any browser shows."""

from html import escape

WIDTH = 760
COLOURS = ("#1f6f8b", "#b5651d", "#5a8f3c", "#8a4f9e")


def svg(title, height, parts):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>', *parts, "</svg>", ""])


def bars(title, values):
    """A bar for each (label, value), the longest as wide as there is room."""
    most, left = max(value for _, value in values), 240
    parts = []
    for at, (label, value) in enumerate(values):
        top, width = 34 + at * 20, (WIDTH - left - 90) * max(value, 0) / max(most, 1e-9)
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
        parts += [
            f'<text x="{left - 8}" y="{top + 12}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left}" y="{top}" width="{width:.1f}" height="15" fill="{COLOURS[0]}"/>',
            f'<text x="{left + width + 5:.1f}" y="{top + 12}">{shown}</text>',
        ]
    return svg(title, 44 + len(values) * 20, parts)


def lines(title, times, series):
    """A line for each {name: values} over `times` in minutes, as a share of its highest value."""
    height, left, bottom = 320, 40, 270
    across = (WIDTH - left - 20) / max(times[-1], 1e-9)
    parts = [f'<line x1="{left}" y1="{bottom}" x2="{WIDTH - 20}" y2="{bottom}" stroke="black"/>']
    parts += [f'<text x="{left + minute * across:.0f}" y="{bottom + 16}">{minute} min</text>'
              for minute in range(0, int(times[-1]) + 1, 2)]
    for at, (name, values) in enumerate(series.items()):
        most, colour = max(values) or 1, COLOURS[at % len(COLOURS)]
        points = " ".join(f"{left + time * across:.1f},{bottom - 220 * value / most:.1f}"
                          for time, value in zip(times, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{left + at * 180}" y="{height - 12}" fill="{colour}">'
                     f"{escape(name)}, at most {most:,.2f}</text>")
    return svg(title, height, parts)
