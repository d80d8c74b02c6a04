// Splits a message into styled segments of text. Whatever a log contains, the result is only text.

import { indexed } from "./colour.js";

// Control characters except the tab, bidirectional controls, line breaks, and invisible characters.
const SPECIAL = /[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]/g;
// Escape sequences: CSI; the strings OSC, DCS, SOS, PM and APC with their terminators; character sets; and single characters.
const CSI = /\x1b\[([0-?]*)[ -/]*([@-~])/y;
// OSC 8: a hyperlink. Only http and https targets without special characters become links.
const TARGET = /^\x1b\]8;[^;]*;(https?:\/\/[^\s<>"'`\\^{|}\x00-\x1f\x7f-\x9f]{1,2000}|)(?:\x07|\x1b\\)$/i;
const STRING = /\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)/y;
const SHORT = /\x1b(?:[()*+][0-9A-Za-z]|[=>78cDEHMNOZ])/y;
const URL_LIKE = /\bhttps?:\/\/[^\s<>"'`\\^{|}]+/gi;

//: Characters of a message that are stored and shown. Only a download has the rest.
export const MAX_SHOWN = 20_000;

const NAMES = {
  0x7f: "^?", 0x85: "NEL", 0x61c: "ALM", 0x200b: "ZWSP", 0x200e: "LRM", 0x200f: "RLM", 0x2028: "LS", 0x2029: "PS",
  0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO", 0x2060: "WJ", 0x2066: "LRI",
  0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xfeff: "BOM",
};

const PLAIN = Object.freeze({ ink: null, ground: null, bold: false, dim: false, italic: false, underline: false, strike: false, inverse: false });

//: The codes that set a property of a style, and those that reset some.
const ON = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const OFF = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"] };

/** The colour after the code 38 or 48 at index `at`, and the number of its codes. The colour is undefined if malformed. */
function extended(codes, at) {
  if (codes[at + 1] === 5) {
    const index = codes[at + 2];
    return { colour: index < 16 ? index : index <= 255 ? indexed(index) : undefined, length: 2 };
  }
  if (codes[at + 1] === 2) {
    const rgb = codes.slice(at + 2, at + 5);
    return { colour: rgb.length === 3 && rgb.every((part) => part <= 255) ? rgb : undefined, length: 4 };
  }
  return { colour: undefined, length: codes.length };
}

/** The codes of one parameter. After a colon, there can be a colour, perhaps with an empty colour space, or the kind of an underline. */
function codesOf(parameter) {
  const [code, ...more] = parameter.split(":").map((part) => Number(part || 0));
  if (code === 4 && more[0] === 0) return [24];
  if (code === 58 && more.length) return [];
  return code === 38 || code === 48 ? [code, ...(more.length > 4 ? [more[0], ...more.slice(2, 5)] : more)] : [code];
}

/** The style after a "select graphic rendition" sequence. Concealed text remains readable. */
function rendition(style, parameters) {
  const codes = parameters.split(";").flatMap(codesOf);
  let next = { ...style };
  for (let at = 0; at < codes.length; at += 1) {
    const code = codes[at];
    if (code === 0) next = { ...PLAIN };
    else if (code in ON) next[ON[code]] = true;
    else if (code in OFF) for (const name of OFF[code]) next[name] = false;
    else if (code >= 30 && code <= 37) next.ink = code - 30;
    else if (code >= 40 && code <= 47) next.ground = code - 40;
    else if (code >= 90 && code <= 97) next.ink = code - 82;
    else if (code >= 100 && code <= 107) next.ground = code - 92;
    else if (code === 39) next.ink = null;
    else if (code === 49) next.ground = null;
    else if (code === 38 || code === 48 || code === 58) {
      const { colour, length } = extended(codes, at);
      // 58 is the colour of the underline, which is not shown.
      if (colour !== undefined && code !== 58) next[code === 38 ? "ink" : "ground"] = colour;
      at += length;
    }
  }
  return next;
}

/** The text between control sequences, as `{text, start, style}`, and control characters, which also have a `code`. */
function runs(message) {
  const found = [];
  let style = PLAIN;
  let at = 0;
  let target;
  const text = (end) => {
    if (end > at) found.push({ text: message.slice(at, end), start: at, style, target });
  };
  let special;
  for (SPECIAL.lastIndex = 0; (special = SPECIAL.exec(message)); SPECIAL.lastIndex = at) {
    text(special.index);
    at = special.index + 1;
    const code = message.charCodeAt(special.index);
    for (const form of [CSI, STRING, SHORT]) form.lastIndex = special.index;
    const sequence = code === 0x1b && (CSI.exec(message) ?? STRING.exec(message) ?? SHORT.exec(message));
    if (sequence) {
      if (sequence[0][1] === "[" && sequence[2] === "m" && !/[<-?]/.test(sequence[1])) style = rendition(style, sequence[1]);
      const [, address] = sequence[0].startsWith("\x1b]8;") ? (TARGET.exec(sequence[0]) ?? [null, ""]) : [null, null];
      if (address !== null) target = address && URL.canParse(address) ? address : undefined;
      at = special.index + sequence[0].length;
    } else {
      const symbol = NAMES[code] ?? (code < 0x20 ? `^${String.fromCharCode(0x40 + code)}` : `x${code.toString(16)}`);
      found.push({ text: symbol, start: special.index, code, style });
    }
  }
  text(message.length);
  return found;
}

export function plain(message) {
  return runs(message).map(({ text, code }) => (code === undefined ? text : code > 0x9f ? String.fromCharCode(code) : "")).join("");
}

function links(text) {
  const found = [];
  for (const match of text.matchAll(URL_LIKE)) {
    const address = withoutPunctuation(match[0]);
    if (URL.canParse(address)) found.push([match.index, match.index + address.length, address]);
  }
  return found;
}

/** A URL without the punctuation and unbalanced brackets after it. Takes linear time: a job could print 20,000 of them. */
function withoutPunctuation(url) {
  const count = (character) => url.split(character).length;
  const surplus = { ")": count(")") - count("("), "]": count("]") - count("[") };
  let end = url.length;
  while (".,;:!?*_~".includes(url[end - 1])) end -= 1;
  while (surplus[url[end - 1]] > 0) surplus[url[--end]] -= 1;
  return url.slice(0, end);
}

/** A message split where its style, link or mark changes. `marks` are sorted spans [start, end) in UTF-16 units. */
export function segments(message, marks) {
  const found = [];
  const parts = runs(message);
  //: The first mark that ends after the last index asked for. Indices only grow.
  let next = 0;
  const isMarked = (index) => {
    while (marks[next]?.[1] <= index) next += 1;
    return marks[next]?.[0] <= index;
  };
  for (const [part, { text, start, style, code, target }] of parts.entries()) {
    if (code !== undefined) {
      found.push({ text, style, code, mark: isMarked(start) });
      continue;
    }
    const linked = target ? [[0, text.length, target]] : text.includes("://") ? links(text) : [];
    const cuts = new Set([0, text.length]);
    for (const [from, to] of linked) cuts.add(from).add(to);
    for (let at = next; marks[at]?.[0] < start + text.length; at += 1) {
      const [from, to] = marks[at];
      if (to > start) cuts.add(Math.max(0, from - start)).add(Math.min(text.length, to - start));
    }
    const sorted = [...cuts].sort((a, b) => a - b);
    for (let i = 0; i + 1 < sorted.length; i += 1) {
      const [from, to] = [sorted[i], sorted[i + 1]];
      const mark = isMarked(start + from);
      while (linked[0]?.[1] <= from) linked.shift();
      const link = linked[0]?.[0] <= from ? linked[0][2] : undefined;
      found.push({ text: text.slice(from, to), style, link, mark });
    }
    // The text of such a link can name another host than the link's target.
    if (target && parts[part + 1]?.target !== target) found.at(-1).host = new URL(target).host;
  }
  return found;
}

/** The matches of the expression `form` in a message's visible text, as spans [start, end) in the message itself. */
export function findVisible(message, form) {
  let visible = message;
  const skipped = [];
  if (message.includes("\x1b")) {
    const parts = runs(message);
    visible = "";
    for (const { text, start, code } of parts) {
      skipped.push([visible.length, start - visible.length]);
      visible += code === undefined ? text : message[start];
    }
  }
  const toMessageIndex = (at) => at + (skipped.findLast(([from]) => from <= at)?.[1] ?? 0);
  return [...visible.matchAll(form)].map(({ index, 0: { length } }) => [toMessageIndex(index), toMessageIndex(index + length - 1) + 1]);
}

/** The line with its message truncated to MAX_SHOWN. `more` is true if something was cut off. */
export function truncate(line) {
  if (line.message.length <= MAX_SHOWN) return line;
  // Copied through JSON, because a slice would keep the whole string in memory.
  return { ...line, message: JSON.parse(JSON.stringify(line.message.slice(0, MAX_SHOWN))), more: true };
}

/** Converts spans in code points, as sent by the service, to UTF-16 units. */
export function toUtf16Spans(message, spans) {
  if (!/[\ud800-\udfff]/.test(message)) return spans;
  const offsets = [];
  let unit = 0;
  for (const character of message) {
    offsets.push(unit);
    unit += character.length;
  }
  offsets.push(unit);
  return spans.map(([start, end]) => [offsets[start] ?? unit, offsets[end] ?? unit]);
}
