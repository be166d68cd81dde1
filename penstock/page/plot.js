// A small plot of the last five minutes. In: a value for each second, with an upper one beside it if there is one,
// and marks. Out: a figure with SVG. Not known here: what the values mean.
import { element } from "./nodes.js";

export const SECONDS = 300;
const HEIGHT = 100;
const SVG = "http://www.w3.org/2000/svg";

export class Plot {
  #value = element("span", { className: "value" });
  #top = element("span");
  #svg = shape("svg", { viewBox: `0 0 ${SECONDS} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  #marks = shape("g");
  #area = shape("path", { class: "area" });
  #upper = shape("path", { class: "upper" });
  #lower = shape("path");
  #title;
  #inWords;

  /** `inWords(value)` writes a value. The lower line is the plot's own, the upper one is dashed. */
  constructor(title, hint, inWords) {
    this.#title = title;
    this.#inWords = inWords;
    this.#svg.append(shape("line", { x1: 0, x2: SECONDS, y1: HEIGHT, y2: HEIGHT }), this.#marks, this.#area, this.#upper, this.#lower);
    this.node = element("figure", { className: "plot" },
      element("figcaption", {}, title, element("small", { textContent: hint }), this.#value),
      this.#svg,
      element("div", { className: "axis" }, element("span", { textContent: "5 min ago" }), this.#top, element("span", { textContent: "now" })));
  }

  /**
   * Draw `points`, `[{time, value, upper}]` (null where there is none), up to the time `now` in seconds. `marks` are
   * `[{time, kind}]`.
   */
  draw(points, marks, now) {
    const shown = points.filter(({ time, value }) => value !== null && time > now - SECONDS);
    const greatest = Math.max(0, ...shown.map(({ value, upper }) => Math.max(value, upper ?? 0)));
    const place = ({ time }, value) => `${(SECONDS - (now - time)).toFixed(1)} ${(HEIGHT - (HEIGHT * value) / (greatest || 1)).toFixed(1)}`;
    const runs = inRuns(shown);
    const lines = (valueOf) => runs.map((run) => `M${run.map((each) => place(each, valueOf(each))).join("L")}`).join("");
    this.#lower.setAttribute("d", lines(({ value }) => value));
    this.#upper.setAttribute("d", lines(({ value, upper }) => upper ?? value));
    this.#area.setAttribute("d", runs.map((run) => `M${place(run[0], 0)}L${run.map((each) => place(each, each.value)).join("L")}L${place(run.at(-1), 0)}Z`).join(""));
    this.#marks.replaceChildren(...marks.filter(({ time }) => time > now - SECONDS).map(({ time, kind }) => {
      const x = SECONDS - (now - time);
      return shape("line", { class: `mark ${kind}`, x1: x, x2: x, y1: 0, y2: HEIGHT });
    }));
    const last = shown.at(-1);
    const isFresh = last !== undefined && now - last.time < 5;
    this.#value.textContent = isFresh ? this.#inWords(last.value) : "–";
    this.#top.textContent = shown.length ? `at most ${this.#inWords(greatest)}` : "no values";
    this.#svg.setAttribute("aria-label", `${this.#title}: now ${this.#value.textContent}, ${this.#top.textContent}`);
  }
}

/** Return the points in runs without a gap of more than 2 seconds. A single point becomes a short line. */
function inRuns(points) {
  const runs = [];
  for (const point of points) {
    const run = runs.at(-1);
    if (run && point.time - run.at(-1).time <= 2) run.push(point);
    else runs.push([{ ...point, time: point.time - 1 }, point]);
  }
  return runs;
}

function shape(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [each, value] of Object.entries(attributes)) made.setAttribute(each, value);
  return made;
}
