// grpc.health.v1 for one server. https://github.com/grpc/grpc/blob/master/doc/health-checking.md
import { EventEmitter } from "node:events";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/grpc/health/v1/health_pb.js";
import { until } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { anySignal } from "../common/lifecycle.ts";
import { type RpcService, defineService } from "./service.ts";

/**
 * Name of a check that gives a reason when it fails: it answers UNAVAILABLE with the reason, while the names of
 * services answer NOT_SERVING. Consul shows the text of an error, but no details of a status.
 */
export const HEALTH_WITH_REASON = "tandem";

export interface HealthState {
  readonly service: RpcService;
  /**
   * For the server as a whole ("") and every service on it. @param reason Why the server is not serving, for people.
   */
  set(serving: boolean, reason?: string): void;
}

/** @param names Type names of the services beside this one. Not serving until `set` is called. */
export function createHealth(names: readonly string[]): HealthState {
  const known = new Set(["", Health.typeName, ...names]);
  const changes = new EventEmitter<{ change: [] }>().setMaxListeners(0); // One for each running watch.
  let serving = false;
  let why = "";
  const statusOf = (name: string): Status => {
    if (!known.has(name)) return Status.SERVICE_UNKNOWN;
    return serving ? Status.SERVING : Status.NOT_SERVING;
  };

  const service = defineService(
    Health,
    {
      async check({ service: name }) {
        if (name === HEALTH_WITH_REASON) {
          if (!serving) throw new ServiceError("instance_unavailable", why === "" ? "not serving" : why);
          return { status: Status.SERVING };
        }
        if (!known.has(name)) throw new ServiceError("not_found", `No service ${JSON.stringify(name)} on this server.`);
        return { status: statusOf(name) };
      },
      async *watch({ service: name }, { signal, closing }) {
        const over = anySignal(signal, closing);
        let status: Status;
        do {
          status = statusOf(name);
          yield { status };
          await until(changes, () => statusOf(name) !== status, over);
        } while (statusOf(name) !== status);
        if (!signal.aborted) throw new ServiceError("instance_unavailable", "The server is shutting down.");
      },
    },
    { access: "open" },
  );
  return {
    service,
    set(next, reason = "") {
      why = reason;
      if (serving === next) return;
      serving = next;
      changes.emit("change");
    },
  };
}
