// What an operator should know about who may use the models, said once at the start.
import type { Log } from "../../common/log.ts";
import type { RouterConfig } from "../config.ts";
import { isLoopback } from "./server.ts";

export function warnOfOpenDoors({ rest, access }: RouterConfig, log: Log): void {
  if (access.apiKey === "" && !isLoopback(rest.listen)) {
    log.warn("REST is open beyond this machine, and no API key is set: anyone who reaches it can use the models", {
      listen: rest.listen,
      cure: "--api-key",
    });
  }
}
