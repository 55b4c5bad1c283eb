// LoRA Train's loss curve: the loss of each step, its running mean over it, and the held-out loss where it is measured.
// @ts-check
import uPlot from "./vendor/uplot.mjs?v=1.6.32";
import { getLosses } from "./jobs.mjs?v=2";
import { addStyle } from "./widget.mjs?v=2";

/** Milliseconds between two drawings. */
const PAUSE = 400;
/** The most losses that are drawn: more than a node has pixels. */
const MOST = 600;
/** Steps that the mean is over: as many as the server's `loss`, and a twentieth of a long training. */
const meanOf = (count) => Math.max(20, 10 * Math.round(count / 200));
const WHOLE = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5].map((power) => n * 10 ** power)).sort((a, b) => a - b);
const PARTS = `
  <div class="plot" role="img"></div>
  <div class="legend" hidden>
    <span class="raw">loss</span><span class="mean"></span><span class="held-out">held-out</span
    ><span class="best"></span><span class="base">without the LoRA</span><span class="grid"></span>
  </div>
  <div class="muted">The loss curve appears here while it trains.</div>`;
const STYLE = `
@import url("${new URL("./vendor/uplot.css", import.meta.url)}");
.livelora.monitor { display: flex; flex-direction: column; }
.livelora.monitor > * { flex: none; }
.livelora.monitor .curve { flex: 1 1 124px; min-height: 84px; display: flex; flex-direction: column; color: var(--descrip-text);
  --loss: color-mix(in srgb, var(--p-primary-color, var(--primary-background, #4a9)) 80%, var(--input-text));
  --held-out: color-mix(in srgb, var(--color-gold-600, #fd9903) 80%, var(--input-text)); }
.livelora .plot { flex: 1; min-height: 0; position: relative; overflow: hidden; }
.livelora .plot > * { position: absolute; }
.livelora .legend { display: flex; flex-wrap: wrap; gap: 0 10px; font-size: 10px; line-height: 14px; }
.livelora .legend span::before { content: ""; display: inline-block; width: 14px; margin-right: 4px; vertical-align: middle;
  border-top: 2px solid; }
.livelora .legend .raw::before { border-color: color-mix(in srgb, var(--loss) 30%, transparent); }
.livelora .legend .mean::before { border-color: var(--loss); }
.livelora .legend :is(.held-out, .best, .base)::before { border-color: var(--held-out); }
.livelora .legend .base::before { border-top-style: dashed; }
.livelora .legend .best::before { width: 4px; height: 4px; border-width: 2px; border-style: solid; border-radius: 50%; }
.livelora .legend .grid { display: none; }
.livelora .legend .grid::before { border-color: color-mix(in srgb, var(--border-color) 60%, transparent); }
`;

/** Redraws a curve, by its element. */
const drawings = new WeakMap();
new MutationObserver(() => document.querySelectorAll(".livelora .curve").forEach((curve) => drawings.get(curve)?.()))
  .observe(document.documentElement, { attributes: true, attributeFilter: ["class", "style"] });

/** Adds a curve of a job's losses to an element. Two points make one; until then it keeps the room free. */
export function addCurve(parent) {
  addStyle("livelora-curve", STYLE);
  const element = document.createElement("div");
  element.className = "curve";
  element.innerHTML = PARTS;
  parent.append(element);
  const plot = element.querySelector(".plot");
  const known = { job: undefined, steps: [], losses: [], facts: {} };
  let timer = null;
  const draw = () => {
    timer = null;
    curve.chart = drawn(element, plot, curve.chart, known);
  };
  const drawSoon = () => {
    timer ??= setTimeout(draw, PAUSE);
  };
  const curve = {
    /** The chart, once there is one. */
    chart: null,
    /** Takes in how far a job is now. What it lost or does again is forgotten. */
    tell(facts) {
      const { steps, losses } = known;
      if (facts.job !== known.job) steps.length = losses.length = 0;
      while (steps.at(-1) > facts.step) {
        steps.pop();
        losses.pop();
      }
      if (facts.step_loss != null && steps.at(-1) !== facts.step) {
        steps.push(facts.step);
        losses.push(facts.step_loss);
      }
      Object.assign(known, { job: facts.job, facts });
      drawSoon();
    },
    /** Takes in the losses that a job has on record; those of later steps, which were told meanwhile, stay. */
    async fill(facts) {
      const { steps, losses } = await getLosses(facts);
      if (facts.job !== known.job) return;
      const later = known.steps.findIndex((step) => step > (steps.at(-1) ?? 0));
      if (later >= 0) {
        steps.push(...known.steps.slice(later));
        losses.push(...known.losses.slice(later));
      }
      Object.assign(known, { steps, losses });
      drawSoon();
    },
  };
  drawings.set(element, drawSoon);
  new ResizeObserver(drawSoon).observe(plot);
  return curve;
}

/** Draws what is known, and gives the chart; null without a curve. */
function drawn(element, plot, chart, { steps, losses, facts }) {
  const held = facts.validation ?? [];
  const empty = steps.length < 2 && held.length < 2;
  const legend = element.querySelector(".legend");
  plot.hidden = legend.hidden = empty;
  element.querySelector(".muted").hidden = !empty;
  if (empty) {
    chart?.destroy();
    plot.removeAttribute("aria-label");
    return null;
  }
  showLegend(legend, steps, facts);
  plot.setAttribute("aria-label", `Loss curve up to step ${facts.step}. The loss in words stands beside it.`);
  const size = { width: plot.clientWidth, height: plot.clientHeight };
  if (!size.width || !size.height) return chart; // not on the page at the moment
  const data = tables(steps, losses, facts);
  chart ??= new uPlot(options(legend, size), null, plot);
  chart.batch(() => {
    if (chart.width !== size.width || chart.height !== size.height) chart.setSize(size);
    chart.setData(data);
  });
  return chart;
}

/** Names what is there to see. */
function showLegend(legend, steps, { validation, validation_base: base, best }) {
  const show = (name, there, text) => {
    const entry = legend.querySelector(`.${name}`);
    entry.hidden = !there;
    if (text) entry.textContent = text;
  };
  show("raw", steps.length);
  show("mean", steps.length > 1, `mean of ${Math.min(steps.length, meanOf(steps.length))} steps`);
  show("held-out", validation.length);
  show("best", best, `best, step ${best?.[0]}`);
  show("base", base != null);
}

/** The columns of the chart: steps, losses, their mean, held-out losses, the best one, and that of the base model. */
function tables(steps, losses, { validation, validation_base: base, best }) {
  const mean = runningMean(losses, meanOf(losses.length));
  const places = thinned(losses);
  const ends = [...(steps.length ? [steps[0], steps.at(-1)] : []), ...validation.map(([step]) => step)];
  const [first, last] = [Math.min(...ends), Math.max(...ends)];
  return uPlot.join([
    [places.map((i) => steps[i]), places.map((i) => losses[i]), places.map((i) => mean[i])],
    [validation.map(([step]) => step), validation.map(([, loss]) => loss)],
    best ? [[best[0]], [best[1]]] : [[], []],
    base == null ? [[], []] : [[first, last], [base, base]],
  ]);
}

/** The mean of each loss and the ones before it, `width` in all where there are so many. */
function runningMean(losses, width) {
  let sum = 0;
  return losses.map((loss, i) => {
    sum += loss - (i < width ? 0 : losses[i - width]);
    return sum / Math.min(i + 1, width);
  });
}

/** The places of the losses that are drawn: all, or the lowest and the highest of each of MOST / 2 stretches, and the
 * last. */
function thinned(losses) {
  const all = losses.map((_, i) => i);
  if (all.length <= MOST) return all;
  const stretch = Math.ceil((2 * all.length) / MOST);
  const places = new Set();
  for (let at = 0; at < all.length; at += stretch) {
    let [low, high] = [at, at];
    for (const i of all.slice(at, at + stretch)) {
      if (losses[i] < losses[low]) low = i;
      if (losses[i] > losses[high]) high = i;
    }
    places.add(Math.min(low, high)).add(Math.max(low, high));
  }
  return [...places.add(all.length - 1)];
}

/** Every line has the colour of its name in the legend, at each drawing: so it follows the theme. */
function options(legend, size) {
  const colour = (name) => () => getComputedStyle(legend.querySelector(`.${name}`), "::before").borderTopColor;
  const axis = { stroke: () => getComputedStyle(legend).color, font: "10px sans-serif", ticks: { show: false }, gap: 3 };
  const line = (name, width, more) => ({ stroke: colour(name), width, points: { show: false }, ...more });
  const dots = (size, show) => ({ show, size, fill: colour("held-out") });
  const apart = (chart) => chart.data[3].filter((loss) => loss != null).length < chart.width / 10;
  return {
    ...size,
    legend: { show: false },
    cursor: { show: false },
    padding: [6, 14, 0, 0],
    scales: { x: { time: false }, y: { range: heights } },
    axes: [{ ...axis, size: 18, incrs: WHOLE, space: 40, grid: { show: false } },
      { ...axis, size: 36, space: 22, grid: { stroke: colour("grid"), width: 1 } }],
    series: [{}, line("raw", 1), line("mean", 2), line("held-out", 1.5, { points: dots(5, apart) }),
      line("best", 0, { paths: () => null, points: dots(10, true) }), line("base", 1, { dash: [5, 4] })],
  };
}

/** From the lowest to the highest that is drawn; of single losses, all but the highest and the lowest twentieth count. */
function heights(chart) {
  const [, raw, ...others] = chart.data.map((column) => column.filter((value) => value != null));
  const sorted = raw.sort((a, b) => a - b);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? [];
  const all = [at(0.05), at(0.95), ...others.flat()].flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const room = 0.05 * (high - low || Math.abs(high) || 1);
  return [low - room, high + room];
}
