// A virtual list of any length: only the rows in view have elements. The position is a row, and how many of its pixels
// are out of view. The scroll bar's range is bounded, because browsers cannot lay out a hundred million pixels. If the
// list is longer, or if rows differ in height, a small move of the bar scrolls by pixels, and a large one by fractions.

import { make } from "./dom.js";

//: Height of a row that does not wrap, in pixels. Same as in page.css.
export const ROW = 20;
//: Maximum range of the scroll bar in pixels. Firefox allows 17.9 million, Chromium 33.5 million.
const MAX_RANGE = 8_000_000;
const SMALL_SCREENS = 2;

/** `maker.element(item)` makes an item's element, which is replaced when `maker.stamp(item)` changes. `moved(isLarge)`: the reader has scrolled. */
export function makeViewport(scroller, source, maker, moved) {
  const [space, pane, rows] = [".space", ".pane", ".rows"].map((selector) => scroller.querySelector(selector));
  const foot = make("div", { className: "foot", role: "listitem" });
  const at = { row: 0, px: 0 };
  let wraps = false;
  let toEnd = false;
  let heightFactor = 1;
  let height = 0;
  let lastScrollTop = 0;
  let frame = 0;
  let settleTimer = 0;
  let nodes = new Map();
  let anchor = null;
  //: The number of a wrapped row that was brought to the top, until it and those after it are loaded and have their heights.
  let awaited = null;

  const viewport = {
    stick: false,
    refresh,
    show,
    end,
    get source() {
      return source;
    },
    set source(shown) {
      source = shown;
      at.row = 0;
      anchor = awaited = null;
      nodes.clear();
      relayout();
    },
    get wrap() {
      return wraps;
    },
    set wrap(wrap) {
      wraps = wrap;
      scroller.classList.toggle("wrap", wrap);
      relayout();
    },
    set foot(text) {
      if (foot.textContent !== text) keepEnd(() => (foot.textContent = text));
    },
    get view() {
      const last = Math.max(0, source.count - 1);
      const top = Math.min(at.row, last);
      let bottom = top;
      for (let y = heightOf(top) - at.px; y < height && bottom < last; y += heightOf(bottom)) bottom += 1;
      return [top, bottom];
    },
    get atEnd() {
      return toEnd || bottomOf() <= height + 2;
    },
  };

  /** Discards the rows' measured sizes. */
  function relayout() {
    at.px = 0;
    heightFactor = 1;
    space.style.minWidth = "";
    refresh();
  }

  const footHeight = () => (source.count && foot.textContent ? ROW : 0);

  function refresh() {
    frame ||= requestAnimationFrame(() => ((frame = 0), draw()));
  }

  /** Brings a row into view: at a `share` of the height, or at the top if the heights above are unknown. If `near`, only if it is out of view. */
  function show(row, { share = 0, near = false } = {}) {
    // Elements that were just shown or hidden can have changed the height.
    if (scroller.clientHeight !== height) resized();
    const [top, bottom] = viewport.view;
    if (near && row > top && row < bottom - 1) return refresh();
    release();
    at.row = Math.max(0, Math.min(row, source.count - 1));
    at.px = 0;
    if (wraps) awaited = source.count ? source.numberAt(at.row) : null;
    else moveBy(-Math.round((share * height) / ROW) * ROW);
    return refresh();
  }

  /** Scrolls to the end. If `stick`, stays at the end when lines are added. */
  function end(stick) {
    viewport.stick = stick;
    toEnd = true;
    awaited = null;
    refresh();
  }

  function release() {
    viewport.stick = false;
    toEnd = false;
    awaited = null;
  }

  function resized() {
    keepEnd(() => {
      height = scroller.clientHeight;
      // The browser moved the bar, not the reader. Its scroll event can precede or follow the resize event.
      lastScrollTop = scroller.scrollTop;
      pane.style.height = `${height}px`;
    });
  }

  /** Applies a change without leaving the end of the log. A log that fits on the screen stays at its beginning. */
  function keepEnd(change) {
    const isScrolledToEnd = (at.row > 0 || at.px > 0) && viewport.atEnd;
    change();
    if (viewport.stick || isScrolledToEnd) toEnd = true;
    refresh();
  }

  const range = () => Math.min(MAX_RANGE, Math.max(height, Math.ceil(source.count * ROW * heightFactor) + footHeight()));
  const exact = () => !wraps && source.count * ROW + footHeight() <= MAX_RANGE;

  function scrolled() {
    const now = scroller.scrollTop;
    if (scroller.clientHeight !== height) return resized();
    const by = now - lastScrollTop;
    if (Math.abs(by) < 0.5) return undefined;
    lastScrollTop = now;
    release();
    if (exact()) moveTo(now);
    else if (Math.abs(by) <= SMALL_SCREENS * height) moveBy(by);
    else moveTo((now / (range() - height)) * Math.max(0, source.count * ROW - height));
    clearTimeout(settleTimer);
    settleTimer = exact() ? 0 : setTimeout(() => ((settleTimer = 0), sync()), 150);
    draw();
    viewport.stick = by > 0 && viewport.atEnd;
    const stuck = now <= 0 ? at.row > 0 || at.px > 0 : now >= range() - height - 1 && !viewport.atEnd;
    if (stuck) sync();
    return moved(Math.abs(by) > SMALL_SCREENS * height);
  }

  /** Moves to a position in pixels from the top, assuming that all rows have the same height. */
  function moveTo(pixels) {
    at.row = Math.floor(pixels / ROW);
    at.px = pixels - at.row * ROW;
    const last = scroller.scrollHeight - height;
    if (!exact() && lastScrollTop >= last - 1) toEnd = true;
  }

  function moveBy(pixels) {
    at.px += pixels;
    while (at.px < 0 && at.row > 0) {
      at.row -= 1;
      at.px += heightOf(at.row);
    }
    if (at.px < 0) at.px = 0;
    while (at.row < source.count - 1 && at.px >= heightOf(at.row)) {
      at.px -= heightOf(at.row);
      at.row += 1;
    }
  }

  function heightOf(row) {
    if (!wraps || row >= source.count) return ROW;
    return nodes.get(source.numberAt(row))?.height ?? ROW;
  }

  /** The bottom of the last row in pixels from the top of the screen; a larger number if it is out of view. */
  function bottomOf() {
    const { count } = source;
    if (!wraps) return (count - at.row) * ROW - at.px + footHeight();
    let y = footHeight() - at.px;
    for (let row = at.row; row < count; row += 1) {
      y += heightOf(row);
      if (y > height + 2) break;
    }
    return y;
  }

  function moveToEnd() {
    let left = height - footHeight();
    let row = source.count;
    while (row > 0 && left > 0) {
      row -= 1;
      left -= heightOf(row);
    }
    at.row = row;
    at.px = Math.max(0, -left);
  }

  function draw() {
    const { count } = source;
    // Keep the same lines in view after rows above them were added or removed.
    if (viewport.stick) toEnd = true;
    else if (awaited !== null) Object.assign(at, { row: source.rowOf(awaited), px: 0 });
    else if (anchor) at.row += source.rowOf(anchor.number) - anchor.row;
    const screen = Math.ceil(height / ROW) + 1;
    // Rows beyond the edges keep a selection that extends there.
    const overscan = wraps ? screen : 8;
    if (toEnd) moveToEnd();
    if (!wraps && bottomOf() < height) moveToEnd();
    at.row = Math.max(0, Math.min(at.row, count - 1));
    const start = Math.max(0, at.row - overscan);
    const stop = Math.min(count, at.row + screen + overscan);
    reconcile(start, stop);
    if (wraps) measure(start, stop);
    let above = 0;
    for (let row = start; row < at.row; row += 1) above += heightOf(row);
    rows.style.transform = `translateY(${-(above + at.px)}px)`;
    space.style.height = `${range()}px`;
    if (!wraps) widen();
    if (!settleTimer || exact()) sync();
    anchor = count ? { row: at.row, number: source.numberAt(at.row) } : null;
    const [top, bottom] = viewport.view;
    source.load(top, bottom);
  }

  function reconcile(start, stop) {
    const kept = new Map();
    let next = rows.firstChild;
    const hasFocus = rows.contains(document.activeElement);
    const toggled = Number(rows.querySelector(".fold:focus-visible")?.closest(".row").dataset.number);
    for (let row = start; row < stop; row += 1) {
      const item = source.itemAt(row);
      const stamp = maker.stamp(item);
      const place = { ariaPosInSet: String(row + 1), ariaSetSize: String(source.count) };
      let node = nodes.get(item.number);
      if (node) Object.assign(node.element, place);
      if (!node || node.stamp !== stamp) {
        const element = Object.assign(maker.element(item), place);
        // An equal element stays, because the reader's selection can be in it.
        node = { stamp, element: node?.element.isEqualNode(element) ? node.element : element, height: node?.height };
      }
      kept.set(item.number, node);
      const { element } = node;
      // Moving a row that stays would end the focus in it.
      while (hasFocus && next && element !== next && element.parentNode) next = drop(next);
      if (element === next) {
        next = next.nextSibling;
        continue;
      }
      rows.insertBefore(element, next);
      // A triangle that was replaced when its group was folded by key keeps the focus, so that its new state is read.
      if (item.number === toggled) element.querySelector(".fold")?.focus({ preventScroll: true });
    }
    if (stop === source.count && footHeight()) {
      if (next === foot) next = next.nextSibling;
      else rows.insertBefore(foot, next);
    }
    while (next) next = drop(next);
    nodes = kept;
  }

  /** Removes an element, and returns the next one. */
  function drop(element) {
    const next = element.nextSibling;
    if (element.contains(document.activeElement)) scroller.focus({ preventScroll: true, focusVisible: false });
    element.remove();
    return next;
  }

  /** Measures wrapped rows. Their heights can change the position at the end. */
  function measure(start, stop) {
    if (awaited !== null && Array.from({ length: stop - at.row }, (_, index) => source.itemAt(at.row + index)).every(({ line, gap }) => line || gap)) awaited = null;
    let sum = 0;
    for (const node of nodes.values()) sum += node.height = node.element.offsetHeight;
    if (stop > start) heightFactor = Math.max(heightFactor, sum / ((stop - start) * ROW));
    if (toEnd || (stop === source.count && bottomOf() < height)) moveToEnd();
  }

  /** The width never shrinks. Otherwise the horizontal bar would jump as lines of different lengths scroll by. */
  function widen() {
    const width = rows.offsetWidth;
    if (width > scroller.clientWidth && width > (parseFloat(space.style.minWidth) || 0)) {
      space.style.minWidth = `${width}px`;
    }
  }

  function sync() {
    const scrollable = Math.max(0, source.count * ROW + footHeight() - height);
    const part = at.px / heightOf(at.row);
    const most = range() - height;
    const wanted = exact() ? at.row * ROW + at.px : scrollable && ((at.row + part) * ROW * most) / scrollable;
    const target = viewport.atEnd ? most : Math.min(wanted, most);
    if (Math.abs(target - scroller.scrollTop) >= 1) scroller.scrollTop = target;
    lastScrollTop = scroller.scrollTop;
    toEnd = toEnd && viewport.stick;
  }

  // The wheel event precedes its scroll event. New lines in between must not scroll back to the end.
  scroller.addEventListener("wheel", ({ deltaY }) => deltaY < 0 && release(), { passive: true });
  scroller.addEventListener("touchmove", release, { passive: true });
  scroller.addEventListener("scroll", scrolled, { passive: true });
  new ResizeObserver(resized).observe(scroller);
  resized();
  return viewport;
}
