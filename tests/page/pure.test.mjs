// Table tests of pure functions: texts, numbers and times.

import { deepEqual, equal, ok, throws } from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import "./document.mjs";

const js = "../../chronoverse/web/static/js";
const { contrast, indexed, paint } = await import(`${js}/colour.js`);
const { age, ago, clock, count, elapsed, ended, many, outcome, span } = await import(`${js}/format.js`);
const { ciAddress } = await import(`${js}/labels.js`);
const { MARKERS, markup } = await import(`${js}/markup.js`);
const { nearIds } = await import(`${js}/missing.js`);
const { textOfLine } = await import(`${js}/summary.js`);
const { Ranges } = await import(`${js}/ranges.js`);
const { findVisible, MAX_SHOWN, plain, segments, toUtf16Spans, truncate } = await import(`${js}/text.js`);
const { excerpt } = await import(`${js}/match.js`);
const time = await import(`${js}/timeline.js`);

const { blockReader } = await import("../../chronoverse/web/static/client/blocks.js");

/** Compares `of(...given)` with the expected value, for each row of a table. */
const table = (name, of, rows) => test(name, () => rows.forEach(([given, expected]) => deepEqual(of(...[given].flat()), expected, String(given))));

test("ranges equal a set of numbers, whatever is added in any order", () => {
  let seed = 7;
  const random = (most) => (seed = (seed * 48271) % 2147483647) % most;
  for (let round = 0; round < 60; round += 1) {
    const ranges = new Ranges();
    const all = new Set();
    for (let step = 0; step < 12; step += 1) {
      const from = 1 + random(40);
      const to = from + random(6);
      for (let number = from; number <= to; number += 1) all.add(number);
      ranges.add(from, to);
      const free = Array.from({ length: 60 }, (_, at) => at + 1).filter((number) => !all.has(number));
      for (let number = 1; number <= 50; number += 1) {
        equal(ranges.has(number), all.has(number));
        equal(ranges.below(number), [...all].filter((each) => each < number).length);
      }
      for (let index = 0; index < 10; index += 1) equal(ranges.outside(index), free[index]);
    }
    ranges.clear();
    deepEqual([ranges.has(1), ranges.below(50), ranges.outside(0)], [false, 0, 1]);
  }
});

table("counts", many, [[[1, "line"], "1 line"], [[0, "line"], "0 lines"], [[1240, "line"], "1,240 lines"]]);
table("durations", span, [
  [-5, "0 ms"], [37, "37 ms"], [99.4, "99 ms"], [100, "0.1 s"], [9999, "10.0 s"], [10_000, "10 s"], [59_999, "59 s"],
  [60_000, "1 min 00 s"], [187_000, "3 min 07 s"], [3_599_000, "59 min 59 s"], [3_600_000, "1 h 00 min"],
  [7_500_000, "2 h 05 min"], [86_399_000, "23 h 59 min"], [86_400_000, "1 d 00 h"], [356_400_000, "4 d 03 h"],
]);
const now = Date.parse("2026-03-03T10:00:00Z");
table("ages", (ms) => [age(new Date(now - ms).toISOString(), now), ago(new Date(now - ms).toISOString(), now)], [
  [0, ["1 min", "just now"]], [59_999, ["1 min", "just now"]], [60_000, ["1 min", "1 min ago"]],
  [3_599_999, ["59 min", "59 min ago"]], [3_600_000, ["1 h", "1 h ago"]], [86_399_999, ["23 h", "23 h ago"]],
  [86_400_000, ["1 d", "1 d ago"]], [30 * 86_400_000 - 1, ["29 d", "29 d ago"]],
  [30 * 86_400_000, ["30 d", new Date(now - 30 * 86_400_000).toLocaleDateString()]],
]);
table("times since the start", elapsed, [
  [["2026-03-03T10:00:05.250Z", "2026-03-03T10:00:00Z"], "+00:05.250"], [["2026-03-03T10:00:00Z", "2026-03-03T10:01:02Z"], "-01:02.000"],
  [["2026-03-03T11:02:03.456Z", "2026-03-03T10:00:00Z"], "+1:02:03.456"], [["no time", "2026-03-03T10:00:00Z"], ""],
  [["1970-01-01T00:00:00Z", "2026-03-03T10:00:00Z"], ""],
]);
test("an invalid time has no time of day", () => deepEqual([ago(""), clock(""), clock("1970-01-01T00:00:00Z")], ["", "", ""]));
test("the time of day is in the reader's time zone", () => {
  const date = new Date(2026, 2, 3, 4, 5, 6, 7);
  equal(clock(date.toISOString()), "04:05:06.007");
});
table("outcomes", (status, exit_code) => [outcome({ status, exit_code }), ended(status)], [
  [["PENDING", null], ["Pending", false]], [["RUNNING", null], ["Running", false]], [["COMPLETED", 0], ["Completed", true]],
  [["FAILED", 3], ["Failed · exit 3", true]], [["FAILED", 0], ["Failed · exit 0", true]], [["FAILED", null], ["Failed", true]],
  [["FAILED", undefined], ["Failed", true]], [["CANCELED", 9], ["Canceled", true]], [["LOST", null], ["Lost", true]], [["NEW", null], ["NEW", true]],
]);
table("addresses in the CI system", (url) => ciAddress({ url }), [
  ["https://ci.example/1", "https://ci.example/1"], ["http://ci.example/1", "http://ci.example/1"], ["javascript:alert(1)", null],
  ["no address", null], [undefined, null],
]);
table("similar ids", nearIds, [
  [["nightly-7", ["nightly-6", "release", "weekly-7", "nightly-71", "nightly-8"]], ["nightly-71", "nightly-6", "nightly-8"]],
  [["NIGHTLY", ["nightly"]], ["nightly"]], [["build", ["rebuild-all-of-it"]], ["rebuild-all-of-it"]], [["ab", ["xxxxabxxxx"]], []],
  [["one", ["two"]], []],
]);

table("markup", (message) => { const { kind, skip, of, name, at, where, ends } = markup(message) ?? {}; return [kind, message.slice(skip), of, name, at, where, ends].filter((each) => each !== undefined); }, [
  ["::group::Build", ["group", "Build", "github"]], ["##[group]Build", ["group", "Build", "github"]],
  ["::endgroup::", ["end", "", "github"]], ["##[endgroup]", ["end", "", "github"]],
  ["::error file=a%3Ab.js,line=3::broken", ["error", "broken", "a:b.js:3"]], ["::warning file=a%2Cb%2525.js::w", ["warning", "w", "a,b%25.js"]],
  ["##[error]broken", ["error", "broken", ""]], ["[command]make", ["command", "make", ""]], ["##[section]Start", ["section", "Start", ""]],
  ["section_start:1560896352:my_name[collapsed=true]\r\x1b[0KTitle", ["group", "Title", "gitlab", "my_name", 1560896352000]],
  ["section_end:1560896353:my_name\r\x1b[0K", ["end", "", "gitlab", "my_name", 1560896353000]],
  ["section_end:1:a\r\x1b[0Ksection_start:2:b\r\x1b[0KB", ["group", "B", "gitlab", "b", 2000, "a"]],
  ["travis_fold:start:x\r\x1b[0Ktravis_time:start:9\r\x1b[0K$ make", ["group", "$ make", "travis", "x"]],
  ["travis_time:end:9:start=1\r\x1b[0Ktravis_fold:end:x\r\x1b[0K", ["end", "", "travis", "x"]], ["travis_time:start:9\r\x1b[0K$ ls", ["debug", "$ ls"]],
  ["--- Build", ["group", "--- Build", "buildkite"]], ["+++ Build", ["group", "+++ Build", "buildkite"]], ["~~~ Build", ["group", "~~~ Build", "buildkite"]],
  ["--- a/file", ["--- a/file"]], ["--- FAIL: TestX", ["--- FAIL: TestX"]], ["--- file\t2026", ["--- file\t2026"]], ["--- ", ["--- "]],
  ["plain", ["plain"]], ["", [""]], ["x ::group::y", ["x ::group::y"]],
  ["2026-03-03T10:00:05.1234567Z ##[group]Run make", ["group", "Run make", "github", Date.parse("2026-03-03T10:00:05.123Z")]],
  ["2026-03-03T10:00:05Z --- no heading", ["2026-03-03T10:00:05Z --- no heading"]],
]);
const texts = JSON.parse(readFileSync(new URL("../data/markup.json", import.meta.url), "utf8"));
table("a line's text is that of the terminal", (message) => textOfLine({ message }), texts);
test("the service's expression finds each line that starts or ends a group", () => {
  const expression = new RegExp(MARKERS);
  const found = ["::group::a", "::endgroup::", "##[endgroup]", "::error::x", "2026-03-03T10:00:05.1Z ##[group]a", "\ufeff2026-03-03T10:00:05.1Z ##[error]a", "section_start:1:a\r", "\x1b[0Ksection_end:1:a\r", "travis_fold:end:x\r", "--- a", "+++ a", "~~~ a"];
  deepEqual(found.filter((each) => !expression.test(each)), []);
  deepEqual(["plain", "a ::group::", "::debug::x"].filter((each) => expression.test(each)), []);
});

const styled = (message) => segments(message, []).map(({ text, style: { ink, ground, bold, dim, italic, underline, strike, inverse } }) => [text, ink, ground, [bold && "b", dim && "d", italic && "i", underline && "u", strike && "s", inverse && "v"].filter(Boolean).join("")]);
table("colours and styles", (message) => styled(message), [
  ["plain", [["plain", null, null, ""]]], ["\x1b[31mred\x1b[0mno", [["red", 1, null, ""], ["no", null, null, ""]]],
  ["\x1b[37;40ma\x1b[39;49mb", [["a", 7, 0, ""], ["b", null, null, ""]]], ["\x1b[90;107ma", [["a", 8, 15, ""]]], ["\x1b[97;100ma", [["a", 15, 8, ""]]],
  ["\x1b[30;47ma", [["a", 0, 7, ""]]], ["\x1b[1;2;3;4;7;9ma\x1b[22;23;24;27;29mb", [["a", null, null, "bdiusv"], ["b", null, null, ""]]],
  ["\x1b[38;5;15ma\x1b[48;5;16mb", [["a", 15, null, ""], ["b", 15, [0, 0, 0], ""]]], ["\x1b[38;5;231;1ma", [["a", [255, 255, 255], null, "b"]]],
  ["\x1b[38;5;255ma", [["a", [238, 238, 238], null, ""]]], ["\x1b[38;5;256ma", [["a", null, null, ""]]], ["\x1b[38;5;110ma", [["a", [135, 175, 215], null, ""]]],
  ["\x1b[38;2;1;2;255;4ma", [["a", [1, 2, 255], null, "u"]]], ["\x1b[38;2;1;2;256ma", [["a", null, null, ""]]], ["\x1b[38;2;1ma", [["a", null, null, ""]]],
  ["\x1b[1;38:2::255:4:0;9ma", [["a", [255, 4, 0], null, "bs"]]], ["\x1b[38:2:1:2:3;48:5:16ma", [["a", [1, 2, 3], [0, 0, 0], ""]]],
  ["\x1b[4:3;58;2;31;1;9ma\x1b[4:0;58:5:3;1mb", [["a", null, null, "u"], ["b", null, null, "b"]]],
  ["\x1b[38;9;1ma", [["a", null, null, ""]]], ["\x1b[?1ma\x1b[2Kb", [["a", null, null, ""], ["b", null, null, ""]]], ["\x1b[31mx\x1b[my", [["x", 1, null, ""], ["y", null, null, ""]]],
]);
const sheet = readFileSync(new URL("../../chronoverse/web/static/page.css", import.meta.url), "utf8");
const property = (name) => new RegExp(`${name}: ([^;]+);`).exec(sheet)[1];
globalThis.getComputedStyle = () => ({ getPropertyValue: property });
/** The RGB of a colour on the light and on the dark page. */
const both = (css) => css.replace(/var\((.+?)\)/, (_, name) => property(name)).match(/[0-9a-f]{6}|\d+ \d+ \d+/g).map((each) => (each.includes(" ") ? each.split(" ").map(Number) : each.match(/../g).map((part) => parseInt(part, 16))));
test("each colour is readable in both themes", () => {
  const grounds = [null, ...Array(16).keys(), [200, 30, 30], indexed(110)];
  for (let ink = 0; ink < 256; ink += ink < 16 ? 1 : 7) for (const on of grounds) for (const inverse of [false, true]) {
    const found = paint({ ink: ink < 16 ? ink : indexed(ink), ground: on, inverse });
    const [inks, behind] = [both(found.ink), both(found.ground ?? "var(--ground)")];
    for (const theme of [0, 1]) ok(contrast(inks[theme], behind[theme]) >= 4.5, `${ink} ${on} ${theme}`);
    equal(Boolean(found.ground), on !== null || inverse);
  }
  equal(Math.round(contrast([0, 0, 0], [255, 255, 255])), 21);
  deepEqual([paint({ ink: 1, ground: null, inverse: false }), both("var(--ink1)")], [{ ink: "var(--ink1)" }, [[180, 35, 42], [255, 138, 128]]]);
});
table("control characters", (message) => [segments(message, []).map(({ text, code }) => (code === undefined ? text : `<${text}>`)).join(""), plain(message)], [
  ["a\x00b\x1b", ["a<^@>b<^[>", "ab"]], ["\x7f\x85\x9f", ["<^?><NEL><x9f>", ""]], ["a\tb", ["a\tb", "a\tb"]], ["\u202ea", ["<RLO>a", "\u202ea"]],
  ["\x1b]0;title\x07a\x1b(Bb\x1b7c", ["abc", "abc"]], ["\ufeffa\u200b", ["<BOM>a<ZWSP>", "\ufeffa\u200b"]],
]);
const linked = (message) => segments(message, []).filter(({ link }) => link).map(({ text, link, host }) => [text, link, host].filter(Boolean));
table("links", linked, [
  ["see https://a.example/x, or", [["https://a.example/x", "https://a.example/x"]]], ["(https://a.example/x)", [["https://a.example/x", "https://a.example/x"]]],
  ["https://a.example/(x)", [["https://a.example/(x)", "https://a.example/(x)"]]], ["[http://a.example/]]", [["http://a.example/", "http://a.example/"]]],
  ["javascript://x", []], ["\x1b]8;;https://b.example/y\x1b\\here\x1b]8;;\x1b\\ not", [["here", "https://b.example/y", "b.example"]]],
  ["\x1b]8;;javascript:alert(1)\x07here\x1b]8;;\x07", []], ["\x1b]8;id=1;HTTP://b.example/\x1b\\see \x1b[31mthis\x1b]8;;\x07 not", [["see ", "HTTP://b.example/"], ["this", "HTTP://b.example/", "b.example"]]],
  ...["javascript://x", "data:text/html,x", "file:///etc/passwd", "http://x/'onclick=1", "https://", "//x"].map((target) => [`\x1b]8;;${target}\x07here\x1b]8;;\x07`, []]),
]);
test("a line of brackets or dots delays the page only briefly", () => {
  const long = ["https://a/" + ")".repeat(19_990), "https://a/" + ")]".repeat(9_995), "https://a/" + ".".repeat(19_989) + "x"];
  const began = performance.now();
  for (let round = 0; round < 6; round += 1) deepEqual(long.map((line) => linked(line)[0][0].length), [10, 10, 20_000]);
  // Quadratic algorithms take 90 s.
  ok(performance.now() - began < 30_000);
});
test("marks split the text, even across styles and next to links", () => {
  const marked = (message, ...marks) => segments(message, marks).map(({ text, mark }) => (mark ? `<${text}>` : text)).join("");
  equal(marked("hello", [1, 3]), "h<el>lo");
  equal(marked("a\x1b[31mbc\x1b[0md", [0, 7]), "<a><b>cd");
  equal(marked("x\x01y", [1, 2]), "x<^A>y");
  equal(marked("hello", [0, 5]), "<hello>");
  equal(marked("hello", [5, 6]), "hello");
});
test("a search in the page matches a line's visible text", () => {
  deepEqual(findVisible("say abc abc", /abc/gu), [[4, 7], [8, 11]]);
  const message = "a\x1b[31mb\x1b[0mc";
  deepEqual(findVisible(message, /abc/gu), [[0, message.length]]);
  deepEqual(findVisible(message, /b/gu), [[6, 7]]);
  deepEqual(toUtf16Spans("a😀b", [[1, 2], [2, 3], [0, 9]]), [[1, 3], [3, 4], [0, 4]]);
  deepEqual(toUtf16Spans("abc", [[1, 2]]), [[1, 2]]);
});
test("an overlong line is truncated and marked", () => {
  const line = { message: "x".repeat(MAX_SHOWN), stream: "stdout" };
  equal(truncate(line), line);
  deepEqual(truncate({ ...line, message: `${line.message}yz` }), { ...line, more: true });
});

// The time strip.
const strip = [[0, 1], [10, 11], [100, 101]];
table("lines and seconds of a strip", (seconds) => [time.lineAt(strip, seconds), time.secondsOf(strip, time.lineAt(strip, seconds))], [
  [0, [1, 0]], [5, [6, 5]], [10, [11, 10]], [55, [56, 55]], [100, [101, 100]], [200, [101, 100]], [-1, [1, 0]],
]);
table("a strip covers the whole job", time.wholeStrip, [
  [[strip, 104_000, "2026-03-03T10:00:00Z", "2026-03-03T10:00:02.500Z"], [[2.5, 1], [12.5, 11], [102.5, 101], [104, 101]]],
  [[strip, 99_000, "2026-03-03T10:00:00Z", "2026-03-03T10:00:00Z"], strip], [[strip, 104_000, "2026-03-03T10:00:01Z", "2026-03-03T10:00:00Z"], strip],
  [[strip, null, null, undefined], strip], [[[], 5000, "2026-03-03T10:00:00Z", "2026-03-03T10:00:00Z"], []], [[undefined, 5000], []],
]);
const pause = (after, before, seconds, usual) => ({ after: { sequence_num: after }, before: { sequence_num: before }, seconds, usual });
const profile = { strip, slower: [pause(10, 11, 4, { median: 1 })], pauses: [pause(10, 11, 4), pause(50, 51, 3), pause(20, 21, 0.9), { seconds: 9 }] };
const pauses = time.pausesOf(profile);
test("pauses include long ones and those slower than usual", () => {
  deepEqual(pauses.map(({ from, to, number, isSlower }) => [from, to, number, isSlower]), [[6, 10, 10, true], [47, 50, 50, false]]);
  equal(time.pausesOf({ strip, slower: [], pauses: [pause(1, 2, 5)] })[0].from, 0);
  deepEqual(pauses.map(time.pauseText), ["4.0 s here, usually 1.0 s · after line 10", "3.0 s here · after line 50"]);
  equal(time.pauseText({ seconds: 12.34, usual: { median: 0 }, number: 1 }), "12.3 s here, usually no pause · after line 1");
  equal(time.placeText(strip, 5), "5.0 s · line 6");
  deepEqual(time.slowerTexts({ excess: 75, after: { sequence_num: 1234 }, usual: { median: 60 } }), ["1 min 15 s slower after line 1,234: ", " (usually 1 min 00 s)"]);
  equal(time.slowPath(pauses, 100), "M60.0 0V16M60.0 8H100.0");
  equal(time.slowPath([{ from: 0, to: 1, isSlower: true }, { from: 1.4, to: 2, isSlower: true }, { from: 3, to: 4, isSlower: false }], 100), "M0.0 0V16M0.0 8H20.0");
  equal(time.marksPath(strip, [1, 2, 101]), "M0 0V8M10 0V8M1000 0V8");
  ok(time.outputPath(strip).startsWith("M0 16V6.0H5"));
});
table("the pause at a place", (seconds, reach) => time.pauseAt(pauses, seconds, reach)?.number ?? null, [
  [[6, 0], 10], [[9.9, 0], 10], [[10, 0], null], [[5, 2], 10], [[5, 1], null], [[47, 5], 50], [[46, 5], null], [[50, 0], null],
]);
test("only visible bands of steps", () => {
  const steps = [{ depth: 0, start: 1, end: 10 }, { depth: 1, start: 2, end: 3 }, { depth: 0, start: 11, end: 11 }, { depth: 0, start: 12, end: Infinity }];
  deepEqual(time.bandsOf(strip, steps).map(({ from, to }) => [from, to]), [[0, 10], [10, 11], [11, 100]]);
  deepEqual(time.bandsOf([[0, 1], [1000, 1001]], [{ depth: 0, start: 1, end: 5 }]).map(({ from, to }) => [from, to]), [[0, 0.5]]);
  deepEqual(time.bandsOf([[0, 1], [1000, 1001]], [{ depth: 0, start: 1, end: 4 }]), []);
});
const running = { silent_seconds: 50, usual: { most: 55, median: 3 }, seconds_left: { least: 130, most: 190 } };
table("texts about a running job", (more, age, isSilent) => Object.values(time.runningTexts({ ...running, ...more }, age, isSilent)), [
  [[{}, 0, true], ["usually ends in 2 to 4 min", null]], [[{}, 6, true], ["usually ends in 2 to 4 min", "Silent for 56 s, usually 3.0 s"]],
  [[{}, 5, true], ["usually ends in 2 to 4 min", null]], [[{}, 60, false], ["usually ends in 1 to 3 min", null]],
  [[{ seconds_left: { least: 3, most: 42 } }, 0, false], ["usually ends within 45 s", null]], [[{ seconds_left: { least: 12, most: 14 } }, 0, false], ["usually ends in 10 to 15 s", null]],
  [[{ seconds_left: { least: -9, most: 0 } }, 0, false], ["usually ended by now", null]], [[{ seconds_left: null }, 0, false], [null, null]],
  [[{ seconds_left: { least: 7200, most: 7200 } }, 0, false], ["usually ends in 2 h", null]], [[{ silent_seconds: null }, 99, true], ["usually ends in 0 to 2 min".replace("in 0 to", "within"), null]],
  [[{ usual: { most: 1, median: 1 }, silent_seconds: 9 }, 0.5, true], ["usually ends in 2 to 4 min", null]], [[{ usual: { most: 1, median: 1 }, silent_seconds: 240 }, 0, true], ["usually ends in 2 to 4 min", "Silent for 4 min, usually 1.0 s"]],
]);

/** The events of a stream that is read in parts which end at these places. */
function read(stream, ...ends) {
  const found = [];
  const read = blockReader({ block: (block) => found.push(block), comment: () => found.push(":"), retry: (ms) => found.push(ms) });
  [0, ...ends].forEach((start, at) => read(stream.slice(start, ends[at])));
  return found;
}
table("event streams, split anywhere", (stream) => {
  const whole = read(stream);
  for (let first = 0; first <= stream.length; first += 1) {
    for (let second = first; second <= stream.length; second += 1) deepEqual(read(stream, first, second), whole, `${first}, ${second}`);
  }
  return whole;
}, [
  ["id: 7\nevent: log\ndata: {}\n\n", [{ id: "7", event: "log", data: "{}" }]],
  ["data:a\r\ndata:  b:c\r\rdata\n\n\n", [{ data: "a\n b:c" }, { data: "" }, {}]],
  [": comment\n:\nretry: 1500\nretry: soon\nretry:\nother: x\nid\n\n", [":", ":", 1500, { id: "" }]],
  ["id: a\0b\nevent:\nevent\ndata: \u2028\n\ndata: no end\n", [{ event: undefined, data: "\u2028" }]],
]);
test("an endless event is an error", () => {
  const line = `data: ${"x".repeat(2 ** 20 - 7)}\n`;
  const most = line.repeat(16);
  equal(read(`${most}\n${most}\n`, 2 ** 23, 2 ** 24)[0].data.length, 16 * (2 ** 20 - 6) - 1);
  for (const piece of [line.trim(), line]) throws(() => read(piece.repeat(17)), RangeError);
});

// Control sequences take no space, and are not cut in two.
table(
  "an excerpt contains the first highlight, and as much as there is room for",
  (message, spans) => {
    const { shown, cutBefore, cutAfter } = excerpt(message, spans);
    return [shown.map(({ text, mark }) => (mark ? `<${text}>` : text)).join(""), cutBefore, cutAfter];
  },
  [
    [["short", [[1, 3]]], ["s<ho>rt", false, false]],
    [[`${"x".repeat(500_000)}match${"y".repeat(500_000)}`, [[500_000, 500_005]]], [`${"x".repeat(120)}<match>${"y".repeat(275)}`, true, true]],
    [[`${"\x1b[31m".repeat(300)}red${"z".repeat(1000)}`, [[1500, 1503]]], [`<red>${"z".repeat(397)}`, false, true]],
    [[`${"🙂".repeat(1000)}match`, [[1000, 1005]]], [`${"🙂".repeat(197)}<match>`, true, false]],
    [[`${"x".repeat(1000)}match`, [[1000, 1005]]], [`${"x".repeat(395)}<match>`, true, false]],
    [["a".repeat(390) + "match".repeat(20), Array.from({ length: 20 }, (_, at) => [390 + 5 * at, 395 + 5 * at])], ["a".repeat(300) + "<match>".repeat(20), true, false]],
  ],
);
