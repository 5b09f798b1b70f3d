"""matplotlib's SVG made fit for a page: theme colours, real text, small, the same every time."""

from __future__ import annotations

import html
import re

INK = "#010203"
"""The colour that stands for the page's text colour while a figure is drawn."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# A figure file brings its own ground: the theme of the page around an image is unknown to it, and
# ink without ground would vanish wherever the two disagree.
_THEME = (
    "<style>svg{color:#1f2328;background:#ffffff}"
    "@media (prefers-color-scheme:dark){svg{color:#e6edf3;background:#0d1117}}</style>"
)

_TAG = re.compile(r"<[^>]+>")


def standalone(drawn: str, description: str) -> str:
    """Turn what matplotlib drew into a figure file that follows light and dark.

    Everything in the colour `INK` takes the text colour, and coordinates keep two decimals.

    Args:
        drawn: SVG text of matplotlib's backend, with `svg.fonttype` "none".
        description: What the figure shows, in words, for those who cannot see it.
    """
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    used = _references(body)

    def tidy(match: re.Match[str]) -> str:
        tag = re.sub(r'\sid="([^"]*)"', lambda m: m[0] if m[1] in used else "", match[0])
        tag = tag.replace(INK, "currentColor")
        tag = re.sub(r"font-family: [^;\"]*", f"font-family: {FONT}", tag)
        return re.sub(r"-?\d+\.\d{3,}", _rounded, tag)

    body = _TAG.sub(tidy, body)
    attributes = (
        f' role="img" aria-label="{html.escape(description)}"'
        ' stroke-linejoin="round" stroke-linecap="butt"'
    )
    end = body.index(">")
    head = _in_pixels(body[:end])
    return re.sub(r"\n\s*", "\n", f"{head}{attributes}>\n{_THEME}{body[end + 1 :]}").strip() + "\n"


def inline(figure: str, prefix: str) -> str:
    """Return a figure file's element for use inside a page, where it takes the page's colours.

    Args:
        figure: What `standalone` returned.
        prefix: Put before every id, as ids must be unique in a page.
    """
    body = figure.replace(_THEME, "", 1).strip()
    used = _references(body)

    def rename(match: re.Match[str]) -> str:
        tag = match[0]
        for name in used:
            tag = tag.replace(f'id="{name}"', f'id="{prefix}{name}"')
            tag = tag.replace(f"#{name})", f"#{prefix}{name})")
            tag = tag.replace(f'"#{name}"', f'"#{prefix}{name}"')
        return tag

    return _TAG.sub(rename, body)


def _references(body: str) -> list[str]:
    tags = "".join(_TAG.findall(body))
    return sorted(set(re.findall(r'(?:url\(|href=")#([^)"]+)', tags)))


def _rounded(match: re.Match[str]) -> str:
    text = f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _in_pixels(head: str) -> str:
    # Points would make a figure a third larger than the text around it was chosen for.
    return re.sub(r'="([\d.]+)pt"', r'="\1"', head)
