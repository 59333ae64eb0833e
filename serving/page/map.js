// The map of cells: a canvas on which points are drawn, found and picked. Knows points and colours; not what they mean.

const RADIUS = 3.6;
const MARGIN = 18;
const NEAR = 14;
const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

export class CellMap {
  // onPick(places, add): cells were picked; onHover(place or null, x, y): what the pointer or the keys are at
  constructor(canvas, { onPick, onHover }) {
    Object.assign(this, { canvas, onPick, onHover, points: [], colours: [], picked: new Set(), tool: "lasso" });
    this.path = null;
    this.cursor = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => this.#drop());
    canvas.addEventListener("pointerleave", () => this.path || onHover(null));
    canvas.addEventListener("blur", () => { this.cursor = null; onHover(null); this.draw(); });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  // points: [x, y] or null for each cell
  setPoints(points) {
    this.points = points;
    const there = points.filter(Boolean);
    this.bounds = [0, 1].map((axis) => there.reduce(
      ([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]));
    this.draw();
  }

  setColours(colours) {
    this.colours = colours;
    this.draw();
  }

  setPicked(picked) {
    this.picked = picked;
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const { width, height } = canvas.getBoundingClientRect();
    if (!width || !this.points.length) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    this.places = this.points.map((point) => point && this.#place(point, width, height));
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    pen.scale(ratio, ratio);
    for (const front of [false, true]) { // picked cells lie over the others
      this.places.forEach((place, i) => {
        if (place && this.picked.has(i) === front) this.#dot(pen, place, i, style);
      });
    }
    if (this.cursor !== null) this.#ring(pen, this.places[this.cursor], style);
    if (this.path) this.#outline(pen, style);
  }

  #dot(pen, [x, y], i, style) {
    const dim = this.picked.size > 0 && !this.picked.has(i);
    pen.globalAlpha = dim ? 0.4 : 0.9;
    pen.beginPath();
    pen.arc(x, y, RADIUS, 0, 2 * Math.PI);
    pen.fillStyle = this.colours[i] || style.color;
    pen.fill();
    pen.globalAlpha = 1;
    if (!this.picked.has(i)) return;
    pen.strokeStyle = style.color;
    pen.lineWidth = 1.1;
    pen.stroke();
  }

  #ring(pen, [x, y], style) {
    pen.beginPath();
    pen.arc(x, y, RADIUS + 5, 0, 2 * Math.PI);
    pen.strokeStyle = style.color;
    pen.lineWidth = 2.5;
    pen.stroke();
  }

  #outline(pen, style) {
    pen.beginPath();
    this.#shape().forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.setLineDash([5, 4]);
    pen.strokeStyle = style.color;
    pen.lineWidth = 1.5;
    pen.stroke();
    pen.setLineDash([]);
  }

  // One scale for both axes, since distances on the map should look the same whichever way they go.
  #place([x, y], width, height) {
    const [[left, right], [low, high]] = this.bounds;
    const scale = Math.min((width - 2 * MARGIN) / (right - left || 1), (height - 2 * MARGIN) / (high - low || 1));
    return [width / 2 + (x - (left + right) / 2) * scale, height / 2 + (y - (low + high) / 2) * scale];
  }

  #shape() {
    if (this.tool === "lasso") return this.path;
    const [[x, y], [u, v]] = [this.path[0], this.path.at(-1)];
    return [[x, y], [u, y], [u, v], [x, v]];
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #nearest([x, y]) {
    let [found, best] = [null, NEAR ** 2];
    this.places?.forEach((place, i) => {
      const distance = place ? (place[0] - x) ** 2 + (place[1] - y) ** 2 : Infinity;
      if (distance < best) [found, best] = [i, distance];
    });
    return found;
  }

  #down(event) {
    if (event.button !== 0 || !this.points.length) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.path = [this.#at(event)];
    this.onHover(null);
  }

  #move(event) {
    const here = this.#at(event);
    if (this.path) {
      this.path.push(here);
      this.draw();
      return;
    }
    const found = this.#nearest(here);
    this.onHover(found, ...(found === null ? [] : this.places[found]));
  }

  #up(event) {
    if (!this.path) return;
    this.path.push(this.#at(event));
    const [[x, y], far] = [this.path[0], ([u, v]) => Math.hypot(u - this.path[0][0], v - this.path[0][1]) > 6];
    let found = [this.#nearest([x, y])].filter((i) => i !== null);
    if (this.path.some(far)) {
      const shape = this.#shape();
      found = [...this.places.keys()].filter((i) => this.places[i] && inside(this.places[i], shape));
    }
    this.#drop();
    this.onPick(found, event.shiftKey);
  }

  #drop() {
    this.path = null;
    this.draw();
  }

  #key(event) {
    if (!this.points.length) return;
    if (event.key === " " && this.cursor !== null) this.onPick([this.cursor], true);
    else if (event.key in DIRECTIONS) this.#step(DIRECTIONS[event.key]);
    else return;
    event.preventDefault();
  }

  // The nearest cell within 45 degrees of a direction.
  #step([dx, dy]) {
    if (this.cursor === null) this.cursor = this.points.findIndex(Boolean);
    else {
      const [x, y] = this.places[this.cursor];
      let [next, best] = [this.cursor, Infinity];
      this.places.forEach((place, i) => {
        if (!place || i === this.cursor) return;
        const [u, v] = [place[0] - x, place[1] - y];
        const along = u * dx + v * dy;
        if (along > 0 && along >= Math.abs(u * dy - v * dx) && Math.hypot(u, v) < best) {
          [next, best] = [i, Math.hypot(u, v)];
        }
      });
      this.cursor = next;
    }
    this.draw();
    this.onHover(this.cursor, ...this.places[this.cursor]);
  }
}

// Whether a point lies in a polygon: a ray to the right crosses its sides an odd number of times.
function inside([x, y], shape) {
  let within = false;
  for (let i = 0, j = shape.length - 1; i < shape.length; j = i, i += 1) {
    const [[a, b], [c, d]] = [shape[i], shape[j]];
    if (b > y !== d > y && x < ((c - a) * (y - b)) / (d - b) + a) within = !within;
  }
  return within;
}
