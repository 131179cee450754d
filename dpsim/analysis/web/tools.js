// Small things that the parts of the report share.

const SVG = "http://www.w3.org/2000/svg";

/** A new element: html("div", {class: "a"}, child, "text", ...). */
function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A new SVG element inside another. */
function svg(parent, name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return parent.appendChild(element);
}

/** A button that says what it does to readers of screens, too. */
function button(text, title, action) {
  const made = html("button", { type: "button", title, "aria-label": title }, text);
  made.addEventListener("click", () => action(made));
  return made;
}

/** Base64 as a typed array. */
function decoded(text, Type) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Type(bytes.buffer);
}

/** Numbers as figure_data.py writes them. */
function numbers(packed) {
  if (Array.isArray(packed)) return Float64Array.from(packed, (v) => (v === null ? NaN : v));
  if ("n" in packed) return Float64Array.from({ length: packed.n }, (_, i) => packed.start + i * packed.step);
  return Float64Array.from(decoded(packed.f32, Float32Array), (v) => v + packed.offset);
}

/** A text with or without mathematics, as plain characters. */
const plain = (text) => (typeof text === "string" ? text : text.map((run) => run[0]).join(""));

/** ... as HTML nodes. */
function rich(text) {
  if (typeof text === "string") return [text];
  return text.map(([piece, style]) => (style ? html(style, {}, piece) : piece));
}

/** ... as spans of an SVG text. */
function richText(element, text) {
  if (typeof text === "string") {
    element.textContent = text;
    return;
  }
  let shift = 0;
  for (const [piece, style] of text) {
    const level = { sub: 0.28, sup: -0.42 }[style] || 0;
    const span = svg(element, "tspan", { dy: `${(level - shift).toFixed(2)}em` }, piece);
    if (style === "i") span.setAttribute("font-style", "italic");
    if (level) span.setAttribute("font-size", "0.78em");
    shift = level ? level * 0.78 : 0;
  }
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

/** 10^k as a person writes it. */
const power = (k) => "10" + String(k).replace("-", "⁻").replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]);

/** A number to a resolution, without needless digits. */
function shown(value, resolution) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.max(Math.abs(value), resolution);
  if (size >= 1e6 || (size < 1e-3 && size > 0)) {
    const k = Math.floor(Math.log10(size));
    const digits = clamp(k - Math.floor(Math.log10(resolution)), 0, 6);
    return `${(value / 10 ** k).toFixed(digits)} × ${power(k)}`.replace("-", "−");
  }
  const digits = clamp(-Math.floor(Math.log10(resolution)), 0, 8);
  return value.toFixed(digits).replace("-", "−");
}

/** Let the reader keep a file. */
function save(name, url) {
  const link = html("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}
