// A list of any length on one screen: the rows in view are elements, the scroll bar stands for all the others.
//
// The place is a row and the pixels of it that are out of view. The scroll bar's own range is bounded, since a browser
// lays out no element of a hundred million pixels. Where the list is longer than that, or rows differ in height, a
// small move of the bar moves the rows by as many pixels, and a large one goes to that share of the list.

//: Pixels of a row that does not wrap; page.css says the same.
export const ROW = 20;
//: Pixels of the scroll bar's range, at most. Firefox ends at 17.9 million, Chromium at 33.5.
const RANGE = 8_000_000;
//: Screens up to which a move of the scroll bar is a small one.
const SMALL = 2;
//: Milliseconds of rest after which the scroll bar is put where the place says it should be.
const REST_MS = 150;
//: Rows held beyond either edge, so that text selected there stays selected.
const BEYOND = 8;

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
  #tall = 1;
  #height = 0;
  #seen = 0;
  #frame = 0;
  #rest = 0;
  #nodes = new Map();
  #anchor = null;

  /**
   * `source` has count, numberAt(row), itemAt(row) and need(top, bottom); `make(item)` gives an item's element,
   * `stamp(item)` what that depends on. `moved()` is called after the reader has moved.
   */
  constructor(scroller, source, make, moved) {
    this.#scroller = scroller;
    this.#space = scroller.querySelector(".space");
    this.#pane = scroller.querySelector(".pane");
    this.#rows = scroller.querySelector(".rows");
    this.#source = source;
    this.#make = make;
    this.#moved = moved;
    // Ahead of the scrolling that it causes: meanwhile new lines must not pull the reader back to the end.
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
    this.#px = 0;
    this.#tall = 1;
    this.#anchor = null;
    this.#space.style.minWidth = "";
    this.refresh(true);
  }

  get wrap() {
    return this.#wrap;
  }

  set wrap(wrap) {
    this.#wrap = wrap;
    this.#px = 0;
    this.#tall = 1;
    this.#space.style.minWidth = "";
    this.#scroller.classList.toggle("wrap", wrap);
    this.refresh();
  }

  /** The first and the last row in view. */
  get view() {
    const last = Math.min(this.#source.count, this.#row + Math.ceil((this.#height + this.#px) / ROW)) - 1;
    return [Math.min(this.#row, Math.max(0, last)), Math.max(0, last)];
  }

  get atEnd() {
    return this.#toEnd || this.#bottom() <= this.#height + 2;
  }

  /** Draws again soon, every row if `all`. */
  refresh(all = false) {
    if (all) this.#nodes.clear();
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  /** Brings a row to the given share of the screen's height from the top; `near` leaves one that is in view alone. */
  show(row, { share = 0, near = false } = {}) {
    const [top, bottom] = this.view;
    if (near && row > top && row < bottom - 1) return this.refresh();
    this.stick = false;
    this.#toEnd = false;
    this.#row = Math.max(0, Math.min(row, this.#source.count - 1));
    this.#px = 0;
    this.#moveBy(-Math.round((share * this.#height) / ROW) * ROW);
    return this.refresh();
  }

  /** To the end, and to stay there. */
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
    this.#height = this.#scroller.clientHeight;
    this.#pane.style.height = `${this.#height}px`;
    if (this.stick) this.#toEnd = true;
    this.refresh();
  }

  get #range() {
    return Math.min(RANGE, Math.max(this.#height, Math.ceil(this.#source.count * ROW * this.#tall)));
  }

  get #exact() {
    return !this.#wrap && this.#source.count * ROW <= RANGE;
  }

  #scrolled() {
    const now = this.#scroller.scrollTop;
    const by = now - this.#seen;
    if (Math.abs(by) < 0.5) return;
    this.#seen = now;
    this.stick = false;
    this.#toEnd = false;
    if (this.#exact) this.#place(now);
    else if (Math.abs(by) <= SMALL * this.#height) this.#moveBy(by);
    else this.#place((now / (this.#range - this.#height)) * Math.max(0, this.#source.count * ROW - this.#height));
    clearTimeout(this.#rest);
    this.#rest = this.#exact ? 0 : setTimeout(() => this.#settle(), REST_MS);
    this.#draw();
    this.stick = by > 0 && this.atEnd;
    const stuck = now <= 0 ? this.#row > 0 || this.#px > 0 : now >= this.#range - this.#height - 1 && !this.atEnd;
    if (stuck) this.#sync();
    this.#moved();
  }

  /** To that many pixels from the top, if all rows had one height. */
  #place(pixels) {
    this.#row = Math.floor(pixels / ROW);
    this.#px = pixels - this.#row * ROW;
    const last = this.#scroller.scrollHeight - this.#height;
    if (!this.#exact && this.#seen >= last - 1) this.#toEnd = true;
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

  /** Where the last row ends, in pixels from the top of the screen; far away unless it is drawn. */
  #bottom() {
    const { count } = this.#source;
    if (!this.#wrap) return (count - this.#row) * ROW - this.#px;
    let y = -this.#px;
    for (let row = this.#row; row < count; row += 1) {
      y += this.#heightOf(row);
      if (y > this.#height + 2) break;
    }
    return y;
  }

  /** The place from which the last row ends at the bottom of the screen. */
  #placeAtEnd() {
    let left = this.#height;
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
    this.#follow();
    const screen = Math.ceil(this.#height / ROW) + 1;
    const beyond = this.#wrap ? screen : BEYOND;
    if (this.#toEnd) this.#placeAtEnd();
    if (!this.#wrap && this.#bottom() < this.#height) this.#placeAtEnd();
    this.#row = Math.max(0, Math.min(this.#row, count - 1));
    const start = Math.max(0, this.#row - beyond);
    const stop = Math.min(count, this.#row + screen + beyond);
    this.#reconcile(start, stop);
    if (this.#wrap) this.#measure(start, stop);
    let above = 0;
    for (let row = start; row < this.#row; row += 1) above += this.#heightOf(row);
    this.#rows.style.transform = `translateY(${-(above + this.#px)}px)`;
    this.#space.style.height = `${this.#range}px`;
    if (!this.#wrap) this.#widen();
    if (!this.#rest || this.#exact) this.#sync();
    this.#anchor = count ? { row: this.#row, number: this.#source.numberAt(this.#row) } : null;
    const [top, bottom] = this.view;
    this.#source.need(top, bottom);
  }

  /** Keeps the same lines in view when rows above them have come or gone since they were drawn. */
  #follow() {
    if (this.stick) this.#toEnd = true;
    else if (this.#anchor) this.#row += this.#source.rowOf(this.#anchor.number) - this.#anchor.row;
    this.#anchor = null;
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
    while (next) {
      const after = next.nextSibling;
      next.remove();
      next = after;
    }
    this.#nodes = nodes;
  }

  /** Rows that wrap: how tall they came out, and what that means for the place. */
  #measure(start, stop) {
    let sum = 0;
    for (const node of this.#nodes.values()) sum += node.height = node.element.offsetHeight;
    if (stop > start) this.#tall = Math.max(this.#tall, sum / ((stop - start) * ROW));
    if (this.#toEnd || (stop === this.#source.count && this.#bottom() < this.#height)) this.#placeAtEnd();
  }

  /** The range to the right only grows, or the bar would jump about while lines of different lengths pass. */
  #widen() {
    const width = this.#rows.offsetWidth;
    if (width > this.#scroller.clientWidth && width > (parseFloat(this.#space.style.minWidth) || 0)) {
      this.#space.style.minWidth = `${width}px`;
    }
  }

  #settle() {
    this.#rest = 0;
    this.#sync();
  }

  /** Puts the scroll bar where the place is. */
  #sync() {
    const room = Math.max(0, this.#source.count * ROW - this.#height);
    const part = this.#px / this.#heightOf(this.#row);
    const at = this.#exact ? this.#row * ROW + this.#px : room && ((this.#row + part) * ROW * (this.#range - this.#height)) / room;
    const end = this.#range - this.#height;
    const wanted = this.atEnd ? end : Math.min(at, end);
    if (Math.abs(wanted - this.#scroller.scrollTop) >= 1) this.#scroller.scrollTop = wanted;
    this.#seen = this.#scroller.scrollTop;
    this.#toEnd = this.#toEnd && this.stick;
  }
}
