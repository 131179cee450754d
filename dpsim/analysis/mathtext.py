r"""Matplotlib's mathematics as runs of plain text: $g_{\mathrm{OH}}(r)$ -> [["g", "i"], ["OH", "sub"], ["(r)", "i"]].

Enough for the labels of axes: Greek letters, sub- and superscripts, upright text, a few symbols.
"""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = {
    "AA": "Å", "cdot": "·", "times": "×", "pm": "±", "langle": "⟨", "rangle": "⟩", "infty": "∞", "circ": "°",
    "degree": "°", "approx": "≈", "sim": "~", "leq": "≤", "geq": "≥", "le": "≤", "ge": "≥", "neq": "≠", "to": "→",
    "rightarrow": "→", "propto": "∝", "sqrt": "√", "sum": "Σ", "partial": "∂", "ell": "ℓ", "hbar": "ħ", "mu": "μ",
    "varepsilon": "ε", "vartheta": "ϑ", "varphi": "φ", "perp": "⊥", "parallel": "∥", "prime": "′", "quad": "  ",
    "epsilon": "ε", "phi": "φ", "ln": "ln", "log": "log", "exp": "exp", "left": "", "right": "", "max": "max",
    "min": "min", ",": "\u2009", ";": " ", " ": " ", "!": "", "%": "%", "{": "{", "}": "}",
}  # fmt: skip
_UPRIGHT = ("mathrm", "mathregular", "mathdefault", "text", "rm", "mathbf", "bf")
_TOKEN = re.compile(r"\\([A-Za-z]+|.)|([_^{}])|([^\\_^{}]+)")

Runs = list[list[str]]


def runs(text: str) -> str | Runs:
    """A label for the page: the string itself, or its runs where it has mathematics."""
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) % 2 == 0 or len(parts) == 1:
        return text.replace(r"\$", "$")
    found: Runs = []
    for k, part in enumerate(parts):
        for piece in _math(part) if k % 2 else [[part.replace(r"\$", "$"), ""]]:
            if not piece[0]:
                continue
            if found and found[-1][1] == piece[1]:
                found[-1][0] += piece[0]
            else:
                found.append(list(piece))
    return found


def _math(text: str) -> Runs:
    """One formula. A script is what follows _ or ^: a group in braces or one token."""
    result: Runs = []
    scripts: list[str] = []  # a style for every open brace; "" where it is none
    upright: list[bool] = []
    script, roman = "", False  # what the next token or group is
    for command, mark, plain in _TOKEN.findall(text):
        if command in _UPRIGHT:
            roman = True
        elif mark in ("_", "^"):
            script = "sub" if mark == "_" else "sup"
        elif mark == "{":
            scripts.append(script)
            upright.append(roman)
            script, roman = "", False
        elif mark == "}":
            if scripts:
                scripts.pop()
                upright.pop()
        else:
            shown = _symbol(command) if command else plain.replace(" ", "")
            style = script or next((s for s in reversed(scripts) if s), "")
            if script and len(shown) > 1 and not command:  # x_ab is x_a b
                result += [[shown[0], style], [shown[1:], _style("", any(upright), shown[1:])]]
            else:
                result.append([shown, _style(style, roman or any(upright), shown)])
            script, roman = "", False
    return result


def _style(script: str, upright: bool, text: str) -> str:
    return script or ("i" if not upright and any(c.isalpha() for c in text) else "")


def _symbol(command: str) -> str:
    if command in _SYMBOLS:
        return _SYMBOLS[command]
    case = "CAPITAL" if command[:1].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {command.upper()}")
    except KeyError:
        return command
