// The card of a failed or lost job: its most likely cause, one sentence about it, and actions.

import { againstLabels, jobPage } from "./addresses.js";
import { $, announce, link, make } from "./dom.js";
import { ago, count, many } from "./format.js";
import { segmentElement } from "./row.js";
import { markup, TIME } from "./markup.js";
import { MORE_REQUESTS, pastOf } from "./seen.js";
import { get } from "./session.js";
import { plain, segments } from "./text.js";

const EXIT = JSON.parse(document.documentElement.dataset.exits ?? "{}");

let asking = 0;

export const linkToLine = (number, ...children) => make("a", { href: `#L${number}`, data: { number } }, ...children);

/** A line's text without colours, markup and the time before it, and with an annotation's place, as in the terminal. */
export function textOfLine({ message }) {
  const text = message.replace(TIME, "");
  const { skip = 0, where } = markup(text) ?? {};
  return `${where ? `${where}: ` : ""}${plain(text.slice(skip)).trim().replace(/\s+/g, " ")}`.slice(0, 400);
}

export function code(line) {
  const text = make("code", "");
  for (const segment of segments(textOfLine(line), [])) text.append(segmentElement({ ...segment, link: undefined }));
  return text;
}

/** Why a job failed: `text` in the page's words, or the `line` that explains it, perhaps with a `note`. */
export function reason({ job, cause, errors, last: lines }) {
  const line = cause?.line;
  const last = lines?.at(-1) ?? (cause?.kind === "last" ? line : null);
  const { status, exit_code: exit, labels = {} } = job;
  const oom = labels.reason === "OOMKilled" ? "Out of memory" : null;
  const said = oom ?? EXIT[exit];
  const isFound = cause && cause.kind !== "last";
  if (status === "LOST") {
    const at = new Date(last?.timestamp);
    const since = Number.isNaN(at.getTime()) ? "" : ` since ${at.toLocaleString()} (${ago(last.timestamp)})`;
    return { text: `No sign of the runner${since}`, last, note: line ? null : "No output" };
  }
  if (!line) return { text: said ? `${said} (exit ${exit})` : "Failed without output", note: said ? "No output" : null };
  // A meaningful exit code takes precedence over a guess.
  if (isFound && !(said && (cause.confidence === "low" || errors?.count === 0))) return { line, isGuess: cause.confidence === "low", note: said ? `${said} (exit ${exit})` : null };
  if (said) return { text: `${said} (exit ${exit})`, last };
  return { line, isLast: true, note: errors?.count === 0 ? "No line looks like an error" : null };
}

export function causeText(body) {
  const { text, line, last } = reason(body);
  const number = last?.sequence_num ?? body.job.last_sequence_num;
  if (body.job.status === "LOST" && number) return `No sign of the runner since line ${count(number)}`;
  return text ?? textOfLine(line);
}

/** An element's parts as text for screen readers. */
const words = (element) => [...element.children].map((each) => each.ariaLabel ?? each.textContent).join(" ");

function show(body) {
  const { job, complete } = body;
  const { text, line, last, note, isGuess, isLast } = reason(body);
  const number = (line ?? last)?.sequence_num;
  const at = number && linkToLine(number, count(number));
  if (at) Object.assign(at, { className: "at", ariaLabel: `Line ${count(number)}` });
  const label = isGuess ? "Most likely cause" : isLast ? "Last line" : "";
  $("summary").replaceChildren(...(line ? [at, ...(label ? [make("small", "", label)] : []), code(line)] : [make("b", "", text)]));
  const said = line ? pastOf(body) : [];
  if (note) said.unshift(note, said.length ? ". " : "");
  if (!line && last) said.push("Last line: ", at, " ", code(last));
  $("past").replaceChildren(...said);
  $("past").hidden = !said.length;
  $("scanned").hidden = complete;
  $("scanned").textContent = `Scanned ${count(job.last_sequence_num - body.scanned_to + 1)} of ${many(job.last_sequence_num, "line")}`;
  $("scanned").className = "quiet";
  $("copycause").hidden = false;
  $("gocause").hidden = !number;
  $("gocause").replaceChildren("Go to line", make("span", "words", ` ${count(number ?? 0)}`));
  $("gocause").href = `#L${number}`;
  $("gocause").dataset.number = number ?? "";
  showRuns(job.workflow_id, number ? body.compared_with : null);
}

export function showRuns(workflow, runs) {
  $("compare").hidden = $("good").hidden = $("viewruns").hidden = !runs;
  $("good").textContent = `${many(runs?.length ?? 0, "good run")} ▾`;
  const rows = (runs ?? []).map((run) => {
    const only = { href: `?${new URLSearchParams({ new: true, against: run })}`, className: "quiet", ariaLabel: `only this run: ${run}` };
    return make("div", "run", link(jobPage(workflow, run), run), make("a", only, "only this run"));
  });
  $("runs").replaceChildren(...rows);
}

/** The card as Markdown with links. `address` is the page's. */
export function cardMarkdown(address) {
  const { number } = $("gocause").dataset;
  const where = number ? `${address}#L${number}` : address;
  const text = $("summary").querySelector("code, b").textContent;
  const said = [$("past"), $("slower")].filter((each) => !each.hidden && each.textContent).map((each) => `\n${each.textContent}\n`);
  return `[${$("name").textContent}](${where}): ${$("badge").textContent}\n\n${fenced(text)}\n${said.join("")}`;
}

/** Text as a Markdown code block, with a fence longer than any in the text. */
export function fenced(text) {
  const fence = "`".repeat(Math.max(3, ...(text.match(/`+/g) ?? []).map((ticks) => ticks.length + 1)));
  return `${fence}\n${text}\n${fence}`;
}

/** Opens a job's card before its content is known, so that nothing moves later. Null closes it. */
export function openCard(status) {
  const card = $("card");
  if ((card.hidden ? null : card.dataset.status) === status) return;
  card.hidden = status === null;
  if (status === null) return;
  card.dataset.status = status;
  card.ariaLabel = status === "RUNNING" ? "Progress" : status === "COMPLETED" ? "What was slower" : "Why it failed";
  $("summary").replaceChildren(make("small", "", "Looking for the cause…"));
  $("copycause").hidden = $("compare").hidden = $("good").hidden = true;
}

/** Shows the summary, and asks again until all lines are scanned, and a few times for all runs. Calls `told(body)` each time. */
export async function showSummary(path, told) {
  const mine = (asking += 1);
  let more = MORE_REQUESTS;
  for (let requests = 0; requests < 40; requests += 1) {
    const url = `${path}/summary?${new URLSearchParams([["bytes", 16_384], ...againstLabels()])}`;
    const { body, error } = await get(url).catch((failed) => ({ error: failed }));
    if (mine !== asking) return;
    if (error) {
      $("scanned").hidden = false;
      $("scanned").textContent = `The cause cannot be determined: ${error.message}`;
      $("scanned").className = "bad";
      if ($("summary").querySelector("small")) $("summary").replaceChildren(make("b", "", $("badge").textContent));
      return;
    }
    show(body);
    told(body);
    if (body.complete && !(body.cause?.line.seen?.without_shapes && more--)) return announce([words($("summary")), $("past").textContent].filter(Boolean).join(". "));
  }
}
