// The two questions of the page to the server: embeddings of many cells in parts, and a perturbation that may be a job.
import { ApiError, call, sleep } from "./api.js";

const AT_ONCE = 2;
const [FIRST_LOOK_S, LONGEST_LOOK_S] = [0.3, 2];

// Returns { embeddings, notes } of all cells, asked in parts of at most `most` cells.
export async function embed(cells, how, most, signal, tell) {
  const embeddings = Array(cells.length);
  const notes = Array(cells.length);
  let [next, done, failed] = [0, 0, false];
  tell(0);
  const ask = async () => {
    while (next < cells.length && !failed) {
      const start = next;
      next = Math.min(cells.length, start + most);
      const places = Array.from({ length: next - start }, (_, i) => start + i);
      const json = { ...how, ...cells.request(places) };
      const { body } = await call("v1/embeddings", { method: "POST", json, signal });
      places.forEach((place, i) => {
        embeddings[place] = body.embeddings[i];
        notes[place] = body.notes[i];
      });
      done += places.length;
      tell(done);
    }
  };
  const asked = Array.from({ length: AT_ONCE }, () => ask().catch((error) => {
    failed = true;
    throw error;
  }));
  await Promise.all(asked);
  return { embeddings, notes };
}

// Returns the answer of a perturbation, waiting for its job if it becomes one; aborting cancels the job.
export async function perturb(ask, signal, tell) {
  const asked = await call("v1/perturbations", { method: "POST", json: ask, signal });
  if (asked.status !== 202) return asked.body;
  const job = `v1/jobs/${asked.body.id}`;
  try {
    await finished(job, asked.body, signal, tell);
    const { body } = await call(`${job}/result`, { signal });
    return body;
  } finally {
    call(job, { method: "DELETE" }).catch(() => {}); // stops it, or drops its result: nobody will ask for it
  }
}

async function finished(job, status, signal, tell) {
  let [told, look] = [status, FIRST_LOOK_S];
  while (told.state !== "done") {
    if (told.state === "failed") throw new ApiError(`The job failed: ${told.error}`);
    if (told.state === "cancelled") throw new ApiError("The job was cancelled.");
    const left = told.seconds_left === null ? "" : `, about ${Math.ceil(told.seconds_left)} s left`;
    tell(told.state === "queued" ? "Waiting for other jobs" : `${told.done} of ${told.total} perturbations${left}`, told.progress);
    await sleep(look, signal);
    look = Math.min(LONGEST_LOOK_S, look * 1.5);
    told = (await call(job, { signal })).body;
  }
}
