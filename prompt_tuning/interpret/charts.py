# SPDX-License-Identifier: Apache-2.0
"""Charts as inline SVG, whose colours are those of the page around them."""

import base64
from collections.abc import Collection, Sequence
import html
import io

from jaxtyping import Float
from matplotlib import image, ticker
import numpy as np

_WIDTH, _HEIGHT = 760.0, 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 10.0, 22.0
_SIDE = 380.0  # Of a heat map, in the units of its SVG.
# Legible on white and on black; how opaque they are is the value.
_POSITIVE, _NEGATIVE = (0.05, 0.58, 0.53), (0.88, 0.42, 0.13)


def _ticks(low: float, high: float, *, count: int) -> list[float]:
  """Returns round numbers between two values."""
  found = [float(x) for x in ticker.MaxNLocator(count).tick_values(low, high)]
  slack = 1e-9 * (high - low)
  return [x for x in found if low - slack <= x <= high + slack]


def _svg(
  parts: Sequence[str], *, width: float, height: float, label: str
) -> str:
  return (
    f'<svg viewBox="0 0 {width} {height}" role="img"'
    f' aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
  )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
    f"{html.escape(text)}</text>"
  )


def _scale(
  value: float, domain: tuple[float, float], pixels: tuple[float, float]
) -> float:
  """Maps a value of the domain to a pixel."""
  share = (value - domain[0]) / (domain[1] - domain[0])
  return pixels[0] + share * (pixels[1] - pixels[0])


def _y(value: float, domain: tuple[float, float]) -> float:
  return _scale(value, domain, (_HEIGHT - _BOTTOM, _TOP))


def _axis(domain: tuple[float, float]) -> list[str]:
  """Draws the lines of round values, with the values at their left."""
  parts = []
  for value in _ticks(*domain, count=4):
    y = _y(value, domain)
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}"'
      f' y2="{y:.1f}"/>'
    )
    parts.append(_text(_LEFT - 6, y + 3.5, f"{value:.4g}", "end"))
  return parts


def bars(
  values: Sequence[float],
  *,
  label: str,
  reference: tuple[float, str] | None,
  marked: Collection[int],
) -> str:
  """Draws a bar for each position.

  Args:
    values: their heights.
    label: what they are.
    reference: a value to draw a line at, and its name.
    marked: positions to highlight.
  """
  every = [0.0, *values, *([reference[0]] if reference else [])]
  domain = (min(every), max(every) or 1.0)
  parts = _axis(domain)
  step = (_WIDTH - _LEFT - _RIGHT) / len(values)
  for i, value in enumerate(values):
    top, bottom = _y(max(value, 0.0), domain), _y(min(value, 0.0), domain)
    style = "bar marked" if i in marked else "bar"
    parts.append(
      f'<rect class="{style}" x="{_LEFT + i * step + 0.1 * step:.2f}"'
      f' y="{top:.1f}" width="{0.8 * step:.2f}"'
      f' height="{max(bottom - top, 0.5):.1f}">'
      f"<title>position {i}: {value:.4g}</title></rect>"
    )
  for tick in _ticks(0.0, len(values) - 1.0, count=10):
    if tick == int(tick):
      x = _LEFT + (tick + 0.5) * step
      parts.append(_text(x, _HEIGHT - 6, f"{tick:.0f}"))
  if reference:
    y = _y(reference[0], domain)
    parts.append(
      f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}"'
      f' y1="{y:.1f}" y2="{y:.1f}"><title>{html.escape(reference[1])}:'
      f" {reference[0]:.4g}</title></line>"
    )
  return _svg(parts, width=_WIDTH, height=_HEIGHT, label=label)


def line(steps: Sequence[int], values: Sequence[float], *, label: str) -> str:
  """Draws a line over the steps of a training; two steps or more."""
  domain = (min(0.0, *values), max(values) or 1.0)
  span = (float(min(steps)), float(max(steps)))
  pixels = (_LEFT + 4.0, _WIDTH - _RIGHT - 4.0)
  parts = _axis(domain)
  points = [
    (_scale(float(step), span, pixels), _y(value, domain), step, value)
    for step, value in zip(steps, values, strict=True)
  ]
  path = " ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in points)
  parts.append(f'<polyline class="line" points="{path}"/>')
  for x, y, step, value in points:
    parts.append(
      f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3">'
      f"<title>step {step}: {value:.4g}</title></circle>"
    )
  for tick in _ticks(*span, count=8):
    parts.append(_text(_scale(tick, span, pixels), _HEIGHT - 6, f"{tick:.0f}"))
  return _svg(parts, width=_WIDTH, height=_HEIGHT, label=label)


def colour(value: float, limit: float) -> tuple[float, float, float, float]:
  """Returns red, green, blue and opacity of a value between +-`limit`."""
  hue = _POSITIVE if value >= 0 else _NEGATIVE
  return (*hue, min(abs(value) / limit, 1.0))


def heat_limit(cosines: Sequence[Sequence[float]]) -> float:
  """Returns the largest cosine between different rows, which is full colour."""
  matrix = np.abs(np.array(cosines))
  np.fill_diagonal(matrix, 0.0)
  return float(np.clip(matrix.max(), 0.05, 1.0))


def _png(pixels: Float[np.ndarray, "N M 4"]) -> str:
  """Encodes a picture of red, green, blue and opacity as a data URI."""
  buffer = io.BytesIO()
  image.imsave(buffer, pixels, format="png", metadata={"Software": ""})
  data = base64.b64encode(buffer.getvalue()).decode()
  return f"data:image/png;base64,{data}"


def heat_map(cosines: Sequence[Sequence[float]], *, label: str) -> str:
  """Draws the cosines between positions, a pixel each, with their scale."""
  limit = heat_limit(cosines)
  size = len(cosines)
  pixels = np.array([[colour(x, limit) for x in row] for row in cosines])
  scale = np.array([[colour(x, limit)] for x in np.linspace(limit, -limit, 65)])
  right = _LEFT + _SIDE + 16
  parts = [
    f'<image class="heat" x="{_LEFT}" y="{_TOP}" width="{_SIDE}"'
    f' height="{_SIDE}" preserveAspectRatio="none" href="{_png(pixels)}"/>',
    f'<image x="{right}" y="{_TOP}" width="14" height="{_SIDE}"'
    f' preserveAspectRatio="none" href="{_png(scale)}"/>',
  ]
  for x, width in ((_LEFT, _SIDE), (right, 14)):
    parts.append(
      f'<rect class="frame" x="{x}" y="{_TOP}" width="{width}"'
      f' height="{_SIDE}"/>'
    )
  for value, place in ((limit, 0.0), (0.0, 0.5), (-limit, 1.0)):
    y = _TOP + place * _SIDE + 4
    parts.append(_text(right + 20, y, f"{value:.2f}", "start"))
  for tick in _ticks(0.0, size - 1.0, count=8):
    if tick == int(tick):
      at = (tick + 0.5) / size * _SIDE
      parts.append(_text(_LEFT - 6, _TOP + at + 3.5, f"{tick:.0f}", "end"))
      parts.append(_text(_LEFT + at, _TOP + _SIDE + 15, f"{tick:.0f}"))
  return _svg(parts, width=right + 66, height=_SIDE + 32, label=label)
