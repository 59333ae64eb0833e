// Ranked bars of the strongest genes, as SVG.
import { shown } from "./ranking.js";

const [WIDTH, LINE, LEFT, RIGHT, TOP] = [460, 20, 134, 58, 6];
const MOST_LABEL = 16;

function node(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function bars(rows, title) {
  const height = TOP + rows.length * LINE + 4;
  const chart = node("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `Bars: ${title}` });
  const effects = rows.map((row) => row.effect);
  const [low, high] = [Math.min(0, ...effects), Math.max(0, ...effects)];
  const scale = (WIDTH - LEFT - RIGHT) / (high - low || 1);
  const x = (value) => LEFT + (value - low) * scale;
  rows.forEach((row, i) => {
    const y = TOP + i * LINE;
    const label = row.label.length > MOST_LABEL ? `${row.label.slice(0, MOST_LABEL - 1)}…` : row.label;
    const line = node("g", {});
    line.append(
      node("title", {}, `${row.label}: ${shown(row.effect)}`),
      node("text", { x: LEFT - 8, y: y + 14, "text-anchor": "end" }, label),
      node("rect", { x: Math.min(x(0), x(row.effect)), y: y + 3, rx: 2, height: LINE - 6,
        width: Math.max(1, Math.abs(row.effect) * scale), class: row.effect < 0 ? "down" : "up" }),
      node("text", { x: Math.max(x(0), x(row.effect)) + 5, y: y + 14, class: "tick" }, shown(row.effect)),
    );
    chart.append(line);
  });
  chart.append(node("line", { x1: x(0), x2: x(0), y1: TOP, y2: height, class: "axis" }));
  return chart;
}
