// @ts-check
// Authenticated requests, their errors, and the delay before a retry.

/** @typedef {import("./index.js").Token} Token */
/** @typedef {import("./index.js").JobOptions} JobOptions */

//: Milliseconds after which an unanswered request is aborted.
export const REQUEST_MS = 30_000;
//: Statuses below 500 that are worth a retry, as in chronoverse/client/service_connection.py.
const TRANSIENT = new Set([408, 425, 429]);

const IDENTIFIER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

export class Refused extends Error {
  name = "Refused";

  /** @param {number} status @param {string} detail @param {number} retryAfter @param {string} [reason] */
  constructor(status, detail, retryAfter, reason) {
    super(detail);
    this.status = status;
    this.reason = reason;
    this.retryAfter = retryAfter;
  }
}

export class Unreachable extends Error {
  name = "Unreachable";
}

/** Whether a retry can succeed. @param {unknown} error */
export const isTransient = (error) =>
  error instanceof Unreachable || (error instanceof Refused && (TRANSIENT.has(error.status) || error.status >= 500));

export const now = () => performance.now();

/** The seconds of a Retry-After header, which can also be a date; at most a day, as timers overflow after 25 days. @param {string | null} value */
function retrySeconds(value) {
  if (!value) return 0;
  const seconds = /^[0-9]+$/.test(value.trim()) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Math.min(86_400, Math.max(0, seconds || 0));
}

/** The error for a non-2xx response. @param {Response} response */
export async function refusal(response) {
  let { status } = response;
  let detail = response.statusText || `the service returned ${status}`;
  let reason;
  try {
    const problem = await response.json();
    status = problem.status ?? status;
    detail = problem.detail ?? problem.title ?? detail;
    reason = problem.reason;
  } catch {
    // A proxy responded with a page of its own. The status is enough.
  }
  return new Refused(status, detail, retrySeconds(response.headers.get("Retry-After")), reason);
}

/** @typedef {ReturnType<typeof limited>} Limit */

/** A request that ends when `outer` is aborted, when a step takes longer than `ms`, or when it is closed. @param {AbortSignal | undefined} outer @param {number} ms */
export function limited(outer, ms) {
  outer?.throwIfAborted();
  const controller = new AbortController();
  const abort = () => controller.abort(outer?.reason);
  outer?.addEventListener("abort", abort, { once: true });

  /** Throws Unreachable if `step` fails or times out, or else the outer signal's reason. @type {<T>(step: () => Promise<T>) => Promise<T>} */
  async function run(step) {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      controller.abort();
    }, ms);
    try {
      return await step();
    } catch (error) {
      outer?.throwIfAborted();
      const text = isLate ? `no data for ${ms / 1000} s` : "the service is not responding, or the connection broke";
      throw new Unreachable(text, { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }

  function close() {
    outer?.removeEventListener("abort", abort);
    controller.abort();
  }

  return { signal: controller.signal, run, close };
}

/** @typedef {Record<string, string>} HeaderValues */

/**
 * Sends a request. After a 401, retries once with a new token from the function. Throws Refused.
 * @type {(url: string, token: Token | undefined, headers: HeaderValues, limit: Limit, init?: RequestInit) => Promise<Response>}
 */
export async function send(url, token, headers, limit, init) {
  /** @type {Refused | undefined} */
  let refused;
  for (let value; ; ) {
    value = typeof token === "function" ? await token(refused, value) : token;
    const all = value ? { ...headers, Authorization: `Bearer ${value}` } : headers;
    // An invalid token or address throws a TypeError here, and is not retried.
    const request = new Request(url, { ...init, headers: all, cache: "no-store" });
    // Not the Request's own signal: Node.js can garbage-collect that, and then an abort does not reach the connection.
    const response = await limit.run(() => fetch(request, { signal: limit.signal }));
    // With `Prefer: status=200`, some refusals have this status.
    const isProblem = response.headers.get("Content-Type")?.startsWith("application/problem+json");
    if (response.ok && !isProblem) return response;
    const problem = await limit.run(() => refusal(response));
    if (problem.status !== 401 || typeof token !== "function" || refused) throw problem;
    refused = problem;
  }
}

/** @typedef {typeof import("./index.js").get} Get */

/** @type {(url: string, options?: Parameters<Get>[1], init?: RequestInit) => ReturnType<Get>} */
export async function get(url, { token, signal, limitMs = REQUEST_MS, headers = {} } = {}, init) {
  const limit = limited(signal, limitMs);
  try {
    const response = await send(url, token, { Accept: "application/json", ...headers }, limit, init);
    const body = response.status === 204 ? null : await limit.run(() => response.json());
    const position = response.headers.get("Last-Event-ID");
    return { body, headers: response.headers, position: position === null ? null : Number(position) };
  } finally {
    limit.close();
  }
}

/** Undefined values are omitted, and a list is repeated. @typedef {Record<string, string | number | boolean | string[] | undefined>} Query */

/** @type {(options: JobOptions, route: string, parameters: Query) => string} */
export function jobUrl({ service, workflow, job }, route, parameters) {
  if (!IDENTIFIER.test(job)) throw new TypeError(`invalid job id: ${job}`);
  return workflowUrl({ service, workflow }, `jobs/${job}/${route}`, parameters);
}

/** @type {(options: { service?: string, workflow: string }, route: string, parameters: Query) => string} */
export function workflowUrl({ service = "", workflow }, route, parameters) {
  if (!IDENTIFIER.test(workflow)) throw new TypeError(`invalid workflow id: ${workflow}`);
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined) for (const each of [value].flat()) query.append(name, String(each));
  }
  return `${service.replace(/\/+$/, "")}/workflows/${workflow}/${route}?${query}`.replace(/\?$/, "");
}

/** Counts consecutive failures, and increases the delay after each. */
export class Backoff {
  /** The base delay in milliseconds; the service can set it. */
  retryMs = 1000;
  failures = 0;
  #since = 0;

  succeeded() {
    this.failures = 0;
  }

  failed() {
    if (this.failures === 0) this.#since = now();
    this.failures += 1;
  }

  /** Seconds since the first of the consecutive failures. */
  get seconds() {
    return this.failures ? (now() - this.#since) / 1000 : 0;
  }

  /** Milliseconds until the next attempt, with jitter of ±25%, but at least the Retry-After of `error`. @param {unknown} error */
  delay(error) {
    const most = globalThis.document?.visibilityState === "visible" ? 4000 : 30_000;
    const base = Math.min(most, this.retryMs * 2 ** Math.max(0, this.failures - 1));
    return Math.max(base * (0.75 + Math.random() / 2), error instanceof Refused ? error.retryAfter * 1000 : 0);
  }
}

/** In a browser, ends early when the network is back, or when the tab becomes visible. @type {(ms: number, signal?: AbortSignal) => Promise<void>} */
export function pause(ms, signal) {
  return new Promise((done, failed) => {
    const over = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", over);
      globalThis.removeEventListener?.("online", over);
      globalThis.document?.removeEventListener("visibilitychange", shown);
      if (signal?.aborted) failed(signal.reason);
      else done();
    };
    const shown = () => document.hidden || over();
    const timer = setTimeout(over, ms);
    signal?.addEventListener("abort", over);
    globalThis.addEventListener?.("online", over);
    globalThis.document?.addEventListener("visibilitychange", shown);
    if (signal?.aborted) over();
  });
}
