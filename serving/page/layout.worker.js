// Lays embeddings out in two dimensions, beside the page so that it stays quick: UMAP, or PCA for few cells.
/* global UMAP */
importScripts("vendor/umap-js.min.js");

const NEIGHBOURS = 15;
const FEW = 12; // UMAP says nothing of fewer cells
const MIN_DIST = 0.3;
const SHOW_EVERY = 15;

// Mulberry32: the same embeddings give the same map.
function seeded(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function neighbours(rows, k) {
  const indices = [];
  const distances = [];
  for (const row of rows) {
    const distance = Float64Array.from(rows, (other) => {
      let sum = 0;
      for (let c = 0; c < row.length; c += 1) sum += (row[c] - other[c]) ** 2;
      return Math.sqrt(sum);
    });
    const order = Array.from(distance.keys()).sort((a, b) => distance[a] - distance[b]).slice(0, k);
    indices.push(order);
    distances.push(order.map((j) => distance[j]));
  }
  return [indices, distances];
}

// The two leading principal components, by power iteration on the centred rows.
function pca(rows, random) {
  const width = rows[0].length;
  const mean = Array.from({ length: width }, (_, c) => rows.reduce((sum, row) => sum + row[c], 0) / rows.length);
  const centred = rows.map((row) => Float64Array.from(row, (x, c) => x - mean[c]));
  const dot = (a, b) => a.reduce((sum, x, c) => sum + x * b[c], 0);
  const axes = [];
  for (let axis = 0; axis < 2; axis += 1) {
    let v = Float64Array.from({ length: width }, () => random() - 0.5);
    for (let round = 0; round < 60; round += 1) {
      const next = new Float64Array(width);
      for (const row of centred) {
        const along = dot(row, v);
        for (let c = 0; c < width; c += 1) next[c] += along * row[c];
      }
      for (const other of axes) {
        const along = dot(next, other);
        for (let c = 0; c < width; c += 1) next[c] -= along * other[c];
      }
      const length = Math.sqrt(dot(next, next));
      if (length < 1e-12) break; // no more variance
      v = next.map((x) => x / length);
    }
    axes.push(v);
  }
  return centred.map((row) => axes.map((v) => dot(row, v)));
}

self.onmessage = ({ data: { rows, key } }) => {
  const random = seeded(1);
  if (rows.length < FEW) {
    postMessage({ key, points: pca(rows, random), done: 1, kind: "PCA of the embeddings" });
    return;
  }
  const nNeighbors = Math.min(NEIGHBOURS, rows.length - 1);
  const umap = new UMAP.UMAP({ nNeighbors, minDist: MIN_DIST, random });
  umap.setPrecomputedKNN(...neighbours(rows, nNeighbors));
  const epochs = umap.initializeFit(rows);
  for (let epoch = 1; epoch <= epochs; epoch += 1) {
    umap.step();
    if (epoch % SHOW_EVERY === 0 || epoch === epochs) {
      postMessage({ key, points: umap.getEmbedding(), done: epoch / epochs, kind: "UMAP of the embeddings" });
    }
  }
};
