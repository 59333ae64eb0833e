// From the table of an answer to genes by effect, and to CSV. Knows numbers; not the page.

// Returns { genes, label, effect, similarity, cells } of all genes, the strongest first.
export function ranked(table, label, goal) {
  const shift = goal ? table[`shift:${goal}`] : null;
  const groups = new Map();
  table.genes.forEach((genes, i) => {
    const group = groups.get(genes) || { genes, effect: 0, similarity: 0, cells: 0 };
    group.effect += shift ? shift[i] : 1 - table.similarity[i];
    group.similarity += table.similarity[i];
    group.cells += 1;
    groups.set(genes, group);
  });
  const rows = [...groups.values()].map(({ genes, effect, similarity, cells }) => (
    { genes, label: label(genes), effect: effect / cells, similarity: similarity / cells, cells }));
  rows.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect));
  return rows;
}

export function columns(goal) {
  return [
    { name: "place", title: "#", number: true },
    { name: "label", title: "Gene" },
    { name: "effect", title: goal ? `Shift to ${goal}` : "1 − similarity", number: true },
    { name: "similarity", title: "Similarity", number: true },
    { name: "cells", title: "Cells", number: true },
  ];
}

export const shown = (value) => (Number.isInteger(value) ? String(value) : Number(value).toPrecision(3));

export function csv(names, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [names, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function tableRows(table) {
  const names = Object.keys(table);
  const length = names.length ? table[names[0]].length : 0;
  return [names, Array.from({ length }, (_, i) => names.map((name) => table[name][i]))];
}
