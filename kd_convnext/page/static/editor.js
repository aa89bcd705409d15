// One photograph: its regions on the stage, their class, lesion and patient beside it; every change is saved at once.
import { address, get, h, Refused, say, send, tried } from "./dom.js";
import { Stage } from "./stage.js";

const client = (sessionStorage.client ??= crypto.randomUUID?.() ?? String(Math.random()));

export class Editor {
  constructor(folder) {
    this.folder = folder;
    this.regions = [];
    this.queue = Promise.resolve();
    this.stage = new Stage(
      {
        changed: (boxes) => { this.pull(boxes); this.save(); this.panel(); },
        added: (box) => this.defaults(box),
        selected: () => this.panel(),
        describe: (number) => this.describe(number),
      },
      "Photograph with its regions",
    );
    this.title = h("h2", { tabindex: -1 });
    this.saved = h("span", { class: "saved", role: "status" });
    this.side = h("div", { class: "side" });
    this.notes = h("ul", { class: "findings" });
    this.undoButton = h("button", { type: "button", onclick: () => this.undo() }, "Undo");
    const go = (step, unmarked, text, keys) => h("button", { type: "button", title: keys, onclick: () => this.go(step, unmarked) }, text);
    this.element = h(
      "section", { class: "editor", "aria-label": "One photograph" },
      h("div", { class: "bar" }, h("a", { href: "#mark", class: "button" }, "All photographs"), go(-1, false, "Previous", "Page up"), go(1, false, "Next", "Page down"), go(1, true, "Next unmarked", "U"), this.undoButton, this.saved),
      this.title,
      h("div", { class: "work" }, this.stage.element, h("div", { class: "beside" }, this.side, this.notes)),
    );
    document.addEventListener("keydown", (event) => this.key(event));
  }

  async open(name) {
    if (this.name === name && this.version) return;
    await this.queue;
    const before = this.regions.findLast?.((region) => region.lesion_id || region.patient_id);
    if (before) sessionStorage.previous = JSON.stringify({ lesion_id: before.lesion_id, patient_id: before.patient_id });
    this.stage.clear();
    const found = await tried(() => get("/api/mark/regions", { image: name }));
    if (!found) return;
    this.name = name;
    this.title.textContent = name;
    this.saved.textContent = "";
    this.stage.view.classList.toggle("broken", Boolean(found.problem));
    if (found.problem) say(`${name}: ${found.problem}.`, "error");
    else this.stage.show(address("/api/mark/photograph", { image: name }), found.width, found.height);
    this.broken = Boolean(found.problem);
    this.take(found, found.regions.length ? 0 : -1);
    this.stage.view.focus({ preventScroll: true });
  }

  // Takes over what the server says stands there.
  take(found, chosen) {
    this.version = found.version;
    this.regions = found.regions.map((region) => ({ ...region, ...(region.box ?? { x: 0, y: 0, width: found.width, height: found.height }), whole: !region.box }));
    this.stage.set(this.regions, chosen);
    this.panel();
    this.showChecks();
  }

  pull(boxes) {
    this.regions = boxes;
    for (const region of boxes) if (region.whole && !(region.x === 0 && region.y === 0 && region.width === this.stage.width && region.height === this.stage.height)) region.whole = false;
  }

  defaults(box) {
    const here = this.regions.findLast?.((region) => region !== box && region.lesion_id);
    const previous = JSON.parse(sessionStorage.previous ?? "{}");
    const folder = this.name.split("/").slice(0, -1).pop();
    Object.assign(box, {
      label: this.folder.classes.includes(folder) ? folder : "",
      lesion_id: here?.lesion_id ?? previous.lesion_id ?? "",
      patient_id: here?.patient_id ?? previous.patient_id ?? "",
      place: null,
    });
  }

  describe(number) {
    const region = this.stage.boxes[number];
    const text = region.suggested ? "Suggestion" : region.label || "no class";
    return { text: `${number + 1} ${text}`, tone: this.folder.classes.indexOf(region.label), suggested: region.suggested };
  }

  // --- saving: one request after the other, each with the version the last one gave ---

  save() {
    const name = this.name;
    this.saved.textContent = "Saving …";
    this.queue = this.queue.then(() => this.put(name)).catch((error) => this.refused(error));
    return this.queue;
  }

  async put(name) {
    if (name !== this.name) return;
    const held = this.regions.filter((region) => !region.suggested);
    const regions = held.map(({ label, lesion_id, patient_id, place, whole, x, y, width, height }) => ({ label, lesion_id, patient_id, place, box: whole ? null : { x, y, width, height } }));
    const found = await send("PUT", "/api/mark/regions", { client, image: name, version: this.version, regions });
    if (name !== this.name) return;
    this.version = found.version;
    // Rows that stay keep their order and new ones follow: as the server wrote them, so they are numbered here.
    const kept = held.filter((region) => region.place !== null).sort((one, two) => one.place - two.place);
    [...kept, ...held.filter((region) => region.place === null)].forEach((region, place) => { region.place = place; });
    this.saved.textContent = "Saved";
    this.folder.changed(name, held);
  }

  refused(error) {
    if (!(error instanceof Refused)) throw error;
    this.saved.textContent = "Not saved";
    if (error.status !== 409) { say(error.message, "error"); return; }
    const box = say(`${this.name} was changed by somebody else. Nothing was overwritten.`, "error", [
      h("button", { type: "button", onclick: async () => { box.remove(); await this.reload(); } }, "Show it as it is now"),
      h("button", { type: "button", onclick: async () => { box.remove(); await this.join(); } }, "Add mine to it"),
    ]);
  }

  async reload() {
    const found = await tried(() => get("/api/mark/regions", { image: this.name }));
    if (found) { this.take(found, found.regions.length ? 0 : -1); this.saved.textContent = ""; }
  }

  async join() {
    const mine = this.regions.filter((region) => !region.suggested);
    await this.reload();
    const there = new Set(this.regions.map((region) => [region.x, region.y, region.width, region.height].join()));
    const added = mine.filter((region) => !there.has([region.x, region.y, region.width, region.height].join())).map((region) => ({ ...region, place: null }));
    this.regions = [...this.regions, ...added];
    this.stage.set(this.regions, this.regions.length - 1);
    this.panel();
    await this.save();
  }

  // Somebody has written the manifest; this photograph's rows may be others now.
  async look() {
    await this.queue;
    const found = await tried(() => get("/api/mark/regions", { image: this.name }));
    if (!found || found.version === this.version) return;
    this.take(found, found.regions.length ? 0 : -1);
    say(`${this.name}: the manifest was changed by somebody else; this is how it is now.`, "info");
  }

  async undo() {
    clearTimeout(this.stage.timer);
    await this.queue;
    const found = await tried(() => send("POST", "/api/mark/undo", { client }));
    if (!found) return;
    if (found.image === this.name) this.take(found, found.regions.length - 1);
    else { this.name = null; location.hash = `mark/${encodeURIComponent(found.image)}`; }
    this.saved.textContent = "Taken back";
    this.folder.changed(found.image, found.regions);
  }

  go(step, unmarked) {
    const next = this.folder.neighbour(this.name, step, unmarked);
    if (next) location.hash = `mark/${encodeURIComponent(next)}`;
    else say(unmarked ? "No unmarked photograph follows." : "There is none further.");
  }

  key(event) {
    if (!this.element.isConnected) return;
    const typing = event.target.matches?.("input, textarea, select");
    const undo = (event.ctrlKey || event.metaKey) && event.key === "z";
    if (undo && !typing) this.undo();
    else if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    else if (event.key === "PageDown") this.go(1, false);
    else if (event.key === "PageUp") this.go(-1, false);
    else if (typing) return;
    else if (event.key === "u") this.go(1, true);
    else if (/^[1-9]$/.test(event.key) && this.folder.classes[event.key - 1] && this.chosen) this.assign("label", this.folder.classes[event.key - 1]);
    else return;
    event.preventDefault();
  }

  // --- beside the photograph ---

  get chosen() {
    return this.stage.boxes[this.stage.chosen];
  }

  assign(name, value) {
    const region = this.chosen;
    if (!region || region[name] === value) return;
    region[name] = value;
    if (name === "label" && value && !this.folder.classes.includes(value)) this.folder.classes = [...this.folder.classes, value];
    this.stage.draw();
    this.save();
    this.refresh();
  }

  panel() {
    this.regions = this.stage.boxes;
    const region = this.chosen;
    const buttons = h("div", { class: "row" },
      h("button", { type: "button", disabled: this.broken, onclick: () => this.stage.add() }, "New region"),
      h("button", { type: "button", disabled: this.broken, onclick: () => this.whole() }, "Whole photograph"),
      this.folder.state.model ? h("button", { type: "button", disabled: this.broken, onclick: () => this.suggest() }, "Suggest") : null);
    this.listed = h("div", {}, this.list());
    this.side.replaceChildren(buttons, this.listed, ...(region ? [region.suggested ? this.offered(region) : this.form(region)] : []));
  }

  list() {
    if (!this.regions.length) return h("p", { class: "hint" }, "Draw a box around the lesion: drag with the mouse or a finger, or press N.");
    return h("ol", { class: "regions", "aria-label": "Regions" }, ...this.regions.map((entry, number) => h("li", {},
      h("button", { type: "button", "aria-pressed": String(number === this.stage.chosen), onclick: () => this.stage.choose(number) }, `${number + 1}. ${entry.suggested ? "suggestion" : entry.label || "no class"}`, h("small", {}, entry.whole ? "whole photograph" : `${entry.width} × ${entry.height}`)))));
  }

  // What a field has changed is shown elsewhere too; the fields stay, so that nobody's cursor is lost.
  refresh() {
    const region = this.chosen;
    this.listed.replaceChildren(this.list());
    this.side.querySelector(".chips")?.replaceWith(this.chips(region));
    for (const field of this.side.querySelectorAll("[data-field]")) if (field !== document.activeElement) field.value = region[field.dataset.field];
  }

  chips(region) {
    return h("div", { class: "chips", role: "group", "aria-label": "Class" }, ...this.folder.classes.map((name, number) =>
      h("button", { type: "button", "aria-pressed": String(region.label === name), onclick: () => this.assign("label", name) }, number < 9 ? h("kbd", {}, String(number + 1)) : null, name)));
  }

  form(region) {
    const field = (name, text, more = {}) => h("label", {}, text, h("input", { type: "text", "data-field": name, maxlength: 200, autocomplete: "off", value: region[name], onchange: (event) => this.assign(name, event.target.value.trim()), ...more }));
    const known = h("datalist", { id: "classes" }, ...this.folder.classes.map((name) => h("option", { value: name })));
    const numbers = h("fieldset", { class: "numbers" }, h("legend", {}, "Pixels"), ...["x", "y", "width", "height"].map((name) =>
      h("label", {}, name, h("input", { type: "number", "data-field": name, min: name.length > 1 ? 1 : 0, step: 1, value: String(region[name]), onchange: (event) => this.measure(name, event.target.value) }))));
    return h("div", { class: "form" }, this.chips(region), field("label", "Class", { list: "classes" }), known,
      h("div", { class: "pair" }, field("lesion_id", "Lesion"), field("patient_id", "Patient")), numbers,
      h("div", { class: "row" }, h("button", { type: "button", class: "danger", onclick: () => this.stage.remove() }, "Delete region"), h("button", { type: "button", onclick: () => this.editClasses() }, "Edit classes")));
  }

  offered(region) {
    return h("div", { class: "form" }, h("p", {}, "A suggestion: where the network's evidence lies. It was trained to name lesions, not to find them. It is saved once you accept it."),
      h("div", { class: "row" },
        h("button", { type: "button", class: "primary", onclick: () => { delete region.suggested; this.stage.draw(); this.save(); this.panel(); } }, "Accept"),
        h("button", { type: "button", onclick: () => { this.stage.set(this.regions.filter((other) => other !== region), -1); this.panel(); } }, "Dismiss")));
  }

  measure(name, text) {
    const region = this.chosen, value = Math.round(Number(text));
    if (!Number.isFinite(value)) return;
    const right = name === "width" ? region.x + value : name === "x" ? value + region.width : region.x + region.width;
    const bottom = name === "height" ? region.y + value : name === "y" ? value + region.height : region.y + region.height;
    const { width, height } = this.stage;
    if (right > width || bottom > height || value < (name.length > 1 ? 1 : 0)) { say(`The region must lie inside ${width} × ${height} pixels.`, "error"); this.panel(); return; }
    region[name] = value;
    region.whole = false;
    this.stage.draw();
    this.save();
    this.refresh();
  }

  whole() {
    const box = { x: 0, y: 0, width: this.stage.width, height: this.stage.height, whole: true };
    if (this.regions.some((region) => region.whole)) { say("The whole photograph is a region already."); return; }
    this.regions.push(box);
    this.defaults(box);
    this.stage.set(this.regions, this.regions.length - 1);
    this.save();
    this.panel();
  }

  async suggest() {
    const answer = await tried(() => get("/api/mark/suggestion", { image: this.name }));
    if (!answer) return;
    if (!answer.box) { say("The network has nothing to suggest here."); return; }
    const box = { ...answer.box, suggested: true };
    this.defaults(box);
    this.stage.set([...this.regions.filter((region) => !region.suggested), box], this.regions.length);
    this.regions = this.stage.boxes;
    this.stage.choose(this.regions.length - 1);
  }

  editClasses() {
    const text = h("textarea", { rows: 8, "aria-label": "Classes, one a line, in the order of the number keys" }, this.folder.classes.join("\n"));
    const dialog = h("dialog", { "aria-label": "Classes" }, h("form", { method: "dialog" }, h("h3", {}, "Classes"), h("p", { class: "hint" }, "One a line; the first nine have the number keys. Rows of the manifest are not renamed."), text,
      h("div", { class: "row" }, h("button", { class: "primary", value: "keep" }, "Keep"), h("button", { value: "" }, "Cancel"))));
    dialog.addEventListener("close", async () => {
      dialog.remove();
      if (dialog.returnValue === "keep" && (await this.folder.nameClasses(text.value.split("\n").map((line) => line.trim()).filter(Boolean)))) { this.stage.draw(); this.panel(); }
    });
    document.body.append(dialog);
    dialog.showModal();
  }

  showChecks() {
    const found = (this.folder.found ?? []).filter((entry) => entry.image === this.name);
    this.notes.replaceChildren(...found.map((entry) => h("li", { class: entry.severity }, `${entry.what}. ${entry.remedy}`)));
  }
}
