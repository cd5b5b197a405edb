// Validation images of the hardest tail categories, with true boxes and those of the runs drawn over them.
"use strict";
const PANELS = 4; // the truth and at most three runs
const FIRST = 5; // pictures until more are asked for

function drawPictures() {
  const part = section("pictures", "Seen by each run", "An image per category, hardest tail categories first. Of each run the best-scored boxes are shown, as many as there are objects: solid and ticked where one matches an object of its category, dashed and crossed where none does.");
  if (!DATA.pictures.length) return void part.append(absent("example pictures; they need the validation images and predictions."));
  const wanted = [MAIN, RIVAL, ...RUNS].filter((run, i, all) => run && all.indexOf(run) === i && DATA.pictures.some((p) => p.found[run.name])).slice(0, PANELS - 1);
  const cards = DATA.pictures.map((picture) => [picture, pictureCard(picture, wanted)]);
  let isWhole = cards.length <= FIRST;
  const more = h("button", { type: "button", class: "more", onclick: () => { isWhole = true; draw(); } }, `Show all ${cards.length} pictures`);
  const none = h("p", { class: "absent" }, "No picture shows what is chosen.");
  part.append(h("div", { class: "pictures" }, cards.map(([, card]) => card)), none, more);
  const draw = () => {
    const chosen = new Set(selected().map((c) => c.id));
    cards.forEach(([picture, card], at) => (card.hidden = !isFiltered() ? !isWhole && at >= FIRST : !chosen.has(picture.category) && !(choice.text.trim() && picture.truth.some((box) => chosen.has(box.category)))));
    more.hidden = isWhole || isFiltered();
    none.hidden = cards.some(([, card]) => !card.hidden);
  };
  follow(draw);
}

const nameOf = (id) => BY_ID.get(id)?.name ?? `category ${id}`;

function pictureCard(picture, runs) {
  const category = BY_ID.get(picture.category);
  const panels = [["True objects", picture.truth], ...runs.map((run) => [run.name, picture.found[run.name] || []])];
  return h("article", { class: "picture" }, h("h3", {}, nameOf(picture.category), " ", category?.group && h("span", { class: `group group-${category.group}` }, GROUPS[category.group])),
    h("p", { class: "facts" }, `image ${picture.image_id}`, category?.images !== null && category ? ` · ${plural(category.images, "training image", "training images")}` : ""),
    h("div", { class: "panels" }, panels.map(([title, boxes]) => h("figure", {}, panel(picture, title, boxes), h("figcaption", {}, title, title !== "True objects" && `: ${boxes.filter((b) => b.matched).length} of ${boxes.length} match`)))));
}

function panel(picture, title, boxes) {
  const { width, height } = picture;
  const words = boxes.map((box) => `${nameOf(box.category)}${box.score === null ? "" : ` (${show(box.score, 2)}, ${box.matched ? "matches" : "matches nothing"})`}`);
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Image ${picture.image_id}, ${title}: ${words.join(", ") || "no boxes"}` },
    s("image", { href: picture.picture.src, width, height, preserveAspectRatio: "none" }), boxes.map((box) => drawBox(box, width, picture.category)));
}

function drawBox(box, width, focus) {
  const [x0, y0, x1, y1] = box.xyxy, line = width / 160, size = width / 21;
  const kind = box.score === null ? "truth" : box.matched ? "hit" : "miss";
  const sign = { truth: "", hit: "✓ ", miss: "✗ " }[kind];
  const outline = { x: x0, y: y0, width: Math.max(x1 - x0, 0), height: Math.max(y1 - y0, 0) };
  const isFocus = box.category === focus;
  return s("g", { class: `box ${kind}` }, s("title", {}, `${nameOf(box.category)}${box.score === null ? "" : ` ${show(box.score, 2)}`}`),
    s("rect", { ...outline, class: "halo", "stroke-width": line * (isFocus ? 4.5 : 3) }), s("rect", { ...outline, class: "edge", "stroke-width": line * (isFocus ? 2.5 : 1.4), "stroke-dasharray": kind === "miss" ? `${line * 4} ${line * 2.5}` : null }),
    (isFocus || kind !== "truth") && boxLabel(`${sign}${nameOf(box.category).slice(0, 16)}`, x0, y0 > size * 1.1 ? y0 - line * 2 : y0 + size, width, size));
}

/** Above its box, moved so far to the left that it stays inside the picture. */
function boxLabel(words, left, bottom, width, size) {
  const x = Math.max(0, Math.min(left, width - words.length * size * 0.6));
  return s("text", { x, y: bottom, "font-size": size, "stroke-width": size / 5 }, words);
}
