// @ts-check
// Log pages, waiting for a line or the end, and ending a job.

import { Backoff, get, isTransient, jobUrl, now, pause, Refused, REQUEST_MS } from "./request.js";

/** @type {typeof import("./index.js").page} */
export async function page(options) {
  const { token, signal, q, regex, stream, order, limit, offset, cursor, before, after } = options;
  const found = q === undefined ? {} : { q, regex: regex || undefined, before, after };
  const url = jobUrl(options, q === undefined ? "logs" : "logs/search", { ...found, stream, order, limit, offset, cursor });
  return retry(signal, async () => {
    const { body, position } = await get(url, { token, signal });
    return { ...body, position };
  });
}

/** @type {typeof import("./index.js").end} */
export async function end(options) {
  return call(options, jobUrl(options, "end", {}), "POST", { status: options.status, exit_code: options.exitCode });
}

/** @type {(options: import("./index.js").WorkflowOptions, url: string, method?: string, body?: unknown) => Promise<any>} */
export async function call({ token, signal }, url, method = "GET", body) {
  const init = { method, body: body ? JSON.stringify(body) : undefined };
  const headers = { "Content-Type": "application/json" };
  return retry(signal, async () => (await get(url, { token, signal, headers }, init)).body);
}

/** @typedef {{ most?: number, failed?: (error: unknown, ms: number) => void }} Retries */

/**
 * Repeats `attempt` after transient errors, up to `most` times in all. `failed` is called before each wait.
 * @type {<T>(signal: AbortSignal | undefined, attempt: () => Promise<T>, retries?: Retries) => Promise<T>}
 */
export async function retry(signal, attempt, { most = 4, failed } = {}) {
  const backoff = new Backoff();
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      backoff.failed();
      if (!isTransient(error) || backoff.failures === most) throw error;
      const ms = backoff.delay(error);
      failed?.(error, ms);
      await pause(ms, signal);
    }
  }
}

/** @type {typeof import("./index.js").wait} */
export async function wait(options) {
  const { token, signal, q, regex, stream, limit, timeout = 30, giveUpAfter = 600 } = options;
  const deadline = now() + timeout * 1000;
  const backoff = new Backoff();
  const gaps = [];
  let { offset } = options;
  for (;;) {
    const began = now();
    // Third-party proxies can time out after a minute.
    const seconds = Math.round(Math.min(20, Math.max(0, (deadline - began) / 1000)));
    const url = jobUrl(options, "wait", { q, regex: regex || undefined, stream, limit, offset, timeout: seconds });
    try {
      const { body } = await get(url, { token, signal, limitMs: REQUEST_MS + seconds * 1000 });
      backoff.succeeded();
      gaps.push(...(body.gaps ?? []));
      if (body.outcome !== "timeout" || now() >= deadline) return { ...body, gaps };
      // Without `q`, each request starts at the end of the log.
      if (q !== undefined) offset = body.cursor;
    } catch (error) {
      const isMissing = error instanceof Refused && error.status === 404;
      if (!(isMissing || isTransient(error)) || now() >= deadline) throw error;
      // If the service waited for the job as long as requested, ask again immediately; otherwise back off.
      if (isMissing && seconds && now() - began >= seconds * 1000) {
        backoff.succeeded();
        continue;
      }
      backoff.failed();
      if (!isMissing && backoff.seconds > giveUpAfter) throw error;
      await pause(Math.min(backoff.delay(error), Math.max(0, deadline - now())), signal);
    }
  }
}
