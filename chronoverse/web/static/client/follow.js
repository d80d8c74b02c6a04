// @ts-check
// Follows a log: Server-Sent Events over as many connections as it takes. It uses fetch, because EventSource cannot
// send a token.

import { BlockReader } from "./blocks.js";
import { Backoff, isTransient, jobUrl, Limit, now, pause, Refused, send, Unreachable, workflowUrl } from "./request.js";

/** @typedef {import("./index.js").Frame} Frame */
/** @typedef {import("./index.js").FollowOptions} FollowOptions */

//: Seconds between two heartbeats of the service, and how many may be missing before a connection counts as dead.
const HEARTBEAT_SECONDS = 15;
const MISSED = 3;
//: Seconds for which failures are followed by another attempt.
const GIVE_UP_SECONDS = 600;
//: The longest that the service waits for a job that does not exist yet, in seconds.
const MAX_WAIT_SECONDS = 300;
//: Events with JSON. The service may have others one day.
const EVENTS = new Set(["connected", "job", "log", "gap", "redact", "end", "reset"]);
//: The text of the `error` event with which a stream ends when its token does.
export const TOKEN_EXPIRED = "token expired";
const NUMBER = /^[0-9]{1,15}$/;

/** The log has ended with an error: the job was lost, or its log is gone. `cursor` is the last number. */
export class StreamError extends Error {
  name = "StreamError";

  /**
   * @param {string} message The text of the service's `error` event.
   * @param {number | null} cursor
   * @param {ErrorOptions} [options]
   */
  constructor(message, cursor, options) {
    super(message, options);
    this.cursor = cursor;
  }
}

/**
 * Follows the log of a job until it ends. Gives each number once and in order, or a `gap` that names it. It ends after
 * the `end` frame. Everything else that ends it is thrown: StreamError, Refused, Unreachable after `giveUpAfter` seconds,
 * and the signal's reason.
 * @type {typeof import("./index.js").follow}
 */
export function follow(options) {
  const { offset, tail } = options;
  const filters = { stream: options.stream, q: options.q, regex: options.regex || undefined };
  const backoff = new Backoff();
  const reader = new FrameReader(backoff, typeof offset === "number" ? offset : null);
  /** @type {(begins: boolean, wait?: number) => string} */
  const urlOf = (begins, wait) => jobUrl(options, "events", { ...(begins ? { offset, tail } : {}), ...filters, wait });
  return read(options, reader, backoff, urlOf);
}

/**
 * Follows the jobs of a workflow: the newest ones, then each change. It has no end. What ends it is thrown, as by follow.
 * @type {typeof import("./index.js").followWorkflow}
 */
export function followWorkflow(options) {
  const { jobs, status, labels, after } = options;
  const backoff = new Backoff();
  const reader = new FrameReader(backoff, after ?? null, true);
  const label = Object.entries(labels ?? {}).map((pair) => pair.join("="));
  return /** @type {any} */ (read(options, reader, backoff, () => workflowUrl(options, "events", { jobs, status, label })));
}

/**
 * What `reader` reads, over as many connections as it takes.
 * @param {Omit<FollowOptions, "job">} options
 * @param {FrameReader} reader
 * @param {Backoff} backoff
 * @param {(begins: boolean, wait?: number) => string} urlOf Its address; of the first connection when it `begins`.
 * @returns {AsyncGenerator<Frame, void, undefined>}
 */
async function* read(options, reader, backoff, urlOf) {
  const { token, signal, wait = 0, giveUpAfter = GIVE_UP_SECONDS, onReconnect } = options;
  const silenceMs = Math.round((options.heartbeat ?? HEARTBEAT_SECONDS) * MISSED * 1000);
  const waitUntil = now() + wait * 1000;
  let isFirst = true;
  while (!reader.isOver) {
    const waitSeconds = reader.hasJob ? 0 : Math.min(MAX_WAIT_SECONDS, Math.max(0, Math.ceil((waitUntil - now()) / 1000)));
    // The first connection sends an offset, so that also a log that has ended says how. Later ones send Last-Event-ID.
    const begins = (isFirst && !reader.isOfWorkflow) || reader.cursor === null;
    /** @type {Record<string, string>} */
    const headers = begins ? {} : { "Last-Event-ID": String(reader.cursor) };
    const url = urlOf(begins, waitSeconds || undefined);
    const limit = new Limit(signal, silenceMs);
    let failure;
    try {
      const response = await send(url, token, { ...headers, Accept: "text/event-stream" }, limit);
      // 204: the log has ended, and its end was read before.
      if (response.status === 204) break;
      if (!response.headers.get("Content-Type")?.startsWith("text/event-stream") || !response.body) {
        throw new TypeError(`${url} does not answer with an event stream`);
      }
      isFirst = false;
      reader.begin(response.headers.get("Last-Event-ID"));
      const decoder = new TextDecoder();
      const bytes = response.body.getReader();
      for (;;) {
        const { done, value } = await limit.run(() => bytes.read());
        if (done) break;
        for (const frame of reader.read(decoder.decode(value, { stream: true }))) {
          yield frame;
          signal?.throwIfAborted();
        }
        if (reader.isOver) break;
      }
      failure = new Unreachable(reader.error ?? "the service closed the stream");
    } catch (error) {
      // While a log is followed, a token may expire a moment before its function has another.
      const isLate = error instanceof Refused && error.status === 401 && typeof token === "function" && !isFirst;
      // The `error` event with which the stream has just ended says more than "no such job".
      if (error instanceof Refused && error.status === 404 && reader.error !== null) {
        throw new StreamError(reader.error, reader.cursor, { cause: error });
      }
      if (!isTransient(error) && !isLate) throw error;
      failure = /** @type {Error} */ (error);
    } finally {
      limit.close();
    }
    if (reader.isOver) break;
    if (waitSeconds && !reader.hasJob && reader.error !== null && now() >= waitUntil) {
      throw new StreamError(reader.error, reader.cursor);
    }
    // The function has another token. Nothing is wrong, and waiting would only delay the next line.
    if (reader.error === TOKEN_EXPIRED && typeof token === "function" && !backoff.failures) {
      backoff.failed();
      onReconnect?.(failure, 0);
      continue;
    }
    backoff.failed();
    if (backoff.seconds > giveUpAfter) throw failure;
    const delay = backoff.delay(failure);
    onReconnect?.(failure, delay);
    await pause(delay, signal);
  }
  if (reader.error !== null) throw new StreamError(reader.error, reader.cursor);
}

/** Turns the text of event streams into frames, over one connection after the other. */
class FrameReader {
  /** The last number that was given or skipped; null before the first connection. */
  cursor;
  hasJob = false;
  isOver = false;
  /** The text of the `error` event with which the last stream ended. @type {string | null} */
  error = null;
  #backoff;
  #on;
  /** @type {Frame[]} */
  #frames = [];
  #blocks;

  /**
   * @param {Backoff} backoff
   * @param {number | null} cursor
   * @param {boolean} isOfWorkflow Whether it reads the changes of a workflow. Their numbers may go back.
   */
  constructor(backoff, cursor, isOfWorkflow = false) {
    this.cursor = cursor;
    this.isOfWorkflow = isOfWorkflow;
    this.#backoff = backoff;
    this.#on = {
      block: (/** @type {import("./blocks.js").Block} */ block) => this.#receive(block),
      comment: () => backoff.succeeded(),
      retry: (/** @type {number} */ ms) => (backoff.retryMs = ms),
    };
    this.#blocks = new BlockReader(this.#on);
  }

  /** Begins a connection. `startsAfter` is its Last-Event-ID header. @param {string | null} startsAfter */
  begin(startsAfter) {
    this.#blocks = new BlockReader(this.#on);
    // Where a workflow's stream starts is known when its jobs have come.
    if (this.isOfWorkflow) return;
    if (this.cursor === null && startsAfter !== null && NUMBER.test(startsAfter)) this.cursor = Number(startsAfter);
  }

  /** The next frames. Throws Unreachable when they cannot be read. @param {string} text */
  read(text) {
    this.#frames = [];
    try {
      this.#blocks.read(text);
    } catch (error) {
      throw new Unreachable("the service sent a frame that cannot be read", { cause: error });
    }
    return this.#frames;
  }

  /** Moves the cursor. False if it has been there before. @param {number} number */
  #advance(number) {
    if (!this.isOfWorkflow && this.cursor !== null && number <= this.cursor) return false;
    this.cursor = number;
    return true;
  }

  /**
   * @param {Frame["event"]} event
   * @param {any} data
   */
  #give(event, data) {
    this.#frames.push(/** @type {Frame} */ ({ event, data, cursor: this.cursor }));
  }

  /** @param {import("./blocks.js").Block} block */
  #receive({ event, data: text, id }) {
    const number = id !== undefined && NUMBER.test(id) ? Number(id) : null;
    // A block that is only an id: the filter has left out the lines up to it.
    if (text === undefined && number !== null && this.#advance(number)) this.#give("cursor", null);
    if (text === undefined) return;
    if (this.isOver) return;
    if (event !== "connected" && event !== "error") this.#backoff.succeeded();
    if (event === "error") {
      this.error = text;
      // An error with a number is the log's end: the job was lost. Others end this stream only.
      this.isOver = number !== null;
      if (number !== null) this.#advance(number);
      return this.#give("error", text);
    }
    if (event === undefined || !EVENTS.has(event)) return;
    const data = JSON.parse(text);
    if (event === "connected") {
      this.error = null;
      if (this.isOfWorkflow && this.hasJob && this.cursor === null) {
        // Not all jobs of an earlier connection had come. One that was deleted since does not come again.
        this.#give("connected", data);
        return this.#give(/** @type {any} */ ("reset"), { reason: "incomplete" });
      }
    } else if (event === "log") {
      if (!this.#advance(data.sequence_num)) return;
    } else if (event === "gap") {
      const from = this.cursor === null ? data.from : Math.max(data.from, this.cursor + 1);
      if (!this.#advance(data.to)) return;
      return this.#give("gap", { ...data, from });
    } else if (event === "job") {
      this.hasJob = true;
      if (number !== null) this.#advance(number);
    } else if (event === "end") {
      // An error before it was about a single entry.
      this.error = null;
      this.isOver = true;
      if (number !== null) this.#advance(number);
    }
    this.#give(/** @type {Frame["event"]} */ (event), data);
  }
}
