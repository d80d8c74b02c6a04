// How jobs stand, as badges and rows of dots.

import { make } from "./dom.js";
import { STATUS, outcome } from "./format.js";

/** Whether somebody should look at it. */
export const isRed = (status) => status === "FAILED" || status === "LOST";

/** The status of a job, with its dot, in words of its own or in those given. */
export function badgeElement(job, words = outcome(job)) {
  const badge = make("span", "badge", words);
  badge.dataset.status = job.status;
  return badge;
}

/** A dot for each status, the newest last, as one reads a line of time. */
export function dotsElement(statuses) {
  const words = statuses.map((status) => STATUS[status] ?? status);
  const dots = make("span", "dots");
  dots.title = `${words.join(", ")} (newest first)`;
  for (const status of [...statuses].reverse()) {
    const dot = make("span", "dot");
    dot.dataset.status = status;
    dots.append(dot);
  }
  return make("span", "", dots, make("span", "sr", dots.title));
}
