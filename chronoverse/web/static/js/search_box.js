// The box of a search in several jobs. What it has, and what else the reader has chosen, is in the page's address.

import { $ } from "./dom.js";

export class SearchBox {
  #others;
  #shown = null;
  #show;

  /** `others()` are the parameters of the page's address beside the search. `show({q, regex})` shows what the reader has chosen. */
  constructor(others, show) {
    this.#others = others;
    this.#show = show;
    this.fromAddress();
    $("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.choose();
    });
    $("q").addEventListener("input", () => !$("q").value && this.#shown !== this.address && this.choose());
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
  }

  get #isRegex() {
    return $("regex").ariaPressed === "true";
  }

  /** The query of the page's address for what is chosen now. */
  get parameters() {
    const search = $("q").value ? [["q", $("q").value], ...(this.#isRegex ? [["regex", "true"]] : [])] : [];
    return new URLSearchParams([...search, ...this.#others()]);
  }

  get address() {
    return this.parameters.size ? `?${this.parameters}` : "";
  }

  fromAddress() {
    const parameters = new URLSearchParams(location.search);
    $("q").value = parameters.get("q") ?? "";
    $("regex").ariaPressed = String(parameters.get("regex") === "true");
  }

  /** Shows what is chosen. */
  show() {
    this.#shown = this.address;
    this.#show({ q: $("q").value, regex: this.#isRegex });
  }

  /** Shows it, and makes an entry in the history unless it is shown already. */
  choose() {
    if (this.address !== this.#shown) history.pushState(null, "", location.pathname + this.address);
    this.show();
  }

  /** Shows what an address says that the reader has gone back or forward to. */
  return() {
    this.fromAddress();
    if (this.address !== this.#shown) this.show();
  }
}
