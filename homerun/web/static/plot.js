// Curves on a canvas: every pixel column drawn by its lowest and highest value, so 100,000 points stay readable.
const RIGHT = 8, TOP = 8, BOTTOM = 24;
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [1, 4]]; // told apart without colour
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  for (const [unit, scale] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]])
    if (size >= scale * 0.99995) return +(value / scale).toPrecision(4) + unit;
  return String(+value.toPrecision(4));
}

// Round numbers between low and high.
function ticks(low, high, many) {
  const rough = (high - low) / many || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || rough;
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(+tick.toPrecision(12));
  return found;
}

// A figure of one metric: lines by name, each [[step, t, value], …] with growing steps.
export class Plot {
  constructor(title, words = short) {
    this.title = title;
    this.words = words;
    this.lines = new Map();
    this.axis = 0; // the place in a point that x is: 0 step, 1 time
    this.clock = false; // whether its steps are no steps, but seconds
    this.canvas = make("canvas", { role: "img", tabindex: "0" });
    this.reading = make("span", { class: "reading" });
    this.legend = make("ul", { class: "legend" });
    this.figure = make("figure", {}, make("figcaption", {}, title, this.reading), this.canvas, this.legend);
    this.left = 40; // room for the labels of y, as wide as they are
    this.pointed = null;
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -8, ArrowRight: 8 }[event.key];
      if (!move) return;
      event.preventDefault();
      this.point(Math.max(this.left, Math.min(this.canvas.clientWidth - RIGHT, (this.pointed ?? this.canvas.clientWidth) + move)));
    });
    new ResizeObserver(() => this.later()).observe(this.canvas);
  }

  set(name, points) {
    this.lines.set(name, points);
    this.later();
  }

  add(name, points) {
    const line = this.lines.get(name) || [];
    for (const point of points) {
      while (line.length && line[line.length - 1][0] >= point[0]) line.pop(); // a resume goes back
      line.push(point);
    }
    this.set(name, line);
  }

  point(x) {
    this.pointed = x;
    this.later();
  }

  later() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }

  draw() {
    const canvas = this.canvas, ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d"), axis = this.axis;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    for (const line of this.lines.values())
      for (const point of line) {
        if (point[axis] < x0) x0 = point[axis];
        if (point[axis] > x1) x1 = point[axis];
        if (point[2] < y0) y0 = point[2];
        if (point[2] > y1) y1 = point[2];
      }
    if (x0 > x1) return;
    if (x0 === x1) { x0 -= 1; x1 += 1; }
    if (y0 === y1) { y0 -= Math.abs(y0) * 0.1 || 1; y1 += Math.abs(y1) * 0.1 || 1; }
    const pad = (y1 - y0) * 0.05;
    y0 = y0 >= 0 ? Math.max(0, y0 - pad) : y0 - pad;
    y1 += pad;
    pen.font = "12px system-ui, sans-serif";
    const marks = ticks(y0, y1, 4), labels = marks.map((tick) => this.label(tick, marks));
    const LEFT = this.left = Math.max(...labels.map((label) => pen.measureText(label).width), 20) + 10;
    const X = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
    const Y = (y) => height - BOTTOM - ((y - y0) / (y1 - y0)) * (height - TOP - BOTTOM);
    pen.fillStyle = css("--quiet");
    pen.strokeStyle = css("--line");
    pen.lineWidth = 1;
    pen.setLineDash([]);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const [index, tick] of marks.entries()) {
      pen.beginPath();
      pen.moveTo(LEFT, Y(tick));
      pen.lineTo(width - RIGHT, Y(tick));
      pen.stroke();
      pen.fillText(labels[index], LEFT - 6, Y(tick));
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    const origin = axis === 1 ? x0 : 0, scale = axis !== 1 ? 1 : x1 - x0 > 7200 ? 3600 : 60;
    for (const tick of ticks((x0 - origin) / scale, (x1 - origin) / scale, Math.max(2, Math.floor(width / 90)))) {
      const label = axis === 1 ? `${+tick.toPrecision(4)} ${scale === 60 ? "min" : "h"}` : short(tick);
      const x = X(tick * scale + origin);
      if (x < width - 20) pen.fillText(label, x, height - BOTTOM + 6);
    }
    let index = 0;
    const told = [];
    for (const [name, line] of this.lines) {
      pen.strokeStyle = css(`--s${index % 6}`);
      pen.setLineDash(DASHES[Math.floor(index / 6) % DASHES.length]);
      pen.lineWidth = 1.6;
      this.trace(pen, line, X, Y, axis);
      if (this.pointed !== null && line.length) told.push([name, nearest(line, axis, x0 + ((this.pointed - LEFT) / (width - LEFT - RIGHT)) * (x1 - x0))]);
      index += 1;
    }
    pen.setLineDash([]);
    if (told.length) {
      const x = X(told[0][1][axis]);
      pen.strokeStyle = css("--quiet");
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(x, TOP);
      pen.lineTo(x, height - BOTTOM);
      pen.stroke();
    }
    this.tell(told);
  }

  // As few digits as tell the marks apart.
  label(tick, marks) {
    const all = marks.map(this.words);
    return new Set(all).size === all.length ? this.words(tick) : tick.toLocaleString("en", { maximumFractionDigits: 6 });
  }

  trace(pen, line, X, Y, axis) {
    pen.beginPath();
    let column = null, low = 0, high = 0, last = 0;
    const flush = () => {
      if (column === null) return;
      pen.lineTo(column, Y(low));
      if (high !== low) pen.lineTo(column, Y(high));
      pen.lineTo(column, Y(last));
    };
    for (const point of line) {
      const x = Math.round(X(point[axis]) * 2) / 2;
      if (x !== column) {
        flush();
        column = x;
        low = high = point[2];
      } else {
        if (point[2] < low) low = point[2];
        if (point[2] > high) high = point[2];
      }
      last = point[2];
    }
    flush();
    pen.stroke();
    if (line.length < 40)
      for (const point of line) {
        pen.fillStyle = pen.strokeStyle;
        pen.fillRect(X(point[axis]) - 1.5, Y(point[2]) - 1.5, 3, 3);
      }
  }

  tell(told) {
    const newest = [...this.lines].filter(([, line]) => line.length).map(([name, line]) => [name, line[line.length - 1]]);
    const shown = told.length ? told : newest.slice(-1);
    const where = (point) => (this.clock ? "" : ` at step ${short(point[0])}`);
    this.reading.textContent = shown.map(([, point]) => this.words(point[2]) + where(point)).join(" · ");
    this.canvas.setAttribute("aria-label", `${this.title}: ` + (newest.map(([name, point]) => `${name} ${this.words(point[2])}`).join(", ") || "no data yet"));
    const names = [...this.lines.keys()];
    if (this.named === names.join()) return;
    this.named = names.join();
    this.legend.replaceChildren(...(names.length < 2 ? [] : names.map((name, index) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.borderColor = `var(--s${index % 6})`;
      return make("li", {}, swatch, name);
    })));
  }
}

function nearest(line, axis, x) {
  let low = 0, high = line.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (line[middle][axis] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - line[low - 1][axis] < line[low][axis] - x ? line[low - 1] : line[low];
}
