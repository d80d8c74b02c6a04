// Follows a log's live end: Server-Sent Events, with reconnects. It uses fetch, because EventSource cannot send a token.

import { createParser } from "../vendor/eventsource-parser/parse.js";
import { ask, refusal, signIn } from "./session.js";

//: Milliseconds until a reconnect, before the service has sent a `retry`; and the longest wait.
const RETRY_MS = 2000;
const MAX_RETRY_MS = 30_000;
//: Missing heartbeats after which the connection counts as dead.
const MISSED = 3;
//: Seconds that the service waits for a job that does not exist yet. It allows no more.
const WAIT_SECONDS = 300;
//: Milliseconds of work on events after which the browser may draw.
const BUSY_MS = 12;

const yieldToBrowser = () => new Promise((done) => setTimeout(done, 0));

export class Stream {
  #path;
  #on;
  #silenceMs;
  #retryMs = RETRY_MS;
  #failures = 0;
  #wake = () => {};
  #over = false;
  #known;
  /** The text of the `error` event with which the last stream ended. */
  #error = null;

  /**
   * `on` has `event(name, data)`, `connected()`, `lost()` and `ended(why)`. After `ended` nothing more comes. Its `why`
   * is null when the log is complete. `heartbeat` is in seconds. `known` says whether the job exists already.
   */
  constructor(path, heartbeat, known, on) {
    this.#path = path;
    this.#known = known;
    this.#on = on;
    this.#silenceMs = heartbeat * 1000 * MISSED;
    addEventListener("online", () => this.#wake());
    document.addEventListener("visibilitychange", () => document.hidden || this.#wake());
  }

  /** Follows the log after number `after`. Returns when nothing more comes. */
  async follow(after) {
    let last = after;
    while (!this.#over) {
      const before = last;
      try {
        last = await this.#connect(last);
      } catch (error) {
        last = error.last ?? last;
      }
      if (this.#over) return;
      this.#on.lost();
      this.#failures = last > before ? 0 : this.#failures + 1;
      await this.#pause();
    }
  }

  /** Waits before a reconnect: as long as the service asks for, longer after each failure, and with jitter. */
  #pause() {
    const delay = Math.min(MAX_RETRY_MS, this.#retryMs * 2 ** Math.max(0, this.#failures - 1));
    return new Promise((done) => {
      const timer = setTimeout(done, delay * (0.75 + Math.random() / 2));
      this.#wake = () => {
        clearTimeout(timer);
        done();
      };
    });
  }

  async #connect(after) {
    const dead = new AbortController();
    let watchdog = setTimeout(() => dead.abort(), this.#silenceMs);
    let last = after;
    try {
      const headers = { "Last-Event-ID": String(after), Accept: "text/event-stream" };
      const waitQuery = this.#known ? "" : `?wait=${WAIT_SECONDS}`;
      const response = await ask(`${this.#path}/events${waitQuery}`, { headers, signal: dead.signal });
      if (response.status === 204) return this.#end(null, last);
      if (!response.ok) {
        await this.#refused(await refusal(response));
        return last;
      }
      const parser = createParser({
        onEvent: ({ event, data, id }) => {
          this.#receive(event, data);
          if (id !== undefined && /^[0-9]{1,15}$/.test(id)) last = Number(id);
        },
        onRetry: (ms) => (this.#retryMs = Math.min(ms, MAX_RETRY_MS)),
      });
      const decoder = new TextDecoder();
      const reader = response.body.getReader();
      let since = performance.now();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return last;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => dead.abort(), this.#silenceMs);
        parser.feed(decoder.decode(value, { stream: true }));
        if (performance.now() - since > BUSY_MS) {
          await yieldToBrowser();
          since = performance.now();
        }
      }
    } catch (error) {
      throw Object.assign(new Error("the connection broke", { cause: error }), { last });
    } finally {
      clearTimeout(watchdog);
      dead.abort();
    }
  }

  #receive(event, data) {
    if (event === "connected") {
      this.#error = null;
      this.#on.connected();
    } else if (event === "error") {
      this.#error = data;
      this.#on.event("error", data);
    } else {
      if (event === "job") this.#known = true;
      this.#on.event(event, JSON.parse(data));
      if (event === "end") this.#end(null);
    }
  }

  async #refused(refused) {
    if (refused.status === 401) {
      await signIn("The token is not accepted any more. Paste another.");
      this.#failures = 0;
    } else if (refused.status === 404 || refused.status === 403 || refused.status === 409) {
      // A 404 says less than the `error` event with which the stream has just ended.
      this.#end((refused.status === 404 && this.#error) || refused.message);
    } else {
      this.#retryMs = Math.max(this.#retryMs, refused.retryAfter * 1000);
    }
  }

  #end(why, last) {
    if (!this.#over) this.#on.ended(why);
    this.#over = true;
    return last;
  }
}
