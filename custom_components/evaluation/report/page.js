"use strict";
// Which frame and layers the views show is said by the body, so that all views of a page change together.
const body = document.body;
let blinking = null; // the two frames that take turns
let timer = 0;

function show(frame) {
  body.dataset.frame = frame;
  for (const button of document.querySelectorAll("[data-show]")) button.classList.toggle("on", button.dataset.show === frame);
}

function blink(frames) {
  blinking = blinking === frames ? null : frames;
  clearInterval(timer);
  const [one, other] = frames.split(" ");
  if (blinking) timer = setInterval(() => show(body.dataset.frame === one ? other : one), 600);
  show(other);
  for (const button of document.querySelectorAll("[data-blink]")) button.classList.toggle("on", button.dataset.blink === blinking);
}

function layer(name) {
  const layers = new Set(body.dataset.layers.split(" ").filter(Boolean));
  if (!layers.delete(name)) layers.add(name);
  body.dataset.layers = [...layers].join(" ");
  for (const box of document.querySelectorAll("[data-layer-switch]")) box.checked = layers.has(box.dataset.layerSwitch);
}

for (const button of document.querySelectorAll("[data-show]")) {
  button.onclick = () => { if (blinking) blink(blinking); show(button.dataset.show); };
}
for (const button of document.querySelectorAll("[data-blink]")) button.onclick = () => blink(button.dataset.blink);
for (const box of document.querySelectorAll("[data-layer-switch]")) {
  box.checked = body.dataset.layers.split(" ").includes(box.dataset.layerSwitch);
  box.onchange = () => layer(box.dataset.layerSwitch);
}
show(body.dataset.frame);

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=search], select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key;
  const control = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key);
  if (key === "ArrowLeft" || key === "ArrowRight") step(key === "ArrowLeft" ? -1 : 1);
  else if (key === "y" || key === "n") mark(key === "y" ? "good" : "bad");
  else if (control && document.querySelector(".views")) control.click();
  else return;
  event.preventDefault();
});

// The table of a cohort.
const table = document.getElementById("table");
const rows = table ? [...table.tBodies[0].rows] : [];
const large = document.getElementById("large");
let filter = "";
let current = null;

function sortBy(column) {
  const heading = table.tHead.rows[0].cells[column];
  const number = heading.classList.contains("number") || column === 2;
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value;
  const lacks = (row) => value(row) === "" || (number && isNaN(Number(value(row)))); // they come last both ways
  const order = (a, b) => (number ? value(a) - value(b) : value(a).localeCompare(value(b), undefined, { numeric: true }));
  rows.sort((a, b) => lacks(a) - lacks(b) || (lacks(a) ? 0 : descending ? order(b, a) : order(a, b)));
  table.tBodies[0].append(...rows);
}

function select() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const text = [...row.cells].filter((cell) => !cell.matches(".number")).map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !((!filter || row.classList.contains(filter)) && words.every((word) => text.includes(word)));
  }
  document.getElementById("shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
}

function enlarge(row) {
  current = row;
  large.querySelector("h2").textContent = row.dataset.name;
  const views = row.querySelector(".views");
  large.querySelector(".place").replaceChildren(...(views ? [views.cloneNode(true)] : []));
  const headings = table.tHead.rows[0].cells;
  const said = [...row.querySelectorAll("td.number:not(.extra)")].filter((cell) => cell.textContent).map((cell) => {
    const one = document.createElement("span");
    one.className = cell.classList.contains("outlier") ? "outlier" : "";
    one.textContent = `${headings[cell.cellIndex].textContent.trim()} ${cell.textContent}`;
    return one;
  });
  const notes = [...row.querySelectorAll(".flags .bad, .flags details")].map((note) => note.cloneNode(true));
  for (const note of notes) note.open = true;
  large.querySelector(".said").replaceChildren(...said, ...notes);
  const link = row.querySelector("a[href]");
  large.querySelector("a").hidden = !link;
  if (link) large.querySelector("a").href = link.href;
  for (const button of large.querySelectorAll("[data-mark]")) button.classList.toggle("on", button.dataset.mark === marks[row.dataset.name]);
  if (!large.open) large.showModal();
}

function step(by) {
  if (!large || !large.open) return;
  const shown = rows.filter((row) => !row.hidden);
  const next = shown[shown.indexOf(current) + by];
  if (next) enlarge(next);
}

// Marks of whoever looks stay in this browser until they are saved as a table.
const place = `morphzoo marks ${location.pathname}`;
let marks = {};
try { marks = JSON.parse(localStorage.getItem(place)) || {}; } catch { /* a browser may refuse to keep them */ }

function mark(verdict) {
  if (!large || !large.open) return;
  const name = current.dataset.name;
  if (marks[name] === verdict) delete marks[name];
  else marks[name] = verdict;
  try { localStorage.setItem(place, JSON.stringify(marks)); } catch { /* see above */ }
  showMarks();
  enlarge(current);
}

function showMarks() {
  for (const row of rows) {
    const verdict = marks[row.dataset.name] || "";
    row.querySelector(".mark").className = `mark ${verdict}`;
    row.querySelector(".mark").textContent = verdict && `marked ${verdict}`;
  }
}

function saveMarks() {
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
  const lines = Object.entries(marks).map(([name, verdict]) => `${cell(name)},${verdict}`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["id,mark", ...lines, ""].join("\n")], { type: "text/csv" }));
  link.download = "marks.csv";
  link.click();
}

if (table) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (button) button.onclick = () => sortBy(column);
  });
  for (const row of rows) {
    const views = row.querySelector(".views");
    if (views) views.onclick = () => enlarge(row);
  }
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.onclick = () => {
      filter = button.dataset.filter;
      for (const other of document.querySelectorAll("[data-filter]")) other.classList.toggle("on", other === button && filter);
      select();
    };
  }
  document.getElementById("search").oninput = select;
  document.getElementById("all").onchange = (event) => table.classList.toggle("wide", event.target.checked);
  document.getElementById("verdicts").onclick = saveMarks;
  for (const button of large.querySelectorAll("[data-step]")) button.onclick = () => step(Number(button.dataset.step));
  for (const button of large.querySelectorAll("[data-mark]")) button.onclick = () => mark(button.dataset.mark);
  large.querySelector("[data-close]").onclick = () => large.close();
  large.onclick = (event) => { if (event.target === large) large.close(); };
  showMarks();
  select();
}
