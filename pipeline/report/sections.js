// The sections of the page, from the answer to the paper's tables.
"use strict";

/** Rows of the answer's chart: the groups, or what is chosen. */
function answerRows() {
  const point = (run, value, interval) => ({ index: RUNS.indexOf(run), name: run.name, value, interval });
  if (choice.text.trim()) return [{ label: selectionName(), points: SCORED.map((run) => point(run, metricOfChoice(run, "AP"), null)) }];
  const wanted = { all: ["r", "c", "f", ""], r: ["r"], c: ["c"], f: ["f"] }[choice.group];
  const rows = wanted.map((letter) => ({
    label: letter ? GROUPS[letter] : "All",
    points: SCORED.map((run) => point(run, run.metrics[`${KIND}_AP${letter}`] ?? null, run.intervals[`${KIND}_AP${letter}`] ?? null)),
  }));
  const known = rows.filter((row) => row.points.some((p) => p.value !== null));
  return known.length ? known : rows;
}

function drawAnswer() {
  byId("answer-title").textContent = DATA.verdict.headline;
  byId("sentences").replaceChildren(...DATA.verdict.sentences.map((sentence) => h("p", {}, sentence)));
  if (DATA.gaps.length) {
    byId("missing-note").replaceChildren(h("a", { href: "#missing", class: "notice" }, `${plural(DATA.gaps.length, "thing is", "things are")} missing from this page`));
  }
  if (!SCORED.length) return;
  const holder = h("div", { class: "plot" });
  byId("answer-chart").append(holder, legend(SCORED), h("figcaption", {}, KIND === "bbox" ? "Box AP" : "Mask AP", " in percent", SCORED.some((run) => Object.keys(run.intervals).length) ? "; bars are 95 % intervals over images." : "; no intervals were computed."));
  follow(responsive(holder, (width) => intervalChart(width, answerRows(), "AP, %", "AP of every run by frequency group; the numbers are in the table of results")));
}

function drawFilter() {
  const groups = Object.keys(GROUPS).filter((letter) => CATEGORIES.some((c) => c.group === letter));
  const input = h("input", { id: "category", type: "search", list: "names", autocomplete: "off", placeholder: "any", oninput: (event) => choose({ text: event.target.value }) });
  const radios = ["all", ...groups].map((letter) => h("label", {}, h("input", { type: "radio", name: "group", value: letter, checked: letter === choice.group, onchange: () => choose({ group: letter }) }), h("span", {}, letter === "all" ? "All" : GROUPS[letter])));
  const said = h("output", { for: "category", "aria-live": "polite" });
  const clear = h("button", { type: "button", id: "clear", onclick: () => choose({ group: "all", text: "" }) }, "Show all");
  const form = byId("filter");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(h("fieldset", {}, h("legend", {}, "Group"), h("div", { class: "segments" }, radios)),
    h("label", { class: "search", for: "category" }, h("span", {}, "Category"), input), h("datalist", { id: "names" }, CATEGORIES.map((c) => h("option", { value: c.name }))), said, clear);
  follow(() => {
    if (input.value !== choice.text) input.value = choice.text;
    for (const radio of form.elements.group?.length ? form.elements.group : []) radio.checked = radio.value === choice.group;
    said.textContent = `${show(selected().length, 0)} of ${plural(CATEGORIES.length, "category", "categories")}`;
    clear.hidden = !isFiltered();
  });
}

const withInterval = (value, interval, digits = 1) => [show(value, digits), interval && h("small", {}, `${show(interval[0])} – ${show(interval[1])}`)];
const drawnWords = (run) => run.drawn === null ? "–" : run.drawn_before ? `${show(run.drawn_before, 0)} + ${show(run.drawn, 0)} = ${show(run.all_drawn, 0)}` : show(run.drawn, 0);

function drawResults() {
  const part = section("results", "Results", "AP of what is chosen above first, then every number of metrics.json. A comparison is fair between runs that drew equally many images.");
  if (!SCORED.length) return void part.append(absent("no run has been evaluated; 2drcl evaluate does that."));
  const column = (key) => ({ label: key, numeric: true, value: (run) => metricOfChoice(run, key), cell: (run) => withInterval(metricOfChoice(run, key), intervalOfChoice(run, key)) });
  const columns = [
    { label: "run", head: true, value: (run) => run.name, cell: (run) => [s("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, marker(RUNS.indexOf(run))), " ", run.name] },
    { label: "method", value: (run) => run.method },
    { label: "starts from", value: (run) => (run.is_pretrained ? "pre-training" : run.init) },
    column("AP"), column("AP50"), column("AP75"),
    { label: "images drawn", numeric: true, value: (run) => run.all_drawn, cell: drawnWords },
  ];
  const choiceTable = sortableTable("", columns, RUNS);
  part.append(choiceTable.element);
  follow(() => {
    choiceTable.caption.textContent = `${KIND === "bbox" ? "Boxes" : "Masks"}, ${selectionName()}: AP in percent${SCORED.some((r) => r.intervals[`${KIND}_AP`]) ? ", with 95 % intervals where they were computed" : ""}`;
    choiceTable.refresh();
  });
  const keys = [...new Set(SCORED.flatMap((run) => Object.keys(run.metrics)))];
  const rows = keys.map((key) => ({ key }));
  const all = sortableTable("Every metric of every run, in percent; not changed by the filter", [
    { label: "metric", head: true, value: (row) => row.key },
    ...SCORED.map((run) => ({ label: run.name, numeric: true, value: (row) => run.metrics[row.key] ?? null, cell: (row) => withInterval(run.metrics[row.key] ?? null, run.intervals[row.key], 2) })),
  ], rows);
  part.append(h("details", {}, h("summary", {}, "Every metric"), all.element));
}

/** The run that the main one is set against. */
const RIVAL = RUNS.find((run) => run.name === DATA.verdict.comparisons[0]?.against) || null;

function drawCategories() {
  const part = section("categories", "Category by category", "Hardest tail categories first. Choose a name to see that category alone, everywhere on this page.");
  if (!CATEGORIES.length) return void part.append(absent("the categories and their counts; 2drcl stats makes them."));
  const scored = SCORED.filter((run) => Object.keys(run.categories).length);
  if (scored.length) {
    const series = scored.map((run) => ({ name: run.name, shape: RUNS.indexOf(run), at: (c) => run.categories[c.id]?.[`${KIND}_AP`] ?? null }));
    const holder = h("div", { class: "plot" });
    part.append(h("figure", {}, h("figcaption", {}, h("strong", {}, "AP of every category"), ", percent, frequent to rare; what is not chosen stands back"), holder, shapeLegend(series)));
    follow(responsive(holder, (width) => rankChart(width, 300, `AP of every category by frequency, for ${scored.map((r) => r.name).join(", ")}; the table below holds the numbers`, series, "linear", selected())));
  }
  const table = sortableTable("", categoryColumns(scored), DATA.hardest.map((id) => BY_ID.get(id)).filter(Boolean));
  part.append(table.element);
  follow(() => {
    const chosen = new Set(selected());
    for (const c of CATEGORIES) table.rowOf(c).hidden = !chosen.has(c);
    table.caption.textContent = `${chosen.size} of ${CATEGORIES.length} categories: counts of the training split, repeat factors, and AP in percent`;
  });
}

function categoryColumns(scored) {
  const first = DATA.categories.factors.find((f) => f.label.startsWith("DRB")), last = DATA.categories.factors.findLast((f) => f.label.startsWith("DRB"));
  const ap = (run, c) => run.categories[c.id]?.[`${KIND}_AP`] ?? null;
  const change = (c) => (ap(MAIN, c) === null || ap(RIVAL, c) === null ? null : ap(MAIN, c) - ap(RIVAL, c));
  return [
    { label: "category", head: true, value: (c) => c.name, cell: (c) => h("button", { type: "button", class: "name", onclick: () => choose({ group: "all", text: c.name }) }, c.name) },
    { label: "group", value: (c) => (c.group ? "rcf".indexOf(c.group) : null), cell: (c) => h("span", { class: `group group-${c.group}` }, GROUPS[c.group] || "–") },
    { label: "images", numeric: true, digits: 0, value: (c) => c.images },
    { label: "instances", numeric: true, digits: 0, value: (c) => c.instances },
    ...(last ? [{ label: "repeat factor", title: "Dynamic rebalancing: first epoch to last; sorts by the last", numeric: true, value: (c) => last.values[c.at], cell: (c) => `${show(first.values[c.at], 2)} → ${show(last.values[c.at], 2)}` }] : []),
    ...scored.map((run) => ({ label: run.name, title: `AP of ${run.name}`, numeric: true, value: (c) => ap(run, c) })),
    ...(MAIN && RIVAL ? [{ label: "difference", title: `${MAIN.name} minus ${RIVAL.name}`, numeric: true, value: change, cell: (c) => { const d = change(c); return d === null ? "–" : h("span", { class: d > 0 ? "up" : d < 0 ? "down" : null }, d > 0 ? "▲ " : d < 0 ? "▼ " : "", signed(d)); } }] : []),
  ];
}

function drawNorms() {
  const part = section("norms", "Does the classifier favour the head?", "Length of the classifier’s weight vector of each category, with the fitted curve: long for frequent and short for rare categories is a bias that training left.");
  const known = RUNS.filter((run) => Object.keys(run.norms).length);
  if (!known.length || !CATEGORIES.length) return void part.append(absent("weight norms; 2drcl analyze makes them where the detectors are there."));
  const series = known.map((run) => ({ name: run.name, shape: RUNS.indexOf(run), at: (c) => run.norms[c.id]?.[0] ?? null, line: (c) => run.norms[c.id]?.[1] ?? null }));
  const holder = h("div", { class: "plot" });
  part.append(h("figure", {}, h("figcaption", {}, h("strong", {}, "Weight norms"), ", categories from frequent to rare"), holder, shapeLegend(series)));
  follow(responsive(holder, (width) => rankChart(width, 300, `Weight norms by category. ${known.map((run) => normWords(run)).join(" ")}`, series, "free", selected())));
}

/** Mean norms of the groups, which is what the chart is about, in words. */
function normWords(run) {
  const mean = (letter) => {
    const found = CATEGORIES.filter((c) => c.group === letter && run.norms[c.id]).map((c) => run.norms[c.id][0]);
    return found.length ? `${GROUPS[letter].toLowerCase()} ${show(found.reduce((a, b) => a + b, 0) / found.length, 2)}` : null;
  };
  return `${run.name}: mean of ${Object.keys(GROUPS).map(mean).filter(Boolean).join(", ")}.`;
}

function drawTail() {
  const part = section("tail", "The tail, and what rebalancing does to it", "How often each category is seen, and how often its images are repeated: by RFS and IRFS always alike, by dynamic rebalancing more by instances as training goes on.");
  if (!CATEGORIES.length) return void part.append(absent("frequencies and repeat factors; 2drcl stats makes them."));
  const counts = [{ name: "images", shape: 1, at: (c) => c.images, line: true }, { name: "instances", shape: 0, at: (c) => c.instances }];
  if (DATA.categories.proposals) counts.push({ name: "proposals", shape: 2, at: (c) => c.proposals });
  const pair = h("div", { class: "pair" });
  part.append(pair);
  const add = (title, note, series, scale) => {
    const holder = h("div", { class: "plot" });
    pair.append(h("figure", {}, h("figcaption", {}, h("strong", {}, title), note), holder, shapeLegend(series)));
    follow(responsive(holder, (width) => rankChart(width, 320, `${title}, a mark per category, frequent to rare; the table of categories holds the numbers`, series, scale, selected())));
  };
  if (CATEGORIES.some((c) => c.images !== null)) add("Frequency", ", log scale", counts, "log");
  if (!DATA.categories.factors.length) return void pair.append(absent("repeat factors; 2drcl stats makes them."));
  const threshold = DATA.categories.threshold === null ? "" : `, threshold t = ${+DATA.categories.threshold.toPrecision(3)}`;
  add("Repeat factor", threshold, DATA.categories.factors.map((f, shape) => ({ name: f.label, shape, at: (c) => f.values[c.at], line: true })), "factor");
}

/** Shares of the error types over some categories: the mean over those with judged boxes, as in errors.json. */
function errorShares(run, categories) {
  const counted = categories.map((c) => run.judged[c.id]).filter(Boolean);
  if (!counted.length) return null;
  const sums = counted.map((one) => ERRORS.reduce((sum, kind) => sum + (one[kind] || 0), 0));
  const share = (kind) => (100 * counted.reduce((sum, one, i) => sum + (one[kind] || 0) / sums[i], 0)) / counted.length;
  return { boxes: sums.reduce((a, b) => a + b, 0), shares: Object.fromEntries(ERRORS.map((kind) => [kind, share(kind)])) };
}

function drawErrors() {
  const part = section("errors", "What goes wrong", "The best N boxes of each category, N being its true boxes, sorted into the paper’s five types; mean over categories.");
  const known = RUNS.filter((run) => Object.keys(run.judged).length || Object.keys(run.errors).length);
  if (!known.length) return void part.append(absent("error types; 2drcl analyze makes them."));
  part.append(patterns());
  const holder = h("div", { class: "pies" });
  part.append(holder);
  follow(() => holder.replaceChildren(...known.map((run) => h("div", { class: "pie-row" }, h("h3", {}, run.name), h("div", { class: "pie-cells" }, piesOf(run))))));
}

function piesOf(run) {
  const letters = Object.keys(GROUPS).filter((g) => (choice.group === "all" || choice.group === g) && CATEGORIES.some((c) => c.group === g));
  if (!Object.keys(run.judged).length || !CATEGORIES.length) return groupPies(run, letters);
  const parts = choice.text.trim() || !letters.length ? [[selectionName(), selected()]] : letters.map((g) => [GROUPS[g], CATEGORIES.filter((c) => c.group === g)]);
  return parts.map(([title, categories]) => {
    const found = errorShares(run, categories);
    return found ? pie(title, found.shares, found.boxes) : h("p", { class: "absent" }, `${title}: no boxes were judged.`);
  });
}

/** From errors.json alone, which knows groups but no categories. */
function groupPies(run, letters) {
  return (letters.length ? letters : ["all"]).filter((g) => run.errors[g]?.n).map((g) => pie(GROUPS[g] || "All", Object.fromEntries(ERRORS.map((kind) => [kind, run.errors[g][kind][1] ?? 0])), run.errors[g].n));
}

const TERMS = { loss: "total loss", hcl: "HCL, images", lcl: "LCL, proposals", ar: "AR, appearance", sr: "SR, semantics", det: "detection", lr: "learning rate", alpha: "α of rebalancing", grad_norm: "gradient norm", rare_share: "share of rare boxes",
  hcl_queue_age: "age of image keys, steps", lcl_queue_age: "age of proposal keys, steps", hcl_positive: "images: cosine with own key", hcl_negative: "images: cosine with the queue", lcl_positive: "proposals: cosine with own key", lcl_negative: "proposals: cosine with the queue",
  norm_c2: "length of features, C2", norm_c3: "length of features, C3", norm_c4: "length of features, C4", norm_c5: "length of features, C5" };

function drawCurves() {
  const part = section("training", "Training", "Means over equal stretches of the history. These are about whole runs: the filter does not change them.");
  const pretraining = DATA.pretraining.images.length ? [{ index: 0, name: "pre-training", curves: DATA.pretraining }] : [];
  const tuned = RUNS.filter((run) => run.history.images.length).map((run) => ({ index: RUNS.indexOf(run), name: run.name, curves: run.history }));
  for (const [title, found, todo] of [["Pre-training", pretraining, "2drcl pretrain"], ["Fine-tuning", tuned, "2drcl finetune"]]) {
    part.append(h("h3", {}, title));
    if (!found.length) part.append(absent(`the history; ${todo} makes it.`));
    else part.append(found.length > 1 ? legend(found.map((one) => RUNS[one.index])) : "", h("div", { class: "multiples" }, panels(found)));
    if (title === "Pre-training") part.append(gallery(DATA.figures.filter(isOfTraining), "gallery wide"));
  }
}

function panels(found) {
  const terms = [...new Set(found.flatMap((one) => Object.keys(one.curves.terms)))];
  return terms.map((term) => {
    const series = found.filter((one) => one.curves.terms[term]).map((one) => ({ index: one.index, name: one.name, x: one.curves.images, y: one.curves.terms[term] }));
    const holder = h("div", { class: "plot" });
    responsive(holder, (width) => lineChart(width, 170, TERMS[term] || term, series, "images drawn"))();
    return holder;
  });
}

const isOfTraining = (figure) => figure.name === "reconstructions";

function gallery(figures, kind = "gallery") {
  return h("div", { class: kind }, figures.map((figure) => h("figure", {}, h("figcaption", {}, h("strong", {}, figure.title), figure.run && `, ${figure.run}`), h("img", { src: figure.picture.src, width: figure.picture.width, height: figure.picture.height, alt: figure.run ? `${figure.alt} Run ${figure.run}.` : figure.alt }))));
}

function drawFigures() {
  const part = section("figures", "Attention and other figures", "As the stages drew them; the filter does not change them.");
  if (!DATA.figures.some((figure) => figure.name.startsWith("attention"))) part.append(absent("attention maps of these runs; 2drcl analyze draws them from detectors."));
  part.append(gallery(DATA.figures.filter((figure) => !isOfTraining(figure))));
}

const PURPOSE = { sample: "Renders a small long-tailed data set.", proposals: "Finds boxes of objects, whatever their category.", stats: "Counts images and instances of each category, and derives repeat factors.", pretrain: "Trains the whole detector with contrast, reconstruction and rebalancing.", finetune: "Trains the detector on its task, with a long-tailed method.", evaluate: "Scores its detections.", analyze: "Sorts its errors into types." };

function drawChain() {
  const part = section("chain", "The chain, with its settings", "Every stage in the order in which it ran. Settings are those of its manifest, which is what the numbers above were made with.");
  const stages = [...new Set(DATA.chain.map((one) => one.stage))];
  part.append(h("ol", { class: "chain" }, stages.map((stage) => h("li", {}, h("h3", {}, stage), h("p", {}, PURPOSE[stage]), stageCards(DATA.chain.filter((one) => one.stage === stage))))));
}

/** The settings that a reader looks for first. */
const MAIN_SETTINGS = [["sample.train_images", "training images"], ["sample.categories", "categories"], ["proposals.source", "source"], ["proposals.epochs", "epochs"], ["proposals.keep", "boxes kept"], ["stats.direction", "direction"], ["stats.threshold", "threshold"],
  ["run.method", "method"], ["run.init", "starts from"], ["pretrain.epochs", "epochs"], ["finetune.epochs", "epochs"], ["pretrain.batch_size", "batch"], ["finetune.batch_size", "batch"], ["pretrain.lr", "lr"], ["finetune.lr", "lr"], ["images_drawn", "images drawn"], ["evaluate.protocol", "protocol"]];

function stageCards(stages) {
  const lacking = stages.filter((one) => !one.made).map((one) => one.run || one.stage);
  return [stages.filter((one) => one.made).map(stageCard), lacking.length > 0 && absent(`${lacking.join(", ")}.`)];
}

function stageCard(one) {
  const name = one.run || "sample";
  const known = new Map(one.settings);
  const facts = [...MAIN_SETTINGS.filter(([key]) => known.has(key)).map(([key, word]) => `${word} ${known.get(key)}`), `seed ${one.seed ?? "unknown"}`];
  return h("details", {}, h("summary", {}, h("b", {}, name), " ", h("span", { class: "facts" }, facts.join(" · "))),
    h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `Settings of ${one.stage} ${one.run}` }, h("table", { class: "settings" }, h("caption", {}, `Settings of ${one.stage} ${one.run}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"), h("th", { scope: "col" }, "value"))),
      h("tbody", {}, one.settings.map(([key, value]) => h("tr", {}, h("th", { scope: "row" }, key), h("td", {}, value)))))));
}

function drawCost() {
  const part = section("cost", "What it cost", "Time and memory as this machine measured them, of the command that ended each stage; a stage that was stopped and continued shows its last part.");
  const timed = DATA.chain.filter((one) => Object.keys(one.timing).length);
  if (!timed.length) return void part.append(absent("timing.json of every stage: they are written beside the products and tracked by nobody."));
  const column = (label, key, digits, per = 1) => ({ label, numeric: true, digits, value: (one) => (one.timing[key] === undefined ? null : one.timing[key] / per) });
  part.append(sortableTable("Seconds, memory and speed by stage", [
    { label: "stage", head: true, value: (one) => DATA.chain.indexOf(one), cell: (one) => `${one.stage} ${one.run}` },
    column("seconds", "seconds", 0), column("of them training", "train_seconds", 0), column("images per second", "images_per_second", 1),
    column("memory, GiB", "peak_memory_mib", 2, 1024), column("GPU memory, GiB", "gpu_memory_mib", 2, 1024),
  ], timed).element);
}

function drawPaper() {
  const part = section("paper", "Beside the paper", "Every row of the paper’s tables, with the runs of ours that used the same method and start. A difference is one between like and like only where nothing is named as unlike.");
  for (const table of DATA.paper) {
    const ours = table.rows.filter((row) => row.run).length;
    part.append(h("details", { open: table === DATA.paper.find((one) => one.rows.some((row) => row.run)) }, h("summary", {}, h("b", {}, `Table ${table.number}`), ` ${table.title} `, h("span", { class: "facts" }, ours ? plural(ours, "row of ours", "rows of ours") : "no run of ours")), paperTable(table)));
  }
  if (DATA.beyond_paper.length) part.append(h("p", { class: "prose" }, `Not in the paper: ${DATA.beyond_paper.join(", ")}.`));
}

function paperTable(table) {
  const names = table.columns.map((key) => key.replace("bbox_", "").replace("segm_", "mask ").replace("vram_gb", "GB").replace("_", " "));
  const id = `paper-${table.number}`;
  const rows = table.rows.flatMap((row, at) => {
    const isNew = at === 0 || table.rows[at - 1].label !== row.label || table.rows[at - 1].run === null || table.rows[at - 1].setting !== row.setting;
    const printed = isNew && h("tr", {}, h("th", { scope: "row" }, row.label, h("small", {}, row.setting)), table.columns.map((key) => h("td", { class: "numeric" }, show(row.paper[key]))), !row.run && h("td", { class: "quiet" }, "no run of ours"));
    return [printed, row.run && h("tr", { class: "ours" }, h("th", { scope: "row" }, `ours: ${row.run}`), table.columns.map((key) => h("td", { class: "numeric" }, show(row.ours[key]), row.difference[key] !== undefined && h("small", {}, signed(row.difference[key])))), h("td", { class: "quiet" }, row.unlike.length ? row.unlike.join("; ") : "like the paper’s"))];
  });
  return h("div", { class: "scroll", role: "region", "aria-labelledby": id, tabindex: 0 }, h("table", { class: "paper" }, h("caption", { id }, `Table ${table.number}: the paper’s numbers, ours, and the difference (ours minus paper)`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "method"), names.map((name) => h("th", { scope: "col", class: "numeric" }, name)), h("th", { scope: "col" }, "unlike the paper’s in"))), h("tbody", {}, rows)));
}

function drawGaps() {
  if (!DATA.gaps.length) return;
  const part = section("missing", "What is missing", "What this page could not show, why, and the command that makes it.");
  part.append(sortableTable("Gaps of this report", [
    { label: "what", head: true, value: (gap) => gap.what }, { label: "why", value: (gap) => gap.why },
    { label: "command", value: (gap) => gap.todo || null, cell: (gap) => (gap.todo ? h("code", {}, gap.todo) : "–") },
  ], DATA.gaps).element);
}
