// Which router a command is about, and what to say when it doesn't answer.
import { Code, type ConnectError } from "@connectrpc/connect";
import { StartError } from "../../services/common/config.ts";
import { defaultStateDir, liveRuns } from "./run-file.ts";

const DEFAULT_URL = "http://127.0.0.1:3000";

export interface FoundRouter {
  readonly url: string;
  /** Empty: none is known. */
  readonly token: string;
  /** Of the `tandem up` behind it, where it is one of this user. */
  readonly pid: number | undefined;
  readonly runCount: number;
}

/** The router named, else that of the `tandem up` started last, else the default address. @throws StartError for what is no URL. */
export function findRouter(config: {
  readonly "router.url": string | undefined;
  readonly token: string;
  readonly "state.dir": string | undefined;
}): FoundRouter {
  const runs = liveRuns(config["state.dir"] ?? defaultStateDir());
  const wanted = config["router.url"] === undefined ? undefined : normalise(config["router.url"]);
  const run = runs.find((candidate) => wanted === undefined || candidate.restUrl === wanted);
  return {
    url: wanted ?? run?.restUrl ?? DEFAULT_URL,
    token: config.token !== "" ? config.token : (run?.token ?? ""),
    pid: run?.pid,
    runCount: runs.length,
  };
}

export function explainRouterError(error: ConnectError, url: string, runCount: number): string {
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
  // Node's HTTP/1.1 parser on a server that speaks HTTP/2 only.
  if (/Parse Error: Expected HTTP/.test(error.message)) return `${url} speaks gRPC. Give the router's REST address with --router.`;
  return `The router at ${url} answered: ${error.message}`;
}

/** @throws StartError for what is no URL. */
function normalise(written: string): string {
  const url = /^https?:\/\//.test(written) ? written : `http://${written}`;
  if (!URL.canParse(url)) throw new StartError(`--router ${written}: expected a URL such as ${DEFAULT_URL}.`);
  return url.replace(/\/+$/, "");
}
