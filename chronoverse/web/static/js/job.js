// The page of one job: its parts, put together.

import { $, notice, say } from "./dom.js";
import { Find, toggle } from "./find.js";
import { ended, lines } from "./format.js";
import { Log } from "./log.js";
import { isGroup, RowMaker } from "./row.js";
import { findOne, Scan } from "./scan.js";
import { begin, get, Refused } from "./session.js";
import { copyLines, copyLink, fromAddress, save, showPicked, toAddress } from "./share.js";
import { showJob, showLast, showLink, showTrouble } from "./status.js";
import { Stream } from "./stream.js";
import { Viewport } from "./viewport.js";

//: Share of the screen above a line that was jumped to.
const SHARE = 0.35;
const TIMES = ["none", "clock", "elapsed"];

const [, , , workflow, , name] = location.pathname.split("/");
const path = `/workflows/${workflow}/jobs/${name}`;
const maker = new RowMaker();
maker.marks = (line) => find.marks(line);
const log = new Log(path, changed);
const find = new Find(path, log, { changed: found, jump: (number) => jump(number), top: topNumber });
const viewport = new Viewport($("log"), log, maker, moved);
let filtered = null;
let place = 1;
let aim = 0;
let live = false;
let status = null;
let seen = 0;

// What is on the screen.

function changed() {
  showLast(log.last);
  $("log").style.setProperty("--digits", Math.max(4, String(log.last).length));
  find.grown();
  if (filtered && filtered !== find.scan) filtered.more();
  newer();
  viewport.refresh();
}

/** All rows look different from now on. */
function redraw() {
  maker.renew();
  viewport.refresh();
}

function found() {
  if (filtered && $("only").ariaPressed === "true" && filtered !== find.scan) filter();
  if (filtered === find.scan && filtered) told(filtered);
  redraw();
}

function moved() {
  aim = 0;
  if (viewport.atEnd) seen = log.last;
  newer();
}

function newer() {
  if (viewport.stick) seen = log.last;
  const many = log.last - seen;
  $("newer").hidden = !live || viewport.stick || many <= 0 || filtered !== null;
  if (!$("newer").hidden) $("newer").textContent = `↓ ${lines(many).replace(/ (lines?)$/, " new $1")}`;
}

/** The number of the first line in view, or of what was that before there was nothing to show. */
function topNumber() {
  if (viewport.source.count) place = viewport.source.numberAt(viewport.view[0]);
  return place;
}

/** Brings a line into view and marks it. */
function jump(number, share = SHARE) {
  log.reveal(number);
  maker.current = number;
  seen = log.last;
  viewport.show(viewport.source.rowOf(number), { share, near: share === SHARE && find.active });
  newer();
}

/** Shows every line, those of one stream, or the matches. */
function filter() {
  topNumber();
  const only = $("only").ariaPressed === "true" && find.active;
  const stream = $("stderr").ariaPressed === "true" ? "stderr" : "";
  if (filtered && filtered !== find.scan) filtered.stop();
  if (only) filtered = find.scan;
  else if (stream) filtered = new Scan(path, { stream }, () => log.last, () => (told(filtered), viewport.refresh()));
  else filtered = null;
  $("log").classList.toggle("filtered", filtered !== null);
  viewport.source = filtered ?? log;
  aim = place;
  if (filtered) told(filtered);
  else notice(log.last ? null : "No lines yet.");
  viewport.show(viewport.source.rowOf(place));
  newer();
}

/** What a list of matches has to say; it is brought to where the reader was once it reaches that far. */
function told(scan) {
  if (aim && scan.count && (scan.place >= aim || scan.done)) {
    viewport.show(Math.min(scan.rowOf(aim), scan.count - 1));
    aim = 0;
  }
  if (scan.count) notice(null);
  else notice(scan.done ? "No such lines." : "Looking through the log…");
}

// What the reader does.

function pick(number, extend) {
  const anchor = extend && maker.picked ? maker.picked : { from: number, to: number };
  maker.picked = { from: Math.min(anchor.from, number), to: Math.max(anchor.to, number) };
  picked();
}

function picked() {
  toAddress(maker.picked);
  showPicked(maker.picked);
  viewport.refresh();
}

function unpick() {
  maker.picked = null;
  maker.current = 0;
  picked();
}

/** Goes where the address says. True when it says anything. */
function follow() {
  const wanted = fromAddress();
  if (!wanted) return false;
  maker.picked = wanted;
  showPicked(wanted);
  jump(Math.min(wanted.from, Math.max(log.last, 1)));
  return true;
}

async function fold(number) {
  if (log.isFolded(number)) return log.unfold(number);
  const what = { q: "^(::|##\\[)(end)?group(::|\\])", regex: true };
  const next = await findOne(path, what, number, "asc").catch(() => null);
  const end = next ? next.sequence_num - (isGroup(next.message) ? 1 : 0) : Infinity;
  if (end > number) log.fold(number, end);
}

$("log").addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (!row) return;
  if (event.target.closest("a.n")) {
    if (event.metaKey || event.ctrlKey) return;
    event.preventDefault();
    pick(Number(row.dataset.number), event.shiftKey);
  } else if (event.target.closest("button.fold")) {
    fold(Number(row.dataset.number));
  }
});
$("newer").addEventListener("click", () => toEnd());
// A click, not a key, on a button: the keys are the log's again.
document.querySelector(".tools").addEventListener("click", ({ detail }) => detail && $("log").focus({ focusVisible: false }));
$("unpick").addEventListener("click", unpick);
$("copy").addEventListener("click", () => copyLines(path, maker.picked, $("stderr").ariaPressed === "true" ? "stderr" : ""));
$("copylink").addEventListener("click", copyLink);
$("only").addEventListener("click", () => (toggle($("only")), filter()));
$("stderr").addEventListener("click", () => {
  find.stream = toggle($("stderr")) ? "stderr" : "";
  filter();
});
$("wrap").addEventListener("click", () => (viewport.wrap = toggle($("wrap"))));
$("time").addEventListener("click", () => {
  maker.times = TIMES[(TIMES.indexOf(maker.times) + 1) % TIMES.length];
  toggle($("time"), maker.times !== "none");
  $("log").dataset.times = maker.times;
  say(`Times: ${maker.times}`);
  redraw();
});
$("help").addEventListener("click", () => $("keys").showModal());
$("downloads").addEventListener("toggle", () => {
  const shown = filtered === null ? "the log" : filtered === find.scan ? "the matches" : "stderr";
  $("downloadwhat").textContent = `Save ${shown} as`;
});
$("downloads").addEventListener("click", async (event) => {
  const { format } = event.target.dataset;
  if (!format) return;
  $("downloads").hidePopover();
  const stream = $("stderr").ariaPressed === "true" ? "stderr" : "";
  const what = filtered === null ? {} : filtered === find.scan ? find.what : { stream };
  await save(path, `${workflow}-${name}`, format, what, log.last).catch((error) => say(`Not saved: ${error.message}`));
});
$("goto").addEventListener("close", () => {
  const number = Number($("line").value);
  $("line").value = "";
  if (number > 0) {
    pick(Math.min(number, Math.max(log.last, 1)), false);
    jump(maker.picked.from);
  }
  $("log").focus();
});
addEventListener("hashchange", follow);

function toEnd() {
  if (filtered) return viewport.end(false);
  viewport.end(live);
  seen = log.last;
  newer();
}

const KEYS = {
  "/": () => find.focus(),
  n: () => find.step(1),
  N: () => find.step(-1),
  g: () => (viewport.show(0), newer()),
  G: toEnd,
  l: () => $("goto").showModal(),
  ":": () => $("goto").showModal(),
  e: () => $("stderr").click(),
  w: () => $("wrap").click(),
  t: () => $("time").click(),
  "?": () => $("help").click(),
  Home: () => (viewport.show(0), newer()),
  End: toEnd,
  Escape: () => (find.active ? find.close() : unpick()),
};

const SCROLLING = new Set(["ArrowUp", "ArrowDown", "PageUp", "PageDown", " "]);

addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "f") {
    event.preventDefault();
    return find.focus();
  }
  // What scrolls does so in the log, wherever the reader has clicked last.
  if (event.target === document.body && SCROLLING.has(event.key)) return $("log").focus({ focusVisible: false });
  const free = event.target === document.body || event.target === $("log");
  if (!free || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return undefined;
  event.preventDefault();
  return KEYS[event.key]();
});

// What the service says.

const events = {
  log: (line) => log.append(line),
  gap: ({ from, to, reason }) => log.gap(from, to, reason),
  redact: ({ from, to }) => {
    say(`Lines ${from} to ${to} were redacted`);
    return [log.redact(from, to), find.again(), filtered && filter(), redraw()];
  },
  job: told_of,
  error: (text) => showTrouble(text),
};

function told_of(state) {
  status = state.status;
  maker.startedAt = state.started_at ?? maker.startedAt;
  live = !ended(status);
  if (!live) log.reach(state.first_sequence_num ?? 1, state.last_sequence_num);
  if (log.last) notice(null);
  else notice(live ? "No lines yet." : "This job wrote nothing.");
  showJob(state, log.last);
  newer();
}

const heard = {
  event: (kind, data) => {
    events[kind]?.(data);
    if (kind === "log" && log.last === 1) notice(null);
  },
  connected: () => showLink(true),
  lost: () => showLink(false),
  gone: (why) => {
    showLink(true);
    live = live && why === null;
    if (why !== null && log.last) showTrouble(why);
    else if (why !== null) notice(why);
    newer();
  },
};

/** The job as it is, or null where there is none yet. */
async function look() {
  try {
    return (await get(path)).body;
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return null;
    throw error;
  }
}

async function main() {
  $("name").textContent = name;
  $("back").textContent = workflow;
  $("back").href = `/?workflow=${workflow}`;
  document.title = `${name} · Chronoverse`;
  find.stream = "";
  await begin();
  $("log").focus({ focusVisible: false });
  const job = await look();
  if (job) {
    log.reach(job.first_sequence_num, job.last_sequence_num);
    told_of(job);
    if (!follow()) {
      if (live || job.status !== "COMPLETED") viewport.end(live);
      else viewport.show(0);
    }
    seen = log.last;
    if (!live) return;
  } else {
    notice("Waiting for the job to begin…");
    viewport.end(true);
    live = true;
  }
  const heartbeat = Number(document.documentElement.dataset.heartbeat);
  await new Stream(path, heartbeat, job !== null, heard).follow(log.last);
}

main().catch((error) => notice(error.message));
