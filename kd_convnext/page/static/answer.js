// An answer as a person reads it: verdict, bars, prediction set, gate, heat map, training cases.
import { h, percent } from "./dom.js";

export function verdict(answer, model) {
  const combined = answer.photographs > 1;
  const of = combined ? `${answer.photographs} photographs of ${answer.lesion_id}` : answer.image;
  const inside = new Set(answer.prediction_set ?? []);
  const sorted = Object.entries(answer.probabilities);
  const bars = h("ul", { class: "bars", "aria-label": "Probabilities" }, ...sorted.map(([name, value]) => bar(name, value, inside.has(name), name === answer.prediction)));
  return h("article", { class: "answer", "aria-label": `Answer for ${of}` },
    h("p", { class: "of" }, combined ? `Lesion ${answer.lesion_id}: ${answer.photographs} photographs combined` : `${answer.image}${answer.box ? ` · ${answer.box.width} × ${answer.box.height} pixels at ${answer.box.x}, ${answer.box.y}` : " · whole photograph"}`),
    headline(answer), bars, setLine(answer, model), gate(answer));
}

function headline(answer) {
  if (!answer.abstain) return h("div", { class: "headline" }, h("strong", {}, answer.prediction), h("span", {}, percent(answer.probabilities[answer.prediction])));
  return h("div", { class: "headline abstains" }, h("strong", {}, "No answer"),
    h("ul", {}, ...answer.reasons.map((reason) => h("li", {}, plain(reason)))),
    h("p", {}, `A person should decide. Most probable: ${answer.prediction}, ${percent(answer.probabilities[answer.prediction])}.`));
}

// The server's reasons are whole phrases; this makes them sentences.
function plain(reason) {
  if (reason.startsWith("unlike")) return `This photograph is ${reason}.`;
  return `${reason[0].toUpperCase()}${reason.slice(1)}.`;
}

function bar(name, value, inside, first) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${100 * value}%`;
  return h("li", { class: `${inside ? "inside" : ""}${first ? " first" : ""}` },
    h("span", { class: "class" }, name), h("span", { class: "track" }, fill),
    h("data", { value: String(value), title: String(value) }, percent(value)),
    h("span", { class: "mark" }, inside ? "● in the set" : ""));
}

function setLine(answer, model) {
  if (answer.prediction_set === null) return h("p", { class: "hint" }, "Not calibrated: there is no prediction set and no gate.");
  const coverage = Number((100 * model.calibration.coverage).toPrecision(6));
  const names = answer.prediction_set.join(", ") || "no class";
  return h("p", { class: "hint" }, `● Prediction set at ${coverage} % coverage: `, h("strong", {}, names), `. Of lesions like those of the calibration, ${coverage} % have their class in such a set.`);
}

function gate(answer) {
  if (answer.gate_score === null) return null;
  const passes = answer.gate_score <= 1, fill = h("span", { class: "fill" });
  fill.style.width = `${Math.min(100, 50 * answer.gate_score)}%`;
  return h("div", { class: `gate ${passes ? "passes" : "stops"}` }, h("span", {}, passes ? "Gate: looks like the training photographs" : "Gate: does not look like the training photographs"),
    h("span", { class: "track", "aria-hidden": "true" }, fill, h("span", { class: "limit" })), h("data", { value: String(answer.gate_score), title: String(answer.gate_score) }, `${answer.gate_score.toFixed(2)} (up to 1 passes)`));
}

export function evidence(found) {
  const heat = h("img", { class: "over", src: found.heat, alt: `Heat map over the crop: evidence for ${found.target}` });
  const slider = h("input", { type: "range", min: "0", max: "100", value: "100", "aria-label": "Opacity of the heat map", oninput: (event) => { heat.style.opacity = event.target.value / 100; } });
  return h("section", { class: "evidence", "aria-label": "What speaks for it" },
    h("div", { class: "pictures" },
      h("figure", {}, h("img", { src: found.crop, alt: "The region as it was cut out" }), h("figcaption", {}, "Region")),
      h("figure", {}, h("div", { class: "layers" }, h("img", { src: found.crop, alt: "" }), heat), h("figcaption", {}, found.evidence ? `Evidence for ${found.target}` : `No evidence for ${found.target}`, h("label", { class: "slider" }, "Opacity", slider)))),
    h("p", { class: "hint" }, "A heat map shows what the network used, not what is there: it is no finding."),
    cases(found));
}

function cases(found) {
  if (!found.neighbours.length) return h("p", { class: "hint" }, `No training cases: ${found.cases_problem || "there are none"}.`);
  return h("div", {}, h("h3", {}, "Training cases most like it"), h("ul", { class: "cases" }, ...found.neighbours.map((entry) =>
    h("li", {}, h("img", { src: entry.picture, alt: `Training case ${entry.image}` }), h("strong", {}, entry.label), h("small", {}, `similarity ${entry.similarity.toFixed(3)}`), h("small", {}, entry.lesion_id ? `lesion ${entry.lesion_id}` : entry.image)))));
}
