// Which router a command is about, and what to say when that router doesn't answer as it should.
import { address, ConfigError, secret, StartError, text, type Values } from "../../services/common/config.ts";
import { stateDir, stateDirOf } from "../../services/common/state-dir.ts";
import { tlsSettings, type TlsSettings } from "../../services/rpc/tls-settings.ts";
import { TandemError } from "../client/errors.ts";
import { liveRuns, type Run } from "./run-file.ts";

const DEFAULT_URL = "http://127.0.0.1:3000";

/** The settings of every command that asks a router. */
export const routerSettings = {
  routerUrl: text(
    "router.url",
    "REST address of the router, such as http://127.0.0.1:3000. Left out: the router of this user's `tandem up` on this machine.",
    { optional: true, alias: "router" },
  ),
  deploymentName: text(
    "deployment.name",
    "Name of this user's `tandem up`, if several run here. `tandem ls` lists them.",
    { optional: true, alias: "name", env: ["TANDEM_NAME"] },
  ),
  routerGrpc: address(
    "router.grpc",
    "gRPC address of that router. Left out: that of the `tandem up` that runs there. With it, the join token is proven " +
      "and not sent.",
    { optional: true },
  ),
  token: secret("token", "Join token of the router. Left out: the token of the `tandem up` that runs there."),
  stateDir,
  tlsCert: tlsSettings.cert,
  tlsKey: tlsSettings.key,
  tlsCa: tlsSettings.ca,
  tlsPeerIds: tlsSettings.peerIds,
};

export interface RouterTarget {
  readonly url: string;
  /** Undefined if unknown. */
  readonly grpcAddress: string | undefined;
  /** Certificates for gRPC. */
  readonly tls: TlsSettings;
  /** Empty if unknown. */
  readonly token: string;
  /** The `tandem up` behind the router, if this user runs it. */
  readonly run: Run | undefined;
  /** Deployments of this user that run here. */
  readonly runCount: number;
}

/**
 * The router at the address given, else that of the deployment named, else that of the one that runs here, else the one
 * at the default address.
 *
 * @throws ConfigError if several run here and none is named, or if the named one doesn't run.
 */
export function findRouter(config: Values<typeof routerSettings>): RouterTarget {
  const runs = liveRuns(stateDirOf(config));
  const url = config.routerUrl === undefined ? undefined : urlOf(config.routerUrl);
  const run = url === undefined ? runNamed(config.deploymentName, runs) : runs.find((one) => one.restUrl === url);
  const tls = { cert: config.tlsCert, key: config.tlsKey, ca: config.tlsCa, peerIds: config.tlsPeerIds };
  return {
    url: url ?? run?.restUrl ?? DEFAULT_URL,
    grpcAddress: config.routerGrpc ?? (run?.grpcAddress || undefined),
    tls: tls.cert === "" && run?.tls !== undefined ? run.tls : tls,
    token: config.token !== "" ? config.token : (run?.token ?? ""),
    run,
    runCount: runs.length,
  };
}

function runNamed(name: string | undefined, runs: readonly Run[]): Run | undefined {
  const all = runs.map((run) => `${run.name} at ${run.restUrl}`).join(", ");
  if (name === undefined) {
    if (runs.length < 2) return runs[0];
    throw new ConfigError(`Several deployments run here: ${all}. Choose one with --name NAME.`);
  }
  const run = runs.find((candidate) => candidate.name === name);
  if (run !== undefined) return run;
  const others = runs.length === 0 ? "Start it with `tandem up --name NAME`." : `These run: ${all}.`;
  throw new ConfigError(`This user has no deployment named ${name} running here. ${others}`);
}

function urlOf(written: string): string {
  const url = /^https?:\/\//.test(written) ? written : `http://${written}`;
  if (!URL.canParse(url)) throw new ConfigError(`--router ${written}: expected a URL such as ${DEFAULT_URL}.`);
  return url.replace(/\/+$/, "");
}

/** What `error` of a call to `target` means for the user. Any other error is returned as it is. */
export function explained(error: unknown, target: RouterTarget, apiKey = ""): unknown {
  return error instanceof TandemError ? new StartError(wordsOf(error, target, apiKey), { cause: error }) : error;
}

function wordsOf(error: TandemError, { url, token, runCount }: RouterTarget, apiKey: string): string {
  switch (error.kind) {
    case "unauthenticated": {
      // RouterService reports Tandem's own codes; REST reports a status.
      const [what, given, flag] =
        error.code === undefined
          ? ["API key", apiKey, "--api-key or OPENAI_API_KEY"]
          : ["join token", token, "--token or TANDEM_TOKEN"];
      return given === ""
        ? `The router at ${url} requires its ${what}: pass it with ${flag}.`
        : `The router at ${url} rejects this ${what}: pass the one that the router was started with, by ${flag}.`;
    }
    case "unreachable":
      return runCount === 0
        ? `${error.message} No \`tandem up\` of this user runs here. Start one with \`tandem up\`, or name a router with --router URL.`
        : `${error.message} Name the router with --router URL.`;
    case "not_tandem":
      return `${error.message} Give the REST address of a router with --router.`;
    case "broken":
      return error.message;
    case "failed":
      return `The router at ${url} answered: ${error.message}`;
  }
}
