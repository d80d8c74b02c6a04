// In which runs of the workflow a line was seen before, in words: below the head of a failed job, and for a picked line.

import { jobPage } from "./addresses.js";
import { $, announce, link } from "./dom.js";
import { ago, count } from "./format.js";
import { get } from "./session.js";

//: Milliseconds for which a line must stay picked before the service is asked, so that keys may go through many lines.
const CALM_MS = 200;
const DAY_MS = 86_400_000;
//: Further requests while runs could not be read. The service reads logs that are not archived for a quarter of a second in each.
export const MORE_REQUESTS = 3;
//: How each end of a run is called here.
const ENDS = { COMPLETED: "good", FAILED: "failed", CANCELED: "cancelled", LOST: "lost" };

let asked = 0;

const runs = (number) => `${count(number)} ${number === 1 ? "run" : "runs"}`;

function when(iso) {
  const days = Math.floor((Date.now() - Date.parse(iso)) / DAY_MS);
  return days >= 1 ? `${count(days)} ${days === 1 ? "day" : "days"} ago` : ago(iso);
}

/** A link to a run, and to its line if the number is known. */
const toRun = (workflow, id, number) => link(`${jobPage(workflow, id)}${number ? `#L${number}` : ""}`, id);

/**
 * What is said of a line of the run `id`, as elements: `seen` counts the runs that have such a line by their ends,
 * `lookedAt` is how many runs were looked at, and `first` the oldest that has one. Both include the run itself once it has ended.
 */
export function sentence(workflow, id, seen, lookedAt, first) {
  const ends = Object.keys(ENDS).filter((end) => seen[end]);
  const total = ends.reduce((sum, end) => sum + seen[end], 0);
  const isFirst = total === 1 && first.id === id;
  const others = lookedAt - Number(isFirst);
  if (!others) return [];
  if (!total || isFirst) return [`Not seen in the last ${others === 1 ? "run" : runs(others)}`];
  const how = ends.length === 1 ? `${total === 1 ? "" : "all of them "}${ENDS[ends[0]]}` : ends.map((end) => `${count(seen[end])} ${ENDS[end]}`).join(", ");
  const since = when(first.started_at);
  return [`Seen in ${count(total)} of the last ${runs(lookedAt)}, ${how}; first ${since}${since ? " " : ""}in `, toRun(workflow, first.id, first.sequence_num)];
}

/** Says at the top of a failed job where the line that says why was seen before. `body` is a summary. */
export function showPast({ job, cause, verdict }) {
  const seen = cause && cause.kind !== "last" ? cause.line.seen : null;
  const first = seen && { id: seen.first_id, sequence_num: seen.first_sequence_num, started_at: seen.first_started_at };
  const said = seen ? sentence(job.workflow_id, job.id, seen, seen.looked_at, first) : [];
  if (verdict?.kind === "since") said.push(". Every failure since ", toRun(job.workflow_id, verdict.id));
  if (verdict?.kind === "recurring") said.push(". Flaky: passing runs in between");
  if (said.length && !verdict && seen.without_shapes) said.push(`; ${runs(seen.without_shapes)} could not be read`);
  $("past").replaceChildren(...said);
  $("past").hidden = !said.length;
}

/** Says it of the picked line, beside its buttons. Nothing of several lines, or when the service does not know. */
export async function showSeen(path, workflow, id, picked) {
  const mine = (asked += 1);
  $("seen").hidden = true;
  if (!picked || picked.to > picked.from) return;
  await new Promise((done) => setTimeout(done, CALM_MS));
  if (mine !== asked) return;
  let body = null;
  for (let requests = 0; !body || (body.looked_at.without_shapes && requests <= MORE_REQUESTS); requests += 1) {
    body = await get(`${path}/logs/${picked.from}/history`).then((answer) => answer.body, () => null);
    if (mine !== asked || !body) return;
  }
  const { looked_at: looked, seen, first } = body;
  const lookedAt = Object.keys(ENDS).reduce((sum, end) => sum + looked[end], 0);
  const said = sentence(workflow, id, seen, lookedAt, first);
  $("seen").replaceChildren(...said);
  $("seen").hidden = !said.length;
  if (said.length) announce($("seen").textContent);
}
