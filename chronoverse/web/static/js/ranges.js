// Line numbers without a row of their own: folded lines, all but the first number of a gap, and later parts of a long line.

/** How many of the indexes from 0 to `length` - 1 satisfy `isBefore(index)`, by binary search. Those that do come first. */
export function countBefore(length, isBefore) {
  let low = 0;
  let high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isBefore(middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Sorted disjoint ranges of integers, each with the count of all numbers in the previous ranges. */
export class Ranges {
  #all = [];
  //: The counts are valid below this index.
  #counted = 0;

  /** Adds the numbers `from` to `to`, both inclusive. `to` may be Infinity. */
  add(from, to) {
    const all = this.#all;
    const low = countBefore(all.length, (each) => all[each].to < from - 1);
    if (all[low]?.from <= from && to <= all[low].to) return;
    const high = countBefore(all.length, (each) => all[each].from <= to + 1);
    const touching = all.slice(low, high);
    const range = { from: Math.min(from, touching[0]?.from ?? from), to: Math.max(to, touching.at(-1)?.to ?? to), before: 0 };
    all.splice(low, high - low, range);
    this.#counted = Math.min(this.#counted, low);
  }

  clear() {
    this.#all = [];
    this.#counted = 0;
  }

  has(number) {
    return number <= this.#last(({ from }) => from <= number)?.to;
  }

  below(number) {
    const range = this.#last(({ from }) => from < number);
    return range ? range.before + Math.min(number - 1, range.to) - range.from + 1 : 0;
  }

  /** The number at `index`, counted from 0, among the positive numbers outside the ranges. */
  outside(index) {
    const range = this.#last((each) => each.from - 1 - each.before <= index);
    return index + 1 + (range ? range.before + range.to - range.from + 1 : 0);
  }

  #last(isBefore) {
    for (let before = 0; this.#counted < this.#all.length; this.#counted += 1) {
      const last = this.#all[this.#counted - 1];
      if (last) before = last.before + last.to - last.from + 1;
      this.#all[this.#counted].before = before;
    }
    return this.#all[countBefore(this.#all.length, (each) => isBefore(this.#all[each])) - 1];
  }
}
