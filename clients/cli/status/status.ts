// `tandem status`: what a router sees of its instances.
import { create, toJsonString } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { ListInstancesResponseSchema, type Instance } from "#gen/tandem/router/v1/router_pb.js";
import { loadConfig, StartError } from "../../../services/common/config.ts";
import { untilSignal } from "../../../services/common/lifecycle.ts";
import { routerOverRest } from "../../control/client.ts";
import { defaultStateDir, liveRuns } from "../run-file.ts";
import { statusConfig } from "./config.ts";
import { renderInstances } from "./instance-table.ts";

const DEFAULT_URL = "http://127.0.0.1:3000";

export async function runStatus(argv: readonly string[]): Promise<void> {
  const config = loadConfig(statusConfig, { argv, env: process.env });
  const runs = liveRuns(config["state.dir"] ?? defaultStateDir());
  const wanted = config["router.url"] === undefined ? undefined : normalise(config["router.url"]);
  const run = runs.find((candidate) => wanted === undefined || candidate.restUrl === wanted);
  const url = wanted ?? run?.restUrl ?? DEFAULT_URL;
  const token = config.token !== "" ? config.token : (run?.token ?? "");
  const router = routerOverRest(url, { token });
  const print = (instances: Instance[], routerId: string): void => {
    if (config.json) {
      const message = create(ListInstancesResponseSchema, { instances, routerId });
      // Zero values included: a script should not have to know protobuf's defaults.
      const space = config.watch ? {} : { prettySpaces: 2 };
      process.stdout.write(`${toJsonString(ListInstancesResponseSchema, message, { alwaysEmitImplicit: true, ...space })}\n`);
    } else {
      process.stdout.write(`${heading(url, run?.pid)}\n\n${renderInstances(instances)}\n`);
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
    throw error instanceof ConnectError ? new StartError(explain(error, url, runs.length)) : error;
  }
}

function heading(url: string, pid: number | undefined): string {
  return `Router ${url}${pid === undefined ? "" : ` (tandem up, pid ${pid})`}`;
}

function explain(error: ConnectError, url: string, runCount: number): string {
  if (error.code === Code.Unauthenticated) {
    return `The router at ${url} asks for its join token: give --token, or set TANDEM_TOKEN to what it was started with.`;
  }
  if (error.code === Code.Unimplemented || error.code === Code.NotFound) {
    return `${url} answers, but not as a Tandem router does. Give the REST address of one with --router.`;
  }
  if (error.code === Code.Unavailable || /ECONNREFUSED|ENOTFOUND|EHOSTUNREACH/.test(String(error.cause ?? error.message))) {
    const hint = runCount === 0 ? "No `tandem up` of this user runs here. Start one with `tandem up`, or name a router with --router URL." : "Name the router with --router URL.";
    return `Nothing listens at ${url}. ${hint}`;
  }
  return `The router at ${url} answered: ${error.message}`;
}

/** @throws StartError for what is no URL. */
function normalise(written: string): string {
  const url = /^https?:\/\//.test(written) ? written : `http://${written}`;
  if (!URL.canParse(url)) throw new StartError(`--router ${written}: expected a URL such as ${DEFAULT_URL}.`);
  return url.replace(/\/+$/, "");
}
