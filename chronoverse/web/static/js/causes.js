// Why red jobs failed, for the lists. Each cause is requested once, with limited concurrency.

import { causeText } from "./summary.js";
import { get, persist } from "./session.js";

//: Maximum number of pending requests, and of concurrent ones.
const MOST = 20;
const AT_ONCE = 4;

const found = new Map();
const waiting = [];
let asked = 0;

/**
 * The cached result of `ask()`. Until `told()` is called: the result of an older `version`, or undefined. The pending
 * request with the lowest `costs` is sent first.
 */
export function cached(key, ask, told, costs = 0, version = "") {
  const known = found.get(key);
  if (known?.version === version || waiting.length + asked >= MOST || waiting.some((each) => each.key === key)) return known?.value;
  waiting.push({ key, ask, told, costs, version });
  queueMicrotask(next);
  return known?.value;
}

async function next() {
  if (asked >= AT_ONCE || !waiting.length) return;
  const { key, ask, told, version } = waiting.sort((a, b) => a.costs - b.costs).shift();
  asked += 1;
  found.set(key, { version, value: found.get(key)?.value });
  found.set(key, { version, value: await persist(ask).catch(() => undefined) });
  asked -= 1;
  told();
  next();
}

//: A cause is requested again after this time: its line may have been redacted. Scanning a long log takes seconds.
const AGAIN_MS = 3_600_000;

/** Why a red job with that many lines failed, in one line; undefined while it is unknown. Needs only a short summary. */
export const causeOf = (workflow, job, told, lines) =>
  cached(`${workflow}/${job}`, async () => causeText((await get(`/workflows/${workflow}/jobs/${job}/summary?bytes=2000`)).body), told, lines, Math.floor(performance.now() / AGAIN_MS));

/** The last ten jobs of a workflow. `version` changes whenever they do. */
export const lastTen = (workflow, version, told) =>
  cached(workflow, async () => (await get(`/workflows/${workflow}/jobs?limit=10`)).body.jobs, told, 0, version);
