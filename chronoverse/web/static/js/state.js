// Job statuses, as badges and rows of dots. Each status has its own shape, for readers who cannot distinguish the colours.

import { make } from "./dom.js";
import { STATUS, outcome, span, tookMs } from "./format.js";
import { icon } from "./icons.js";

export const isRed = (status) => status === "FAILED" || status === "LOST";

export function statusIcon(status, name = status in STATUS ? status : "PENDING") {
  const svg = icon(name);
  svg.dataset.status = status;
  return svg;
}

/** How a job ended, or its status. The style sheet hides the exit code where space is limited. */
export function outcomeElement(job) {
  const [word, exit] = outcome(job).split(" · ");
  return make("span", "", word, ...(exit ? [make("span", "exit", ` · ${exit}`)] : []));
}

export const badgeElement = (job) =>
  make("span", { className: "badge", data: { status: job.status } }, statusIcon(job.status), outcomeElement(job));

/** An icon for each run, newest last, as on a timeline. A run `{status, id}` links to `addressOf(id)` once its id is known. */
export function dotsElement(runs, addressOf) {
  const dots = make("div", "dots");
  for (const run of [...runs].reverse()) {
    const [{ status, id }, took] = [run, tookMs(run)];
    const shape = statusIcon(status, status === "COMPLETED" ? "good" : status);
    const title = `${id ? `${id}: ` : ""}${outcome(run)}${took === null ? "" : `, ${span(took)}`}`;
    const address = id ? { href: addressOf(id) } : {};
    dots.append(make(id ? "a" : "span", { title, data: { status }, ...address }, shape, make("span", "sr", `${title} `)));
  }
  return dots;
}
