// @ts-check
// Follows a log over Server-Sent Events, reconnecting as needed. Uses fetch, because EventSource cannot send a token.

import { blockReader } from "./blocks.js";
import { Backoff, isTransient, jobUrl, limited, now, pause, Refused, send, Unreachable, workflowUrl } from "./request.js";

/** @typedef {import("./index.js").Frame} Frame */

//: Events with JSON data. Unknown events are ignored: a newer service may send others.
const EVENTS = new Set(["connected", "job", "log", "gap", "redact", "end", "reset"]);
//: The text of the `error` event that ends a stream when its token expires.
export const TOKEN_EXPIRED = "token expired";
const NUMBER = /^[0-9]{1,15}$/;

export class StreamError extends Error {
  name = "StreamError";

  /** @param {string} message @param {number | null} cursor @param {ErrorOptions} [options] */
  constructor(message, cursor, options) {
    super(message, options);
    this.cursor = cursor;
  }
}

/** @type {typeof import("./index.js").follow} */
export function follow(options) {
  const { offset, tail } = options;
  const filters = { stream: options.stream, q: options.q, regex: options.regex || undefined };
  const backoff = new Backoff();
  const reader = frameReader(backoff, typeof offset === "number" ? offset : null);
  /** @type {UrlOf} */
  const urlOf = (begins, wait) => jobUrl(options, "events", { ...(begins ? { offset, tail } : {}), ...filters, wait });
  return read(options, reader, backoff, urlOf);
}

/** @type {typeof import("./index.js").followWorkflow} */
export function followWorkflow(options) {
  const { jobs, status, labels, after } = options;
  const backoff = new Backoff();
  const reader = frameReader(backoff, after ?? null, true);
  const label = Object.entries(labels ?? {}).map((pair) => pair.join("="));
  return /** @type {any} */ (read(options, reader, backoff, () => workflowUrl(options, "events", { jobs, status, label })));
}

/** @typedef {Omit<import("./index.js").FollowOptions, "job">} Options */
/** The stream's address; with `begins`, that of the first connection. @typedef {(begins: boolean, wait?: number) => string} UrlOf */

/**
 * The frames of `reader`, over as many connections as needed.
 * @type {(options: Options, reader: FrameReader, backoff: Backoff, urlOf: UrlOf) => AsyncGenerator<Frame, void, undefined>}
 */
async function* read(options, reader, backoff, urlOf) {
  const { token, signal, wait = 0, giveUpAfter = 600, onReconnect } = options;
  const silenceMs = Math.round((options.heartbeat ?? 15) * 3 * 1000);
  const waitUntil = now() + wait * 1000;
  let isFirst = true;
  while (!reader.isOver) {
    // The service waits up to 300 s.
    const began = now();
    const waitSeconds = reader.hasJob ? 0 : Math.min(300, Math.max(0, Math.ceil((waitUntil - now()) / 1000)));
    // The first connection sends an offset, so that even an ended log reports its end. Later ones send Last-Event-ID.
    const begins = (isFirst && !reader.isOfWorkflow) || reader.cursor === null;
    /** @type {Record<string, string>} */
    const headers = begins ? {} : { "Last-Event-ID": String(reader.cursor) };
    const url = urlOf(begins, waitSeconds || undefined);
    const limit = limited(signal, silenceMs);
    let failure;
    try {
      const response = await send(url, token, { ...headers, Accept: "text/event-stream" }, limit);
      // 204: the log has ended, and its end has been read already.
      if (response.status === 204) break;
      if (!response.headers.get("Content-Type")?.startsWith("text/event-stream") || !response.body) {
        throw new TypeError(`${url} did not return an event stream`);
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
      // While following, a token can expire just before its function has the next one.
      const isLate = error instanceof Refused && error.status === 401 && typeof token === "function" && !isFirst;
      // The `error` event that just ended the stream says more than "no such job".
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
    // The service waited for the job as long as requested.
    if (waitSeconds && !reader.hasJob && reader.error !== null && now() - began >= waitSeconds * 1000) {
      onReconnect?.(failure, 0);
      continue;
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

/** @typedef {ReturnType<typeof frameReader>} FrameReader */

/** The numbers of a workflow's changes can decrease. @param {Backoff} backoff @param {number | null} cursor */
function frameReader(backoff, cursor, isOfWorkflow = false) {
  /** @type {import("./blocks.js").Listener} */
  const on = { block: receive, comment: () => backoff.succeeded(), retry: (ms) => (backoff.retryMs = ms || backoff.retryMs) };
  let readBlocks = blockReader(on);
  /** @type {Frame[]} */
  let frames = [];
  const reader = {
    /** The number of the last line that was returned or skipped; null before the first connection. */
    cursor,
    isOfWorkflow,
    hasJob: false,
    isOver: false,
    /** The text of the `error` event that ended the last stream. */
    error: /** @type {string | null} */ (null),
    begin,
    read,
  };

  /** Starts a connection. `startsAfter` is its Last-Event-ID header. @param {string | null} startsAfter */
  function begin(startsAfter) {
    readBlocks = blockReader(on);
    // A workflow's cursor is known only once its jobs have arrived.
    if (!isOfWorkflow && reader.cursor === null && NUMBER.test(startsAfter ?? "")) reader.cursor = Number(startsAfter);
  }

  /** The next frames. Throws Unreachable at an invalid frame, after those before it. @param {string} text */
  function* read(text) {
    frames = [];
    let invalid;
    try {
      readBlocks(text);
    } catch (error) {
      invalid = new Unreachable("the service sent an unreadable frame", { cause: error });
    }
    yield* frames;
    if (invalid) throw invalid;
  }

  /** Advances the cursor. False if it was there before. @param {number} number */
  function advance(number) {
    if (!reader.isOfWorkflow && reader.cursor !== null && number <= reader.cursor) return false;
    reader.cursor = number;
    return true;
  }

  /** @param {string} event @param {any} data */
  function give(event, data) {
    frames.push(/** @type {Frame} */ ({ event, data, cursor: reader.cursor }));
  }

  /** @param {import("./blocks.js").Block} block */
  function receive({ event, data: text, id }) {
    const number = id !== undefined && NUMBER.test(id) ? Number(id) : null;
    // An id without data: the filter has skipped all lines up to it.
    if (text === undefined && number !== null && advance(number)) give("cursor", null);
    if (text === undefined || reader.isOver) return;
    if (event !== "connected" && event !== "error") backoff.succeeded();
    if (event === "error") {
      reader.error = text;
      // An error with an id ends the log: the job was lost. Other errors end only this stream.
      reader.isOver = number !== null;
      if (number !== null) advance(number);
      return give("error", text);
    }
    if (event === undefined || !EVENTS.has(event)) return;
    const data = JSON.parse(text);
    if (event === "connected") {
      reader.error = null;
      if (reader.isOfWorkflow && reader.hasJob && reader.cursor === null) {
        // Not all jobs arrived over the previous connection, and those deleted since then will not be reported.
        give("connected", data);
        return give("reset", { reason: "incomplete" });
      }
    } else if (event === "log") {
      if (!advance(data.sequence_num)) return;
    } else if (event === "gap") {
      const from = reader.cursor === null ? data.from : Math.max(data.from, reader.cursor + 1);
      if (!advance(data.to)) return;
      data.from = from;
    } else if (event === "job") {
      reader.hasJob = true;
      if (number !== null) advance(number);
    } else if (event === "end") {
      // An earlier error concerned a single entry only.
      reader.error = null;
      reader.isOver = true;
      if (number !== null) advance(number);
    }
    give(event, data);
  }

  return reader;
}
