// The list of a job's steps: their names, durations and statuses. Follows the log.

import { $, fill, make } from "./dom.js";
import { STATUS, ended, span } from "./format.js";
import { isRed, statusIcon } from "./state.js";
import { linkToLine } from "./summary.js";

/** `changed()` is called after the list was drawn. */
export function makeSteps(groups, changed) {
  let job = {};
  let cause = 0;
  let timer = 0;
  let drawn = "";
  const items = new Map();
  const list = { shown: [], schedule, draw, follow, of: (state) => ((job = state), schedule()), mark: (number) => ((cause = number), draw()) };

  function schedule() {
    if (groups.known.size) timer ||= setTimeout(draw, drawn ? 500 : 0);
  }

  function draw() {
    clearTimeout(timer);
    timer = 0;
    if (!groups.known.size) return;
    const { status = "RUNNING", finished_at: finished } = job;
    const isLive = !ended(status);
    // A log can have any number of groups.
    const steps = groups.steps(isLive ? Date.now() : Date.parse(finished)).slice(0, 300);
    const failed = cause || steps.findLast(({ end }) => end === Infinity)?.start;
    list.shown = steps.map((step) => {
      const isLast = step.end === Infinity;
      const isBad = isRed(status) ? step.start <= failed && failed <= step.end : isLast && status !== "COMPLETED";
      return { ...step, status: isBad ? status : "COMPLETED" };
    });
    if (isLive && steps.some(({ end }) => end === Infinity)) schedule();
    const key = JSON.stringify(list.shown.map(({ start, ms, status: of, depth }) => [start, Math.round(ms / 100), of, depth]));
    if (key === drawn) return;
    drawn = key;
    document.body.classList.add("stepped");
    fill($("steps").querySelector("ol"), list.shown.map(itemOf));
    changed();
  }

  /** The element of a step, which is reused while only its duration changes. */
  function itemOf({ start, title, ms, depth, status }) {
    const key = `${start} ${depth} ${status} ${title}`;
    const texts = [make("span", "sr", `${STATUS[status]}: `), make("span", "cut", title), make("span", "num")];
    const item = items.get(key) ?? make("li", depth ? "inner" : "", linkToLine(start, statusIcon(status), ...texts));
    items.set(key, item);
    Object.assign(item.firstChild, { title }).dataset.status = status;
    item.querySelector(".num").textContent = ms >= 0 ? span(ms) : "";
    return item;
  }

  /** Marks the step of a line in view. */
  function follow(number) {
    const current = list.shown.findLast(({ start, end }) => start <= number && number <= end);
    for (const step of $("steps").querySelectorAll("a")) {
      const isCurrent = Number(step.dataset.number) === current?.start;
      if (isCurrent === (step.ariaCurrent === "true")) continue;
      step.ariaCurrent = isCurrent ? "true" : null;
      if (isCurrent) step.scrollIntoView({ block: "nearest" });
    }
  }

  return list;
}
