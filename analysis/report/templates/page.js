"use strict";
/* The page's own script: draws from the embedded posterior, controls, and figures by Vega. */
const page = JSON.parse(document.getElementById("page-data").textContent);
const $ = (id) => document.getElementById(id);
const QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95];

/* ------------------------------------------------------------------ draws */

const unpacked = new Map();
function numbers(text) {
  let found = unpacked.get(text);
  if (!found) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    found = new Float32Array(bytes.buffer);
    unpacked.set(text, found);
  }
  return found;
}

/* One curve of one law: its log loss at the reference, then what gives its shape, for each draw. */
function curve(k, setting, method, base, factors) {
  const model = page.model.models[k], law = laws[k], n = model.draws;
  const own = base === "" ? model.new[`${setting}\u001f${method}`] : model.known[`${setting}\u001f${method}\u001f${base}`];
  const logs = model.factors.map((f, i) => Math.log(factors[f] / model.x_ref[i]));
  const found = own.quantities.map((text) => Float64Array.from(numbers(text)));
  if (base === "") {
    const cell = own.cell.map(numbers), values = new Array(cell.length + logs.length);
    logs.forEach((x, i) => { values[cell.length + i] = x; });
    for (let d = 0; d < n; d++) {
      for (let i = 0; i < cell.length; i++) values[i] = cell[i][d];
      found.forEach((value, i) => { value[d] += law.expected[i](...values); });
    }
  }
  const id = [setting, method, base].join("\u001f");
  return { k, n, id, model, law, own, quantities: found, noise: numbers(own.noise) };
}

/* Slope drift, an integrated random walk: see tunecast.models.hierarchy.drift. */
function driftBasis(at, [low, high]) {
  const [even, odd] = page.model.drift.kappa, half = (high - low) / 2;
  if (!(half > 0)) return [0, 0];
  const x = (at - (low + high) / 2) / half, inside = Math.max(-1, Math.min(x, 1)), past = x - inside;
  const values = [
    Math.cos(even * inside) / Math.cos(even) + Math.cosh(even * inside) / Math.cosh(even),
    Math.sin(odd * inside) / Math.sin(odd) + Math.sinh(odd * inside) / Math.sinh(odd),
  ];
  const { kappa, slopes } = page.model.drift, beyond = [Math.abs(past), past];
  return values.map((value, k) => (value / Math.SQRT2 + slopes[k] * beyond[k]) * half ** 1.5 / kappa[k] ** 2);
}

const drifts = new Map();
function drift(c, at) {
  const { model, own, n } = c, step = page.model.drift.knot;
  const key = `${c.k} ${c.id} ${at}`;
  if (drifts.has(key)) return drifts.get(key);
  const total = new Float64Array(n), pool = numbers(model.pool), knots = pool.length / n - 2;
  const parts = [
    [model.drift_task, own.task_range, own.task_drift, own.shifts[0]],
    [model.drift_curve, own.range, own.drift, own.shifts[1]],
  ];
  for (const [packed, range, terms, shift] of parts) {
    const add = (times, values) => { for (let d = 0; d < n; d++) total[d] += times * values(d); };
    driftBasis(at, range).forEach((moved, k) => {
      const term = numbers(terms[k]);
      add(moved, (d) => term[d]);
    });
    const [low, high] = range;
    if (at >= low && at <= high) continue;
    const edge = at > high ? high : low, first = Math.min(edge, at), last = Math.max(edge, at);
    const sd = numbers(packed), row = (j) => (d) => sd[d] * pool[j * n + (d + shift) % n];
    const rest = Math.sqrt(page.model.drift.rest_slope * (high - low) / 2);
    add((last - first) * rest, row(at > high ? knots + 1 : knots));
    for (let j = 0; j < knots; j++) {
      const knot = (j + model.first_knot) * step + step / 2;
      if (knot > first && knot < last) add(Math.abs(at - knot) * Math.sqrt(step), row(j));
    }
  }
  if (drifts.size > 4000) drifts.clear();
  drifts.set(key, total);
  return total;
}

function lossAt(curves, data, newRun) {
  const doublings = Math.log2(data);
  const out = new Float64Array(curves.reduce((sum, c) => sum + c.n, 0));
  let row = 0;
  for (const c of curves) {
    const walk = drift(c, doublings), u = (doublings - c.own.ref) * Math.LN2;
    const z = newRun ? numbers(c.model.noise_z) : null, relative = c.law.relative;
    const [level, ...shape] = c.quantities, at = new Array(shape.length);
    for (let d = 0; d < c.n; d++) {
      for (let i = 0; i < shape.length; i++) at[i] = shape[i][d];
      let mean = level[d] + relative(u, ...at) + walk[d];
      if (z) mean += c.noise[d] * z[d];
      out[row++] = Math.exp(Math.max(-page.model.max_log_loss, Math.min(mean, page.model.max_log_loss)));
    }
  }
  return out;
}

function curves(setting, method, base, factors) {
  return page.model.models.map((_, k) => curve(k, setting, method, base, factors));
}

function quantiles(draws) {
  const sorted = Float64Array.from(draws).sort();
  return QUANTILES.map((q) => {
    const at = q * (sorted.length - 1), low = Math.floor(at), high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
  });
}

function shares(losses) {
  const wins = losses.map(() => 0), n = losses[0].length;
  for (let d = 0; d < n; d++) {
    let best = 0;
    for (let m = 1; m < losses.length; m++) if (losses[m][d] < losses[best][d]) best = m;
    wins[best] += 1 / n;
  }
  return wins;
}

function beyond(found, factors, data) {
  const at = Math.log2(data);
  return Math.max(...found.map((c) => {
    const [low, high] = c.own.range, ratios = [2 ** Math.max(at - high, low - at, 0)];
    c.model.factors.forEach((f, i) => {
      const [least, most] = c.model.x_seen[i];
      ratios.push(Math.max(factors[f] / most, least / factors[f], 1));
    });
    return Math.max(...ratios);
  }));
}

function grid(low, high, count) {
  return Array.from({ length: count }, (_, i) => low * (high / low) ** (i / (count - 1)));
}

/* ------------------------------------------------------------------ words */

function short(value) {
  for (const [power, suffix] of [[12, "T"], [9, "B"], [6, "M"], [3, "k"]]) {
    if (value >= 0.9995 * 10 ** power) return Number((value / 10 ** power).toPrecision(3)) + suffix;
  }
  return String(Number(value.toPrecision(3)));
}
function percent(p) { return `${Math.round(100 * p)} %`; }
/* A name that cannot turn the text around it, whichever way its script runs. */
function isolated(name) { return `\u2068${name.replace(/[\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069]/g, "")}\u2069`; }
function times(x) { return x > 1.005 ? `${short(x)}×` : "inside"; }

/* ------------------------------------------------------------------ figures */

const dark = matchMedia("(prefers-color-scheme: dark)");
/* On a dark page the colours are mixed with white. */
function shade(hex) {
  if (!dark.matches || document.documentElement.classList.contains("paper")) return hex;
  const parts = [1, 3, 5].map((i) => Math.round(0.65 * parseInt(hex.slice(i, i + 2), 16) + 0.35 * 255));
  return `rgb(${parts.join(",")})`;
}

const views = new Map();
function ink() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const text = of("--text"), faint = of("--faint"), grid = of("--grid"), font = "system-ui, sans-serif";
  return { background: null, font,
    axis: { labelColor: text, titleColor: text, tickColor: faint, domainColor: faint, gridColor: grid,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelFont: font, titleFont: font },
    legend: { labelColor: text, titleColor: text, labelFontSize: 13, labelLimit: 220, labelFont: font, titleFont: font },
    title: { color: text }, text: { fill: text },
    signals: [{ name: "ink", value: text }, { name: "faint", value: faint }, { name: "paper", value: of("--paper") },
      { name: "blue", value: shade("#0072B2") }] };
}

function tooltip(handler, event, item, value) {
  const box = $("tooltip");
  if (value === null || value === undefined || value === "") { box.hidden = true; return; }
  box.textContent = typeof value === "object"
    ? Object.entries(value).map(([name, text]) => `${name}: ${text}`).join("\n") : String(value);
  box.hidden = false;
  const room = document.documentElement.clientWidth - box.offsetWidth - 8;
  box.style.left = `${Math.max(4, Math.min(event.clientX + 12, room))}px`;
  box.style.top = `${event.clientY + 14}px`;
}

function draw(id) {
  const figure = page.figures[id], host = $(`figure-${id}`);
  if (views.has(id)) views.get(id).finalize();
  const config = ink(), signals = config.signals;
  delete config.signals;
  const scales = figure.scales.map((s) => s.name === "colour" ? { ...s, range: s.range.map(shade) } : s);
  const spec = { ...figure, scales, signals: [...signals, ...(figure.signals || [])] };
  const view = new vega.View(vega.parse(spec, config), { renderer: "svg", container: host, hover: true });
  view.tooltip(tooltip).width(host.clientWidth).run();
  const svg = host.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", host.dataset.label);
  host.querySelector(".vega-bindings")?.remove();
  views.set(id, view);
  return view;
}

function fill(id, tables, signals = {}) {
  const view = views.get(id);
  if (!view) return;
  for (const [name, value] of Object.entries(signals)) view.signal(name, value);
  for (const [name, rows] of Object.entries(tables)) {
    view.data(name, rows);
    const kept = page.figures[id].data.find((d) => d.name === name);
    kept.values = rows;
  }
  for (const [name, value] of Object.entries(signals)) {
    page.figures[id].signals.find((s) => s.name === name).value = value;
  }
  view.run();
}

function save(id) {
  const rows = page.figures[id].data.find((d) => d.name === "table").values || [];
  const names = Object.keys(rows[0] || {}).filter((name) => name !== "tooltip");
  const cell = (v) => {
    let text = v === null || v === undefined ? "" : String(v);
    // A spreadsheet must not take a name for a formula.
    if (typeof v === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [names, ...rows.map((row) => names.map((name) => row[name]))];
  const text = lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${id}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/* ------------------------------------------------------------------ what if */

const form = $("ask");
const model = page.model;
const setting = () => model.settings[Number(form.elements.setting.value)];
const chosen = () => [...form.querySelectorAll("input[name=method]:checked")].map((box) => box.value);
const sliders = [...form.querySelectorAll("input[type=range]")];
const typed = (slider) => $(slider.id.replace("slide-", "type-"));
const asked = {};

function setRange(slider, [low, high]) {
  slider.min = Math.log10(low); slider.max = Math.log10(high);
}
function put(slider, value) {
  asked[slider.dataset.column] = value;
  slider.value = Math.log10(value);
  slider.setAttribute("aria-valuetext", short(value));
}

function methodsOf(here) {
  const box = $("methods");
  box.replaceChildren(...here.methods.map((method, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    const name = document.createElement("bdi"), mark = document.createElement("span");
    Object.assign(input, { type: "checkbox", name: "method", value: method, checked: i < 8 });
    mark.className = "swatch"; mark.style.background = shade(page.colours[method]);
    mark.setAttribute("aria-hidden", "true");
    name.textContent = method || "all methods";
    label.append(input, mark, name);
    return label;
  }));
}

function basesOf(here) {
  const options = [["", "one not seen yet"], ...here.base_models.map((b) => [b.name, b.name])];
  form.elements.base.replaceChildren(...options.map(([value, text]) => {
    const option = document.createElement("option");
    option.value = value; option.textContent = text;
    return option;
  }));
}

function runsHere(methods) {
  const here = setting(), size = model.factors.length ? asked[model.factors[0].name] : 1;
  return page.runs.filter((run) => run.setting === here.name && (methods.includes(run.method) || here.methods[0] === ""))
    .map((run) => ({ ...run, near: Math.abs(Math.log(run.size / size)) < 0.1 }));
}

function withBase() {
  const base = form.elements.base.value, known = setting().base_models.find((b) => b.name === base);
  for (const slider of sliders) {
    if (slider.dataset.column === model.data) continue;
    const fixed = known !== undefined;
    slider.disabled = fixed; typed(slider).disabled = fixed;
    if (fixed) {
      const value = known.at[model.factors.findIndex((f) => f.name === slider.dataset.column)];
      put(slider, value); typed(slider).value = value;
    }
  }
}

function answer() {
  const index = Number(form.elements.setting.value), here = setting(), base = form.elements.base.value;
  const newRun = form.elements.kind.value === "new", methods = chosen();
  const factors = model.factors.map((f) => asked[f.name]), data = asked[model.data];
  const rows = $("answers");
  if (!methods.length) {
    rows.replaceChildren(); $("spoken").textContent = "Choose a method.";
    fill("whatif", { table: [], runs: [] });
    return;
  }
  const found = methods.map((m) => curves(index, m, base, factors));
  const losses = found.map((c) => lossAt(c, data, newRun));
  const wins = shares(found.map((c) => lossAt(c, data, false)));
  rows.replaceChildren(...methods.map((method, m) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    const q = quantiles(losses[m]), far = beyond(found[m], factors, data);
    const name = document.createElement("bdi");
    name.textContent = method || "all methods"; head.scope = "row"; head.append(name);
    const put = (text, values) => {
      const cell = document.createElement("td");
      cell.textContent = text; cell.dataset.value = JSON.stringify(values);
      return cell;
    };
    const best = put(methods.length > 1 ? percent(wins[m]) : "–", wins[m]), bar = document.createElement("span");
    bar.className = "bar"; bar.style.width = `${100 * wins[m]}%`; bar.style.background = shade(page.colours[method]);
    if (methods.length > 1) best.append(bar);
    row.append(head, put(q[2].toFixed(3), q[2]), put(`${q[1].toFixed(3)} – ${q[3].toFixed(3)}`, [q[1], q[3]]),
      put(`${q[0].toFixed(3)} – ${q[4].toFixed(3)}`, [q[0], q[4]]), best, put(times(far), far));
    return row;
  }));
  const top = wins.indexOf(Math.max(...wins));
  const place = [...sliders.map((s) => `${short(asked[s.dataset.column])} ${page.words[s.dataset.column]}`),
    base ? `base model ${isolated(base)}` : "a base model not seen yet"].join(", ");
  $("spoken").textContent = `At ${place}: ${methods.map((m, i) =>
    `${m ? isolated(m) : "loss"} ${quantiles(losses[i])[2].toFixed(3)} nats`).join(", ")}. ` +
    (methods.length > 1 ? `${isolated(methods[top])} has the lowest expected loss in ${percent(wins[top])} of the draws.` : "");
  const sizes = grid(here.asked[0], here.asked[1], 61), table = [];
  methods.forEach((method, m) => {
    for (const size of sizes) {
      const q = quantiles(lossAt(found[m], size, newRun));
      table.push({ method: method || "all methods", data: size, q05: q[0], q25: q[1], q50: q[2], q75: q[3], q95: q[4] });
    }
  });
  fill("whatif", { table, runs: runsHere(methods) }, { seen: here.seen, asked: here.asked, target: data });
}

let waiting = 0;
function soon() {
  if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; timed(); });
}
function timed() {
  const start = performance.now();
  answer();
  // The figure is drawn when this run is over.
  views.get("whatif").runAsync().then(() => { page.took = performance.now() - start; });
}

/* ------------------------------------------------------------------ the map */

let mapping = 0;
function map() {
  const index = Number(form.elements.setting.value), here = setting(), methods = chosen();
  const turn = ++mapping, table = [], band = [], first = model.factors[0];
  const columns = 36, rows = first ? 24 : 1;
  const data = grid(here.asked[0], here.asked[1], columns + 1);
  const edges = first ? grid(first.asked[0], first.asked[1], rows + 1) : [1, 10];
  const rest = model.factors.slice(1).map((f) => asked[f.name]);
  const seen = first ? first.seen : [1, 10];
  const signals = { seen: here.seen, asked: here.asked, seen_y: seen, asked_y: first ? first.asked : [1, 10] };
  if (methods.length < 2) {
    fill("map", { table: [], band: [], runs: [] }, signals);
    page.mapped = true;
    return;
  }
  const losses = [], led = methods.map(() => 0);
  function row(i) {
    if (turn !== mapping) return;
    const size = Math.sqrt(edges[i] * edges[i + 1]);
    const found = methods.map((m) => curves(index, m, "", first ? [size, ...rest] : []));
    losses.push([]);
    for (let j = 0; j < columns; j++) {
      const here = found.map((c) => lossAt(c, Math.sqrt(data[j] * data[j + 1]), false));
      const wins = shares(here), top = wins.indexOf(Math.max(...wins));
      table.push({ method: methods[top], p_best: wins[top], data: Math.sqrt(data[j] * data[j + 1]), size,
        data_from: data[j], data_to: data[j + 1], size_from: edges[i], size_to: edges[i + 1] });
      wins.forEach((p, m) => { led[m] += p; });
      losses[i].push(here);
    }
    if (i + 1 < rows) { setTimeout(row, 0, i + 1); return; }
    const [a, b] = methods.map((_, m) => m).sort((x, y) => led[y] - led[x]);
    const centres = data.slice(1).map((right, j) => Math.sqrt(right * data[j]));
    losses.forEach((here, r) => band.push(...crossing(here, a, b, centres, Math.sqrt(edges[r] * edges[r + 1]))));
    const runs = runsHere(methods).map((run) => ({ ...run, near: true }));
    fill("map", { table, band, runs }, signals);
    $("pair").textContent = band.length ? `${isolated(methods[a])} and ${isolated(methods[b])}` : "the two leading methods (here they do so in less than half of the draws)";
    page.mapped = true;
  }
  setTimeout(row, 0, 0);
}

/* Where the two methods first cross along a row of the map, in the draws in which they do. */
function crossing(losses, a, b, centres, size) {
  const n = losses[0][0].length, at = [], log = centres.map(Math.log);
  for (let d = 0; d < n; d++) {
    for (let j = 0; j + 1 < losses.length; j++) {
      const left = losses[j][a][d] - losses[j][b][d], right = losses[j + 1][a][d] - losses[j + 1][b][d];
      if (left * right < 0) { at.push(Math.exp(log[j] + (log[j + 1] - log[j]) * left / (left - right))); break; }
    }
  }
  if (at.length < n / 2) return [];
  const q = quantiles(at);
  return [{ size, q05: q[0], q50: q[2], q95: q[4] }];
}

/* ------------------------------------------------------------------ start */

function reset() {
  const here = setting();
  methodsOf(here); basesOf(here);
  for (const slider of sliders) {
    const column = slider.dataset.column, factor = model.factors.find((f) => f.name === column);
    const range = factor ? factor.asked : here.asked, start = page.start[here.name][column];
    setRange(slider, range); put(slider, start); typed(slider).value = Number(start.toPrecision(6));
    typed(slider).min = range[0]; typed(slider).max = range[1];
  }
  withBase(); timed(); map();
}

function restart() {
  for (const id of Object.keys(page.figures)) draw(id);
  document.querySelectorAll("#methods label").forEach((label) => {
    label.querySelector(".swatch").style.background = shade(page.colours[label.querySelector("input").value]);
  });
  timed();
}

form.addEventListener("input", (event) => {
  const field = event.target;
  if (field.type === "range") {
    const value = Number((10 ** field.value).toPrecision(4));
    put(field, value); typed(field).value = value;
    soon();
  } else if (field.type === "number") {
    const value = Number(field.value), ok = value >= Number(field.min) * 0.999999 && value <= Number(field.max) * 1.000001;
    field.setCustomValidity(ok ? "" : `a number from ${short(Number(field.min))} to ${short(Number(field.max))}`);
    if (!ok) { field.reportValidity(); return; }
    asked[field.dataset.column] = value;
    const slider = $(field.id.replace("type-", "slide-"));
    slider.value = Math.log10(value); slider.setAttribute("aria-valuetext", short(value));
    soon();
  } else if (field.name === "setting") reset();
  else { if (field.name === "base") withBase(); soon(); if (field.name === "method") map(); }
});
form.addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll("button[data-csv]").forEach((button) =>
  button.addEventListener("click", () => save(button.dataset.csv)));
dark.addEventListener("change", restart);
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => {
  for (const [id, view] of views) view.width($(`figure-${id}`).clientWidth).run();
}, 100); });
/* Paper is white, whatever the screen was. */
function print(on) {
  document.documentElement.classList.toggle("paper", on);
  document.querySelectorAll("details.print").forEach((d) => { d.open = on || d.open; });
  restart();
}
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));

draw("whatif");
if (page.figures.map) draw("map");
reset();
page.ready = performance.now();
setTimeout(() => { for (const id of Object.keys(page.figures)) if (!views.has(id)) draw(id); page.drawn = true; }, 0);
