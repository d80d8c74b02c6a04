// What the page tells about a log that is incomplete, or not scanned yet.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";

const js = "../../chronoverse/web/static/js";
const { Log } = await import(`${js}/log.js`);
const { RowMaker } = await import(`${js}/row.js`);
const { makeScan } = await import(`${js}/scan.js`);
const { showSummary } = await import(`${js}/summary.js`);
const { showArrival, showJob, showLast, showLost, tellProgress } = await import(`${js}/status.js`);

const PATH = "http://127.0.0.1/workflows/w/jobs/j";
const line = (number, more = {}) => ({ sequence_num: number, message: `line ${number}`, timestamp: "2026-03-03T10:00:05Z", stream: "stdout", ...more });

test("a gap has its numbers and its reason", () => {
  const text = (from, to, reason) => new RowMaker().element({ number: from, gap: { from, to, reason } }).children.at(-1).textContent;
  equal(text(1, 899, "trimmed"), "Lines 1 to 899 are no longer kept");
  equal(text(902, 902, "missing"), "Line 902 is missing from the log");
  deepEqual(["lost", "quota", "malformed"].map((reason) => text(1200, 1200, reason)), [
    "Line 1,200 is lost", "Line 1,200 is beyond the quota", "Line 1,200 is unreadable",
  ]);
});

test("a number within a row, of a part or in a gap, marks the row", () => {
  const log = new Log(PATH, () => {});
  for (const each of [line(1, { partial: true }), line(2, { stream: "stderr" }), line(3), line(7)]) log.append(each);
  const marked = (of) => [0, 1, 2, 3].map((row) => Object.assign(new RowMaker(), of).element(log.itemAt(row)).className);
  deepEqual(marked({ current: 3, picked: { from: 5, to: 5 }, cause: 2 }), ["row current", "row cause-row", "row picked", "row"]);
});

test("a row is made again if anything that it shows changes", () => {
  const stamp = (item, of = {}) => Object.assign(new RowMaker(), of).stamp({ number: 3, line: line(3), ...item });
  const gap = { from: 3, to: 4, reason: "missing" };
  const items = [{}, { folded: true }, { updates: 2 }, { line: line(3, { parts: 2 }) }, { line: undefined }, { line: null, gap }, { line: null, gap: { ...gap, reason: "trimmed" } }];
  const states = [{ isNew: () => true }, { took: () => 5 }, { current: 3 }, { cause: 3 }, { picked: { from: 1, to: 3 } }];
  equal(new Set([...items.map((item) => stamp(item)), ...states.map((of) => stamp({}, of))]).size, items.length + states.length);
});

test("the parts of a long line stay one row when groups are unfolded", () => {
  const log = new Log(PATH, () => {});
  for (const each of [line(1, { partial: true }), line(2), line(3), line(4)]) log.append(each);
  equal(log.count, 3);
  log.foldAll([[3, 4]]);
  equal(log.count, 2);
  log.foldAll([]);
  equal(log.count, 3);
});

test("a scan that a busy service refuses is repeated", async () => {
  const answers = [Response.json({ status: 503 }, { status: 503 }), Response.json({ logs: [line(7)], cursor: null }, { headers: { "Last-Event-ID": "9" } })];
  globalThis.fetch = async () => answers.shift();
  const scan = makeScan(PATH, { q: "line" }, () => 9, () => {});
  await until(() => scan.done);
  deepEqual([scan.numbers, scan.error, scan.position], [[7], null, 9]);
});

/** Shows these summaries, the last one repeatedly. Returns what the card says after each. */
async function summaries(...bodies) {
  const told = [];
  const job = { workflow_id: "w", id: "j", status: "FAILED", last_sequence_num: 600 };
  const none = { count: 0, first: [] };
  globalThis.fetch = async () => Response.json({ job, new: none, errors: none, complete: true, ...(bodies.length > 1 ? bodies.shift() : bodies[0]) });
  await showSummary(PATH, () => told.push($("scanned").hidden ? "all" : $("scanned").textContent));
  return told;
}

test("a summary is requested until all lines are scanned", async () => {
  const cause = { from: 5, to: 5, kind: "error", line: line(5) };
  const some = { complete: false, scanned_to: 401, cause: null };
  deepEqual(await summaries(some, { ...some, scanned_to: 1 }, { cause }), ["Scanned 200 of 600 lines", "Scanned 600 of 600 lines", "all"]);
});

test("unread runs are requested a few more times", async () => {
  const seen = { looked_at: 2, COMPLETED: 0, FAILED: 0, without_shapes: 1, first_id: "j" };
  const cause = { from: 5, to: 5, kind: "error", line: line(5, { seen }) };
  equal((await summaries({ cause })).length, 4);
  equal((await summaries({ cause }, { cause: { ...cause, line: line(5, { seen: { ...seen, without_shapes: 0 } }) } })).length, 2);
});

test("an annotation shows its kind and place, and a match in the right place", () => {
  const maker = new RowMaker();
  const message = "::error file=a.js,line=3::no semicolon";
  maker.marks = () => [[message.indexOf("semi"), message.length]];
  const row = maker.element({ number: 1, line: line(1, { message }) });
  const [kind, place, text] = row.children.slice(-3);
  deepEqual([kind.textContent, place.textContent, text.textContent], ["error", "a.js:3", "no semicolon"]);
  equal(text.children.at(-1).name, "mark");
  equal(text.children.at(-1).textContent, "semicolon");
});

test("the end of a job is notified once, and a button for notifications that are blocked says so", async () => {
  let permission = "granted";
  const sent = [];
  globalThis.Notification = class extends EventTarget {
    static requestPermission = async () => permission;
    constructor(title, { body }) {
      super();
      sent.push([title, body]);
    }
  };
  let isPhone = true;
  globalThis.matchMedia = () => ({ matches: isPhone });
  const { notifyOfEnd } = await import(`${js}/notify.js`);
  notifyOfEnd(true, "Running", "j");
  equal($("notify").hidden, true, "phones have the class, but its constructor throws");
  isPhone = false;
  notifyOfEnd(true, "Running", "j");
  equal($("notify").hidden, false);
  $("notify").click();
  for (const isLive of [true, false, false]) notifyOfEnd(isLive, "Failed · exit 3", "j");
  deepEqual([sent, $("notify").ariaPressed, $("notify").hidden], [[["j: Failed · exit 3", "127.0.0.1"]], "false", true]);
  permission = "denied";
  $("notify").click();
  await until(() => $("notify").disabled);
  equal($("notify").textContent, "Notifications are blocked by the browser");
  equal($("notify").ariaPressed, "false");
});

test("a line that has just arrived is new, although the runner's clock is an hour behind", () => {
  const told = [];
  const at = new Date(Date.now() - 3_600_000).toISOString();
  tellProgress((foot) => told.push(foot));
  showLast(1, at);
  showJob({ status: "RUNNING" }, 1);
  showArrival(at);
  // This line took two hours longer to arrive.
  showArrival(new Date(Date.parse(at) - 7_200_000).toISOString());
  showLast(1, new Date(Date.parse(at) - 7_200_000).toISOString());
  showJob({ status: "RUNNING" }, 1);
  deepEqual(told, ["Running · last line 1 h 00 min ago", "Running · last line 2 h 00 min ago"]);
});

test("a stream that is silent again and again may be buffered by a proxy", () => {
  const told = [];
  $("link").hidden = true;
  for (const text of ["no data for 45 s", "no such host", "no data for 45 s", "no data for 45 s"]) {
    showLost(new Error(text), 1);
    told.push($("link").textContent);
  }
  deepEqual(told.map((text) => text.includes("a proxy buffers it")), [false, false, false, true]);
});

test("a hidden tab requests no profile", async () => {
  const { makeProfile } = await import(`${js}/profile.js`);
  let asked = 0;
  globalThis.fetch = async () => ((asked += 1), Response.json({ status: 404 }, { status: 404 }));
  sessionStorage.setItem("chronoverse.token", "token");
  globalThis.localStorage = sessionStorage;
  document.hidden = true;
  makeProfile(PATH, { last: 1 }, {}).follow(() => false);
  await new Promise((done) => setTimeout(done, 30));
  equal(asked, 0);
  document.hidden = false;
  await until(() => asked);
});
