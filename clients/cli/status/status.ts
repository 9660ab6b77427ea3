// `tandem status`: what a router sees of its instances.
import { create, toJsonString } from "@bufbuild/protobuf";
import { ListInstancesResponseSchema, type Instance } from "#gen/tandem/router/v1/router_pb.js";
import { boolean, defineConfig, loadConfig, StartError } from "../../../services/common/config.ts";
import { untilSignal } from "../../../services/common/lifecycle.ts";
import { routerClient } from "../../client/router.ts";
import { explained, findRouter, routerSettings } from "../router-target.ts";
import { renderInstances } from "./instance-table.ts";

export const statusConfig = defineConfig(
  "status",
  {
    ...routerSettings,
    json: boolean("json", "Print the instances as JSON, as RouterService.ListInstances returns them.", {
      default: false,
    }),
    watch: boolean("watch", "Print again after every change, until Ctrl-C.", { default: false }),
  },
  { summary: "Shows the instances that a router sees.", usage: "tandem status [--json] [--watch] [--router URL]" },
);

export async function runStatus(argv: readonly string[]): Promise<void> {
  const config = loadConfig(statusConfig, { argv, env: process.env });
  const target = findRouter(config);
  const { url, token, run } = target;
  const router = routerClient(url, token);
  const heading = `Router ${url}${run === undefined ? "" : ` (tandem up, deployment ${run.name}, pid ${run.pid})`}`;
  const print = (instances: Instance[], routerId: string): void => {
    if (!config.json) return void process.stdout.write(`${heading}\n\n${renderInstances(instances)}\n`);
    const message = create(ListInstancesResponseSchema, { instances, routerId });
    // Zero values included: a script should not need to know protobuf's defaults.
    const layout = config.watch ? {} : { prettySpaces: 2 };
    const text = toJsonString(ListInstancesResponseSchema, message, { alwaysEmitImplicit: true, ...layout });
    process.stdout.write(`${text}\n`);
  };
  const stop = config.watch ? untilSignal("SIGINT", "SIGTERM") : new AbortController().signal;
  try {
    if (!config.watch) {
      const { instances, routerId } = await router.listInstances({});
      return print(instances, routerId);
    }
    for await (const { instances } of router.watchInstances({}, { signal: stop })) {
      if (!config.json && process.stdout.isTTY) process.stdout.write("\x1b[H\x1b[2J");
      print(instances, "");
      if (!config.json && !process.stdout.isTTY) process.stdout.write("\n");
    }
  } catch (error) {
    if (!stop.aborted) throw explained(error, target);
  }
  if (!stop.aborted)
    throw new StartError(`The router at ${url} ended the watch: the router is stopping or restarting.`);
}
