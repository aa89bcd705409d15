// The page's frame: which parts there are, and which one is shown.
import { get, h, say, tried } from "./dom.js";

const PARTS = { mark: ["Mark", "./mark.js"], ask: ["Ask", "./ask.js"], read: ["Read", "./read.js"] };
const main = document.getElementById("content");
const nav = document.getElementById("parts");
const built = {};
let state;

async function show() {
  const words = location.hash.slice(1).split("/");
  const first = state.mark ? "mark" : "ask";
  const name = available().includes(words[0]) ? words[0] : first;
  const rest = words.slice(1).map(decodeURIComponent).join("/");
  for (const link of nav.children) {
    if (link.dataset.part === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!built[name]) {
    const part = await import(PARTS[name][1]);
    built[name] = await part.create(state);
  }
  if (main.firstChild !== built[name].element) main.replaceChildren(built[name].element);
  document.title = `${PARTS[name][0]} · kd-convnext`;
  document.body.dataset.part = name;
  await built[name].open?.(rest);
}

function available() {
  return [state.mark && "mark", state.model && "ask", state.read && "read"].filter(Boolean);
}

state = await tried(() => get("/api/state"));
if (state) {
  for (const name of available()) nav.append(h("a", { href: `#${name}`, "data-part": name }, PARTS[name][0]));
  window.addEventListener("hashchange", show);
  window.addEventListener("unhandledrejection", (event) => say(String(event.reason?.message ?? event.reason), "error"));
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
  await show();
}
