// The box of a search in several jobs, and the links that narrow a list. What the reader has chosen is in the page's address.

import { $, link, make } from "./dom.js";
import { statusIcon } from "./state.js";

export class SearchBox {
  #others;
  #read;
  #show;
  #shown = null;

  /**
   * `others()` are the parameters of the page's address beside the search, and `read(parameters)` takes them from it.
   * `show({q, regex})` shows what the reader has chosen.
   */
  constructor(others, read, show) {
    this.#others = others;
    this.#read = read;
    this.#show = show;
    this.#take(location.search);
    $("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.choose();
    });
    $("q").addEventListener("input", () => !$("q").value && this.#shown !== this.#address && this.choose());
    $("regex").addEventListener("click", () => {
      $("regex").ariaPressed = String(!this.#isRegex);
      if ($("q").value) this.choose();
    });
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

  /** The query of the page's address for what is chosen now. */
  get parameters() {
    const search = $("q").value ? [["q", $("q").value], ...(this.#isRegex ? [["regex", "true"]] : [])] : [];
    return new URLSearchParams([...search, ...this.#others()]);
  }

  get #address() {
    return this.parameters.size ? `?${this.parameters}` : "";
  }

  /** Chooses what a query of the page's address says. */
  #take(address) {
    const parameters = new URLSearchParams(address);
    $("q").value = parameters.get("q") ?? "";
    $("regex").ariaPressed = String(parameters.get("regex") === "true");
    this.#read(parameters);
  }

  /** Shows what is chosen. */
  show() {
    this.#shown = this.#address;
    this.#show({ q: $("q").value, regex: this.#isRegex });
  }

  /** Shows it, and makes an entry in the history unless it is shown already. */
  choose() {
    if (this.#address !== this.#shown) history.pushState(null, "", location.pathname + this.#address);
    this.show();
  }

  /**
   * Shows the kinds to choose from as links: each has the `value` of the parameter `name`, the status of its icon, its text, and how
   * many there are, which may be unknown. `others` are the other parameters of their addresses.
   */
  showKinds(name, chosen, kinds, others = this.parameters) {
    const links = kinds.map(([value, status, text, number]) => {
      const parameters = new URLSearchParams(others);
      parameters.delete(name);
      if (value) parameters.set(name, value);
      const counted = number === undefined ? [] : [" ", make("b", "", number)];
      const element = link(`?${parameters}`, ...(status ? [statusIcon(status)] : []), make("span", "", text, ...counted));
      element.dataset.kind = value;
      if (value === chosen) element.ariaCurrent = "true";
      return element;
    });
    const shown = links.map((each) => each.textContent + each.href + each.ariaCurrent).join();
    if ($("kinds").dataset.shown === shown) return;
    const focused = document.activeElement?.dataset?.kind;
    $("kinds").dataset.shown = shown;
    $("kinds").replaceChildren(...links);
    if (focused !== undefined) links.find((each) => each.dataset.kind === focused)?.focus();
  }
}
