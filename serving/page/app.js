// The page: what its parts do when they are pressed. Its state is one object; what is on the screen follows it.
import { ApiError, call, getKey, setKey } from "./api.js";
import { Cells } from "./cells.js";
import { colouring, firstColumn } from "./colours.js";
import { CellMap } from "./map.js";
import { embed, perturb } from "./questions.js";
import { bars } from "./chart.js";
import { columns, csv, ranked, shown, tableRows } from "./ranking.js";

const $ = (id) => document.getElementById(id);
const BARS = 25;
const ROWS = 50;
const FEW_CELLS = 0.1; // a mean over a smaller share of the cells is not shown unless it is asked for

const state = { models: [], cells: null, picked: new Set(), genes: [], legend: null, result: null, sort: ["place", 1] };
let worker = null;
let busy = null; // the AbortController of what is under way

const map = new CellMap($("canvas"), { onPick: pickMore, onHover: showTip });

function make(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function fill(select, options, wanted) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  if (options.some(([value]) => value === wanted)) select.value = wanted;
}

function showError(error) {
  $("error").hidden = !error;
  $("error").textContent = error || "";
  if (error) $("error").scrollIntoView({ block: "nearest" });
}

// Runs what takes a while: one thing at a time, with a bar and a way to cancel it.
async function during(name, work) {
  showError("");
  busy?.abort();
  const own = new AbortController();
  busy = own;
  const tell = (text, share) => {
    if (busy !== own) return;
    $(`${name}-text`).textContent = text;
    if (share === undefined) $(`${name}-bar`).removeAttribute("value");
    else $(`${name}-bar`).value = share;
  };
  tell("");
  for (const each of ["load", "run"]) $(`${each}-progress`).hidden = each !== name;
  $(`${name}-cancel`).onclick = () => own.abort();
  try {
    await work(own.signal, tell);
  } catch (error) {
    if (error.name !== "AbortError") showError(error instanceof ApiError ? error.message : `The page failed: ${error}`);
    if (!(error instanceof ApiError) && error.name !== "AbortError") throw error;
  } finally {
    if (busy === own) {
      busy = null;
      $(`${name}-progress`).hidden = true;
    }
  }
}

const model = () => state.models.find((each) => each.name === $("model").value);

async function loadModels() {
  try {
    state.models = (await call("v1/models")).body.models;
    const before = $("model").value;
    fill($("model"), state.models.map(({ name }) => [name, name]), before || "default");
    showError(state.models.length ? "" : "No model is ready yet. Load the page again in a moment.");
  } catch (error) {
    showError(error.message);
  }
  showModel();
}

function showModel() {
  const { poolings = [], states = [], layers = 1 } = model() || {};
  fill($("pooling"), poolings.filter((each) => each !== "gene").map((each) => [each, each]), $("pooling").value);
  $("layer").min = -layers;
  $("states").hidden = !states.length;
  fill($("start"), [["", "any"], ...states.map((each) => [each, each])], $("start").value);
  fill($("goal"), [["", "none: by change"], ...states.map((each) => [each, each])], $("goal").value);
}

// ---- cells

function load(name, path, options) {
  return during("load", async (signal, tell) => {
    if (!model()) await loadModels();
    if (!model()) return;
    tell(`Reading ${name} …`);
    const { body } = await call(path(), { ...options, signal });
    await showCells(new Cells({ ...body, about: body.about ? body.about[0].toUpperCase() + body.about.slice(1) : name }), signal, tell);
  });
}

// Another model or pooling: the same cells anew.
function reload() {
  if (state.cells) during("load", (signal, tell) => showCells(state.cells, signal, tell));
}

async function showCells(cells, signal, tell) {
  const how = { model: model().name, pooling: $("pooling").value, layer: Number($("layer").value) };
  const { cells_per_request, max_queued_cells } = model().limits;
  const most = Math.max(1, Math.min(32, cells_per_request, Math.floor(max_queued_cells / 2))); // finds room soon
  const found = await embed(cells, how, most, signal, (done) => {
    tell(`Embedding: ${done} of ${cells.length} cells`, done / cells.length);
  });
  Object.assign(state, { cells, how, result: null, genes: [], sort: ["place", 1] });
  $("about").textContent = summary(cells, found.notes);
  $("result-card").hidden = true;
  showGenes();
  const rows = found.embeddings.map((row, i) => [i, row]).filter(([, row]) => row);
  if (!rows.length) throw new ApiError("No cell has a gene that the model knows. Right species, right gene ids?");
  $("map-card").hidden = $("ask-card").hidden = false;
  const names = Object.keys(cells.obs);
  fill($("colour"), [...names.map((each) => [each, each]), ["", "one colour"]], firstColumn(cells.obs));
  pick([]);
  showColours();
  await layOut(cells, rows, signal, tell);
}

function summary(cells, notes) {
  const known = notes.map((note) => note.genes_mapped).sort((a, b) => a - b);
  const lost = known.filter((n) => n === 0).length;
  const cut = notes.filter((note) => note.truncated).length;
  return [
    `${cells.about}.`,
    `${cells.length} cell${cells.length === 1 ? "" : "s"}; the model knows a median of ${known[known.length >> 1]} genes of each.`,
    cut && `${cut} have more genes than it takes: their lowest ranks are cut.`,
    lost && `${lost} have no known gene and are not on the map.`,
    cells.leftOut && `${cells.leftOut} more columns of the file are not shown.`,
  ].filter(Boolean).join(" ");
}

function layOut(cells, rows, signal, tell) {
  return new Promise((resolve, reject) => {
    worker?.terminate();
    worker = new Worker("page/layout.worker.js");
    const stop = (then, what) => { worker.terminate(); then(what); };
    signal.addEventListener("abort", () => stop(reject, new DOMException("", "AbortError")));
    worker.onerror = (event) => stop(reject, new Error(event.message));
    worker.onmessage = ({ data: { points, done, kind } }) => {
      const all = Array(cells.length).fill(null);
      points.forEach((point, i) => { all[rows[i][0]] = point; });
      $("map-kind").textContent = kind;
      $("canvas").dataset.done = done;
      tell("Laying out the map", done);
      map.setPoints(all);
      if (done === 1) stop(resolve);
    };
    $("canvas").dataset.done = 0;
    tell("Laying out the map");
    worker.postMessage({ rows: rows.map(([, row]) => row) });
  });
}

// ---- the map

function showColours() {
  const values = state.cells.obs[$("colour").value] || Array(state.cells.length).fill("all cells");
  state.legend = colouring(values);
  map.setColours(state.legend.colours);
  if (state.legend.entries) $("legend").replaceChildren(...state.legend.entries.map(legendEntry));
  else $("legend").replaceChildren(...legendScale(state.legend));
}

function legendEntry({ label, colour, places }) {
  const dot = make("i");
  dot.style.background = colour;
  const button = make("button", { type: "button" }, dot, make("span", { textContent: label }),
    make("b", { textContent: places.length }));
  button.onclick = (event) => pickMore(places, event.shiftKey);
  return make("li", {}, button);
}

function legendScale({ ends, gradient }) {
  const scale = make("span", { className: "scale" });
  scale.style.background = gradient;
  const marks = make("span", { className: "ends" }, ...ends.map((x) => make("span", { textContent: shown(x) })));
  return [make("li", {}, scale, marks)];
}

function showTip(place, x, y) {
  $("tip").hidden = place === null;
  if (place === null) return;
  const value = state.cells.obs[$("colour").value]?.[place];
  $("tip").textContent = [state.cells.ids[place], value ?? ""].filter((each) => each !== "").join(" · ");
  const right = x > $("canvas").clientWidth / 2;
  $("tip").style.left = right ? "auto" : `${x + 10}px`;
  $("tip").style.right = right ? `${$("canvas").clientWidth - x + 10}px` : "auto";
  $("tip").style.top = `${y + 10}px`;
}

function pickMore(places, add) {
  if (!add) return pick(places);
  const picked = new Set(state.picked);
  if (places.length === 1 && picked.has(places[0])) picked.delete(places[0]);
  else for (const place of places) picked.add(place);
  return pick(picked);
}

function pick(places) {
  state.picked = new Set(places);
  map.setPicked(state.picked);
  const n = state.picked.size;
  const most = model()?.limits.cells_per_request ?? Infinity;
  $("picked").textContent = n ? `${n} cell${n === 1 ? "" : "s"} picked` : "No cell picked";
  $("ask-note").textContent = n === 0 ? "Pick cells on the map first."
    : n > most ? `At most ${most} cells at once.` : "";
  $("run").disabled = n === 0 || n > most;
}

// ---- genes

function addGenes(text) {
  for (const gene of state.cells.resolve(text)) if (!state.genes.includes(gene)) state.genes.push(gene);
  $("gene").value = "";
  showGenes();
}

function showGenes() {
  $("chips").replaceChildren(...state.genes.map((gene) => {
    const name = state.cells.label(gene);
    const button = make("button", { type: "button", textContent: `${name} ✕`, ariaLabel: `Remove ${name}` });
    button.onclick = () => {
      state.genes = state.genes.filter((each) => each !== gene);
      showGenes();
      $("gene").focus();
    };
    return make("li", {}, button);
  }));
}

function suggest() {
  const found = state.cells.suggestions($("gene").value);
  $("gene-list").replaceChildren(...found.map(([id, symbol]) => make("option", { value: symbol || id, label: id })));
}

function showForm() {
  const listed = $("which").value === "list";
  $("genes-box").hidden = $("together-label").hidden = !listed;
  $("quartiles-label").hidden = !["inhibit", "activate"].includes($("kind").value);
}

// ---- perturbation

function run() {
  const listed = $("which").value === "list";
  if (listed && $("gene").value.trim()) addGenes($("gene").value);
  if (listed && !state.genes.length) return showError("Add a gene first, or choose all genes of each cell.");
  const { cells, how } = state;
  const goal = $("goal").value;
  const ask = {
    ...how,
    ...cells.request([...state.picked].sort((a, b) => a - b)),
    kind: $("kind").value,
    quartiles: $("quartiles-label").hidden ? 1 : Number($("quartiles").value),
    perturb: listed ? state.genes : "all",
    together: listed && $("together").checked && state.genes.length > 1,
    start: $("start").value || null,
    goal: goal || null,
    top: $("top").value ? Number($("top").value) : null,
  };
  return during("run", async (signal, tell) => {
    tell("Asking the model …");
    const found = await perturb(ask, signal, tell);
    if (state.cells !== cells) return;
    state.result = { ...found, goal, ask, every: ranked(found.table, (genes) => cells.label(genes), goal) };
    $("least").max = ask.cells.length;
    $("least").value = Math.ceil(FEW_CELLS * ask.cells.length);
    state.sort = ["place", 1];
    showResult();
    $("result-card").scrollIntoView({ block: "nearest" });
  });
}

function showResult() {
  const { every, goal, ask, counts } = state.result;
  const rows = every.filter((row) => row.cells >= Number($("least").value));
  rows.forEach((row, i) => { row.place = i + 1; });
  state.result.rows = rows;
  const n = ask.cells.length;
  const over = n === 1 ? "" : ask.top ? ` Means over the cells in which a gene is among the ${ask.top} strongest.`
    : " Means over the cells.";
  const lost = Object.entries(counts).filter(([name, value]) => value && name !== "perturbations")
    .map(([name, value]) => ` ${value} ${name}.`).join("");
  $("result-note").textContent = `${ask.kind}, ${n} cell${n === 1 ? "" : "s"}, ${counts.perturbations} perturbations.${over}${lost}`
    + (every.length ? "" : " None of the genes is in these cells.")
    + (rows.length < every.length ? ` ${every.length - rows.length} genes in fewer cells are not shown.` : "");
  $("result-card").hidden = false;
  const title = columns(goal)[2].title;
  const caption = make("figcaption", { textContent: `${title}, ${Math.min(BARS, rows.length)} of ${rows.length} genes` });
  $("chart").replaceChildren(...(rows.length ? [bars(rows.slice(0, BARS), title), caption] : []));
  showTable();
}

function showTable(most = ROWS) {
  const { rows, goal } = state.result;
  const [by, way] = state.sort;
  const sorted = [...rows].sort((a, b) => way * (a[by] > b[by] ? 1 : a[by] < b[by] ? -1 : 0));
  const heads = columns(goal).map(({ name, title, number }) => {
    const mark = name === by ? (way > 0 ? " ▲" : " ▼") : "";
    const button = make("button", { type: "button", textContent: title + mark });
    button.onclick = () => {
      state.sort = [name, name === by ? -way : number && name !== "place" ? -1 : 1];
      showTable(most);
      $("table").tHead.rows[0].cells[columns(goal).findIndex((each) => each.name === name)].firstChild.focus();
    };
    const head = make("th", { className: number ? "number" : "", scope: "col" }, button);
    head.setAttribute("aria-sort", name !== by ? "none" : way > 0 ? "ascending" : "descending");
    return head;
  });
  const lines = sorted.slice(0, most).map((row) => make("tr", {}, ...columns(goal).map(({ name, number }) => (
    make("td", { className: number ? "number" : "", textContent: number ? shown(row[name]) : row[name], title: row.genes })))));
  $("table").tHead.replaceChildren(make("tr", {}, ...heads));
  $("table").tBodies[0].replaceChildren(...lines);
  $("more").hidden = rows.length <= most;
  $("more").textContent = `Show all ${rows.length}`;
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function downloadGenes() {
  const { rows, goal } = state.result;
  const names = ["place", "genes", "label", "effect", "similarity", "cells"];
  const titles = names.map((name) => (name === "effect" ? (goal ? `mean shift:${goal}` : "mean 1-similarity") : name));
  download("genes.csv", csv(titles, rows.map((row) => names.map((name) => row[name]))));
}

// ---- what is pressed

$("key").value = getKey();
$("key").onchange = () => {
  setKey($("key").value.trim());
  loadModels();
};
$("model").onchange = () => {
  showModel();
  reload();
};
$("pooling").onchange = $("layer").onchange = reload;
$("example").onclick = () => load("the example", () => `v1/example?model=${encodeURIComponent(model().name)}`, {});
$("file").onchange = () => {
  const [file] = $("file").files;
  if (!file) return;
  const options = new URLSearchParams({ matrix: $("matrix").value.trim() || "X" });
  if ($("gene-ids").value.trim()) options.set("gene_ids", $("gene-ids").value.trim());
  $("file").value = ""; // so that the same file can be chosen again
  load(file.name, () => {
    options.set("draw", model().limits.cells_per_request); // of larger files, so many cells
    return `v1/cells?${options}`;
  }, { method: "POST", file });
};
$("colour").onchange = showColours;
for (const radio of document.querySelectorAll("[name=tool]")) radio.onchange = () => { map.tool = radio.value; };
$("all").onclick = () => pick(map.points.flatMap((point, i) => (point ? [i] : [])));
$("none").onclick = () => pick([]);
$("kind").onchange = $("which").onchange = showForm;
$("gene").oninput = suggest;
$("gene").onkeydown = (event) => {
  if (event.key !== "Enter" && event.key !== ",") return;
  event.preventDefault();
  addGenes($("gene").value);
};
$("ask").onsubmit = (event) => {
  event.preventDefault();
  run();
};
$("least").onchange = showResult;
$("more").onclick = () => showTable(Infinity);
$("csv-genes").onclick = downloadGenes;
$("csv-rows").onclick = () => download("perturbations.csv", csv(...tableRows(state.result.table)));
loadModels();
