// Charts as SVG, drawn from data at the width there is.  Runs differ in shape and dash as well as in colour.
"use strict";
const SHAPES = [
  "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0", "M-4.5,-4.5h9v9h-9z", "M0,-5.5L5.5,4.5H-5.5z", "M0,-6L6,0L0,6L-6,0z",
  "M-5.5,-4.5H5.5L0,5.5z", "M-6,-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
];
const DASHES = ["", "6 3", "2 3", "9 3 2 3", "1 2", "12 4"];
const colourOf = (index) => `var(--run-${index % 6})`;

const marker = (index, attributes) => s("path", { d: SHAPES[index % 6], class: "marker", fill: colourOf(index), ...attributes });

/** Which run is drawn how. */
function legend(runs) {
  return h("ul", { class: "legend" }, runs.map((run) => h("li", {},
    s("svg", { width: 34, height: 14, viewBox: "-17 -7 34 14", "aria-hidden": "true" },
      s("path", { d: "M-16,0H16", class: "curve", stroke: colourOf(RUNS.indexOf(run)), "stroke-dasharray": DASHES[RUNS.indexOf(run) % 6] }),
      marker(RUNS.indexOf(run))), run.name)));
}

const linear = (from, to, low, high) => (value) => low + ((value - from) / (to - from || 1)) * (high - low);
const log1p = (to, low, high) => (value) => low + (Math.log1p(value) / Math.log1p(to || 1)) * (high - low);

/** Round places on an axis. */
function ticks(from, to, about) {
  const rough = (to - from) / about || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(from / step); at * step <= to + step * 1e-6; at++) found.push(at * step);
  return found;
}
const short = (value) => (Math.abs(value) >= 10000 ? `${+(value / 1000).toPrecision(3)}k` : `${+value.toPrecision(3)}`.replace("-", "−"));

const svg = (width, height, label, ...children) => s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "chart" }, children);
const text = (x, y, content, attributes) => s("text", { x, y, ...attributes }, content);

/** Rows of values with their intervals on one axis. rows: [{label, points: [{index, name, value, interval}]}]. */
function intervalChart(width, rows, unit, label) {
  const perRun = 15, left = Math.min(150, width * 0.3), right = 46;
  const all = rows.flatMap((row) => row.points.flatMap((p) => [p.value, ...(p.interval || [])])).filter((v) => v !== null);
  const most = Math.max(1, ...all), x = linear(0, most, left, width - right);
  const heights = rows.map((row) => row.points.length * perRun + 16);
  const total = heights.reduce((a, b) => a + b, 0);
  const grid = ticks(0, most, Math.max(2, width / 120)).map((at) => [
    s("path", { d: `M${x(at)},4V${total}`, class: "grid" }), text(x(at), total + 14, short(at), { class: "tick", "text-anchor": "middle" })]);
  let top = 0;
  const drawn = rows.map((row, number) => {
    const start = top + 8;
    top += heights[number];
    return s("g", {}, text(left - 12, start + (heights[number] - 16) / 2, row.label, { class: "row-label", "text-anchor": "end", "dominant-baseline": "central" }),
      number > 0 && s("path", { d: `M0,${start - 8}H${width}`, class: "rule" }),
      row.points.map((p, i) => intervalMark(p, x, start + i * perRun + perRun / 2, left)));
  });
  return svg(width, total + 34, label, grid, drawn, text(width - right, total + 30, unit, { class: "tick", "text-anchor": "end" }));
}

function intervalMark(point, x, y, left) {
  if (point.value === null) return text(left + 4, y, `${point.name}: no number`, { class: "tick", "dominant-baseline": "central" });
  const end = point.interval ? Math.max(point.interval[1], point.value) : point.value;
  const words = `${point.name}: ${show(point.value)}` + (point.interval ? `, 95 % interval ${show(point.interval[0])} to ${show(point.interval[1])}` : "");
  return s("g", {}, s("title", {}, words),
    point.interval ? s("path", { d: `M${x(point.interval[0])},${y}H${x(point.interval[1])}M${x(point.interval[0])},${y - 4}v8M${x(point.interval[1])},${y - 4}v8`, class: "whisker", stroke: colourOf(point.index) })
      : s("path", { d: `M${x(0)},${y}H${x(point.value)}`, class: "stem", stroke: colourOf(point.index) }),
    marker(point.index, { transform: `translate(${x(point.value)} ${y})` }),
    text(x(end) + 10, y, show(point.value), { class: "value", "dominant-baseline": "central" }));
}

/** Curves over one axis. series: [{index, x: [], y: []}]. */
function lineChart(width, height, title, series, unit) {
  const left = 44, right = 10, top = 24, bottom = 30;
  const xs = series.flatMap((one) => one.x), ys = series.flatMap((one) => one.y).filter((v) => v !== null);
  const low = Math.min(...ys), high = Math.max(...ys), room = (high - low || Math.abs(high) || 1) * 0.06;
  const x = linear(0, Math.max(...xs, 1), left, width - right), y = linear(low - room, high + room, height - bottom, top);
  const axis = [
    ticks(low - room, high + room, 3).map((at) => [s("path", { d: `M${left},${y(at)}H${width - right}`, class: "grid" }), text(left - 6, y(at), short(at), { class: "tick", "text-anchor": "end", "dominant-baseline": "central" })]),
    ticks(0, Math.max(...xs, 1), width / 110).map((at) => text(x(at), height - bottom + 15, short(at), { class: "tick", "text-anchor": "middle" }))];
  const curves = series.map((one) => {
    let pen = "M";
    const d = one.x.map((at, i) => {
      if (one.y[i] === null) { pen = "M"; return ""; }
      const step = `${pen}${x(at).toFixed(1)},${y(one.y[i]).toFixed(1)}`;
      pen = "L";
      return step;
    }).join("");
    const last = one.y.findLastIndex((v) => v !== null);
    return s("g", {}, s("path", { d, class: "curve", stroke: colourOf(one.index), "stroke-dasharray": DASHES[one.index % 6] }),
      marker(one.index, { transform: `translate(${x(one.x[last])} ${y(one.y[last])}) scale(.7)` }));
  });
  const words = series.map((one) => `${one.name}: from ${short(one.y.find((v) => v !== null))} to ${short(one.y.findLast((v) => v !== null))}`);
  return svg(width, height, `${title}. ${words.join("; ")}`, axis, curves, text(left, 13, title, { class: "chart-title" }), text(width - right, height - 2, unit, { class: "tick", "text-anchor": "end" }));
}

/** Something of every category, frequent to rare; what is not chosen stands back.
    series: [{name, shape, at: category -> value or null, line}]. */
function rankChart(width, height, label, series, scale, chosen) {
  const order = [...CATEGORIES].sort((a, b) => (b.images ?? 0) - (a.images ?? 0) || a.id - b.id);
  const named = order.length <= 30 && width / order.length > 16;
  const left = 44, right = 12, top = 12, bottom = named ? 92 : 34;
  const x = linear(-0.5, order.length - 0.5, left, width - right);
  const values = series.flatMap((one) => [...order.map(one.at), ...(typeof one.line === "function" ? order.map(one.line) : [])]).filter((v) => v !== null);
  const most = Math.max(scale === "free" ? -Infinity : 1, ...values), least = scale === "free" ? Math.min(...values) : scale === "log" ? 0 : Math.min(...values, scale === "factor" ? 1 : 0);
  const y = scale === "log" ? log1p(most, height - bottom, top) : linear(least - (scale === "free" ? most - least : 0) * 0.06, most + (most - least) * 0.06, height - bottom, top);
  const marks = scale === "log" ? [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter((at) => at <= most) : ticks(least, most, 5);
  const isChosen = new Set(chosen);
  const axis = marks.map((at) => [s("path", { d: `M${left},${y(at)}H${width - right}`, class: "grid" }), text(left - 6, y(at), short(at), { class: "tick", "text-anchor": "end", "dominant-baseline": "central" })]);
  const names = order.map((c, i) => named && text(0, 0, `${c.name.slice(0, 16)} ${c.group}`, { class: isChosen.has(c) ? "tick" : "tick back", "text-anchor": "end", transform: `translate(${x(i) + 3} ${height - bottom + 12}) rotate(-50)` }));
  const drawn = series.map((one) => [
    one.line && s("path", { d: path(order, one.line === true ? one.at : one.line, x, y), class: "curve back", stroke: colourOf(one.shape), "stroke-dasharray": DASHES[one.shape % 6] }),
    order.map((c, i) => one.at(c) !== null && marker(one.shape, { transform: `translate(${x(i).toFixed(1)} ${y(one.at(c)).toFixed(1)}) scale(${order.length > 120 ? 0.45 : 0.75})`, class: isChosen.has(c) ? "marker" : "marker back" , "data-category": c.id }, ))]);
  const below = named ? null : text((left + width) / 2, height - 6, "categories, frequent to rare", { class: "tick", "text-anchor": "middle" });
  return svg(width, height, label, axis, groupEdges(order, x, top, height - bottom), drawn, names, below);
}

/** A line over the categories, broken where there is no value. */
function path(order, at, x, y) {
  let pen = "M";
  return order.map((c, i) => {
    const value = at(c);
    if (value === null) return (pen = "M"), "";
    const step = `${pen}${x(i).toFixed(1)},${y(value).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

/** Where the groups meet. */
function groupEdges(order, x, top, bottom) {
  return order.map((c, i) => i > 0 && order[i - 1].group !== c.group && s("path", { d: `M${x(i - 0.5)},${top}V${bottom}`, class: "edge" }));
}

const shapeLegend = (series) => h("ul", { class: "legend" }, series.map((one) => h("li", {},
  s("svg", { width: 34, height: 14, viewBox: "-17 -7 34 14", "aria-hidden": "true" }, one.line && s("path", { d: "M-16,0H16", class: "curve", stroke: colourOf(one.shape), "stroke-dasharray": DASHES[one.shape % 6] }), marker(one.shape)), one.name)));

const ERRORS = ["correct", "localization", "background", "classification", "other"];

/** Patterns of the error types, once for the page: none needs its colour. */
function patterns() {
  const lines = { localization: "M0,6L6,0", background: "M3,3h.1", classification: "M0,6L6,0M0,0L6,6", other: "M0,3H6" };
  return s("svg", { width: 0, height: 0, "aria-hidden": "true", class: "defs" }, s("defs", {}, ERRORS.map((kind) =>
    s("pattern", { id: `pattern-${kind}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
      s("rect", { width: 6, height: 6, fill: `var(--${kind})` }), lines[kind] && s("path", { d: lines[kind], class: "hatch" })))));
}

/** Five slices from twelve o'clock, and their shares as a list. shares: {type: percent}. */
function pie(title, shares, boxes) {
  const total = ERRORS.reduce((sum, kind) => sum + shares[kind], 0);
  const words = ERRORS.map((kind) => `${kind} ${show(shares[kind])} %`).join(", ");
  let turn = 0;
  const slices = ERRORS.filter((kind) => shares[kind] > 0).map((kind) => {
    const from = turn, to = (turn += shares[kind] / total);
    const [x0, y0, x1, y1] = [from, to].flatMap((t) => [Math.sin(2 * Math.PI * t) * 50, -Math.cos(2 * Math.PI * t) * 50]);
    const d = to - from > 0.9999 ? "M0,-50A50,50 0 1,1 0,50A50,50 0 1,1 0,-50z" : `M0,0L${x0},${y0}A50,50 0 ${to - from > 0.5 ? 1 : 0},1 ${x1},${y1}z`;
    return s("path", { d, fill: `url(#pattern-${kind})`, class: "slice" }, s("title", {}, `${kind}: ${show(shares[kind])} %`));
  });
  return h("figure", { class: "pie" }, h("figcaption", {}, h("strong", {}, title), ` ${plural(boxes, "box", "boxes")}`),
    s("svg", { viewBox: "-52 -52 104 104", role: "img", "aria-label": `${title}: ${words}` }, slices),
    h("ul", {}, ERRORS.map((kind) => h("li", {}, s("svg", { width: 12, height: 12, "aria-hidden": "true" }, s("rect", { width: 12, height: 12, fill: `url(#pattern-${kind})` })), h("span", {}, kind), h("b", {}, `${show(shares[kind])} %`)))));
}
