// Interactive figures: <figure class="plot"> with the data of figure_data.py, drawn as SVG.
// Drag to zoom, double-click to see all, point to read values, click a name to hide it.

const COLORS = { // of figures.py, so that they follow light and dark
  "#2f6fb2": "--blue", "#c8443c": "--red", "#2a8a5a": "--green", "#b8860b": "--yellow", "#8a3a86": "--purple",
  "#8a8f98": "--grey", "#000000": "--ink", "#1d2329": "--ink", "#ffffff": "--page",
};
const color = (hex) => (COLORS[hex] ? `var(${COLORS[hex]})` : hex);
const POINT = 1.3; // pixels for a printer's point of the figure
const DRAWN = ["x", "y", "low", "high", "at", "x0", "x1", "y0", "y1"];

let plotCount = 0;

class Plot {
  constructor(figure) {
    this.figure = figure;
    this.image = figure.querySelector("img");
    this.id = `plot${plotCount++}`;
    this.hidden = new Set();
    const data = JSON.parse(figure.querySelector("script").textContent);
    this.body = html("div", { class: "panels" });
    this.panels = data.panels.map((spec, k) => new Panel(this, spec, k));
    this.image.before(this.legend(), this.body);
    for (const panel of this.panels) this.body.append(panel.box);
    this.image.classList.add("replaced");
    figure.classList.add("ready");
    this.draw();
    new ResizeObserver(() => this.draw()).observe(this.body);
  }

  draw() {
    for (const panel of this.panels) panel.draw();
  }

  /** The names of the series, each a switch, and what can be done with the figure. */
  legend() {
    const names = new Map();
    for (const panel of this.panels) {
      for (const mark of panel.marks) {
        if (mark.kind === "text" || !plain(mark.series)) continue;
        const known = names.get(plain(mark.series)) || [];
        names.set(plain(mark.series), [...known, mark]);
      }
    }
    const items = [...names].map(([name, marks]) => {
      const item = button("", `show or hide: ${name}`, () => {
        this.hidden.has(name) ? this.hidden.delete(name) : this.hidden.add(name);
        item.setAttribute("aria-pressed", String(!this.hidden.has(name)));
        this.draw();
      });
      item.setAttribute("aria-pressed", "true");
      item.append(swatch(marks), html("span", {}, ...rich(marks[0].series)));
      return item;
    });
    return html("div", { class: "bar" }, html("div", { class: "legend" }, ...items), this.tools());
  }

  tools() {
    const tools = html("div", { class: "tools" });
    for (const axis of ["x", "y"]) {
      if (!this.panels.every((panel) => panel.canBeLog(axis))) continue;
      const flip = button(`log ${axis}`, `logarithmic or linear ${axis} axis`, () => {
        for (const panel of this.panels) panel.flip(axis);
        flip.setAttribute("aria-pressed", String(this.panels[0][axis].log));
        this.draw();
      });
      flip.setAttribute("aria-pressed", String(this.panels[0][axis].log));
      tools.append(flip);
    }
    tools.append(
      button("reset", "show everything again", () => this.reset()),
      button("CSV", "save the data", () => save("figure.csv", URL.createObjectURL(new Blob([this.csv()])))),
      button("PNG", "save the figure for print", () => save("figure.png", this.image.src)),
    );
    return tools;
  }

  reset() {
    for (const panel of this.panels) panel.reset();
    this.draw();
  }

  /** Panels with one x axis move together. */
  together(panel, action) {
    for (const other of this.panels) if (other.spec.link === panel.spec.link) action(other);
  }

  csv() {
    const lines = ["panel,series,kind,x,y,low,high"];
    const quoted = (text) => `"${plain(text).replaceAll('"', '""')}"`;
    this.panels.forEach((panel) => {
      const name = quoted(panel.spec.title || panel.y.label);
      for (const mark of panel.marks) {
        const n = (mark.x || mark.at || mark.x0 || { length: 0 }).length || 0;
        for (let i = 0; i < n; i++) {
          const x = mark.x ? mark.x[i] : mark.at ? mark.at[i] : mark.x0[i];
          const rest = [mark.y ? mark.y[i] : "", mark.low ? mark.low[i] : mark.y0 ? mark.y0[i] : "",
            mark.high ? mark.high[i] : mark.y1 ? mark.y1[i] : ""];
          lines.push([name, quoted(mark.series), mark.kind, x, ...rest].join(","));
        }
      }
    });
    return lines.join("\n") + "\n";
  }
}

/** A small picture of a series. */
function swatch(marks) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 22 12");
  for (const mark of marks.slice(0, 6)) {
    const look = { stroke: color(mark.color), opacity: Math.max(mark.alpha, mark.kind === "points" ? 0.9 : mark.alpha) };
    if (["band", "area", "bars", "span"].includes(mark.kind)) {
      svg(picture, "rect", { x: 1, y: 1.5, width: 20, height: 9, rx: 2, fill: color(mark.color), opacity: mark.alpha });
    } else if (mark.kind === "points" || mark.kind === "error") {
      svg(picture, "path", { d: "M11 6h0", "stroke-width": 6, "stroke-linecap": "round", ...look });
    } else {
      const width = Math.max(1.2, (mark.width || 1) * POINT);
      svg(picture, "path", { d: "M1 6H21", "stroke-width": width, "stroke-dasharray": mark.dash || "none", ...look });
    }
  }
  return picture;
}

class Panel {
  constructor(plot, spec, k) {
    this.plot = plot;
    this.spec = spec;
    this.id = `${plot.id}-${k}`;
    this.marks = spec.marks.map((mark) => {
      const own = { ...mark };
      for (const key of DRAWN) {
        const raw = mark[key];
        if (Array.isArray(raw) || (raw && typeof raw === "object")) own[key] = numbers(raw);
      }
      return own;
    });
    this.reset();
    this.tip = html("div", { class: "tip" });
    this.svg = document.createElementNS(SVG, "svg");
    const name = [spec.title, spec.y.label, spec.x.label].map(plain).filter(Boolean).join(", ");
    for (const [key, value] of Object.entries({ role: "img", "aria-label": name, tabindex: 0 }))
      this.svg.setAttribute(key, value);
    this.box = html("div", { class: "panel", style: `flex-grow:${spec.width};flex-basis:${this.basis()}` }, this.svg, this.tip);
    this.listen();
  }

  /** Panels that were side by side stay so while each has room. */
  basis() {
    return this.spec.width > 0.6 ? "100%" : `${clamp(this.spec.width * 700, 220, 330)}px`;
  }

  reset() {
    const axis = (spec) => ({ ...spec, from: spec.limits[0], to: spec.limits[1] });
    this.x = axis(this.spec.x);
    this.y = axis(this.spec.y);
  }

  // ---- axes --------------------------------------------------------------------------------------------------------

  /** All numbers along an axis. */
  *values(axis) {
    for (const mark of this.marks) {
      const keys = axis === "x" ? ["x", "x0", "x1"] : ["y", "y0", "y1"];
      if ((mark.kind === "error" || mark.kind === "level" || mark.kind === "span") && mark.axis === axis) keys.push("low", "high");
      if (mark.kind === "error" && mark.axis !== axis) keys.push("at");
      if (mark.kind === "band" && axis === "y") keys.push("low", "high");
      if (mark.kind === "text") continue;
      for (const key of keys) if (mark[key] && mark[key].length) yield* mark[key];
    }
  }

  canBeLog(axis) {
    if (this[axis].ticks && !this[axis].log) return false;
    let low = Infinity;
    let high = -Infinity;
    for (const v of this.values(axis)) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    this[`${axis}Range`] = [low, high];
    return low > 0 && high > low;
  }

  flip(axis) {
    const a = this[axis];
    a.log = !a.log;
    const [low, high] = this[`${axis}Range`];
    [a.from, a.to] = a.log ? [low / 1.1, high * 1.1] : [low - 0.05 * (high - low), high + 0.05 * (high - low)];
  }

  /** value -> pixel, and back. */
  scale(axis) {
    const { log, from, to } = this[axis];
    const [p, q] = axis === "x" ? [this.left, this.right] : [this.bottom, this.top];
    const f = log ? Math.log10 : (v) => v;
    const start = f(from);
    const slope = (q - p) / (f(to) - start || 1);
    const there = (v) => p + (f(v) - start) * slope;
    there.back = (pixel) => {
      const v = start + (pixel - p) / slope;
      return log ? 10 ** v : v;
    };
    return there;
  }

  /** [[value, text], ...] for about n ticks. */
  ticks(axis, n) {
    const { log, from, to, ticks } = this[axis];
    const [low, high] = from < to ? [from, to] : [to, from];
    const inside = (list) => list.filter(([v]) => v >= low - 1e-9 * (high - low) && v <= high + 1e-9 * (high - low));
    if (ticks && inside(ticks).length > 1) return inside(ticks);
    if (log && high / low > 12) {
      const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
      const every = Math.max(1, Math.ceil((last - first) / n));
      const factors = Math.log10(high / low) * 3 <= n + 1 ? [1, 2, 5] : [1];
      const found = [];
      for (let k = Math.ceil(first / every) * every; k <= last; k += every)
        for (const factor of factors) found.push([factor * 10 ** k, k >= -3 && k <= 4 ? String(+(factor * 10 ** k).toPrecision(2)) : factor > 1 ? "" : power(k)]);
      return inside(found);
    }
    const rough = (high - low) / n;
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((f) => f * size >= rough * 0.999) * size;
    const found = [];
    for (let k = Math.ceil(low / step - 1e-6); k * step <= high + 1e-6 * step; k++) {
      const v = k * step;
      found.push([v, shown(Math.abs(v) < 1e-9 * step ? 0 : v, step * 1.0001)]);
    }
    return found;
  }

  /** Pixels from top to bottom. */
  inner() {
    return clamp(this.spec.height * 104, 110, 520);
  }

  yTicks() {
    return this.ticks("y", Math.max(3, this.inner() / 44));
  }

  /** Characters of the longest label at the y axis: panels above each other leave the same room. */
  labelled() {
    return Math.max(...this.yTicks().map(([, text]) => plain(text).length));
  }

  // ---- drawing -----------------------------------------------------------------------------------------------------

  draw() {
    const width = this.box.clientWidth;
    if (!width) return;
    this.width = width;
    const inner = this.inner();
    this.top = 8 + (plain(this.spec.title) ? 20 : 0) + (plain(this.y.label) ? 20 : 0);
    const yTicks = this.yTicks();
    this.left = 14 + 6.9 * Math.max(2, ...this.plot.panels.filter((p) => p.spec.link === this.spec.link).map((p) => p.labelled()));
    this.right = width - 10;
    const below = this.x.hidden ? 10 : plain(this.x.label) ? 42 : 24;
    const tall = this.spec.equal ? Math.min(this.right - this.left, 520) : inner;
    if (this.spec.equal) this.right = this.left + tall;
    this.bottom = this.top + tall;
    this.height = this.bottom + below;
    this.svg.replaceChildren();
    for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${this.height}` })) this.svg.setAttribute(key, value);
    const clip = svg(svg(this.svg, "defs"), "clipPath", { id: `${this.id}-clip` });
    const area = { x: this.left, y: this.top, width: this.right - this.left, height: this.bottom - this.top };
    svg(clip, "rect", area);
    this.drawAxes(yTicks);
    const inside = svg(this.svg, "g", { "clip-path": `url(#${this.id}-clip)`, class: "marks" });
    const [X, Y] = [this.scale("x"), this.scale("y")];
    for (const mark of this.marks)
      if (!this.plot.hidden.has(plain(mark.series))) DRAW[mark.kind](mark.kind === "text" ? this.svg : inside, mark, X, Y, this);
    this.cursor = svg(this.svg, "g", { class: "cursor" });
    this.svg.append(this.cursor);
    svg(this.svg, "rect", { ...area, class: "catch" });
  }

  drawAxes(yTicks) {
    const [X, Y] = [this.scale("x"), this.scale("y")];
    const group = svg(this.svg, "g", { class: "axes" });
    let line = 14;
    if (plain(this.spec.title)) {
      richText(svg(group, "text", { x: this.left, y: line, class: "title" }), this.spec.title);
      line += 20;
    }
    richText(svg(group, "text", { x: Math.min(this.left, 8), y: line, class: "name" }), this.y.label);
    richText(svg(group, "text", { x: this.right, y: line, class: "name", "text-anchor": "end" }), this.spec.note);
    for (const [v, text] of yTicks) {
      svg(group, "path", { d: `M${this.left} ${Y(v)}H${this.right}`, class: "grid" });
      richText(svg(group, "text", { x: this.left - 7, y: Y(v) + 4, "text-anchor": "end" }), text);
    }
    svg(group, "path", { d: `M${this.left} ${this.bottom}H${this.right}`, class: "axis" });
    const room = (this.right - this.left) / (this.spec.equal ? 70 : 85);
    let taken = -Infinity;
    for (const [v, text] of this.ticks("x", Math.max(3, room))) {
      const x = X(v);
      svg(group, "path", { d: `M${x} ${this.bottom}v4`, class: "axis" });
      const half = 3.4 * plain(text).length + 4;
      if (this.x.hidden || x - half < taken) continue;
      taken = x + half;
      const at = clamp(x, half - 4, this.width - half + 4);
      richText(svg(group, "text", { x: at, y: this.bottom + 18, "text-anchor": "middle" }), text);
    }
    if (!this.x.hidden)
      richText(svg(group, "text", { x: (this.left + this.right) / 2, y: this.bottom + 37, "text-anchor": "middle", class: "name" }), this.x.label);
  }

  // ---- reading values ----------------------------------------------------------------------------------------------

  /** What is at a pixel: [[mark, x, y, [low, high] | null], ...], nearest first. */
  near(px, py) {
    const [X, Y] = [this.scale("x"), this.scale("y")];
    const bySeries = new Map();
    for (const mark of this.marks) {
      const name = plain(mark.series);
      if (this.plot.hidden.has(name)) continue;
      const found = nearest(mark, px, py, X, Y);
      if (!found) continue;
      const known = bySeries.get(name) || { mark, distance: Infinity };
      if (found.value !== undefined && found.distance < known.distance) Object.assign(known, found, { mark });
      if (found.interval) {
        known.interval = found.interval;
        if (known.x === undefined) Object.assign(known, { x: found.x, distance: Math.min(known.distance, found.distance) });
      }
      bySeries.set(name, known);
    }
    return [...bySeries.values()].filter((one) => one.x !== undefined && one.distance < 30);
  }

  point(px, py) {
    this.cursor.replaceChildren();
    const rows = this.near(px, py);
    const inside = px >= this.left && px <= this.right && py >= this.top - 4 && py <= this.bottom + 4;
    if (!rows.length || !inside) return this.leave();
    const [X, Y] = [this.scale("x"), this.scale("y")];
    const resolution = (axis, v) => (axis.log ? 10 ** Math.floor(Math.log10(Math.abs(v) || 1) - 3) : Math.abs(axis.to - axis.from) / 2000);
    rows.sort((a, b) => a.distance - b.distance);
    const x = X(rows[0].x);
    svg(this.cursor, "path", { d: `M${x} ${this.top}V${this.bottom}`, class: "hair" });
    const lines = rows.slice(0, 8).map((row) => {
      const y = row.value;
      if (y !== undefined && y >= Math.min(this.y.from, this.y.to) && y <= Math.max(this.y.from, this.y.to))
        svg(this.cursor, "circle", { cx: X(row.x), cy: Y(y), r: 4, fill: color(row.mark.color) });
      const text = (v) => shown(v, resolution(this.y, v));
      const value = y === undefined ? "" : text(y);
      const range = row.interval ? ` [${text(row.interval[0])}, ${text(row.interval[1])}]` : "";
      const dot = html("i", { class: "dot", style: `background:${color(row.mark.color)}` });
      const name = plain(row.mark.series) ? rich(row.mark.series) : rich(this.y.label);
      return html("div", {}, dot, html("span", {}, ...name), html("b", {}, value + range));
    });
    const ticks = this.x.ticks && this.x.ticks.find(([v]) => Math.abs(v - rows[0].x) < 1e-9);
    const at = ticks ? plain(ticks[1]) : shown(rows[0].x, resolution(this.x, rows[0].x));
    this.tip.replaceChildren(html("header", {}, ...rich(this.x.label || "x"), ` ${at}`), ...lines);
    this.tip.classList.add("on");
    const factor = this.svg.clientWidth / this.width || 1;
    const room = this.box.clientWidth - this.tip.offsetWidth;
    const side = x * factor + 14 > room ? x * factor - 14 - this.tip.offsetWidth : x * factor + 14;
    this.tip.style.transform = `translate(${clamp(side, 0, Math.max(0, room))}px, ${clamp(py - this.tip.offsetHeight - 12, -24, this.height)}px)`;
  }

  leave() {
    this.cursor?.replaceChildren();
    this.tip.classList.remove("on");
  }

  // ---- moving about ------------------------------------------------------------------------------------------------

  /** Show the pixels p ... q of an axis over its whole length. */
  show(axis, p, q) {
    const back = this.scale(axis).back;
    const [from, to] = [back(p), back(q)];
    if (!Number.isFinite(from + to) || Math.abs(to - from) < 1e-12 * Math.abs(from)) return;
    const set = (panel) => {
      panel[axis].from = from;
      panel[axis].to = to;
      panel.draw();
    };
    axis === "x" ? this.plot.together(this, set) : set(this);
  }

  zoom(factor, px = (this.left + this.right) / 2, py = (this.top + this.bottom) / 2) {
    this.show("x", px + (this.left - px) / factor, px + (this.right - px) / factor);
    this.show("y", py + (this.bottom - py) / factor, py + (this.top - py) / factor);
  }

  pan(dx, dy) {
    if (dx) this.show("x", this.left - dx, this.right - dx);
    if (dy) this.show("y", this.bottom - dy, this.top - dy);
  }

  listen() {
    const view = this.svg;
    const place = (event) => {
      const box = view.getBoundingClientRect();
      const factor = this.width / box.width;
      return [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
    };
    const pointers = new Map();
    let start = null;
    view.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, place(event));
      if (event.button !== 0 || event.pointerType === "touch") return;
      start = place(event);
      view.setPointerCapture(event.pointerId);
    });
    view.addEventListener("pointermove", (event) => {
      const [px, py] = place(event);
      if (pointers.size === 2 && pointers.has(event.pointerId)) return this.pinch(pointers, event.pointerId, [px, py]);
      if (!start) return this.point(px, py);
      if (event.shiftKey) {
        this.pan(px - start[0], py - start[1]);
        start = [px, py];
      } else this.frame(start, [px, py]);
    });
    const end = (event) => {
      pointers.delete(event.pointerId);
      if (start && event.type === "pointerup" && !event.shiftKey) this.enlarge(start, place(event));
      start = null;
    };
    view.addEventListener("pointerup", end);
    view.addEventListener("pointercancel", end);
    view.addEventListener("pointerleave", () => this.leave());
    view.addEventListener("dblclick", () => this.plot.reset());
    view.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== view) return; // the page is to scroll
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * 0.002), ...place(event));
    }, { passive: false });
    view.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
      if (moves[event.key]) this.pan(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(1.3);
      else if (event.key === "-") this.zoom(1 / 1.3);
      else if (event.key === "0" || event.key === "Escape") this.plot.reset();
      else return;
      event.preventDefault();
    });
  }

  /** Which part a drag has chosen: a box, or all of one axis where it is narrow. */
  chosen([x0, y0], [x1, y1]) {
    const wide = Math.abs(x1 - x0) > 14;
    const tall = Math.abs(y1 - y0) > 14;
    const xs = wide ? [Math.min(x0, x1), Math.max(x0, x1)] : [this.left, this.right];
    const ys = tall ? [Math.min(y0, y1), Math.max(y0, y1)] : [this.top, this.bottom];
    return { wide, tall, x0: clamp(xs[0], this.left, this.right), x1: clamp(xs[1], this.left, this.right),
      y0: clamp(ys[0], this.top, this.bottom), y1: clamp(ys[1], this.top, this.bottom) };
  }

  frame(start, end) {
    const box = this.chosen(start, end);
    this.tip.classList.remove("on");
    this.cursor.replaceChildren();
    if (box.wide || box.tall)
      svg(this.cursor, "rect", { x: box.x0, y: box.y0, width: box.x1 - box.x0, height: box.y1 - box.y0, class: "choice" });
  }

  enlarge(start, end) {
    const box = this.chosen(start, end);
    if (box.wide) this.show("x", box.x0, box.x1);
    if (box.tall) this.show("y", box.y1, box.y0);
    if (!box.wide && !box.tall) this.point(...end);
  }

  pinch(pointers, id, now) {
    const [other] = [...pointers].filter(([key]) => key !== id).map(([, p]) => p);
    const before = pointers.get(id);
    const spread = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
    this.zoom(spread(now) / spread(before), ...other);
    pointers.set(id, now);
    this.leave();
  }
}

// ---- the marks: each draws itself with the scales X and Y -----------------------------------------------------------

/** An SVG path through the points that are numbers. */
function path(n, x, y) {
  let d = "";
  let pen = "M";
  for (let i = 0; i < n; i++) {
    const [px, py] = [x(i), y(i)];
    if (Number.isFinite(px + py)) {
      d += `${pen}${px.toFixed(1)} ${py.toFixed(1)}`;
      pen = "L";
    } else pen = "M";
  }
  return d;
}

const stroke = (mark, width) => ({ stroke: color(mark.color), "stroke-opacity": mark.alpha, "stroke-width": width, fill: "none" });
const fill = (mark) => ({ fill: color(mark.color), "fill-opacity": mark.alpha });
const inView = (pixel) => clamp(pixel, -1e4, 1e4); // browsers lose coordinates that are far away

const DRAW = {
  line(group, mark, X, Y) {
    const d = path(mark.x.length, (i) => inView(X(mark.x[i])), (i) => inView(Y(mark.y[i])));
    svg(group, "path", { d, ...stroke(mark, mark.width * POINT), "stroke-dasharray": mark.dash || "none", "stroke-linejoin": "round" });
  },
  points(group, mark, X, Y, panel) {
    const size = mark.size * POINT;
    const parts = [];
    for (let i = 0; i < mark.x.length; i++) {
      const [px, py] = [X(mark.x[i]), Y(mark.y[i])];
      if (px > panel.left - 9 && px < panel.right + 9 && py > panel.top - 9 && py < panel.bottom + 9) parts.push(`M${px.toFixed(1)} ${py.toFixed(1)}h0`);
    }
    const look = { ...stroke(mark, mark.square ? size * 0.6 : size), "stroke-linecap": mark.square ? "square" : "round" };
    if (parts.length < 300) {
      const d = parts.join("");
      if (size > 5) svg(group, "path", { d, ...look, "stroke-opacity": 1, stroke: "var(--page)", "stroke-width": size + 2 });
      svg(group, "path", { d, ...look });
      if (mark.open) svg(group, "path", { d, ...look, "stroke-opacity": 1, stroke: "var(--page)", "stroke-width": size * 0.5 });
      return;
    }
    const layers = 12; // a path does not darken itself: a cloud is several
    for (let k = 0; k < layers; k++)
      svg(group, "path", { d: parts.filter((_, i) => i % layers === k).join(""), ...look, "stroke-opacity": Math.max(mark.alpha, 0.16) });
  },
  error(group, mark, X, Y) {
    let d = "";
    for (let i = 0; i < mark.at.length; i++) {
      const across = mark.axis === "y";
      const at = (across ? X : Y)(mark.at[i]);
      const [low, high] = [(across ? Y : X)(mark.low[i]), (across ? Y : X)(mark.high[i])].map(inView);
      if (!Number.isFinite(at + low + high)) continue;
      d += across ? `M${at} ${low}V${high}M${at - 3} ${low}h6M${at - 3} ${high}h6` : `M${low} ${at}H${high}M${low} ${at - 3}v6M${high} ${at - 3}v6`;
    }
    svg(group, "path", { d, ...stroke(mark, 1.6) });
  },
  band(group, mark, X, Y) {
    const n = mark.x.length;
    const there = path(n, (i) => inView(X(mark.x[i])), (i) => inView(Y(mark.low[i])));
    const back = path(n, (i) => inView(X(mark.x[n - 1 - i])), (i) => inView(Y(mark.high[n - 1 - i])));
    svg(group, "path", { d: `${there}${back.replace("M", "L")}Z`, ...fill(mark) });
  },
  area(group, mark, X, Y) {
    const d = path(mark.x.length, (i) => inView(X(mark.x[i])), (i) => inView(Y(mark.y[i])));
    svg(group, "path", { d: `${d}Z`, ...fill(mark) });
  },
  bars(group, mark, X, Y, panel) {
    let d = "";
    const floor = (v) => (Number.isFinite(v) ? v : panel.bottom); // of a logarithmic axis
    for (let i = 0; i < mark.x0.length; i++)
      d += `M${inView(X(mark.x0[i]))} ${floor(inView(Y(mark.y0[i])))}H${inView(X(mark.x1[i]))}V${floor(inView(Y(mark.y1[i])))}H${inView(X(mark.x0[i]))}Z`;
    svg(group, "path", { d, ...fill(mark) });
  },
  segments(group, mark, X, Y) {
    let d = "";
    for (let i = 0; i < mark.x0.length; i++) d += `M${inView(X(mark.x0[i]))} ${inView(Y(mark.y0[i]))}L${inView(X(mark.x1[i]))} ${inView(Y(mark.y1[i]))}`;
    svg(group, "path", { d, ...stroke(mark, 1.4) });
  },
  level(group, mark, X, Y, panel) {
    const at = (mark.axis === "y" ? Y : X)(mark.at);
    if (!Number.isFinite(at)) return;
    const d = mark.axis === "y" ? `M${panel.left} ${at}H${panel.right}` : `M${at} ${panel.top}V${panel.bottom}`;
    svg(group, "path", { d, ...stroke(mark, mark.width * POINT), "stroke-dasharray": mark.dash || "none" });
  },
  span(group, mark, X, Y, panel) {
    const [a, b] = [mark.low, mark.high].map(mark.axis === "y" ? Y : X).map(inView).sort((p, q) => p - q);
    const box = mark.axis === "y" ? { x: panel.left, y: a, width: panel.right - panel.left, height: b - a }
      : { x: a, y: panel.top, width: b - a, height: panel.bottom - panel.top };
    svg(group, "rect", { ...box, ...fill(mark) });
  },
  text(group, mark, X, Y, panel) {
    const x = (mark.data[0] ? X(mark.x) : panel.left + mark.x * (panel.right - panel.left)) + mark.shift[0] * POINT;
    const y = (mark.data[1] ? Y(mark.y) : panel.bottom - mark.y * (panel.bottom - panel.top)) - mark.shift[1] * POINT;
    if (!(x >= panel.left - 9 && x <= panel.right + 9 && y >= panel.top - 30 && y <= panel.bottom + 9)) return;
    const anchor = { left: "start", center: "middle", right: "end" }[mark.ha] || "start";
    const lines = typeof mark.text === "string" ? mark.text.split("\n") : [mark.text];
    const down = { top: 11, center: 4, center_baseline: 4 }[mark.va] ?? -3 - 15 * (lines.length - 1);
    lines.forEach((line, k) => {
      richText(svg(group, "text", { x, y: y + down + 15 * k, "text-anchor": anchor, class: "note", style: `fill:${color(mark.color)}` }), line);
    });
  },
};

// ---- what lies near the pointer -------------------------------------------------------------------------------------

/** {x, value, interval, distance in pixels} of the point of a mark that is nearest; null where it has none. */
function nearest(mark, px, py, X, Y) {
  if (mark.kind === "bars") {
    for (let i = 0; i < mark.x0.length; i++) {
      const [a, b] = [X(mark.x0[i]), X(mark.x1[i])].sort((p, q) => p - q);
      if (px >= a && px <= b) return { x: (mark.x0[i] + mark.x1[i]) / 2, value: mark.y1[i] - mark.y0[i], distance: 1 };
    }
    return null;
  }
  if (mark.kind === "error") {
    if (mark.axis !== "y") return null;
    const i = closest(mark.at, (k) => Math.abs(X(mark.at[k]) - px));
    return i < 0 ? null : { x: mark.at[i], interval: [mark.low[i], mark.high[i]], distance: Math.abs(X(mark.at[i]) - px) };
  }
  if (mark.kind === "band") {
    const i = closest(mark.x, (k) => Math.abs(X(mark.x[k]) - px));
    return i < 0 ? null : { x: mark.x[i], interval: [mark.low[i], mark.high[i]], distance: Math.abs(X(mark.x[i]) - px) };
  }
  if (mark.kind !== "line" && mark.kind !== "points") return null;
  const flat = mark.kind === "line" || mark.x.length < 200; // clouds are read point by point
  const far = flat ? (k) => Math.abs(X(mark.x[k]) - px) : (k) => Math.hypot(X(mark.x[k]) - px, Y(mark.y[k]) - py);
  const i = closest(mark.x, far);
  return i < 0 || !Number.isFinite(mark.y[i]) ? null : { x: mark.x[i], value: mark.y[i], distance: far(i) };
}

function closest(values, distance) {
  let best = -1;
  let least = Infinity;
  for (let i = 0; i < values.length; i++) {
    const d = distance(i);
    if (d < least) {
      least = d;
      best = i;
    }
  }
  return best;
}
