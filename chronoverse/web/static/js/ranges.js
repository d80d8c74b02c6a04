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
  #from = [];
  #to = [];
  #before = [];
  #stale = 0;

  /** Adds the numbers `from` to `to`, both inclusive. `to` may be Infinity. */
  add(from, to) {
    let low = this.#search(from - 1);
    if (low >= 0 && this.#to[low] >= to) return;
    if (low < 0 || this.#to[low] < from - 1) low += 1;
    let high = low;
    while (high < this.#from.length && this.#from[high] <= to + 1) high += 1;
    if (high > low) {
      from = Math.min(from, this.#from[low]);
      to = Math.max(to, this.#to[high - 1]);
    }
    this.#from.splice(low, high - low, from);
    this.#to.splice(low, high - low, to);
    this.#before.length = Math.min(this.#before.length, low);
    this.#stale = Math.min(this.#stale, low);
  }

  clear() {
    this.#from = [];
    this.#to = [];
    this.#before = [];
    this.#stale = 0;
  }

  has(number) {
    const at = this.#search(number);
    return at >= 0 && number <= this.#to[at];
  }

  /** How many numbers below `number` are in the ranges. */
  below(number) {
    const at = this.#search(number - 1);
    if (at < 0) return 0;
    this.#count();
    return this.#before[at] + Math.min(number - 1, this.#to[at]) - this.#from[at] + 1;
  }

  /** The number at `index`, counted from 0, among the positive numbers outside the ranges. */
  outside(index) {
    this.#count();
    const at = countBefore(this.#from.length, (each) => this.#from[each] - 1 - this.#before[each] <= index) - 1;
    if (at < 0) return index + 1;
    const skipped = this.#before[at] + this.#to[at] - this.#from[at] + 1;
    return index + 1 + skipped;
  }

  #search(number) {
    return countBefore(this.#from.length, (each) => this.#from[each] <= number) - 1;
  }

  #count() {
    for (let i = this.#stale; i < this.#from.length; i += 1) {
      this.#before[i] = i === 0 ? 0 : this.#before[i - 1] + this.#to[i - 1] - this.#from[i - 1] + 1;
    }
    this.#stale = this.#from.length;
  }
}
