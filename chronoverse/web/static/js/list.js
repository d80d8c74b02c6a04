// A table of what a route lists in pages. It is refreshed while the page is open.

import { $, announce, make, notice } from "./dom.js";
import { count } from "./format.js";
import { get } from "./session.js";

//: Items of one request.
const PAGE = 50;
//: Milliseconds between two requests while items change every second, and otherwise.
const BUSY_MS = 1000;
const IDLE_MS = 5000;

export class List {
  items = [];
  #options;
  #pages = 1;
  #timer = 0;
  #request = 0;
  #rows = new Map();
  #focusAt = null;

  /**
   * `address()` is the route with its filters, as `[path, parameters]`; `name` is what its answer calls the items.
   * `cells(item)` makes the cells of a row, and `update(cells, item)` sets in them what changes with time.
   * `isBusy(item)` says whether an item changes every second. `empty` is shown when there are no items, and
   * `refused(error)` when the first request fails. `loaded()` is called after every request.
   */
  constructor(options) {
    this.#options = options;
    $("more").addEventListener("click", () => {
      this.#pages += 1;
      this.#focusAt = this.items.length;
      this.refresh();
    });
    document.addEventListener("visibilitychange", () => document.hidden || (this.#timer && this.refresh()));
  }

  /** Begins at the first page, because the filters are others now. */
  restart() {
    this.#pages = 1;
    this.refresh();
  }

  /** Requests the items again, and then every few seconds. */
  refresh() {
    clearTimeout(this.#timer);
    const request = (this.#request += 1);
    this.#load(request).catch((error) => {
      if (request !== this.#request) return;
      if (!this.items.length) notice(this.#options.refused(error));
      this.#schedule(IDLE_MS);
    });
  }

  /** Ends the refreshing, and forgets a request on its way. */
  stop() {
    this.#request += 1;
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  #schedule(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (document.hidden ? this.#schedule(BUSY_MS) : this.refresh()), ms);
  }

  async #load(request) {
    const { address, name, isBusy, empty, loaded } = this.#options;
    const found = [];
    let cursor = null;
    for (let page = 0; page < this.#pages; page += 1) {
      const [path, parameters] = address();
      const query = new URLSearchParams({ ...parameters, limit: PAGE, ...(cursor ? { cursor } : {}) });
      const { body } = await get(`${path}?${query}`);
      if (request !== this.#request) return;
      found.push(...body[name]);
      cursor = body.cursor;
      if (!cursor) break;
    }
    this.items = found;
    $("more").hidden = !cursor;
    document.querySelector("table").hidden = !found.length;
    notice(found.length ? null : cursor ? "Nothing on this page. “Show more” looks further." : empty);
    this.#show();
    loaded?.();
    this.#schedule(found.some(isBusy) ? BUSY_MS : IDLE_MS);
  }

  #show() {
    const rows = this.items.map((item) => this.#row(item));
    const body = document.querySelector("tbody");
    if (rows.length !== body.children.length || rows.some((each, i) => each !== body.children[i])) {
      const focused = document.activeElement;
      body.replaceChildren(...rows);
      if (body.contains(focused)) focused.focus({ preventScroll: true });
      announce(`${count(rows.length)} ${this.#options.name}`);
    }
    const ids = new Set(this.items.map((item) => item.id));
    for (const id of this.#rows.keys()) if (!ids.has(id)) this.#rows.delete(id);
    if (this.#focusAt !== null) rows[this.#focusAt]?.querySelector("a").focus();
    this.#focusAt = null;
  }

  #row(item) {
    const key = JSON.stringify(item);
    const cached = this.#rows.get(item.id);
    const element = cached?.element ?? make("tr");
    if (cached?.key !== key) {
      const focused = element.contains(document.activeElement);
      element.replaceChildren(...this.#options.cells(item));
      if (focused) element.querySelector("a").focus({ preventScroll: true });
      this.#rows.set(item.id, { key, element });
    }
    this.#options.update([...element.children], item);
    return element;
  }
}
