// The labels of a job. They are untrusted, because the job's author chooses them.

import { workflowPage } from "./addresses.js";
import { make, opener } from "./dom.js";
import { icon } from "./icons.js";

const labelText = ([key, value]) => `${key}=${value}`;

/** The CI system's address in the label `url`, or null if there is none that a browser should open. */
export function ciAddress({ url }) {
  const address = url !== undefined && URL.canParse(url) ? new URL(url) : null;
  return address && ["http:", "https:"].includes(address.protocol) ? address.href : null;
}

export function chip(label, href, ...more) {
  const [key, value] = label;
  const name = key === "branch" ? [icon("branch"), make("span", "sr", "branch")] : [make("span", "quiet", key)];
  return make("a", { href, className: "chip", title: labelText(label) }, ...name, " ", make("bdi", "", value), ...more);
}

export const filterChip = (workflow, label) => chip(label, `${workflowPage(workflow)}?${new URLSearchParams({ label: labelText(label) })}`);

export const commitElement = (commit) => make("code", { className: "commit", title: `commit ${commit}` }, commit.slice(0, 7));

export function labelElements(workflow, { branch, commit, url, ...others }) {
  const rest = Object.entries({ ...others, ...(url !== undefined && !ciAddress({ url }) && { url }), ...(commit && { commit }) });
  const shown = [...(branch ? [filterChip(workflow, ["branch", branch])] : []), ...(commit ? [commitElement(commit)] : [])];
  if (!rest.length) return shown;
  const box = make("div", { id: "morelabels", className: "menu" }, ...rest.map((label) => filterChip(workflow, label)));
  return [...shown, opener(box, { className: "plain" }, "Labels ▾"), box];
}
