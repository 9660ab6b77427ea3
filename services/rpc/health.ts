// grpc.health.v1 for one server. https://github.com/grpc/grpc/blob/master/doc/health-checking.md
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/grpc/health/v1/health_pb.js";
import { ServiceError } from "../common/errors.ts";
import { type CallContext, type RpcService, defineService } from "./service.ts";

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
  const watchers = new Set<() => void>();
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
      async *watch({ service: name }, context) {
        let last: Status | undefined;
        for (;;) {
          const status = statusOf(name);
          if (status !== last) yield { status };
          last = status;
          if (context.signal.aborted) return;
          if (context.closing.aborted) throw new ServiceError("instance_unavailable", "The server is shutting down.");
          if (status === statusOf(name)) await change(context, watchers);
        }
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
      for (const wake of watchers) wake();
    },
  };
}

/** Resolves when the status may have changed, or when the call or the server ends. */
function change(context: CallContext, watchers: Set<() => void>): Promise<void> {
  return new Promise((resolve) => {
    const wake = (): void => {
      watchers.delete(wake);
      context.signal.removeEventListener("abort", wake);
      context.closing.removeEventListener("abort", wake);
      resolve();
    };
    watchers.add(wake);
    context.signal.addEventListener("abort", wake);
    context.closing.addEventListener("abort", wake);
  });
}
