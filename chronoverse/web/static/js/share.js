// Picked lines: their numbers in the address, copying and downloading.

import { $, announce, link, make } from "./dom.js";
import { count } from "./format.js";
import { query } from "./scan.js";
import { ask, get, refusal } from "./session.js";
import { cardMarkdown, fenced } from "./summary.js";
import { plain } from "./text.js";

//: Maximum number of lines per copy. For more, there is the download.
const MAX_COPIED = 20_000;

const FRAGMENT = /^L([0-9]{1,15})(?:-L?([0-9]{1,15}))?$/;

export const fromAddress = () => location.hash.slice(1).split("&").map(toRange).find(Boolean) ?? null;

/** The lines that `L20` or `L20-L25` names, or null. */
export function toRange(text) {
  const found = FRAGMENT.exec(text);
  if (!found) return null;
  const ends = [Number(found[1]), Number(found[2] ?? found[1])].sort((a, b) => a - b);
  return ends[0] > 0 ? { from: ends[0], to: ends[1] } : null;
}

export function toAddress(picked) {
  const fragment = picked ? `#L${picked.from}${picked.to > picked.from ? `-L${picked.to}` : ""}` : "";
  if (location.hash !== fragment) history.replaceState(history.state, "", location.pathname + location.search + fragment);
}

/** Changes these parameters of the address's query, without a new history entry. Empty values are removed. */
export function toQuery(values) {
  const parameters = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    if (value) parameters.set(name, value);
    else parameters.delete(name);
  }
  const search = parameters.size ? `?${parameters}` : "";
  if (location.search !== search) history.replaceState(history.state, "", location.pathname + search + location.hash);
}

export function showPicked(picked) {
  $("picked").hidden = picked === null;
  if (!picked) return;
  const many = picked.to - picked.from + 1;
  $("range").textContent = many === 1 ? `Line ${count(picked.from)}` : `${count(many)} lines`;
  $("copy").textContent = many === 1 ? "Copy line" : "Copy lines";
}

/**
 * The text of the picked lines, without numbers and colours. At most `MAX_COPIED` lines. Joins the parts of a long line,
 * also those after `to`, unless missing lines or a line of the other stream come between them.
 */
async function textOf(path, { from, to }, stream) {
  let text = "";
  let open = null;
  let next = 0;
  const most = from + MAX_COPIED - 1;
  const end = Math.min(to, most);
  for (let position = from - 1; position < end || (open && position < most); ) {
    const limit = Math.min(1000, end > position ? end - position : most - position);
    const { body, position: reached } = await get(`${path}/logs?${query({}, { offset: position, limit })}`);
    for (const line of body.logs) {
      const isShown = !stream || line.stream === stream;
      if (open && (line.sequence_num !== next || (isShown && line.stream !== open))) [text, open] = [`${text}\n`, null];
      if (line.sequence_num > end && !open) break;
      next = line.sequence_num + 1;
      if (!isShown) continue;
      text += plain(line.message) + (line.partial ? "" : "\n");
      open = line.partial ? line.stream : null;
    }
    if (!body.cursor) break;
    position = reached;
  }
  return text.replace(/\n$/, "");
}

const COPIES = {
  copy: textOf,
  copycause: () => cardMarkdown(location.href.split("#")[0]),
  copylink: () => location.href,
  copymarkdown: async (path, picked, stream) => markdown(await textOf(path, picked, stream), picked),
};

const OF_LINES = ["copy", "copymarkdown"];

function markdown(text, { from, to }) {
  const where = to > from ? `lines ${from} to ${to}` : `line ${from}`;
  const address = location.href.replace(/[()]/g, (bracket) => (bracket === "(" ? "%28" : "%29"));
  return `${fenced(text)}\n[${$("name").textContent}, ${where}](${address})\n`;
}

export async function copyAs(button, path, picked, stream) {
  const text = await COPIES[button.id](path, picked, stream);
  const label = (button.dataset.label ??= button.textContent);
  await toClipboard(text);
  const isCut = OF_LINES.includes(button.id) && picked.to - picked.from >= MAX_COPIED;
  const said = isCut ? `Copied ${count(MAX_COPIED)} lines only` : "Copied";
  const shown = (button.textContent = isCut ? said : `${said} ✓`);
  announce(said);
  setTimeout(() => {
    if (button.textContent === shown) button.textContent = label;
    delete button.dataset.label;
  }, 2000);
}

/** Browsers have `navigator.clipboard` only in secure contexts. `execCommand` works elsewhere, too. */
async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Downloads what is shown: the log, one of its streams, or the matches. `criteria` are those of a scan. */
export async function save(path, name, format, criteria, many) {
  const url = `${path}/logs/raw?${query(criteria, { format })}`;
  const suggestedName = `${name}.${format}`;
  // A long log is streamed to a file, if the browser supports that.
  const picks = many > 200_000 && globalThis.showSaveFilePicker;
  const file = picks && (await showSaveFilePicker({ suggestedName }).catch(() => null));
  if (picks && !file) return;
  const response = await ask(url);
  if (!response.ok) throw await refusal(response);
  if (file) {
    await response.body.pipeTo(await file.createWritable());
    return announce("Saved");
  }
  const saved = Object.assign(link(URL.createObjectURL(await response.blob())), { download: suggestedName });
  saved.click();
  setTimeout(() => URL.revokeObjectURL(saved.href), 60_000);
}
