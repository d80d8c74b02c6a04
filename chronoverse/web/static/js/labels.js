// The labels of a job, as chips. Whoever writes the job chooses them, so they may say anything.

import { workflowPage } from "./addresses.js";
import { link, make } from "./dom.js";

/** A label as the address of a workflow's page has it. */
export const labelText = ([key, value]) => `${key}=${value}`;

/** The address that a `url` label names, or null for any other label, and for what no browser should open. */
function webAddress([key, value]) {
  const address = key === "url" && URL.canParse(value) ? new URL(value) : null;
  return address && ["http:", "https:"].includes(address.protocol) ? address.href : null;
}

/** A chip with a label. It leads to `href`. */
export function chip(label, href, ...more) {
  const [key, value] = label;
  const element = link(href, make("span", "quiet", key), " ", make("bdi", "", value), ...more);
  element.className = "chip";
  element.title = labelText(label);
  return element;
}

/** The labels of a job. Each leads to the jobs of its workflow that have it, and a `url` to where it says. */
export function labelChips(workflow, labels = {}) {
  return Object.entries(labels).map((label) => {
    const address = webAddress(label);
    const element = chip(label, address ?? `${workflowPage(workflow)}?${new URLSearchParams({ label: labelText(label) })}`);
    if (address) Object.assign(element, { target: "_blank", rel: "noopener noreferrer nofollow" });
    return element;
  });
}
