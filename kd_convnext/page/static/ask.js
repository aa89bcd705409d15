// Asking: photographs in, regions drawn or accepted, answers out.
import { ask, debounced, h, Refused, say, send, tried } from "./dom.js";
import { evidence, verdict } from "./answer.js";
import { Stage } from "./stage.js";

const LARGEST = 64 * 1024 * 1024; // bytes; the server says the same

export async function create(state) {
  return new Ask(state);
}

class Ask {
  constructor(state) {
    this.model = state.model;
    this.items = [];
    this.now = -1;
    const input = h("input", { type: "file", multiple: true, id: "photographs", accept: "image/*,.dcm,.dicom,.tif,.tiff,.heic,.heif", onchange: (event) => { this.take(event.target.files); event.target.value = ""; } });
    this.drop = h("div", { class: "drop" }, h("label", { for: "photographs", class: "button primary" }, "Choose photographs"), input, h("span", {}, "or drop them here (JPEG, PNG, TIFF, HEIC, DICOM)"));
    this.strip = h("ul", { class: "strip", "aria-label": "Photographs" });
    this.stage = new Stage({
      changed: () => { this.item.asked = {}; this.item.whole = false; this.answer(this.item); this.buttons(); },
      selected: () => this.show(),
      describe: (number) => ({ text: this.item?.boxes[number]?.suggested ? "Suggestion" : `Region ${number + 1}`, tone: this.item?.boxes[number]?.suggested ? -1 : number, suggested: this.item?.boxes[number]?.suggested }),
    }, "Photograph with the regions to ask about");
    this.tools = h("div", { class: "row tools" });
    this.together = h("input", { type: "checkbox", id: "together", onchange: () => this.again() });
    this.lesion = h("input", { type: "text", value: "L1", maxlength: 200, "aria-label": "Name of the lesion", onchange: () => this.together.checked && this.again() });
    this.combined = h("div", { class: "combined" });
    this.result = h("div", { class: "result", "aria-live": "polite" });
    this.out = h("div", { class: "row outputs", hidden: true },
      h("button", { type: "button", onclick: () => this.files() }, "Save answers (CSV, JSON)"),
      h("button", { type: "button", onclick: () => this.print() }, "Print or save as PDF"),
      h("button", { type: "button", onclick: () => this.html() }, "Save as HTML"));
    this.work = h("div", { class: "work", hidden: true }, h("div", {}, this.stage.element, this.tools, this.strip),
      h("div", { class: "beside" }, h("p", { class: "row" }, h("label", { class: "check" }, this.together, "These photographs show one lesion"), this.lesion), this.combined, this.result, this.out));
    this.sheet = h("section", { class: "sheet", "aria-hidden": "true" });
    this.element = h("div", { class: "ask" }, this.about(), this.drop, this.work, this.sheet);
    for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => {
      if (!this.element.isConnected || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      if (kind === "drop") this.take(event.dataTransfer.files);
    });
    this.sooner = debounced((item) => this.answer(item), 120);
  }

  about() {
    const calibration = this.model.calibration;
    const words = calibration ? `calibrated at ${Number((100 * calibration.coverage).toPrecision(6))} % coverage` : "not calibrated: it answers nothing without a person";
    return h("p", { class: "hint about" }, `${this.model.name} · ${words} · checkpoint ${this.model.checkpoint_sha256.slice(0, 12)} · classes: ${this.model.classes.join(", ")}`);
  }

  get item() {
    return this.items[this.now];
  }

  async take(files) {
    const added = [...files];
    for (const file of added) {
      if (file.size > LARGEST) { say(`${file.name}: it has ${Math.round(file.size / 2 ** 20)} MB, more than 64. Send a smaller photograph.`, "error"); continue; }
      const found = await tried(async () => (await ask("POST", "/api/ask/photographs", { query: { name: file.name }, body: file })).json());
      if (!found) continue;
      this.items.push({ ...found, boxes: [], asked: {}, answers: [], whole: false, address: `/api/ask/photographs/${found.key}` });
      this.select(this.items.length - 1);
    }
  }

  select(number) {
    this.now = number;
    const item = this.item;
    this.work.hidden = !item;
    this.strip.replaceChildren(...this.items.map((entry, place) => h("li", {},
      h("button", { type: "button", "aria-pressed": String(place === number), "aria-label": `Show ${entry.name}`, onclick: () => this.select(place) }, h("img", { src: entry.address, alt: "" }), h("span", {}, entry.name)),
      h("button", { type: "button", class: "quiet", "aria-label": `Remove ${entry.name}`, onclick: () => this.remove(place) }, "×"))));
    if (!item) return;
    this.stage.show(item.address, item.width, item.height);
    this.stage.set(item.boxes, item.boxes.length ? 0 : -1);
    this.buttons();
    this.show();
  }

  async remove(place) {
    const [gone] = this.items.splice(place, 1);
    await tried(() => ask("DELETE", gone.address));
    this.select(Math.min(this.now, this.items.length - 1));
    await this.combine();
  }

  buttons() {
    const suggested = this.item.boxes.some((box) => box.suggested);
    this.tools.replaceChildren(...[
      h("button", { type: "button", onclick: () => this.stage.add() }, "New region"),
      h("button", { type: "button", onclick: () => this.suggest() }, "Suggest a region"),
      suggested ? h("button", { type: "button", class: "primary", onclick: () => this.accept() }, "Accept the suggestion") : null,
      h("button", { type: "button", onclick: () => this.whole() }, "Ask about the whole photograph"),
      this.stage.chosen >= 0 ? h("button", { type: "button", class: "danger", onclick: () => this.stage.remove() }, "Delete region") : null,
    ].filter(Boolean));
  }

  async suggest() {
    const item = this.item;
    const found = await tried(() => send("POST", "/api/ask/suggestion", { key: item.key }));
    if (!found) return;
    if (!found.box) { say("The network has nothing to suggest here. Draw the region."); return; }
    item.boxes = [...item.boxes.filter((box) => !box.suggested), { ...found.box, suggested: true }];
    this.stage.set(item.boxes, item.boxes.length - 1);
    this.buttons();
    say("A suggestion, where the network's evidence lies; it was not trained to find lesions. Move it, or accept it.");
  }

  accept() {
    for (const box of this.item.boxes) delete box.suggested;
    this.stage.draw();
    this.stage.hooks.changed();
  }

  whole() {
    const item = this.item;
    item.boxes = [];
    item.whole = true;
    this.stage.set(item.boxes);
    this.answer(item);
  }

  wanted(item) {
    const lesion_id = this.together.checked ? this.lesion.value.trim() || "L1" : "";
    const boxes = item.whole ? [null] : item.boxes.filter((box) => !box.suggested).map(({ x, y, width, height }) => ({ x, y, width, height }));
    return boxes.map((box) => ({ key: item.key, box, lesion_id }));
  }

  async answer(item) {
    const asked = this.wanted(item);
    item.turn = (item.turn ?? 0) + 1;
    const turn = item.turn;
    if (!asked.length) { item.answers = []; this.show(); await this.combine(); return; }
    const started = performance.now();
    if (item === this.item) this.result.classList.add("waits");
    let content;
    try {
      content = await send("POST", "/api/ask/answers", { asked });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      say(error.message, "error");
      return;
    } finally {
      this.result.classList.remove("waits");
    }
    if (turn !== item.turn) return; // the region was moved meanwhile
    for (const failure of content.failures) say(`${failure.image}: ${failure.problem}. ${failure.remedy}`, "error");
    item.answers = content.answers;
    item.evidence = [];
    item.seconds = (performance.now() - started) / 1000;
    this.show();
    await this.combine();
    for (const [number, entry] of asked.entries()) {
      const found = await tried(() => send("POST", "/api/ask/explanation", entry));
      if (!found || turn !== item.turn) return;
      item.evidence[number] = found;
      if (item === this.item) this.show();
    }
  }

  async again() {
    for (const item of this.items) await this.answer(item);
  }

  async combine() {
    const asked = this.items.flatMap((item) => this.wanted(item));
    this.out.hidden = !asked.length;
    this.lesions = [];
    if (this.together.checked && asked.length > 1) {
      const content = await tried(() => send("POST", "/api/ask/answers", { asked }));
      this.lesions = content?.lesions ?? [];
    }
    this.combined.replaceChildren(...this.lesions.filter((entry) => entry.photographs > 1).map((entry) => verdict(entry, this.model)));
  }

  show() {
    const item = this.item;
    if (!item) { this.result.replaceChildren(); return; }
    if (!item.answers.length) {
      this.result.replaceChildren(h("p", { class: "hint" }, "Draw the region: drag with the mouse or a finger, or press N in the photograph. The answer follows."));
      return;
    }
    const place = item.whole ? 0 : Math.max(0, Math.min(this.stage.chosen, item.answers.length - 1));
    const found = item.evidence[place];
    this.result.replaceChildren(verdict(item.answers[place], this.model), found ? evidence(found) : h("p", { class: "hint" }, "The heat map is being drawn …"));
  }

  // --- what is kept ---

  async files() {
    const asked = this.items.flatMap((item) => this.wanted(item));
    const response = await tried(() => ask("POST", "/api/ask/files", { json: { asked } }));
    if (response) save(await response.blob(), "answers.zip");
  }

  fill() {
    const parts = this.items.flatMap((item) => item.answers.map((answer, number) => h("div", { class: "page" }, verdict(answer, this.model), item.evidence[number] ? evidence(item.evidence[number]) : null)));
    this.sheet.replaceChildren(h("h1", {}, "Answers of kd-convnext"), h("p", {}, `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC. For research. No answer may decide about a patient.`), this.about(), ...(this.lesions ?? []).filter((entry) => entry.photographs > 1).map((entry) => verdict(entry, this.model)), ...parts);
    return this.sheet;
  }

  print() {
    this.fill();
    print();
  }

  async html() {
    const style = await (await fetch("/static/style.css")).text();
    const head = `<meta charset="utf-8"><title>Answers of kd-convnext</title><style>${style}</style>`;
    const text = `<!doctype html>\n<html lang="en"><head>${head}</head><body class="saved-sheet">${this.fill().outerHTML}</body></html>`;
    save(new Blob([text], { type: "text/html" }), "answers.html");
  }
}

function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
