// The list of a job's steps: their names, durations and statuses. Follows the log.

import { $, fill, make } from "./dom.js";
import { STATUS, ended, span } from "./format.js";
import { statusIcon } from "./state.js";
import { linkToLine } from "./summary.js";

export class Steps {
  shown = [];
  #groups;
  #job = {};
  #cause = 0;
  #timer = 0;
  #drawn = "";
  #items = new Map();
  #changed;

  constructor(groups, changed) {
    this.#groups = groups;
    this.#changed = changed;
  }

  of(job) {
    this.#job = job;
    this.changed();
  }

  /** Marks the step that contains the cause of a failure. */
  set cause(number) {
    this.#cause = number;
    this.draw();
  }

  changed() {
    if (this.#groups.known.size) this.#timer ||= setTimeout(() => this.draw(), this.#drawn ? 500 : 0);
  }

  draw() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (!this.#groups.known.size) return;
    const { status = "RUNNING", finished_at: finished } = this.#job;
    const isLive = !ended(status);
    // A log can have any number of groups.
    const steps = this.#groups.steps(isLive ? Date.now() : Date.parse(finished)).slice(0, 300);
    const failed = this.#cause || steps.findLast(({ end }) => end === Infinity)?.start;
    this.shown = steps.map((step) => {
      const isLast = step.end === Infinity;
      const isBad = status === "FAILED" || status === "LOST" ? step.start <= failed && failed <= step.end : isLast && status !== "COMPLETED";
      return { ...step, status: isBad ? status : "COMPLETED" };
    });
    if (isLive && this.shown.some(({ end }) => end === Infinity)) this.changed();
    const key = JSON.stringify(this.shown.map(({ start, ms, status: of, depth }) => [start, Math.round(ms / 100), of, depth]));
    if (key === this.#drawn) return;
    this.#drawn = key;
    document.body.classList.add("stepped");
    fill($("steps").querySelector("ol"), this.shown.map((step) => this.#item(step)));
    this.#changed();
  }

  /** The element of a step, which is reused while only its duration changes. */
  #item({ start, title, ms, depth, status }) {
    const key = `${start} ${depth} ${status} ${title}`;
    const item = this.#items.get(key) ?? make("li", depth ? "inner" : "", linkToLine(start, statusIcon(status), make("span", "sr", `${STATUS[status]}: `), make("span", "cut", title), make("span", "num")));
    this.#items.set(key, item);
    Object.assign(item.firstChild, { title }).dataset.status = status;
    item.querySelector(".num").textContent = ms >= 0 ? span(ms) : "";
    return item;
  }

  /** Marks the step of a line in view. */
  follow(number) {
    const current = this.shown.findLast(({ start, end }) => start <= number && number <= end);
    for (const step of $("steps").querySelectorAll("a")) {
      const isCurrent = Number(step.dataset.number) === current?.start;
      if (isCurrent === (step.ariaCurrent === "true")) continue;
      step.ariaCurrent = isCurrent ? "true" : null;
      if (isCurrent) step.scrollIntoView({ block: "nearest" });
    }
  }
}
