// Marking: the folder as thumbnails, with progress and checks; one photograph is in editor.js.
import { counted, debounced, get, h, say, send, tried } from "./dom.js";
import { Editor } from "./editor.js";
import { Grid } from "./grid.js";

const FILTERS = { all: "All", unmarked: "Unmarked", half: "Without a class", marked: "Marked" };
const LOOKED_AFTER = 5000; // milliseconds between looks at the manifest

export async function create(state) {
  const part = new Mark(state);
  await part.load();
  return part;
}

class Mark {
  constructor(state) {
    this.state = state;
    this.filter = "all";
    this.facts = new Map();
    this.grid = new Grid((name) => { location.hash = `mark/${encodeURIComponent(name)}`; });
    this.editor = new Editor(this);
    this.search = h("input", { type: "search", placeholder: "Find a name", "aria-label": "Find a photograph by name", oninput: debounced(() => this.list(), 150) });
    this.filters = h("div", { class: "choices", role: "group", "aria-label": "Which photographs" }, ...Object.entries(FILTERS).map(([key, text]) =>
      h("button", { type: "button", "data-key": key, "aria-pressed": String(key === "all"), onclick: () => this.choose(key) }, text)));
    this.count = h("p", { class: "count", role: "status" });
    this.progress = h("tbody");
    this.checks = h("ul", { class: "findings" });
    this.checkTitle = h("summary", {}, "Checks");
    this.list_ = h(
      "section", { class: "folder", "aria-label": "Photographs" },
      h("div", { class: "panels" }, this.progressPanel(), h("details", { class: "panel", ontoggle: (event) => event.target.open && this.check() }, this.checkTitle, this.checks)),
      h("div", { class: "bar" }, this.filters, this.search, this.count),
      this.grid.element,
    );
    this.element = h("div", { class: "mark" }, this.list_);
    this.checkSoon = debounced(() => this.check(), 1500);
    setInterval(() => this.look(), LOOKED_AFTER);
  }

  progressPanel() {
    const head = ["Class", "Regions", "Lesions", "For a split", "For calibrated sets"].map((text) => h("th", { scope: "col" }, text));
    return h("details", { class: "panel", open: true }, h("summary", {}, "Progress"), h("div", { class: "scrolls" }, h("table", {}, h("thead", {}, h("tr", {}, head)), this.progress)),
      h("p", { class: "hint" }, "Manifest: ", h("code", {}, this.state.mark.manifest), ". Give it to ", h("code", {}, "kd-convnext prepare --manifest"), ` as it is. Calibrated sets at ${Math.round(100 * this.state.mark.coverage)} % count the lesions of a validation part of one tenth.`));
  }

  async load() {
    const found = await tried(() => get("/api/mark/photographs"));
    if (!found) return;
    this.digest = found.digest;
    this.classes = found.classes;
    this.names = found.photographs.map(([name]) => name);
    this.facts = new Map(found.photographs.map(([name, count, bare]) => [name, { count, bare }]));
    this.list();
    this.progressNow();
    this.checkSoon();
  }

  async open(name) {
    if (name && this.facts.has(name)) {
      if (this.element.firstChild !== this.editor.element) { this.scrolled = scrollY; this.element.replaceChildren(this.editor.element); scrollTo(0, 0); }
      await this.editor.open(name);
    } else {
      if (name) say(`${name} is not in this folder.`, "error");
      this.element.replaceChildren(this.list_);
      this.list();
      scrollTo(0, this.scrolled ?? 0);
      this.grid.fill();
    }
  }

  choose(key) {
    this.filter = key;
    for (const button of this.filters.children) button.setAttribute("aria-pressed", String(button.dataset.key === key));
    this.list();
  }

  list() {
    const word = this.search.value.trim().toLowerCase();
    const wanted = (name) => {
      const { count, bare } = this.facts.get(name);
      const kind = { all: true, unmarked: !count, half: bare > 0, marked: count > 0 && !bare }[this.filter];
      return kind && (!word || name.toLowerCase().includes(word));
    };
    const names = this.names.filter(wanted);
    const unmarked = this.names.filter((name) => !this.facts.get(name).count).length;
    this.count.textContent = `${names.length} shown · ${counted(this.names.length, "photograph")} · ${unmarked} unmarked`;
    this.grid.show(names, (name) => this.facts.get(name));
  }

  // Called after each saved change of a photograph.
  changed(name, regions) {
    this.facts.set(name, { count: regions.length, bare: regions.filter((region) => !region.label).length });
    this.progressSoon ??= debounced(() => this.progressNow(), 600);
    this.progressSoon();
    this.checkSoon();
    this.refreshDigest = true;
  }

  async progressNow() {
    const { classes } = await get("/api/mark/progress");
    const enough = (count, needed) => h("td", { class: count >= needed ? "yes" : "no" }, count >= needed ? "✓ enough" : `${needed - count} more`);
    this.progress.replaceChildren(...classes.map((entry) => h("tr", {}, h("th", { scope: "row" }, entry.label), h("td", {}, String(entry.regions)), h("td", {}, String(entry.lesions)), enough(entry.lesions, entry.for_split), enough(entry.lesions, entry.for_sets))));
  }

  async check() {
    const answer = await tried(() => get("/api/mark/checks"));
    if (!answer) return;
    this.found = answer.findings;
    const errors = this.found.filter((entry) => entry.severity === "error").length;
    this.checkTitle.textContent = this.found.length ? `Checks: ${errors} to mend, ${this.found.length - errors} to know` : "Checks: nothing to mend";
    this.checks.replaceChildren(...this.found.slice(0, 200).map((entry) => this.finding(entry)));
    if (this.found.length > 200) this.checks.append(h("li", {}, `… and ${this.found.length - 200} more`));
    this.editor.showChecks();
  }

  finding(entry) {
    const place = entry.image ? h("a", { href: `#mark/${encodeURIComponent(entry.image)}` }, entry.image) : entry.where;
    return h("li", { class: entry.severity }, h("strong", {}, place), ` ${entry.what}. ${entry.remedy}`);
  }

  // Another program or browser may have written the manifest.
  async look() {
    if (document.hidden || !this.element.isConnected) return;
    let digest;
    try { ({ digest } = await get("/api/mark/digest")); } catch { return; }
    if (this.refreshDigest || digest === this.digest) { this.digest = digest; this.refreshDigest = false; return; }
    await this.load();
    if (this.editor.element.isConnected) await this.editor.look();
  }

  async nameClasses(names) {
    const answer = await tried(() => send("PUT", "/api/mark/classes", { classes: names }));
    if (answer) this.classes = answer.classes;
    return Boolean(answer);
  }

  neighbour(name, step, unmarked = false) {
    const from = this.names.indexOf(name);
    for (let place = from + step; place >= 0 && place < this.names.length; place += step) {
      if (!unmarked || !this.facts.get(this.names[place]).count) return this.names[place];
    }
    return null;
  }
}
