// The worker thread: holds the model and does all its arithmetic, so that HTTP and KV never wait for it.
import { parentPort, workerData } from "node:worker_threads";
import { GgufError, readGguf } from "../gguf.ts";
import { createModel, type Model } from "../model.ts";
import { createBatch, type Batch } from "./batch.ts";
import type { Answer, Command, Report, WorkerStart } from "./messages.ts";

const port = parentPort!;

function loadModel({ file, kvBytes }: WorkerStart): Model | null {
  try {
    return createModel(readGguf(new Uint8Array(file)), { kvBytes });
  } catch (error) {
    if (!(error instanceof GgufError) && !(error instanceof RangeError)) throw error;
    port.postMessage({ kind: "unfit", message: error.message } satisfies Answer);
    return null;
  }
}

function serve(batch: Batch): void {
  let hung = false;
  let scheduled: NodeJS.Immediate | NodeJS.Timeout | null = null;
  let sleeping = false;

  const step = (): void => {
    scheduled = null;
    if (hung) return;
    const nowMs = performance.now();
    const report = batch.round(nowMs);
    if (report !== null) post(report);
    schedule(report === null ? batch.wakeMs() - nowMs : 0);
  };
  const schedule = (waitMs: number): void => {
    if (batch.size === 0 || waitMs === Infinity) return;
    sleeping = waitMs > 0;
    // Commands that arrived meanwhile are handled between two rounds.
    scheduled = sleeping ? setTimeout(step, waitMs) : setImmediate(step);
  };
  port.on("message", (command: Command) => {
    if (command.kind === "add") batch.add(command);
    else if (command.kind === "drop") batch.drop(command.id);
    else hung = command.hung;
    if (scheduled !== null && !sleeping) return;
    if (scheduled !== null) clearTimeout(scheduled as NodeJS.Timeout);
    scheduled = null;
    if (!hung) schedule(0);
  });
  port.postMessage({ kind: "ready" } satisfies Answer);
}

function post(report: Report): void {
  port.postMessage(
    report,
    report.kv.flatMap(({ blocks }) => blocks.map(({ buffer }) => buffer)),
  );
}

const start = workerData as WorkerStart;
const model = loadModel(start);
// The weights are in the kernel's memory now, so the file's bytes can be released.
structuredClone(start.file, { transfer: [start.file] });
if (model !== null) serve(createBatch(model));
