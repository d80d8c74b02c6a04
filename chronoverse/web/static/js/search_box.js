// The search box for several jobs, and the links that filter a list. The page's address contains the reader's choices.

import { $, make, toggle } from "./dom.js";
import { statusIcon } from "./state.js";

export class SearchBox {
  #others;
  #read;
  #page;
  #shown = null;

  /**
   * `others()` and `read(parameters)` are for the parameters other than the search. A page has a `title`, a `list`, and a
   * `search` with the parameters `criteria()`. `changed()` is called after each choice, and `again()` lists again.
   */
  constructor(others, read, page) {
    this.#others = others;
    this.#read = read;
    this.#page = page;
    this.#take(location.search);
    $("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.choose();
    });
    $("q").addEventListener("input", () => !$("q").value && this.#shown !== this.#address && this.choose());
    $("regex").addEventListener("click", () => (toggle($("regex")), $("q").value && this.choose()));
    addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
      event.preventDefault();
      $("q").focus();
      $("q").select();
    });
    $("kinds").addEventListener("click", (event) => {
      const address = event.target.closest("a")?.search;
      if (address === undefined || event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.#take(address);
      this.choose();
    });
    addEventListener("popstate", () => {
      this.#take(location.search);
      if (this.#address !== this.#shown) this.show();
    });
  }

  get #isRegex() {
    return $("regex").ariaPressed === "true";
  }

  get parameters() {
    const search = $("q").value ? [["q", $("q").value], ...(this.#isRegex ? [["regex", "true"]] : [])] : [];
    return new URLSearchParams([...search, ...this.#others()]);
  }

  get #address() {
    return this.parameters.size ? `?${this.parameters}` : "";
  }

  #take(address) {
    const parameters = new URLSearchParams(address);
    $("q").value = parameters.get("q") ?? "";
    toggle($("regex"), parameters.get("regex") === "true");
    this.#read(parameters);
  }

  show() {
    this.#shown = this.#address;
    const q = $("q").value;
    const { again, changed, criteria, list, search, title } = this.#page;
    $("list").hidden = q !== "";
    document.title = [q, ...title, "Chronoverse"].filter(Boolean).join(" · ");
    changed();
    if (!q) return search.clear(), again();
    list.stop();
    $("empty").hidden = true;
    return search.start({ q, regex: this.#isRegex, ...criteria() });
  }

  choose() {
    if (this.#address !== this.#shown) history.pushState(null, "", location.pathname + this.#address);
    this.show();
  }

  /** Shows links that set the parameter `name`. Each kind has a value, the status of its icon, a text, and perhaps a count. */
  showKinds(name, chosen, kinds, others = this.parameters) {
    const links = kinds.map(([value, status, text, number]) => {
      const parameters = new URLSearchParams(others);
      parameters.delete(name);
      if (value) parameters.set(name, value);
      const counted = number === undefined ? [] : [" ", make("b", "", number)];
      const properties = { href: `?${parameters}`, data: { kind: value }, ariaCurrent: value === chosen ? "true" : null };
      return make("a", properties, ...(status ? [statusIcon(status)] : []), make("span", "", text, ...counted));
    });
    const shown = links.map((each) => each.textContent + each.href + each.ariaCurrent).join();
    if ($("kinds").dataset.shown === shown) return;
    const focused = document.activeElement?.dataset?.kind;
    $("kinds").dataset.shown = shown;
    $("kinds").replaceChildren(...links);
    if (focused !== undefined) links.find((each) => each.dataset.kind === focused)?.focus();
  }
}
