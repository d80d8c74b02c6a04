// Which ids are near one that does not exist.

/** How much of the longer id both have in common at their beginnings and ends, from 0 to 1. */
function nearness(wanted, id) {
  const [a, b] = [wanted.toLowerCase(), id.toLowerCase()];
  const shorter = Math.min(a.length, b.length);
  let start = 0;
  while (start < shorter && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < shorter - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const share = (start + end) / Math.max(a.length, b.length);
  return shorter >= 3 && (a.includes(b) || b.includes(a)) ? Math.max(share, 0.5) : share;
}

/** Up to three of `ids` that are near, the nearest first. The command line finds the same ones. */
export function nearIds(wanted, ids) {
  const all = ids.map((id) => ({ id, share: nearness(wanted, id) })).filter(({ share }) => share >= 0.5);
  return all.sort((a, b) => b.share - a.share).slice(0, 3).map(({ id }) => id);
}
