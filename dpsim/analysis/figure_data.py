"""What a drawn figure shows, as plain data: from it the report draws the same figure again, to zoom and to point at.

A figure is described once, in Matplotlib. When it is saved, `figure_data` reads back what was drawn (curves, bands,
error bars, points, bars, levels, notes, axes) and `with_data` puts that into the PNG itself, as a compressed text
chunk: an image and its data cannot come apart. What has no counterpart here (images, twin axes, arrows) gives None:
such a figure stays an image.

    {"panels": [{"x": axis, "y": axis, "title": text, "note": text, "width": share of the page, "height": inches,
                 "equal": bool, "link": panel whose x axis moves along, "marks": [mark, ...]}]}
    axis   {"label": text, "log": bool, "limits": [a, b], "ticks": [[value, text]] | null, "hidden": bool}
    mark   {"kind": "line" | "points" | "error" | "band" | "area" | "bars" | "segments" | "level" | "span" | "text",
            "series": name or "", "color": "#rrggbb", "alpha": a, ...}
    text   a string, or runs [[text, "" | "i" | "sub" | "sup"], ...] where it has mathematics
    numbers  a list; {"start", "step", "n"} where even; {"f32": base64 of little-endian float32, "offset"} where long
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.analysis.mathtext import runs

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

KEY = b"dpsim-figure"
_MAX_POINTS = 4000  # of a curve: more than a screen has pixels
_PLAIN = 12  # numbers; shorter arrays are written out
_DASHES = {"--": "5 3", ":": "1 3", "-.": "6 3 1 3"}
_AXES_KINDS = ("lines", "collections", "patches", "texts")

Mark = dict[str, Any]


class _Unknown(Exception):
    """The figure has something that is only shown as an image."""


def figure_data(canvas: Figure) -> dict[str, Any] | None:
    """The data of a figure that has been drawn; None where something in it has no counterpart."""
    axes = [ax for ax in canvas.axes if ax.get_visible()]
    places = {tuple(np.round(ax.get_position().bounds, 4)) for ax in axes}
    if not axes or len(places) < len(axes):  # twin axes
        return None
    try:
        data = {"panels": [_panel(ax, axes) for ax in axes]}
        json.dumps(data, allow_nan=False)
        return data
    except Exception:  # _Unknown, and whatever else Matplotlib can draw: the image is good all the same
        return None


def _panel(ax: Axes, axes: list[Axes]) -> dict[str, Any]:
    if ax.images or ax.tables or ax.name != "rectilinear":
        raise _Unknown
    canvas = ax.get_figure(root=True)
    assert canvas is not None  # it has been drawn
    box = ax.get_position()
    siblings = [k for k, other in enumerate(axes) if ax.get_shared_x_axes().joined(ax, other)]
    return {
        "x": _axis(ax.xaxis) | {"hidden": not ax.xaxis.get_tick_params().get("labelbottom", True)},
        "y": _axis(ax.yaxis),
        "title": runs(ax.get_title("left") or ax.get_title()),
        "note": runs(ax.get_title("right")),
        "width": round(box.width, 3),
        "height": round(box.height * canvas.get_size_inches()[1], 3),
        "equal": ax.get_aspect() == 1.0,
        "link": min(siblings, default=axes.index(ax)),
        "marks": _marks(ax),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    from matplotlib.ticker import FixedLocator

    scale = axis.get_scale()
    if scale not in ("linear", "log"):
        raise _Unknown
    ticks = None
    if isinstance(axis.get_major_locator(), FixedLocator):
        values = [float(v) for v in axis.get_majorticklocs()]
        ticks = [
            [v, runs(text)] for v, text in zip(values, axis.get_major_formatter().format_ticks(values), strict=True)
        ]
    return {
        "label": runs(axis.get_label_text()),
        "log": scale == "log",
        "limits": [float(v) for v in axis.get_view_interval()],
        "ticks": ticks,
    }


def _marks(ax: Axes) -> list[Mark]:
    """All marks in the order of drawing, those without a label named like the first of their color that has one."""
    found: list[tuple[float, Mark]] = []
    done: set[Artist] = set()
    for container in ax.containers:
        children = [a for a in container.get_children() if a is not None]
        done.update(children)
        z = max((a.get_zorder() for a in children), default=0.0)
        found.extend((z, mark | {"series": _label(container)}) for mark in _container(container))
    for artist in (a for kind in _AXES_KINDS for a in getattr(ax, kind) if a not in done):
        if artist.get_visible():
            found.extend((artist.get_zorder(), mark | {"series": _label(artist)}) for mark in _artist(artist, ax))
    marks = [mark for _, mark in sorted(found, key=lambda pair: pair[0])]
    names: dict[str, str] = {}
    for _, mark in found:
        if mark["series"]:
            names.setdefault(mark["color"], mark["series"])
    for mark in marks:
        mark["series"] = mark["series"] or names.get(mark["color"], "")
    return marks


def _label(artist: Any) -> Any:
    text = str(artist.get_label() or "")
    return "" if text.startswith("_") else runs(text)


def _container(container: Any) -> list[Mark]:
    from matplotlib.container import BarContainer, ErrorbarContainer

    if isinstance(container, BarContainer):
        return _bars(list(container.patches))
    if not isinstance(container, ErrorbarContainer):
        raise _Unknown
    line, _, bars = container.lines
    marks: list[Mark] = [] if line is None else _curve(line)
    for bar in bars:
        ends = np.array(bar.get_segments(), dtype=np.float64).reshape(-1, 4)  # x0 y0 x1 y1
        across = "y" if container.has_yerr and np.allclose(ends[:, 0], ends[:, 2]) else "x"
        low, high = (ends[:, 1], ends[:, 3]) if across == "y" else (ends[:, 0], ends[:, 2])
        at = ends[:, 0] if across == "y" else ends[:, 1]
        limits = {"at": _numbers(at), "low": _numbers(low), "high": _numbers(high)}
        marks.append({"kind": "error", "axis": across, **limits, **_color(bar.get_color()[0], bar)})
    return marks


def _bars(patches: list[Any]) -> list[Mark]:
    if not patches:
        return []
    edges = np.array([[*p.get_xy(), p.get_x() + p.get_width(), p.get_y() + p.get_height()] for p in patches])
    if np.isnan(edges).any():
        raise _Unknown
    sides = {name: _numbers(edges[:, k]) for k, name in enumerate(("x0", "y0", "x1", "y1"))}
    return [{"kind": "bars", **sides, **_color(patches[0].get_facecolor(), patches[0])}]


def _artist(artist: Any, ax: Axes) -> list[Mark]:
    """The marks of one artist. Raises _Unknown."""
    from matplotlib.collections import LineCollection, PathCollection, PolyCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

    if isinstance(artist, Text):
        return _note(artist, ax) if artist.get_text() else []
    in_x, in_y = artist.get_transform().contains_branch_seperately(ax.transData)
    if type(artist) is Line2D:
        if in_x and in_y:
            return _curve(artist)
        return [_level(artist, "y" if in_y else "x")] if in_x or in_y else []
    if isinstance(artist, Rectangle):
        return _bars([artist]) if in_x and in_y else [_span(artist, "y" if in_y else "x")]
    if isinstance(artist, PathCollection):
        return _points(artist)
    if isinstance(artist, LineCollection):
        ends = np.array([s[[0, -1]] for s in artist.get_segments()], dtype=np.float64).reshape(-1, 4)
        sides = {name: _numbers(ends[:, k]) for k, name in enumerate(("x0", "y0", "x1", "y1"))}
        return [{"kind": "segments", **sides, **_color(artist.get_color()[0], artist)}]
    if isinstance(artist, PolyCollection):
        outlines = [np.asarray(path.vertices, dtype=np.float64) for path in artist.get_paths()]
        return [_filled(artist, outline) for outline in outlines if len(outline) > 2]
    raise _Unknown


def _curve(line: Any) -> list[Mark]:
    """A line and its markers."""
    from matplotlib.cbook import STEP_LOOKUP_MAP

    x, y = np.asarray(line.get_xdata(), dtype=np.float64), np.asarray(line.get_ydata(), dtype=np.float64)
    marks: list[Mark] = []
    style = line.get_linestyle()
    if style not in ("None", "none", "", " "):
        steps = STEP_LOOKUP_MAP[line.get_drawstyle()](x, y)
        xs, ys = _thinned(np.asarray(steps[0]), np.asarray(steps[1]))
        drawn = {"width": round(line.get_linewidth(), 2), "dash": _DASHES.get(style, "")}
        marks.append({"kind": "line", "x": _numbers(xs), "y": _numbers(ys), **drawn, **_color(line.get_color(), line)})
    if line.get_marker() not in ("None", "none", None, "", " ") and len(x):
        size = {"size": round(float(line.get_markersize()), 2), "square": line.get_marker() == "s"}
        look = _filling(line.get_markerfacecolor(), line.get_markeredgecolor(), line)
        marks.append({"kind": "points", "x": _numbers(x), "y": _numbers(y), **size, **look})
    return marks


def _points(scatter: Any) -> list[Mark]:
    faces, edges = scatter.get_facecolor(), scatter.get_edgecolor()
    if len(faces) > 1 or len(edges) > 1 or not len(faces) + len(edges):  # one color per point
        raise _Unknown
    face, edge = (colors[0] if len(colors) else "none" for colors in (faces, edges))
    look = _filling(face, edge, scatter)
    at = np.ma.filled(scatter.get_offsets(), np.nan)
    size = round(float(np.sqrt(np.mean(scatter.get_sizes()))), 2)
    return [{"kind": "points", "x": _numbers(at[:, 0]), "y": _numbers(at[:, 1]), "size": size, "square": False,
             **look}]  # fmt: skip


def _filling(face: Any, edge: Any, artist: Any) -> dict[str, Any]:
    """The color of points; open ones have that of their edge."""
    from matplotlib.colors import to_rgba

    hollow = to_rgba(face) == (1.0, 1.0, 1.0, 1.0) or to_rgba(face)[3] == 0.0
    return {"open": hollow, **_color(edge if hollow else face, artist)}


def _filled(artist: Any, vertices: np.ndarray) -> Mark:
    """A band low(x) ... high(x), or any other area."""
    color = _color(artist.get_facecolor()[0], artist)
    x, which = np.unique(vertices[:, 0], return_inverse=True)
    upright = getattr(artist, "t_direction", "") == "x" and len(vertices) < 2 * len(x) + 4  # no steps
    if not upright:
        return {"kind": "area", "x": _numbers(vertices[:, 0]), "y": _numbers(vertices[:, 1]), **color}
    low, high = np.full(len(x), np.inf), np.full(len(x), -np.inf)
    np.minimum.at(low, which, vertices[:, 1])
    np.maximum.at(high, which, vertices[:, 1])
    size = -(-len(x) // _MAX_POINTS)
    if size > 1:
        first = np.arange(0, len(x), size)
        x, low, high = x[first], np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
    return {"kind": "band", "x": _numbers(x), "low": _numbers(low), "high": _numbers(high), **color}


def _level(line: Any, axis: str) -> Mark:
    """A straight line across the panel."""
    at = float(np.ravel(line.get_ydata() if axis == "y" else line.get_xdata())[0])
    drawn = {"width": round(line.get_linewidth(), 2), "dash": _DASHES.get(line.get_linestyle(), "")}
    return {"kind": "level", "axis": axis, "at": at, **drawn, **_color(line.get_color(), line)}


def _span(patch: Any, axis: str) -> Mark:
    """A stripe across the panel."""
    start, size = (patch.get_y(), patch.get_height()) if axis == "y" else (patch.get_x(), patch.get_width())
    ends = {"low": float(start), "high": float(start + size)}
    return {"kind": "span", "axis": axis, **ends, **_color(patch.get_facecolor(), patch)}


def _note(text: Any, ax: Axes) -> list[Mark]:
    """A text at (x, y), each in the units of the data or as a fraction of the panel."""
    from matplotlib.text import Annotation

    x, y = text.get_position()
    shift = [0.0, 0.0]
    if isinstance(text, Annotation):
        if text.arrow_patch is not None:
            raise _Unknown
        coords = text.xycoords
        if text.anncoords != coords:  # at xy, moved by points
            if text.anncoords not in ("offset points", "offset pixels"):
                raise _Unknown
            shift, (x, y) = [float(x), float(y)], text.xy
        units = [str(c) for c in (coords if isinstance(coords, tuple) else (coords, coords))]
        if not set(units) <= {"data", "axes fraction"}:
            raise _Unknown
        inside = [unit == "data" for unit in units]
    else:
        inside = list(text.get_transform().contains_branch_seperately(ax.transData))
    place = {"x": float(x), "y": float(y), "data": [bool(b) for b in inside], "shift": shift}
    align = {"ha": text.get_ha(), "va": text.get_va()}
    return [{"kind": "text", "text": runs(text.get_text()), **place, **align, **_color(text.get_color(), text)}]


def _color(color: Any, artist: Any) -> dict[str, Any]:
    """Color and opacity."""
    from matplotlib.colors import to_hex, to_rgba

    r, g, b, a = to_rgba(color)
    own = artist.get_alpha()
    return {"color": to_hex((r, g, b)), "alpha": round(float(a if own is None or a < 1.0 else own), 3)}


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A long curve by the smallest and the largest value of each of its stretches, in their order."""
    size = -(-2 * len(y) // _MAX_POINTS)
    if len(y) <= _MAX_POINTS or not np.isfinite(y).all():
        return x, y
    n = len(y) // size
    blocks = y[: n * size].reshape(n, size)
    ends = np.sort(np.column_stack([blocks.argmin(axis=1), blocks.argmax(axis=1)]), axis=1)
    keep = np.unique(np.concatenate([(ends + size * np.arange(n)[:, None]).ravel(), [0, len(y) - 1]]))
    return x[keep], y[keep]


def _numbers(values: Any) -> Any:
    """Numbers in few characters, exact to seven digits of their range."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) <= _PLAIN:
        return [float(f"{v:.9g}") if np.isfinite(v) else None for v in x]
    step = (x[-1] - x[0]) / (len(x) - 1)
    if np.abs(np.diff(x) - step).max() < 1e-6 * abs(step):
        return {"start": float(x[0]), "step": float(step), "n": len(x)}
    known = x[np.isfinite(x)]
    offset = 0.0
    if len(known) and abs(known.mean()) > 10.0 * np.ptp(known):
        offset = float(known.mean())
    return {"f32": base64.b64encode((x - offset).astype("<f4").tobytes()).decode("ascii"), "offset": offset}


# ---- the data in the PNG -------------------------------------------------------------------------------------------

_SIGNATURE = 8  # bytes before the first chunk


def with_data(png: bytes, data: dict[str, Any]) -> bytes:
    """The image with the data in a zTXt chunk behind its header."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    body = KEY + b"\0\0" + zlib.compress(text, 9)
    chunk = len(body).to_bytes(4, "big") + b"zTXt" + body + zlib.crc32(b"zTXt" + body).to_bytes(4, "big")
    end = _SIGNATURE + 12 + int.from_bytes(png[_SIGNATURE : _SIGNATURE + 4], "big")
    return png[:end] + chunk + png[end:]


def split_data(png: bytes) -> tuple[bytes, dict[str, Any] | None]:
    """The image without its data, and the data; None where it has none."""
    start = _SIGNATURE
    while start + 12 <= len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        body = png[start + 8 : end - 4]
        if png[start + 4 : start + 8] == b"zTXt" and body.startswith(KEY + b"\0\0"):
            data: dict[str, Any] = json.loads(zlib.decompress(body[len(KEY) + 2 :]))
            return png[:start] + png[end:], data
        start = end
    return png, None
