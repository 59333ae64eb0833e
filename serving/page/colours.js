// From a column about cells to a colour for each, and its legend.

const NAMED = ["#1f77b4", "#e07b00", "#2ca05a", "#d2352f", "#8e63c7", "#8c5a45", "#d966b0", "#6f7f7f", "#a8a31c", "#17a8bd",
  "#5a4fcf", "#c2185b", "#558b2f", "#f2a900", "#00796b", "#795dd1"];
const SCALE = [[108, 66, 168], [59, 100, 170], [33, 145, 140], [94, 201, 98], [240, 215, 37]]; // viridis, seen on dark too
const MISSING = "#9aa5a3";
const MOST_NAMED = 40;
const MOST_GROUPS = 50;

// The column to begin with: the first that groups the cells, else the first scale; "" if there is none but names of cells.
export function firstColumn(obs) {
  const found = Object.entries(obs).map(([name, values]) => {
    const known = values.filter((value) => value !== null);
    return { name, known, different: new Set(known).size };
  });
  const groups = found.find((c) => c.different >= 2 && c.different <= MOST_GROUPS && c.different < c.known.length);
  const scale = found.find((c) => c.different >= 2 && c.known.every((value) => typeof value === "number"));
  const many = found.find((c) => c.different >= 2 && c.different < c.known.length);
  return (groups || scale || many)?.name || "";
}

export function colouring(values) {
  const known = values.filter((value) => value !== null);
  const numbers = known.length > 0 && known.every((value) => typeof value === "number");
  if (numbers && new Set(known).size > 8) return scaled(values, known);
  return named(values);
}

function named(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  const order = [...counts.keys()].filter((value) => value !== null)
    .sort((a, b) => counts.get(b) - counts.get(a) || String(a).localeCompare(String(b)));
  const shown = order.slice(0, MOST_NAMED);
  const colour = new Map(shown.map((value, i) => [value, NAMED[i] || `hsl(${(i * 137.5) % 360} 55% 50%)`]));
  const entries = shown.map((value) => ({ label: String(value), colour: colour.get(value), is: (v) => v === value }));
  const others = values.filter((value) => !colour.has(value)).length;
  if (others) entries.push({ label: "others or none", colour: MISSING, is: (v) => !colour.has(v) });
  for (const entry of entries) entry.places = [...values.keys()].filter((i) => entry.is(values[i]));
  return { colours: values.map((value) => colour.get(value) || MISSING), entries };
}

function scaled(values, known) {
  const [low, high] = known.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
  const colours = values.map((x) => (x === null ? MISSING : mixed((x - low) / (high - low || 1))));
  return { colours, ends: [low, high], gradient: `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(mixed)})` };
}

function mixed(share) {
  const place = share * (SCALE.length - 1);
  const i = Math.min(Math.floor(place), SCALE.length - 2);
  return `rgb(${SCALE[i].map((a, c) => Math.round(a + (SCALE[i + 1][c] - a) * (place - i)))})`;
}
