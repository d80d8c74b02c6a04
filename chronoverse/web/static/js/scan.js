// Finds all lines that match, are new, or belong to one stream, by paging through the service's results.

import { againstLabels } from "./addresses.js";
import { countBefore } from "./ranges.js";
import { get, persist, Refused } from "./session.js";
import { truncate } from "./text.js";

const PAGE = 1000;
//: Matches after which a scan pauses until the reader continues it or scrolls near the last match.
const PAUSE_AFTER = 20_000;
const AGAIN_MS = 500;

/** The parameters of a request for lines by `criteria`: `{q, regex, stream}` or `{new: true, stream}`; each optional. */
export function query(criteria, more) {
  const parameters = { ...more };
  if (criteria.q) parameters.q = criteria.q;
  if (criteria.q && criteria.regex) parameters.regex = "true";
  if (criteria.stream) parameters.stream = criteria.stream;
  // The run to compare with, if the address names one; otherwise the labels of the runs.
  const against = criteria.new && new URLSearchParams(location.search).get("against");
  if (against) parameters.against = against;
  return new URLSearchParams([...Object.entries(parameters), ...(criteria.new && !against ? againstLabels() : [])]);
}

export const route = (criteria) => (criteria.new ? "/logs/new" : criteria.q ? "/logs/search" : "/logs");

/** The returned lines that the optional `criteria.accepts(line)`. */
export const accepted = (criteria, lines) => (criteria.accepts ? lines.filter((line) => criteria.accepts(line)) : lines);

/** The first match strictly after `number` in that order. Null if there is none. */
export async function findOne(path, criteria, number, order, signal) {
  let position = number;
  for (let limit = 1; ; ) {
    const { body, position: reached } = await get(`${path}${route(criteria)}?${query(criteria, { offset: position, order, limit })}`, signal);
    const [line] = accepted(criteria, body.logs);
    if (line) return line;
    if (!body.cursor) return null;
    position = reached;
    // If one line is rejected, many can be.
    if (body.logs.length) limit = 100;
  }
}

/** Starts a scan, which is also a source of rows for the viewport. `numbers` are the sorted matches up to `position`. */
export function makeScan(path, criteria, last, changed) {
  const stopped = new AbortController();
  const pages = [];
  const cache = new Map();
  const fetching = new Set();
  let pauseAt = PAUSE_AFTER;
  let isBusy = false;
  let timer = 0;
  const scan = {
    numbers: [],
    position: 0,
    done: false,
    error: null,
    highlights: new Map(),
    comparedWith: [],
    get isRefused() {
      return scan.error instanceof Refused && [400, 409].includes(scan.error.status);
    },
    get paused() {
      return !scan.done && scan.numbers.length >= pauseAt;
    },
    get count() {
      return scan.numbers.length;
    },
    numberAt: (row) => scan.numbers[row],
    /** The row of a number, or of the next match after it. */
    rowOf: (number) => countBefore(scan.numbers.length, (each) => scan.numbers[each] < number),
    stop: () => (stopped.abort(), clearTimeout(timer)),
    resume,
    goOn,
    added,
    itemAt,
    load,
  };

  /** Continues the scan. The new lines of a live log are collected for half a second before each request. */
  function resume() {
    if (isBusy || stopped.signal.aborted) return;
    if (!scan.done) run();
    else if (scan.position < last()) timer ||= setTimeout(run, AGAIN_MS);
  }

  function goOn() {
    pauseAt = scan.numbers.length + PAUSE_AFTER;
    resume();
  }

  /** Adds a line of the live stream if it directly follows the scanned lines. True if `matches(line)`. */
  function added(line, matches) {
    if (!scan.done || isBusy || line.sequence_num !== scan.position + 1) return false;
    scan.position += 1;
    if ((criteria.stream && line.stream !== criteria.stream) || !matches(line)) return false;
    const start = scan.numbers.push(line.sequence_num) - 1;
    if (!(pages.at(-1)?.count < PAGE)) pages.push({ start, offset: line.sequence_num - 1, count: 0 });
    const page = pages.length - 1;
    store(page, [...(cache.get(page) ?? []), line]);
    // If other lines of the page are not cached, fetch it all later.
    if (cache.get(page).length <= pages[page].count) cache.delete(page);
    pages[page].count += 1;
    return true;
  }

  async function run() {
    timer = 0;
    isBusy = true;
    const { signal } = stopped;
    const failed = (error) => ((scan.error = error), changed());
    while (!signal.aborted && !scan.paused) {
      try {
        await persist(scanPage, { signal, failed });
      } catch (error) {
        return signal.aborted || failed(error);
      }
      scan.error = null;
      changed();
      if (scan.done) break;
    }
    isBusy = false;
    if (scan.done) resume();
  }

  async function scanPage() {
    const offset = scan.position;
    const { body, position } = await read(offset);
    scan.comparedWith = body.compared_with ?? [];
    const start = scan.numbers.length;
    const found = accepted(criteria, body.logs);
    for (const line of found) {
      scan.numbers.push(line.sequence_num);
      if (line.highlights) scan.highlights.set(line.sequence_num, line.highlights);
    }
    if (found.length) {
      pages.push({ start, offset, count: found.length });
      store(pages.length - 1, found);
    }
    scan.position = Math.max(position, offset);
    scan.done = body.cursor === null;
  }

  const read = (offset) => get(`${path}${route(criteria)}?${query(criteria, { offset, limit: PAGE })}`, stopped.signal);

  function store(index, lines) {
    cache.delete(index);
    cache.set(index, lines.map(truncate));
    for (const oldest of cache.keys()) {
      if (cache.size <= 24) break;
      cache.delete(oldest);
    }
  }

  const pageOf = (row) => countBefore(pages.length, (each) => pages[each].start <= row) - 1;

  function itemAt(row) {
    const page = pageOf(row);
    return { number: scan.numbers[row], line: cache.get(page)?.[row - pages[page].start] };
  }

  /** Fetches the pages of the rows in view, and continues the scan near the last match. */
  function load(top, bottom) {
    if (bottom >= scan.numbers.length - PAGE && scan.paused) goOn();
    if (!scan.numbers.length) return;
    for (let page = pageOf(top); page <= pageOf(bottom); page += 1) {
      if (!cache.has(page) && !fetching.has(page)) fetchPage(page);
    }
  }

  async function fetchPage(page) {
    fetching.add(page);
    try {
      const found = [];
      // The service can return fewer lines than asked for.
      for (let { offset } = pages[page]; found.length < pages[page].count; ) {
        const { body, position } = await read(offset);
        found.push(...accepted(criteria, body.logs));
        if (body.cursor === null || position >= (pages[page + 1]?.offset ?? scan.position)) break;
        offset = position;
      }
      store(page, found.slice(0, pages[page].count));
      changed();
    } catch {
      // Requested again the next time it is drawn.
    } finally {
      fetching.delete(page);
    }
  }

  run();
  return scan;
}
