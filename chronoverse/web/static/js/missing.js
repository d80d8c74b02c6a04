// What the page of a job says as long as there is no such job: the way to others, and those with a name like it.

import { jobPage, workflowPage } from "./addresses.js";
import { $, link, make } from "./dom.js";
import { nearIds } from "./near.js";
import { get } from "./session.js";

/** Shows it in the notice, which the page clears when the job begins. */
export async function showMissing(workflow, name) {
  const waits = "It appears here when it starts.";
  const parts = [`No job ${name} in ${workflow}. `, link(workflowPage(workflow), "Its jobs"), ` · ${waits}`];
  $("notice").replaceChildren(...parts);
  $("notice").hidden = false;
  const shown = $("notice").textContent;
  const jobs = await get(`/workflows/${workflow}/jobs?limit=200`).then(({ body }) => body.jobs, () => []);
  const near = nearIds(name, jobs.map(({ id }) => id));
  // The job may have begun meanwhile.
  if (!near.length || $("notice").textContent !== shown) return;
  const links = near.flatMap((id, at) => [at ? " or " : "", link(jobPage(workflow, id), id)]);
  $("notice").append(make("br"), "Did you mean ", ...links, "?");
}
