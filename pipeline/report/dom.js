// Elements.  Text reaches the page as text nodes alone: names of categories and runs are anybody's.
"use strict";
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** An element: h("p", { class: "note" }, "text", child). */
const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);

/** The same in SVG. */
const s = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

const byId = (id) => document.getElementById(id);

/** A number as people read it; a dash where there is none. */
function show(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}
const signed = (value, digits = 1) => (value > 0 ? "+" : "") + show(value, digits);
const plural = (count, one, many) => `${show(count, 0)} ${count === 1 ? one : many}`;

/** Redraw into `holder` whenever its width changes; the first time at once. */
function responsive(holder, draw) {
  let width = 0; // kept: to measure it anew at every choice would lay out the whole page each time
  const redraw = () => {
    width ||= Math.round(holder.clientWidth) || 320;
    holder.replaceChildren(...[draw(width)].flat().filter(Boolean));
  };
  new ResizeObserver(() => {
    const found = Math.round(holder.clientWidth);
    if (!found || Math.abs(found - width) <= 4) return;
    width = found;
    redraw();
  }).observe(holder);
  return redraw;
}

/** A section of the page with its heading, and an entry in the contents. */
function section(id, title, lead, ...children) {
  const part = h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), lead && h("p", { class: "lead" }, lead), children);
  byId("sections").append(part);
  byId("contents").append(h("li", {}, h("a", { href: `#${id}`, title }, id[0].toUpperCase() + id.slice(1))));
  return part;
}

/** A note in place of something that is not there. */
const absent = (text) => h("p", { class: "absent" }, h("strong", {}, "Missing: "), text);
