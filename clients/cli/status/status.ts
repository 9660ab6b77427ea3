// `tandem status`: what a router sees of its instances.
import { create, toJsonString } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { ListInstancesResponseSchema, type Instance } from "#gen/tandem/router/v1/router_pb.js";
import { loadConfig, StartError } from "../../../services/common/config.ts";
import { untilSignal } from "../../../services/common/lifecycle.ts";
import { routerOverRest } from "../../control/client.ts";
import { findRouter } from "../find-router.ts";
import { explainRouterError } from "../router-error.ts";
import { statusConfig } from "./config.ts";
import { renderInstances } from "./instance-table.ts";

export async function runStatus(argv: readonly string[]): Promise<void> {
  const config = loadConfig(statusConfig, { argv, env: process.env });
  const { url, token, pid, runCount } = findRouter(config);
  const router = routerOverRest(url, { token });
  const print = (instances: Instance[], routerId: string): void => {
    if (config.json) {
      const message = create(ListInstancesResponseSchema, { instances, routerId });
      // Zero values included: a script should not have to know protobuf's defaults.
      const space = config.watch ? {} : { prettySpaces: 2 };
      process.stdout.write(
        `${toJsonString(ListInstancesResponseSchema, message, { alwaysEmitImplicit: true, ...space })}\n`,
      );
    } else {
      process.stdout.write(`${heading(url, pid)}\n\n${renderInstances(instances)}\n`);
    }
  };
  try {
    if (!config.watch) {
      const answer = await router.listInstances({});
      print(answer.instances, answer.routerId);
      return;
    }
    const stop = untilSignal("SIGINT", "SIGTERM");
    try {
      for await (const message of router.watchInstances({}, { signal: stop })) {
        if (!config.json && process.stdout.isTTY) process.stdout.write("\x1b[H\x1b[2J");
        print(message.instances, "");
        if (!config.json && !process.stdout.isTTY) process.stdout.write("\n");
      }
    } catch (error) {
      if (!stop.aborted) throw error;
    }
    if (!stop.aborted) throw new StartError(`The router at ${url} ended the watch: it stops or restarts.`);
  } catch (error) {
    throw error instanceof ConnectError ? new StartError(explainRouterError(error, url, runCount)) : error;
  }
}

function heading(url: string, pid: number | undefined): string {
  return `Router ${url}${pid === undefined ? "" : ` (tandem up, pid ${pid})`}`;
}
