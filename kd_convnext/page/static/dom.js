// Building blocks: elements, requests, messages. Text never becomes HTML here.

export function counted(number, noun) { // "1 photograph", "3 photographs"
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export class Refused extends Error {
  constructor(status, findings) {
    super(findings.map((f) => `${f.where}: ${f.what}. ${f.remedy}`).join("\n"));
    this.status = status;
    this.findings = findings;
  }
}

export async function ask(method, path, { query = {}, json, body } = {}) {
  const address = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query)) address.searchParams.set(name, value);
  const options = { method, headers: {}, credentials: "same-origin" };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers["content-type"] = "application/json";
  } else if (body !== undefined) options.body = body;
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Refused(0, [{ where: "server", what: "it does not answer", remedy: "Is the command still running?" }]);
  }
  if (response.ok) return response;
  let findings;
  try {
    ({ findings } = await response.json());
  } catch {
    findings = [{ where: "server", what: `it answers ${response.status}`, remedy: "Reload the page." }];
  }
  throw new Refused(response.status, findings);
}

export const get = async (path, query) => (await ask("GET", path, { query })).json();
export const send = async (method, path, json) => (await ask(method, path, { json })).json();

export function address(path, query) {
  return `${path}?${new URLSearchParams(query)}`;
}

export function say(text, kind = "info", actions = []) {
  const place = document.getElementById("messages");
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: () => box.remove() }, "×");
  const box = h("div", { class: `message ${kind}` }, h("p", {}, text), ...actions, close);
  place.append(box);
  while (place.children.length > 4) place.firstChild.remove();
  if (kind === "info") setTimeout(() => box.remove(), 6000);
  return box;
}

export async function tried(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(error.message, "error");
    return undefined;
  }
}

export const percent = (value) => `${(100 * value).toFixed(1)} %`;

export function debounced(work, wait) {
  let timer;
  return (...words) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...words), wait);
  };
}

const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7b4fa3", "#a0522d"];
export const colour = (number) => (number < 0 ? "#d11a6b" : PALETTE[number % PALETTE.length]);
