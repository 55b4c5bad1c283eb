// LiveLoRA in the browser: what its nodes show while a job runs. One file for each thing that is shown.
// @ts-check
import { app } from "../../scripts/app.js";
import { addFold } from "./advanced.mjs?v=1";
import { onEvent, onReconnected } from "./jobs.mjs?v=1";
import { addMonitor, showJob } from "./monitor.mjs?v=1";
import { addGallery, showSamples } from "./gallery.mjs?v=1";
import { addReport } from "./report.mjs?v=1";

const WIDGETS = {
  LiveLoraTrain: addMonitor,
  LiveLoraPreview: addGallery,
  LiveLoraDataset: addReport,
  LiveLoraCaption: addReport,
  LiveLoraSave: addReport,
  LiveLoraMerge: addReport,
};

/** The node of a prompt's node id; inside subgraphs ids read like "12:5". */
function findNode(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id ?? "").split(":")) {
    node = graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Our nodes that show a job: the one of the queued workflow, wherever it is open. */
function nodesOf(job, type) {
  const graph = app.rootGraph ?? app.graph;
  const nodes = [...(graph?.nodes ?? [])];
  for (const node of nodes) nodes.push(...(node.subgraph?.nodes ?? []));
  return nodes.filter((node) => node.comfyClass === type && node.properties.livelora_job === job);
}

/** Ties nodes to a job, kept with the workflow so that a reload finds it again. */
function tie(job, id, type) {
  const node = findNode(id);
  if (node?.comfyClass === type) node.properties.livelora_job = job;
}

async function restore(node) {
  const job = node.properties?.livelora_job;
  if (node.comfyClass === "LiveLoraTrain") await showJob(node, job);
  if (node.comfyClass === "LiveLoraPreview") await showSamples(node, job);
}

app.registerExtension({
  name: "livelora",
  setup() {
    onEvent("job", (facts) => {
      tie(facts.job, facts.train_node, "LiveLoraTrain");
      tie(facts.job, facts.preview_node, "LiveLoraPreview");
      for (const type of ["LiveLoraTrain", "LiveLoraPreview"]) nodesOf(facts.job, type).forEach(restore);
    });
    onEvent("progress", (facts) => nodesOf(facts.job, "LiveLoraTrain").forEach((node) => node.livelora.show(facts)));
    onEvent("sample", (facts) => nodesOf(facts.job, "LiveLoraPreview").forEach((node) => node.livelora.add(facts)));
    onReconnected(() => (app.rootGraph ?? app.graph)?.nodes.forEach(restore));
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("LiveLora")) addFold(node);
    WIDGETS[node.comfyClass]?.(node);
    if (node.comfyClass in WIDGETS) node.expandToFitContent();
  },
  loadedGraphNode(node) {
    if (node.comfyClass in WIDGETS) restore(node);
  },
});
