// @ts-check
// Pages of a log, waiting for a line or for the end, and ending a job.

import { Backoff, get, isTransient, jobUrl, now, pause, Refused, REQUEST_MS } from "./request.js";

//: Attempts at one page. They are few because somebody waits for the answer.
const MAX_ATTEMPTS = 4;
//: Seconds of one request that waits. Proxies of others may give up after a minute.
const WAIT_SECONDS = 20;
//: Seconds for which a wait that nobody answers continues.
const GIVE_UP_SECONDS = 600;

/**
 * One page of a log, or of the lines that match `q`. The answer's `cursor` leads to the next page; it is null at the end.
 * @type {typeof import("./index.js").page}
 */
export async function page(options) {
  const { token, signal, q, regex, stream, order, limit, offset, cursor, before, after } = options;
  const found = q === undefined ? {} : { q, regex: regex || undefined, before, after };
  const url = jobUrl(options, q === undefined ? "logs" : "logs/search", { ...found, stream, order, limit, offset, cursor });
  return retry(signal, async () => {
    const { body, position } = await get(url, { token, signal });
    return { ...body, position };
  });
}

/**
 * Ends a job that no runner holds, and returns it. A job that has ended in the same way stays as it is.
 * @type {typeof import("./index.js").end}
 */
export async function end(options) {
  const { token, signal, status, exitCode } = options;
  const url = jobUrl(options, "end", {});
  const init = { method: "POST", body: JSON.stringify({ status, exit_code: exitCode }) };
  const headers = { "Content-Type": "application/json" };
  return retry(signal, async () => (await get(url, { token, signal, headers }, init)).body);
}

/**
 * The result of `attempt`, which is called MAX_ATTEMPTS times at most.
 * @template T
 * @param {AbortSignal | undefined} signal
 * @param {() => Promise<T>} attempt
 */
export async function retry(signal, attempt) {
  const backoff = new Backoff();
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      backoff.failed();
      if (!isTransient(error) || backoff.failures === MAX_ATTEMPTS) throw error;
      await pause(backoff.delay(error), signal);
    }
  }
}

/**
 * Waits until a line after `offset` matches `q`, the job ends, or `timeout` seconds are over. Without `q` it waits for
 * the end. It asks as often as it takes, also when the service answers early. Throws Refused with status 404 when the
 * job has not come in that time.
 * @type {typeof import("./index.js").wait}
 */
export async function wait(options) {
  const { token, signal, q, regex, stream, limit, timeout = 30, giveUpAfter = GIVE_UP_SECONDS } = options;
  const deadline = now() + timeout * 1000;
  const backoff = new Backoff();
  const gaps = [];
  let { offset } = options;
  for (;;) {
    const began = now();
    const seconds = Math.round(Math.min(WAIT_SECONDS, Math.max(0, (deadline - began) / 1000)));
    const url = jobUrl(options, "wait", { q, regex: regex || undefined, stream, limit, offset, timeout: seconds });
    try {
      const { body } = await get(url, { token, signal, limitMs: REQUEST_MS + seconds * 1000 });
      backoff.succeeded();
      gaps.push(...(body.gaps ?? []));
      if (body.outcome !== "timeout" || now() >= deadline) return { ...body, gaps };
      // Without a text, each request begins at the end of the log.
      if (q !== undefined) offset = body.cursor;
    } catch (error) {
      const isMissing = error instanceof Refused && error.status === 404;
      if (!(isMissing || isTransient(error)) || now() >= deadline) throw error;
      // The service has waited for the job as long as it was asked to. Otherwise the next request must not come at once.
      if (isMissing && now() - began >= seconds * 1000) {
        backoff.succeeded();
        continue;
      }
      backoff.failed();
      if (!isMissing && backoff.seconds > giveUpAfter) throw error;
      await pause(Math.min(backoff.delay(error), Math.max(0, deadline - now())), signal);
    }
  }
}
