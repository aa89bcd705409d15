// Reading a run: metrics, report, card, figures; and its test photographs one by one.
import { address, ask, counted, debounced, get, h, percent, say, send, tried } from "./dom.js";
import { evidence } from "./answer.js";

const SHOWN = 200; // rows of the table drawn at once
const COLUMNS = [["image", "Photograph"], ["lesion_id", "Lesion"], ["label", "Label"], ["prediction", "Prediction"], ["probability", "Confidence"], ["right", "Right"], ["corrections", "Corrections"]];

export async function create(state) {
  const part = new Read(state);
  await part.load();
  return part;
}

class Read {
  constructor(state) {
    this.classes = state.model.classes;
    this.rows = [];
    this.order = { name: null, up: true };
    this.body = h("div", { class: "reading" });
    this.menu = h("nav", { class: "menu", "aria-label": "What to read" });
    this.element = h("div", { class: "read" }, this.menu, this.body);
  }

  async load() {
    this.overview = await tried(() => get("/api/read/overview"));
    const names = [["cases", "Test photographs"], ["metrics", "Metrics"], ["report", "Report"], ["card", "Model card"], ["figures", "Figures"]];
    this.menu.replaceChildren(...names.map(([key, text]) => h("a", { href: `#read/${key}`, "data-key": key }, text)));
  }

  async open(words) {
    const key = ["metrics", "report", "card", "figures"].includes(words) ? words : "cases";
    for (const link of this.menu.children) {
      if (link.dataset.key === key) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (!this.overview) return;
    this.body.replaceChildren(...[await this[key]()].flat());
  }

  missing(what, command) {
    return h("p", { class: "hint" }, `The run has no ${what} yet. Make it with `, h("code", {}, command));
  }

  metrics() {
    const found = Object.entries(this.overview.metrics);
    if (!found.length) return this.missing("test metrics", this.overview.test_command);
    return h("div", { class: "scrolls" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Metric"), h("th", { scope: "col" }, "Value"))), h("tbody", {}, ...found.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value.toFixed(4)))))));
  }

  report() {
    if (!this.overview.report) return this.missing("report", this.overview.report_command);
    return h("iframe", { src: "/api/read/report", title: "The run's report", sandbox: "allow-scripts" });
  }

  async card() {
    if (!this.overview.card) return this.missing("model card", this.overview.card_command);
    const response = await tried(() => ask("GET", "/api/read/card"));
    const article = h("article", { class: "prose" });
    if (response) article.innerHTML = await response.text(); // the server's Markdown, HTML in it shown as text
    return article;
  }

  figures() {
    if (!this.overview.figures.length) return this.missing("figures", this.overview.test_command);
    return h("div", { class: "figures" }, ...this.overview.figures.map((name) => h("figure", {}, h("a", { href: `/api/read/figures/${encodeURIComponent(name)}`, target: "_blank" }, h("img", { src: `/api/read/figures/${encodeURIComponent(name)}`, alt: name.replace(/[_-]/g, " ").replace(".png", ""), loading: "lazy" })), h("figcaption", {}, name.replace(".png", "").replaceAll("_", " ")))));
  }

  // --- where is the model wrong? ---

  async cases() {
    const answer = await tried(() => get("/api/read/table"));
    this.rows = answer?.rows ?? [];
    if (!this.rows.length) return this.missing("tested photographs", this.overview.test_command);
    const choice = (text, name) => h("label", {}, text, h("select", { onchange: (event) => { this[name] = event.target.value; this.fill(); } }, h("option", { value: "" }, "all"), ...this.classes.map((entry) => h("option", {}, entry))));
    this.label = this.prediction = "";
    this.least = 0;
    this.wrongOnly = false;
    const head = h("tr", {}, ...COLUMNS.map(([name, text]) => h("th", { scope: "col", "data-name": name, "aria-sort": "none" }, h("button", { type: "button", onclick: () => this.sort(name) }, text))));
    this.head = head;
    this.table = h("tbody");
    this.found = h("p", { class: "count", role: "status" });
    this.more = h("button", { type: "button", hidden: true, onclick: () => { this.limit += SHOWN; this.fill(false); } }, "Show more");
    this.detail = h("section", { class: "detail", "aria-label": "One test photograph", "aria-live": "polite" }, h("p", { class: "hint" }, "Choose a photograph to see its region, heat map and training cases."));
    const shown = h("output", {}, "0 %");
    const filters = h("div", { class: "bar" }, choice("Label", "label"), choice("Prediction", "prediction"),
      h("label", { class: "check" }, h("input", { type: "checkbox", onchange: (event) => { this.wrongOnly = event.target.checked; this.fill(); } }), "Wrong only"),
      h("label", { class: "slider" }, "Confidence from", h("input", { type: "range", min: "0", max: "100", value: "0", oninput: debounced((event) => { this.least = event.target.value / 100; shown.textContent = `${event.target.value} %`; this.fill(); }, 60) }), shown), this.found);
    this.fill();
    return [filters, h("div", { class: "split" }, h("div", { class: "scrolls" }, h("table", { class: "cases-table" }, h("thead", {}, head), this.table), this.more), this.detail)];
  }

  sort(name) {
    this.order = { name, up: this.order.name === name ? !this.order.up : true };
    for (const cell of this.head.children) cell.setAttribute("aria-sort", cell.dataset.name === name ? (this.order.up ? "ascending" : "descending") : "none");
    this.fill();
  }

  fill(anew = true) {
    if (anew) this.limit = SHOWN;
    let rows = this.rows.filter((row) => (!this.label || row.label === this.label) && (!this.prediction || row.prediction === this.prediction) && (!this.wrongOnly || !row.right) && row.probability >= this.least);
    const { name, up } = this.order;
    if (name) rows = [...rows].sort((one, two) => (up ? 1 : -1) * (typeof one[name] === "number" ? one[name] - two[name] : String(one[name]).localeCompare(String(two[name]), undefined, { numeric: true })));
    const wrong = rows.filter((row) => !row.right).length;
    this.found.textContent = `${counted(rows.length, "photograph")}, ${wrong} wrong`;
    this.more.hidden = rows.length <= this.limit;
    this.table.replaceChildren(...rows.slice(0, this.limit).map((row) => h("tr", { class: row.right ? "right" : "wrong", "data-row": row.row },
      h("td", {}, h("button", { type: "button", class: "link", onclick: () => this.look(row) }, row.image)), h("td", {}, row.lesion_id), h("td", {}, row.label), h("td", {}, row.prediction), h("td", {}, percent(row.probability)), h("td", {}, row.right ? "✓" : "✗ wrong"), h("td", {}, row.corrections))));
  }

  async look(row) {
    this.detail.replaceChildren(h("p", { class: "hint" }, "…"));
    const found = await tried(() => get("/api/read/explanation", { row: row.row }));
    const label = h("select", {}, ...this.classes.map((name) => h("option", { selected: name === row.label }, name)));
    const note = h("input", { type: "text", maxlength: 200, placeholder: "Why (kept beside it)" });
    const form = h("form", { class: "form correct", onsubmit: (event) => { event.preventDefault(); this.correct(row, label.value, note.value.trim()); } },
      h("h3", {}, "Correct the label"), h("p", { class: "hint" }, "Written into the manifest with today's date, beside the old label. This run's numbers stay; train and test anew."),
      h("div", { class: "pair" }, h("label", {}, "Label", label), h("label", {}, "Reason", note)), h("button", { class: "primary" }, "Write the correction"));
    this.detail.replaceChildren(h("h2", {}, row.image), h("p", {}, `Label ${row.label}${row.right ? ", answered right" : `, answered ${row.prediction}`} with ${percent(row.probability)}.`), ...(found ? [evidence(found)] : []), form);
    if (innerWidth < 900) this.detail.scrollIntoView();
  }

  async correct(row, label, note) {
    const answer = await tried(() => send("POST", "/api/read/corrections", { row: row.row, label, note }));
    if (!answer) return;
    row.corrections = answer.corrections;
    this.fill(false);
    say(`Written into the manifest: ${answer.corrections}`);
  }
}
