// LiveLoRA in the browser: what its nodes show while a job runs. One file for each thing that is shown.
// @ts-check
import { app } from "../../scripts/app.js";
import { addFolds, renew } from "./advanced.mjs?v=2";
import { findNode, nodesOf, openGraph, setProperty } from "./canvas.mjs?v=2";
import { onEvent, onReconnected } from "./jobs.mjs?v=2";
import { addMonitor, showJob } from "./monitor.mjs?v=2";
import { addGallery, showSamples } from "./gallery.mjs?v=2";
import { notice, noticeBegin, settings } from "./notices.mjs?v=2";
import { addPicker, noteJob, offerJobs } from "./picker.mjs?v=2";
import { addReport } from "./report.mjs?v=2";
import { restoreRuns, watchRuns } from "./runs.mjs?v=2";
import { addSteps, showSteps } from "./steps.mjs?v=2";

const TRAIN = "LiveLoraTrain";
const PREVIEW = "LiveLoraPreview";
const LIVE = "LiveLoraLive";
const WIDGETS = {
  [TRAIN]: addTrain,
  [PREVIEW]: addGallery,
  LiveLoraDataset: addReport,
  LiveLoraDatasetFromImages: addReport,
  LiveLoraCaption: addReport,
  LiveLoraReview: addReport,
  [LIVE]: addLive,
  LiveLoraSave: addReport,
  LiveLoraMerge: addReport,
  LiveLoraMemoryPlan: (node) => addReport(node, 4, 160),
  LiveLoraQuantize: addReport,
};
const PICKERS = [LIVE, "LiveLoraGrid"];

function addTrain(node) {
  addMonitor(node);
  /** ComfyUI tells what a node put out also if it does not run it again: then no job begins. */
  node.livelora.report = ({ job: [job] = [] }) => {
    if (!job || node.properties.livelora_job) return;
    const preview = node.getInputNode(node.inputs.findIndex(({ name }) => name === "preview"));
    begin(job, node, preview);
  };
}

function addLive(node) {
  addSteps(node);
  addReport(node);
}

async function offer(nodes) {
  await offerJobs(nodes);
  nodesOf(LIVE).forEach(showSteps); // all of them: an answer to somebody's later question may be the first to come
}

/** Our nodes that show a job: those of the queued workflow, wherever it is open. */
function showing(job, ...types) {
  return nodesOf(...types).filter((node) => node.properties.livelora_job === job);
}

/** Workflow → the facts of the jobs that began while another one was open. */
const elsewhere = new Map();

/** Ties nodes to a job and shows it there. The workflow keeps that, so that a reload finds the job again. */
function begin(job, train, preview) {
  if (train?.comfyClass === TRAIN) setProperty(train, "livelora_job", job);
  if (preview?.comfyClass === PREVIEW) setProperty(preview, "livelora_job", job);
  showing(job, TRAIN, PREVIEW).forEach(restore);
}

async function restore(node) {
  const job = node.properties?.livelora_job;
  if (node.comfyClass === TRAIN) await showJob(node, job);
  if (node.comfyClass === PREVIEW) await showSamples(node, job);
}

function onJob(facts) {
  const { workflow } = facts;
  noticeBegin(facts);
  if (workflow === openGraph().id) beginAt(facts);
  else elsewhere.set(workflow, [...(elsewhere.get(workflow) ?? []), facts]);
  offer(nodesOf(...PICKERS));
}

function beginAt({ job, train_node: train, preview_node: preview }) {
  begin(job, findNode(train), findNode(preview));
}

function beginLate() {
  const { id } = openGraph();
  elsewhere.get(id)?.forEach(beginAt);
  elsewhere.delete(id);
}

function onProgress(facts) {
  const { job, state, step } = facts;
  notice(facts);
  noteJob(facts);
  showing(job, TRAIN).forEach((node) => node.livelora.show(facts));
  if (state === "training") return;
  nodesOf(LIVE).forEach(showSteps);
  if (state === "stopped" && !step) showing(job, PREVIEW).forEach(restore); // what was discarded has no pictures
  if (state === "queued") offer(nodesOf(...PICKERS)); // it may be new, of another tab or program
  const waits = ({ livelora: { shown } }) => shown.state === "queued" && shown.job !== job;
  nodesOf(TRAIN).filter(waits).forEach(restore); // their places in the queue may have changed
}

function onDeleted({ job }) {
  for (const node of showing(job, TRAIN, PREVIEW)) {
    delete node.properties.livelora_job;
    restore(node);
  }
  offer(nodesOf(...PICKERS));
}

function onReturn() {
  restoreRuns();
  nodesOf(TRAIN, PREVIEW).forEach(restore);
  offer(nodesOf(...PICKERS));
}

app.registerExtension({
  name: "livelora",
  settings,
  setup() {
    onEvent("job", onJob);
    onEvent("progress", onProgress);
    onEvent("sample", (facts) => showing(facts.job, PREVIEW).forEach((node) => node.livelora.add(facts)));
    onEvent("deleted", onDeleted);
    onReconnected(onReturn);
    watchRuns();
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("LiveLora")) addFolds(node);
    WIDGETS[node.comfyClass]?.(node);
    if (node.comfyClass in WIDGETS) node.expandToFitContent();
    if (!PICKERS.includes(node.comfyClass)) return;
    addPicker(node);
    offer([node]);
  },
  loadedGraphNode(node) {
    if (node.comfyClass?.startsWith("LiveLora")) renew(node);
    if (node.comfyClass in WIDGETS) restore(node);
  },
  afterConfigureGraph() {
    beginLate();
    restoreRuns(); // nobody waits for it
  },
});
