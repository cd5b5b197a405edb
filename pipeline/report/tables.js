// Tables that sort: a button in every heading, aria-sort on its cell, empty values last either way.
"use strict";
let tablesMade = 0;

/** columns: [{label, value: row -> number, text or null, cell: row -> content, numeric, head}]. */
function sortableTable(caption, columns, rows, first) {
  const id = `table-${++tablesMade}`;
  const order = { column: first?.column ?? null, down: first?.down ?? false };
  const body = h("tbody", {}), elements = new Map();
  const heads = columns.map((column, number) => h("th", { scope: "col", class: column.numeric ? "numeric" : null },
    h("button", { type: "button", title: column.title, onclick: () => sortBy(number) }, column.label)));
  const captionElement = h("caption", { id }, caption);
  for (const row of rows) elements.set(row, h("tr", {}, columns.map((column) => cellOf(column, row))));

  function sortBy(number) {
    order.down = order.column === number ? !order.down : false;
    order.column = number;
    arrange();
  }
  function arrange() {
    heads.forEach((head, number) => {
      if (number === order.column) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const sorted = order.column === null ? rows : [...rows].sort((a, b) => compareCells(columns[order.column].value(a), columns[order.column].value(b), order.down));
    body.replaceChildren(...sorted.map((row) => elements.get(row)));
  }
  arrange();
  const table = h("table", {}, captionElement, h("thead", {}, h("tr", {}, heads)), body);
  return {
    element: h("div", { class: "scroll", role: "region", "aria-labelledby": id, tabindex: 0 }, table),
    caption: captionElement,
    rowOf: (row) => elements.get(row),
    refresh: () => {
      for (const [row, element] of elements) element.replaceChildren(...columns.map((column) => cellOf(column, row)));
      arrange();
    },
  };
}

function cellOf(column, row) {
  const content = column.cell ? column.cell(row) : column.numeric ? show(column.value(row), column.digits ?? 1) : column.value(row) ?? "–";
  return h(column.head ? "th" : "td", { scope: column.head ? "row" : null, class: column.numeric ? "numeric" : null }, content);
}

function compareCells(a, b, down) {
  const none = (value) => value === null || value === undefined;
  if (none(a) || none(b)) return none(a) - none(b);
  const found = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -found : found;
}
