// In which earlier runs of the workflow a line was seen, in words: for the card of a failed job, and for a picked line.

import { jobPage } from "./addresses.js";
import { $, announce, link } from "./dom.js";
import { ago, count, many } from "./format.js";
import { get } from "./session.js";

//: Further requests while some runs could not be read. In each, the service reads unarchived logs for a quarter of a second.
export const MORE_REQUESTS = 3;
const ENDS = { COMPLETED: "good", FAILED: "failed", CANCELED: "canceled", LOST: "lost" };

let asked = new AbortController();

/** A link to a run, and to its line if the number is known. */
const toRun = (workflow, id, number) => link(`${jobPage(workflow, id)}${number ? `#L${number}` : ""}`, id);

/** A line of the run `id` was `seen` in this many of `lookedAt` runs, by their ends; `first` is the oldest one with it. */
function sentence(workflow, id, seen, lookedAt, first) {
  const ends = Object.keys(ENDS).filter((end) => seen[end]);
  const total = ends.reduce((sum, end) => sum + seen[end], 0);
  const isFirst = total === 1 && first.id === id;
  const others = lookedAt - Number(isFirst);
  if (!others) return [];
  if (!total || isFirst) return [`Not seen in the previous ${others === 1 ? "run" : many(others, "run")}`];
  const how = ends.length === 1 ? `${total === 1 ? "" : "all of them "}${ENDS[ends[0]]}` : ends.map((end) => `${count(seen[end])} ${ENDS[end]}`).join(", ");
  const since = ago(first.started_at);
  return [`Seen in ${count(total)} of the last ${many(lookedAt, "run")}, ${how}; first${since && ` ${since}`} in `, toRun(workflow, first.id, first.sequence_num)];
}

/** What to say about a failure's cause, as elements: since when it occurs, or how often. `body` is a summary. */
export function pastOf({ job, cause, verdict, baseline }) {
  const seen = cause && cause.kind !== "last" ? cause.line.seen : null;
  if (!seen) return [];
  const red = seen.FAILED + (seen.LOST ?? 0);
  const where = baseline?.label ? ` on ${baseline.label.replace("branch=", "")}` : "";
  if (verdict?.kind === "new") return ["New: no earlier run has this line"];
  if (verdict?.kind === "since") return [`Every failure${where} since `, toRun(job.workflow_id, verdict.id), red > 1 ? ` (${many(red, "run")})` : ""];
  const first = { id: seen.first_id, sequence_num: seen.first_sequence_num, started_at: seen.first_started_at };
  const said = sentence(job.workflow_id, job.id, seen, seen.looked_at, first);
  if (verdict?.kind === "recurring") return [said[0].replace(/^Seen in ([^;]*), [^;]*;/, "Flaky: $1;"), ...said.slice(1)];
  if (said.length && seen.without_shapes) said.push(`; ${many(seen.without_shapes, "run")} could not be read`);
  return said;
}

/** Shows the history of the picked line next to its buttons. Shows nothing for several lines, or if the service has no history. */
export async function showSeen(path, workflow, id, picked) {
  // A browser has six connections to the service. Requests for previously picked lines would delay the lines of a jump.
  asked.abort();
  const { signal } = (asked = new AbortController());
  $("seen").hidden = true;
  if (!picked || picked.to > picked.from) return;
  // Moving through many lines by key stays cheap.
  await new Promise((done) => setTimeout(done, 200));
  let body = null;
  for (let requests = 0; !body || (body.looked_at.without_shapes && requests <= MORE_REQUESTS); requests += 1) {
    body = signal.aborted ? null : await get(`${path}/logs/${picked.from}/history`, signal).then((answer) => answer.body, () => null);
    if (signal.aborted || !body) return;
  }
  const { looked_at: looked, seen, first } = body;
  const lookedAt = Object.keys(ENDS).reduce((sum, end) => sum + looked[end], 0);
  const said = sentence(workflow, id, seen, lookedAt, first);
  $("seen").replaceChildren(...said);
  $("seen").hidden = !said.length;
  if (said.length) announce($("seen").textContent);
}
