// Which part of a log is in view, and moving from there: rows, matches, pauses, marks.

import { deepEqual, equal, ok } from "node:assert/strict";
import { test } from "node:test";

import { $, until } from "./document.mjs";

const js = "../../chronoverse/web/static/js";
const frames = [];
globalThis.requestAnimationFrame = (draw) => frames.push(draw);
const { ROW, makeViewport } = await import(`${js}/viewport.js`);
const { Matches } = await import(`${js}/matches.js`);
const { Find } = await import(`${js}/find.js`);
const { makeStrip } = await import(`${js}/strip.js`);
const { makeProfile } = await import(`${js}/profile.js`);
const { makeRuler } = await import(`${js}/ruler.js`);
const { signedIn } = await import(`${js}/session.js`);

const PATH = "http://127.0.0.1/workflows/w/jobs/j";
const event = (name, more = {}) => Object.assign(new Event(name), more);
const line = (number, message = "", more = {}) => ({ sequence_num: number, message, timestamp: "2026-03-03T10:00:05.123Z", stream: "stdout", ...more });

/** A viewport of ten rows over lines with these numbers. `made` has the numbers of the rows created. */
function open(numbers, height = 10 * ROW) {
  const scroller = Object.assign(document.createElement("div"), { clientHeight: height, clientWidth: 100, scrollTop: 0 });
  const rows = scroller.querySelector(".rows");
  const made = [];
  const stamps = new Map();
  const source = {
    get count() {
      return numbers.length;
    },
    numberAt: (row) => numbers[row],
    rowOf: (number) => numbers.findIndex((each) => each >= number),
    itemAt: (row) => ({ number: numbers[row], line: stamps.get(numbers[row]) }),
    load() {},
  };
  const offsetHeight = (number) => (stamps.get(number) === "tall" ? 2 : 1) * ROW;
  const maker = { stamp: ({ number }) => stamps.get(number), element: ({ number }) => (made.push(number), Object.assign(document.createElement("div"), { number, offsetHeight: offsetHeight(number), className: stamps.get(number)?.trim() || undefined })) };
  const viewport = makeViewport(scroller, source, maker, () => {});
  const draw = () => {
    while (frames.length) frames.shift()();
    Object.assign(scroller, { scrollHeight: parseFloat(scroller.querySelector(".space").style.height) });
  };
  const scroll = (by) => ((scroller.scrollTop = Math.max(0, Math.min(scroller.scrollTop + by, scroller.scrollHeight - height))), scroller.dispatchEvent(event("scroll")), draw());
  /** Draws, and returns the numbers of the first and the last line in view. */
  const view = () => (draw(), viewport.view.map((row) => numbers[row]));
  draw();
  return { viewport, scroller, rows, made, stamps, draw, scroll, view };
}
const upTo = (count) => Array.from({ length: count }, (_, index) => index + 1);

test("a row is brought into view, unless it is already there", () => {
  const { viewport, view } = open(upTo(100));
  deepEqual(view(), [1, 10]);
  viewport.show(49, { share: 0.3 });
  deepEqual(view(), [47, 56]);
  viewport.show(52, { share: 0.3, near: true });
  deepEqual(view(), [47, 56]);
  viewport.show(55, { share: 0.3, near: true });
  deepEqual(view(), [53, 62]);
  viewport.show(58, { share: 0.3 });
  deepEqual(view(), [56, 65]);
  viewport.show(99);
  deepEqual(view(), [91, 100]);
  viewport.show(-5);
  deepEqual(view(), [1, 10]);
});

test("a wrapped row near the end stays in view when the lines arrive and are taller", () => {
  const { viewport, stamps, view } = open(upTo(100));
  viewport.wrap = true;
  viewport.show(95);
  deepEqual(view(), [91, 100]);
  for (const number of upTo(100)) stamps.set(number, "tall");
  viewport.refresh();
  deepEqual(view(), [96, 100]);
});

test("a reader at the end of a growing log stays there until scrolling up", () => {
  const numbers = upTo(100);
  const { viewport, scroller, view, scroll } = open(numbers);
  viewport.end(true);
  deepEqual(view(), [91, 100]);
  numbers.push(101, 102);
  viewport.refresh();
  deepEqual(view(), [93, 102]);
  scroller.dispatchEvent(event("wheel", { deltaY: -1 }));
  numbers.push(103);
  viewport.refresh();
  deepEqual(view(), [93, 102]);
  scroll(ROW);
  equal(viewport.stick, true);
  scroll(-1);
  equal(viewport.stick, false);
  scroll(-ROW);
  scroll(ROW);
  numbers.push(104);
  viewport.refresh();
  deepEqual(view(), [95, 104]);
});

test("the lines in view stay when lines are added above", () => {
  const numbers = upTo(100);
  const { viewport, view } = open(numbers);
  viewport.show(59);
  deepEqual(view(), [60, 69]);
  numbers.splice(10, 20);
  viewport.refresh();
  deepEqual(view(), [60, 69]);
  numbers.splice(10, 0, ...upTo(20).map((each) => each + 10));
  viewport.refresh();
  deepEqual(view(), [60, 69]);
});

test("rows near the view are elements, replaced only when they look different", () => {
  const { viewport, rows, made, stamps, draw, scroll } = open(upTo(100));
  const shown = () => rows.children.map(({ number }) => number);
  deepEqual([shown(), made], [upTo(19), upTo(19)]);
  made.length = 0;
  scroll(15 * ROW);
  deepEqual([shown(), made], [upTo(34).slice(7), upTo(34).slice(19)]);
  for (const [look, isKept] of [["", true], ["picked", false], ["picked", true]]) {
    made.length = 0;
    const before = rows.children[12];
    stamps.set(20, stamps.get(20) === look ? `${look} ` : look);
    viewport.refresh();
    draw();
    deepEqual([shown(), made, rows.children[12] === before], [upTo(34).slice(7), [20], isKept]);
  }
});

test("a log too long for a browser scrolls by pixels over short and by fractions over long distances", () => {
  const { viewport, scroller, view, scroll } = open(upTo(1_000_000));
  equal(scroller.scrollHeight, 8_000_000);
  scroll(3 * ROW);
  deepEqual(view(), [4, 13]);
  scroll(-3 * ROW);
  deepEqual(view(), [1, 10]);
  scroll(4_000_000 - scroller.scrollTop);
  const [top] = view();
  ok(Math.abs(top - 500_000) < 20, top);
  scroll(8_000_000);
  deepEqual([view(), viewport.atEnd], [[999_991, 1_000_000], true]);
  scroll(-8_000_000);
  deepEqual(view(), [1, 10]);
});

/** The matches with these numbers, in a log of 20 lines. `at` is the reader's place; `jumps` is where they went. */
async function matching(numbers, criteria = {}, hangs = false) {
  const at = { top: 1, current: 0, jumps: [], asked: [], wish: 0 };
  globalThis.fetch = async (request, { signal }) => {
    const of = new URL(request.url).searchParams;
    const [offset, limit, isUp] = [Number(of.get("offset")), Number(of.get("limit")), of.get("order") !== "desc"];
    if (of.has("order")) at.asked.push(`${of.get("order")} ${offset}`);
    else if (hangs) await new Promise((_, failed) => signal.addEventListener("abort", () => failed(signal.reason)));
    const found = (isUp ? numbers : numbers.toReversed()).filter((each) => (isUp ? each > offset : each < offset)).slice(0, limit);
    const isLast = found.length < limit;
    return Response.json({ logs: found.map((each) => line(each)), cursor: isLast ? null : "next" }, { headers: { "Last-Event-ID": String(isLast ? (isUp ? 20 : 1) : found.at(-1)) } });
  };
  const intend = () => {
    const mine = (at.wish += 1);
    return () => mine === at.wish;
  };
  const on = { changed() {}, jump: (number) => at.jumps.push((at.current = number)), top: () => at.top, current: () => at.current, intend };
  class Quiet extends Matches {
    show() {}
  }
  const matches = new Quiet(PATH, { last: 20 }, on, { q: "x", ...criteria }, "previous", "next");
  matches.look(false);
  if (!hangs) await until(() => matches.scan.done);
  return { matches, at };
}

test("stepping through matches starts at the top line, in both directions, and wraps around", async () => {
  const { matches, at } = await matching([3, 4, 5, 10]);
  at.top = 4;
  for (const direction of [1, 1, 1, 1, -1, -1]) await matches.step(direction);
  deepEqual([at.jumps, at.asked], [[4, 5, 10, 3, 10, 5], []]);
  equal(matches.progress.found, "3 of 4");
  at.current = 7;
  await matches.step(-1);
  equal(matches.progress.found, "3 of 4");
  matches.drop();
  await matches.step(1);
  equal(at.jumps.length, 7);
  Object.assign(at, { current: 0, top: 1 });
  matches.look(false);
  await until(() => matches.scan.done);
  await matches.step(1);
  equal(at.jumps.at(-1), 3);
});

test("consecutive matches are one stop", async () => {
  const { matches, at } = await matching([3, 4, 5, 10, 15, 16], { hunks: true });
  for (const direction of [1, 1, 1, 1, -1, -1, -1]) await matches.step(direction);
  deepEqual(at.jumps, [3, 10, 15, 3, 15, 10, 3]);
  at.current = 16;
  await matches.step(-1);
  equal(at.jumps.at(-1), 15);
});

test("the service finds matches that the scan has not reached", async () => {
  const { matches, at } = await matching([3, 4, 5, 10, 15], { hunks: true }, true);
  for (const direction of [1, 1, -1, -1]) await matches.step(direction);
  // Going back, the service finds the last match of a hunk: 5, and then 15 around the end.
  deepEqual([at.jumps.slice(0, 2), at.asked.slice(0, 2)], [[3, 10], ["asc 0", "asc 3"]]);
  deepEqual(at.jumps.slice(2), [5, 15]);
  // The reader goes elsewhere before the response.
  const step = matches.step(1);
  at.wish += 1;
  await step;
  equal(at.jumps.length, 4);
  // Between the last match that the scan has found and the reader, there can be others.
  Object.assign(matches.scan, { numbers: [3, 4, 5], position: 6 });
  at.current = 18;
  await matches.step(-1);
  equal(at.jumps.at(-1), 15);
  matches.drop();
});

test("the page marks text itself, and regular expressions by the service's highlights", async () => {
  const asked = [];
  const found = [line(1, "😀ab", { highlights: [[1, 3]] }), line(2, "x")];
  globalThis.fetch = async (request) => {
    asked.push(new URL(request.url).search);
    return Response.json({ logs: found.slice(0, 1), cursor: null }, { headers: { "Last-Event-ID": "2" } });
  };
  const jumps = [];
  const find = new Find(PATH, { last: 2 }, { changed() {}, jump: (number) => jumps.push(number), top: () => 1, current: () => 0, intend: () => () => true });
  $("q").value = "a.B";
  find.begin({ jumps: false });
  deepEqual(find.marks(line(1, "xa.baxb")).map(([from, to]) => [from, to]), [[1, 4]]);
  find.stream = "stderr";
  deepEqual(find.marks(line(1, "xa.baxb")), []);
  find.stream = "";
  $("q").value = "a+b";
  $("regex").dispatchEvent(event("click"));
  await until(() => find.scan.done);
  deepEqual([find.marks(found[0]), find.marks(found[1])], [[[2, 4]], []]);
  equal($("count").textContent, "1");
  ok(asked.at(-1).includes("q=a%2Bb&regex=true"), asked.at(-1));
  // Enter starts the search that was typed, then steps. Each search announces its result.
  for (const text of ["other", "another"]) {
    $("said").textContent = "";
    Object.assign($("q"), { value: text }).dispatchEvent(event("input"));
    $("q").dispatchEvent(event("keydown", { key: "Enter" }));
    equal(find.criteria.q, text);
    await until(() => find.scan.done && $("said").textContent === "1 match");
    const { scan } = find;
    jumps.length = 0;
    $("q").dispatchEvent(event("keydown", { key: "Enter" }));
    deepEqual([find.scan === scan, jumps], [true, [1]]);
  }
  $("q").dispatchEvent(event("keydown", { key: "Escape" }));
  deepEqual([find.scan, $("count").textContent, location.search], [null, "", ""]);
});

const pause = (number, seconds, more = {}) => ({ after: line(number), before: line(number + 1), seconds, excess: seconds - 1, usual: { least: 1, median: 1, most: 1 }, ...more });
const STRIP = [[0, 1], [10, 10], [30, 11], [40, 20], [70, 21], [80, 30]];

test("the strip leads to pauses slower than usual, draws marks together, and is hidden for short jobs", async () => {
  const jumps = [];
  const strip = makeStrip((number) => jumps.push(number), () => [1, 2]);
  $("strip").querySelector(".track").clientWidth = 100;
  strip.show({ strip: STRIP, slower: [pause(20, 30), pause(10, 20)], pauses: [pause(20, 30)] });
  equal($("strip").hidden, false);
  const drawn = [];
  $("strip").querySelector(".fault").setAttribute = (_, path) => drawn.push(path);
  for (const errors of [[1], [1, 10], [1, 10, 30]]) strip.mark([], errors);
  await until(() => drawn.length);
  deepEqual(drawn, ["M0 0V8M125 0V8M1000 0V8"]);
  for (const [number, direction] of [[1, 1], [10, 1], [20, 1], [30, -1], [20, -1], [5, -1]]) strip.step(number, direction);
  deepEqual(jumps.splice(0), [10, 20, 10, 20, 10, 20]);
  for (const seconds of [0, 3, 20, 75]) Object.assign($("at"), { valueAsNumber: seconds }).dispatchEvent(event("input"));
  deepEqual(jumps, [1, 3, 10, 20]);
  strip.show({ strip: [[0, 1], [10, 10]] });
  equal($("strip").hidden, false);
  strip.show({ strip: [[0, 1], [9.9, 10]] });
  equal($("strip").hidden, true);
  strip.show({ strip: [[0, 1], [9.9, 10]], slower: [pause(1, 5)] });
  equal($("strip").hidden, true);
  strip.reserve(9_999);
  equal($("strip").hidden, true);
  strip.reserve(10_000);
  equal($("strip").hidden, false);
});

test("a profile is requested until complete, and dropped if older than a redaction", async () => {
  signedIn("token", null);
  const body = (more) => ({ complete: true, seconds: 80, usual: { least: 10, most: 20 }, slower: [pause(5, 50, { after: null }), pause(20, 30), pause(10, 20)], pauses: [], strip: STRIP, running: null, job: { status: "FAILED", last_sequence_num: 30, started_at: "2026-03-03T10:00:00Z", finished_at: "2026-03-03T10:30:00Z" }, ...more });
  const answers = [body({ complete: false }), body()];
  let asked = 0;
  let release;
  const gate = new Promise((done) => (release = done));
  globalThis.fetch = async () => {
    asked += 1;
    if (asked === 2) await gate;
    return Response.json(answers[Math.min(asked, 2) - 1]);
  };
  const shown = [];
  const profile = makeProfile(PATH, { first: 1, last: 30, get() {} }, { show: ({ slower }) => shown.push(slower.length) });
  $("slower").hidden = true;
  profile.follow(() => false);
  await until(() => asked === 2);
  profile.forget();
  release();
  await new Promise((done) => setTimeout(done, 30));
  deepEqual([shown, $("slower").hidden], [[], true]);
  const lines = new Map([[STRIP[0][1], { timestamp: "2026-03-03T10:00:02.500Z" }]]);
  const starts = [];
  const next = makeProfile(PATH, lines, { show: ({ slower, strip }) => (shown.push(slower.length), starts.push(strip[0][0])) });
  await next.follow(() => false);
  deepEqual([shown, $("slower").hidden], [[3], false]);
  lines.clear();
  ok($("slower").textContent.startsWith("29.0 s slower after line 20"), $("slower").textContent);
  next.forget();
  deepEqual([shown, $("slower").hidden, starts], [[3, 0], true, [2.5, 2.5]], "also once the first line has left the memory");
  $("gauge").children = [document.createElement("i"), document.createElement("i")];
  const bars = () => $("gauge").children.flatMap(({ style }) => [style.left, style.width]).filter(Boolean);
  next.showRunning(15_000);
  deepEqual([$("usual").textContent, bars()], ["usually 10 s to 20 s", ["45.5%", "45.5%", "68.2%"]]);
  next.showRunning(90_000);
  deepEqual([$("usual").textContent, bars()], ["usually 10 s to 20 s · 1 min 10 s over", ["11.1%", "11.1%", "100.0%"]]);
});

test("a click near a mark of the ruler jumps to it", () => {
  const jumps = [];
  Object.assign($("log"), { clientHeight: 500, clientWidth: 90, offsetWidth: 100 });
  const ruler = makeRuler({ rowOf: (number) => number - 1, count: 1000, last: 1000 }, [["fault", () => [101, 901]], ["new-mark", () => [151]]], (number) => jumps.push(number));
  for (const offsetY of [50, 55, 56, 69, 71, 450]) $("ruler").dispatchEvent(event("click", { offsetY }));
  deepEqual(jumps, [101, 101, 151, 901]);
  ruler.draw();
  deepEqual([$("ruler").querySelector(".fault").d, $("ruler").querySelector(".new-mark").d], ["M0 100h1M0 900h1", "M0 150h1"]);
  ruler.showPlace(1000);
  deepEqual([$("place").textContent, $("place").hidden], ["line 1,000 of 1,000", false]);
});
