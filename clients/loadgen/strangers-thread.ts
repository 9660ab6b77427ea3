// One attack of strangers, beside the load and not in its event loop. Its connections end with the thread.
import { workerData } from "node:worker_threads";
import { STRANGERS } from "../common/strangers.ts";

export interface StrangersData {
  /** A key of `STRANGERS`. */
  readonly attack: string;
  readonly grpcAddress: string;
}

const { attack, grpcAddress } = workerData as StrangersData;
await STRANGERS[attack]!(grpcAddress);
