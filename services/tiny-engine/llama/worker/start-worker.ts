// Starts the worker thread of an engine and returns the engine's end of the connection.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { Worker, type Transferable } from "node:worker_threads";
import { GgufError } from "../gguf.ts";
import type { Answer, Command, Report, WorkerStart } from "./messages.ts";

export interface LlamaWorker {
  send(command: Command): void;
  /** Must be set before the first command. */
  onReport: (report: Report) => void;
  /** Called if the thread has ended without being closed. */
  onDeath: (cause: Error) => void;
  close(): Promise<void>;
}

// The model lives outside the worker's JavaScript heap. The rest is small, but V8 would let the heap grow.
const LIMITS = { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 256, stackSizeMb: 2 };

/** Resolves when the model is in memory. @throws GgufError if the model can't be run. */
export function startLlamaWorker(start: WorkerStart): Promise<LlamaWorker> {
  return new Promise((resolve, reject) => {
    const thread = spawn(start);
    let closed = false;
    const worker: LlamaWorker = {
      send: (command) => thread.postMessage(command, []),
      onReport: () => {},
      onDeath: () => {},
      async close() {
        closed = true;
        await thread.terminate();
      },
    };
    const die = (error: Error): void => {
      reject(error);
      if (!closed) worker.onDeath(error);
      closed = true;
    };
    thread.on("message", (answer: Answer) => {
      if (answer.kind === "report") worker.onReport(answer);
      else if (answer.kind === "ready") resolve(worker);
      else void worker.close().then(() => reject(new GgufError(answer.message)));
    });
    thread.once("error", die);
    thread.once("exit", (code) => die(new Error(`the engine's worker thread ended with code ${code}`)));
  });
}

function spawn(start: WorkerStart): Worker {
  const transferList: Transferable[] = [start.file];
  const options = { workerData: start, transferList, resourceLimits: LIMITS, name: "llama" };
  if (!import.meta.url.endsWith(".ts")) return new Worker(new URL("./worker.js", import.meta.url), options);
  // Node 20 doesn't pass the TypeScript loader on to threads, so in development they load it themselves.
  // Found this way because import.meta.resolve is missing where tsx runs a module as CommonJS, as it does for mocha.
  const api = createRequire(import.meta.url)
    .resolve("tsx/esm/api")
    .replace(/\.cjs$/, ".mjs");
  const loader = JSON.stringify(pathToFileURL(api).href);
  const main = JSON.stringify(new URL("./worker.ts", import.meta.url).href);
  return new Worker(`import(${loader}).then(({ register }) => { register(); return import(${main}); })`, {
    ...options,
    eval: true,
  });
}
