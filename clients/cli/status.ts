// `tandem status`: what a router sees of its instances.
import { create, toJsonString } from "@bufbuild/protobuf";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { ListInstancesResponseSchema, Standing, type Instance } from "#gen/tandem/router/v1/router_pb.js";
import { boolean, defineConfig, loadConfig, StartError } from "../../services/common/config.ts";
import { kvDebtText } from "../../services/common/kv-debt-text.ts";
import { untilSignal } from "../../services/common/lifecycle.ts";
import { renderTable, type Column } from "../common/table.ts";
import { withRouter } from "./router-calls.ts";
import { explained, findRouter, routerSettings } from "./router-target.ts";

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

const NONE = "No instances. Start some with `tandem prefill` and `tandem decode`, or all at once with `tandem up`.";

const COLUMNS: readonly Column<Instance>[] = [
  { title: "ID", cell: ({ info }) => info?.instanceId ?? "" },
  { title: "ROLE", cell: ({ info }) => word(Role, info?.role) },
  { title: "STATE", cell: ({ standing }) => word(Standing, standing) },
  { title: "MODEL", cell: ({ info }) => info?.model ?? "" },
  { title: "ENGINE", cell: ({ info }) => [info?.engine, info?.engineVersion].filter(Boolean).join(" ") },
  { title: "GRPC", cell: ({ info }) => info?.grpcAddress ?? "" },
  { title: "KV", cell: ({ info }) => info?.kvAddress ?? "" },
  { title: "LEGS", align: "right", cell: ({ legs }) => `${legs}` },
  { title: "SLOTS", align: "right", cell: slots },
  { title: "KV DEBT", align: "right", cell: ({ load }) => kvDebtText(load) },
  { title: "LOAD AGE", align: "right", cell: ({ load, loadAgeMs }) => (load === undefined ? "" : `${loadAgeMs} ms`) },
  { title: "REASON", cell: ({ reason, load }) => reason || wish(load?.restartWanted) },
];

export async function runStatus(argv: readonly string[]): Promise<void> {
  const config = loadConfig(statusConfig, { argv, env: process.env });
  const target = findRouter(config);
  const { url, run } = target;
  const heading = `Router ${url}${run === undefined ? "" : ` (tandem up, deployment ${run.name}, pid ${run.pid})`}`;
  const print = (instances: Instance[], routerId: string): void => {
    if (!config.json)
      return void process.stdout.write(
        `${heading}\n\n${instances.length === 0 ? NONE : renderTable(instances, COLUMNS, true)}\n`,
      );
    const message = create(ListInstancesResponseSchema, { instances, routerId });
    // Zero values included: a script should not need to know protobuf's defaults.
    const layout = config.watch ? {} : { prettySpaces: 2 };
    const text = toJsonString(ListInstancesResponseSchema, message, { alwaysEmitImplicit: true, ...layout });
    process.stdout.write(`${text}\n`);
  };
  const stop = config.watch ? untilSignal("SIGINT", "SIGTERM") : new AbortController().signal;
  try {
    if (!config.watch) {
      const { instances, routerId } = await withRouter(target, (router) => router.listInstances({}));
      return print(instances, routerId);
    }
    await withRouter(target, async (router) => {
      for await (const { instances } of router.watchInstances({}, { signal: stop })) {
        if (!config.json && process.stdout.isTTY) process.stdout.write("\x1b[H\x1b[2J");
        print(instances, "");
        if (!config.json && !process.stdout.isTTY) process.stdout.write("\n");
      }
    });
  } catch (error) {
    if (!stop.aborted) throw explained(error, target);
  }
  if (!stop.aborted)
    throw new StartError(`The router at ${url} ended the watch: the router is stopping or restarting.`);
}

/** Free slots of all slots, as the instance last reported. */
function slots({ info, load }: Instance): string {
  const limit = info?.slotLimit ?? 0;
  if (limit === 0) return "";
  return load === undefined ? `?/${limit}` : `${load.freeSlots}/${limit} free`;
}

function wish(reason = ""): string {
  return reason === "" ? "" : `It asks for a restart of its engine: ${reason}.`;
}

/** The name of a value as people write it: `serving`. A value of a later version is shown by its number. */
function word(names: Readonly<Record<string, string | number>>, value: number | undefined): string {
  if (value === undefined || value === 0) return "";
  const name = names[value];
  return typeof name === "string" ? name.toLowerCase() : `#${value}`;
}
