// The labels of a job. They are untrusted, because the job's author chooses them.

import { workflowPage } from "./addresses.js";
import { button, link, make } from "./dom.js";
import { icon } from "./icons.js";

/** A label as in the address of a workflow's page. */
const labelText = ([key, value]) => `${key}=${value}`;

/** The CI system's address in the label `url`, or null if there is none that a browser should open. */
export function ciAddress({ url }) {
  const address = url !== undefined && URL.canParse(url) ? new URL(url) : null;
  return address && ["http:", "https:"].includes(address.protocol) ? address.href : null;
}

export function chip(label, href, ...more) {
  const [key, value] = label;
  const name = key === "branch" ? [icon("branch"), make("span", "sr", "branch")] : [make("span", "quiet", key)];
  const element = link(href, ...name, " ", make("bdi", "", value), ...more);
  element.className = "chip";
  element.title = labelText(label);
  return element;
}

export const filterChip = (workflow, label) => chip(label, `${workflowPage(workflow)}?${new URLSearchParams({ label: labelText(label) })}`);

export function commitElement(commit) {
  const code = make("code", "commit", commit.slice(0, 7));
  code.title = `commit ${commit}`;
  return code;
}

/** The labels for a job's header: the branch and the commit, and a menu with the others. */
export function labelElements(workflow, { branch, commit, url, ...others }) {
  const rest = Object.entries({ ...others, ...(url !== undefined && !ciAddress({ url }) && { url }), ...(commit && { commit }) });
  const shown = [...(branch ? [filterChip(workflow, ["branch", branch])] : []), ...(commit ? [commitElement(commit)] : [])];
  if (!rest.length) return shown;
  const box = make("div", "menu", ...rest.map((label) => filterChip(workflow, label)));
  Object.assign(box, { id: "morelabels", popover: "auto" });
  const opens = Object.assign(button(() => {}, "Labels ▾"), { className: "plain" });
  opens.setAttribute("popovertarget", box.id);
  return [...shown, opens, box];
}
