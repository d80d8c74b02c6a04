// A line as the page keeps it.

//: Characters of a message that are kept and shown; the rest is for the download.
export const SHOWN = 20_000;

/** Whether the same long lines are open, by stream. */
export const sameOpen = (a, b) => a.stdout === b.stdout && a.stderr === b.stderr;

/** A line as it is kept: its message cut to what is shown, and `more` when that is not all. */
export function keep(line) {
  if (line.message.length <= SHOWN) return line;
  // Through JSON, since a slice would keep the whole string alive.
  return { ...line, message: JSON.parse(JSON.stringify(line.message.slice(0, SHOWN))), more: true };
}
