// The live page: server-sent events in, the document out. Nothing is polled.
import { make, Plot, short } from "/static/plot.js";

const at = (id) => document.getElementById(id);
const fill = (id, rows) => at(id).replaceChildren(...rows);
const cell = (text, kind = null) => make("td", { class: kind }, text ?? "");

// -- words ---------------------------------------------------------------------------------------------------------

function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 3570) return `${Math.round(seconds / 60)} min`;
  const whole = Math.round(seconds / 60);
  return `${Math.floor(whole / 60)} h ${String(whole % 60).padStart(2, "0")} min`;
}
const money = (usd) => (usd === null || usd === undefined ? "" : usd >= 0.1 || usd < 0.0001 ? `$${usd.toFixed(2)}` : `$${usd.toFixed(4)}`);
function size(bytes) {
  for (const [unit, scale] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (bytes >= scale) return `${(bytes / scale).toFixed(1)} ${unit}`;
  return `${bytes} B`;
}
const count = (many, thing) => `${many} ${thing}${many === 1 ? "" : "s"}`;
const KIND = { good: "good", running: "good", failed: "bad", stopped: "bad", silent: "bad", interrupted: "warn", ok: "good", fail: "bad", warn: "warn", pass: "good" };

// -- the run -------------------------------------------------------------------------------------------------------

function tile(name, value, note = "", wide = false) {
  if (value === "" || value === undefined || value === null) return null;
  const node = make("div", { class: wide ? "tile wide" : "tile" }, make("dt", {}, name), make("dd", {}, value));
  if (note) node.append(make("dd", { class: "note" }, note));
  return node;
}

function tiles(run) {
  const last = run.last || {}, gpus = run.machine?.gpus || [], bpb = run.evals.filter((e) => e.metric === "val_bpb").at(-1);
  const phase = run.phases.filter((p) => p.state === "running" && !p.background).at(-1) || run.phases.filter((p) => p.state === "running").at(-1);
  const secured = run.groups.filter((g) => g.secured_at), waiting = run.groups.filter((g) => !g.secured_at);
  const memory = Math.max(...gpus.map((gpu) => gpu.memory_bytes || 0), 0);
  const floor = run.money.floor ? "at least " : "";
  return [
    phase && tile("Now", phase.phase, [phase.total ? `step ${phase.step ?? 0} of ${phase.total}` : "", run.time.phase_left_seconds !== null ? `${span(run.time.phase_left_seconds)} left` : ""].filter(Boolean).join(", ") || span(phase.seconds), true),
    last.loss !== undefined && tile("Loss", last.loss.toFixed(4), last.phase),
    bpb && tile("Validation bpb", bpb.value.toFixed(4), bpb.best !== bpb.value ? `best ${bpb.best.toFixed(4)}` : ""),
    last.tok_per_sec !== undefined && tile("Tokens a second", Math.round(last.tok_per_sec).toLocaleString("en")),
    last.mfu ? tile("MFU", `${last.mfu.toFixed(1)} %`) : null,
    memory ? tile("GPU memory", size(memory), `${gpus.length} × ${(run.attempts.at(-1)?.machine.gpus?.[0]?.name || "GPU").replace(/^NVIDIA /, "")}`) : null,
    tile("Time paid for", span(run.time.paid_seconds), run.time.run_seconds ? `of ${floor}${span(run.time.run_seconds)}` : ""),
    run.money.usd !== null && tile("Cost so far", money(run.money.usd), run.money.projected_usd ? `projected ${floor}${money(run.money.projected_usd)}` : `${money(run.money.usd_per_hour)} an hour`),
    run.gauge?.lost_minutes !== undefined && run.gauge && tile("If it died now", `${span(run.gauge.lost_minutes * 60)} lost`, [money(run.gauge.lost_usd), run.gauge.secured_step !== undefined ? `step ${run.gauge.secured_step} is secured` : ""].filter(Boolean).join(", ")),
    run.groups.length ? tile("Secured", size(secured.reduce((sum, g) => sum + g.bytes, 0)), waiting.length ? `${count(waiting.length, "group")} on the way` : `all of ${count(secured.length, "group")}`) : null,
  ].filter(Boolean);
}

function notices(run) {
  const found = [], attempt = run.attempts.at(-1);
  const tell = (text, kind = "", command = "") => found.push(make("p", { class: `notice ${kind}` }, text, ...(command ? [" Next:", make("code", {}, command)] : [])));
  if (run.status === "starting") tell("The run is about to begin.");
  if (run.status === "running" && !run.phases.some((p) => p.state !== "planned")) tell("What can be checked is being checked; then the first phase begins.");
  if (run.status === "silent") tell(`Nothing was heard since ${new Date(run.updated * 1000).toLocaleString()}: the machine may be gone.`, "bad");
  if (run.stop) tell(`Stopping (${run.stop.why}): ${run.stop.text}`, "bad");
  if (attempt?.ended) tell([attempt.code === 0 ? "Done." : `Attempt ${attempt.number} ended with ${attempt.code}: ${attempt.reason || "no reason given"}.`, attempt.safe && `Safe: ${attempt.safe}.`].filter(Boolean).join(" "), attempt.code === 0 ? "good" : "bad", attempt.next);
  return found;
}

function phaseRow(phase) {
  const progress = make("td", {});
  if (phase.total && phase.state === "running") progress.append(make("progress", { max: phase.total, value: phase.step ?? 0, "aria-label": `${phase.phase}: progress` }), " ");
  if (phase.step !== null && phase.step !== undefined) progress.append(`${phase.step}${phase.total ? ` / ${phase.total}` : ""} `);
  if (phase.reason) progress.append(make("span", { class: "quiet" }, phase.reason));
  const state = phase.state + (phase.background ? ", in the background" : "") + (phase.attempt > 1 ? `, attempt ${phase.attempt}` : "");
  return make("tr", {}, make("th", { scope: "row" }, phase.phase), cell(state, KIND[phase.state] || "quiet"), cell(span(phase.seconds), "number"), cell(money(phase.usd), "number"), progress);
}

function show(run) {
  document.title = `${run.run || "homerun"}: ${run.status}`;
  at("run").textContent = run.run || "homerun";
  at("status").textContent = run.status;
  at("status").className = `status ${KIND[run.status] || "quiet"}`;
  at("chat").hidden = !run.chat;
  fill("notices", notices(run));
  fill("tiles", tiles(run));
  at("s-phases").hidden = !run.phases.length;
  fill("phases", run.phases.map(phaseRow));
  at("s-groups").hidden = !run.groups.length;
  fill("groups", [...run.groups].reverse().map((g) => make("tr", {}, make("th", { scope: "row" }, g.group), cell(g.step, "number"), cell(g.score?.toFixed(4), "number"), cell(size(g.bytes), "number"), cell(g.secured_at ? `proven${g.seconds ? ` in ${span(g.seconds)}` : ""}` : "on its way", g.secured_at ? "good" : "warn"))));
  at("s-evals").hidden = !run.evals.length;
  fill("evals", run.evals.map((e) => make("tr", {}, make("th", { scope: "row" }, e.phase), cell(e.metric), cell(short(e.value), "number"), cell(short(e.best), "number"))));
  at("s-samples").hidden = !run.samples.length;
  fill("samples", [...run.samples].reverse().map((s) => make("div", {}, make("p", { class: "quiet" }, s.step !== null && s.step !== undefined ? `${s.phase}, step ${s.step}` : s.phase), make("pre", { class: "sample" }, s.text))));
  at("s-checks").hidden = !run.checks.length;
  fill("checks", run.checks.map((c) => make("tr", {}, make("th", { scope: "row" }, c.name), cell(c.verdict, KIND[c.verdict]), cell([c.seen, c.verdict !== "pass" && c.hint].filter(Boolean).join(". ")))));
  const adapted = [...run.plan.adapted.map((a) => a.what || [`${a.phase}:`, a.added?.length && `added ${a.added.join(" ")}`, a.removed?.length && `left out ${a.removed.join(" ")}`, a.why && `(${a.why})`].filter(Boolean).join(" ")), ...run.plan.drift.map((text) => `drift: ${text}`)];
  at("s-adapted").hidden = !adapted.length;
  fill("adapted", adapted.map((text) => make("li", {}, text)));
  at("s-warnings").hidden = !run.warnings.length;
  fill("warnings", [...run.warnings].reverse().map((w) => make("li", {}, [w.text, w.hint].filter(Boolean).join(". ") + (w.count > 1 ? ` (${w.count} times)` : ""))));
  if (at("s-log").hidden || run.phases.length !== known) listLogs(run);
}

// -- curves --------------------------------------------------------------------------------------------------------

const TITLES = { loss: "Loss", val_bpb: "Validation bits per byte", val_loss: "Validation loss", tok_per_sec: "Tokens a second", mfu: "MFU, %", dt_ms: "Milliseconds a step", lrm: "Learning rate multiplier", core: "CORE", chatcore: "ChatCORE", gpu_memory_bytes: "GPU memory", gpu_util: "GPU use, %", gpu_power_w: "GPU power, W", cpu: "CPU, %", memory_bytes: "Memory" };
const ASIDE = new Set(["dt_ms", "lrm", "gpu_power_w", "cpu", "memory_bytes"]); // under "More curves"
const ORDER = Object.keys(TITLES);
const plots = new Map();
let axis = 0;

function plotOf(metric) {
  if (!plots.has(metric)) {
    const plot = new Plot(TITLES[metric] || metric, metric.endsWith("_bytes") ? size : short);
    plots.set(metric, plot);
    const rank = (name) => (ORDER.indexOf(name) + 1 || 99);
    const sorted = [...plots].sort(([a], [b]) => rank(a) - rank(b));
    fill("plots", sorted.filter(([name]) => !ASIDE.has(name)).map(([, p]) => p.figure));
    fill("plots-aside", sorted.filter(([name]) => ASIDE.has(name)).map(([, p]) => p.figure));
    at("curves").hidden = false;
  }
  return plots.get(metric);
}
function each(curves, apply) {
  for (const [key, points] of Object.entries(curves)) {
    const cut = key.indexOf("/"), phase = key.slice(0, cut), plot = plotOf(key.slice(cut + 1));
    plot.clock = phase === "machine"; // its x is always the time
    plot.axis = plot.clock ? 1 : axis;
    apply(plot, phase, points);
  }
}
for (const input of document.querySelectorAll("input[name=axis]"))
  input.addEventListener("change", () => {
    axis = Number(input.value);
    for (const plot of plots.values()) { if (!plot.clock) plot.axis = axis; plot.later(); }
  });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.later()));

// -- events --------------------------------------------------------------------------------------------------------

const events = new EventSource("/api/events");
events.addEventListener("run", (event) => show(JSON.parse(event.data)));
events.addEventListener("curves", (event) => each(JSON.parse(event.data).curves, (plot, phase, points) => plot.set(phase, points)));
events.addEventListener("points", (event) => each(JSON.parse(event.data), (plot, phase, points) => plot.add(phase, points)));
events.addEventListener("error", () => {
  at("status").textContent = "page lost its server; trying again";
  at("status").className = "status bad";
});

// -- the log -------------------------------------------------------------------------------------------------------

const MOST = 400_000; // characters kept in the document
let known = -1, tail = null, top = null, marked = "";

async function listLogs(run) {
  known = run.phases.length;
  const answer = await fetch("/api/logs");
  if (!answer.ok) return; // the status is public, the log is not
  const logs = await answer.json(), chosen = at("log-name").value;
  at("s-log").hidden = !logs.length;
  if (!logs.length) return;
  fill("log-name", logs.map((log) => make("option", { value: log.name }, `${log.name.replace(/^logs\//, "")} (${size(log.bytes)})`)));
  const newest = run.phases.filter((p) => p.log).at(-1)?.log;
  const wanted = !chosen || at("follow").checked ? newest || logs.at(-1).name : chosen;
  at("log-name").value = logs.some((log) => log.name === wanted) ? wanted : logs.at(-1).name;
  if (at("log-name").value !== chosen) follow(at("log-name").value, -65536);
}

function follow(name, offset) {
  tail?.close();
  top = null;
  at("log").textContent = "";
  tail = new EventSource(`/api/log/follow?${new URLSearchParams({ name, offset })}`);
  tail.addEventListener("log", (event) => {
    const box = at("log"), window = JSON.parse(event.data);
    if (top === null) top = window.offset;
    at("earlier").disabled = top === 0;
    box.append(window.text);
    if (at("follow").checked) {
      if (box.textContent.length > MOST) { // the oldest go; "Earlier" starts again from the file's end
        const cut = box.textContent.slice(-MOST / 2);
        box.textContent = cut;
        top = window.next - new Blob([cut]).size;
      }
      box.scrollTop = box.scrollHeight;
    } else if (box.textContent.length > MOST) tail.close();
  });
  tail.addEventListener("error", () => { // an EventSource would begin again at the old offset, and say all twice
    tail.close();
    setTimeout(() => { if (at("log-name").value === name) follow(name, -65536); }, 2000);
  });
}

async function earlier() {
  const box = at("log"), from = Math.max(0, top - 65536);
  const answer = await fetch(`/api/log?${new URLSearchParams({ name: at("log-name").value, offset: from, limit: top - from })}`);
  if (!answer.ok) return;
  const window = await answer.json(), height = box.scrollHeight;
  at("follow").checked = false;
  box.prepend(window.text);
  box.scrollTop = box.scrollHeight - height;
  top = from;
  at("earlier").disabled = top === 0;
}

async function search(words, offset = 0) {
  const name = at("log-name").value, hits = at("hits");
  const answer = await fetch(`/api/log/search?${new URLSearchParams({ name, q: words, offset })}`);
  const found = answer.ok ? await answer.json() : { hits: [], next: null };
  if (offset === 0) hits.replaceChildren();
  hits.hidden = false;
  for (const hit of found.hits) {
    const button = make("button", { type: "button" }, hit.text.slice(0, 300));
    button.addEventListener("click", () => { at("follow").checked = false; follow(name, hit.offset); });
    hits.append(make("li", {}, button));
  }
  if (found.next !== null) {
    const more = make("button", { type: "button" }, found.hits.length ? "More" : "Nothing so far; search on");
    more.addEventListener("click", () => { more.parentElement.remove(); search(words, found.next); });
    hits.append(make("li", {}, more));
  } else if (!hits.children.length) hits.append(make("li", { class: "quiet" }, "Nothing found."));
}

at("log-name").addEventListener("change", () => { at("follow").checked = false; at("hits").hidden = true; follow(at("log-name").value, -65536); });
at("follow").addEventListener("change", () => { if (at("follow").checked) follow(at("log-name").value, -65536); });
at("earlier").addEventListener("click", earlier);
at("log").addEventListener("wheel", (event) => { if (event.deltaY < 0) at("follow").checked = false; }, { passive: true });
at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = at("words").value;
  if (words) search(words); else at("hits").hidden = true;
});
