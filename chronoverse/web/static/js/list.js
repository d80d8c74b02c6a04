// A table of a paged list, newest first. Follows the stream of changes if there is one; otherwise reloads the list
// every few seconds while the tab is visible.

import { isTransient } from "../client/request.js";
import { $, announce, fill, make, notice } from "./dom.js";
import { many } from "./format.js";
import { get } from "./session.js";
import { hideRetry, showRetry } from "./trouble.js";

const AGAIN_MS = 5000;

export class List {
  items = [];
  #options;
  #isLoaded = false;
  #cursor = null;
  #timer = 0;
  #request = 0;
  #rows = new Map();
  #focusAt = null;
  //: Whether more items were requested but have not arrived.
  #wantsMore = false;
  //: The open stream; the timer for showing its changes; and the changes that arrive during a request.
  #following = null;
  #later = 0;
  #changed = null;

  /**
   * `address()` is the route with its filters, as `[path, [[name, value], …]]`; `name` is the key of the items in the
   * response, of which `size` are requested first. `cells(item)` makes a row, `update(row, item)` refreshes what depends
   * on time. `arrange(items)` selects and sorts; `empty(count)` is shown if it left out all `count` items, `refused(error)`
   * if the first request fails. A list with `changes(signal)`, a stream, adds the changed items that it `wants`.
   */
  constructor(options) {
    this.#options = options;
    $("more").addEventListener("click", () => {
      this.#focusAt = this.items.length;
      this.#wantsMore = true;
      this.refresh();
    });
    document.addEventListener("visibilitychange", () => document.hidden || (this.#timer && this.refresh()));
  }

  get hasMore() {
    return this.#cursor !== null;
  }

  restart() {
    this.stop();
    this.items = [];
    this.#isLoaded = this.#wantsMore = false;
    this.refresh();
  }

  stop() {
    this.#following?.abort();
    this.#following = null;
    this.#request += 1;
    this.#schedule(null);
  }

  refresh() {
    this.#schedule(null);
    this.#changed = [];
    const request = (this.#request += 1);
    this.#load(() => request === this.#request).catch((error) => {
      if (request !== this.#request) return;
      if (isTransient(error)) showRetry(AGAIN_MS, error, () => this.refresh());
      else this.#wantsMore = false;
      if (!this.#isLoaded) {
        notice(this.#options.refused(error));
        this.#options.loaded();
      }
      this.#schedule(AGAIN_MS);
    });
  }

  #schedule(ms) {
    clearTimeout(this.#timer);
    this.#timer = ms === null ? 0 : setTimeout(() => (document.hidden ? this.#schedule(ms) : this.refresh()), ms);
  }

  async #load(isCurrent) {
    const { address, changes, name, size } = this.#options;
    const [path, parameters] = address();
    const isMore = this.#wantsMore;
    const wanted = isMore ? this.items.length + size : Math.max(size, this.items.length);
    // An item may have moved to the top after it was found further down.
    const found = new Map((isMore ? this.items : []).map((item) => [item.id, item]));
    let cursor = isMore ? this.#cursor : null;
    do {
      const query = new URLSearchParams([...parameters, ["limit", Math.min(1000, wanted - found.size)], ...(cursor ? [["cursor", cursor]] : [])]);
      const { body } = await get(`${path}?${query}`);
      if (!isCurrent()) return;
      for (const item of body[name]) if (!found.has(item.id)) found.set(item.id, item);
      cursor = body.cursor;
    } while (cursor && found.size < wanted);
    hideRetry();
    this.items = [...found.values()];
    this.#cursor = cursor;
    this.#isLoaded = true;
    this.#wantsMore = false;
    for (const item of this.#changed) this.#apply(item);
    this.#changed = null;
    this.show();
    if (!changes) this.#schedule(AGAIN_MS);
    else if (!this.#following) this.#follow();
  }

  /** Follows the changes. The stream starts with the newest items, so that no change is lost between list and stream. */
  async #follow() {
    const stop = (this.#following = new AbortController());
    try {
      for await (const { event, data } of this.#options.changes(stop.signal)) {
        hideRetry();
        if (event === "reset") this.refresh();
        if (event !== "job") continue;
        this.#changed?.push(data);
        this.#apply(data);
        // Shown together with other changes.
        this.#later ||= setTimeout(() => ((this.#later = 0), this.show()), 100);
      }
    } catch (error) {
      if (stop.signal.aborted) return;
      this.#following = null;
      this.#schedule(AGAIN_MS);
    }
  }

  /** Puts a changed item in its place. A new item that is older than all others is on a later page, if there is one. */
  #apply(item) {
    const isWanted = this.#options.wants(item);
    const known = this.items.findIndex(({ id }) => id === item.id);
    if (known >= 0) this.items.splice(known, 1, ...(isWanted ? [item] : []));
    if (known >= 0 || !isWanted) return;
    const at = this.items.findIndex((each) => (each.created_at ?? "") <= (item.created_at ?? ""));
    if (at >= 0) this.items.splice(at, 0, item);
    else if (!this.hasMore) this.items.push(item);
  }

  show() {
    if (!this.#isLoaded) return;
    const { arrange, empty, loaded, name } = this.#options;
    const items = arrange(this.items);
    const rows = items.map((item) => this.#row(item));
    if (fill(document.querySelector("tbody"), rows)) announce(many(rows.length, name.slice(0, -1)));
    $("more").hidden = !this.hasMore;
    document.querySelector("table").hidden = !items.length;
    if (items.length) notice(null);
    else if (this.hasMore) notice("No matches on this page. “Show more” continues.");
    else notice(empty(this.items.length));
    const ids = new Set(this.items.map(({ id }) => id));
    for (const id of this.#rows.keys()) if (!ids.has(id)) this.#rows.delete(id);
    if (this.#focusAt !== null) rows[this.#focusAt]?.querySelector("a").focus();
    this.#focusAt = null;
    loaded();
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
