// Lines to show somebody: chosen by number, named in the address, copied, saved.

import { $, say } from "./dom.js";
import { count, lines } from "./format.js";
import { query } from "./scan.js";
import { ask, get, refusal } from "./session.js";
import { plain } from "./text.js";

//: Lines that one copy takes. Whoever wants more wants the download.
const COPIED = 20_000;
//: Lines of one request for them.
const PAGE = 1000;
//: Lines from which a download is written to a file as it comes, where the browser can, instead of into memory first.
const MANY = 200_000;

const FRAGMENT = /^L([0-9]{1,15})(?:-L?([0-9]{1,15}))?$/;

/** The lines that the address names, `{from, to}`, or null. */
export function fromAddress() {
  const found = location.hash.slice(1).split("&").map((part) => FRAGMENT.exec(part)).find(Boolean);
  if (!found) return null;
  const ends = [Number(found[1]), Number(found[2] ?? found[1])].sort((a, b) => a - b);
  return ends[0] > 0 ? { from: ends[0], to: ends[1] } : null;
}

/** Names the lines in the address, without a new entry in the history. */
export function toAddress(picked) {
  const named = picked ? `#L${picked.from}${picked.to > picked.from ? `-L${picked.to}` : ""}` : "";
  if (location.hash !== named) history.replaceState(history.state, "", location.pathname + location.search + named);
}

/** Shows what is chosen, and what can be done with it. */
export function showPicked(picked) {
  $("picked").hidden = picked === null;
  if (!picked) return;
  const many = picked.to - picked.from + 1;
  $("range").textContent = many === 1 ? `Line ${count(picked.from)}` : `${count(many)} lines`;
  $("copy").textContent = many === 1 ? "Copy line" : "Copy lines";
}

/** Puts the chosen lines' text on the clipboard: no numbers, no colours, and the pieces of a long line together. */
export async function copyLines(path, { from, to }, stream) {
  let text = "";
  const end = Math.min(to, from + COPIED - 1);
  for (let place = from - 1; place < end; ) {
    const { body } = await get(`${path}/logs?${query({ stream }, { offset: place, limit: Math.min(PAGE, end - place) })}`);
    const wanted = body.logs.filter((line) => line.sequence_num <= end);
    for (const line of wanted) text += plain(line.message) + (line.partial && line.sequence_num < end ? "" : "\n");
    if (!wanted.length || !body.cursor) break;
    place = wanted.at(-1).sequence_num;
  }
  await toClipboard(text.replace(/\n$/, ""));
  say(`Copied ${lines(end - from + 1)}`);
}

export async function copyLink() {
  await toClipboard(location.href);
  say("Copied the link");
}

/** The clipboard interface is there on secure origins only; the old way is there everywhere. */
async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Saves what is shown: the log, one stream of it, or the matches. `what` is as for a scan. */
export async function save(path, name, format, what, many) {
  const url = `${path}/logs/raw?${query(what, { format })}`;
  const suggestedName = `${name}.${format}`;
  if (many > MANY && globalThis.showSaveFilePicker) {
    const file = await showSaveFilePicker({ suggestedName }).catch(() => null);
    if (!file) return;
    const response = await ask(url);
    if (!response.ok) throw await refusal(response);
    await response.body.pipeTo(await file.createWritable());
    return say("Saved");
  }
  const response = await ask(url);
  if (!response.ok) throw await refusal(response);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = suggestedName;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
