// The job page: connects the log, the search, the viewport and the stream.

import { follow, TOKEN_EXPIRED } from "../client/follow.js";
import { showAccount } from "./account.js";
import { $, announce, make, notice, toggle } from "./dom.js";
import { Errors, looksLikeError, NewLines } from "./filters.js";
import { Find } from "./find.js";
import { count, ended, many, outcome, tookMs } from "./format.js";
import { Groups } from "./groups.js";
import { ciAddress, labelElements } from "./labels.js";
import { Log } from "./log.js";
import { showMissing, whyMissing } from "./missing.js";
import { notifyOfEnd } from "./notify.js";
import { makeProfile } from "./profile.js";
import { RowMaker } from "./row.js";
import { makeRuler } from "./ruler.js";
import { makeScan } from "./scan.js";
import { begin, following, get, isRenewed } from "./session.js";
import { showSeen } from "./seen.js";
import { copyAs, fromAddress, save, showPicked, toAddress, toQuery, toRange } from "./share.js";
import { hideLost, showArrival, showJob, showLast, showLost, showTrouble, tellProgress } from "./status.js";
import { makeSteps } from "./steps.js";
import { makeStrip } from "./strip.js";
import { openCard, reason, showSummary, textOfLine } from "./summary.js";
import { sentence, untilAnswered } from "./trouble.js";
import { makeViewport } from "./viewport.js";

const JUMP_SHARE = 0.35;
const TIMES = ["none", "clock", "elapsed"];
//: Milliseconds that the first lines wait for the steps and the cause.
const LATE_MS = 900;
//: Maximum number of requests for groups, each of which scans up to 200,000 lines.
const MOST_SCANS = 25;

const [, , , workflow, , name] = location.pathname.split("/").map(decodeURIComponent);
const path = `/workflows/${workflow}/jobs/${name}`;
const maker = new RowMaker();
maker.marks = (line) => find.marks(line);
maker.isNew = (number) => newLines.scan && [number, ...(log.parts.get(number) ?? [])].some((each) => newLines.has(each));
maker.took = (number) => steps.shown.find(({ start, end }) => start === number && end < Infinity)?.ms;
maker.isError = (line) => looksLikeError(line.message);
const log = new Log(path, changed);
const groups = new Groups(path);
const scanned = { changed: scanChanged, jump: reach, top: topNumber, current: () => maker.current, intend };
const find = new Find(path, log, { ...scanned, changed: () => (scanChanged(), maker.renew()) });
const newLines = new NewLines(path, workflow, log, scanned);
const errors = new Errors(path, log, scanned);
//: The filter buttons and their matches. At most one button is pressed.
const FILTERS = new Map([[$("only"), find], [$("errors"), errors], [$("new"), newLines]]);
const RULED = [
  ["new-mark", () => (filtered ? [] : newLines.numbers)],
  ["mark-now", () => (filtered ? [] : find.numbers)],
  ["fault", () => (filtered || !errors.isAsked ? [] : errors.numbers)],
];
const ruler = makeRuler(log, RULED, jump);
const viewport = makeViewport($("log"), log, maker, moved);
const strip = makeStrip(jump, numbersInView);
const profile = makeProfile(path, log, strip);
const steps = makeSteps(groups, () => (strip.mark(steps.shown, errors.numbers), inView(), redraw()));
tellProgress((foot, ms) => ((viewport.foot = foot), profile.showRunning(ms)));
//: The scan whose lines are shown, or null for all lines; and the scan of a stream filter.
let filtered = null;
let own = null;
let position = 1;
let target = 0;
let live = false;
let status = null;
let lastSeen = 0;
let hasReaderActed = false;
//: Whether the header says that the address names a line beyond the end.
let isBeyond = false;
//: Incremented whenever the reader wants to be somewhere else.
let intention = 0;
//: The line to announce once it has loaded, or 0.
let unsaid = 0;
let groupsFound = null;
//: The cause at which a failed job was opened, and the first line to show with it.
let opened = null;
let explained;
const isExplained = new Promise((done) => (explained = done));

const isPressed = (button) => button.ariaPressed === "true";
const chosenStream = () => (isPressed($("stderr")) ? "stderr" : "");

// What is in view.

function changed() {
  showLast(log.last, log.get(log.last)?.timestamp);
  $("log").style.setProperty("--digits", Math.max(4, String(log.last).length));
  for (const { scan } of FILTERS.values()) scan?.resume();
  own?.resume();
  showNewCount();
  findGroups();
  steps.schedule();
  ruler.changed();
  inView();
  viewport.refresh();
  sayLine();
  $("q").placeholder = log.last ? `Find in ${many(log.last, "line")}` : "Find";
}

function redraw() {
  maker.renew();
  viewport.refresh();
}

/** The scan of the pressed filter button, or null. Other scans only mark lines. */
function wanted() {
  const scan = FILTERS.get([...FILTERS.keys()].find(isPressed))?.scan;
  return scan && !scan.isRefused ? scan : null;
}

function scanChanged() {
  if (filtered !== (wanted() ?? own)) filter();
  else if (filtered) showScan(filtered);
  ruler.changed();
  strip.mark(steps.shown, errors.numbers);
  viewport.refresh();
  sayLine();
}

function moved(isLarge) {
  target = 0;
  if (isLarge && !filtered) ruler.showPlace(topNumber());
  if (viewport.atEnd) lastSeen = log.last;
  inView();
  showNewCount();
}

function inView() {
  strip.moved();
  const [from, to] = numbersInView();
  const isInView = from <= maker.current && maker.current <= to;
  steps.follow(isInView ? maker.current : viewport.atEnd ? to : from);
}

function showNewCount() {
  if (viewport.stick) lastSeen = log.last;
  $("follow").hidden = !live;
  toggle($("follow"), viewport.stick);
  const more = log.last - lastSeen;
  $("newer").hidden = !live || viewport.stick || more <= 0 || filtered !== null;
  if (!$("newer").hidden) $("newer").textContent = `↓ ${many(more, "new line")}`;
}

function numbersInView() {
  return viewport.source.count ? viewport.view.map((row) => viewport.source.numberAt(row)) : [position, position];
}

function topNumber() {
  [position] = numbersInView();
  return position;
}

/** See `Matches`: if the reader presses *Errors* and then searches, the search's match is shown, whichever response arrives last. */
function intend() {
  const mine = (intention += 1);
  return () => mine === intention;
}

function setCurrent(number) {
  intend();
  unsaid = 0;
  maker.current = number;
  for (const matches of FILTERS.values()) matches.show();
}

/** Brings a line into view and makes it the current one. A selection that does not contain it moves there. */
function jump(number) {
  log.reveal(number);
  setCurrent(number);
  if (maker.picked && (number < maker.picked.from || number > maker.picked.to)) pick(number, false);
  lastSeen = log.last;
  viewport.show(viewport.source.rowOf(number), { share: JUMP_SHARE, near: find.scan || newLines.scan || errors.isAsked });
  inView();
  showNewCount();
}

/** Jumps to a line at the reader's request, and announces it. */
function reach(number) {
  jump(number);
  unsaid = number;
  sayLine();
}

function sayLine() {
  const { source } = viewport;
  const { number, line } = unsaid && source.count ? source.itemAt(source.rowOf(unsaid)) : {};
  if (!line || number > unsaid) return;
  announce(`Line ${count(unsaid)}: ${textOfLine(line)}`);
  unsaid = 0;
}

function filter() {
  topNumber();
  const stream = chosenStream();
  own?.stop();
  own = stream && !wanted() ? makeScan(path, { stream }, () => log.last, () => (showScan(filtered), viewport.refresh())) : null;
  filtered = wanted() ?? own;
  $("log").classList.toggle("filtered", filtered !== null);
  viewport.source = filtered ?? log;
  ruler.changed();
  target = position;
  if (filtered) showScan(filtered);
  else notice(log.last ? null : "No lines yet.");
  viewport.show(viewport.source.rowOf(position));
  showNewCount();
}

/** Shows a scan's progress. Once the scan has reached the line where the reader was, scrolls there. */
function showScan(scan) {
  if (target && scan.count && (scan.position >= target || scan.done)) {
    viewport.show(Math.min(scan.rowOf(target), scan.count - 1));
    target = 0;
  }
  if (scan.count) notice(null);
  else notice(scan.error ? sentence(scan.error) : scan.done ? "No matching lines." : "Scanning the log…");
}

// Clicks and keys.

function pick(number, extend) {
  const anchor = extend && maker.picked ? maker.picked : { from: number, to: number };
  maker.picked = { from: Math.min(anchor.from, number), to: Math.max(anchor.to, number) };
  picked();
}

function picked() {
  if (isBeyond) showTrouble(null);
  isBeyond = false;
  toAddress(maker.picked);
  showPicked(maker.picked);
  showSeen(path, workflow, name, maker.picked);
  viewport.refresh();
}

function unpick() {
  maker.picked = null;
  setCurrent(0);
  picked();
}

function goTo({ from, to }) {
  maker.picked = { from, to };
  picked();
  reach(Math.min(from, Math.max(log.last, 1)));
  if (to > from) announce(`${many(to - from + 1, "line")} selected`);
}

function goToAddress() {
  const named = fromAddress();
  if (!named) return false;
  const why = live || named.from <= log.last ? null : log.last ? `the log ends at line ${count(log.last)}` : "no output";
  const isPlace = !why || log.last > 0;
  if (isPlace) goTo(named);
  isBeyond = why !== null;
  if (isBeyond) showTrouble(`no line ${count(named.from)}: ${why}`);
  return isPlace;
}

async function fold(number) {
  if (log.folds.has(number)) return log.unfold(number);
  const end = await groups.endOf(log.get(number));
  if (end > number) log.fold(number, end);
}

async function foldAll() {
  if (log.folds.size) return log.foldAll([]), announce("Unfolded all groups");
  await groups.find(MOST_SCANS);
  log.foldAll(groups.ended);
  return announce(`Folded ${many(log.folds.size, "group")}${groups.done ? "" : ` up to line ${groups.position}`}`);
}

/** Once lines with groups are loaded: finds the first groups, and folds the error-free ones of a completed job. */
function findGroups() {
  if (log.hasGroups && !filtered) groupsFound ??= foldFirst();
  return groupsFound;
}

async function foldFirst() {
  $("foldall").hidden = false;
  document.body.classList.add("stepped");
  await groups.find(1);
  if (status === "COMPLETED" && !hasReaderActed && !maker.picked && !find.scan) log.foldAll(groups.good);
  else viewport.refresh();
  steps.draw();
  findSteps();
}

/** Finds the steps of a long log, once its cause is known. */
async function findSteps() {
  await isExplained;
  for (let more = 1; more < MOST_SCANS && !groups.done; more += 1) await groups.find(1).then(steps.schedule);
}

$("log").addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (!row) return;
  const number = Number(row.dataset.number);
  if (event.target.closest("button.fold")) fold(number);
  if (event.target.closest("button.updates")) log.showStates(number);
  if (!event.target.closest("a.n") || event.metaKey || event.ctrlKey) return;
  event.preventDefault();
  pick(number, event.shiftKey);
});
$("newer").addEventListener("click", toEnd);
// After a mouse click on a button, return the keyboard focus to the log. After a key press the focus stays on the
// button, unless that is now hidden: until the next frame, a hidden button still receives keys.
for (const group of document.querySelectorAll("#tools, #card, #steps, #views, #picked, #newer")) {
  group.addEventListener("click", ({ detail, target }) => {
    if (target.closest("a, button:not([popovertarget])") && (detail || group.hidden)) $("log").focus({ focusVisible: false });
  });
}
for (const group of [$("card"), $("steps")]) {
  group.addEventListener("click", (event) => {
    const number = event.target.closest("[data-number]")?.dataset.number;
    if (!number || event.metaKey || event.ctrlKey) return;
    event.preventDefault();
    if (group.matches(":popover-open")) group.hidePopover();
    goTo({ from: Number(number), to: Number(number) });
  });
}
for (const kind of ["keydown", "pointerdown", "wheel", "hashchange"]) addEventListener(kind, () => (hasReaderActed = true), { passive: true });
$("unpick").addEventListener("click", unpick);
// A long name is truncated until it is tapped.
$("name").addEventListener("click", () => $("name").classList.toggle("cut"));
for (const button of [$("copy"), $("copylink"), $("copymarkdown"), $("copycause")]) {
  button.addEventListener("click", () => copyAs(button, path, maker.picked, chosenStream()).catch((error) => announce(`Not copied: ${error.message}`)));
}
function choose(button) {
  toggle(button);
  for (const [each, matches] of FILTERS) {
    if (each === button && isPressed(each)) matches.ask?.();
    else if (each === button || isPressed(each)) matches.leave?.();
    if (each !== button) toggle(each, false);
  }
  toQuery({ new: isPressed($("new")) ? "true" : "" });
  filter();
}
for (const button of FILTERS.keys()) button.addEventListener("click", () => choose(button));
$("compare").addEventListener("click", () => choose($("new")));
$("follow").addEventListener("click", () => (viewport.stick ? (viewport.stick = false) : toEnd(), showNewCount()));
$("stderr").addEventListener("click", () => {
  find.stream = newLines.stream = errors.stream = toggle($("stderr")) ? "stderr" : "";
  filter();
});
$("wrap").addEventListener("click", () => (viewport.wrap = toggle($("wrap"))));
$("time").addEventListener("click", () => {
  maker.times = TIMES[(TIMES.indexOf(maker.times) + 1) % TIMES.length];
  toggle($("time"), maker.times !== "none");
  $("times").textContent = maker.times;
  $("log").dataset.times = maker.times;
  announce(`Times: ${maker.times}`);
  redraw();
});
// On phones, lines wrap by default.
if (matchMedia("(max-width: 700px)").matches) viewport.wrap = toggle($("wrap"), true);
$("foldall").addEventListener("click", foldAll);
$("gotoline").addEventListener("click", () => $("goto").showModal());
$("help").addEventListener("click", () => $("keys").showModal());
$("views").addEventListener("beforetoggle", () => {
  const shown = filtered && filtered === find.scan ? "the matches" : chosenStream() || "the log";
  $("downloadwhat").textContent = `Download ${shown}`;
});
$("views").addEventListener("click", async ({ target }) => {
  if (target.closest("button")) $("views").hidePopover();
  const { format } = target.dataset;
  if (!format) return;
  const criteria = filtered && filtered === find.scan ? find.criteria : { stream: chosenStream() };
  await save(path, `${workflow}-${name}`, format, criteria, log.last).catch((error) => announce(`Download failed: ${error.message}`));
});
// Escape only closes the dialog.
$("goto").addEventListener("submit", () => {
  const named = toRange(`L${$("line").value.replaceAll(" ", "")}`);
  const last = Math.max(log.last, 1);
  if (named) goTo({ from: Math.min(named.from, last), to: Math.min(named.to, last) });
});
$("goto").addEventListener("close", () => {
  $("line").value = "";
  $("log").focus();
});
function toEnd() {
  if (filtered) return viewport.end(false);
  viewport.end(live);
  lastSeen = log.last;
  showNewCount();
}

const toStart = () => (viewport.show(0), showNewCount());
const stepSlower = (direction) => strip.step(maker.current || topNumber(), direction);

//: The keys: the label and description in the help dialog, and the actions.
const KEYS = [
  ["/ Ctrl-F", "find", { "/": () => find.focus() }],
  ["n N", "next, previous match", { n: () => find.step(1), N: () => find.step(-1) }],
  ["e Shift-E", "next, previous error", { e: () => errors.step(1), E: () => errors.step(-1) }],
  ["d", "only new lines", { d: () => $("new").click() }],
  ["j k", "next, previous new lines", { j: () => newLines.step(1), k: () => newLines.step(-1) }],
  ["c", "the cause of a failure", { c: () => $("gocause").hidden || $("gocause").click() }],
  ["g G", "first line, last line and follow", { g: toStart, Home: toStart, G: toEnd, End: toEnd }],
  ["l", "go to a line, or select lines such as 20-25", { l: () => $("gotoline").click(), ":": () => $("gotoline").click() }],
  ["p P", "next, previous pause that was slower than usual", { p: () => stepSlower(1), P: () => stepSlower(-1) }],
  ["s", "stderr only", { s: () => $("stderr").click() }],
  ["z", "fold, unfold all groups", { z: () => $("foldall").hidden || foldAll() }],
  ["w", "wrap long lines", { w: () => $("wrap").click() }],
  ["t", "times: none, clock, elapsed", { t: () => $("time").click() }],
  ["Shift-click", "on a number: select lines", { "?": () => $("help").click() }],
  ["Esc", "close the search, clear the selection", { Escape: () => (find.scan ? find.close() : unpick()) }],
];
const ACTIONS = Object.assign({}, ...KEYS.map(([, , actions]) => actions));
for (const [keys, text] of KEYS) {
  const shown = keys.split(" ").flatMap((key) => [make("kbd", "", key), " "]);
  $("keys").querySelector("dl").append(make("dt", "", ...shown), make("dd", "", text));
}

const SCROLLING = new Set(["ArrowUp", "ArrowDown", "PageUp", "PageDown", " "]);

addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "f") {
    event.preventDefault();
    return find.focus();
  }
  // Scroll keys go to the log, wherever the reader last clicked.
  if (event.target === document.body && SCROLLING.has(event.key)) return $("log").focus({ focusVisible: false });
  const free = event.target === document.body || event.target === $("log") || $("log").contains(event.target);
  if (!free || event.ctrlKey || event.metaKey || event.altKey || !(event.key in ACTIONS)) return undefined;
  event.preventDefault();
  return ACTIONS[event.key]();
});

// Events from the service.

const events = {
  log: (line) => (groups.added(line), errors.added(line), showArrival(line.timestamp), log.append(line)),
  gap: ({ from, to, reason }) => (groups.added({ sequence_num: to }, from), log.gap(from, to, reason)),
  redact: ({ from, to }) => {
    announce(`Text in lines ${from} to ${to} was redacted`);
    return [log.redact(from, to), find.restart(), newLines.restart(), errors.restart(), profile.forget(), filtered && filter(), redraw()];
  },
  job: (state) => (showState(state), live && errors.keep()),
  // If the token is renewed, the stream continues with the new one. While there is no job, a notice already says that.
  error: (text) => status === null || (text === TOKEN_EXPIRED && isRenewed()) || showTrouble(text),
};

function showState(state) {
  status = state.status;
  maker.startedAt = state.started_at ?? maker.startedAt;
  live = !ended(status);
  if (!live) log.setExtent(state.first_sequence_num ?? 1, state.last_sequence_num);
  if (log.last) notice(null);
  else notice(status === "PENDING" ? "Waiting for a runner." : live ? "No lines yet." : "No output.");
  showJob(state, log.last);
  showLabels(state.labels);
  if (live || hasFailed()) openCard(hasFailed() || status === "RUNNING" ? status : null);
  else if (!$("card").hidden) openCard(null);
  strip.reserve(tookMs(state));
  steps.of(state);
  notifyOfEnd(live, outcome(state), name);
  showNewCount();
}

function showLabels(labels = {}) {
  const shown = JSON.stringify(labels);
  if ($("labels").dataset.shown === shown) return;
  $("labels").dataset.shown = shown;
  $("labels").replaceChildren(...labelElements(workflow, labels));
  $("labels").hidden = !$("labels").childElementCount;
  $("viewlabels").hidden = !document.getElementById("morelabels");
  const ci = ciAddress(labels);
  $("ci").hidden = !ci;
  if (ci) Object.assign($("ci"), { href: ci, title: ci, target: "_blank", rel: "noopener noreferrer nofollow" });
  newLines.offer(labels.branch);
}

/** Shows why no more lines will arrive. `why` is null if the log is complete. */
function showEnd(why) {
  hideLost();
  live = live && why === null;
  if (why !== null && log.last) showTrouble(why);
  else if (why !== null) notice(whyMissing(workflow, why));
  else if (hasFailed()) summarize(false);
  showNewCount();
}

/** Shows the live stream after line `offset` until it ends. Waits for a job that does not exist yet. */
async function followStream(offset, isThere) {
  const frames = follow({ ...following, workflow, job: name, offset, wait: isThere ? 0 : Infinity, onReconnect: showLost });
  let since = performance.now();
  try {
    for await (const { event, data } of frames) {
      if (event === "connected") hideLost("connected again");
      else events[event]?.(data);
      if (event === "log" && log.last === 1) notice(null);
      // Keep the page responsive while many lines arrive. In a hidden tab, a timer takes a second or a minute.
      if (!document.hidden && performance.now() - since > 12) {
        await new Promise((done) => setTimeout(done, 0));
        since = performance.now();
      }
    }
    // The service's 204 only means that the log has ended, perhaps before the last line shown, if the store lost some.
    if (live) await untilAnswered(() => get(path)).then(({ body }) => showState(body));
    showEnd(null);
  } catch (error) {
    // The header already shows that a job was lost.
    showEnd(status !== null && ended(status) ? null : error.message);
  }
}

const hasFailed = () => status === "FAILED" || status === "LOST";

/** Shows the cause, with lines above it as far as it stays in view. Called again when late content above the log has moved it. */
function showOpened() {
  if (!opened || hasReaderActed) return;
  const [top, bottom] = viewport.view;
  const [row, above] = [opened.number, opened.from].map((number) => viewport.source.rowOf(number));
  if (!viewport.wrap && row - above < bottom - top - 3) viewport.show(above);
  else viewport.show(row, { share: JUMP_SHARE });
  // New elements appear in place instead of moving.
  redraw();
}
new ResizeObserver(showOpened).observe($("log"));

/** Shows the summary. If `opens`, also marks the new lines and, within 5 s, moves the log to the cause, until the reader acts. */
function summarize(opens, answered) {
  const until = performance.now() + 5000;
  return showSummary(path, (body) => {
    newLines.showCount(body.compared_with && body.new.count);
    errors.showCount(body.errors.count);
    newLines.offer(body.job.labels?.branch, body.baseline ?? null);
    const { line, isLast } = reason(body);
    maker.cause = line && !isLast ? line.sequence_num : 0;
    if (maker.cause) steps.mark(maker.cause);
    viewport.refresh();
    answered?.();
    if (!opens || hasReaderActed) return;
    // Marks would be useless if nearly all lines are new.
    if (body.compared_with && body.new.count < 0.8 * log.last) newLines.keep();
    if (performance.now() > until || !maker.cause || maker.cause === maker.current) return;
    jump(maker.cause);
    opened = { number: maker.cause, from: Math.max(1, body.cause.from - 5) };
    showOpened();
  }).then(answered);
}

/** Once the first lines are loaded: requests what the service computes about the job, starting with why it failed. */
async function explain(opensAtEnd) {
  const isFailure = hasFailed();
  if (log.last) await log.loaded;
  if (isFailure) await new Promise((answered) => summarize(opensAtEnd, answered));
  explained();
  // The first lines are drawn in the next frame. Answering keeps the service busy, so request the profile after that.
  for (let frames = 0; frames < 2; frames += 1) await new Promise(requestAnimationFrame);
  await profile.follow(() => live);
}

/** Shows the first lines, or those around a failure's cause, together with what is above and beside them, unless that takes too long. */
async function reveal() {
  const late = new Promise((done) => setTimeout(done, LATE_MS));
  const lines = Promise.all([log.last && log.loaded, log.fetchHead()]);
  await Promise.race([late, Promise.all([lines.then(findGroups), hasFailed() && isExplained])]);
  const [first, last] = [log.first, log.last].map((number) => Date.parse(log.get(number)?.timestamp));
  strip.reserve(last - first);
  document.body.classList.add("ready");
  // A cause that comes now must not move the log.
  $("card").classList.toggle("late", hasFailed() && !$("summary").querySelector("code, b"));
  if (document.activeElement === document.body) $("log").focus({ focusVisible: false });
}

async function main() {
  Object.assign($("name"), { textContent: name, title: name });
  $("back").textContent = workflow;
  $("back").href = `/ui/workflows/${workflow}`;
  document.title = `${name} · Chronoverse`;
  await begin();
  // Don't keep the page empty if the service does not respond.
  setTimeout(() => document.body.classList.add("ready"), 2 * LATE_MS);
  showAccount();
  const notYet = (error) => (error.status === 404 ? null : Promise.reject(error));
  const job = await untilAnswered(() => get(path).then(({ body }) => body, notYet));
  // Added after the listener that removes a token from the address, because a jump changes the address.
  addEventListener("hashchange", goToAddress);
  if (job) {
    log.setExtent(job.first_sequence_num, job.last_sequence_num);
    showState(job);
    const isSearched = find.fromAddress();
    const isCompared = new URLSearchParams(location.search).get("new") === "true";
    const hasPlace = goToAddress();
    const opensAtEnd = !hasPlace && !isSearched && !isCompared && (live || status !== "COMPLETED");
    if (opensAtEnd) viewport.end(live);
    else if (!hasPlace) viewport.show(0);
    if (isSearched) find.begin({ jumps: !hasPlace });
    if (isCompared) choose($("new"));
    lastSeen = log.last;
    reveal();
    explain(opensAtEnd);
    if (!live) return;
    errors.keep();
  } else {
    showMissing(workflow, name);
    reveal();
    viewport.end(true);
    live = true;
    explain(false);
  }
  await followStream(log.last, job !== null);
}

main().catch((error) => {
  notice(whyMissing(workflow, error.message));
  document.body.classList.add("ready");
});
