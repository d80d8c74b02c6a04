// What the tests of clients/js have the module do, in Node.js and in a browser. Each function returns what JSON can hold.

/** The options of a call. With `tokens` the token is a function, which gives the next one when one was refused. */
function prepare({ tokens, abortAfterMs, ...options }, seen) {
  if (tokens) {
    const left = [...tokens];
    seen.calls = [];
    options.token = async (refused) => {
      seen.calls.push(refused?.status ?? null);
      if (refused) left.shift();
      return left[0] ?? tokens.at(-1);
    };
  }
  if (options.wait === "forever") options.wait = Infinity;
  if (abortAfterMs !== undefined) options.signal = AbortSignal.timeout(abortAfterMs);
  return options;
}

const failure = ({ name, message, status, cursor }) => JSON.parse(JSON.stringify({ name, message, status, cursor }));

/** Follows a log until it ends, or until `stopAt` lines have come, or aborts it then. */
export async function follow(chronoverse, { stopAt = Infinity, abortAt = Infinity, ...given }) {
  const seen = { numbers: [], messages: [], gaps: [], events: [], cursor: null, skipped: 0, reconnects: [], failure: null };
  const stop = new AbortController();
  try {
    const options = { signal: stop.signal, ...prepare(given, seen) };
    options.onReconnect = (error, delay) => seen.reconnects.push([error.message, delay]);
    for await (const { event, data, cursor } of chronoverse.follow(options)) {
      seen.cursor = cursor;
      if (event === "log") {
        seen.numbers.push(data.sequence_num);
        seen.messages.push(data.message);
      } else if (event === "gap") seen.gaps.push(data);
      else if (event === "cursor") seen.skipped += 1;
      else seen.events.push(event === "job" ? data.status : event === "error" ? data : event);
      if (seen.numbers.length >= stopAt) break;
      if (seen.numbers.length >= abortAt) stop.abort();
    }
  } catch (error) {
    seen.failure = failure(error);
  }
  return seen;
}

/** Reads pages from the first to the last. */
export async function pages(chronoverse, given) {
  const seen = { numbers: [], highlights: [], pages: 0, positions: [], failure: null };
  try {
    const options = prepare(given, seen);
    for (let cursor; cursor !== null; ) {
      const page = await chronoverse.page({ ...options, cursor, offset: cursor ? undefined : options.offset });
      seen.numbers.push(...page.logs.map((line) => line.sequence_num));
      seen.highlights.push(...page.logs.flatMap((line) => line.highlights ?? []));
      seen.positions.push(page.position);
      seen.pages += 1;
      cursor = page.cursor;
    }
  } catch (error) {
    seen.failure = failure(error);
  }
  return seen;
}

/** Waits once. */
export async function wait(chronoverse, given) {
  const seen = { failure: null };
  const began = performance.now();
  try {
    const options = prepare(given, seen);
    seen.answer = await chronoverse.wait(options);
  } catch (error) {
    seen.failure = failure(error);
  }
  seen.seconds = (performance.now() - began) / 1000;
  return seen;
}

/** Reads any route of the service. */
export async function get(chronoverse, { url, ...given }) {
  const seen = { failure: null };
  try {
    seen.body = (await chronoverse.get(url, prepare(given, seen))).body;
  } catch (error) {
    seen.failure = failure(error);
  }
  return seen;
}

/** Ends a job. */
export async function end(chronoverse, given) {
  const seen = { failure: null };
  try {
    seen.job = await chronoverse.end(prepare(given, seen));
  } catch (error) {
    seen.failure = failure(error);
  }
  return seen;
}

/** Makes, tests, lists and deletes a watch, and lists again. */
export async function watch(chronoverse, { id, watch, ...given }) {
  const seen = { failure: null };
  try {
    const options = prepare(given, seen);
    seen.made = await chronoverse.putWatch(options, id, watch);
    seen.tested = await chronoverse.testWatch(options, id);
    seen.listed = await chronoverse.watches(options);
    seen.deleted = await chronoverse.deleteWatch(options, id);
    seen.left = await chronoverse.watches(options);
  } catch (error) {
    seen.failure = failure(error);
  }
  return seen;
}

/** Follows a workflow until `stopAt` jobs have come. */
export async function followWorkflow(chronoverse, { stopAt, ...given }) {
  const seen = { jobs: [], events: [], cursor: null, reconnects: 0, failure: null };
  try {
    const options = prepare(given, seen);
    options.onReconnect = () => (seen.reconnects += 1);
    for await (const { event, data, cursor } of chronoverse.followWorkflow(options)) {
      seen.cursor = cursor;
      if (event === "job") seen.jobs.push([data.id, data.status, cursor]);
      else seen.events.push(event);
      if (seen.jobs.length >= stopAt) break;
    }
  } catch (error) {
    seen.failure = failure(error);
  }
  return seen;
}
