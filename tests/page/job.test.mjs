// The page of a failed job: where it opens, and where the reader ends up after several actions at once.

import { deepEqual, equal, ok } from "node:assert/strict";
import { test } from "node:test";

import { $, events, until } from "./document.mjs";
import { find, line, open, routes, rows } from "./job_page.mjs";

const LINES = 1000;
const CAUSE = 700;
const job = { id: "j", workflow_id: "w", status: "FAILED", exit_code: 1, first_sequence_num: 1, last_sequence_num: LINES };
const cause = { from: CAUSE, to: CAUSE, line: line(CAUSE), kind: "error", confidence: "high" };
const none = { count: 0, first: [] };
const summary = { job, cause, errors: { count: 3 }, new: none, last: [line(LINES)], compared_with: null, complete: true };
//: Searches that wait for the test to respond: the text, whether only the nearest match is requested, and
//: `found(number)`.
const asked = [];
const search = (of) => new Promise((done) => {
  const found = (number) => done(Response.json({ logs: number ? [{ ...line(number), message: "an error", highlights: [] }] : [], cursor: null }));
  asked.push({ q: of.get("q"), isNearest: of.get("limit") === "1", found });
});
Object.assign(routes, {
  "": () => Response.json(job),
  "/summary": () => Response.json(summary),
  "/logs": (of) => {
    const after = Number(of.get("offset"));
    const logs = Array.from({ length: Math.min(Number(of.get("limit")), LINES - after) }, (_, index) => line(after + 1 + index));
    return Response.json({ logs, cursor: after + logs.length < LINES ? "next" : null });
  },
  "/logs/search": search,
});

await open();

const current = () => rows().find(({ className }) => className.includes("current"))?.dataset.number;
const press = (key, { target = $("log"), ...more } = {}) => {
  const event = Object.assign(new Event("keydown", { cancelable: true }), { key, ...more });
  return events.dispatchEvent(Object.defineProperty(event, "target", { value: target }));
};
/** The search for the nearest match of a text, once it has been requested. */
const nearest = async (text) => {
  await until(() => asked.some(({ q, isNearest }) => isNearest && q === text));
  return asked.find(({ q, isNearest }) => isNearest && q === text);
};
/** Gives the page time to do what it should not. */
const settle = () => new Promise((done) => setTimeout(done, 50));

test("a failed job opens at its cause, with the lines above it", async () => {
  await until(() => current() === CAUSE);
  ok(rows().some(({ dataset }) => dataset.number === CAUSE - 5));
  equal(rows().find(({ dataset }) => dataset.number === CAUSE).ariaPosInSet, String(CAUSE));
  equal($("gocause").dataset.number, CAUSE);
});

test("a jump shows that its lines are late, or what the service returned, until they arrive", async () => {
  let bar;
  $("header").after = (element) => (bar = element);
  const { "/logs": logs } = routes;
  let respond = () => Response.json({ status: 503, detail: "the store does not answer" }, { status: 503 });
  routes["/logs"] = (of) => (Number(of.get("offset")) === 200 ? respond(of) : logs(of));
  location.hash = "#L250";
  events.dispatchEvent(new Event("hashchange"));
  await until(() => bar?.hidden === false && bar.textContent.startsWith("The service returned 503: the store does not answer. Next attempt in"));
  let answer = null;
  respond = (of) => new Promise((done) => (answer = () => done(logs(of))));
  await until(() => answer && bar.textContent.startsWith("Still waiting for the service."));
  respond = logs;
  answer();
  await until(() => bar.hidden && current() === 250);
});

for (const order of ["asked", "other"]) {
  test(`a jump goes to what was asked for last, if answers come in the ${order} order`, async () => {
    asked.length = 0;
    press("e");
    const first = await nearest("error");
    find(`needle ${order}`);
    const last = await nearest(`needle ${order}`);
    const answers = [() => first.found(300), () => last.found(500)];
    if (order === "other") answers.reverse();
    answers[0]();
    await settle();
    answers[1]();
    await until(() => current() === 500);
    await settle();
    equal(current(), 500);
    press("Escape");
    press("Escape");
  });
}

test("a late match does not move a reader who has gone elsewhere", async () => {
  asked.length = 0;
  find("late");
  const late = await nearest("late");
  location.hash = "#L40";
  events.dispatchEvent(new Event("hashchange"));
  await until(() => current() === 40);
  late.found(900);
  await settle();
  equal(current(), 40);
  equal(location.hash, "#L40");
  equal($("range").textContent, "Line 40");
});

test("only one filter is active at a time", async () => {
  const pressed = () => ["only", "errors", "new"].filter((id) => $(id).ariaPressed === "true");
  const click = (id) => $(id).dispatchEvent(new Event("click"));
  asked.length = 0;
  find("some");
  click("only");
  deepEqual(pressed(), ["only"]);
  await until(() => asked.some(({ q, isNearest }) => !isNearest && q === "some"));
  asked.find(({ q, isNearest }) => !isNearest && q === "some").found(77);
  await until(() => rows().length === 1);
  equal(rows()[0].dataset.number, 77);
  click("errors");
  deepEqual(pressed(), ["errors"]);
  click("errors");
  deepEqual(pressed(), []);
  await until(() => rows().length > 1);
});

test("the browser's shortcuts are left alone", () => {
  const isTaken = (key, more) => !press(key, more);
  deepEqual([isTaken("w"), isTaken("w", { ctrlKey: true }), isTaken("w", { target: $("q") }), isTaken("x"), isTaken("f", { ctrlKey: true })], [true, false, false, false, true]);
});

test("the dialog goes to a line or selects lines, unless it is closed by Escape", async () => {
  const rows = [["60", "#L60"], ["90 - 85", "#L85-L90"], ["85-9999", "#L85-L1000"], ["20", "#L85-L1000", "Escape"]];
  for (const [typed, named, escape] of rows) {
    $("line").value = typed;
    for (const name of escape ? ["close"] : ["submit", "close"]) $("goto").dispatchEvent(new Event(name));
    await settle();
    deepEqual([location.hash, `#L${current()}`, $("line").value], [named, named.split("-")[0], ""]);
  }
  // The selection follows a jump out of it.
  find("elsewhere");
  (await nearest("elsewhere")).found(20);
  await until(() => location.hash === "#L20");
});

test("an address beyond the end of the log is reported, until the next one", async () => {
  location.hash = "#L9999";
  events.dispatchEvent(new Event("hashchange"));
  await until(() => $("link").textContent.includes("no line 9,999: the log ends at line 1,000"));
  location.hash = "#L5";
  events.dispatchEvent(new Event("hashchange"));
  equal($("link").hidden, true);
});

test("a search that a proxy refuses says so, and Enter repeats it", async () => {
  const refused = [];
  routes["/logs/search"] = (of) => (refused.push(of.get("q")), new Response("<h1>No</h1>", { status: 403, statusText: "Forbidden" }));
  find("refused");
  await until(() => $("count").textContent === "failed (403): retry with Enter");
  equal($("count").title, "The service, or a proxy in front of it, returned 403: Forbidden. Press Enter to search again.");
  $("only").dispatchEvent(new Event("click"));
  equal($("notice").textContent, "The service, or a proxy in front of it, returned 403: Forbidden.");
  $("only").dispatchEvent(new Event("click"));
  routes["/logs/search"] = () => Response.json({ logs: [line(9)], cursor: null });
  find("refused");
  await until(() => $("count").textContent.endsWith("1"));
});
