// Cells of /v1/cells or /v1/example, and requests about some of them. Knows arrays; neither the page nor the network.

export class Cells {
  constructor({ about, genes, symbols, cells, obs, obs_left_out: leftOut }) {
    Object.assign(this, { about, genes, rows: cells, obs, leftOut });
    this.symbols = symbols || genes;
    this.ids = unique(cells.map((cell) => cell.id));
    this.symbolOf = new Map(genes.map((gene, i) => [plainId(gene), this.symbols[i]]));
    this.geneOf = new Map();
    genes.forEach((gene, i) => {
      for (const name of [this.symbols[i], gene]) if (name) this.geneOf.set(name.toUpperCase(), gene);
    });
  }

  get length() {
    return this.rows.length;
  }

  // Name for people of a gene, or of several that were perturbed together.
  label(genes) {
    return genes.split("|").map((name) => this.symbolOf.get(plainId(name)) || name).join(" + ");
  }

  // Genes as the file names them, of what somebody typed.
  resolve(text) {
    const typed = text.split(/[\s,;]+/).filter(Boolean);
    return typed.map((name) => this.geneOf.get(name.toUpperCase()) || name);
  }

  suggestions(text, most = 20) {
    const start = text.trim().toUpperCase();
    const found = [];
    for (let i = 0; i < this.genes.length && found.length < most && start; i += 1) {
      const names = [this.genes[i], this.symbols[i]];
      if (names.some((name) => name.toUpperCase().startsWith(start))) found.push(names);
    }
    return found;
  }

  // The body of a request about some cells, with the genes that these have.
  request(places) {
    const genes = [];
    const of = new Map();
    const place = (column) => {
      if (!of.has(column)) {
        of.set(column, genes.length);
        genes.push(this.genes[column]);
      }
      return of.get(column);
    };
    const cells = places.map((i) => {
      const { indices, counts } = this.rows[i];
      return { id: this.ids[i], indices: indices.map(place), counts };
    });
    return { genes, cells };
  }
}

const plainId = (gene) => gene.toUpperCase().replace(/^(ENS[A-Z]*G\d{11})\.\d+$/, "$1");

function unique(ids) {
  const seen = new Map();
  return ids.map((id) => {
    const times = (seen.get(id) || 0) + 1;
    seen.set(id, times);
    return times === 1 ? id : `${id} (${times})`;
  });
}
