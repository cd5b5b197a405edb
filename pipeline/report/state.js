// The data of the page, what is chosen of it, and who is told when the choice changes.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const GROUPS = { r: "Rare", c: "Common", f: "Frequent" };
const RUNS = DATA.runs;
const SCORED = RUNS.filter((run) => Object.values(run.metrics).some((value) => value !== null));
const MAIN = RUNS.find((run) => run.name === DATA.verdict.main) || null;
const KIND = SCORED.some((run) => run.metrics.bbox_AP !== undefined) ? "bbox" : "segm";

const CATEGORIES = DATA.categories.ids.map((id, at) => ({
  id,
  at,
  name: DATA.categories.names[at],
  group: DATA.categories.frequency[at] || "",
  images: DATA.categories.images[at] ?? null,
  instances: DATA.categories.instances[at] ?? null,
  proposals: DATA.categories.proposals ? DATA.categories.proposals[at] : null,
}));
const BY_ID = new Map(CATEGORIES.map((category) => [category.id, category]));

const choice = { group: "all", text: "" };
const listeners = [];

/** Call `draw` now, and again whenever the choice of categories changes. */
function follow(draw) {
  listeners.push(draw);
  draw();
}

/** Change the choice, keep it in the address, and redraw everything. */
function choose(change) {
  Object.assign(choice, change);
  const asked = new URLSearchParams();
  if (choice.group !== "all") asked.set("group", choice.group);
  if (choice.text) asked.set("category", choice.text);
  history.replaceState(null, "", asked.size ? `#?${asked}` : location.pathname + location.search);
  for (const draw of listeners) draw();
}

/** Take the choice from an address that somebody kept. */
function choiceFromAddress() {
  if (!location.hash.startsWith("#?")) return;
  const asked = new URLSearchParams(location.hash.slice(2));
  if (asked.get("group") in GROUPS) choice.group = asked.get("group");
  choice.text = asked.get("category") || "";
}

/** The chosen categories: a whole name means that one, part of a name all that contain it. */
function selected() {
  const key = `${choice.group} ${choice.text}`;
  if (key !== lastChoice.key) Object.assign(lastChoice, { key, found: findSelected() });
  return lastChoice.found;
}
const lastChoice = {}; // asked for by every cell of a table of 1,203 rows

function findSelected() {
  const text = choice.text.trim().toLowerCase();
  const inGroup = CATEGORIES.filter((c) => choice.group === "all" || c.group === choice.group);
  const exact = inGroup.filter((c) => c.name.toLowerCase() === text);
  return exact.length ? exact : inGroup.filter((c) => c.name.toLowerCase().includes(text));
}

const isFiltered = () => choice.group !== "all" || choice.text.trim() !== "";

/** What is chosen, in words. */
function selectionName() {
  const found = selected();
  if (choice.text.trim()) return found.length === 1 ? found[0].name : `${found.length} categories like “${choice.text.trim()}”`;
  return choice.group === "all" ? "all categories" : `${GROUPS[choice.group].toLowerCase()} categories`;
}

/** AP of a run over some categories: the mean over those that have one; null where none has. */
function meanOver(run, categories, key) {
  const values = categories.map((c) => run.categories[c.id]?.[`${KIND}_${key}`]).filter((v) => v !== null && v !== undefined);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

/** A metric of the choice: metrics.json for everything and for groups, else the mean over the categories. */
function metricOfChoice(run, key) {
  const name = `${KIND}_${key}`;
  if (!isFiltered()) return run.metrics[name] ?? null;
  if (!choice.text.trim() && key === "AP") return run.metrics[`${name}${choice.group}`] ?? null;
  return meanOver(run, selected(), key);
}

/** The interval of the same; null where nobody resampled it. */
function intervalOfChoice(run, key) {
  if (choice.text.trim()) return null;
  const group = choice.group === "all" ? "" : choice.group;
  return (group && key !== "AP" ? null : run.intervals[`${KIND}_${key}${group}`]) ?? null;
}
