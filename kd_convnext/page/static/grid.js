// Thousands of thumbnails: only those near the window exist.
import { address, h } from "./dom.js";

const TILE = { width: 168, height: 176 };
const AROUND = 2; // rows above and below the window that are kept ready

export class Grid {
  constructor(open) {
    this.open = open;
    this.names = [];
    this.tiles = new Map();
    this.element = h("div", { class: "grid", role: "list", "aria-label": "Photographs" });
    window.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => this.later()).observe(this.element);
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  // names: of the photographs; facts(name): {count, bare, broken}
  show(names, facts) {
    this.names = names;
    this.facts = facts;
    this.tiles.clear();
    this.element.replaceChildren();
    this.fill();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.fill(); });
  }

  fill() {
    if (!this.element.isConnected || !this.element.clientWidth) return;
    this.columns = Math.max(2, Math.floor(this.element.clientWidth / TILE.width));
    const width = this.element.clientWidth / this.columns;
    const rows = Math.ceil(this.names.length / this.columns);
    this.element.style.height = `${rows * TILE.height}px`;
    const above = -this.element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(above / TILE.height) - AROUND);
    const last = Math.min(rows, Math.ceil((above + innerHeight) / TILE.height) + AROUND);
    const wanted = new Set();
    for (let place = first * this.columns; place < Math.min(this.names.length, last * this.columns); place += 1) wanted.add(place);
    for (const [place, tile] of this.tiles) if (!wanted.has(place)) { tile.remove(); this.tiles.delete(place); }
    for (const place of wanted) {
      let tile = this.tiles.get(place);
      if (!tile) {
        tile = this.tile(place);
        this.tiles.set(place, tile);
        this.element.append(tile);
      }
      Object.assign(tile.style, { left: `${(place % this.columns) * width}px`, top: `${Math.floor(place / this.columns) * TILE.height}px`, width: `${width}px`, height: `${TILE.height}px` });
    }
  }

  tile(place) {
    const name = this.names[place], { count, bare } = this.facts(name);
    const state = !count ? "unmarked" : bare ? `${bare} without a class` : `${count} ${count === 1 ? "region" : "regions"}`;
    const picture = h("img", { alt: "", decoding: "async", src: address("/api/mark/thumbnail", { image: name }) });
    const button = h(
      "button",
      { type: "button", "data-place": place, "aria-label": `${name}, ${state}`, title: name, onclick: () => this.open(name) },
      h("span", { class: "thumb" }, picture),
      h("span", { class: "name" }, name.split("/").pop()),
      h("span", { class: `state ${!count ? "none" : bare ? "half" : "done"}` }, state),
    );
    picture.addEventListener("error", () => {
      picture.replaceWith(h("span", { class: "cannot" }, "cannot be read"));
      button.setAttribute("aria-label", `${name}, cannot be read`);
    });
    return h("div", { role: "listitem", class: "tile" }, button);
  }

  key(event) {
    const place = Number(event.target.dataset?.place);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (!step || Number.isNaN(place)) return;
    event.preventDefault();
    const next = Math.min(this.names.length - 1, Math.max(0, place + step));
    const top = this.element.getBoundingClientRect().top + scrollY + Math.floor(next / this.columns) * TILE.height;
    if (top < scrollY + 80) scrollTo(0, top - 80);
    else if (top + TILE.height > scrollY + innerHeight) scrollTo(0, top + TILE.height - innerHeight + 20);
    this.fill();
    this.tiles.get(next)?.firstChild.focus({ preventScroll: true });
  }
}
