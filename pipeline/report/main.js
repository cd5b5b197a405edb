// Draws the page, top to bottom.
"use strict";
function drawTheme() {
  const root = document.documentElement;
  const names = { "": "Auto", light: "Light", dark: "Dark" };
  const set = (theme) => (theme ? root.setAttribute("data-theme", theme) : root.removeAttribute("data-theme"));
  const choices = h("select", { id: "theme-choice", onchange: (event) => set(event.target.value) }, Object.entries(names).map(([value, name]) => h("option", { value }, name)));
  byId("theme").append(h("label", { for: "theme-choice" }, "Colours"), choices);
}

function drawFooter() {
  const versions = DATA.chain.find((one) => one.made)?.versions ?? {};
  byId("footer").append(h("p", {}, Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(" · ")), h("p", {}, "This file holds all its data and asks no server for anything."));
}

choiceFromAddress();
drawTheme();
drawAnswer();
drawFilter();
for (const draw of [drawResults, drawCategories, drawPictures, drawTail, drawErrors, drawNorms, drawCurves, drawFigures, drawCost, drawChain, drawPaper, drawGaps, drawFooter]) draw();
document.documentElement.setAttribute("data-drawn", "");
