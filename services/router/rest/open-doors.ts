// Warns the operator once, at the start, if others may use the models.
import type { Log } from "../../common/log.ts";
import type { RouterConfig } from "../config.ts";
import { isLoopback } from "./server.ts";

export function warnOfOpenDoors({ rest, access }: RouterConfig, log: Log): void {
  if (access.apiKey === "" && !isLoopback(rest.listen)) {
    log.warn("REST is reachable from other machines and no API key is set: anyone who can connect can use the models", {
      listen: rest.listen,
      cure: "--api-key",
    });
  }
}
