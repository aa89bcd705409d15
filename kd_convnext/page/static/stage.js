// A photograph with regions: draw, move, resize, delete by mouse, touch or keys; zoom and pan.
import { h, s, colour } from "./dom.js";

const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const SMALLEST = 4; // pixels on the screen; less is a click
const LARGEST_ZOOM = 12;

export class Stage {
  // hooks: changed(boxes) after each finished change, selected(number) when another region is chosen,
  // and describe(number) for what a region is called.
  constructor(hooks, name) {
    this.hooks = hooks;
    this.boxes = [];
    this.chosen = -1;
    this.width = this.height = 0;
    this.scale = 1;
    this.left = this.top = 0;
    this.hand = false;
    this.pointers = new Map();
    this.act = null;
    this.image = h("img", { alt: "", draggable: false, onerror: () => this.fail() });
    this.svg = s("svg", { role: "group", "aria-label": "Regions" });
    this.canvas = h("div", { class: "canvas" }, this.image, this.svg);
    this.view = h(
      "div",
      {
        class: "view", tabIndex: 0, role: "group", "aria-label": name,
        "aria-description": "N draws a region, arrows move it, Alt and arrows resize it, Delete removes it, plus and minus zoom, F shows all",
      },
      this.canvas,
    );
    this.handButton = h("button", { type: "button", "aria-pressed": "false", title: "Move the picture (or hold the space bar)", onclick: () => this.useHand(!this.hand) }, "Pan");
    this.zoomShown = h("output", { "aria-label": "Zoom" }, "100 %");
    this.tools = h(
      "div",
      { class: "stage-tools", role: "toolbar", "aria-label": "View" },
      this.handButton,
      h("button", { type: "button", "aria-label": "Zoom out", onclick: () => this.zoom(1 / 1.4) }, "−"),
      this.zoomShown,
      h("button", { type: "button", "aria-label": "Zoom in", onclick: () => this.zoom(1.4) }, "+"),
      h("button", { type: "button", onclick: () => this.fit() }, "Fit"),
    );
    this.element = h("div", { class: "stage" }, this.view, this.tools);
    this.listen();
  }

  // Until the next photograph is shown nothing can be drawn.
  clear() {
    this.width = this.height = 0;
    delete this.view.dataset.ready;
    this.set([]);
  }

  show(source, width, height) {
    this.image.src = source;
    this.view.dataset.ready = "";
    this.width = width;
    this.height = height;
    this.image.width = width;
    this.image.height = height;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.fit();
  }

  fail() {
    this.view.classList.add("broken");
  }

  set(boxes, chosen = -1) {
    this.boxes = boxes;
    this.chosen = Math.min(chosen, boxes.length - 1);
    this.draw();
  }

  choose(number, focus = false) {
    this.chosen = number;
    this.draw();
    if (focus) this.svg.querySelector(`[data-box="${number}"]`)?.focus({ preventScroll: true });
    this.hooks.selected?.(number);
  }

  add() {
    const width = Math.max(1, Math.round(this.width / 3)), height = Math.max(1, Math.round(this.height / 3));
    const box = { x: Math.round((this.width - width) / 2), y: Math.round((this.height - height) / 2), width, height };
    this.boxes.push(box);
    this.hooks.added?.(box);
    this.choose(this.boxes.length - 1, true);
    this.hooks.changed(this.boxes);
  }

  remove(number = this.chosen) {
    if (number < 0 || number >= this.boxes.length) return;
    this.boxes.splice(number, 1);
    this.choose(Math.min(number, this.boxes.length - 1));
    this.view.focus({ preventScroll: true });
    this.hooks.changed(this.boxes);
  }

  // --- view ---

  fit() {
    const { clientWidth, clientHeight } = this.view;
    if (!this.width || !clientWidth) return;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height, LARGEST_ZOOM) || 1;
    this.left = (clientWidth - this.width * this.scale) / 2;
    this.top = (clientHeight - this.height * this.scale) / 2;
    this.place();
  }

  zoom(factor, x = this.view.clientWidth / 2, y = this.view.clientHeight / 2) {
    const smallest = Math.min(this.view.clientWidth / this.width, this.view.clientHeight / this.height, 1) / 2;
    const scale = Math.min(LARGEST_ZOOM, Math.max(smallest, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.place();
  }

  place() {
    this.canvas.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.scale})`;
    this.svg.style.setProperty("--unit", 1 / this.scale);
    this.zoomShown.textContent = `${Math.round(100 * this.scale)} %`;
    this.draw();
  }

  useHand(on) {
    this.hand = on;
    this.handButton.setAttribute("aria-pressed", String(on));
    this.view.classList.toggle("hand", on);
  }

  // --- drawing ---

  draw() {
    const focused = document.activeElement?.closest?.("[data-box]");
    const held = focused && this.svg.contains(focused) ? focused.dataset.box : null;
    this.svg.replaceChildren(...this.boxes.map((box, number) => this.region(box, number)));
    if (held !== null) this.svg.querySelector(`[data-box="${held}"]`)?.focus({ preventScroll: true });
  }

  region(box, number) {
    const chosen = number === this.chosen, unit = 1 / this.scale;
    const { text, tone, suggested } = this.hooks.describe?.(number) ?? { text: `Region ${number + 1}`, tone: 0 };
    const stroke = colour(tone);
    const size = `${box.width} by ${box.height} pixels at ${box.x}, ${box.y}`;
    const group = s("g", {
      tabindex: 0, role: "button", "aria-pressed": String(chosen), "data-box": number, "aria-label": `${text}, ${size}`,
      class: `region${chosen ? " chosen" : ""}${suggested ? " suggested" : ""}`,
    });
    group.addEventListener("focus", () => { if (this.chosen !== number) this.choose(number, true); });
    group.append(s("rect", { class: "halo", x: box.x, y: box.y, width: box.width, height: box.height }));
    group.append(s("rect", { class: "edge", x: box.x, y: box.y, width: box.width, height: box.height, stroke }));
    const label = s("text", { x: box.x + 6 * unit, y: box.y + 16 * unit, "font-size": 13 * unit });
    label.textContent = text;
    group.append(s("rect", { class: "label", x: box.x, y: box.y, height: 22 * unit, width: Math.min((text.length * 7.4 + 12) * unit, Math.max(box.width, 60 * unit)), fill: stroke }), label);
    if (chosen) {
      for (const handle of HANDLES) {
        const x = box.x + (handle.includes("w") ? 0 : handle.includes("e") ? box.width : box.width / 2);
        const y = box.y + (handle.includes("n") ? 0 : handle.includes("s") ? box.height : box.height / 2);
        group.append(s("circle", { class: "grip", cx: x, cy: y, r: 14 * unit, "data-handle": handle }));
        group.append(s("rect", { class: "handle", x: x - 4.5 * unit, y: y - 4.5 * unit, width: 9 * unit, height: 9 * unit, stroke }));
      }
    }
    return group;
  }

  // --- pointer and keys ---

  listen() {
    this.view.addEventListener("pointerdown", (event) => this.down(event));
    this.view.addEventListener("pointermove", (event) => this.move(event));
    this.view.addEventListener("pointerup", (event) => this.up(event));
    this.view.addEventListener("pointercancel", (event) => this.up(event, true));
    this.view.addEventListener("wheel", (event) => {
      event.preventDefault();
      const at = this.at(event);
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), at.x, at.y);
    }, { passive: false });
    this.view.addEventListener("dblclick", (event) => { if (!event.target.closest("[data-box]")) this.fit(); });
    this.view.addEventListener("keydown", (event) => this.key(event));
    this.view.addEventListener("keyup", (event) => { if (event.key === " ") this.view.classList.remove("panning"); });
    new ResizeObserver(() => this.fit()).observe(this.view);
  }

  at(event) {
    const frame = this.view.getBoundingClientRect();
    return { x: event.clientX - frame.left - this.view.clientLeft, y: event.clientY - frame.top - this.view.clientTop };
  }

  pixel(at) {
    const x = (at.x - this.left) / this.scale, y = (at.y - this.top) / this.scale;
    return { x: Math.min(this.width, Math.max(0, x)), y: Math.min(this.height, Math.max(0, y)) };
  }

  down(event) {
    if (event.button > 1 || !this.width) return;
    const at = this.at(event);
    this.pointers.set(event.pointerId, at);
    this.view.setPointerCapture(event.pointerId);
    if (this.pointers.size === 2) {
      if (this.act?.kind === "draw") this.set(this.boxes.slice(0, -1));
      else if (this.act?.before) { Object.assign(this.boxes[this.chosen], this.act.before); this.draw(); }
      this.act = { kind: "pinch", ...this.pinch() };
      return;
    }
    const handle = event.target.dataset?.handle;
    const number = event.target.closest?.("[data-box]")?.dataset.box;
    const start = this.pixel(at);
    const panning = this.hand || event.button === 1 || this.view.classList.contains("panning");
    if (panning) this.act = { kind: "pan", at, left: this.left, top: this.top };
    else if (number !== undefined) {
      this.choose(Number(number), true);
      this.act = { kind: handle ? "resize" : "move", handle, start, before: { ...this.boxes[this.chosen] } };
    } else {
      this.view.focus({ preventScroll: true });
      this.act = { kind: "ready", at, start };
    }
    event.preventDefault();
  }

  move(event) {
    if (!this.pointers.has(event.pointerId) || !this.act) return;
    const at = this.at(event), act = this.act;
    this.pointers.set(event.pointerId, at);
    if (act.kind === "pinch" && this.pointers.size === 2) {
      const now = this.pinch();
      this.left += now.x - act.x;
      this.top += now.y - act.y;
      this.zoom(now.apart / act.apart, now.x, now.y);
      Object.assign(act, now);
    } else if (act.kind === "pan") {
      this.left = act.left + at.x - act.at.x;
      this.top = act.top + at.y - act.at.y;
      this.place();
    } else if (act.kind === "ready" && Math.hypot(at.x - act.at.x, at.y - act.at.y) > SMALLEST) {
      const box = { x: 0, y: 0, width: 1, height: 1 };
      this.boxes.push(box);
      this.hooks.added?.(box);
      this.chosen = this.boxes.length - 1;
      act.kind = "draw";
    }
    const here = this.pixel(at);
    if (act.kind === "draw") this.span(act.start.x, act.start.y, here.x, here.y);
    else if (act.kind === "move") this.shift(act.before, here.x - act.start.x, here.y - act.start.y);
    else if (act.kind === "resize") this.stretch(act.before, act.handle, here.x - act.start.x, here.y - act.start.y);
    if (["draw", "move", "resize"].includes(act.kind)) this.draw();
  }

  up(event, cancelled = false) {
    this.pointers.delete(event.pointerId);
    const act = this.act;
    if (!act || (act.kind === "pinch" && this.pointers.size)) return;
    this.act = null;
    if (cancelled && act.kind === "draw") this.set(this.boxes.slice(0, -1));
    else if (act.kind === "draw") { this.choose(this.chosen, true); this.hooks.changed(this.boxes); }
    else if (act.kind === "ready" && this.chosen >= 0) this.choose(-1);
    else if (act.before && !same(act.before, this.boxes[this.chosen])) { this.draw(); this.hooks.changed(this.boxes); }
  }

  pinch() {
    const [one, two] = [...this.pointers.values()];
    return { x: (one.x + two.x) / 2, y: (one.y + two.y) / 2, apart: Math.max(1, Math.hypot(one.x - two.x, one.y - two.y)) };
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const box = this.boxes[this.chosen];
    const plain = !event.ctrlKey && !event.metaKey;
    if (steps && plain) {
      const length = event.shiftKey ? 10 : 1, before = box && { ...box };
      if (!box) { this.left -= 40 * steps[0]; this.top -= 40 * steps[1]; this.place(); }
      else if (event.altKey) this.stretch(before, "se", steps[0] * length, steps[1] * length);
      else this.shift(before, steps[0] * length, steps[1] * length);
      if (box && !same(before, box)) { this.draw(); this.soon(); }
    } else if ((event.key === "Delete" || event.key === "Backspace") && box) this.remove();
    else if (event.key === "n" && plain) this.add();
    else if ((event.key === "+" || event.key === "=") && plain) this.zoom(1.4);
    else if (event.key === "-" && plain) this.zoom(1 / 1.4);
    else if (event.key === "f" && plain) this.fit();
    else if (event.key === "Escape" && box) { this.choose(-1); this.view.focus(); }
    else if (event.key === " ") this.view.classList.add("panning");
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // Arrow keys come in rows: the change is told once they rest.
  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.hooks.changed(this.boxes), 250);
  }

  // --- geometry, always whole pixels inside the photograph ---

  span(x0, y0, x1, y1) {
    const left = Math.min(Math.floor(Math.min(x0, x1)), this.width - 1), top = Math.min(Math.floor(Math.min(y0, y1)), this.height - 1);
    const right = Math.min(this.width, Math.max(left + 1, Math.ceil(Math.max(x0, x1))));
    const bottom = Math.min(this.height, Math.max(top + 1, Math.ceil(Math.max(y0, y1))));
    Object.assign(this.boxes[this.chosen], { x: left, y: top, width: right - left, height: bottom - top });
  }

  shift(before, dx, dy) {
    const x = Math.min(this.width - before.width, Math.max(0, Math.round(before.x + dx)));
    const y = Math.min(this.height - before.height, Math.max(0, Math.round(before.y + dy)));
    Object.assign(this.boxes[this.chosen], { x, y });
  }

  stretch(before, handle, dx, dy) {
    const held = (value) => Math.round(value);
    let x0 = before.x, y0 = before.y, x1 = before.x + before.width, y1 = before.y + before.height;
    if (handle.includes("w")) x0 = held(x0 + dx);
    if (handle.includes("e")) x1 = held(x1 + dx);
    if (handle.includes("n")) y0 = held(y0 + dy);
    if (handle.includes("s")) y1 = held(y1 + dy);
    const clip = (value, most) => Math.min(most, Math.max(0, value));
    this.span(clip(x0, this.width), clip(y0, this.height), clip(x1, this.width), clip(y1, this.height));
  }
}

const same = (one, two) => two && ["x", "y", "width", "height"].every((name) => one[name] === two[name]);
