// A list that is paged and follows changes. Also tests of the JavaScript client.

import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { test } from "node:test";

import { refusal, Refused } from "../../chronoverse/web/static/client/request.js";
import { $, renew, until } from "./document.mjs";

const js = "../../chronoverse/web/static";
const { makeList } = await import(`${js}/js/list.js`);
const { cached, causeOf } = await import(`${js}/js/causes.js`);
const { Backoff, follow, get, page, StreamError, wait, end } = await import(`${js}/client/index.js`).then(async (all) => ({ ...all, ...(await import(`${js}/client/request.js`)) }));

const settle = (ms = 5) => new Promise((done) => setTimeout(done, ms));

/**
 * A list of a service's jobs: `size` at first, at most `most` per response. `say(event, data)` sends a frame of
 * changes.
 */
function listed(jobs, { size = 2, streams = true, most = Infinity, arrange = (items) => items } = {}) {
  renew("more");
  $("list").hidden = false;
  const asked = [];
  globalThis.fetch = async (request) => {
    const of = new URL(request.url).searchParams;
    const [limit, after] = [Number(of.get("limit")), of.get("cursor")];
    asked.push(`${after ?? "-"}+${limit}`);
    const start = after === null ? 0 : jobs.findIndex(({ id }) => id === after) + 1;
    const items = jobs.slice(start, start + Math.min(limit, most));
    return Response.json({ jobs: structuredClone(items), cursor: start + items.length < jobs.length ? items.at(-1).id : null });
  };
  let say;
  const frames = [];
  async function* changes(signal) {
    for (;;) {
      for (; frames.length; frames.shift()) {
        if (frames[0].event === "fail") throw frames.shift();
        yield frames[0];
      }
      await new Promise((done) => ((say = done), signal.addEventListener("abort", done)));
      if (signal.aborted) return;
    }
  }
  const made = [];
  const shown = () => list.items.map(({ id, status }) => (status ? `${id} ${status}` : id));
  const options = { address: () => ["http://127.0.0.1/workflows/w/jobs", []], name: "jobs", cells: ({ id }) => (made.push(id), []), update() {}, arrange, loaded() {}, empty: () => "none", refused: String, wants: ({ status }) => status !== "gone", size, ...(streams ? { changes } : {}) };
  const list = makeList(options);
  return { asked, list, made, shown, say: (event, data) => (frames.push({ event, data }), say?.()) };
}
const job = (id, more = {}) => ({ id, created_at: `2026-03-03T10:00:${String(id).padStart(2, "0")}Z`, ...more });

test("a list starts with one page, and loads more on request", async () => {
  const jobs = [5, 4, 3, 2, 1].map((id) => job(`${id}`));
  const { asked, list, shown } = listed(jobs);
  list.refresh();
  await until(() => shown().length === 2);
  equal(list.hasMore, true);
  $("more").dispatchEvent(new Event("click"));
  await until(() => shown().length === 4);
  deepEqual([shown(), asked], [["5", "4", "3", "2"], ["-+2", "4+2"]]);
  $("more").dispatchEvent(new Event("click"));
  await until(() => shown().length === 5);
  equal(list.hasMore, false);
  list.stop();
});

test("the focus moves once, to the first row that “Show more” has added", async () => {
  const { list, shown } = listed([4, 3, 2, 1].map((id) => job(`${id}`)), { arrange: (items) => items.toSorted((a, b) => (b.id === "2") - (a.id === "2")) });
  const focused = [];
  Object.getPrototypeOf(document.body).focus = function () { focused.push($("tbody").children.findIndex((row) => row.querySelector("a") === this)); };
  list.refresh();
  await until(() => shown().length === 2);
  $("more").dispatchEvent(new Event("click"));
  // The page shows the list again every second, also before the response.
  list.show();
  await until(() => shown().length === 4);
  list.show();
  deepEqual(focused, [0]);
  list.stop();
});

test("more items are loaded even if another request replaces theirs", async () => {
  const { list, shown } = listed([4, 3, 2, 1].map((id) => job(`${id}`)));
  list.refresh();
  await until(() => shown().length === 2);
  $("more").dispatchEvent(new Event("click"));
  list.refresh();
  await until(() => shown().length === 4);
  list.stop();
});

test("a list whose changes have no stream, or a broken one, is reloaded every five seconds, but not in a hidden tab", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const turn = async () => { for (let turns = 0; turns < 20; turns += 1) await new Promise(setImmediate); };
  for (const streams of [false, true]) {
    const { asked, list, say } = listed([job("1")], { streams });
    list.refresh();
    for (const [hidden, requests] of [[false, 2], [true, 2], [true, 2], [false, 3]]) {
      await turn();
      say("fail");
      await turn();
      document.hidden = hidden;
      t.mock.timers.tick(5000);
      await turn();
      equal(asked.length, requests);
    }
    list.stop();
  }
});

test("a stopped list no longer reports that the service does not answer", async () => {
  const { list } = listed([]);
  let bar;
  $("header").after = (element) => (bar = element);
  globalThis.fetch = async () => { throw new TypeError("away"); };
  list.refresh();
  await until(() => bar?.hidden === false);
  list.stop();
  equal(bar.hidden, true);
});

test("a reloaded list keeps its length", async () => {
  const jobs = [4, 3, 2, 1].map((id) => job(`${id}`));
  const { asked, list, shown } = listed(jobs, { size: 2, streams: false });
  list.refresh();
  await until(() => shown().length === 2);
  $("more").dispatchEvent(new Event("click"));
  await until(() => shown().length === 4);
  jobs.unshift(job("6"), job("5"));
  list.refresh();
  await until(() => shown().includes("5"));
  deepEqual([shown(), list.hasMore, asked.at(-1)], [["6", "5", "4", "3"], true, "-+4"]);
  list.stop();
});

test("a short page is followed by the next", async () => {
  const jobs = [4, 3, 2, 1].map((id) => job(`${id}`));
  const { asked, list, shown } = listed(jobs, { size: 3, streams: false, most: 2 });
  list.refresh();
  await until(() => shown().length === 3);
  deepEqual([shown(), asked], [["4", "3", "2"], ["-+3", "3+1"]]);
  list.stop();
});

test("changed items are put in their place, and unwanted ones removed", async () => {
  const jobs = [5, 4, 2, 1].map((id) => job(`${id}`, { status: "old" }));
  const { asked, list, made, say, shown } = listed(jobs, { size: 4 });
  list.refresh();
  await until(() => shown().length === 4);
  made.length = 0;
  say("job", job("5", { status: "old", lines: 7 }));
  // Only the changed row is made again.
  await until(() => made.length);
  deepEqual(made, ["5"]);
  for (const changed of [job("6"), job("3"), job("4", { status: "gone" }), job("2", { status: "new" }), job("0")]) say("job", changed);
  await until(() => shown().includes("0"));
  deepEqual(shown(), ["6", "5 old", "3", "2 new", "1 old", "0"]);
  equal(asked.length, 1);
  jobs.length = 1;
  say("reset", null);
  await until(() => shown().length === 1);
  deepEqual([shown(), asked.length], [["5 old"], 2]);
  list.stop();
});

test("new items push out the oldest beyond 1,000, which “Show more” loads again", async () => {
  const at = (number) => ({ id: `${number}`, created_at: new Date(60_000 * number).toISOString() });
  for (const size of [999, 998]) {
    const jobs = Array.from({ length: 999 }, (_, index) => at(1000 - index));
    const { list, say, shown } = listed(jobs, { size });
    list.refresh();
    await until(() => shown().length === size);
    equal(list.hasMore, size < 999);
    for (const number of [1001, 1002, 1003]) {
      jobs.unshift(at(number));
      say("job", at(number));
    }
    await until(() => shown().includes("1003"));
    deepEqual([shown().length, shown().at(-1), list.hasMore], [1000, "4", true]);
    $("more").dispatchEvent(new Event("click"));
    await until(() => shown().length === 1002);
    deepEqual([shown().at(-1), list.hasMore], ["2", false]);
    list.stop();
  }
});

test("late answers to earlier filters change nothing", async () => {
  const { list, shown } = listed([], { streams: false });
  for (const [late, status] of [[[job("old")], 200], [null, 403]]) {
    const answers = [];
    globalThis.fetch = () => new Promise((done) => answers.push((jobs, status = 200) => done(Response.json({ jobs, cursor: null }, { status }))));
    $("notice").textContent = "";
    list.restart();
    list.restart();
    await until(() => answers.length === 2);
    answers[0](late, status);
    await settle(20);
    deepEqual([shown(), $("notice").textContent], [[], ""]);
    answers[1]([job("new")]);
    await until(() => shown()[0] === "new");
    list.refresh();
    await until(() => answers.length === 3);
    list.stop();
    answers[2]([job("late")]);
    await settle(20);
    deepEqual(shown(), ["new"]);
  }
});

test("a change during a reload takes precedence over the response", async () => {
  const jobs = [5, 4].map((id) => job(`${id}`));
  const { list, say, shown } = listed(jobs);
  list.refresh();
  await until(() => shown().length === 2);
  const serve = globalThis.fetch;
  let answer;
  globalThis.fetch = async (request) => {
    const old = await serve(request);
    await new Promise((done) => (answer = done));
    return old;
  };
  jobs.splice(1, 1, job("3"));
  list.refresh();
  await until(() => answer);
  say("job", job("5", { status: "new" }));
  await until(() => shown().includes("5 new"));
  answer();
  await until(() => shown().includes("3"));
  deepEqual(shown(), ["5 new", "3"]);
  list.stop();
});

test("the oldest item of a partial list stays when it changes", async () => {
  const { list, say, shown } = listed([5, 4, 3].map((id) => job(`${id}`)));
  list.refresh();
  await until(() => shown().length === 2);
  for (const changed of [job("4", { status: "new" }), job("3", { status: "new" }), job("5", { status: "new" })]) say("job", changed);
  await until(() => shown()[0] === "5 new");
  deepEqual(shown(), ["5 new", "4 new"]);
  list.stop();
});

test("a cause is requested once, with limited concurrency", async () => {
  let now = 0;
  let most = 0;
  const answers = [];
  const ask = (key) => async () => {
    most = Math.max(most, (now += 1));
    await new Promise((done) => answers.push(done));
    now -= 1;
    if (key === 3) throw new Error("not to be had");
    if (key === 4 && (refusals += 1) === 1) throw new Refused(429, "busy", 0);
    return key;
  };
  let told = 0;
  let refusals = 0;
  const order = [];
  for (let key = 0; key < 30; key += 1) for (let again = 0; again < 2; again += 1) equal(cached(key, ask(key), () => (told += 1)), undefined);
  for (let answered = 0; answered < 21; answered += 1) {
    await until(() => answers.length);
    answers.shift()();
  }
  await until(() => told === 20 && now === 0);
  // A request refused by a busy service was retried.
  deepEqual([most, cached(2, ask(2), () => {}), cached(3, ask(3), () => {}), cached(4, ask(4), () => {}), cached(19, ask(19), () => {})], [4, 2, undefined, 4, 19]);
  for (const [key, lines] of [["long", 9], ["middle", 5], ["short", 1]]) cached(key, async () => order.push(key), () => {}, lines);
  await until(() => order.length === 3);
  deepEqual(order, ["short", "middle", "long"]);
});

test("a cause is requested again an hour later, as its line may be redacted", async (context) => {
  let message = "secret";
  globalThis.fetch = async () => Response.json({ job: { status: "FAILED", exit_code: 1 }, cause: { kind: "error", confidence: "high", line: { message } }, errors: { count: 1 } });
  const cause = () => causeOf("w", "redacted", () => {}, 1);
  await until(() => cause() === "secret");
  message = "[redacted]";
  const now = performance.now();
  context.mock.method(performance, "now", () => now + 3_600_000);
  await until(() => cause() === message);
});

// The client.

const of = { service: "http://127.0.0.1", workflow: "w", job: "j", token: "t" };
const log = (number) => `event: log\ndata: {"sequence_num":${number},"message":"m"}\nid: ${number}\n\n`;
const JOB = 'event: job\ndata: {"status":"RUNNING"}\n\n';
const END = 'event: end\ndata: {"status":"stream_ended"}\nid: 4\n\n';
const RETRY = 'event: connected\ndata: {}\nretry: 1\n\n';

/** Responds to each request with the next of these: a status, a document, or an event stream. Returns the requests. */
function script(...answers) {
  const asked = [];
  globalThis.fetch = async (request) => {
    asked.push(`${new URL(request.url).pathname.split("/").at(-1)}${new URL(request.url).search} ${request.headers.get("Last-Event-ID") ?? "-"} ${request.headers.get("Authorization")}`);
    const answer = answers.length ? answers.shift() : 410;
    if (answer instanceof Error) throw answer;
    if (typeof answer === "string") return new Response(answer, { headers: { "Content-Type": "text/event-stream" } });
    if (typeof answer === "number") return answer === 204 ? new Response(null, { status: 204 }) : Response.json({ status: answer, detail: "no" }, { status: answer, headers: { "Content-Type": "application/problem+json" } });
    return Response.json(answer, { headers: { "Last-Event-ID": "7" } });
  };
  return asked;
}
async function read(options, into = []) {
  for await (const { event, cursor } of follow({ ...of, ...options })) into.push(`${event} ${cursor}`);
  return into;
}

test("follow resumes after the last line of a broken connection, without duplicates", async () => {
  // The first connection breaks within a frame.
  const asked = script(RETRY + JOB + log(1) + log(2) + log(3).slice(0, -1), new TypeError("broken"), 503, log(2) + log(3) + 'id: 4\n\n', log(4) + END);
  const delays = [];
  deepEqual(await read({ onReconnect: (_, ms) => delays.push(ms) }), ["connected null", "job null", "log 1", "log 2", "log 3", "cursor 4", "end 4"]);
  deepEqual(asked.map((each) => each.split(" ")[1]), ["-", "2", "2", "2", "4"]);
  ok(delays.length === 4 && delays.every((ms) => ms < 100), String(delays));
  // A heartbeat is a success: the delay does not grow.
  script(...Array(8).fill(`${RETRY}:\n`), log(1) + END);
  delays.length = 0;
  await read({ onReconnect: (_, ms) => delays.push(ms) });
  ok(delays.length === 8 && delays.every((ms) => ms < 2), String(delays));
  script(RETRY, 503, 503, 503, log(1) + END);
  await rejects(read({ giveUpAfter: 0 }));
  // A service that waited for the job as long as requested is asked again at once.
  let ms = 0;
  performance.now = () => (ms += 400_000);
  script("event: connected\ndata: {}\n\nevent: error\ndata: no job yet\n\n", RETRY + JOB + log(1) + END);
  delays.length = 0;
  await read({ wait: Infinity, giveUpAfter: Infinity, onReconnect: (_, delay) => delays.push(delay) });
  delete performance.now;
  deepEqual(delays, [0]);
});

test("each number is read once and in order, wherever connections break", async () => {
  const { delay } = Backoff.prototype;
  Backoff.prototype.delay = () => 0;
  for (let seed = 1; seed <= 60; seed += 1) {
    let state = seed;
    const random = (below) => ((state = (state * 16_807) % 2_147_483_647) % below);
    const entries = [];
    for (let from = 1; entries.length < 12; ) {
      const to = from + Math.max(0, random(8) - 4);
      // Gaps can reach back to lines that were read.
      entries.push({ to, frame: to === from ? log(from) : `event: gap\ndata: {"from":${Math.max(1, from - random(3))},"to":${to}}\nid: ${to}\n\n` });
      from = to + 1;
    }
    const last = entries.at(-1).to;
    globalThis.fetch = async (request) => {
      const kind = random(6);
      if (kind === 0) throw new TypeError("broken");
      if (kind === 1) return Response.json({}, { status: 503 });
      // A connection sends what follows, or something that was sent before.
      const after = kind === 2 ? 0 : Number(request.headers.get("Last-Event-ID") ?? 0);
      const text = RETRY + JOB + entries.filter(({ to }) => to > after).map(({ frame }) => frame).join("") + END.replace("4", last + 1);
      const end = random(2) ? text.length : random(text.length);
      const middle = random(end + 1);
      const body = new ReadableStream({ start: (out) => (out.enqueue(Buffer.from(text.slice(0, middle))), out.enqueue(Buffer.from(text.slice(middle, end))), out.close()) });
      return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
    };
    const found = [];
    let tries = 0;
    for await (const { event, data, cursor } of follow({ ...of, onReconnect: () => ok((tries += 1) < 500, String(seed)) })) {
      if (event === "log") found.push(data.sequence_num);
      if (event === "gap") ok(data.from <= data.to, String(seed));
      if (event === "gap") for (let number = data.from; number <= data.to; number += 1) found.push(number);
      if (found.length) equal(cursor, event === "end" ? last + 1 : found.at(-1), String(seed));
    }
    deepEqual(found, Array.from({ length: last }, (_, index) => index + 1), String(seed));
  }
  Backoff.prototype.delay = delay;
});

test("an error with an id ends the log", async () => {
  script(RETRY + log(1) + "event: error\ndata: lost\nid: 6\n\n");
  await rejects(read({}), (error) => error instanceof StreamError && error.message === "lost" && error.cursor === 6);
  script(RETRY + log(1) + "event: error\ndata: the store is away\n\n", log(2) + END);
  deepEqual(await read({ offset: 0 }), ["connected 0", "log 1", "error 1", "log 2", "end 4"]);
  script(RETRY + log(1), 204);
  deepEqual(await read({}), ["connected null", "log 1"]);
  script(404);
  await rejects(read({}), { status: 404 });
});

test("an expired token is replaced at once, but not again and again", async () => {
  const expired = RETRY + "event: error\ndata: token expired\n\n";
  script(expired, RETRY + log(1), expired, expired, log(2) + END);
  const delays = [];
  const signal = new AbortController().signal;
  let listeners = 0;
  for (const [name, by] of [["addEventListener", 1], ["removeEventListener", -1]]) {
    const own = signal[name].bind(signal);
    signal[name] = (...all) => ((listeners += by), own(...all));
  }
  await read({ signal, token: async () => "t", onReconnect: (_, ms) => delays.push(ms) });
  deepEqual([delays.map((ms) => ms > 0), listeners], [[false, true, true, true], 0]);
});

test("a rejected token is replaced once per request", async () => {
  const tokens = ["old", "new"];
  const asked = script(401, { logs: [], cursor: null }, 401, 401);
  const { position } = await page({ ...of, token: async () => tokens.shift() });
  deepEqual([position, asked.map((each) => each.split(" ").at(-1))], [7, ["old", "new"]]);
  await rejects(page({ ...of, token: async () => "bad" }), { status: 401 });
  equal(asked.length, 4);
});

test("an aborted request throws the signal's reason", async () => {
  globalThis.fetch = (_, { signal }) => new Promise((_, failed) => signal.addEventListener("abort", () => failed(signal.reason)));
  const stop = new AbortController();
  const asked = get("http://127.0.0.1/readyz", { signal: stop.signal });
  setTimeout(() => stop.abort(new Error("enough")), 5);
  await rejects(asked, { message: "enough" });
});

test("transient errors of pages are retried a few times", async () => {
  const asked = script(503, { logs: [1], cursor: "c" }, 400);
  globalThis.document.visibilityState = "visible";
  const delay = Backoff.prototype.delay;
  Backoff.prototype.delay = () => 1;
  deepEqual((await page({ ...of, q: "a&b", limit: 5 })).logs, [1]);
  deepEqual(asked[0].split(" ")[0], "search?q=a%26b&limit=5");
  await rejects(page(of), { status: 400 });
  const failing = script(503, 503, 503, 503, 503);
  await rejects(page(of), { status: 503 });
  equal(failing.length, 4);
  script({ status: "FAILED" });
  deepEqual(await end({ ...of, status: "FAILED", exitCode: 3 }), { status: "FAILED" });
  // A wait that finds nothing resumes at the last cursor, and keeps all gaps.
  const waits = script({ outcome: "timeout", cursor: 5, gaps: [1] }, 503, { outcome: "matched", cursor: 9, gaps: [2] });
  deepEqual(await wait({ ...of, q: "x" }), { outcome: "matched", cursor: 9, gaps: [1, 2] });
  deepEqual(waits.map((each) => new URLSearchParams(each.split(" ")[0].slice(4)).get("offset")), [null, "5", "5"]);
  script({ outcome: "timeout", cursor: 5 });
  deepEqual(await wait({ ...of, timeout: 0 }), { outcome: "timeout", cursor: 5, gaps: [] });
  // A wait for the end starts each request at the end of the log.
  const ends = script({ outcome: "timeout", cursor: 5 }, { outcome: "ended", cursor: 9 });
  equal((await wait(of)).outcome, "ended");
  ok(!ends.some((each) => each.includes("offset")), String(ends));
  Backoff.prototype.delay = delay;
  // In the last half second, a request waits for nothing.
  const absent = script(...Array(200).fill(404));
  await rejects(wait({ ...of, timeout: 0.4 }), { status: 404 });
  ok(absent.length < 4, String(absent.length));
  const backoff = new Backoff();
  const bounds = [0, 1, 2, 3].map(() => { backoff.failed(); return backoff.delay(null) / (backoff.retryMs * 2 ** (backoff.failures - 1)); });
  ok(bounds.slice(0, 2).every((share) => share >= 0.74 && share <= 1.26), String(bounds));
  backoff.succeeded();
  equal(backoff.failures, 0);
  const after = async (value) => (await refusal(new Response("", { status: 503, headers: { "Retry-After": value } }))).retryAfter;
  deepEqual([await after("7"), await after("soon"), await after("Tue, 03 Mar 2020 10:00:00 GMT")], [7, 0, 0]);
  // A longer timer would end at once.
  for (const value of ["9".repeat(30), "Fri, 03 Mar 2990 10:00:00 GMT"]) ok(backoff.delay(new Refused(503, "busy", await after(value))) < 2 ** 31, value);
  const dated = await after(new Date(Date.now() + 60_000).toUTCString());
  ok(dated > 30 && dated <= 60, dated);
  ok(backoff.delay(new Refused(503, "busy", 90)) >= 90_000);
});
