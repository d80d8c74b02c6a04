// What the lists say of red jobs: why they failed. Each is asked for once, and only a few at the same time.

import { causeText } from "./summary.js";
import { get, persist } from "./session.js";

//: Bytes of a summary of which only the cause is shown.
const BYTES = 2000;
//: Requests that wait or are on their way, and those on their way.
const MOST = 20;
const AT_ONCE = 4;

const found = new Map();
const waiting = [];
let asked = 0;

/**
 * What `ask()` gives for a key, which is asked for once. Until it is known, and when it cannot be had, it is undefined; `told()` is
 * called when it is known. Of what is wanted at the same time, what `costs` least is asked for first.
 */
export function cached(key, ask, told, costs = 0) {
  if (found.has(key)) return found.get(key);
  if (waiting.length + asked >= MOST || waiting.some((each) => each.key === key)) return undefined;
  waiting.push({ key, ask, told, costs });
  queueMicrotask(next);
  return undefined;
}

async function next() {
  if (asked >= AT_ONCE || !waiting.length) return;
  const { key, ask, told } = waiting.sort((a, b) => a.costs - b.costs).shift();
  asked += 1;
  found.set(key, undefined);
  found.set(key, await persist(ask).catch(() => undefined));
  asked -= 1;
  told();
  next();
}

/** Why a red job of so many lines failed, in one line, or undefined while that is not known. */
export const causeOf = (workflow, job, told, lines) =>
  cached(`${workflow}/${job}`, async () => causeText((await get(`/workflows/${workflow}/jobs/${job}/summary?bytes=${BYTES}`)).body), told, lines);

/** The last ten jobs of a workflow. `version` is what changes with them. */
export const lastTen = (workflow, version, told) =>
  cached(`${workflow} ${version}`, async () => (await get(`/workflows/${workflow}/jobs?limit=10`)).body.jobs, told);
