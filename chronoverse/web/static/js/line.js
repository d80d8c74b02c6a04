// How much of a line the page stores and shows.

//: Characters of a message that are stored and shown. The rest is only in the download.
export const MAX_SHOWN = 20_000;

/** Whether the same long lines are unfinished in both, by stream. */
export const sameOpenLines = (a, b) => a.stdout === b.stdout && a.stderr === b.stderr;

/** The line with its message cut to what is shown. `more` is true when that is not all. */
export function truncate(line) {
  if (line.message.length <= MAX_SHOWN) return line;
  // This copies through JSON, because a slice would keep the whole string in memory.
  return { ...line, message: JSON.parse(JSON.stringify(line.message.slice(0, MAX_SHOWN))), more: true };
}
