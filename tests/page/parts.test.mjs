// Picked lines, steps and watches: what they show, copy and send.

import { deepEqual, equal, rejects } from "node:assert/strict";
import { test } from "node:test";

import { $, events, until } from "./document.mjs";

const js = "../../chronoverse/web/static/js";
const { showAccount } = await import(`${js}/account.js`);
const { copyAs, fromAddress, showPicked, toAddress, toQuery } = await import(`${js}/share.js`);
const { Groups } = await import(`${js}/groups.js`);
const { makeSteps } = await import(`${js}/steps.js`);
const { showWatches } = await import(`${js}/watches.js`);
const { hideLost, showLost } = await import(`${js}/status.js`);
const { signedIn } = await import(`${js}/session.js`);

const PATH = "http://127.0.0.1/workflows/w/jobs/j";
const at = (hash, search = "") => (location.href = `http://127.0.0.1/ui/workflows/w/jobs/j${search}${hash}`);

test("the address contains the picked lines", () => {
  const read = (hash) => { at(hash); const { from, to } = fromAddress() ?? {}; return [from, to].filter(Boolean).join("-"); };
  deepEqual(["#L5", "#L5-L9", "#L10-L9", "#x&L7", "#L0", "#L", "#L5x", "#l5", "", "#L0-L5"].map(read), ["5-5", "5-9", "9-10", "7-7", "", "", "", "", "", ""]);
  at("#L1", "?q=a");
  toAddress({ from: 3, to: 3 });
  equal(location.search + location.hash, "?q=a#L3");
  toAddress({ from: 3, to: 7 });
  equal(location.hash, "#L3-L7");
  toQuery({ q: "", regex: "true" });
  equal(location.search + location.hash, "?regex=true#L3-L7");
  toAddress(null);
  toQuery({ regex: "" });
  equal(location.href, "http://127.0.0.1/ui/workflows/w/jobs/j");
});

test("the selection is described, and copied as lines without colours", async () => {
  const lines = [["\x1b[31mone\x1b[0m"], ["tw", true], ["o"], ["``` x"], [" five "]].map(([message, partial = false], index) => ({ sequence_num: index + 1, message, partial, stream: "stdout" }));
  const asked = [];
  globalThis.fetch = async (request) => {
    const of = new URL(request.url).searchParams;
    asked.push(`${of.get("offset")}+${of.get("limit")}`);
    const page = lines.filter(({ sequence_num: number }) => number > Number(of.get("offset"))).slice(0, Math.min(2, Number(of.get("limit"))));
    const reached = page.at(-1)?.sequence_num ?? 5;
    const found = page.filter(({ stream }) => !of.has("stream") || stream === of.get("stream"));
    return Response.json({ logs: found, cursor: reached < 5 ? "next" : null }, { headers: { "Last-Event-ID": String(reached) } });
  };
  let copied;
  Object.defineProperty(globalThis, "navigator", { value: { clipboard: { writeText: async (text) => (copied = text) } }, configurable: true });
  const copy = async (id, from, to, stream = "") => { await copyAs(Object.assign($(id), { id }), PATH, { from, to }, stream); return copied; };
  at("#L1");
  $("name").textContent = "w / j";
  equal(await copy("copy", 1, 4), "one\ntwo\n``` x");
  deepEqual(asked, ["0+4", "2+2"]);
  // A row shows all pieces of its line, whatever their numbers.
  equal(await copy("copy", 1, 2), "one\ntwo");
  // The lines of one stream can come after empty pages.
  lines[4].stream = "stderr";
  equal(await copy("copy", 1, 5, "stderr"), " five ");
  equal(await copy("copylink", 1, 2), "http://127.0.0.1/ui/workflows/w/jobs/j#L1");
  equal(await copy("copymarkdown", 4, 5), "````\n``` x\n five \n````\n[w / j, lines 4 to 5](http://127.0.0.1/ui/workflows/w/jobs/j#L1)\n");
  equal(await copy("copymarkdown", 5, 5), "```\n five \n```\n[w / j, line 5](http://127.0.0.1/ui/workflows/w/jobs/j#L1)\n");
  equal($("copy").textContent, "Copied ✓");
  // The rest of a line may be among missing lines, but not among those of the other stream.
  lines.splice(0, 5, ...[[1, "a", true], [2, "x"], [3, "b", true], [5, "c"]].map(([number, message, partial]) => ({ sequence_num: number, message, partial, stream: message === "x" ? "stderr" : "stdout" })));
  equal(await copy("copy", 1, 5, "stdout"), "ab\nc");
  equal(await copy("copy", 1, 5), "a\nx\nb\nc");
  await copy("copy", 1, 20_001);
  equal($("copy").textContent, "Copied 20,000 lines only");
  lines.splice(3, 1, { sequence_num: 5, message: " five ", stream: "stderr" });
  // A bracket would end a link in Markdown.
  at("#L1", "?q=f(x)");
  equal(await copy("copymarkdown", 5, 5), "```\n five \n```\n[w / j, line 5](http://127.0.0.1/ui/workflows/w/jobs/j?q=f%28x%29#L1)\n");
  navigator.clipboard.writeText = async () => { throw new Error("refused"); };
  $("copylink").textContent = "";
  await rejects(copy("copylink", 1, 2), { message: "refused" });
  equal($("copylink").textContent, "");
  showPicked({ from: 1200, to: 1200 });
  deepEqual([$("picked").hidden, $("range").textContent, $("copy").textContent], [false, "Line 1,200", "Copy line"]);
  showPicked({ from: 1, to: 1200 });
  deepEqual([$("range").textContent, $("copy").textContent], ["1,200 lines", "Copy lines"]);
  showPicked(null);
  equal($("picked").hidden, true);
});

test("a step has its job's status if it contains the cause or is the last", () => {
  const groups = new Groups(PATH);
  const messages = ["::group::Set up", "::endgroup::", "::group::Run make", "::endgroup::", "made", "::group::Run test", "::endgroup::", "tested"];
  messages.forEach((message, index) => groups.added({ sequence_num: index + 1, message, timestamp: new Date(1000 * index).toISOString() }));
  const steps = makeSteps(groups, () => {});
  const statuses = (job, cause = 0) => { steps.mark(cause); steps.of(job); steps.draw(); return steps.shown.map(({ status }) => status.slice(0, 2)).join(" "); };
  const finished_at = new Date(9000).toISOString();
  equal(statuses({ status: "RUNNING" }), "CO CO RU");
  equal(statuses({ status: "COMPLETED", finished_at }), "CO CO CO");
  equal(statuses({ status: "FAILED", finished_at }), "CO CO FA");
  equal(statuses({ status: "FAILED", finished_at }, 5), "CO FA CO");
  equal(statuses({ status: "LOST", finished_at }, 1), "LO CO CO");
  equal(statuses({ status: "CANCELED", finished_at }), "CO CO CA");
  deepEqual(steps.shown.map(({ start, end, ms }) => [start, end, ms]), [[1, 2, 1000], [3, 5, 3000], [6, Infinity, 4000]]);
});

test("a connection that is restored at once was never lost", async () => {
  for (let tries = 0; tries < 2; tries += 1) showLost(new Error("closed"), 0);
  hideLost();
  await new Promise((done) => setTimeout(done, 800));
  equal($("link").hidden, true);
});

test("the account has the owner, the workflows and the end of the token", () => {
  signedIn(`x.${btoa(JSON.stringify({ sub: "ada", exp: 2_000_000_000, workflows: ["w", "x*"] }))}.y`, null);
  showAccount();
  equal(document.querySelector("header").children.at(-1).children[0].textContent, `Token ofadaForw, x*Until${new Date(2e12).toLocaleString()}`);
});

test("watches are shown to readers who can send a test, with its result", async () => {
  const token = (scope) => `x.${btoa(JSON.stringify({ scope }))}.y`;
  const place = $("watches");
  const watch = { id: "main", on: "end", url: "https://hooks.example/x", state: "retrying", error: "refused", waiting: 2, delivered_at: null, failing_since: null };
  let later = { ...watch, delivered_at: "now" };
  let answered = 202;
  const asked = [];
  globalThis.fetch = async (request, { method = "GET" } = {}) => {
    asked.push(`${method} ${new URL(request.url ?? request, location).pathname}`);
    return Response.json(asked.at(-1).endsWith("/watches") ? { watches: [watch] } : method !== "POST" ? later : answered === 202 ? watch : { title: "Not Found", detail: "no such watch" }, { status: method === "POST" ? answered : 200 });
  };
  signedIn(token("logs:read"), null);
  await showWatches("w", place).catch(() => {});
  deepEqual(asked, []);
  signedIn(token("logs:read logs:admin"), null);
  await showWatches("w", place);
  equal(place.hidden, false);
  const item = place.children[1].children[0];
  const [, , state, , button] = item.children;
  equal(item.textContent, "main on end to hooks.example, retrying: refused, 2 waiting Send a test");
  const sent = async () => { button.dispatchEvent(new Event("click")); await until(() => state.textContent !== "waiting for the delivery" && !button.disabled); return state.textContent; };
  equal(await sent(), "delivered");
  later = { ...watch, state: "failing", error: "timed out", waiting: 0, failing_since: "later" };
  equal(await sent(), "failing: timed out");
  // Pauses end when the network is back.
  const online = setInterval(() => events.dispatchEvent(new Event("online")), 1);
  later = { ...watch, waiting: 3 };
  equal(await sent(), "retrying: refused, 3 waiting");
  clearInterval(online);
  answered = 404;
  equal(await sent(), "not sent: no such watch");
});
