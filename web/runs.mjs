// What was queued from the workflow that is open and what came of it, as it happens and again after a reload.
// @ts-check
import { api } from "../../scripts/api.js";
import { findNode, openGraph } from "./canvas.mjs?v=2";
import { showProblems } from "./problems.mjs?v=2";

/** How many runs of a workflow are asked for again after a reload: a node may not have run in the last one. */
const KEPT = 5;
/** What ComfyUI changes by itself after a run. */
const CHANGES = ["seed", "noise_seed"];

/** Run → the id of the workflow that it was queued from. Events come to whatever workflow is open. */
const origins = new Map();
/** What stands in the boxes of the workflow that is open: { id, type, inputs, sentence }; `failed` if it ran. */
let standing = [];
/** How often something was heard of a run. */
let heard = 0;

/** Shows from now on what is refused, what fails and what is reported. */
export function watchRuns() {
  const queue = api.queuePrompt;
  api.queuePrompt = function (number, prompt) {
    const told = begin(prompt);
    const answer = queue.apply(this, arguments);
    answer.then((facts) => told(facts.prompt_id, facts.node_errors), (error) => told(null, error.response?.node_errors));
    return answer; // as it is, so that its errors name no file of ours
  };
  onRun("execution_start", () => stand(standing.filter((problem) => !problem.failed)));
  onRun("execution_error", (facts) => stand([...standing, failure(facts)]));
  onRun("executed", ({ node, display_node: shown, output }) => findNode(shown ?? node)?.livelora?.report?.(output));
}

/** Shows again, on nodes that were loaded, what the last runs of this workflow said. ComfyUI knows it until it ends. */
export async function restoreRuns() {
  const graph = openGraph().id;
  let before, runs, told;
  do { // what is heard while the answers are on their way is newer than they are
    before = heard;
    runs = recorded(graph);
    told = (await Promise.all(runs.map(({ run }) => getRun(run)))).map(facts);
  } while (heard !== before);
  if (openGraph().id !== graph) return;
  const problems = [...(runs[0]?.refusals ?? []), ...(told[0]?.failures ?? [])];
  stand(problems.filter((problem) => fits(findNode(problem.id), problem)));
  const filled = new Set();
  for (const { id, output, ...queued } of told.flatMap(({ reports }) => reports)) { // the newest first
    const node = findNode(id);
    if (!node?.livelora?.report || filled.has(node) || !fits(node, queued)) continue;
    filled.add(node);
    node.livelora.report(output);
  }
}

/** Notes that a prompt is being queued, which ends what stood before. Gives what notes the answer. */
function begin({ output, workflow }) {
  const graph = workflow?.id;
  const before = recorded(graph).slice(0, KEPT - 1);
  record(graph, [{ run: null, refusals: [] }, ...before]);
  heard += 1;
  stand([]);
  return (run, errors) => {
    const refusals = Object.entries(errors ?? {}).map(([id, about]) => refusal(id, about, output[id]));
    record(graph, [{ run, refusals }, ...before]);
    origins.set(run, graph);
    heard += 1;
    if (openGraph().id === graph) stand([...standing, ...refusals]);
  };
}

/** Calls back with what is told of a run, unless that belongs to another workflow. */
function onRun(name, callback) {
  api.addEventListener(name, ({ detail }) => {
    heard += 1;
    if ((origins.get(detail.prompt_id) ?? openGraph().id) === openGraph().id) callback(detail);
  });
}

function stand(problems) {
  standing = problems;
  showProblems(problems);
}

/** A refused node with ComfyUI's sentences, each once: it repeats ours for each input that the check looks at. */
function refusal(id, { class_type: type, errors }, queued) {
  const sentences = errors.map(({ message, details, extra_info: extra, type: kind }) => {
    if (kind === "custom_validation_failed") return details.replace(`${extra?.input_name} - `, "");
    return details ? `${message}: ${details}` : message;
  });
  return { id, type, inputs: queued?.inputs ?? {}, sentence: [...new Set(sentences)].join("\n") };
}

/** A node that failed. What we raise on purpose is a whole sentence; what is not, such as KeyError: 'x', needs its name.
 */
function failure({ node_id: id, node_type: type, exception_type: kind, exception_message: message }, inputs = {}) {
  const told = message.trim();
  const ours = /^(ValueError|RuntimeError|OSError)$|\./.test(kind);
  return { id, type, inputs, failed: true, sentence: told && ours ? told : `${kind}: ${told}` };
}

/** What ComfyUI's history of a run says of its nodes. */
function facts(entry) {
  const graph = entry?.prompt[2] ?? {};
  const inputs = (id) => graph[id]?.inputs ?? {};
  const errors = (entry?.status?.messages ?? []).filter(([name]) => name === "execution_error");
  return {
    failures: errors.map(([, error]) => failure(error, inputs(error.node_id))),
    reports: Object.entries(entry?.outputs ?? {}).map(([id, output]) => (
      { id, output, type: graph[id]?.class_type, inputs: inputs(id) })),
  };
}

/** Whether a node is of that kind and has the values that it was queued with: a file may hold the workflow as it was
 * at another time. */
function fits(node, { type, inputs }) {
  const same = ({ name, value }) => CHANGES.includes(name) || !(name in inputs) || Array.isArray(inputs[name])
    || inputs[name] === value;
  return node?.comfyClass === type && (node.widgets ?? []).every(same);
}

async function getRun(run) {
  const answer = run && await api.fetchApi(`/history/${run}`).catch(() => null);
  return answer?.ok ? (await answer.json())[run] : null;
}

/** The last runs that this tab queued from a workflow, the newest first: { run, refusals }. */
function recorded(graph) {
  return JSON.parse(sessionStorage.getItem(address(graph)) ?? "[]");
}

function record(graph, runs) {
  try {
    sessionStorage.setItem(address(graph), JSON.stringify(runs));
  } catch { // it is full: what is shown now is not there after a reload, and that is all
  }
}

function address(graph) {
  return `livelora.runs.${graph}`;
}
