// The structure in three dimensions: <figure class="structure"> with the data of structure_view.py, on a canvas.
// Atoms are shaded discs, half-bonds and cell edges are strokes, drawn from back to front. Drag to turn.

const LEVELS = 10; // of fading with depth
const BUCKETS = 2048; // of depth, for sorting
const FEW = 4000; // half-bonds that can be drawn while the structure turns
const MANY = 20000; // half-bonds that would hide more than they show

class Structure {
  constructor(figure) {
    this.figure = figure;
    this.data = JSON.parse(figure.querySelector("script").textContent);
    this.types = decoded(this.data.types, Uint8Array);
    this.canvas = html("canvas", { role: "img", tabindex: 0, "aria-label": `${this.types.length} atoms; drag to turn` });
    this.tip = html("div", { class: "tip" });
    this.stage = html("div", { class: "stage" }, this.canvas, this.tip);
    this.shown = { bonds: true, cell: true };
    this.flips = {};
    this.zoom = 1;
    this.rotation = turned(turned(null, 1, -0.35), 0, 0.38);
    const image = figure.querySelector("img");
    (image || figure.querySelector("figcaption") || figure.firstChild).before(this.stage, this.bar());
    image?.classList.add("replaced");
    figure.classList.add("ready");
    this.go(this.data.frames.length - 1);
    if (this.bonds.length / 7 > MANY) this.flips.bonds.click();
    this.listen();
    new ResizeObserver(() => this.later()).observe(this.stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
    addEventListener("beforeprint", () => this.render("#ffffff"));
    addEventListener("afterprint", () => this.later());
  }

  /** Elements and what can be done. */
  bar() {
    const counts = new Map();
    for (const t of this.types) counts.set(t, (counts.get(t) || 0) + 1);
    const elements = this.data.species.map((s, k) =>
      html("span", { class: "element" }, html("i", { class: "ball", style: `background:${s.color}` }), `${s.symbol} ${counts.get(k) || 0}`));
    const tools = html("div", { class: "tools" });
    for (const part of ["bonds", "cell"]) {
      const flip = button(part, `show or hide the ${part}`, () => {
        this.shown[part] = !this.shown[part];
        flip.setAttribute("aria-pressed", String(this.shown[part]));
        this.go(this.frame);
      });
      flip.setAttribute("aria-pressed", "true");
      this.flips[part] = flip;
      tools.append(flip);
    }
    ["a", "b", "c"].forEach((name, axis) => tools.append(button(name, `look along ${name}`, () => this.along(axis))));
    tools.append(button("+", "enlarge", () => this.enlarge(1.25)), button("−", "make smaller", () => this.enlarge(0.8)));
    return html("div", { class: "bar" }, html("div", { class: "legend" }, ...elements), tools, ...this.scrubber());
  }

  /** The frames of the trajectory. */
  scrubber() {
    const last = this.data.frames.length - 1;
    if (last < 1) return [];
    this.time = html("output", {});
    this.slider = html("input", { type: "range", min: 0, max: last, value: last, "aria-label": "frame" });
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    const play = button("▶", "play", () => {
      if (this.playing) {
        clearInterval(this.playing);
        this.playing = null;
      } else this.playing = setInterval(() => this.go((this.frame + 1) % (last + 1)), 160);
      play.textContent = this.playing ? "❚❚" : "▶";
    });
    return [html("div", { class: "scrubber" }, play, this.slider, this.time)];
  }

  go(k) {
    const frame = this.data.frames[k];
    this.frame = k;
    if (this.slider) {
      this.slider.value = k;
      this.time.textContent = frame.label;
    }
    const raw = decoded(frame.r, Uint16Array);
    this.r = new Float32Array(raw.length);
    for (let i = 0; i < raw.length; i++) this.r[i] = frame.low[i % 3] + (raw[i] * (frame.high[i % 3] - frame.low[i % 3])) / 65535;
    this.cell = frame.cell;
    const corner = (k) => this.cell.reduce((sum, v) => sum + v[k], 0) / 2;
    this.center = [0, 1, 2].map((k) => (this.cell.length === 3 ? corner(k) : (frame.low[k] + frame.high[k]) / 2));
    this.bonds = this.shown.bonds ? halfBonds(this.r, this.types, this.data, this.cell) : [];
    const far = this.cell.length === 3 ? norm(this.cell.reduce((s, v) => s.map((x, i) => x + v[i]), [0, 0, 0])) / 2 : norm(frame.high.map((h, i) => h - frame.low[i])) / 2;
    this.radius = this.radius || far + 0.6; // the first decides: a cell that breathes is to be seen breathing
    this.later();
  }

  along(axis) {
    const toward = this.cell.length === 3 ? unit(this.cell[axis]) : [0, 1, 2].map((k) => Number(k === axis));
    const up = this.cell.length === 3 ? this.cell[axis === 2 ? 1 : 2] : [0, 0, 1];
    const z = toward;
    const x = unit(cross(up, z));
    const y = cross(z, x);
    this.rotation = [x, y.map((v) => -v), z]; // the canvas counts y downwards
    this.later();
  }

  enlarge(factor) {
    this.zoom = clamp(this.zoom * factor, 0.3, 30);
    this.moved();
  }

  /** Something turns: draw what is quick to draw, and the rest when it is at rest. */
  moved() {
    this.moving = this.bonds.length / 7 > FEW;
    clearTimeout(this.rest);
    if (this.moving)
      this.rest = setTimeout(() => {
        this.moving = false;
        this.later();
      }, 180);
    this.later();
  }

  /** Draw with the next frame of the screen, once. */
  later() {
    this.asked = this.asked || requestAnimationFrame(() => {
      this.asked = 0;
      this.render();
    });
  }

  render(page = getComputedStyle(document.documentElement).getPropertyValue("--page").trim() || "#ffffff") {
    const started = performance.now();
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    const ratio = Math.min(2, devicePixelRatio || 1);
    if (!width || !height) return;
    if (this.canvas.width !== Math.round(width * ratio)) this.canvas.width = Math.round(width * ratio);
    if (this.canvas.height !== Math.round(height * ratio)) this.canvas.height = Math.round(height * ratio);
    if (this.page !== page) this.sprites = this.data.species.map((s) => spritesOf(s.color, page));
    this.page = page;
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    this.scale = (0.55 * Math.min(width * 0.85, height) * this.zoom) / this.radius;
    this.project(width, height);
    this.paint(context);
    if (this.cell.length === 3) this.compass(context, height);
    this.canvas.dataset.milliseconds = (performance.now() - started).toFixed(2);
  }

  /** Everything to draw with its place on the screen and its depth: x, y, depth and, of strokes, their other end. */
  project(width, height) {
    const edges = this.shown.cell && this.cell.length === 3 ? cellEdges(this.cell) : [];
    const n = this.types.length;
    this.drawnBonds = this.moving ? [] : this.bonds;
    this.total = n + this.drawnBonds.length / 7 + edges.length / 6;
    if (!this.items || this.items.length < this.total * 5) this.items = new Float32Array(this.total * 5);
    const [items, s, [cx, cy, cz]] = [this.items, this.scale, this.center];
    const [[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]] = this.rotation;
    const place = (list, at, x, y, depth) => { // one point; the depth of a stroke is that of its middle
      const [dx, dy, dz] = [list[at] - cx, list[at + 1] - cy, list[at + 2] - cz];
      items[x] = width / 2 + s * (xx * dx + xy * dy + xz * dz);
      items[y] = height / 2 + s * (yx * dx + yy * dy + yz * dz);
      items[depth] += zx * dx + zy * dy + zz * dz;
    };
    items.fill(0);
    for (let i = 0; i < n; i++) place(this.r, 3 * i, 5 * i, 5 * i + 1, 5 * i + 2);
    let item = 5 * n;
    for (const [list, stride] of [[this.drawnBonds, 7], [edges, 6]])
      for (let from = stride - 6; from < list.length; from += stride, item += 5) {
        place(list, from, item, item + 1, item + 2);
        place(list, from + 3, item + 3, item + 4, item + 2);
        items[item + 2] /= 2;
      }
    this.order = byDepth(items, this.total, this.radius);
  }

  paint(context) {
    const n = this.types.length;
    const nBonds = this.drawnBonds.length / 7;
    const species = this.data.species;
    const s = this.scale;
    context.lineCap = "round";
    const thick = Math.max(1, 0.22 * s);
    for (const k of this.order) {
      const [x, y, z] = [this.items[5 * k], this.items[5 * k + 1], this.items[5 * k + 2]];
      const level = clamp(Math.floor((0.5 + (0.5 * z) / this.radius) * LEVELS), 0, LEVELS - 1);
      if (k < n) {
        const t = this.types[k];
        const radius = species[t].radius * s;
        context.drawImage(this.sprites[t][radius < 9 ? "small" : "large"][level], x - radius, y - radius, 2 * radius, 2 * radius);
        continue;
      }
      const bond = k < n + nBonds;
      const tones = bond ? this.sprites[this.bonds[7 * (k - n)]].tones[level] : null;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(this.items[5 * k + 3], this.items[5 * k + 4]);
      context.lineWidth = bond ? thick : 1.2;
      context.strokeStyle = bond ? tones[0] : "rgba(128,136,146,0.75)";
      context.stroke();
      if (bond && thick > 2.5 && nBonds < FEW) {
        context.lineWidth = thick * 0.4;
        context.strokeStyle = tones[1];
        context.stroke();
      }
    }
  }

  /** Where a, b and c point. */
  compass(context, height) {
    const ink = getComputedStyle(this.stage).color;
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    ["a", "b", "c"].forEach((name, axis) => {
      const v = unit(this.cell[axis]);
      const [dx, dy] = [0, 1].map((k) => 24 * this.rotation[k].reduce((sum, x, i) => sum + x * v[i], 0));
      context.strokeStyle = context.fillStyle = ink;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(38, height - 38);
      context.lineTo(38 + dx, height - 38 + dy);
      context.stroke();
      context.fillText(name, 38 + dx * 1.4, height - 38 + dy * 1.4);
    });
  }

  /** The atom in front at a pixel. */
  pick(px, py) {
    for (let o = this.total - 1; o >= 0; o--) {
      const k = this.order[o];
      if (k >= this.types.length) continue;
      const radius = this.data.species[this.types[k]].radius * this.scale;
      if (Math.hypot(this.items[5 * k] - px, this.items[5 * k + 1] - py) < radius) return k;
    }
    return -1;
  }

  point(px, py) {
    const k = this.pick(px, py);
    this.tip.classList.toggle("on", k >= 0);
    if (k < 0) return;
    const at = [0, 1, 2].map((i) => shown(this.r[3 * k + i], 0.01)).join(", ");
    this.tip.replaceChildren(html("header", {}, `${this.data.species[this.types[k]].symbol}, atom ${k}`), html("div", {}, `${at} Å`));
    const room = this.stage.clientWidth - this.tip.offsetWidth;
    this.tip.style.transform = `translate(${clamp(px + 14, 0, Math.max(0, room))}px, ${Math.max(0, py - 50)}px)`;
  }

  listen() {
    const canvas = this.canvas;
    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
      this.tip.classList.remove("on");
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      const now = [event.clientX, event.clientY];
      if (!before) {
        const box = canvas.getBoundingClientRect();
        return this.point(now[0] - box.left, now[1] - box.top);
      }
      if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
        const spread = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
        this.enlarge(spread(now) / spread(before));
      } else {
        this.rotation = turned(turned(this.rotation, 1, (now[0] - before[0]) * 0.008), 0, (now[1] - before[1]) * 0.008);
        this.moved();
      }
      pointers.set(event.pointerId, now);
    });
    const end = (event) => pointers.delete(event.pointerId);
    for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, end);
    canvas.addEventListener("pointerleave", () => this.tip.classList.remove("on"));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page is to scroll
      event.preventDefault();
      this.enlarge(Math.exp(-event.deltaY * 0.002));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const turns = { ArrowLeft: [1, -0.1], ArrowRight: [1, 0.1], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
      if (turns[event.key]) this.rotation = turned(this.rotation, ...turns[event.key]);
      else if (event.key === "+" || event.key === "=") this.enlarge(1.2);
      else if (event.key === "-") this.enlarge(1 / 1.2);
      else return;
      event.preventDefault();
      this.moved();
    });
  }
}

// ---- vectors --------------------------------------------------------------------------------------------------------

const norm = (v) => Math.hypot(...v);
const unit = (v) => v.map((x) => x / (norm(v) || 1));
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

/** The rotation, further turned about an axis of the screen. Rows: right, down, towards the eye. */
function turned(rotation, axis, angle) {
  const R = rotation || [[1, 0, 0], [0, 0, -1], [0, -1, 0]]; // z upwards
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const [i, j] = axis === 1 ? [0, 2] : [1, 2];
  const made = R.map((row) => [...row]);
  for (let k = 0; k < 3; k++) {
    made[i][k] = c * R[i][k] + s * R[j][k];
    made[j][k] = -s * R[i][k] + c * R[j][k];
  }
  return made;
}

/** The twelve edges in short pieces, [from, to] each: pieces can lie before and behind atoms. */
function cellEdges(cell) {
  const pieces = [];
  const at = (f) => [0, 1, 2].map((k) => f[0] * cell[0][k] + f[1] * cell[1][k] + f[2] * cell[2][k]);
  for (let axis = 0; axis < 3; axis++)
    for (const [u, v] of [[0, 0], [0, 1], [1, 0], [1, 1]])
      for (let k = 0; k < 16; k++) {
        const f = (t) => [0, 1, 2].map((i) => (i === axis ? t : i === (axis + 1) % 3 ? u : v));
        pieces.push(...at(f(k / 16)), ...at(f((k + 1) / 16)));
      }
  return pieces;
}

/** Indices from back to front, by counting. */
function byDepth(items, n, radius) {
  const bucket = new Uint16Array(n);
  const starts = new Uint32Array(BUCKETS + 1);
  for (let k = 0; k < n; k++) {
    bucket[k] = clamp(Math.floor((0.5 + items[5 * k + 2] / (2.2 * radius)) * BUCKETS), 0, BUCKETS - 1);
    starts[bucket[k] + 1]++;
  }
  for (let b = 0; b < BUCKETS; b++) starts[b + 1] += starts[b];
  const order = new Uint32Array(n);
  for (let k = 0; k < n; k++) order[starts[bucket[k]]++] = k;
  return order;
}

// ---- looks ----------------------------------------------------------------------------------------------------------

/** Shaded balls and the tones of bonds, paler the farther away. */
function spritesOf(hex, page) {
  const parts = (text) => [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
  const [base, back] = [parts(hex), parts(/^#[0-9a-f]{6}$/i.test(page) ? page : "#ffffff")];
  const mix = (p, q, f) => p.map((x, i) => Math.round(x + (q[i] - x) * f));
  const css = (c) => `rgb(${c.join(",")})`;
  const sprites = { small: [], large: [], tones: [] };
  for (let level = 0; level < LEVELS; level++) {
    const fog = 0.62 * (1 - (level + 0.5) / LEVELS) ** 1.3;
    const tone = (c) => css(mix(c, back, fog));
    const [light, dark] = [mix(base, [255, 255, 255], 0.75), mix(base, [0, 0, 0], 0.5)];
    for (const [size, list] of [[24, sprites.small], [96, sprites.large]]) {
      const ball = self.OffscreenCanvas ? new OffscreenCanvas(size, size) : html("canvas", { width: size, height: size });
      const context = ball.getContext("2d");
      context.scale(size / 96, size / 96);
      const shade = context.createRadialGradient(36, 32, 4, 48, 48, 47);
      shade.addColorStop(0, tone(light));
      shade.addColorStop(0.35, tone(mix(base, [255, 255, 255], 0.12)));
      shade.addColorStop(0.8, tone(mix(base, [0, 0, 0], 0.14)));
      shade.addColorStop(1, tone(dark));
      context.fillStyle = shade;
      context.beginPath();
      context.arc(48, 48, 47, 0, 2 * Math.PI);
      context.fill();
      list.push(ball.transferToImageBitmap ? ball.transferToImageBitmap() : ball); // bitmaps are drawn much faster
    }
    sprites.tones.push([tone(mix(base, [0, 0, 0], 0.32)), tone(mix(base, [255, 255, 255], 0.25))]);
  }
  return sprites;
}

// ---- bonds ----------------------------------------------------------------------------------------------------------

/** Half-bonds [type, from, middle] of every atom to its neighbours, also those across the faces of the cell. */
function halfBonds(r, types, data, cell) {
  const limits = new Map(data.bonds.map(([a, b, d]) => [a * 256 + b, d]));
  const longest = Math.max(0, ...data.bonds.map((b) => b[2]));
  if (!longest) return [];
  const n = types.length;
  const [points, owner] = withImages(r, cell, data.pbc, longest);
  const grid = new Map();
  const key = (x, y, z) => (Math.floor(x / longest) * 4099 + Math.floor(y / longest)) * 4099 + Math.floor(z / longest);
  for (let j = 0; j < owner.length; j++) {
    const place = key(points[3 * j], points[3 * j + 1], points[3 * j + 2]);
    grid.has(place) ? grid.get(place).push(j) : grid.set(place, [j]);
  }
  const found = [];
  for (let i = 0; i < n; i++) {
    const [x, y, z] = [r[3 * i], r[3 * i + 1], r[3 * i + 2]];
    const skip = data.species[types[i]].radius * 0.8;
    for (let a = -1; a < 2; a++) for (let b = -1; b < 2; b++) for (let c = -1; c < 2; c++)
      for (const j of grid.get(key(x + a * longest, y + b * longest, z + c * longest)) || []) {
        const limit = limits.get(types[i] * 256 + types[owner[j]]);
        if (!limit || j === i) continue;
        const [dx, dy, dz] = [points[3 * j] - x, points[3 * j + 1] - y, points[3 * j + 2] - z];
        const d = Math.hypot(dx, dy, dz);
        if (d > limit || d < 0.1) continue;
        const [p, q] = [Math.min(skip / d, 0.45), 0.5];
        found.push(types[i], x + dx * p, y + dy * p, z + dz * p, x + dx * q, y + dy * q, z + dz * q);
      }
  }
  return new Float32Array(found);
}

/** The atoms, and their images within a distance of the cell: [positions, whose]. */
function withImages(r, cell, pbc, reach) {
  const points = [...r];
  const owner = Array.from({ length: r.length / 3 }, (_, i) => i);
  if (cell.length !== 3) return [points, owner];
  const volume = cell[0].reduce((sum, x, i) => sum + x * cross(cell[1], cell[2])[i], 0);
  const inverse = [0, 1, 2].map((k) => cross(cell[(k + 1) % 3], cell[(k + 2) % 3]).map((x) => x / volume));
  for (let axis = 0; axis < 3; axis++) {
    if (!pbc[axis]) continue;
    const margin = reach * norm(inverse[axis]);
    const most = Math.ceil(margin);
    const before = owner.length;
    for (let j = 0; j < before; j++) {
      const f = [0, 1, 2].reduce((sum, k) => sum + inverse[axis][k] * points[3 * j + k], 0);
      for (let shift = -most; shift <= most; shift++) {
        if (!shift || f + shift < -margin || f + shift > 1 + margin) continue;
        for (let k = 0; k < 3; k++) points.push(points[3 * j + k] + shift * cell[axis][k]);
        owner.push(owner[j]);
      }
    }
  }
  return [points, owner];
}
