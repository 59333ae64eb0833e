// Asks the server, as any client does; errors come out as `ApiError` with words for people. Knows nothing of the page.

const PLAIN = {
  413: "That is more than the server takes at once.",
  429: "The server has too much to do. Try again in a moment.",
  503: "The model is not ready. Try again in a moment.",
  504: "The server took too long. Try fewer cells or fewer genes.",
};
const NO_KEY = "This server asks for an access key. Type it at the top right.";
const LIMITS = {
  cells_per_request: "This server takes fewer cells at once",
  genes_per_cell: "This server takes fewer genes a cell",
  genes_per_request: "This server takes files with fewer genes",
  body_mb: "The file is larger than this server takes",
  response_mb: "The answer would be larger than this server sends",
  job_tokens: "This is more work than this server takes on: pick fewer cells or genes",
};
const KEY = "cellray-key"; // lives as long as this tab
const TRIES = 6;
const MOST_WAIT_S = 30;

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const getKey = () => sessionStorage.getItem(KEY) || "";
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("", "AbortError"));
    });
  });
}

export async function problem(answer) {
  let told = null;
  try {
    told = (await answer.json()).error;
  } catch {
    // an answer of something between us and the server
  }
  const plain = PLAIN[answer.status] || (told ? "" : `The server answered ${answer.status}.`);
  const limit = told?.limit && LIMITS[told.limit.name] ? `${LIMITS[told.limit.name]} (${told.limit.name}: ${told.limit.value}).` : "";
  const message = told?.message ? told.message[0].toUpperCase() + told.message.slice(1) : "";
  const text = limit || (told?.code === "no_key" ? NO_KEY : [plain, message].filter(Boolean).join(" "));
  return new ApiError(text, answer.status);
}

// Returns { status, body }; waits and asks again where the server says when (429, 503).
export async function call(path, { method = "GET", json, file, signal } = {}) {
  const headers = { accept: "application/json" };
  if (getKey()) headers.authorization = `Bearer ${getKey()}`;
  if (json !== undefined) headers["content-type"] = "application/json";
  if (file !== undefined) headers["content-type"] = "application/x-hdf5";
  const body = json !== undefined ? JSON.stringify(json) : file;
  for (let attempt = 1; ; attempt += 1) {
    let answer;
    try {
      answer = await fetch(path, { method, headers, body, signal, credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer. Is it running?");
    }
    const wait = Number(answer.headers.get("retry-after"));
    const again = [429, 503].includes(answer.status) && wait > 0 && wait <= MOST_WAIT_S && attempt < TRIES;
    if (!again && !answer.ok) throw await problem(answer);
    if (!again) return { status: answer.status, body: await answer.json() };
    await sleep(wait * (1 + Math.random() / 4), signal);
  }
}
