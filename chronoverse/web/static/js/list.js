// A table of a paged list, newest first. Follows the stream of changes if there is one; otherwise reloads the list
// every few seconds while the tab is visible.

import { isTransient } from "../client/request.js";
import { $, announce, fill, make, notice } from "./dom.js";
import { many } from "./format.js";
import { get } from "./session.js";
import { hideRetry, showRetry } from "./trouble.js";

const AGAIN_MS = 5000;
//: Maximum number of items, unless more were loaded on request. New ones push out the oldest.
const MOST = 1000;

/**
 * `address()` is the route with its filters, as `[path, [[name, value], …]]`; `name` is the key of the items in the
 * response, of which `size` are requested first. `cells(item)` makes a row, `update(row, item)` refreshes what depends
 * on time. `arrange(items)` selects and sorts; `empty(count)` is shown if it left out all `count` items, `refused(error)`
 * if the first request fails. A list with `changes(signal)`, a stream, adds the changed items that it `wants`.
 */
export function makeList({ address, name, size, cells, update, arrange, empty, refused, loaded, changes, wants }) {
  const list = { items: [], hasMore: false, refresh, restart, show, stop };
  const rows = new Map();
  let isLoaded = false;
  let cursor = null;
  let timer = 0;
  let requests = 0;
  let wantsMore = false;
  let most = MOST;
  //: The open stream; the timer for showing its changes; and the changes that arrive during a request.
  let [following, later, changed] = [null, 0, null];

  $("more").addEventListener("click", () => {
    wantsMore = true;
    refresh();
  });
  document.addEventListener("visibilitychange", () => document.hidden || (timer && refresh()));

  function restart() {
    stop();
    list.items = [];
    isLoaded = wantsMore = false;
    refresh();
  }

  function stop() {
    following?.abort();
    following = null;
    requests += 1;
    schedule(null);
    hideRetry();
  }

  function refresh() {
    schedule(null);
    changed = [];
    const request = (requests += 1);
    load(() => request === requests).catch((error) => {
      if (request !== requests) return;
      if (isTransient(error)) showRetry(AGAIN_MS, error, refresh);
      else wantsMore = false;
      if (!isLoaded) {
        notice(refused(error));
        loaded();
      }
      schedule(AGAIN_MS);
    });
  }

  function schedule(ms) {
    clearTimeout(timer);
    timer = ms === null ? 0 : setTimeout(() => (document.hidden ? schedule(ms) : refresh()), ms);
  }

  async function load(isCurrent) {
    const [path, parameters] = address();
    const isMore = wantsMore;
    const wanted = isMore ? list.items.length + size : Math.max(size, list.items.length);
    // An item may have moved to the top after it was found further down.
    const found = new Map((isMore ? list.items : []).map((item) => [item.id, item]));
    let next = isMore ? cursor : null;
    do {
      const query = new URLSearchParams([...parameters, ["limit", Math.min(1000, wanted - (next ? found.size : 0))], ...(next ? [["cursor", next]] : [])]);
      const { body } = await get(`${path}?${query}`);
      if (!isCurrent()) return;
      for (const item of body[name]) if (!found.has(item.id)) found.set(item.id, item);
      next = body.cursor;
    } while (next && found.size < wanted);
    hideRetry();
    const known = isMore && new Set(list.items.map(({ id }) => id));
    list.items = [...found.values()];
    most = Math.max(MOST, list.items.length);
    cursor = next;
    list.hasMore = cursor !== null;
    isLoaded = true;
    wantsMore = false;
    for (const item of changed) apply(item);
    changed = null;
    show(known);
    if (!changes) schedule(AGAIN_MS);
    else if (!following) follow();
  }

  /** The stream of changes starts with the newest items, so that no change is lost between list and stream. */
  async function follow() {
    const { signal } = (following = new AbortController());
    try {
      for await (const { event, data } of changes(signal)) {
        hideRetry();
        if (event === "reset") refresh();
        if (event !== "job") continue;
        changed?.push(data);
        apply(data);
        // Shown together with other changes.
        later ||= setTimeout(() => ((later = 0), show()), 100);
      }
    } catch {
      if (signal.aborted) return;
      following = null;
      schedule(AGAIN_MS);
    }
  }

  /** Puts a changed item in its place. A new item that is older than all others is on a later page, if there is one. */
  function apply(item) {
    const { items } = list;
    const isWanted = wants(item);
    const known = items.findIndex(({ id }) => id === item.id);
    if (known >= 0) items.splice(known, 1, ...(isWanted ? [item] : []));
    if (known >= 0 || !isWanted) return;
    const at = items.findIndex((each) => (each.created_at ?? "") <= (item.created_at ?? ""));
    if (at >= 0) items.splice(at, 0, item);
    else if (!list.hasMore) items.push(item);
    if (items.length <= most) return;
    items.length = most;
    list.hasMore = true;
    // The next page would start after the removed items.
    cursor = null;
  }

  /** Shows the items. If `known` has the ids before "Show more", moves the focus to the first other row. */
  function show(known) {
    // A search hides the list.
    if (!isLoaded || $("list").hidden) return;
    const arranged = arrange(list.items);
    const shown = arranged.map(rowOf);
    if (fill(document.querySelector("tbody"), shown)) announce(many(shown.length, name.slice(0, -1)));
    $("more").hidden = !list.hasMore;
    document.querySelector("table").hidden = !shown.length;
    if (shown.length) notice(null);
    else if (list.hasMore) notice("No matches on this page. “Show more” continues.");
    else notice(empty(list.items.length));
    const ids = new Set(list.items.map(({ id }) => id));
    for (const id of rows.keys()) if (!ids.has(id)) rows.delete(id);
    if (known) shown[arranged.findIndex(({ id }) => !known.has(id))]?.querySelector("a").focus();
    loaded();
  }

  function rowOf(item) {
    const key = JSON.stringify(item);
    const cached = rows.get(item.id);
    const element = cached?.element ?? make("tr");
    if (cached?.key !== key) {
      const focused = element.contains(document.activeElement);
      element.replaceChildren(...cells(item));
      if (focused) element.querySelector("a").focus({ preventScroll: true });
      rows.set(item.id, { key, element });
    }
    update(element, item);
    return element;
  }

  return list;
}
