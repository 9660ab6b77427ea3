// One attack of strangers, beside the load and not in its event loop. Its connections end with the thread.
import { parentPort, workerData } from "node:worker_threads";
import { STRANGERS } from "../common/strangers.ts";

export interface StrangersData {
  /** A key of `STRANGERS`. */
  readonly attack: string;
  readonly grpcAddress: string;
  /** They strike when this is notified, after the thread's message that they are prepared. */
  readonly signal: Int32Array;
}

const { attack, grpcAddress, signal } = workerData as StrangersData;
const strangers = await STRANGERS[attack]!(grpcAddress);
// oxlint-disable-next-line require-post-message-target-origin -- That is for windows.
parentPort!.postMessage("prepared");
Atomics.wait(signal, 0, 0);
strangers.strike();
