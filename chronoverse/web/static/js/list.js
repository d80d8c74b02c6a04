// A table of what a route lists in pages, the newest first. While the page is open, it follows the changes of the items where
// there is a stream of them. Elsewhere it asks for what is new and what runs.

import { $, announce, make, notice } from "./dom.js";
import { many } from "./format.js";
import { get } from "./session.js";
import { hideRetry, isTransient, showRetry } from "./trouble.js";

//: Milliseconds between two requests while items change every second, and otherwise.
const BUSY_MS = 1000;
const IDLE_MS = 5000;
//: Milliseconds after a change until it is shown. Others may come meanwhile.
const SHOW_MS = 100;

export class List {
  //: What each request has found: the cursor that it began at, and its items.
  #chunks = [];
  #options;
  #cursor = null;
  #turn = 0;
  #timer = 0;
  #request = 0;
  #rows = new Map();
  #focusAt = null;
  //: Whether further items were asked for, and have not come yet.
  #wantsMore = false;
  //: The connection that is followed, and what it has brought since the last request began.
  #following = null;
  #later = 0;
  #changed = [];

  /**
   * `address()` is the route with its filters, as `[path, [[name, value], …]]`; `name` is what its answer calls the items.
   * `cells(item)` makes the cells of a row, and `update(row, item)` sets in them what changes with time.
   * `isBusy(item)` says whether an item changes every second. `arrange(items)` are those to show, in their order.
   * `size` is how many items one request has, and `pages` how many requests the list begins with. `empty` is shown when
   * there are no items: a text or an element of how many `arrange` has left out. `refused(error)` is shown when the first
   * request fails. `loaded()` is called after every request. `changes(signal)`, if given, are the frames of a stream of
   * changes, and `wants(item)` whether the list has a changed item.
   */
  constructor(options) {
    this.#options = { size: 50, pages: 1, arrange: (items) => items, ...options };
    $("more").addEventListener("click", () => {
      this.#focusAt = this.items.length;
      this.#wantsMore = true;
      this.refresh();
    });
    document.addEventListener("visibilitychange", () => document.hidden || (this.#timer && this.refresh()));
  }

  /** All that was listed, the newest first. A workflow may have moved to the top since it was found further down. */
  get items() {
    const all = new Map();
    for (const { items } of this.#chunks) for (const item of items) if (!all.has(item.id)) all.set(item.id, item);
    return [...all.values()];
  }

  /** Begins at the first page, because the filters are others now. */
  restart() {
    this.#chunks = [];
    this.#wantsMore = false;
    this.#following?.abort();
    this.refresh();
  }

  /** Follows the changes. The stream begins with the newest items, so that no change is between the two. */
  async #follow() {
    this.#following?.abort();
    const stop = (this.#following = new AbortController());
    try {
      for await (const { event, data } of this.#options.changes(stop.signal)) {
        hideRetry();
        if (event === "job") {
          this.#changed.push(data);
          if (this.#chunks.length) this.#apply(data);
          this.#later ||= setTimeout(() => ((this.#later = 0), this.show()), SHOW_MS);
        } else if (event === "reset") {
          this.refresh();
        }
      }
    } catch (error) {
      if (!stop.signal.aborted) this.refresh();
    }
  }

  /** Puts a changed item where it belongs. */
  #apply(item) {
    for (const chunk of this.#chunks) chunk.items = chunk.items.filter(({ id }) => id !== item.id);
    if (!this.#options.wants(item)) return;
    const isOlder = (each) => (each.created_at ?? "") <= (item.created_at ?? "");
    const chunk = this.#chunks.find(({ items }) => items.some(isOlder)) ?? (this.#cursor ? null : this.#chunks.at(-1));
    const at = chunk?.items.findIndex(isOlder) ?? 0;
    chunk?.items.splice(at < 0 ? chunk.items.length : at, 0, item);
  }

  /** Requests what is new and what runs, and further items if they were asked for. Then again every few seconds. */
  refresh() {
    clearTimeout(this.#timer);
    this.#changed = [];
    const request = (this.#request += 1);
    this.#load(request).catch((error) => {
      if (request !== this.#request) return;
      if (isTransient(error)) showRetry(IDLE_MS, error, () => this.refresh());
      else this.#wantsMore = false;
      if (!this.#chunks.length) {
        notice(this.#options.refused(error));
        this.#options.loaded?.();
      }
      this.#schedule(IDLE_MS, true);
    });
  }

  /** Ends the refreshing, and forgets a request on its way. */
  stop() {
    this.#following?.abort();
    this.#request += 1;
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  /** Refreshes after `ms`. A list that follows changes does that only `again`, after a request that has failed. */
  #schedule(ms, again = false) {
    if (!again && this.#options.changes && this.#chunks.length) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (document.hidden ? this.#schedule(BUSY_MS, again) : this.refresh()), ms);
  }

  /** The items after `cursor`, as a chunk, and the next cursor. */
  async #fetch(after, limit = this.#options.size) {
    const [path, parameters] = this.#options.address();
    const query = new URLSearchParams([...parameters, ["limit", limit], ...(after ? [["cursor", after]] : [])]);
    const { body } = await get(`${path}?${query}`);
    return [{ after, items: body[this.#options.name] }, body.cursor];
  }

  async #load(request) {
    const more = this.#wantsMore;
    const isCurrent = () => request === this.#request;
    const [first, cursor] = await this.#fetch(null);
    if (!isCurrent()) return;
    hideRetry();
    const begins = !this.#chunks.length;
    this.#addFirst(first, cursor);
    for (const item of this.#changed) this.#apply(item);
    if (begins) this.#show();
    if (begins && this.#options.changes) this.#follow();
    for (let page = 1; more || (begins && page < this.#options.pages); page += 1) {
      if (!this.#cursor) break;
      const [next, following] = await this.#fetch(this.#cursor);
      if (!isCurrent()) return;
      this.#chunks.push(next);
      this.#cursor = following;
      if (more) break;
    }
    this.#wantsMore = false;
    // Of what is further down only one chunk is asked for again, in turn, as long as something in it runs.
    const busy = this.#chunks.slice(1).filter(({ items }) => items.some(this.#options.isBusy));
    if (busy.length && !begins && !more) {
      const chunk = busy[(this.#turn += 1) % busy.length];
      const [again] = await this.#fetch(chunk.after, Math.max(1, chunk.items.length));
      if (!isCurrent()) return;
      chunk.items = again.items;
    }
    this.#show();
    this.#schedule(this.items.some(this.#options.isBusy) ? BUSY_MS : IDLE_MS);
  }

  /** Puts a new first chunk before what is there. What new items have pushed out of it goes to the next chunk. */
  #addFirst(first, cursor) {
    const [before, ...others] = this.#chunks;
    const last = first.items.at(-1)?.id;
    const end = before?.items.findIndex(({ id }) => id === last) ?? -1;
    if (!cursor || end < 0) {
      // All is new, or there is no more.
      this.#chunks = [first];
      this.#cursor = cursor;
      return;
    }
    const pushed = before.items.slice(end + 1);
    if (pushed.length && others[0] && others[0].items.length + pushed.length <= this.#options.size) {
      others[0] = { after: cursor, items: [...pushed, ...others[0].items] };
    } else if (pushed.length) {
      others.unshift({ after: cursor, items: pushed });
    }
    this.#chunks = [first, ...others];
    if (!others.length) this.#cursor = cursor;
  }

  /** Whether there are further items that were not asked for. */
  get hasMore() {
    return this.#cursor !== null;
  }

  /** Shows what there is, as the page arranges it now. */
  show() {
    if (this.#chunks.length) this.#show();
  }

  #show() {
    const { arrange, empty, loaded, name } = this.#options;
    const all = this.items;
    const items = arrange(all);
    const rows = items.map((item) => this.#row(item));
    const body = document.querySelector("tbody");
    if (rows.length !== body.children.length || rows.some((each, i) => each !== body.children[i])) {
      const focused = document.activeElement;
      body.replaceChildren(...rows);
      if (body.contains(focused)) focused.focus({ preventScroll: true });
      announce(many(rows.length, name.slice(0, -1)));
    }
    $("more").hidden = !this.#cursor;
    document.querySelector("table").hidden = !items.length;
    if (items.length) notice(null);
    else if (this.#cursor) notice("No matches on this page. “Show more” continues.");
    else notice(empty(all.length));
    const ids = new Set(all.map(({ id }) => id));
    for (const id of this.#rows.keys()) if (!ids.has(id)) this.#rows.delete(id);
    if (this.#focusAt !== null) rows[this.#focusAt]?.querySelector("a").focus();
    this.#focusAt = null;
    loaded?.();
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
    this.#options.update(element, item);
    return element;
  }
}
