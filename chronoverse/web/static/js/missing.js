// The notice for a job that does not exist (yet), or cannot be read: a link to all jobs, and jobs with similar names.

import { signedInAs } from "./account.js";
import { jobPage, workflowPage } from "./addresses.js";
import { $, link, make, notice } from "./dom.js";
import { get } from "./session.js";

/** Why there is no log, as an element with a link to all jobs, and what to know besides. */
export const whyMissing = (workflow, text, more = "") => make("span", "", `${text.replace(/\.$/, "")}. `, link(workflowPage(workflow), "All jobs"), ` · ${more}${signedInAs()}`);

export async function showMissing(workflow, name) {
  notice(whyMissing(workflow, `No job ${name} in ${workflow}`, "It appears here when it starts. "));
  const shown = $("notice").textContent;
  const jobs = await get(`/workflows/${workflow}/jobs?limit=200`).then(({ body }) => body.jobs, () => []);
  const near = nearIds(name, jobs.map(({ id }) => id));
  // The job may have started in the meantime.
  if (!near.length || $("notice").textContent !== shown) return;
  const links = near.flatMap((id, at) => [at ? " or " : "", link(jobPage(workflow, id), id)]);
  $("notice").append(make("br"), "Did you mean ", ...links, "?");
}

/** The common prefix and suffix of both ids, as a fraction of the longer one. */
function nearness(wanted, id) {
  const [a, b] = [wanted.toLowerCase(), id.toLowerCase()];
  const shorter = Math.min(a.length, b.length);
  let start = 0;
  while (start < shorter && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < shorter - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const share = (start + end) / Math.max(a.length, b.length);
  return shorter >= 3 && (a.includes(b) || b.includes(a)) ? Math.max(share, 0.5) : share;
}

/** Up to three similar `ids`, most similar first. The command line finds the same ones. */
export function nearIds(wanted, ids) {
  const all = ids.map((id) => ({ id, share: nearness(wanted, id) })).filter(({ share }) => share >= 0.5);
  return all.sort((a, b) => b.share - a.share).slice(0, 3).map(({ id }) => id);
}
