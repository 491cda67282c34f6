// The curves: drawn on canvas, each pixel column by its lowest and highest value, so 100,000 points stay readable.
// Hover, touch or the arrow keys read values; drag zooms, double click or Escape goes back.
"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots-data").textContent);
  const root = document.getElementById("plots");
  if (!root || !plots.length) return;
  const AXES = ["steps", "tokens", "hours", "dollars"]; // places 0..3 of a point; place 4 is the value
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [1, 4]]; // told apart without colour
  const dashes = (index) => DASHES[(index + Math.floor(index / 6)) % 6]; // colour and dash together: 36 lines
  const LEFT = 58, RIGHT = 10, TOP = 10, BOTTOM = 40;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const short = (value) => {
    const size = Math.abs(value);
    if (value === 0) return "0";
    for (const [unit, scale] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]])
      if (size >= scale * 0.99995) return +(value / scale).toPrecision(4) + unit;
    return String(+value.toPrecision(4));
  };
  const knows = (plot, axis) => plot.series.some((line) => line.points.some((point) => point[axis] !== null));
  const has = (axis) => plots.some((plot) => knows(plot, axis));
  let chosen = has(0) ? 0 : 2;
  const drawn = [];

  const choices = make("fieldset", { class: "controls" }, make("legend", {}, "Over"));
  AXES.forEach((name, index) => {
    if (!has(index)) return;
    const input = make("input", { type: "radio", name: "axis", value: index });
    input.checked = index === chosen;
    input.addEventListener("change", () => { chosen = index; drawn.forEach((plot) => plot.reset()); });
    choices.append(make("label", {}, input, " " + name));
  });
  const grid = make("div", { class: "grid" });
  root.append(choices, grid);

  // Round numbers for an axis from `low` to `high`.
  function ticks(low, high, many) {
    const rough = (high - low) / many || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || rough;
    const found = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(+tick.toPrecision(12));
    return found;
  }
  function logTicks(low, high) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of [1, 2, 5]) {
        const tick = factor * 10 ** power;
        if (tick >= low && tick <= high) found.push(tick);
      }
    return found.length > 1 ? found : ticks(low, high, 4).filter((tick) => tick > 0);
  }

  function Plot(data) {
    const canvas = make("canvas", { tabindex: "0", role: "img" });
    const reading = make("div", { class: "reading", "aria-live": "polite" });
    const title = data.title + (data.unit ? ", " + data.unit : "");
    const caption = make("figcaption", {}, make("span", {}, title));
    const legend = make("div", { class: "legend" });
    const numbers = make("details", {}, make("summary", {}, "Numbers"));
    const hidden = new Set();
    let axis = chosen, log = false, zoom = null, cursor = null, dragged = null, lines = [], box = null;
    if (data.log) {
      const input = make("input", { type: "checkbox" });
      input.addEventListener("change", () => { log = input.checked; draw(); });
      caption.append(make("label", {}, input, " log scale"));
    }
    data.series.forEach((series, index) => {
      const input = make("input", { type: "checkbox" });
      input.checked = true;
      input.addEventListener("change", () => { hidden[input.checked ? "delete" : "add"](index); draw(); });
      const line = `<svg viewBox="0 0 32 10" aria-hidden="true"><line x1="0" y1="5" x2="32" y2="5" stroke="var(--s${index % 6})" stroke-width="2.5" stroke-dasharray="${dashes(index).join(" ")}"/></svg>`;
      const label = make("label", {});
      if (data.series.length > 1) label.append(input, " ");
      label.insertAdjacentHTML("beforeend", line);
      label.append(series.name);
      legend.append(label);
    });
    numbers.addEventListener("toggle", () => { if (numbers.open && !numbers.querySelector("table")) numbers.append(table()); });
    grid.append(make("figure", {}, caption, canvas, reading, legend, numbers));

    // A few of the numbers, for those who cannot see the curve.
    function table() {
      const body = make("tbody");
      for (const series of data.series) {
        const points = series.points, every = Math.max(1, Math.floor(points.length / 12));
        points.forEach((point, index) => {
          if (index % every && index !== points.length - 1) return;
          const cells = [...AXES.keys()].map((place) => make("td", { class: "number" }, point[place] === null ? "" : short(point[place])));
          body.append(make("tr", {}, make("th", { scope: "row" }, series.name), ...cells, make("td", { class: "number" }, String(point[4]))));
        });
      }
      const head = ["", ...AXES, data.metric].map((name) => make("th", { scope: "col" }, name));
      return make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), body));
    }

    function range() {
      let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
      for (const { points } of lines)
        for (const [x] of points) { if (x < x0) x0 = x; if (x > x1) x1 = x; }
      if (zoom) [x0, x1] = zoom;
      for (const { points } of lines)
        for (const [x, y] of points) if (x >= x0 && x <= x1 && (!log || y > 0)) { if (y < y0) y0 = y; if (y > y1) y1 = y; }
      if (!(y1 >= y0)) { y0 = log ? 0.1 : 0; y1 = 1; }
      if (x1 === x0) { x0 -= 0.5; x1 += 0.5; }
      const room = log ? 1.04 : (y1 - y0 || Math.abs(y1) || 1) * 0.05;
      return log ? [x0, x1, y0 / room, y1 * room] : [x0, x1, y0 - room, y1 + room];
    }

    function draw() {
      axis = knows(data, chosen) ? chosen : 2; // a machine's curve has no steps
      const width = canvas.clientWidth, height = canvas.clientHeight, dense = devicePixelRatio || 1;
      if (!width) return;
      canvas.width = width * dense; canvas.height = height * dense;
      const pen = canvas.getContext("2d");
      pen.scale(dense, dense);
      lines = data.series
        .map((series, index) => ({ index, name: series.name, points: series.points.filter((p) => p[axis] !== null).map((p) => [p[axis], p[4]]) }))
        .filter((line) => !hidden.has(line.index) && line.points.length);
      const [x0, x1, y0, y1] = range();
      const scale = log ? Math.log : (value) => value;
      const toX = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
      const toY = (y) => height - BOTTOM - ((scale(y) - scale(y0)) / (scale(y1) - scale(y0) || 1)) * (height - TOP - BOTTOM);
      box = { x0, x1, width, toX, toY };
      pen.font = "12px system-ui, sans-serif"; pen.lineWidth = 1;
      pen.strokeStyle = css("--line"); pen.fillStyle = css("--quiet");
      pen.textAlign = "right"; pen.textBaseline = "middle";
      for (const tick of log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
        const y = Math.round(toY(tick)) + 0.5;
        pen.beginPath(); pen.moveTo(LEFT, y); pen.lineTo(width - RIGHT, y); pen.stroke();
        pen.fillText(short(tick), LEFT - 6, y);
      }
      pen.textAlign = "center"; pen.textBaseline = "top";
      for (const tick of ticks(x0, x1, Math.max(2, Math.floor(width / 90)))) pen.fillText((axis === 3 ? "$" : "") + short(tick), toX(tick), height - BOTTOM + 7);
      pen.textAlign = "right"; pen.fillText(AXES[axis], width - RIGHT, height - 15);
      pen.save(); pen.beginPath(); pen.rect(LEFT, TOP - 4, width - LEFT - RIGHT, height - TOP - BOTTOM + 8); pen.clip();
      for (const line of lines) stroke(pen, line, toX, toY);
      pen.restore();
      if (cursor !== null) mark(pen, height);
      describe();
    }

    // One line: where several points share a pixel column, from the lowest to the highest of them.
    function stroke(pen, line, toX, toY) {
      pen.strokeStyle = pen.fillStyle = css("--s" + (line.index % 6));
      pen.setLineDash(dashes(line.index)); pen.lineWidth = 1.6; pen.lineJoin = "round";
      const few = line.points.length <= 40;
      pen.beginPath();
      let column = null, low = 0, high = 0, last = 0, started = false;
      const put = (x, y) => { if (started) pen.lineTo(x, y); else { pen.moveTo(x, y); started = true; } };
      const flush = () => { if (column !== null) { put(column, low); if (high !== low) put(column, high); put(column, last); } };
      for (const [x, y] of line.points) {
        if (log && y <= 0) continue;
        const at = few ? toX(x) : Math.round(toX(x)), to = toY(y);
        if (at === column) { low = Math.max(low, to); high = Math.min(high, to); last = to; continue; }
        flush();
        column = at; low = high = last = to;
      }
      flush();
      pen.stroke(); pen.setLineDash([]);
      if (few) for (const [x, y] of line.points) { if (log && y <= 0) continue; pen.beginPath(); pen.arc(toX(x), toY(y), 3, 0, 7); pen.fill(); }
    }

    function nearest(points, x) {
      let low = 0, high = points.length - 1;
      while (high - low > 1) { const middle = (low + high) >> 1; if (points[middle][0] < x) low = middle; else high = middle; }
      return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
    }

    function mark(pen, height) {
      pen.strokeStyle = css("--quiet"); pen.beginPath();
      pen.moveTo(box.toX(cursor), TOP); pen.lineTo(box.toX(cursor), height - BOTTOM); pen.stroke();
      for (const line of lines) {
        const [x, y] = nearest(line.points, cursor);
        pen.fillStyle = css("--s" + (line.index % 6)); pen.beginPath(); pen.arc(box.toX(x), box.toY(y), 4, 0, 7); pen.fill();
      }
      if (dragged !== null) {
        pen.globalAlpha = 0.15; pen.fillStyle = css("--accent");
        pen.fillRect(box.toX(dragged), TOP, box.toX(cursor) - box.toX(dragged), height - TOP - BOTTOM); pen.globalAlpha = 1;
      }
    }

    function describe() {
      const words = lines.map((line) => {
        const [x, y] = cursor === null ? line.points[line.points.length - 1] : nearest(line.points, cursor);
        const at = (axis === 3 ? "$" : "") + short(x) + (axis === 3 ? "" : " " + AXES[axis]);
        return (lines.length > 1 ? line.name + ": " : "") + +y.toPrecision(6) + " at " + at;
      });
      reading.textContent = lines.length ? words.join(" · ") : "nothing to show over " + AXES[axis];
      canvas.setAttribute("aria-label", title + " over " + AXES[axis] + ". " + reading.textContent + ". Arrow keys read values.");
    }

    const at = (event) => {
      const share = (event.clientX - canvas.getBoundingClientRect().left - LEFT) / (box.width - LEFT - RIGHT);
      return box.x0 + Math.min(1, Math.max(0, share)) * (box.x1 - box.x0);
    };
    canvas.addEventListener("pointermove", (event) => { cursor = at(event); draw(); });
    canvas.addEventListener("pointerleave", () => { cursor = dragged = null; draw(); });
    canvas.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") dragged = at(event); });
    canvas.addEventListener("pointerup", (event) => {
      const from = dragged, to = at(event);
      dragged = null;
      if (from !== null && Math.abs(box.toX(from) - box.toX(to)) > 8) zoom = [Math.min(from, to), Math.max(from, to)];
      draw();
    });
    const reset = () => { zoom = cursor = dragged = null; draw(); };
    canvas.addEventListener("dblclick", reset);
    canvas.addEventListener("blur", () => { cursor = null; draw(); });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return reset();
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way || !lines.length) return;
      event.preventDefault();
      const step = (box.x1 - box.x0) / (event.shiftKey ? 10 : 50);
      cursor = Math.min(box.x1, Math.max(box.x0, (cursor === null ? box.x0 : cursor) + way * step));
      draw();
    });
    return { draw, reset };
  }

  for (const data of plots) drawn.push(Plot(data));
  const all = () => drawn.forEach((plot) => plot.draw());
  new ResizeObserver(all).observe(grid);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  all();
})();
