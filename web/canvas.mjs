// Finds our nodes in the workflow that is open.
// @ts-check
import { app } from "../../scripts/app.js";

/** The workflow that is open, whole. */
export function openGraph() {
  return app.rootGraph ?? app.graph;
}

/** The node of a prompt's node id; inside subgraphs ids read like "12:5". */
export function findNode(id) {
  let graph = openGraph();
  let node = null;
  for (const part of String(id ?? "").split(":")) {
    node = graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** All our nodes that are open, also inside subgraphs; with `types`, those alone. */
export function nodesOf(...types) {
  const nodes = [...(openGraph()?.nodes ?? [])];
  for (const node of nodes) nodes.push(...(node.subgraph?.nodes ?? [])); // goes on through what it adds
  const wanted = ({ comfyClass }) => (types.length ? types.includes(comfyClass) : comfyClass?.startsWith("LiveLora"));
  return nodes.filter(wanted);
}

/** Gives a node a property, also in all that can be undone and redone: no step there takes it away, and it is none. */
export function setProperty(node, name, value) {
  if (node.properties[name] === value) return;
  node.properties[name] = value;
  const workflow = app.extensionManager.workflow.activeWorkflow;
  const { undoQueue = [], activeState, redoQueue = [] } = workflow?.changeTracker ?? {};
  const states = [...undoQueue, activeState, ...redoQueue].filter((state) => state?.id === openGraph().id);
  for (const state of states) {
    const inner = state.definitions?.subgraphs?.find(({ id }) => id === node.graph.id);
    const graph = node.graph === openGraph() ? state : inner;
    const same = graph?.nodes.find(({ id }) => String(id) === String(node.id));
    if (same) same.properties[name] = value;
  }
  if (states.length) workflow.isModified = true; // else it is the workflow before, as this one is just being opened
}
