// The page of a job that begins after it is opened: what each event of its stream changes, and requests.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";
import { find, line, open, routes, rows } from "./job_page.mjs";

const lines = [line(1), line(2, "an error"), line(3)];
const asked = [];
const searches = (text) => asked.filter((q) => q === text).length;
const frame = (event, data, id) => `event: ${event}\ndata: ${JSON.stringify(data)}\n${id ? `id: ${id}\n` : ""}\n`;
let opened = 0;
let stream = null;
let isEnded = false;
//: What the header reported about the connection.
const troubles = [];
Object.defineProperty($("link"), "textContent", { get: () => "", set: (text) => text && troubles.push(text) });
const say = (text) => stream?.enqueue(new TextEncoder().encode(text));
Object.assign(routes, {
  "/logs": (of) => Response.json({ logs: lines.slice(Number(of.get("offset"))), cursor: null }, { headers: { "Last-Event-ID": String(lines.length) } }),
  "/logs/search": (of) => {
    asked.push(of.get("q"));
    const found = lines.filter(({ sequence_num: number, message }) => number > Number(of.get("offset")) && message.includes(of.get("q")));
    return Response.json({ logs: found, cursor: null }, { headers: { "Last-Event-ID": String(lines.length) } });
  },
  "/events": (_, signal) => {
    opened += 1;
    if (isEnded) return new Response(null, { status: 204 });
    if (opened === 1) {
      // The service waits for 300 s.
      const { now } = performance;
      performance.now = () => now.call(performance) + 300_000;
      const text = "event: connected\ndata: {}\n\nevent: error\ndata: the job did not appear within 300 s\n\n";
      return new Response(text, { headers: { "Content-Type": "text/event-stream" } });
    }
    const body = new ReadableStream({ start: (controller) => (stream = controller) });
    signal.addEventListener("abort", () => (stream?.error(signal.reason), (stream = null)), { once: true });
    say("event: connected\ndata: {}\nretry: 1\n\n");
    say(frame("job", { status: "RUNNING", first_sequence_num: 1, last_sequence_num: 3 }) + lines.map((each) => frame("log", each, each.sequence_num)).join(""));
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
  },
});
const beating = setInterval(() => say(":\n\n"), 20);
document.documentElement.dataset.heartbeat = "0.5";
await open();

test("a page waits for its job for any time, without a word", async () => {
  await until(() => stream);
  deepEqual([opened, troubles.filter((text) => text !== "reconnecting…")], [2, []]);
});

test("a new error is counted without a request", async () => {
  await until(() => stream && $("errorcount").textContent === "1");
  const before = asked.length;
  for (const each of [line(4, "another error"), line(5)]) {
    lines.push(each);
    say(frame("log", each, each.sequence_num));
  }
  await until(() => $("errorcount").textContent === "2" && rows().length === 5);
  equal(asked.length, before);
});

test("a redaction restarts the searches", async () => {
  find("line 3");
  await until(() => $("count").textContent === "1 of 1");
  const [before, errors] = [searches("line 3"), searches("error")];
  lines[2] = line(3, "[redacted]");
  say(frame("redact", { from: 3, to: 3 }));
  await until(() => $("count").textContent === "no match" && searches("error") > errors);
  deepEqual([searches("line 3"), searches("error")], [before + 1, errors + 1]);
});

test("a hidden tab, whose timers are slow, reads all lines", async () => {
  const timer = globalThis.setTimeout;
  document.hidden = true;
  globalThis.setTimeout = (run, ms, ...more) => timer(run, ms || 60_000, ...more);
  const more = Array.from({ length: 5000 }, (_, index) => line(lines.length + 1 + index));
  lines.push(...more);
  say(more.map((each) => frame("log", each, each.sequence_num)).join(""));
  await until(() => $("q").placeholder === "Find in 5,005 lines");
  globalThis.setTimeout = timer;
  document.hidden = false;
});

test("a stream that misses three heartbeats is opened again", async () => {
  const before = opened;
  clearInterval(beating);
  await until(() => opened > before);
});

test("a log that lost lines and has ended shows its end, of which the reader is notified on request", async () => {
  const sent = [];
  globalThis.Notification = class extends EventTarget {
    static requestPermission = async () => "granted";
    constructor(title) {
      super();
      sent.push(title);
    }
  };
  $("notify").click();
  isEnded = true;
  routes[""] = () => Response.json({ id: "j", workflow_id: "w", status: "COMPLETED", exit_code: 0, first_sequence_num: 1, last_sequence_num: 2 });
  stream?.close();
  await until(() => $("badge").dataset.status === "COMPLETED");
  deepEqual(sent, ["j: Completed"]);
});
