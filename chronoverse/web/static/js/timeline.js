// The pure functions of the time strip: positions of points and marks, and texts about them. A strip is a list of
// points `[seconds, number]`: how long after the first line a line came. Neither value ever decreases.

import { count, span } from "./format.js";
import { countBefore } from "./ranges.js";

//: The strip's size in the units of its drawing, which is stretched to the page's width; and that of its output.
export const WIDTH = 1000;
const HEIGHT = 16;
const OUTPUT_HEIGHT = 10;
const COLUMNS = 200;
const MERGED = 5;

/** Interpolates between the points: the `to` (0 or 1) for a value of `from`. */
function between(strip, from, to, value) {
  const at = countBefore(strip.length, (each) => strip[each][from] <= value);
  if (at === 0 || at === strip.length) return strip.at(at ? -1 : 0)[to];
  const [before, after] = [strip[at - 1], strip[at]];
  return before[to] + ((after[to] - before[to]) * (value - before[from])) / (after[from] - before[from]);
}

/** The strip extended to the start of a job and to its end after `ms`, if it fits in between. The first line came at `first`. */
export function wholeStrip(strip = [], ms, start, first) {
  const before = (Date.parse(first) - Date.parse(start)) / 1000;
  const points = strip.map(([seconds, number]) => [seconds + before, number]);
  return points.length && before >= 0 && points.at(-1)[0] <= ms / 1000 ? [...points, [ms / 1000, points.at(-1)[1]]] : strip;
}

export const secondsOf = (strip, number) => between(strip, 1, 0, number);

export const lineAt = (strip, seconds) => Math.floor(between(strip, 0, 1, seconds));

/** The output in each column of the strip, as the `d` of a path. The height is logarithmic. */
export function outputPath(strip) {
  const total = strip.at(-1)[0];
  const below = Array.from({ length: COLUMNS + 1 }, (_, column) => between(strip, 0, 1, (column / COLUMNS) * total));
  const heights = below.slice(1).map((number, column) => Math.log1p(number - below[column]));
  const most = Math.max(...heights) || 1;
  const tops = heights.map((height, column) => `V${(HEIGHT - (OUTPUT_HEIGHT * height) / most).toFixed(1)}H${((column + 1) * WIDTH) / COLUMNS}`);
  return `M0 ${HEIGHT}${tops.join("")}V${HEIGHT}Z`;
}

/** The long pauses of a profile, in order: `{from, to, seconds, usual, number, isSlower}`. `number` is the last line before the pause. */
export function pausesOf({ strip, slower, pauses }) {
  const found = new Map();
  for (const [each, isSlower] of [...slower.map((each) => [each, true]), ...pauses.map((each) => [each, false])]) {
    const { after, before, seconds, usual } = each;
    // The line may have been dropped from the log in the meantime.
    if (!after || !before || found.has(before.sequence_num)) continue;
    if (!isSlower && seconds < strip.at(-1)[0] * 0.01) continue;
    const to = secondsOf(strip, before.sequence_num);
    found.set(before.sequence_num, { from: Math.max(0, to - seconds), to, seconds, usual, number: after.sequence_num, isSlower });
  }
  return [...found.values()].sort((a, b) => a.from - b.from);
}

/** The pauses that were slower than usual, as the `d` of a path: a horizontal line with a stroke at its start. Close ones are merged. */
export function slowPath(pauses, total) {
  const x = (seconds) => (seconds / total) * WIDTH;
  const merged = [];
  for (const { from, to } of pauses.filter(({ isSlower }) => isSlower)) {
    if (merged.length && x(from) - x(merged.at(-1).to) < MERGED) merged.at(-1).to = to;
    else merged.push({ from, to });
  }
  return merged.map(({ from, to }) => `M${x(from).toFixed(1)} 0V${HEIGHT}M${x(from).toFixed(1)} ${HEIGHT / 2}H${x(to).toFixed(1)}`).join("");
}

/** The lines with these numbers as strokes, as the `d` of a path. Close ones are merged. */
export function marksPath(strip, numbers) {
  const strokes = new Set(numbers.map((number) => Math.round((secondsOf(strip, number) / strip.at(-1)[0]) * (WIDTH / MERGED)) * MERGED));
  return [...strokes].map((x) => `M${x} 0V${HEIGHT / 2}`).join("");
}

/** The bands of steps on a strip, with start and width in percent. Bands too narrow to be visible are omitted. */
export function bandsOf(strip, steps) {
  const total = strip.at(-1)[0];
  const share = (number) => (100 * secondsOf(strip, number)) / total;
  const bands = steps.filter(({ depth }) => !depth).map((step) => ({ ...step, from: share(step.start), to: step.end === Infinity ? 100 : share(step.end + 1) }));
  return bands.filter(({ from, to }) => to - from >= 0.5);
}

/** The pause at a place. Those that were slower than usual extend `reach` seconds further at both ends. */
export function pauseAt(pauses, seconds, reach = 0) {
  const away = ({ from, to }) => Math.max(from - seconds, seconds - to, 0);
  const near = pauses.filter((each) => each.isSlower && away(each) < reach).sort((a, b) => away(a) - away(b));
  return near[0] ?? pauses.find(({ from, to }) => from <= seconds && seconds < to) ?? null;
}

const duration = (seconds) => (seconds >= 10 && seconds < 60 ? `${seconds.toFixed(1)} s` : span(1000 * seconds));

const roughly = (seconds) => (seconds < 60 ? span(1000 * seconds) : seconds < 3600 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`);

const usually = (usual) => (!usual ? "" : usual.median < 0.001 ? "usually no pause" : `usually ${duration(usual.median)}`);

export const pauseText = ({ seconds, usual, number }) => `${[`${duration(seconds)} here`, usually(usual)].filter(Boolean).join(", ")} · after line ${count(number)}`;

export const placeText = (strip, seconds) => `${duration(seconds)} · line ${count(lineAt(strip, seconds))}`;

/** The texts about a profile's worst pause, before and after the text of the line it links to. */
export const slowerTexts = ({ excess, after, usual }) => [`${duration(excess)} slower after line ${count(after.sequence_num)}: `, ` (${usually(usual)})`];

/** When good runs ended from here on, such as "in 2 to 3 min". `left` is in seconds. */
function endText({ least, most }) {
  if (most <= 0) return "usually ended by now";
  const [size, unit] = most < 60 ? [1, "s"] : most < 7200 ? [60, "min"] : [3600, "h"];
  const grain = unit === "s" ? 5 : 1;
  const low = Math.floor(Math.max(0, least) / size / grain) * grain;
  const high = Math.ceil(most / size / grain) * grain;
  if (!low) return `usually ends within ${high} ${unit}`;
  return `usually ends in ${low < high ? `${low} to ` : ""}${high} ${unit}`;
}

/** When a job usually ends, and a silence longer than in every good run, `age` seconds after the response. Either can be null. */
export function runningTexts({ silent_seconds: silent, usual, seconds_left: left }, age, isSilent) {
  const now = (silent ?? -Infinity) + age;
  const isLong = isSilent && now >= 10 && now > (usual?.most ?? Infinity);
  return {
    end: left && endText({ least: left.least - age, most: left.most - age }),
    silent: isLong ? `Silent for ${roughly(now)}, usually ${roughly(usual.median)}` : null,
  };
}
