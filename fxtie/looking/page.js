"use strict";
const root = document.documentElement;
const sections = [...document.querySelectorAll(".section")];
const boxes = [...document.querySelectorAll(".box")];
const texts = new Map([...sections, ...boxes].map((e) => [e, e.textContent.toLowerCase()]));
const found = document.getElementById("found");

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

function foldAll(open) {
  for (const section of sections) section.open = open;
}
document.getElementById("fold").addEventListener("click", () => foldAll(false));
document.getElementById("unfold").addEventListener("click", () => foldAll(true));

// Sections without a hit are hidden; those with one open, and close again when the search ends.
const opened = new Set();
document.getElementById("search").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const section of opened) section.open = false;
  opened.clear();
  let hits = 0;
  for (const section of sections) {
    const has = texts.get(section).includes(wanted);
    section.hidden = !has;
    if (!wanted || !has) continue;
    hits += 1;
    if (!section.open) {
      section.open = true;
      opened.add(section);
    }
  }
  for (const box of boxes) {
    box.classList.toggle("hit", wanted !== "" && texts.get(box).includes(wanted));
  }
  found.textContent = wanted ? `${hits} of ${sections.length}` : "";
});

// A click on a block unfolds it, another one folds it again: there is a view of each state.
const views = [...document.querySelectorAll(".view")];
for (const part of document.querySelectorAll("[data-view]")) {
  part.addEventListener("click", () => {
    for (const [i, view] of views.entries()) view.hidden = i !== Number(part.dataset.view);
  });
}

// The layer that is pointed at shows its arcs alone.
for (const layer of document.querySelectorAll(".layer")) {
  const svg = layer.closest("svg");
  const at = `[data-tail="${layer.dataset.layer}"], [data-head="${layer.dataset.layer}"]`;
  layer.addEventListener("pointerenter", () => {
    const ties = svg.querySelectorAll(at);
    svg.classList.toggle("pointed", ties.length > 0);
    for (const tie of ties) tie.classList.add("at");
  });
  layer.addEventListener("pointerleave", () => {
    svg.classList.remove("pointed");
    for (const tie of svg.querySelectorAll(".at")) tie.classList.remove("at");
  });
}

// A link to a layer unfolds it.
function show() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const section = target && target.closest(".section");
  if (!section) return;
  section.hidden = false;
  section.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", show);
show();
