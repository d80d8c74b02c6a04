// The loaded lines, and what the page makes of them: rows, groups, matches.

import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";

import { until } from "./document.mjs";

const js = "../../chronoverse/web/static/js";
const { Log, WINDOW } = await import(`${js}/log.js`);
const { Groups } = await import(`${js}/groups.js`);
const { findOne, query, route, makeScan } = await import(`${js}/scan.js`);

const PATH = "http://127.0.0.1/workflows/w/jobs/j";
const NOW = Date.parse("2026-03-03T10:00:00Z");
const at = (number, message, more = {}) => ({ sequence_num: number, message, timestamp: new Date(NOW + 1000 * number).toISOString(), stream: "stdout", ...more });
/** Long enough for a request that should not happen: the page's timers have 0 and 40 ms. */
const settle = (ms = 60) => new Promise((done) => setTimeout(done, ms));

/** A service with these lines, at most `most` per response. `asked` is the requests; each response waits for `gate`. */
function serve(lines, { most = 1000, accepts = () => true, gate = () => null } = {}) {
  const asked = [];
  globalThis.fetch = async (request) => {
    const { pathname, searchParams: of } = new URL(request.url);
    const [offset, limit, isUp] = [Number(of.get("offset") ?? 0), Number(of.get("limit")), of.get("order") !== "desc"];
    asked.push(`${pathname.split("/j/")[1]} ${offset}+${limit}`);
    const found = structuredClone(lines);
    await gate();
    const follows = (isUp ? found : found.reverse()).filter(({ sequence_num: number }) => (isUp ? number > offset : number < offset));
    const page = follows.filter(accepts).slice(0, Math.min(limit, most));
    const isLast = follows.filter(accepts).length <= page.length;
    const reached = isLast ? (isUp ? found.at(-1)?.sequence_num ?? 0 : 1) : page.at(-1).sequence_num;
    return Response.json({ logs: page, cursor: isLast ? null : "next" }, { headers: { "Last-Event-ID": String(reached) } });
  };
  return asked;
}

/** A log whose rows have all been shown, from first to last. */
async function opened(lines, options, last = lines.at(-1)?.sequence_num ?? 0) {
  const asked = serve(lines, options);
  const log = new Log(PATH, () => {});
  log.setExtent(1, last);
  for (let row = 0; row <= last; row += WINDOW / 2) {
    log.load(row, row + 10);
    await until(() => row >= log.count || log.itemAt(row).line || log.itemAt(row).gap);
  }
  return { log, asked };
}

/** The content of the rows: a number and its text, or a gap. */
const rows = (log) =>
  Array.from({ length: log.count }, (_, row) => log.itemAt(row)).map(({ number, line, gap }) => (gap ? `${gap.reason} ${gap.from}-${gap.to}` : line ? `${number} ${line.message}` : `${number}?`));

test("all windows of a log are fetched once, with the service's page sizes, and shown in order", async () => {
  const lines = Array.from({ length: 450 }, (_, index) => at(index + 1, `m${index + 1}`));
  const { log, asked } = await opened(lines, { most: 150 });
  deepEqual(rows(log), lines.map(({ sequence_num: number, message }) => `${number} ${message}`));
  deepEqual(asked, ["logs 0+200", "logs 150+50", "logs 200+200", "logs 350+50", "logs 400+200"]);
  log.load(0, 10);
  await settle();
  equal(asked.length, 5);
});

test("each gap is one row, even at the ends of a window", async () => {
  const missing = [1, 2, 7, 199, 200, 201, 202, 399, 400];
  const lines = Array.from({ length: 400 }, (_, index) => at(index + 1, "m")).filter(({ sequence_num: number }) => !missing.includes(number));
  const { log } = await opened(lines, {}, 400);
  deepEqual(rows(log).filter((row) => row.startsWith("missing")), ["missing 1-2", "missing 7-7", "missing 199-202", "missing 399-400"]);
  equal(log.count, 400 - 1 - 3 - 1);
  for (let row = 0; row < log.count; row += 1) equal(log.rowOf(log.numberAt(row)), row);
  equal(log.rowOf(2), log.rowOf(1));
});

test("a gap keeps the reason that the stream gave when its lines are fetched again", async () => {
  const lines = [at(1, "a"), at(5, "b"), at(8, "c")];
  serve(lines);
  const log = new Log(PATH, () => {});
  log.append(lines[0]);
  log.gap(2, 4, "lost");
  for (const each of lines.slice(1)) log.append(each);
  log.redact(1, 8);
  log.load(0, 10);
  await until(() => log.get(8));
  deepEqual(rows(log), ["1 a", "lost 2-4", "5 b", "missing 6-7", "8 c"]);
});

test("a log without its beginning has a row for the trimmed lines", async () => {
  const log = new Log(PATH, () => {});
  log.setExtent(5, 6);
  log.append(at(5, "a"));
  log.append(at(6, "b"));
  deepEqual(rows(log), ["trimmed 1-4", "5 a", "6 b"]);
  log.setExtent(5, 4);
  equal(log.last, 6);
  const asked = serve([at(900, "c")]);
  const later = new Log(PATH, () => {});
  later.setExtent(900, 2000);
  await later.fetchHead();
  deepEqual(asked, ["logs 800+200"]);
});

test("a gap that takes in others is not requested forever", async () => {
  const lines = Array.from({ length: 500 }, (_, index) => at(index + 501, "m"));
  const asked = serve(lines);
  const log = new Log(PATH, () => {});
  log.setExtent(1, 1000);
  log.load(300, 310);
  await until(() => log.itemAt(200).gap);
  lines.splice(0, 349);
  log.setExtent(850, 1000);
  log.load(0, 10);
  await until(() => log.get(850));
  await settle();
  deepEqual([rows(log).slice(0, 2), log.count, asked.length], [["trimmed 1-849", "850 m"], 152, 4]);
});

test("live lines are appended once, and skipped numbers are a gap", () => {
  const log = new Log(PATH, () => {});
  for (const number of [1, 2, 2, 5]) log.append(at(number, `m${number}`));
  log.append(at(2, "another text"));
  log.gap(6, 8, "lost");
  log.gap(9, 9, "lost");
  log.gap(10, 12, "missing");
  deepEqual(rows(log), ["1 m1", "2 m2", "missing 3-4", "5 m5", "lost 6-9", "missing 10-12"]);
  log.gap(3, 4, "lost");
  equal(log.count, 6);
});

test("a redaction drops only the windows with those lines, and pending responses", async () => {
  const lines = Array.from({ length: 600 }, (_, index) => at(index + 1, "secret"));
  const { log, asked } = await opened(lines);
  lines[300].message = "[redacted]";
  asked.length = 0;
  log.redact(301, 301);
  deepEqual([log.get(200)?.message, log.get(301), log.get(401)?.message], ["secret", undefined, "secret"]);
  log.load(300, 310);
  await until(() => log.get(301));
  deepEqual([asked, log.get(301).message], [["logs 200+200"], "[redacted]"]);
  log.redact(400, 401);
  deepEqual([log.get(200)?.message, log.get(399), log.get(401)], ["secret", undefined, undefined]);
  // A response from before the redaction is not shown.
  const held = [at(1, "secret")];
  let answer;
  const gates = [new Promise((done) => (answer = done))];
  const asks = serve(held, { gate: () => gates.shift() });
  const late = new Log(PATH, () => {});
  late.setExtent(1, 1);
  late.load(0, 1);
  await until(() => asks.length);
  held[0].message = "[redacted]";
  late.redact(1, 1);
  answer();
  await until(() => late.get(1));
  equal(late.get(1).message, "[redacted]");
});

test("the parts of a long line are one row, per stream and across windows", async () => {
  const lines = Array.from({ length: 420 }, (_, index) => at(index + 1, `${index + 1};`, { partial: false }));
  for (const [number, more] of [[10, { partial: true }], [11, { stream: "stderr" }], [12, {}], [199, { partial: true }], [200, { partial: true }], [201, { partial: true }], [202, {}]]) Object.assign(lines[number - 1], more);
  const { log } = await opened(lines);
  const shown = rows(log);
  deepEqual([shown[9], shown[10], shown[11]], ["10 10;12;", "11 11;", "13 13;"]);
  deepEqual([shown[197], shown[198]], ["199 199;200;201;202;", "203 203;"]);
  deepEqual([log.parts.get(199), log.itemAt(197).line.parts, log.rowOf(202)], [[200, 201, 202], 4, 197]);
});

test("a window that loads before the previous one is joined with it later", async () => {
  const lines = Array.from({ length: 400 }, (_, index) => at(index + 1, `${index + 1};`, { partial: [200, 201].includes(index + 1) }));
  serve(lines);
  const log = new Log(PATH, () => {});
  log.setExtent(1, 400);
  log.load(250, 260);
  await until(() => log.get(201));
  log.load(0, 10);
  await until(() => log.get(200));
  equal(log.itemAt(log.rowOf(200)).line.message, "200;201;202;");
  equal(log.count, 398);
});

test("the states of one progress bar are one row until expanded; other lines are not", () => {
  const log = new Log(PATH, () => {});
  ["start", "get 10%", "get 20%", "get 30%", "put 5%", "[==>  ] 3/9", "[===> ] 4/9", "no bar", "x: 8%|▊  | 96M/1.20G [00:04<00:46, 24.1MB/s]", "x: 9%|▉  | 108M/1.20G [00:05<00:45, 24MB/s]"].forEach((message, index) => log.append(at(index + 1, message)));
  deepEqual(rows(log), ["1 start", "4 get 30%", "5 put 5%", "7 [===> ] 4/9", "8 no bar", "10 x: 9%|▉  | 108M/1.20G [00:05<00:45, 24MB/s]"]);
  deepEqual([log.itemAt(1).updates, log.itemAt(2).updates], [2, 0]);
  log.reveal(2);
  deepEqual(rows(log).slice(0, 4), ["1 start", "2 get 10%", "3 get 20%", "4 get 30%"]);
  log.append(at(11, "get 10%", { stream: "stderr" }));
  log.append(at(12, "get 20%"));
  equal(log.count, 10);
});

test("folds hide their lines, and open for a jump to one of them", () => {
  const log = new Log(PATH, () => {});
  for (let number = 1; number <= 9; number += 1) log.append(at(number, "m"));
  log.fold(2, 4);
  log.fold(6, 7);
  deepEqual([rows(log).length, log.folds.has(2), log.itemAt(1).folded, log.itemAt(0).folded, log.folds.size > 0], [6, true, true, false, true]);
  log.reveal(4);
  deepEqual([rows(log).length, log.folds.has(2), log.folds.has(6)], [8, false, true]);
  log.reveal(6);
  equal(log.folds.has(6), true);
  log.foldAll([[1, 9]]);
  equal(log.count, 1);
  log.foldAll([]);
  deepEqual([log.count, log.folds.size > 0], [9, false]);
});

test("the end of a group has no row, unless text follows its markup", () => {
  const log = new Log(PATH, () => {});
  ["::group::A", "a", "::endgroup::", "b", "::endgroup::and more"].forEach((message, index) => log.append(at(index + 1, message)));
  deepEqual(rows(log), ["1 ::group::A", "2 a", "4 b", "5 ::endgroup::and more"]);
  equal(log.hasGroups, true);
});

test("the oldest windows are evicted when there are too many", () => {
  const log = new Log(PATH, () => {});
  for (let index = 0; index < 66; index += 1) log.append(at(index * WINDOW + 1, "m"));
  deepEqual([log.get(1), log.get(WINDOW + 1), log.get(2 * WINDOW + 1)?.message, log.get(65 * WINDOW + 1)?.message], [undefined, undefined, "m", "m"]);
  const large = new Log(PATH, () => {});
  for (let number = 1; number <= 2400; number += 1) large.append(at(number, "x".repeat(10_000)));
  deepEqual([large.get(1), large.get(800), large.get(801)?.message.length, large.get(2400)?.message.length], [undefined, undefined, 10_000, 10_000]);
});

// Groups.

/** Groups after these messages, one per second. */
function grouped(...messages) {
  const groups = new Groups(PATH);
  messages.forEach((message, index) => groups.added(at(index + 1, message)));
  return groups;
}
const known = (groups) => [...groups.known.values()].map(({ start, end, title, ms }) => [start, end, title, ms]);

test("groups end as in their CI system", () => {
  deepEqual(known(grouped("::group::A", "x", "::endgroup::", "##[group]B", "::group::C", "::endgroup::")), [[1, 3, "A", 2000], [4, 4, "B", 1000], [5, 6, "C", 1000]]);
  deepEqual(known(grouped("section_start:10:a\r\x1b[0KA", "section_start:11:b\r\x1b[0KB", "section_end:15:a\r\x1b[0K")), [[1, 3, "A", 5000], [2, 3, "B", 4000]]);
  deepEqual(known(grouped("section_start:10:a\rA", "x", "section_end:15:a\rsection_start:16:b\r\x1b[0KB")), [[1, 2, "A", 6000], [3, Infinity, "B", undefined]]);
  deepEqual(known(grouped("--- one", "x", "+++ two")), [[1, 2, "one", 2000], [3, Infinity, "two", undefined]]);
  deepEqual(known(grouped("travis_fold:start:x\r\x1b[0K", "travis_fold:end:y\r", "travis_fold:end:x\r")), [[1, 3, "x", 2000]]);
  deepEqual(known(grouped("::endgroup::", "::group::")), [[2, Infinity, "group", undefined]]);
});

test("an end closes the innermost open group of its name and all in it, and no other", () => {
  const names = (...steps) => steps.map((step) => `section_${step.endsWith("/") ? "end" : "start"}:${steps.indexOf(step) + 1}:${step[0]}\r`);
  const steps = grouped(...names("a", "b", "c", "c/", "b/", "d", "a/", "e", "e/"), "x").steps(NOW);
  deepEqual(steps.map(({ start, end, depth }) => [start, end, depth]), [[1, 7, 0], [2, 5, 1], [3, 4, 2], [6, 7, 1], [8, 9, 0]]);
  const twice = grouped(...["start:1:a", "start:2:a", "end:3:a", "end:4:a"].map((mark) => `section_${mark}\r`)).steps(NOW);
  deepEqual(twice.map(({ start, end, depth }) => [start, end, depth]), [[1, 4, 0], [2, 3, 1]]);
});

test("groups without an error are good, whatever follows them", () => {
  const groups = grouped("::group::A", "::endgroup::", "::group::B", "::error::x", "::endgroup::", "::error::y", "::group::C");
  deepEqual([groups.good, groups.ended], [[[1, 2]], [[1, 2], [3, 5]]]);
  deepEqual(grouped("--- A", "a", "+++ B", "b", "--- C").good, [[1, 2]]);
  // An error is in all groups around it.
  deepEqual(grouped(...["start:1:a", "start:2:b"].map((mark) => `section_${mark}\r`), "::error::x", ...["end:3:b", "end:4:a"].map((mark) => `section_${mark}\r`)).good, []);
});

test("steps are the groups of a log; a GitHub step's output follows its header", () => {
  const steps = grouped("::group::Set up", "x", "::endgroup::", "::group::Run make", "::endgroup::", "made", "::group::Run test", "::endgroup::", "tested").steps(NOW + 20_000);
  deepEqual(steps.map(({ start, end, title, ms, depth }) => [start, end, title, ms, depth]), [[1, 3, "Set up", 2000, 0], [4, 6, "Run make", 3000, 0], [7, Infinity, "Run test", 13_000, 0]]);
  const inner = grouped("section_start:1:a\rA", "section_start:2:b\rB", "section_end:3:b\r", "section_end:4:a\r", "section_start:5:c\rC").steps(NOW + 9000);
  deepEqual(inner.map(({ title, depth, ms }) => [title, depth, ms]), [["A", 0, 3000], ["B", 1, 1000], ["C", 0, 4000]]);
  const downloaded = grouped(...["05Z ##[group]Run make", "06Z ##[endgroup]", "08Z made", "09.5Z ##[group]Run test"].map((text) => `2020-01-01T10:00:${text}`)).steps(NOW + 6000);
  deepEqual(downloaded.map(({ title, ms }) => [title, ms]), [["Run make", 4500], ["Run test", 2000]]);
});

test("groups of a stored log are requested page by page; lines after a skipped one are ignored", async () => {
  const lines = ["::group::A", "x", "::endgroup::", "--- b", "y"].map((message, index) => at(index + 1, message));
  const isMarker = ({ message }) => /^(::|---)/.test(message);
  serve(lines, { most: 1, accepts: isMarker });
  const cut = new Groups(PATH);
  await cut.find(1);
  deepEqual([cut.known.size, cut.steps(NOW)], [1, []], "the end of the group may follow");
  const asked = serve(lines, { most: 2, accepts: isMarker });
  const groups = new Groups(PATH);
  await Promise.all([groups.find(1), groups.find(1)]);
  deepEqual([asked.length, groups.done, groups.position], [1, false, 3]);
  await groups.find(9);
  deepEqual([known(groups).map(([start, end]) => [start, end]), groups.done, groups.position], [[[1, 3], [4, Infinity]], true, 5]);
  groups.added(at(7, "--- late"));
  groups.added(at(6, "--- c"));
  deepEqual([groups.known.size, groups.position], [3, 6]);
  equal(await groups.endOf(at(1, "::group::A")), 3);
  equal(await new Groups(PATH).endOf(at(1, "::group::A")), 3);
  equal(await new Groups(PATH).endOf(at(4, "--- b")), Infinity);
});

test("live lines, and gaps, during and after a request are read once", async () => {
  const nested = ["::group::A", "::group::B", "::endgroup::", "::endgroup::"].map((message, index) => at(index + 1, message));
  let answer;
  serve(nested, { gate: () => new Promise((done) => (answer = done)) });
  const groups = new Groups(PATH);
  groups.added(nested[0]);
  const finding = groups.find(1);
  await until(() => answer);
  for (const each of [nested[1], at(5, "x")]) groups.added(each);
  groups.added({ sequence_num: 7 }, 6);
  groups.added(at(8, "::group::C"));
  answer();
  await finding;
  groups.added({ sequence_num: 10 }, 9);
  groups.added(at(11, "::endgroup::"));
  deepEqual(known(groups).map(([start, end]) => [start, end]), [[1, 4], [2, 3], [8, 11]]);
});

// Scans.

test("the criteria of a scan determine its route", () => {
  const of = (criteria) => `${route(criteria)}?${query(criteria, { offset: 1 })}`;
  deepEqual([{}, { q: "a", regex: true, stream: "stderr" }, { q: "a" }, { regex: true }, { new: true, stream: "stdout" }].map(of), [
    "/logs?offset=1", "/logs/search?offset=1&q=a&regex=true&stream=stderr", "/logs/search?offset=1&q=a", "/logs?offset=1", "/logs/new?offset=1&stream=stdout",
  ]);
});

test("a scan finds each match of a growing log once, and keeps its lines", async () => {
  const lines = Array.from({ length: 2500 }, (_, index) => at(index + 1, index % 2 ? "hit" : "miss"));
  const isHit = ({ message }) => message === "hit";
  const asked = serve(lines, { accepts: isHit });
  let last = 2500;
  const scan = makeScan(PATH, { q: "hit" }, () => last, () => {});
  await until(() => scan.done);
  deepEqual([scan.count, scan.done, scan.position, scan.numberAt(0), scan.rowOf(5), scan.itemAt(1000).line.message], [1250, true, 2500, 2, 2, "hit"]);
  deepEqual(asked, ["logs/search 0+1000", "logs/search 2000+1000"]);
  equal(scan.added(at(2502, "hit"), isHit), false);
  deepEqual([scan.added(at(2501, "miss"), isHit), scan.added(at(2502, "hit"), isHit), scan.added(at(2502, "hit"), isHit)], [false, true, false]);
  deepEqual([scan.count, scan.position, scan.itemAt(1250).line.sequence_num], [1251, 2502, 2502]);
  last = 2510;
  lines.push(...Array.from({ length: 10 }, (_, index) => at(2501 + index, "hit")));
  scan.resume();
  await until(() => scan.position === 2510);
  deepEqual([scan.count, scan.position, new Set(scan.numbers).size], [1259, 2510, 1259]);
  scan.stop();
});

test("a live line takes no other line's place in a page of which only a part is known", async () => {
  const lines = Array.from({ length: 300 }, (_, index) => at(index + 1, index % 10 ? "miss" : "hit"));
  const isHit = ({ message }) => message === "hit";
  serve(lines, { most: 10 });
  const scan = makeScan(PATH, { accepts: isHit }, () => 300, () => {});
  await until(() => scan.done);
  // The pages in view push out the last one.
  await until(() => (scan.load(0, 23), !scan.itemAt(29).line));
  lines.push(at(301, "hit"));
  equal(scan.added(lines.at(-1), isHit), true);
  equal(scan.itemAt(29).line, undefined);
  scan.load(29, 30);
  await until(() => scan.itemAt(30).line);
  deepEqual([29, 30].map((row) => scan.itemAt(row).line.sequence_num), [291, 301]);
  scan.stop();
});

test("a scan collects the lines that come during and after its last request, until it is stopped", async () => {
  const lines = [at(1, "hit")];
  const asked = serve(lines, { gate: () => lines[1] ?? lines.push(at(2, "hit")) });
  const wait = globalThis.setTimeout;
  const waits = [];
  globalThis.setTimeout = (call, ms) => (ms === 500 ? waits.push(call) : wait(call, ms));
  const scan = makeScan(PATH, { q: "hit" }, () => lines.length, () => {});
  await until(() => waits.length === 1);
  lines.push(at(3, "hit"));
  for (let changes = 0; changes < 5; changes += 1) scan.resume();
  waits[0]();
  equal(scan.added(lines[1], () => true), false);
  await until(() => scan.count === 3);
  lines.push(at(4, "hit"));
  scan.resume();
  scan.stop();
  waits.at(-1)();
  deepEqual([asked.length, waits.length], [2, 2]);
  globalThis.setTimeout = wait;
});

test("the search for the next match skips rejected ones, in both directions", async () => {
  const lines = Array.from({ length: 9 }, (_, index) => at(index + 1, `m${index + 1}`));
  const asked = serve(lines);
  const criteria = { q: "m", accepts: ({ sequence_num: number }) => number % 4 === 0 };
  const found = async (number, order) => (await findOne(PATH, criteria, number, order))?.sequence_num ?? null;
  deepEqual([await found(0, "asc"), await found(4, "asc"), await found(8, "asc"), await found(8, "desc"), await found(4, "desc")], [4, 8, null, 4, null]);
  deepEqual(asked.slice(0, 2), ["logs/search 0+1", "logs/search 1+100"]);
});
