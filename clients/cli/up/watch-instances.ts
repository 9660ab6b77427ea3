// The instances that the router sees, for as long as `tandem up` runs. The router starts later than the watch, and may
// restart.
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { pause, systemClock } from "../../../services/common/clock.ts";
import { SILENT } from "../../../services/common/log.ts";
import { peerFault } from "../../../services/rpc/peer-fault.ts";
import type { Run } from "../run-file.ts";

/**
 * Nothing reports that the starting router's port is open, so the watch retries often: a retry is cheap, a delay is
 * not.
 */
const RETRY_MS = 15;
/** Another server listens there, and that will not change soon. */
const RETRY_STRANGER_MS = 250;

/**
 * Resolves when `stop` aborts.
 *
 * @param onInstances Called at once when the router answers, and after every change.
 */
export async function watchInstances(
  { grpcAddress, token, tls }: Pick<Run, "grpcAddress" | "token" | "tls">,
  stop: AbortSignal,
  onInstances: (instances: readonly Instance[]) => void,
): Promise<void> {
  // Imported here, so that `up` starts the processes first and the import runs meanwhile.
  const { dialRpc } = await import("../../../services/rpc/channel.ts");
  const { openTls } = await import("../../../services/rpc/tls.ts");
  const { RouterService } = await import("#gen/tandem/router/v1/router_pb.js");
  using opened = tls === undefined ? undefined : openTls(tls, { log: SILENT });
  await using channel = dialRpc(grpcAddress, { token, tls: opened });
  const router = channel.client(RouterService);
  while (!stop.aborted) {
    let pauseMs = RETRY_MS;
    try {
      for await (const { instances } of router.watchInstances({}, { signal: stop })) onInstances(instances);
    } catch (error) {
      if (peerFault(error).kind !== "address") pauseMs = RETRY_STRANGER_MS;
    }
    await pause(systemClock, pauseMs, stop);
  }
}
