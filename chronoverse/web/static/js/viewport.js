// A virtual list of any length: only the rows in view have elements. The position is a row, and how many of its pixels
// are out of view. The scroll bar's range is bounded, because browsers cannot lay out a hundred million pixels. If the
// list is longer, or if rows differ in height, a small move of the bar scrolls by pixels, and a large one by fractions.

import { make } from "./dom.js";

//: Height of a row that does not wrap, in pixels. Same as in page.css.
export const ROW = 20;
//: Maximum range of the scroll bar in pixels. Firefox allows 17.9 million, Chromium 33.5 million.
const MAX_RANGE = 8_000_000;
const SMALL_SCREENS = 2;

export class Viewport {
  stick = false;
  #scroller;
  #space;
  #pane;
  #rows;
  #source;
  #make;
  #moved;
  #wrap = false;
  #row = 0;
  #px = 0;
  #toEnd = false;
  #heightFactor = 1;
  #height = 0;
  #lastScrollTop = 0;
  #frame = 0;
  #settleTimer = 0;
  #nodes = new Map();
  #anchor = null;
  #foot = make("div", { className: "foot", role: "listitem" });

  /** `make.element(item)` makes an item's element, which is replaced when `make.stamp(item)` changes. `moved(isLarge)`: the reader has scrolled. */
  constructor(scroller, source, make, moved) {
    this.#scroller = scroller;
    this.#space = scroller.querySelector(".space");
    this.#pane = scroller.querySelector(".pane");
    this.#rows = scroller.querySelector(".rows");
    this.#source = source;
    this.#make = make;
    this.#moved = moved;
    // The wheel event precedes its scroll event. New lines in between must not scroll back to the end.
    scroller.addEventListener("wheel", ({ deltaY }) => deltaY < 0 && this.#release(), { passive: true });
    scroller.addEventListener("touchmove", () => this.#release(), { passive: true });
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#resized()).observe(scroller);
    this.#resized();
  }

  get source() {
    return this.#source;
  }

  set source(source) {
    this.#source = source;
    this.#row = 0;
    this.#anchor = null;
    this.#nodes.clear();
    this.#relayout();
  }

  get wrap() {
    return this.#wrap;
  }

  set wrap(wrap) {
    this.#wrap = wrap;
    this.#scroller.classList.toggle("wrap", wrap);
    this.#relayout();
  }

  #relayout() {
    this.#px = 0;
    this.#heightFactor = 1;
    this.#space.style.minWidth = "";
    this.refresh();
  }

  set foot(text) {
    if (this.#foot.textContent === text) return;
    this.#keepEnd(() => (this.#foot.textContent = text));
  }

  get #footHeight() {
    return this.#source.count && this.#foot.textContent ? ROW : 0;
  }

  get view() {
    const end = Math.max(0, this.#source.count - 1);
    const top = Math.min(this.#row, end);
    let bottom = top;
    for (let y = this.#heightOf(top) - this.#px; y < this.#height && bottom < end; y += this.#heightOf(bottom)) bottom += 1;
    return [top, bottom];
  }

  get atEnd() {
    return this.#toEnd || this.#bottom() <= this.#height + 2;
  }

  /** Redraws in the next frame. If `all`, all row elements are recreated. */
  refresh(all = false) {
    if (all) this.#nodes.clear();
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  /** Brings a row into view, if `near` only when it is not; at a share of the height, or at the top if the heights above are unknown. */
  show(row, { share = 0, near = false } = {}) {
    // Elements that were just shown or hidden can have changed the height.
    if (this.#scroller.clientHeight !== this.#height) this.#resized();
    const [top, bottom] = this.view;
    if (near && row > top && row < bottom - 1) return this.refresh();
    this.#release();
    this.#row = Math.max(0, Math.min(row, this.#source.count - 1));
    this.#px = 0;
    if (!this.#wrap) this.#moveBy(-Math.round((share * this.#height) / ROW) * ROW);
    return this.refresh();
  }

  /** Scrolls to the end. If `stick`, stays at the end when lines are added. */
  end(stick) {
    this.stick = stick;
    this.#toEnd = true;
    this.refresh();
  }

  #release() {
    this.stick = false;
    this.#toEnd = false;
  }

  #resized() {
    this.#keepEnd(() => {
      this.#height = this.#scroller.clientHeight;
      // The browser moved the bar, not the reader. Its scroll event can precede or follow the resize event.
      this.#lastScrollTop = this.#scroller.scrollTop;
      this.#pane.style.height = `${this.#height}px`;
    });
  }

  /** Applies a change without leaving the end of the log. A log that fits on the screen stays at its beginning. */
  #keepEnd(change) {
    const isScrolledToEnd = (this.#row > 0 || this.#px > 0) && this.atEnd;
    change();
    if (this.stick || isScrolledToEnd) this.#toEnd = true;
    this.refresh();
  }

  get #range() {
    return Math.min(MAX_RANGE, Math.max(this.#height, Math.ceil(this.#source.count * ROW * this.#heightFactor) + this.#footHeight));
  }

  get #exact() {
    return !this.#wrap && this.#source.count * ROW + this.#footHeight <= MAX_RANGE;
  }

  #scrolled() {
    const now = this.#scroller.scrollTop;
    if (this.#scroller.clientHeight !== this.#height) return this.#resized();
    const by = now - this.#lastScrollTop;
    if (Math.abs(by) < 0.5) return undefined;
    this.#lastScrollTop = now;
    this.#release();
    if (this.#exact) this.#moveTo(now);
    else if (Math.abs(by) <= SMALL_SCREENS * this.#height) this.#moveBy(by);
    else this.#moveTo((now / (this.#range - this.#height)) * Math.max(0, this.#source.count * ROW - this.#height));
    clearTimeout(this.#settleTimer);
    this.#settleTimer = this.#exact ? 0 : setTimeout(() => ((this.#settleTimer = 0), this.#sync()), 150);
    this.#draw();
    this.stick = by > 0 && this.atEnd;
    const stuck = now <= 0 ? this.#row > 0 || this.#px > 0 : now >= this.#range - this.#height - 1 && !this.atEnd;
    if (stuck) this.#sync();
    return this.#moved(Math.abs(by) > SMALL_SCREENS * this.#height);
  }

  /** Moves to a position in pixels from the top, assuming that all rows have the same height. */
  #moveTo(pixels) {
    this.#row = Math.floor(pixels / ROW);
    this.#px = pixels - this.#row * ROW;
    const last = this.#scroller.scrollHeight - this.#height;
    if (!this.#exact && this.#lastScrollTop >= last - 1) this.#toEnd = true;
  }

  #moveBy(pixels) {
    this.#px += pixels;
    while (this.#px < 0 && this.#row > 0) {
      this.#row -= 1;
      this.#px += this.#heightOf(this.#row);
    }
    if (this.#px < 0) this.#px = 0;
    while (this.#row < this.#source.count - 1 && this.#px >= this.#heightOf(this.#row)) {
      this.#px -= this.#heightOf(this.#row);
      this.#row += 1;
    }
  }

  #heightOf(row) {
    if (!this.#wrap || row >= this.#source.count) return ROW;
    return this.#nodes.get(this.#source.numberAt(row))?.height ?? ROW;
  }

  /** The bottom of the last row in pixels from the top of the screen; a larger number if it is out of view. */
  #bottom() {
    const { count } = this.#source;
    if (!this.#wrap) return (count - this.#row) * ROW - this.#px + this.#footHeight;
    let y = this.#footHeight - this.#px;
    for (let row = this.#row; row < count; row += 1) {
      y += this.#heightOf(row);
      if (y > this.#height + 2) break;
    }
    return y;
  }

  #moveToEnd() {
    let left = this.#height - this.#footHeight;
    let row = this.#source.count;
    while (row > 0 && left > 0) {
      row -= 1;
      left -= this.#heightOf(row);
    }
    this.#row = row;
    this.#px = Math.max(0, -left);
  }

  #draw() {
    const { count } = this.#source;
    // Keep the same lines in view after rows above them were added or removed.
    if (this.stick) this.#toEnd = true;
    else if (this.#anchor) this.#row += this.#source.rowOf(this.#anchor.number) - this.#anchor.row;
    const screen = Math.ceil(this.#height / ROW) + 1;
    // Rows beyond the edges keep a selection that extends there.
    const overscan = this.#wrap ? screen : 8;
    if (this.#toEnd) this.#moveToEnd();
    if (!this.#wrap && this.#bottom() < this.#height) this.#moveToEnd();
    this.#row = Math.max(0, Math.min(this.#row, count - 1));
    const start = Math.max(0, this.#row - overscan);
    const stop = Math.min(count, this.#row + screen + overscan);
    this.#reconcile(start, stop);
    if (this.#wrap) this.#measure(start, stop);
    let above = 0;
    for (let row = start; row < this.#row; row += 1) above += this.#heightOf(row);
    this.#rows.style.transform = `translateY(${-(above + this.#px)}px)`;
    this.#space.style.height = `${this.#range}px`;
    if (!this.#wrap) this.#widen();
    if (!this.#settleTimer || this.#exact) this.#sync();
    this.#anchor = count ? { row: this.#row, number: this.#source.numberAt(this.#row) } : null;
    const [top, bottom] = this.view;
    this.#source.load(top, bottom);
  }

  #reconcile(start, stop) {
    const nodes = new Map();
    let next = this.#rows.firstChild;
    for (let row = start; row < stop; row += 1) {
      const item = this.#source.itemAt(row);
      const stamp = this.#make.stamp(item);
      let node = this.#nodes.get(item.number);
      if (!node || node.stamp !== stamp) node = { stamp, element: this.#make.element(item), height: node?.height };
      nodes.set(item.number, node);
      const { element } = node;
      element.ariaPosInSet = String(row + 1);
      element.ariaSetSize = String(this.#source.count);
      if (element === next) next = next.nextSibling;
      else this.#rows.insertBefore(element, next);
    }
    if (stop === this.#source.count && this.#footHeight) {
      if (next === this.#foot) next = next.nextSibling;
      else this.#rows.insertBefore(this.#foot, next);
    }
    for (let after; next; next = after) {
      after = next.nextSibling;
      next.remove();
    }
    this.#nodes = nodes;
  }

  /** Measures wrapped rows. Their heights can change the position at the end. */
  #measure(start, stop) {
    let sum = 0;
    for (const node of this.#nodes.values()) sum += node.height = node.element.offsetHeight;
    if (stop > start) this.#heightFactor = Math.max(this.#heightFactor, sum / ((stop - start) * ROW));
    if (this.#toEnd || (stop === this.#source.count && this.#bottom() < this.#height)) this.#moveToEnd();
  }

  /** The width never shrinks. Otherwise the horizontal bar would jump as lines of different lengths scroll by. */
  #widen() {
    const width = this.#rows.offsetWidth;
    if (width > this.#scroller.clientWidth && width > (parseFloat(this.#space.style.minWidth) || 0)) {
      this.#space.style.minWidth = `${width}px`;
    }
  }

  #sync() {
    const scrollable = Math.max(0, this.#source.count * ROW + this.#footHeight - this.#height);
    const part = this.#px / this.#heightOf(this.#row);
    const at = this.#exact ? this.#row * ROW + this.#px : scrollable && ((this.#row + part) * ROW * (this.#range - this.#height)) / scrollable;
    const end = this.#range - this.#height;
    const target = this.atEnd ? end : Math.min(at, end);
    if (Math.abs(target - this.#scroller.scrollTop) >= 1) this.#scroller.scrollTop = target;
    this.#lastScrollTop = this.#scroller.scrollTop;
    this.#toEnd = this.#toEnd && this.stick;
  }
}
