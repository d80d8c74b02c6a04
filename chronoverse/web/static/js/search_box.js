// The search box for several jobs, and the links that filter a list. The page's address contains the reader's choices.

import { $, make, toggle } from "./dom.js";
import { statusIcon } from "./state.js";

/**
 * `others()` and `read(parameters)` are for the parameters other than the search. A page has a `title`, a `list`, and a
 * `search` with the parameters `criteria()`. `changed()` is called after each choice, and `again()` lists again.
 */
export function makeSearchBox(others, read, { title, list, search, criteria, changed, again }) {
  const [q, regex, kinds] = [$("q"), $("regex"), $("kinds")];
  let shown = null;

  const isRegex = () => regex.ariaPressed === "true";
  const words = () => (q.value ? [["q", q.value], ...(isRegex() ? [["regex", "true"]] : [])] : []);
  const parameters = () => new URLSearchParams([...words(), ...others()]);
  const address = () => (parameters().size ? `?${parameters()}` : "");

  function take(given) {
    const found = new URLSearchParams(given);
    q.value = found.get("q") ?? "";
    toggle(regex, found.get("regex") === "true");
    read(found);
  }

  function show() {
    shown = address();
    $("list").hidden = q.value !== "";
    document.title = [q.value, ...title, "Chronoverse"].filter(Boolean).join(" · ");
    changed();
    if (!q.value) return search.clear(), again();
    list.stop();
    $("empty").hidden = true;
    return search.start({ q: q.value, regex: isRegex(), ...criteria() });
  }

  function choose() {
    if (address() !== shown) history.pushState(null, "", location.pathname + address());
    show();
  }

  take(location.search);
  $("find").addEventListener("submit", (event) => (event.preventDefault(), choose()));
  q.addEventListener("input", () => !q.value && shown !== address() && choose());
  regex.addEventListener("click", () => (toggle(regex), q.value && choose()));
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    event.preventDefault();
    q.focus();
    q.select();
  });
  kinds.addEventListener("click", (event) => {
    const chosen = event.target.closest("a")?.search;
    if (chosen === undefined || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    take(chosen);
    choose();
  });
  addEventListener("popstate", () => {
    take(location.search);
    if (address() !== shown) show();
  });

  /** Shows links that set the parameter `name`. Each kind has a value, the status of its icon, a text, and perhaps a count. */
  function showKinds(name, chosen, all, base = parameters()) {
    const links = all.map(([value, status, text, number]) => {
      const given = new URLSearchParams(base);
      given.delete(name);
      if (value) given.set(name, value);
      const counted = number === undefined ? [] : [" ", make("b", "", number)];
      const properties = { href: `?${given}`, data: { kind: value }, ariaCurrent: value === chosen ? "true" : null };
      return make("a", properties, ...(status ? [statusIcon(status)] : []), make("span", "", text, ...counted));
    });
    const key = links.map((each) => each.textContent + each.href + each.ariaCurrent).join();
    if (kinds.dataset.shown === key) return;
    const focused = document.activeElement?.dataset?.kind;
    kinds.dataset.shown = key;
    kinds.replaceChildren(...links);
    if (focused !== undefined) links.find((each) => each.dataset.kind === focused)?.focus();
  }

  return { show, showKinds, parameters };
}
